//! The kernel boundary against the running kernel: maps of the wrong shape, and the kernel's types as
//! bpftool reads them.
//!
//! A test that this machine can't run is ignored, and the reason is printed. `CGMETER_BTF` names a file
//! with another kernel's BTF, to compare that instead.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader},
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use cgmeter::kernel::{
    self, bpf,
    btf::Btf,
    fields,
    load::{BTF_PATH, Kernel, LoadOptions},
    map::{Map, OpenError},
    mapping::Mapping,
};
use collector_common::{
    cgroup_iterator::{CgroupRecord, FinalRecordKey},
    drops::Drops,
    paths::PATHS,
    tasks::TasksControl,
};
use libtest_mimic::{Arguments, Trial};
use zerocopy::FromZeros as _;

fn main() -> std::process::ExitCode {
    let root = || std::fs::read(BTF_PATH).is_ok() && is_root();
    let bpftool = || btf_path().exists() && bpftool().is_some();
    let trials = [
        trial(
            "a_map_of_another_shape_is_refused",
            root().then_some(()).ok_or("needs root"),
            wrong_shapes,
        ),
        trial(
            "the_kernel_s_fields_are_where_bpftool_has_them",
            bpftool().then_some(()).ok_or("needs bpftool and BTF"),
            fields_agree,
        ),
    ];
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

/// What differs, as the error says it.
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
    let options = LoadOptions {
        programs: Vec::new(),
        max_slots: 64,
        max_removed: 0,
        cpus: kernel::possible_cpus()?,
        log_level: 0,
        trial: kernel::trial::Trial::default(),
        root: &File::open("/")?,
    };
    let kernel = Kernel::load(&options, None)?;
    let records = kernel.map("FINAL_RECORDS")?;
    let map = Map::<FinalRecordKey, CgroupRecord>::hash(records)?;
    ensure!(map.max_entries() == 64, "{} entries", map.max_entries());
    let (whole, small) = (size_of::<CgroupRecord>() as u32, size_of::<Drops>() as u32);
    // A value that is larger than the map's: reading entries would leave the rest unwritten, setting
    // one is harmless. A smaller one is the other way round: the kernel would write beyond it.
    let refused = shape(Map::<FinalRecordKey, [CgroupRecord; 2]>::hash(records))?;
    ensure!(refused == ("value size", whole, 2 * whole), "{refused:?}");
    let refused = shape(Map::<FinalRecordKey, u32>::hash(records))?;
    ensure!(refused == ("value size", whole, 4), "{refused:?}");
    let refused = shape(Map::<u64, CgroupRecord>::hash(records))?;
    ensure!(refused == ("key size", 16, 8), "{refused:?}");
    let refused = shape(Mapping::<Drops>::open(records))?;
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

    // Entries round trip, and those that are not there are reported.
    let key = FinalRecordKey {
        cgroup: 7,
        hierarchy: 8,
    };
    let mut record = CgroupRecord::new_zeroed();
    record.id = 9;
    map.insert(&key, &record)?;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    map.read_all(&mut keys, &mut values)?;
    ensure!(keys == [key] && values.len() == 1 && values[0].id == 9);
    ensure!(map.take(&key)?.id == 9);
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

fn btf_path() -> PathBuf {
    std::env::var_os("CGMETER_BTF").map_or_else(|| BTF_PATH.into(), PathBuf::from)
}

fn bpftool() -> Option<&'static str> {
    let works = |program: &&str| {
        let mut command = Command::new(program);
        let output = command.arg("version").stderr(Stdio::null()).output();
        output.is_ok_and(|output| output.status.success())
    };
    ["bpftool", "/usr/sbin/bpftool"].into_iter().find(works)
}

/// A type as bpftool prints it.
#[derive(Debug, Default)]
struct Dumped {
    kind: String,
    name: String,
    numbers: HashMap<String, u64>,
    /// Names of members, enumerators or parameters, with their numbers.
    members: Vec<(String, HashMap<String, u64>)>,
}

/// `'name' key=value key=value`, a name of `(anon)` being none.
fn dumped_line(text: &str) -> Option<(String, HashMap<String, u64>)> {
    let (name, rest) = text.trim().strip_prefix('\'')?.split_once('\'')?;
    let pairs = rest.split_whitespace().filter_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let value = value.parse::<i64>().ok()? as u64;
        Some((key.to_owned(), value))
    });
    let name = if name == "(anon)" { "" } else { name };
    Some((name.to_owned(), pairs.collect()))
}

/// The kernel's types by their numbers.
fn dump() -> Result<Vec<Dumped>> {
    let mut child = Command::new(bpftool().context("no bpftool")?)
        .args(["btf", "dump", "file"])
        .arg(btf_path())
        .args(["format", "raw"])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(child.stdout.take().context("no output")?);
    let mut types = vec![Dumped::default()];
    for line in output.lines() {
        let line = line?;
        if line.starts_with('\t') {
            let last = types.last_mut().context("no type")?;
            // Variables of a section are printed in another way, and nobody asks for them.
            if last.kind != "DATASEC" {
                let member = dumped_line(&line).with_context(|| line.clone())?;
                last.members.push(member);
            }
            continue;
        }
        let (number, rest) = line.split_once("] ").with_context(|| line.clone())?;
        ensure!(number == format!("[{}", types.len()), "{line}");
        let (kind, rest) = rest.split_once(' ').with_context(|| line.clone())?;
        let (name, numbers) = dumped_line(rest).with_context(|| line.clone())?;
        types.push(Dumped {
            kind: kind.to_owned(),
            name,
            numbers,
            members: Vec::new(),
        });
    }
    ensure!(child.wait()?.success(), "bpftool failed");
    Ok(types)
}

