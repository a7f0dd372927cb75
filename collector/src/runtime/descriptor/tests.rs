//! Paths, and whose they are.

use super::*;
use crate::cgroup::{Place, Qos};

const A: &str = "3f8a0c1d9e2b4a5f6071829304a5b6c7d8e9f00112233445566778899aabbccd";
const B: &str = "00aa11bb22cc33dd44ee55ff6600778899aabbccddeeff001122334455667788";
const UID: &str = "4bd2f0a8-7c31-4f62-9a0e-5d6c1b2a3f44";
const UNDERSCORED: &str = "4bd2f0a8_7c31_4f62_9a0e_5d6c1b2a3f44";
const STATIC: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

fn place_of(path: &[u8]) -> Place {
    Place::of(path, &runtimes())
}

/// One line for what a path says: kind, then what there is of runtime, id, name, pod, QoS, unit.
fn described(path: &str) -> String {
    describe(&place_of(expand(path).as_bytes()))
}

fn describe(place: &Place) -> String {
    let mut line = format!("{:?}", place.kind).to_lowercase();
    let fields = [
        ("by", place.runtime.map(Runtime::name)),
        ("id", place.container.as_deref()),
        ("name", place.name.as_deref()),
        ("pod", place.pod.as_deref()),
        ("qos", place.qos.map(Qos::name)),
        ("unit", place.unit.as_deref()),
    ];
    for (key, value) in fields {
        if let Some(value) = value {
            let value = value.replace(A, "A").replace(B, "B");
            let value = value.replace(UID, "UID").replace(STATIC, "STATIC");
            line.push_str(&format!(" {key}={}", value.replace(UNDERSCORED, "U_ID")));
        }
    }
    line
}

/// `{A}`, `{B}`: ids of containers; `{UID}`, `{U_ID}`, `{STATIC}`: of pods.
fn expand(path: &str) -> String {
    let path = path.replace("{A}", A).replace("{B}", B);
    let path = path.replace("{UID}", UID).replace("{U_ID}", UNDERSCORED);
    path.replace("{STATIC}", STATIC)
}

