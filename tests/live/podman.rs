//! Names of Podman's containers, from its API service on the test's own socket. Oracle: the
//! containers that the test started, and `podman inspect`.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use http_client::Request;

use crate::{
    Test,
    agent::Agent,
    docker::FOREVER,
    metrics::{Metrics, same},
    needs::Need,
    runtimes::{
        Daemon, Folder, IMAGE, all_labelled, eventually, first_answers, followed, in_json, output,
    },
};

/// The needs of Podman and its service.
const NEEDS: &[Need] = &[
    Need::Agent,
    Need::Program("podman"),
    Need::Program("runc"),
    Need::Program("busybox"),
];

const LONG: &[Need] = &[
    Need::LongTier("200 containers, one after the other"),
    Need::Agent,
    Need::Program("podman"),
    Need::Program("runc"),
    Need::Program("busybox"),
];

pub const TESTS: &[Test] = &[
    ("podman::names_at_the_first_scrape", NEEDS, names),
    (
        "podman::the_first_scrape_after_run_has_the_name_200_of_200",
        LONG,
        two_hundred,
    ),
    ("podman::renamed_ended_and_gone", NEEDS, lives),
    ("podman::service_killed_and_started_again", NEEDS, killed),
];

/// The form that Podman gives an image name without a registry.
const FULL_IMAGE: &str = "localhost/busybox:local";

/// Podman with its own storage, and its service.
struct Podman {
    service: Daemon,
    folder: Folder,
}

fn client(folder: &Folder) -> Command {
    let mut command = Command::new("podman");
    command
        .args(["--root", &folder.text("root")])
        .args(["--runroot", &folder.text("run")])
        .args(["--tmpdir", &folder.text("tmp")])
        // crun refuses hosts with both cgroup versions.
        .args(["--runtime=runc", "--cgroup-manager=cgroupfs"])
        .args(["--log-level=error"]);
    command
}

impl Podman {
    fn start() -> Result<Self> {
        let folder = Folder::new("podman")?;
        let archive = folder.rootfs()?.display().to_string();
        output(client(&folder).args(["import", "--quiet", &archive, IMAGE]))?;
        let service = Self::service(&folder)?;
        Ok(Self { service, folder })
    }

    fn service(folder: &Folder) -> Result<Daemon> {
        let socket = folder.text("socket");
        let _ = std::fs::remove_file(&socket);
        let mut command = client(folder);
        command.args(["system", "service", "--time=0", &format!("unix://{socket}")]);
        let ping = Request::get("/_ping");
        let answers = || {
            let response = ping.send_to_unix(Path::new(&socket));
            response.is_ok_and(|response| response.status == 200)
        };
        Daemon::start(folder, &mut command, answers)
    }

    fn agent(&self) -> Result<Agent> {
        let flag = format!("podman=unix://{}", self.folder.text("socket"));
        Agent::start(&["--container.runtime", &flag])
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        output(client(&self.folder).args(arguments))
    }

    /// Starts a container and returns its id.
    fn container(&self, arguments: &[&str], command: &[&str]) -> Result<String> {
        // Podman would raise limits, which needs a capability that not every root has.
        let fixed = [
            "run",
            "--network=none",
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1000:1000",
        ];
        self.run(&[&fixed[..], arguments, &[IMAGE], command].concat())
    }

    fn detached(&self, name: &str, command: &[&str]) -> Result<String> {
        self.container(&["--detach", "--name", name], command)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Podman's locks, which are in shared memory outside its folders.
        let _ = self.run(&["rm", "--all", "--force", "--time=0"]);
    }
}

fn path(id: &str) -> String {
    format!("/libpod_parent/libpod-{id}")
}

fn check(metrics: &Metrics, id: &str, name: &str) -> Result<()> {
    let path = path(id);
    all_labelled(metrics, &path, &[("name", name), ("image", FULL_IMAGE)])?;
    let info = [("id", path.as_str()), ("runtime", "podman")];
    let info = [&info[..], &[("container_id", id)]].concat();
    same("container_info", metrics.get("container_info", &info)?, 1.0)
}

/// The first answer after a container's start has its name.
fn at_once(podman: &Podman, agent: &Agent, count: usize) -> Result<()> {
    let start = |_, name: &str| podman.detached(name, FOREVER);
    let check = |_, name: &str, id: &str| {
        check(&agent.scrape()?, id, name)?;
        in_json(agent, &id[..12], &[("name", name), ("image", FULL_IMAGE)])
    };
    let remove = |names: &[&str]| {
        let arguments = [&["rm", "--force", "--time=0"], names].concat();
        podman.run(&arguments).map(drop)
    };
    first_answers(count, start, check, remove).with_context(|| agent.log())
}

