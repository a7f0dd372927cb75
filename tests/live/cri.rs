//! Names of pods, from the CRI of a containerd that the test starts. Oracle: the pods that the test
//! created, and the usual conventions of Kubernetes (no container's name on containerd's sandbox, only the
//! pod's labels on the pod's own cgroup).

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    docker::FOREVER,
    grpc::{Message, call},
    metrics::{Metrics, same},
    needs::Need,
    runtimes::{Daemon, Folder, all_labelled, eventually, hierarchies, in_json, output},
};

/// The needs of containerd and its CRI.
pub const NEEDS: &[Need] = &[
    Need::Agent,
    Need::Program("containerd"),
    Need::Program("ctr"),
    Need::Program("runc"),
    Need::Program("curl"),
    Need::Program("busybox"),
];

pub const TESTS: &[Test] = &[
    ("cri::a_pod_with_two_containers", NEEDS, pod),
    ("cri::restarted_ended_and_gone", NEEDS, lives),
    ("cri::containerd_killed_and_started_again", NEEDS, killed),
];

/// The name of the image, for containerd and the agent.
pub const IMAGE: &str = "docker.io/library/busybox:local";

/// The host's network namespace (NamespaceMode NODE of CRI).
const NODE: u64 = 2;

/// A network plugin that creates a pair of interfaces and nothing else.
const CNI: &str = r#"#!/bin/sh
version='"cniVersion":"0.4.0"'
case "$CNI_COMMAND $CNI_IFNAME" in
"VERSION "*) echo '{'$version',"supportedVersions":["0.3.1","0.4.0"]}' ;;
"ADD lo") echo '{'$version'}' ;;
ADD*)
  enter="nsenter --net=$CNI_NETNS"
  $enter ip link add "$CNI_IFNAME" type veth peer name other >&2 || exit 1
  $enter ip addr add 10.78.0.2/24 dev "$CNI_IFNAME" >&2 || exit 1
  $enter ip link set "$CNI_IFNAME" up >&2 && $enter ip link set other up >&2 || exit 1
  echo '{'$version',"interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],'
  echo '"ips":[{"version":"4","address":"10.78.0.2/24","interface":0}]}' ;;
esac
"#;

/// The configuration that uses the plugin.
const CNI_CONFIG: &str = r#"{"cniVersion":"0.4.0","name":"alone","plugins":[{"type":"alone"}]}"#;

