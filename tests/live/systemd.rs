//! Names of units, under a systemd that systemd-nspawn boots from the host's programs. Oracle: the
//! units that the test has written, and the files of their cgroups.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, agree, same},
    needs::Need,
    runtimes::{Daemon, Folder, all_labelled, eventually, hierarchies},
};

pub const TESTS: &[Test] = &[(
    "systemd::units_have_their_names",
    &[
        Need::Agent,
        Need::Program("systemd-nspawn"),
        Need::File("/lib/systemd/systemd"),
    ],
    units,
)];

const USAGE: &str = "container_cpu_usage_seconds_total";

/// Counts in a loop, to use CPU time.
const WORK: &str = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done";
const FOREVER: &str = "exec sleep 1000000";

/// Units: file name, unit name, last command of its shell, further settings.
const UNITS: &[(&str, &str, &str, &str)] = &[
    (r"cgtest-a\x2db.service", "cgtest-a-b.service", FOREVER, ""),
    ("cgtest@.service", "cgtest@one.service", FOREVER, ""),
    (
        "cgtest-grouped.service",
        "cgtest-grouped.service",
        FOREVER,
        "Slice=cgtest.slice",
    ),
    ("cgtest-brief.service", "cgtest-brief.service", "", ""),
    (
        "cgtest-again.service",
        "cgtest-again.service",
        "/bin/true; :",
        "Restart=always\nRestartSec=100ms",
    ),
];

/// Creates the root directory of the system to boot, with the host's programs and the test's units.
fn root(folder: &Folder) -> Result<PathBuf> {
    let root = folder.path("root");
    for part in ["usr", "etc/systemd/system/basic.target.wants", "root"] {
        fs::create_dir_all(root.join(part))?;
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), root.join(link))?;
    }
    for (file, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("group", "root:x:0:\n"),
        ("machine-id", ""),
        ("os-release", "ID=cgtest\n"),
    ] {
        fs::write(root.join("etc").join(file), text)?;
    }
    let system = root.join("etc/systemd/system");
    for (file, name, last, settings) in UNITS {
        let text = format!(
            "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\n\
             ExecStart=/bin/sh -c '{WORK}; {last}'\n{settings}\n"
        );
        fs::write(system.join(file), text)?;
        // For a template the instance is wanted, for other units the file.
        let wanted = if file.contains('@') { name } else { file };
        let want = system.join("basic.target.wants").join(wanted);
        symlink(Path::new("..").join(file), want)?;
    }
    Ok(root)
}

/// Boots the system in a cgroup and waits until its units have been started.
fn boot(folder: &Folder, top: &Cgroup) -> Result<Daemon> {
    let procs = top.procs();
    let mut command = Command::new("sh");
    // The container uses cgroup2 even if the host also has v1 hierarchies.
    command
        .args(["-c", r#"echo $$ >"$0" && exec systemd-nspawn "$@""#])
        .arg(&procs)
        .arg("--directory")
        .arg(root(folder)?)
        .args(["--bind-ro=/usr", "--boot", "--private-network"])
        .args(["--register=no", "--keep-unit", "--machine=cgtest"])
        .args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"])
        .arg("systemd.unit=basic.target")
        .env("UNIFIED_CGROUP_HIERARCHY", "1");
    let last = payload(top).join("cgtest.slice/cgtest-grouped.service");
    Daemon::start(folder, &mut command, || last.exists())
}

fn payload(top: &Cgroup) -> PathBuf {
    top.directory.join("payload")
}

/// On drop, kills the processes in a cgroup and removes the cgroups that systemd and nspawn
/// created, in all hierarchies.
struct Emptied<'a>(&'a Cgroup);

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        // Processes that outlived nspawn are killed too (kernel/cgroup/cgroup.c, cgroup_kill, since
        // 5.14).
        let _ = fs::write(self.0.directory.join("cgroup.kill"), "1");
        for hierarchy in hierarchies() {
            let directory = hierarchy.join(self.0.id.trim_start_matches('/'));
            remove_below(&directory);
            if directory != self.0.directory {
                let _ = fs::remove_dir(&directory);
            }
        }
    }
}

fn remove_below(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for path in entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
    {
        remove_below(&path);
        // EBUSY while the last task is exiting.
        for _ in 0..100 {
            if fs::remove_dir(&path).is_ok() {
                break;
            }
            sleep(Duration::from_millis(20));
        }
    }
}

fn units() -> Result<()> {
    let agent = Agent::start(&[])?;
    let top = Cgroup::new()?;
    let _emptied = Emptied(&top);
    let folder = Folder::new("systemd")?;
    let daemon = boot(&folder, &top)?;
    let said = || format!("{}\n{}", daemon.log(), agent.log());
    let own = format!("{}/payload", top.id);
    let usage = |metrics: &Metrics, name: &str| metrics.sum(USAGE, &[("unit", name)]);
    // All units have been started, and all have used CPU time.
    let metrics = eventually(|| {
        let metrics = agent.scrape()?;
        for (_, name, ..) in UNITS {
            ensure!(usage(&metrics, name) > 0.0, "{name} has not worked");
        }
        let started = [("unit", "cgtest-again.service")];
        let started = metrics.sum("container_processes_started_total", &started);
        ensure!(started >= 3.0, "cgtest-again.service ran {started} times");
        Ok(metrics)
    })
    .with_context(said)?;
    // One series per name, however often the unit was started.
    metrics.no_doubles()?;
    for (_, name, ..) in UNITS {
        let found = metrics.count(USAGE, &[("unit", name)]);
        same(name, found as f64, 1.0)?;
    }
    for (unit, name) in [
        (
            "cgtest.slice/cgtest-grouped.service",
            "cgtest-grouped.service",
        ),
        (
            "system.slice/system-cgtest.slice/cgtest@one.service",
            "cgtest@one.service",
        ),
    ] {
        let id = format!("{own}/{unit}");
        all_labelled(
            &metrics,
            &id,
            &[("unit", name), ("name", ""), ("image", "")],
        )?;
    }
    // A slice is no unit of its own, but a sum of units.
    for slice in ["cgtest.slice", "system.slice"] {
        let id = format!("{own}/{slice}");
        all_labelled(&metrics, &id, &[("unit", ""), ("name", "")])?;
    }
    // Its value equals the cgroup's own, because no process runs there any more.
    let unit = payload(&top).join(r"system.slice/cgtest-a\x2db.service/cpu.stat");
    let stat = || -> Result<f64> {
        let text = fs::read_to_string(&unit)?;
        let usage = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        Ok(usage.context("no usage_usec")?.parse::<f64>()? / 1e6)
    };
    let (before, metrics, after) = (stat()?, agent.scrape()?, stat()?);
    let found = usage(&metrics, "cgtest-a-b.service");
    agree("cpu.stat", found, (before + after) / 2.0, 0.01, 1e-3)?;
    // A unit that has ended keeps its name during the linger.
    let brief = [("unit", "cgtest-brief.service")];
    let gone = payload(&top).join("system.slice/cgtest-brief.service");
    ensure!(!gone.exists(), "cgtest-brief.service has not ended");
    ensure!(metrics.has("container_last_seen", &brief), "it has no name");
    Ok(())
}