fn two_hundred() -> Result<()> {
    let podman = Podman::start()?;
    let agent = podman.agent()?;
    followed(&agent, "podman")?;
    at_once(&podman, &agent, 200)
}

fn names() -> Result<()> {
    let podman = Podman::start()?;
    let label = "--label=com.docker.compose.project=shop";
    let early = podman.container(&["--detach", "--name=early", label], FOREVER)?;
    let agent = podman.agent()?;
    let metrics = agent.scrape()?;
    check(&metrics, &early, "early").with_context(|| agent.log())?;
    let project = ("container_label_com_docker_compose_project", "shop");
    all_labelled(&metrics, &path(&early), &[project])?;
    at_once(&podman, &agent, 20)?;
    let metrics = agent.scrape()?;
    let up = metrics.sum("cgmeter_runtime_up", &[("runtime", "podman")]);
    same("cgmeter_runtime_up", up, 1.0)?;
    // The cgroup of its monitor (conmon) is not a container.
    let series = metrics.with("image", FULL_IMAGE)?;
    let ids: BTreeSet<&str> = series.iter().map(|series| series.label("id")).collect();
    ensure!(ids.len() == 21, "{ids:?}");
    Ok(())
}

fn lives() -> Result<()> {
    let podman = Podman::start()?;
    let agent = podman.agent()?;
    let brief = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done";
    podman.container(&["--rm", "--name=brief"], &["sh", "-c", brief])?;
    let metrics = agent.scrape()?;
    let labels = [("name", "brief"), ("image", FULL_IMAGE)];
    in_json(
        &agent,
        "brief",
        &[&labels[..], &[("state", "ended")]].concat(),
    )?;
    let used = metrics.get("container_cpu_usage_seconds_total", &labels)?;
    ensure!(used > 0.01, "it used {used} s");

    let id = path(&podman.detached("old", FOREVER)?);
    all_labelled(&agent.scrape()?, &id, &[("name", "old")])?;
    podman.run(&["rename", "old", "new"])?;
    eventually(|| {
        let metrics = agent.scrape()?;
        metrics.no_doubles()?;
        all_labelled(&metrics, &id, &[("name", "new")])
    })
    .with_context(|| agent.log())?;

    podman.run(&["kill", "new"])?;
    podman.run(&["wait", "new"])?;
    let code: f64 = podman
        .run(&["inspect", "--format", "{{.State.ExitCode}}", "new"])?
        .parse()?;
    same("podman's exit code", code, 137.0)?;
    eventually(|| {
        let metrics = agent.scrape()?;
        metrics.no_doubles()?;
        let labels = [("id", id.as_str()), ("name", "new")];
        same(
            "exit code",
            metrics.get("container_exit_code", &labels)?,
            code,
        )?;
        let exit = [&labels[..], &[("reason", "Error")]].concat();
        same(
            "reason",
            metrics.get("container_last_exit_info", &exit)?,
            1.0,
        )
    })
    .with_context(|| agent.log())
}

fn killed() -> Result<()> {
    let mut podman = Podman::start()?;
    let early = podman.detached("early", FOREVER)?;
    let agent = podman.agent()?;
    check(&agent.scrape()?, &early, "early")?;
    podman.service.crash()?;
    for _ in 0..20 {
        check(&agent.scrape()?, &early, "early")?;
    }
    let wait_up = |expected: f64| {
        eventually(|| {
            let metrics = agent.scrape()?;
            let up = metrics.sum("cgmeter_runtime_up", &[("runtime", "podman")]);
            same("cgmeter_runtime_up", up, expected)
        })
        .with_context(|| agent.log())
    };
    wait_up(0.0)?;
    // The container starts while the service is down. It gets its name once the service is up.
    let late = podman.detached("late", FOREVER)?;
    let metrics = agent.scrape()?;
    check(&metrics, &early, "early")?;
    ensure!(!metrics.with("id", &path(&late))?.is_empty());
    podman.service = Podman::service(&podman.folder)?;
    wait_up(1.0)?;
    eventually(|| check(&agent.scrape()?, &late, "late")).with_context(|| agent.log())?;
    check(&agent.scrape()?, &early, "early")
}