/// A containerd with its own folders.
pub struct Containerd {
    daemon: Daemon,
    pods: Vec<String>,
    folder: Folder,
}

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    /// Its cgroup.
    pub cgroup: String,
    /// Its UID.
    pub uid: String,
    /// The sandbox's id.
    pub sandbox: String,
    config: Message,
    labels: [(&'static str, String); 3],
}

impl Pod {
    /// The cgroup of a container or of the sandbox.
    pub fn path(&self, id: &str) -> String {
        format!("{}/{id}", self.cgroup)
    }
}

impl Containerd {
    /// Starts containerd and imports the image.
    pub fn start() -> Result<Self> {
        let folder = Folder::new("cri")?;
        let daemon = Self::daemon(&folder)?;
        let archive = image(&folder)?;
        output(
            Command::new("ctr")
                .args(["--address", &folder.text("socket"), "--namespace=k8s.io"])
                .args(["images", "import", "--snapshotter=native", &archive]),
        )?;
        let containerd = Self {
            daemon,
            pods: Vec::new(),
            folder,
        };
        // The CRI learns about images from events.
        eventually(|| {
            let spec = Message::default().message(1, &Message::default().text(1, IMAGE));
            let known = containerd.image("ImageStatus", &spec);
            ensure!(known.is_ok(), "{known:?}");
            Ok(())
        })?;
        Ok(containerd)
    }

    fn daemon(folder: &Folder) -> Result<Daemon> {
        let text = |part: &str| folder.text(part);
        let config = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  # Less than it has takes a capability that not every root has.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{cni}"
"#,
            root = text("root"),
            state = text("state"),
            socket = text("socket"),
            opt = text("opt"),
            cni = text("cni"),
        );
        fs::write(folder.path("config.toml"), config)?;
        let mut command = Command::new("containerd");
        command.args(["--config", &folder.text("config.toml")]);
        let socket = folder.text("socket");
        Daemon::start(folder, &mut command, || {
            let version = "runtime.v1.RuntimeService/Version";
            call(folder, &socket, version, &Message::default()).is_ok()
        })
    }

    /// Starts an agent that queries this containerd.
    pub fn agent(&self) -> Result<Agent> {
        Agent::start(&["--container.runtime", &self.flag()])
    }

    /// The value of `--container.runtime`.
    pub fn flag(&self) -> String {
        format!("containerd=unix://{}", self.folder.text("socket"))
    }

    fn runtime(&self, method: &str, request: &Message) -> Result<String> {
        let method = format!("runtime.v1.RuntimeService/{method}");
        call(&self.folder, &self.folder.text("socket"), &method, request)
    }

    fn image(&self, method: &str, request: &Message) -> Result<()> {
        let method = format!("runtime.v1.ImageService/{method}");
        let answer = call(&self.folder, &self.folder.text("socket"), &method, request);
        // ImageStatus succeeds for an unknown image too, with an empty answer. Otherwise its first
        // field is a message, which is longer than a short text.
        match answer {
            Ok(text) if text.is_empty() => anyhow::bail!("{method}: nothing"),
            _ => Ok(()),
        }
    }

    /// Runs a pod in the host's network, with the labels and the cgroup that a kubelet would use
    /// (QoS class and UID).
    pub fn pod(&mut self, namespace: &str, name: &str) -> Result<Pod> {
        self.pod_on(namespace, name, NODE)
    }

    /// Runs a pod in its own network.
    pub fn networked_pod(&mut self, namespace: &str, name: &str) -> Result<Pod> {
        let folder = self.folder.path("cni");
        fs::create_dir_all(&folder)?;
        for plugin in ["loopback", "alone"] {
            let path = folder.join(plugin);
            fs::write(&path, CNI)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        fs::write(folder.join("10-alone.conflist"), CNI_CONFIG)?;
        // containerd watches the folder.
        eventually(|| self.pod_on(namespace, name, 0))
    }

    fn pod_on(&mut self, namespace: &str, name: &str, network: u64) -> Result<Pod> {
        let number = self.pods.len();
        let uid = format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id());
        let cgroup = format!("/kubepods/burstable/pod{uid}");
        self.pods.push(cgroup.clone());
        let labels = [
            ("io.kubernetes.pod.name", name.to_owned()),
            ("io.kubernetes.pod.namespace", namespace.to_owned()),
            ("io.kubernetes.pod.uid", uid.clone()),
        ];
        let metadata = Message::default()
            .text(1, name)
            .text(2, &uid)
            .text(3, namespace)
            .number(4, 0);
        let node = Message::default().number(1, network).number(3, NODE);
        let security = Message::default().message(1, &node);
        let linux = Message::default().text(1, &cgroup).message(2, &security);
        let pairs = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
        let config = Message::default()
            .message(1, &metadata)
            .text(3, &self.folder.text("logs"))
            .map(6, &pairs)
            .map(7, &[("example.org/note", "a pod")])
            .message(8, &linux);
        let request = Message::default().message(1, &config);
        let sandbox = self.runtime("RunPodSandbox", &request)?;
        Ok(Pod {
            cgroup,
            uid,
            sandbox,
            config,
            labels,
        })
    }

    /// Starts a container in a pod and returns its id.
    pub fn container(&self, pod: &Pod, name: &str, attempt: u64, words: &[&str]) -> Result<String> {
        let metadata = Message::default().text(1, name).number(2, attempt);
        let mut labels: Vec<(&str, &str)> = vec![("io.kubernetes.container.name", name)];
        labels.extend(pod.labels.iter().map(|(key, value)| (*key, value.as_str())));
        let resources = Message::default().number(1, 100_000).number(2, 20_000);
        let config = Message::default()
            .message(1, &metadata)
            .message(2, &Message::default().text(1, IMAGE))
            .texts(3, words)
            .map(9, &labels)
            .text(11, &format!("{name}.{attempt}.log"))
            .message(15, &Message::default().message(1, &resources));
        let request = Message::default()
            .text(1, &pod.sandbox)
            .message(2, &config)
            .message(3, &pod.config);
        let id = self.runtime("CreateContainer", &request)?;
        self.runtime("StartContainer", &Message::default().text(1, &id))?;
        Ok(id)
    }

    fn stop(&self, id: &str) -> Result<()> {
        let request = Message::default().text(1, id).number(2, 0);
        self.runtime("StopContainer", &request).map(drop)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A kubelet would remove the pods' own cgroups after their processes have ended. So the
        // processes are ended here first.
        self.daemon.signal(libc::SIGCONT);
        self.folder.end_processes();
        for pod in &self.pods {
            for hierarchy in hierarchies() {
                let path = std::path::Path::new(pod.trim_start_matches('/'));
                self.folder.remove_cgroup(&hierarchy, path);
            }
        }
    }
}