/// Paths, and what they say.
const TABLE: &[(&str, &str)] = &[
    ("/", "root"),
    // Docker, cgroupfs driver.
    ("/docker", "other"),
    ("/docker/{A}", "container by=docker id=A"),
    ("/docker/{A}/init", "nested"),
    ("/docker/{A}/system.slice/nginx.service", "nested"),
    ("/mine/{A}", "container id=A"),
    ("/mine/deep/er/docker/{A}", "container by=docker id=A"),
    ("/actions_job/{A}", "container id=A"),
    // Docker in Docker.
    ("/docker/{A}/docker/{B}", "container by=docker id=B"),
    // BuildKit's have ids that no runtime knows.
    ("/docker/buildkit", "other"),
    ("/docker/buildkit/z2y5kv6jl7xjymb8m6rfcblzy", "other"),
    (
        "/system.slice/docker-buildkit-z2y5kv6jl7.scope",
        "unit unit=docker-buildkit-z2y5kv6jl7.scope",
    ),
    // Docker, systemd driver; also without root.
    (
        "/system.slice/docker-{A}.scope",
        "container by=docker id=A unit=docker-A.scope",
    ),
    ("/mine.slice/docker-{A}.scope/child", "nested"),
    (
        "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope",
        "container by=docker id=A unit=docker-A.scope",
    ),
    ("/system.slice/docker.service", "unit unit=docker.service"),
    (
        "/system.slice/docker.service/docker/{A}",
        "container by=docker id=A",
    ),
    ("/system.slice:docker:{A}", "container by=docker id=A"),
    // containerd: ctr, nerdctl, CRI.
    ("/k8s.io", "other"),
    (
        "/k8s.io/redis",
        "container by=containerd id=redis name=redis",
    ),
    ("/k8s.io/{A}", "container by=containerd id=A"),
    (
        "/default/redis-1",
        "container by=containerd id=redis-1 name=redis-1",
    ),
    ("/default/redis-1/init", "nested"),
    ("/default/{A}", "container id=A"),
    ("/other/{A}", "container id=A"),
    ("/srv/default/redis", "other"),
    (
        "/system.slice/nerdctl-{A}.scope",
        "container by=containerd id=A unit=nerdctl-A.scope",
    ),
    (
        "/system.slice/cri-containerd-{A}.scope",
        "container by=containerd id=A unit=cri-containerd-A.scope",
    ),
    (
        "/system.slice:cri-containerd:{A}",
        "container by=containerd id=A",
    ),
    // Kubernetes, cgroupfs driver.
    ("/kubepods", "group"),
    ("/kubepods/burstable", "group qos=Burstable"),
    ("/kubepods/besteffort", "group qos=BestEffort"),
    ("/kubepods/pod{UID}", "pod pod=UID qos=Guaranteed"),
    ("/kubepods/burstable/pod{UID}", "pod pod=UID qos=Burstable"),
    (
        "/kubepods/besteffort/pod{STATIC}",
        "pod pod=STATIC qos=BestEffort",
    ),
    (
        "/kubepods/pod{UID}/{A}",
        "container id=A pod=UID qos=Guaranteed",
    ),
    (
        "/kubepods/burstable/pod{UID}/{A}",
        "container id=A pod=UID qos=Burstable",
    ),
    ("/kubepods/burstable/pod{UID}/{A}/app", "nested"),
    ("/kubepods/burstable/pod{UID}/stray", "nested"),
    ("/kubepods/burstable/podinfo/x", "other"),
    (
        "/kubepods/burstable/pod{STATIC}/crio-{A}",
        "container by=crio id=A pod=STATIC qos=Burstable",
    ),
    ("/kubepods/burstable/pod{STATIC}/crio-conmon-{A}", "nested"),
    (
        "/kubelet/kubepods/burstable/pod{UID}/{A}",
        "container id=A pod=UID qos=Burstable",
    ),
    ("/burstable/pod{UID}", "pod pod=UID"),
    ("/burstable/pod{UID}/{A}", "container id=A pod=UID"),
    ("/burstable/pod{STATIC}", "other"),
    // kind: a node that is a container of Docker's.
    (
        "/docker/{B}/kubelet/kubepods/besteffort/pod{UID}/{A}",
        "container id=A pod=UID qos=BestEffort",
    ),
    (
        "/docker/{B}/kubelet/kubepods/besteffort",
        "group qos=BestEffort",
    ),
    ("/docker/{B}/kubelet", "nested"),
    // Kubernetes, systemd driver.
    ("/kubepods.slice", "group unit=kubepods.slice"),
    (
        "/kubepods.slice/kubepods-burstable.slice",
        "group qos=Burstable unit=kubepods-burstable.slice",
    ),
    (
        "/kubepods.slice/kubepods-pod{U_ID}.slice",
        "pod pod=UID qos=Guaranteed unit=kubepods-podU_ID.slice",
    ),
    (
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{U_ID}.slice",
        "pod pod=UID qos=BestEffort unit=kubepods-besteffort-podU_ID.slice",
    ),
    (
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice",
        "pod pod=STATIC qos=Burstable unit=kubepods-burstable-podSTATIC.slice",
    ),
    (
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_ID}.slice/cri-containerd-{A}.scope",
        "container by=containerd id=A pod=UID qos=Burstable unit=cri-containerd-A.scope",
    ),
    (
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_ID}.slice/crio-{A}.scope",
        "container by=crio id=A pod=UID qos=Burstable unit=crio-A.scope",
    ),
    (
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_ID}.slice/crio-{A}.scope/container",
        "nested",
    ),
    (
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_ID}.slice/crio-conmon-{A}.scope",
        "nested",
    ),
    (
        "/kubepods.slice/kubepods-pod{U_ID}.slice/docker-{A}.scope",
        "container by=docker id=A pod=UID qos=Guaranteed unit=docker-A.scope",
    ),
    (
        "/kubepods-burstable-pod{U_ID}.slice:cri-containerd:{A}",
        "container by=containerd id=A pod=UID qos=Burstable",
    ),
    (
        "/system.slice/containerd.service/kubepods-burstable-pod{U_ID}.slice:cri-containerd:{A}",
        "container by=containerd id=A pod=UID qos=Burstable",
    ),
    (
        "/system.slice/containerd.service",
        "unit unit=containerd.service",
    ),
    (
        "/docker/{B}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{U_ID}.slice/cri-containerd-{A}.scope",
        "container by=containerd id=A pod=UID qos=Guaranteed unit=cri-containerd-A.scope",
    ),
    ("/mykubepods.slice", "group unit=mykubepods.slice"),
    // CRI-O outside a pod.
    (
        "/system.slice/crio-{A}.scope",
        "container by=crio id=A unit=crio-A.scope",
    ),
    ("/system.slice/crio-conmon-{A}.scope", "other"),
    // Podman, with root and without.
    (
        "/machine.slice/libpod-{A}.scope",
        "container by=podman id=A unit=libpod-A.scope",
    ),
    ("/machine.slice/libpod-{A}.scope/container", "nested"),
    (
        "/machine.slice/libpod-{A}.scope/container/system.slice/sshd.service",
        "nested",
    ),
    ("/machine.slice/libpod-{A}.scope/init.scope", "nested"),
    ("/machine.slice/libpod-conmon-{A}.scope", "other"),
    (
        "/machine.slice/machine-libpod_pod_{B}.slice",
        "group unit=machine-libpod_pod_B.slice",
    ),
    (
        "/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope",
        "container by=podman id=A unit=libpod-A.scope",
    ),
    (
        "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
        "nested",
    ),
    (
        "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope",
        "container by=podman id=A unit=libpod-A.scope",
    ),
    (
        "/user.slice/user-1000.slice/user@1000.service/user.slice/podman-4711.scope",
        "unit unit=podman-4711.scope",
    ),
    ("/libpod_parent", "other"),
    ("/libpod_parent/conmon", "other"),
    ("/libpod_parent/libpod-{A}", "container by=podman id=A"),
    ("/libpod_parent/libpod-conmon-{A}", "other"),
    ("/libpod_parent/{B}", "group"),
    ("/libpod_parent/{B}/libpod-{A}", "container by=podman id=A"),
    (
        "/system.slice/web.service/libpod-payload-{A}",
        "container by=podman id=A",
    ),
    (
        "/system.slice/web.service/supervisor",
        "nested unit=web.service",
    ),
    // systemd.
    ("/system.slice/a.service/b.service", "nested unit=a.service"),
    ("/init.scope", "unit unit=init.scope"),
    ("/system.slice", "group unit=system.slice"),
    ("/system.slice/nginx.service", "unit unit=nginx.service"),
    (
        "/system.slice/nginx.service/worker/0",
        "nested unit=nginx.service",
    ),
    (
        "/system.slice/system-getty.slice/getty@tty1.service",
        "unit unit=getty@tty1.service",
    ),
    (
        r"/system.slice/system-serial\x2dgetty.slice",
        "group unit=system-serial-getty.slice",
    ),
    (
        r"/system.slice/dev-disk-by\x2dlabel-a.swap",
        "unit unit=dev-disk-by-label-a.swap",
    ),
    (
        r"/system.slice/caf\xc3\xa9.service",
        "unit unit=café.service",
    ),
    (r"/system.slice/odd\x2.service", r"unit unit=odd\x2.service"),
    (
        r"/system.slice/odd\xff.service",
        r"unit unit=odd\xff.service",
    ),
    ("/system.slice/_cpu.service", "unit unit=cpu.service"),
    ("/user.slice/user-1000.slice", "group unit=user-1000.slice"),
    (
        "/user.slice/user-1000.slice/session-3.scope",
        "unit unit=session-3.scope",
    ),
    (
        "/user.slice/user-1000.slice/user@1000.service",
        "group unit=user@1000.service",
    ),
    (
        "/user.slice/user-1000.slice/user@1000.service/init.scope",
        "unit unit=init.scope",
    ),
    (
        r"/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-org.x\x2dterm-12.scope",
        "unit unit=app-gnome-org.x-term-12.scope",
    ),
    ("/.service", "other"),
    // Names that look like a container's.
    (
        "/system.slice/backup-{A}.service",
        "unit unit=backup-A.service",
    ),
    ("/system.slice/{A}.service", "unit unit=A.service"),
    ("/system.slice/run-{A}.scope", "unit unit=run-A.scope"),
    (
        "/system.slice/docker-{A}0.scope",
        "unit unit=docker-A0.scope",
    ),
    (
        "/system.slice/docker-{A}.service",
        "unit unit=docker-A.service",
    ),
    ("/docker/{A}0", "other"),
    (
        "/docker/3F8A0C1D9E2B4A5F6071829304A5B6C7D8E9F00112233445566778899AABBCCD",
        "other",
    ),
    // LXC.
    ("/lxc", "other"),
    ("/lxc/web", "container name=web"),
    ("/lxc/web/init.scope", "nested"),
    ("/lxc/101/ns/system.slice/ssh.service", "nested"),
    ("/lxc.payload.web", "container name=web"),
    ("/lxc.payload.web/system.slice/ssh.service", "nested"),
    ("/lxc.payload/web", "container name=web"),
    ("/lxc.monitor.web", "other"),
    ("/lxc.monitor/web", "other"),
    ("/lxc.pivot", "other"),
    ("/docker/{A}/lxc/web", "nested"),
    // systemd-machined.
    (
        r"/machine.slice/machine-deb\x2d12.scope",
        r"machine name=deb-12 unit=machine-deb\x2d12.scope",
    ),
    (
        r"/machine.slice/machine-deb\x2d12.scope/payload/system.slice/ssh.service",
        "nested",
    ),
    (
        r"/machine.slice/systemd-nspawn@web\x2d1.service",
        r"machine name=web-1 unit=systemd-nspawn@web\x2d1.service",
    ),
    (
        r"/machine.slice/systemd-nspawn@web\x2d1.service/supervisor",
        "nested",
    ),
    (
        r"/machine.slice/machine-qemu\x2d1\x2dvm.scope",
        r"machine name=qemu-1-vm unit=machine-qemu\x2d1\x2dvm.scope",
    ),
    ("/system.slice/machine-x.scope", "unit unit=machine-x.scope"),
];

