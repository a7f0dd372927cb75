//! An error at start is one line and an exit status. Signals end the agent.

use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Output},
};

use anyhow::{Result, bail, ensure};

use crate::{
    Test,
    agent::{Agent, binary, run},
    needs::{self, Need},
    state::{State, kill},
};

pub const TESTS: &[Test] = &[
    (
        "errors::bad_usage_and_configuration",
        &[Need::Binary],
        usage,
    ),
    ("errors::not_privileged", &[Need::Agent], unprivileged),
    ("errors::port_in_use", &[Need::Agent], port_in_use),
    ("errors::invalid_cgroup_roots", &[Need::Agent], roots),
    ("errors::signals_end_the_agent", &[Need::Agent], signals),
    (
        "errors::the_longest_durations_and_largest_sizes",
        &[Need::Agent],
        longest,
    ),
    ("errors::commands", &[Need::Agent], commands),
    (
        "errors::a_source_switched_off",
        &[Need::Agent],
        switched_off,
    ),
];

fn fails_with(output: &Output, status: i32, parts: &[&str]) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(status),
        "{}: {text}",
        output.status
    );
    // Log lines may come before it.
    let line = text.lines().last().unwrap_or_default();
    ensure!(line.starts_with("cgmeter: error: "), "{text}");
    for part in parts {
        ensure!(line.contains(part), "{part:?} is not in {line:?}");
    }
    Ok(())
}

fn usage() -> Result<()> {
    fails_with(
        &run(&["--web.listen-adress", "x"])?,
        2,
        &["--web.listen-adress", "--web.listen-address"],
    )?;
    fails_with(
        &run(&["--cgroup.max", "none"])?,
        2,
        &["--cgroup.max", "none"],
    )?;
    fails_with(
        &run(&["--cgroup.linger", "soon"])?,
        2,
        &["--cgroup.linger", "soon", "5m"],
    )?;
    fails_with(&run(&["--log.level", "loud"])?, 2, &["loud", "info"])?;
    fails_with(
        &run(&["--config.file", "/nonexistent/file"])?,
        2,
        &["/nonexistent/file"],
    )?;
    for (argument, parts) in [
        (
            "--cgroup.linger=500000000000y",
            ["--cgroup.linger", "at most 100 years"],
        ),
        (
            "--web.max-requests=2305843009213693952",
            ["--web.max-requests", "1 to 1000000"],
        ),
        (
            "--web.listen-address=",
            ["--web.listen-address", "127.0.0.1:10295"],
        ),
        (
            "--web.telemetry-path=/-/ready",
            ["--web.telemetry-path", "such as /metrics"],
        ),
        ("--config.file=/dev/zero", ["/dev/zero", "regular file"]),
    ] {
        fails_with(&run(&[argument])?, 2, &parts)?;
    }
    let variable = Command::new(binary())
        .arg("check")
        .env("CGMETER_CGROUP_LINGER", "soon")
        .output()?;
    fails_with(&variable, 2, &["CGMETER_CGROUP_LINGER: \"soon\"", "5m"])?;
    let file = std::env::temp_dir().join(format!("cgmeter-test-{}.toml", std::process::id()));
    let path = file.to_string_lossy().into_owned();
    for (text, parts) in [
        (
            "[web]\n\n[cgroup]\nlingre = \"5m\"\n",
            ["4:1", "lingre", "did you mean `linger`"],
        ),
        ("[cgroup]\nmax = \"many\"\n", ["2:7", "many", "u32"]),
        (
            "[collector]\nshed = false\n",
            ["2:1", "shed", "did you mean `sched`"],
        ),
        ("[web\n", ["1:", ".toml", "]"]),
        (
            "[web]\nlisten-address = []\n",
            ["2:18", "web.listen-address", "at least one ADDRESS:PORT"],
        ),
    ] {
        std::fs::write(&file, text)?;
        fails_with(&run(&["--config.file", &path])?, 2, &parts)?;
    }
    std::fs::remove_file(&file)?;
    Ok(())
}

/// Runs the agent as user nobody.
fn as_nobody(arguments: &[&str]) -> Result<Output> {
    let copy = std::env::temp_dir().join(format!("cgmeter-test-{}-copy", std::process::id()));
    std::fs::copy(binary(), &copy)?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    let output = Command::new(&copy)
        .args(arguments)
        .uid(65_534)
        .gid(65_534)
        .output();
    std::fs::remove_file(&copy)?;
    Ok(output?)
}

fn unprivileged() -> Result<()> {
    let output = as_nobody(&["--web.listen-address", "127.0.0.1:0"])?;
    fails_with(&output, 1, &["not privileged", "as root", "CAP_BPF"])
}

fn port_in_use() -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    fails_with(
        &run(&["--web.listen-address", &address])?,
        1,
        &[&address, "in use", "--web.listen-address"],
    )
}

fn roots() -> Result<()> {
    let listen = ["--web.listen-address", "127.0.0.1:0"];
    let with = |root: &str| run(&[&listen[..], &["--cgroup.root", root]].concat());
    fails_with(
        &with("/tmp")?,
        1,
        &["/tmp", "not a cgroup2 directory", "--cgroup.root"],
    )?;
    fails_with(&with("/nonexistent")?, 1, &["/nonexistent", "No such file"])?;
    // A directory that the user may not read.
    let hidden = std::env::temp_dir().join(format!("cgmeter-test-{}-hidden", std::process::id()));
    std::fs::create_dir(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o000))?;
    let inside = hidden.join("cgroup");
    let output = as_nobody(&[
        "--cgroup.root",
        &inside.to_string_lossy(),
        listen[0],
        listen[1],
    ]);
    std::fs::remove_dir(&hidden)?;
    fails_with(&output?, 1, &["cgmeter-test-", "Permission denied"])
}

