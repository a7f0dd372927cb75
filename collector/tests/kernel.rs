//! The kernel boundary against the running kernel: maps of the wrong shape.
//!
//! What the machine lacks is told: such a test is ignored, with the reason.

use std::os::fd::AsFd;

use anyhow::{Context, Result, bail, ensure};
use cgmeter::kernel::{
    self, bpf,
    load::{BTF_PATH, Kernel, Options},
    map::{Map, OpenError},
    mapping::Mapping,
};
use collector_common::{block::BlockValue, drops::Drops, keyed::CgroupKey, tasks::TasksControl};
use libtest_mimic::{Arguments, Trial};

fn main() -> std::process::ExitCode {
    let root = || std::fs::read(BTF_PATH).is_ok() && is_root();
    let trials = [trial(
        "a_map_of_another_shape_is_refused",
        root().then_some(()).ok_or("needs root"),
        wrong_shapes,
    )];
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

fn trial(name: &str, can: Result<(), &str>, test: fn() -> Result<()>) -> Trial {
    if let Err(why) = can {
        eprintln!("{name} is ignored: {why}");
    }
    let run = move || test().map_err(|error| format!("{error:?}").into());
    Trial::test(name, run).with_ignored_flag(can.is_err())
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines().filter_map(|line| line.strip_prefix("Uid:"));
    lines.any(|ids| ids.split_whitespace().nth(1) == Some("0"))
}

/// What differs, as the error tells it.
fn shape<T>(result: Result<T, OpenError>) -> Result<(&'static str, u32, u32)> {
    match result {
        Ok(_) => bail!("a map of another shape was opened"),
        Err(OpenError::Shape {
            what,
            found,
            expected,
            ..
        }) => Ok((what, found, expected)),
        Err(OpenError::Kernel(error)) => Err(error.into()),
    }
}

fn wrong_shapes() -> Result<()> {
    let kernel = Kernel::load(&Options {
        programs: Vec::new(),
        max_slots: 64,
        lanes: kernel::possible_cpus()?,
        log_level: 0,
    })?;
    let drops = kernel.map("DROPS")?;
    let map = Map::<CgroupKey, Drops>::hash(drops)?;
    ensure!(map.max_entries() == 64, "{} entries", map.max_entries());
    let (large, small) = (size_of::<BlockValue>() as u32, size_of::<Drops>() as u32);
    // A value that is larger than the map's: reading entries would leave the rest unwritten, setting
    // one is harmless. A smaller one is the other way round: the kernel would write beyond it.
    let refused = shape(Map::<CgroupKey, BlockValue>::hash(drops))?;
    ensure!(refused == ("value size", small, large), "{refused:?}");
    let refused = shape(Map::<CgroupKey, u32>::hash(drops))?;
    ensure!(refused == ("value size", small, 4), "{refused:?}");
    let refused = shape(Map::<u64, Drops>::hash(drops))?;
    ensure!(refused == ("key size", 16, 8), "{refused:?}");
    let refused = shape(Mapping::<Drops>::open(drops))?;
    ensure!(refused.0 == "type", "{refused:?}");

    let control = kernel.map("TASKS")?;
    let mapping = Mapping::<TasksControl>::open(control)?;
    ensure!(mapping.entries() == 1);
    let refused = shape(Mapping::<Drops>::open(control))?;
    let whole = size_of::<TasksControl>() as u32;
    ensure!(refused == ("value size", whole, small), "{refused:?}");
    let error = Mapping::<Drops>::open(control).err().context("opened")?;
    let text = error.to_string();
    ensure!(text.contains("the map TASKS has a value size of"), "{text}");

    // Entries round trip, and those that are not there are told.
    let key = CgroupKey { cgroup: 7, what: 8 };
    map.insert(&key, &Drops { packets: 9 })?;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    map.read_all(&mut keys, &mut values)?;
    ensure!(keys == [key] && values.len() == 1 && values[0].packets == 9);
    ensure!(map.take(&key)?.packets == 9);
    ensure!(map.remove(&key).is_err() && map.take(&key).is_err());
    map.read_all(&mut keys, &mut values)?;
    ensure!(keys.is_empty() && values.is_empty());

    let array = bpf::create_mmapable_array("test", 16, 3)?;
    let pairs = Mapping::<[u64; 2]>::open(array.as_fd())?;
    ensure!(pairs.entries() == 3 && pairs.read(2) == [0, 0]);
    let refused = shape(Mapping::<[u64; 1]>::open(array.as_fd()))?;
    ensure!(refused == ("value size", 16, 8), "{refused:?}");
    Ok(())
}
