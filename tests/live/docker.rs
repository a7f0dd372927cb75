//! Names of Docker's containers, from a daemon that the test starts. Oracle: the containers that
//! the test started, `docker inspect`, and what a container reads about itself in /proc.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    metrics::{Metrics, same},
    needs::Need,
    runtimes::{
        Daemon, Folder, IMAGE, all_labelled, both, eventually, first_answers, followed, in_json,
        output,
    },
    state::{State, kill},
};

/// The needs of a daemon that the test starts.
pub const NEEDS: &[Need] = &[
    Need::Agent,
    Need::Program("dockerd"),
    Need::Program("docker"),
    Need::Program("busybox"),
];

const LONG: &[Need] = &[
    Need::LongTier("200 containers, one after the other"),
    Need::Agent,
    Need::Program("dockerd"),
    Need::Program("docker"),
    Need::Program("busybox"),
];

pub const TESTS: &[Test] = &[
    ("docker::names_at_the_first_scrape", NEEDS, names),
    (
        "docker::the_first_scrape_after_run_has_the_name_200_of_200",
        LONG,
        two_hundred,
    ),
    (
        "docker::a_short_lived_container_keeps_its_name",
        NEEDS,
        short_life,
    ),
    (
        "docker::a_short_lived_container_outlives_the_agent",
        NEEDS,
        outlives,
    ),
    ("docker::a_rename_is_followed", NEEDS, rename),
    ("docker::exit_status_of_containers", NEEDS, ends),
    ("docker::health_and_writable_layer", NEEDS, health_and_layer),
    ("docker::by_name_and_image", NEEDS, filters),
];

/// The default parent cgroup of Docker's containers.
const PARENT: &str = "/docker";

/// A running daemon, without a bridge and firewall rules.
#[derive(Debug)]
pub struct Docker {
    /// The dockerd process. Its containerd and the containers are its descendants.
    pub daemon: Daemon,
    folder: Folder,
    parent: String,
}

impl Docker {
    /// Starts the daemon with the image. Containers have Docker's default parent cgroup.
    pub fn start() -> Result<Self> {
        let docker = Self::with_parent(Folder::new("docker")?, PARENT.to_owned())?;
        let archive = docker.folder.rootfs()?.display().to_string();
        docker.run(&["import", &archive, IMAGE])?;
        Ok(docker)
    }

    /// Starts the daemon without an image. Its containers have their own parent cgroup.
    pub fn bare() -> Result<Self> {
        let folder = Folder::new("docker")?;
        let parent = folder.cgroup();
        Self::with_parent(folder, parent)
    }

    fn with_parent(folder: Folder, parent: String) -> Result<Self> {
        let daemon = Self::daemon(&folder, &parent)?;
        Ok(Self {
            daemon,
            folder,
            parent,
        })
    }

    fn daemon(folder: &Folder, parent: &str) -> Result<Daemon> {
        // A daemon that crashed leaves this file.
        let _ = std::fs::remove_file(folder.path("pid"));
        let mut command = Command::new("dockerd");
        command
            .args(["--data-root", &folder.text("data")])
            .args(["--exec-root", &folder.text("exec")])
            .args(["--pidfile", &folder.text("pid")])
            .args(["--host", &format!("unix://{}", folder.text("socket"))])
            .args(["--cgroup-parent", parent])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
        Daemon::start(folder, &mut command, || {
            output(client(folder, "docker").arg("version")).is_ok()
        })
    }