fn signals() -> Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let agent = Agent::start(&[])?;
        let status = agent.stop(signal)?;
        ensure!(status.code() == Some(0), "signal {signal}: {status}");
    }
    Ok(())
}

fn longest() -> Result<()> {
    let agent = Agent::start(&[
        "--cgroup.linger=100y",
        "--custom.interval=100y",
        "--custom.timeout=100y",
        "--custom.max-age=100y",
        "--custom.textfile-directory=/nonexistent",
        "--web.max-requests=1000000",
        "--cgroup.export-max=4294967295",
        "--custom.max-body=67108864",
        "--custom.max-samples=100000",
    ])?;
    let top = crate::cgroup::Cgroup::new()?;
    let (id, child) = (format!("{}/brief", top.id), top.child("brief")?);
    crate::worker::Worker::once(&child, "spin 2")?;
    child.remove()?;
    // The thread that follows cgroups has heard of it, and lives.
    for _ in 0..2 {
        let metrics = agent.scrape()?;
        ensure!(metrics.has("container_last_seen", &[("id", &id)]));
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    ensure!(agent.get("/-/ready", "")?.status == 200);
    ensure!(agent.stop(libc::SIGTERM)?.code() == Some(0));

    // 230 MB of kernel memory, a quarter of what guests have.
    if !needs::emulated() {
        let state = State::new();
        let agent = Agent::start(&[
            &state.flag(),
            "--cgroup.max=1048576",
            "--cgroup.dead-max=1000000",
        ])?;
        agent.scrape()?.scrape_error(0.0)?;
        let log = agent.log();
        ensure!(!log.contains("counters will begin at 0"), "{log}");
        kill(agent)?;
    }

    let agent = Agent::start(&["--web.min-interval", "100y"])?;
    ensure!(agent.body("/metrics", "")? == agent.body("/metrics", "")?);
    ensure!(agent.stop(libc::SIGTERM)?.code() == Some(0));
    Ok(())
}

fn commands() -> Result<()> {
    let output = run(&["check"])?;
    checked(
        &String::from_utf8_lossy(&output.stdout),
        output.status.success(),
    )?;
    let output = as_nobody(&["check"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        !output.status.success() && text.contains("not privileged"),
        "{text}"
    );
    let output = run(&["dump", "--format", "json"])?;
    let samples: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let usage = samples.as_array().into_iter().flatten().find(|sample| {
        sample["name"] == "container_cpu_usage_seconds_total" && sample["labels"]["id"] == "/"
    });
    ensure!(
        usage.is_some_and(|sample| sample["value"].as_f64() > Some(0.0)),
        "no host in {samples}"
    );
    let output = run(&["dump"])?;
    crate::metrics::Metrics::parse(&String::from_utf8(output.stdout)?)?
        .of("/", "container_last_seen")?;
    for (command, word) in [
        ("metrics", "container_sched_runqueue_latency_seconds"),
        ("settings", "--cgroup.linger"),
    ] {
        for format in ["text", "markdown"] {
            let output = run(&[command, "--format", format])?;
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(text.contains(word), "{text}");
        }
    }
    Ok(())
}

/// Checks the output of `check`: every source is on, or this host does not have what it reads, as
/// this test also finds. The latter is no failure.
fn checked(text: &str, success: bool) -> Result<()> {
    /// Sources that some machines don't have, and their needs.
    const ABSENT: &[(&str, Need)] = &[
        ("io", Need::Unified("io")),
        ("pressure", Need::Pressure),
        ("hugetlb", Need::Controller("hugetlb")),
        ("pids", Need::Controller("pids")),
        ("memory", Need::Controller("memory")),
    ];
    let mut on = Vec::new();
    let mut absent = Vec::new();
    for line in text.lines() {
        let Some(line) = line.strip_prefix("source ") else {
            continue;
        };
        let (name, state) = line.trim().split_once(' ').unwrap_or((line, ""));
        match state.trim().split_once(": ") {
            None if state.trim() == "on" => on.push(name),
            Some(("not on this host", reason)) if !reason.is_empty() => absent.push(name),
            _ => bail!("neither on nor absent with a reason: {line}"),
        }
    }
    let expected: Vec<&str> = ABSENT
        .iter()
        .filter(|(_, need)| needs::missing(&[*need]).is_some())
        .map(|(name, _)| *name)
        .collect();
    let unexpected: Vec<_> = absent
        .iter()
        .filter(|name| !expected.contains(name))
        .collect();
    ensure!(unexpected.is_empty(), "{unexpected:?} are absent: {text}");
    for name in [
        "cgroups", "sched", "cpu", "process", "block", "net", "netdev", "tcp", "tasks",
    ] {
        ensure!(on.contains(&name), "{name} is not on: {text}");
    }
    ensure!(success, "the status doesn't fit {text}");
    ensure!(text.contains("everything can run"), "no verdict: {text}");
    Ok(())
}

fn switched_off() -> Result<()> {
    let agent = Agent::start(&["--no-collector.sched"])?;
    let metrics = agent.scrape()?;
    ensure!(!metrics.has("container_cpu_schedstat_run_seconds_total", &[]));
    ensure!(metrics.has("container_processes_started_total", &[("id", "/")]));
    for (source, up) in [
        ("sched", 0.0),
        ("process", 1.0),
        ("cpu", 1.0),
        ("cgroups", 1.0),
    ] {
        crate::metrics::same(
            source,
            metrics.get("cgmeter_source_up", &[("source", source)])?,
            up,
        )?;
    }
    ensure!(agent.log().contains("switched off"), "{}", agent.log());
    Ok(())
}