/// The types as bpftool has them, asked for paths.
struct Oracle {
    types: Vec<Dumped>,
    /// First type of a kind and name.
    first: HashMap<(String, String), usize>,
}

impl Oracle {
    fn new(types: Vec<Dumped>) -> Self {
        let mut first = HashMap::new();
        for (number, ty) in types.iter().enumerate() {
            let key = (ty.kind.clone(), ty.name.clone());
            first.entry(key).or_insert(number);
        }
        Self { types, first }
    }

    fn find(&self, kind: &str, name: &str) -> Option<&Dumped> {
        let number = self.first.get(&(kind.to_owned(), name.to_owned()))?;
        self.types.get(*number)
    }

    fn plain(&self, mut number: usize) -> Option<&Dumped> {
        const OTHERS: &[&str] = &["TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG"];
        loop {
            let ty = self.types.get(number)?;
            if !OTHERS.contains(&ty.kind.as_str()) {
                return Some(ty);
            }
            number = *ty.numbers.get("type_id")? as usize;
        }
    }

    fn size(&self, ty: &Dumped) -> Option<u64> {
        match ty.kind.as_str() {
            "PTR" => Some(8),
            "ARRAY" => {
                let element = self.plain(*ty.numbers.get("type_id")? as usize)?;
                Some(self.size(element)? * ty.numbers.get("nr_elems")?)
            }
            _ => ty.numbers.get("size").copied(),
        }
    }

    /// Offset in bits and type of a member.
    fn member(&self, of: &Dumped, name: &str) -> Option<(u64, &Dumped)> {
        of.members.iter().find_map(|(found, numbers)| {
            let ty = self.plain(*numbers.get("type_id")? as usize)?;
            let bits = *numbers.get("bits_offset")?;
            if found == name {
                Some((bits, ty))
            } else if found.is_empty() {
                let (inner, ty) = self.member(ty, name)?;
                Some((bits + inner, ty))
            } else {
                None
            }
        })
    }

    fn enumerator(&self, of: &str, name: &str) -> Option<u64> {
        let list = &self.find("ENUM", of)?.members;
        let (_, numbers) = list.iter().find(|(found, _)| found == name)?;
        numbers.get("val").map(|&value| u64::from(value as u32))
    }

    /// Offset in bits of one alternative of a path.
    fn bits(&self, path: &str) -> Option<u64> {
        if let Some((tracepoint, arguments)) = path.split_once('(') {
            let typedef = self.find("TYPEDEF", &format!("btf_trace_{tracepoint}"))?;
            let pointer = self.types.get(*typedef.numbers.get("type_id")? as usize)?;
            let function = self.types.get(*pointer.numbers.get("type_id")? as usize)?;
            let wanted = arguments.split(',').count();
            return (function.members.len() > wanted).then_some(64 * (wanted as u64 - 1));
        }
        if let Some((of, name)) = path.split_once("::") {
            return self.enumerator(of, name).map(|value| 8 * value);
        }
        let mut parts = path.split('.');
        let mut current = self.find("STRUCT", parts.next()?)?;
        let mut offset = 0;
        for part in parts {
            let (name, element) = part.split_once('[').unwrap_or((part, ""));
            let (bits, ty) = self.member(current, name)?;
            offset += bits;
            current = ty;
            if let Some(element) = element.strip_suffix(']') {
                let index = match element.parse() {
                    Ok(index) => index,
                    Err(_) => self.enumerator("cgroup_subsys_id", element)?,
                };
                if index >= *ty.numbers.get("nr_elems")? {
                    return None;
                }
                current = self.plain(*ty.numbers.get("type_id")? as usize)?;
                offset += 8 * index * self.size(current)?;
            }
        }
        Some(offset)
    }
}

fn fields_agree() -> Result<()> {
    let oracle = Oracle::new(dump()?);
    let btf = Btf::parse(std::fs::read(btf_path())?)?;
    ensure!(btf.types().count() + 1 == oracle.types.len());
    let mut present = 0;
    for path in PATHS {
        let expected = path.split('|').find_map(|path| oracle.bits(path));
        let found = fields::offset_of(&btf, path).ok();
        ensure!(
            found.map(u64::from) == expected.map(|bits| bits / 8),
            "{path}: {found:?}, bpftool has it at bit {expected:?}"
        );
        if let Ok(bit) = fields::bit_of(&btf, path) {
            ensure!(
                Some(u64::from(bit)) == expected.map(|bits| bits % 8),
                "{path}"
            );
        }
        present += usize::from(found.is_some());
    }
    // A kernel that lacks more than a quarter of them is none that cgmeter can run on.
    ensure!(
        present * 4 > PATHS.len() * 3,
        "{present} of {}",
        PATHS.len()
    );
    // Every enumeration, and the names of every structure with its size.
    for (of, list) in [
        (
            "skb_drop_reason",
            fields::enumerators(&btf, "skb_drop_reason")?,
        ),
        (
            "node_stat_item",
            fields::enumerators(&btf, "node_stat_item")?,
        ),
    ] {
        ensure!(!list.is_empty(), "{of}");
        for (value, name) in &list {
            ensure!(
                oracle.enumerator(of, name) == Some(u64::from(*value)),
                "{of}::{name}"
            );
        }
    }
    for (number, ty) in btf.types().enumerate() {
        let dumped = &oracle.types[number + 1];
        ensure!(ty.name() == dumped.name.as_bytes(), "type {}", number + 1);
        if let (true, Ok(size)) = (dumped.numbers.contains_key("size"), ty.size()) {
            ensure!(oracle.size(dumped) == Some(size.into()), "{}", dumped.name);
        }
    }
    Ok(())
}