    /// Starts the daemon again after a crash. Its containerd has ended too. A new daemon would wait
    /// for it as long as any process has its process id.
    pub fn again(&mut self) -> Result<()> {
        let file = self.folder.path("exec/containerd/containerd.pid");
        let pid = std::fs::read_to_string(&file)?;
        eventually(|| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            let lives =
                stat.is_ok_and(|stat| !stat.contains(") Z ") && stat.contains("containerd"));
            ensure!(!lives, "containerd outlives dockerd");
            Ok(())
        })?;
        std::fs::remove_file(&file)?;
        self.daemon = Self::daemon(&self.folder, &self.parent)?;
        Ok(())
    }

    /// The path of its socket.
    pub fn socket(&self) -> String {
        self.folder.text("socket")
    }

    /// A path in the daemon's folder, which is removed with it.
    pub fn path(&self, part: &str) -> PathBuf {
        self.folder.path(part)
    }

    /// The id of its containers' parent cgroup.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// The value of `--container.runtime`.
    pub fn flag(&self) -> String {
        format!("docker=unix://{}", self.socket())
    }

    /// Starts an agent that queries this daemon.
    pub fn agent(&self, arguments: &[&str]) -> Result<Agent> {
        let flag = self.flag();
        Agent::start(&[&["--container.runtime", &flag], arguments].concat())
    }

    /// A client program that connects to this daemon.
    pub fn client(&self, program: &str) -> Command {
        client(&self.folder, program)
    }

    /// Runs a docker command, which must succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        output(self.client("docker").args(arguments))
    }

    /// A container's standard output and standard error.
    pub fn logs(&self, container: &str) -> Result<String> {
        both(self.client("docker").args(["logs", container]))
    }

    /// Builds an image from a folder, without network.
    pub fn build(&self, tag: &str, folder: &str) -> Result<()> {
        self.run(&["build", "--network", "none", "--tag", tag, folder])
            .map(drop)
    }

    /// Starts a container of the test's image in the background and returns its id.
    pub fn container(&self, arguments: &[&str], command: &[&str]) -> Result<String> {
        self.run(&[&["run", "--detach"], arguments, &[IMAGE], command].concat())
    }

    /// A field of `docker inspect`.
    pub fn inspect(&self, container: &str, field: &str) -> Result<String> {
        self.run(&["inspect", "--size", "--format", field, container])
    }
}

fn client(folder: &Folder, program: &str) -> Command {
    let mut command = Command::new(program);
    // Debian's docker.io does not include BuildKit's plugin.
    command
        .env("DOCKER_BUILDKIT", "0")
        .env("DOCKER_HOST", format!("unix://{}", folder.text("socket")))
        .env("DOCKER_CONFIG", folder.text("client"));
    command
}

/// A container's cgroup. The cgroupfs driver names it by the full id.
pub fn path(id: &str) -> String {
    format!("{PARENT}/{id}")
}

/// Sleeps until it is killed.
pub const FOREVER: &[&str] = &["sleep", "1000000"];

fn check(metrics: &Metrics, id: &str, name: &str) -> Result<()> {
    let path = path(id);
    all_labelled(metrics, &path, &[("name", name), ("image", IMAGE)])?;
    let info = [("id", path.as_str()), ("name", name)];
    let info = [&info[..], &[("container_id", id), ("runtime", "docker")]].concat();
    same("container_info", metrics.get("container_info", &info)?, 1.0)
}

/// The first answer after a container's start has its name. The answer is an exposition or JSON.
fn at_once(docker: &Docker, agent: &Agent, count: usize) -> Result<()> {
    let start = |_, name: &str| docker.container(&["--name", name], FOREVER);
    let check = |number: usize, name: &str, id: &str| {
        let record = [("name", name), ("image", IMAGE), ("id", id)];
        match number % 2 {
            0 => check(&agent.scrape()?, id, name)?,
            _ => in_json(agent, name, &record)?,
        }
        in_json(agent, &id[..12], &record)?;
        check(&agent.scrape()?, id, name)
    };
    let remove = |names: &[&str]| {
        let arguments = [&["rm", "--force", "--volumes"], names].concat();
        docker.run(&arguments).map(drop)
    };
    first_answers(count, start, check, remove).with_context(|| agent.log())
}

fn two_hundred() -> Result<()> {
    let docker = Docker::start()?;
    let agent = docker.agent(&[])?;
    followed(&agent, "docker")?;
    at_once(&docker, &agent, 200)
}