/// Writes the test's file system as an archive in the format of `docker save`. Returns its path.
fn image(folder: &Folder) -> Result<String> {
    let layer = folder.rootfs()?;
    let digest = |path: &std::path::Path| -> Result<String> {
        let line = output(Command::new("sha256sum").arg(path))?;
        Ok(line.split(' ').next().context("no digest")?.to_owned())
    };
    let root = folder.path("image");
    fs::create_dir_all(&root)?;
    fs::copy(&layer, root.join("layer.tar"))?;
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Entrypoint": FOREVER, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer)?)] },
    });
    fs::write(root.join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([
        { "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }
    ]);
    fs::write(root.join("manifest.json"), manifest.to_string())?;
    let archive = folder.text("image.tar");
    let files = ["manifest.json", "config.json", "layer.tar"];
    output(
        Command::new("tar")
            .args(["-c", "-f", &archive, "-C"])
            .arg(&root)
            .args(files),
    )?;
    Ok(archive)
}

/// Checks the labels of a pod's container.
fn check(metrics: &Metrics, pod: &Pod, id: &str, container: &str) -> Result<()> {
    let path = pod.path(id);
    let labels = [
        ("namespace", "shop"),
        ("pod", "web-0"),
        ("container", container),
        ("image", IMAGE),
    ];
    all_labelled(metrics, &path, &labels)?;
    let info = [
        ("id", path.as_str()),
        ("container_id", id),
        ("runtime", "containerd"),
    ];
    let info = [&info[..], &[("pod_uid", pod.uid.as_str())]].concat();
    same("container_info", metrics.get("container_info", &info)?, 1.0)
}

/// Checks the labels of the pod's own cgroup and of its sandbox.
fn check_pod(metrics: &Metrics, pod: &Pod) -> Result<()> {
    let own = [
        ("namespace", "shop"),
        ("pod", "web-0"),
        ("container", ""),
        ("image", ""),
        ("name", ""),
    ];
    all_labelled(metrics, &pod.cgroup, &own)?;
    let sandbox = [("namespace", "shop"), ("pod", "web-0"), ("container", "")];
    all_labelled(metrics, &pod.path(&pod.sandbox), &sandbox)
}

fn pod() -> Result<()> {
    let mut containerd = Containerd::start()?;
    let early = containerd.pod("shop", "web-0")?;
    let first = containerd.container(&early, "first", 0, FOREVER)?;
    let agent = containerd.agent()?;
    let metrics = agent.scrape()?;
    check(&metrics, &early, &first, "first").with_context(|| agent.log())?;
    check_pod(&metrics, &early)?;
    let second = containerd.container(&early, "second", 0, FOREVER)?;
    let metrics = agent.scrape()?;
    check(&metrics, &early, &second, "second").with_context(|| agent.log())?;
    check(&metrics, &early, &first, "first")?;
    // A pod that is created while the agent is scraped.
    let late = containerd.pod("shop", "web-0")?;
    for name in ["one", "other"] {
        let id = containerd.container(&late, name, 0, FOREVER)?;
        check(&agent.scrape()?, &late, &id, name).with_context(|| agent.log())?;
    }
    // containerd reports a sandbox only once it runs, some time after its cgroup was created.
    eventually(|| check_pod(&agent.scrape()?, &late)).with_context(|| agent.log())?;
    let record = [("namespace", "shop"), ("pod", "web-0"), ("image", IMAGE)];
    in_json(
        &agent,
        &second,
        &[&record[..], &[("container", "second")]].concat(),
    )?;
    // Users sum over the containers of a pod.
    let metrics = agent.scrape()?;
    let up = metrics.sum("cgmeter_runtime_up", &[("runtime", "containerd")]);
    same("cgmeter_runtime_up", up, 1.0)?;
    let containers = [("namespace", "shop"), ("pod", "web-0"), ("image", IMAGE)];
    let family = "container_cpu_usage_seconds_total";
    let found = metrics.count(family, &containers);
    // Users leave out the sandboxes, because not every runtime reports their image.
    let sandboxes = [&containers[..], &[("container", "")]].concat();
    let sandboxes = metrics.count(family, &sandboxes);
    same("containers with an image", (found - sandboxes) as f64, 4.0)
}

fn lives() -> Result<()> {
    let mut containerd = Containerd::start()?;
    let pod = containerd.pod("shop", "web-0")?;
    let agent = containerd.agent()?;
    let work = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; exit 3";
    let brief = containerd.container(&pod, "brief", 0, &["sh", "-c", work])?;
    let path = pod.path(&brief);
    let labels = [
        ("id", path.as_str()),
        ("container", "brief"),
        ("pod", "web-0"),
    ];
    // The container has ended when its cgroup is gone.
    eventually(|| {
        let gone = hierarchies().iter().all(|at| !at.join(&path[1..]).exists());
        ensure!(gone, "{path} still exists");
        Ok(())
    })?;
    let metrics = agent.scrape()?;
    let used = metrics.get("container_cpu_usage_seconds_total", &labels)?;
    ensure!(used > 0.01, "it used {used} s");
    eventually(|| {
        let metrics = agent.scrape()?;
        same(
            "exit code",
            metrics.get("container_exit_code", &labels)?,
            3.0,
        )?;
        let exit = [&labels[..], &[("reason", "Error")]].concat();
        same(
            "reason",
            metrics.get("container_last_exit_info", &exit)?,
            1.0,
        )
    })
    .with_context(|| agent.log())?;
    // Restarted as a kubelet does it: with another id and the next attempt.
    let again = containerd.container(&pod, "brief", 1, FOREVER)?;
    let metrics = agent.scrape()?;
    check(&metrics, &pod, &again, "brief").with_context(|| agent.log())?;
    let again_path = pod.path(&again);
    let counted = [("id", again_path.as_str())];
    same(
        "restarts",
        metrics.get("container_restarts_total", &counted)?,
        1.0,
    )?;
    containerd.stop(&again)?;
    let metrics = agent.scrape()?;
    metrics.no_doubles()?;
    let labels = [("id", again_path.as_str()), ("container", "brief")];
    ensure!(metrics.has("container_cpu_usage_seconds_total", &labels));
    eventually(|| {
        let code = agent.scrape()?.get("container_exit_code", &labels)?;
        same("exit code", code, 137.0)
    })
}

fn killed() -> Result<()> {
    let mut containerd = Containerd::start()?;
    let pod = containerd.pod("shop", "web-0")?;
    let first = containerd.container(&pod, "first", 0, FOREVER)?;
    let agent = containerd.agent()?;
    check(&agent.scrape()?, &pod, &first, "first").with_context(|| agent.log())?;
    containerd.daemon.crash()?;
    for _ in 0..20 {
        let metrics = agent.scrape()?;
        check(&metrics, &pod, &first, "first")?;
        check_pod(&metrics, &pod)?;
    }
    let wait_up = |expected: f64| {
        eventually(|| {
            let metrics = agent.scrape()?;
            let up = metrics.sum("cgmeter_runtime_up", &[("runtime", "containerd")]);
            same("cgmeter_runtime_up", up, expected)
        })
        .with_context(|| agent.log())
    };
    wait_up(0.0)?;
    check(&agent.scrape()?, &pod, &first, "first")?;
    containerd.daemon = Containerd::daemon(&containerd.folder)?;
    wait_up(1.0)?;
    let second = containerd.container(&pod, "second", 0, FOREVER)?;
    let metrics = agent.scrape()?;
    check(&metrics, &pod, &second, "second")?;
    check(&metrics, &pod, &first, "first")
}
