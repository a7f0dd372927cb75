//! Debian's packages.
//!
//! Invariant: an installation starts no service and enables none, because services would occupy ports
//! that tests and users need.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::shell::{has, is_root, run};

/// Packages that install services, and these services.
const SERVICES: &[(&str, &[&str])] = &[
    ("prometheus", &["prometheus.service"]),
    (
        "prometheus-alertmanager",
        &["prometheus-alertmanager.service"],
    ),
    (
        "docker.io",
        &["docker.socket", "docker.service", "containerd.service"],
    ),
    ("containerd", &["containerd.service"]),
    (
        "podman",
        &[
            "podman.socket",
            "podman.service",
            "podman-auto-update.timer",
            "podman-restart.service",
        ],
    ),
];

/// Fails with the reason if packages can't be installed.
pub fn usable() -> Result<(), &'static str> {
    match (has("apt-get"), is_root()) {
        (false, _) => Err("this is not Debian: there is no apt-get"),
        (true, false) => Err("installing Debian's packages needs root"),
        (true, true) => Ok(()),
    }
}

/// Installs packages.
pub fn install(packages: &[&str]) -> Result<()> {
    println!("installing {}", packages.join(" "));
    let guard = NoServices::new(Path::new("/usr/sbin/policy-rc.d"))?;
    update();
    let result = run(apt_get(&["install", "--yes", "--no-install-recommends"]).args(packages));
    drop(guard);
    result?;
    let systemd = Path::new("/run/systemd/system").is_dir();
    for (_, services) in SERVICES
        .iter()
        .filter(|(package, _)| systemd && packages.contains(package))
    {
        run(Command::new("systemctl")
            .args(["disable", "--now", "--quiet"])
            .args(*services))?;
    }
    Ok(())
}

/// Updates the package lists. A failure is only a warning: one unreachable source need not matter, and
/// a package that is missing is reported by the next step.
pub fn update() {
    if let Err(error) = run(&mut apt_get(&["update"])) {
        eprintln!("xtask: warning: {error:#}");
    }
}

/// Downloads the file of a package into a folder. If that fails, the package lists are updated first.
/// Needs no root.
pub fn download(package: &str, folder: &Path) -> Result<()> {
    println!("downloading {package}");
    let mut command = apt_get(&["download", "-o", "APT::Sandbox::User=root", package]);
    command.current_dir(folder);
    match run(&mut command) {
        Err(_) if is_root() => {
            update();
            run(&mut command)
        }
        result => result,
    }
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args([
            "-q",
            "-o",
            "Dpkg::Use-Pty=0",
            "-o",
            "DPkg::Lock::Timeout=120",
        ])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Keeps packages from starting services until it is dropped (Debian policy 9.3.3.1).
struct NoServices(Option<PathBuf>);

impl NoServices {
    /// Does nothing if there is a policy already, as in container images.
    fn new(policy: &Path) -> Result<Self> {
        if policy.exists() {
            return Ok(Self(None));
        }
        fs::write(policy, "#!/bin/sh\nexit 101\n")
            .and_then(|()| fs::set_permissions(policy, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("writing {}", policy.display()))?;
        Ok(Self(Some(policy.to_path_buf())))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.0
            && let Err(error) = fs::remove_file(policy)
        {
            eprintln!(
                "xtask: warning: remove {} by hand: {error}",
                policy.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_removed_unless_it_was_there() {
        let file = std::env::temp_dir().join(format!("xtask-policy-{}", std::process::id()));
        let guard = NoServices::new(&file).unwrap();
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o755
        );
        drop(NoServices::new(&file).unwrap());
        assert!(file.exists());
        drop(guard);
        assert!(!file.exists());
    }
}