fn names() -> Result<()> {
    let docker = Docker::start()?;
    let compose = |key: &str, value: &str| format!("--label=com.docker.compose.{key}={value}");
    let (project, service) = (compose("project", "shop"), compose("service", "web \"1\""));
    let arguments = ["--name=early", &project, &service, "--label=secret=x"];
    let early = docker.container(&arguments, FOREVER)?;
    let agent = docker.agent(&[])?;
    let metrics = agent.scrape()?;
    check(&metrics, &early, "early")?;
    let labels = [
        ("container_label_com_docker_compose_project", "shop"),
        ("container_label_com_docker_compose_service", "web \"1\""),
        ("container_label_secret", ""),
    ];
    all_labelled(&metrics, &path(&early), &labels)?;
    at_once(&docker, &agent, 20)?;
    // A container that was created but never started has no cgroup and no series.
    docker.run(&["create", "--name=never", IMAGE, "true"])?;
    let metrics = agent.scrape()?;
    ensure!(metrics.with("name", "never")?.is_empty());
    check(&metrics, &early, "early")?;
    let version = docker.run(&["version", "--format", "{{.Server.Version}}"])?;
    let labels = [("dockerVersion", version.trim())];
    same(
        "versions",
        metrics.get("cadvisor_version_info", &labels)?,
        1.0,
    )?;
    same(
        "cgmeter_runtime_up",
        metrics.sum("cgmeter_runtime_up", &[("runtime", "docker")]),
        1.0,
    )
}

/// Reads its own run time, works, and prints the run time of the work.
const WORK: &str = "read a rest < /proc/$$/schedstat; i=0; \
                    while [ $i -lt 60000 ]; do i=$((i+1)); done; \
                    read b rest < /proc/$$/schedstat; echo $((b-a))";

fn short_life() -> Result<()> {
    let docker = Docker::start()?;
    let agent = docker.agent(&[])?;
    let before = agent.scrape()?;
    let arguments = ["run", "--rm", "--network=none", "--name=brief", IMAGE];
    let ran = docker.run(&[&arguments[..], &["sh", "-c", WORK]].concat())?;
    let ran = ran.parse::<f64>()? / 1e9;
    ensure!(ran > 0.01, "the work took {ran} s");
    ensure!(docker.run(&["ps", "--all", "--quiet"])?.is_empty());
    let metrics = agent.scrape()?;
    let labels = [("name", "brief"), ("image", IMAGE)];
    let record = [&labels[..], &[("state", "ended"), ("runtime", "docker")]].concat();
    in_json(&agent, "brief", &record)?;
    let used = metrics.get("container_cpu_usage_seconds_total", &labels)?;
    // The time that the shell measured, plus its start and the runtime's work in the container.
    ensure!(
        used >= ran && used < ran + 0.5,
        "used {used} s, worked {ran} s"
    );
    // The value stays while the container is reported. Its gauges are gone.
    let again = agent.scrape()?;
    same(
        "CPU time of the ended container",
        again.get("container_cpu_usage_seconds_total", &labels)?,
        used,
    )?;
    let seen = |metrics: &Metrics| metrics.get("container_last_seen", &labels);
    same("container_last_seen", seen(&again)?, seen(&metrics)?)?;
    ensure!(!again.has("container_memory_usage_bytes", &labels));
    // Its parent retains the sum.
    let parent =
        |metrics: &Metrics| metrics.sum("container_cpu_usage_seconds_total", &[("id", "/docker")]);
    // With a tolerance for rounding of the sum.
    ensure!(parent(&again) >= parent(&before) + used - 1e-6);
    again.no_doubles()
}

/// No scrape has seen it, the agent is killed, and the runtime has forgotten it: the next agent reports it all the
/// same.
fn outlives() -> Result<()> {
    let docker = Docker::start()?;
    let state = State::new();
    let flag = state.flag();
    let agent = docker.agent(&[&flag])?;
    let arguments = ["run", "--rm", "--network=none", "--name=brief", IMAGE];
    let ran = docker.run(&[&arguments[..], &["sh", "-c", WORK]].concat())?;
    let ran = ran.parse::<f64>()? / 1e9;
    ensure!(ran > 0.01, "the work took {ran} s");
    ensure!(docker.run(&["ps", "--all", "--quiet"])?.is_empty());
    // The agent looks for removals four times a second.
    std::thread::sleep(std::time::Duration::from_millis(700));
    kill(agent)?;
    let agent = docker.agent(&[&flag])?;
    let labels = [("name", "brief"), ("image", IMAGE)];
    let metrics = agent.scrape()?;
    let used = metrics.get("container_cpu_usage_seconds_total", &labels)?;
    ensure!(
        used >= ran && used < ran + 0.5,
        "used {used} s, worked {ran} s"
    );
    ensure!(metrics.get("container_processes_started_total", &labels)? > 0.0);
    ensure!(!metrics.has("container_memory_usage_bytes", &labels));
    in_json(&agent, "brief", &[("name", "brief"), ("state", "ended")])?;
    // Once more: what it has, it has from the agent before.
    kill(agent)?;
    let agent = docker.agent(&[&flag])?;
    let again = agent.scrape()?;
    for family in [
        "container_cpu_usage_seconds_total",
        "container_cpu_user_seconds_total",
        "container_processes_started_total",
        "container_last_seen",
    ] {
        same(
            family,
            again.get(family, &labels)?,
            metrics.get(family, &labels)?,
        )?;
    }
    again.no_doubles()
}