#[test]
fn each_path_means_what_the_table_says() {
    let wrong: Vec<String> = TABLE
        .iter()
        .filter(|(path, expected)| described(path) != *expected)
        .map(|(path, expected)| {
            format!("{path}\n  is     {}\n  not    {expected}", described(path))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_need_not_be_utf8() {
    let mut path = b"/system.slice/bad\xff.service".to_vec();
    assert_eq!(describe(&place_of(&path)), r"unit unit=bad\xff.service");
    path.extend_from_slice(format!("/docker/{A}").as_bytes());
    assert_eq!(describe(&place_of(&path)), "container by=docker id=A");
    path.extend_from_slice(b"/\xfe\xff");
    assert_eq!(describe(&place_of(&path)), "nested");
}

#[test]
fn depth_does_not_matter() {
    let deep = "/d".repeat(2000);
    assert_eq!(described(&deep), "other");
    assert_eq!(
        described(&format!("{deep}/docker/{A}")),
        "container by=docker id=A"
    );
    assert_eq!(described(&format!("/docker/{A}{deep}")), "nested");
}

#[test]
fn no_path_has_more_than_one_owner_of_a_name() {
    // One cgroup of a path alone has a name: what is within has none.
    for (path, _) in TABLE {
        let path = expand(path);
        let place = place_of(path.as_bytes());
        let above = path.rsplit_once('/').map_or("/", |(above, _)| above);
        let above = place_of(above.as_bytes());
        assert!(
            place.name.is_none() || above.name.is_none(),
            "{path} and its parent both have names"
        );
    }
}

#[test]
fn a_runtime_is_who_it_says_it_is() {
    let reported = |runtime: &'static Descriptor, names: &[&'static str]| {
        runtime.reported(names.iter().copied()).naming.name
    };
    let docker = ["Engine", "containerd", "runc", "docker-init"];
    let podman = ["Podman Engine", "Conmon", "OCI Runtime (runc)"];
    for runtime in [&docker::DOCKER, &podman::PODMAN] {
        assert_eq!(reported(runtime, &docker), "docker");
        assert_eq!(reported(runtime, &podman), "podman");
        // Of another protocol, or of no known runtime.
        assert_eq!(reported(runtime, &["cri-o"]), runtime.naming.name);
        assert_eq!(reported(runtime, &[]), runtime.naming.name);
    }
    for runtime in [&containerd::CONTAINERD, &crio::CRIO] {
        assert_eq!(reported(runtime, &["containerd"]), "containerd");
        assert_eq!(reported(runtime, &["cri-o"]), "crio");
        assert_eq!(reported(runtime, &["rkt"]), runtime.naming.name);
    }
}

#[test]
fn no_two_runtimes_share_a_name_or_a_socket() {
    let distinct = |names: Vec<&str>| {
        let set: std::collections::BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(set.len(), names.len(), "{names:?}");
    };
    distinct(Descriptor::all().map(|it| it.naming.name).collect());
    distinct(
        Descriptor::all()
            .flat_map(|it| it.sockets)
            .copied()
            .collect(),
    );
    for names in [
        |naming: &Naming| naming.prefixes,
        |naming: &Naming| naming.monitors,
        |naming: &Naming| naming.folders,
        |naming: &Naming| naming.namespaces,
        |naming: &Naming| naming.groups,
    ] {
        distinct(
            Descriptor::all()
                .flat_map(|it| names(&it.naming))
                .copied()
                .collect(),
        );
    }
}