fn rename() -> Result<()> {
    let docker = Docker::start()?;
    let id = docker.container(&["--name=old"], FOREVER)?;
    let path = path(&id);
    let agent = docker.agent(&[])?;
    all_labelled(&agent.scrape()?, &path, &[("name", "old")])?;
    let counter = "container_processes_started_total";
    let before = agent.scrape()?.of(&path, counter)?;
    docker.run(&["rename", "old", "new"])?;
    eventually(|| {
        let metrics = agent.scrape()?;
        // All series have the old name, or all have the new one.
        metrics.no_doubles()?;
        all_labelled(&metrics, &path, &[("name", "new")])
    })?;
    let metrics = agent.scrape()?;
    ensure!(metrics.with("name", "old")?.is_empty());
    same("a counter after it", metrics.of(&path, counter)?, before)?;
    // Another container takes the old name.
    let other = docker.container(&["--name=old"], FOREVER)?;
    let metrics = agent.scrape()?;
    all_labelled(&metrics, &super::docker::path(&other), &[("name", "old")])?;
    all_labelled(&metrics, &path, &[("name", "new")])
}

/// Compares how a container ended with `docker inspect`.
fn ended(docker: &Docker, agent: &Agent, name: &str) -> Result<()> {
    let field = |field: &str| docker.inspect(name, field);
    let id = path(&field("{{.Id}}")?);
    let code: f64 = field("{{.State.ExitCode}}")?.parse()?;
    let restarts: f64 = field("{{.RestartCount}}")?.parse()?;
    let killed = field("{{.State.OOMKilled}}")? == "true";
    let reason = match (killed, code) {
        (true, _) => "OOMKilled",
        (false, 0.0) => "Completed",
        (false, _) => "Error",
    };
    eventually(|| {
        let metrics = agent.scrape()?;
        let labels = [("id", id.as_str()), ("name", name), ("image", IMAGE)];
        same(
            "exit code",
            metrics.get("container_exit_code", &labels)?,
            code,
        )?;
        let exit = [&labels[..], &[("reason", reason)]].concat();
        same(
            "reason",
            metrics.get("container_last_exit_info", &exit)?,
            1.0,
        )?;
        let counted = metrics.get("container_restarts_total", &labels)?;
        same("restarts", counted, restarts)?;
        let info = [&labels[..], &[("state", "exited")]].concat();
        same("container_info", metrics.get("container_info", &info)?, 1.0)?;
        metrics.no_doubles()
    })
    .with_context(|| format!("{name}: {}", agent.log()))
}

fn ends() -> Result<()> {
    let docker = Docker::start()?;
    let agent = docker.agent(&[])?;
    docker.container(&["--name=finished"], &["sleep", "0.3"])?;
    docker.container(&["--name=failed"], &["sh", "-c", "sleep 0.3; exit 3"])?;
    docker.container(&["--name=killed"], FOREVER)?;
    docker.container(&["--name=stopped"], FOREVER)?;
    let again = ["--name=looping", "--restart=on-failure:2"];
    docker.container(&again, &["sh", "-c", "sleep 0.3; exit 4"])?;
    let memory = ["--name=hungry", "--memory=16m", "--memory-swap=16m"];
    let eat = "sleep 0.3; dd if=/dev/zero of=/dev/null bs=64M count=1";
    docker.container(&memory, &["sh", "-c", &format!("{eat}; exit $?")])?;
    agent.scrape()?;
    docker.run(&["kill", "killed"])?;
    docker.run(&["stop", "--time=1", "stopped"])?;
    docker.run(&["wait", "finished", "failed", "killed", "stopped", "hungry"])?;
    eventually(|| {
        let state = docker.inspect("looping", "{{.State.Status}} {{.RestartCount}}")?;
        ensure!(state == "exited 2", "{state}");
        Ok(())
    })?;
    let code = docker.inspect("killed", "{{.State.ExitCode}}")?;
    ensure!(code == "137", "{code}");
    for name in [
        "finished", "failed", "killed", "stopped", "looping", "hungry",
    ] {
        ended(&docker, &agent, name)?;
    }
    let out_of_memory = docker.inspect("hungry", "{{.State.OOMKilled}}")?;
    ensure!(
        out_of_memory == "true",
        "it was not killed by the OOM killer"
    );
    // Restarted by hand: the same path and name, and running.
    docker.run(&["start", "killed"])?;
    let id = path(&docker.inspect("killed", "{{.Id}}")?);
    let metrics = agent.scrape()?;
    metrics.no_doubles()?;
    let labels = [("id", id.as_str()), ("name", "killed")];
    ensure!(metrics.has("container_memory_usage_bytes", &labels));
    eventually(|| {
        let metrics = agent.scrape()?;
        metrics.no_doubles()?;
        let info = [&labels[..], &[("state", "running")]].concat();
        same("container_info", metrics.get("container_info", &info)?, 1.0)
    })
}

fn health_and_layer() -> Result<()> {
    let docker = Docker::start()?;
    let check = ["--health-interval=1s", "--health-retries=1"];
    let check = [&check[..], &["--health-cmd=test ! -e /tmp/ill"]].concat();
    let arguments = [&["--name=checked"][..], &check].concat();
    let write = "dd if=/dev/zero of=/tmp/data bs=1M count=10; exec sleep 1000000";
    docker.container(&arguments, &["sh", "-c", write])?;
    docker.container(&["--name=unchecked"], FOREVER)?;
    eventually(|| {
        let size: f64 = docker.inspect("checked", "{{.SizeRw}}")?.parse()?;
        ensure!(size >= 10_485_760.0, "{size}");
        Ok(())
    })?;
    // Start the agent now, because it reads sizes only at its start and once a minute.
    let agent = docker.agent(&[])?;
    let is = |family: &str, name: &str, value: f64| {
        eventually(|| {
            let metrics = agent.scrape()?;
            metrics.no_doubles()?;
            same(family, metrics.get(family, &[("name", name)])?, value)
        })
        .with_context(|| format!("{name}: {}", agent.log()))
    };
    is("container_health_state", "checked", 1.0)?;
    is("container_health_state", "unchecked", -1.0)?;
    let size: f64 = docker.inspect("checked", "{{.SizeRw}}")?.parse()?;
    is("container_fs_writable_layer_bytes", "checked", size)?;
    docker.run(&["exec", "checked", "sh", "-c", "echo > /tmp/ill"])?;
    is("container_health_state", "checked", 0.0)?;
    docker.run(&["exec", "checked", "rm", "/tmp/ill"])?;
    is("container_health_state", "checked", 1.0)
}

fn filters() -> Result<()> {
    let docker = Docker::start()?;
    docker.run(&["tag", IMAGE, "other:1"])?;
    let shown = path(&docker.container(&["--name=shown"], FOREVER)?);
    let hidden = path(&docker.container(&["--name=hidden-1"], FOREVER)?);
    let arguments = ["run", "--detach", "--name=other", "other:1"];
    let other = path(&docker.run(&[&arguments[..], FOREVER].concat())?);
    let seen = |arguments: &[&str]| -> Result<Vec<bool>> {
        let agent = docker.agent(arguments)?;
        let metrics = agent.scrape()?;
        let has = |id: &String| Ok(!metrics.with("id", id)?.is_empty());
        [&shown, &hidden, &other].into_iter().map(has).collect()
    };
    for (arguments, expected) in [
        (&[][..], [true, true, true]),
        (&["--container.exclude=name=^hidden-"], [true, false, true]),
        (
            &["--container.include=image=^busybox:"],
            [true, true, false],
        ),
        (
            &[
                "--container.include=image=^busybox:",
                "--container.exclude=name=hidden",
            ],
            [true, false, false],
        ),
    ] {
        let seen = seen(arguments)?;
        ensure!(seen == expected, "{arguments:?}: {seen:?}");
    }
    Ok(())
}
