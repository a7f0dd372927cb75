//! Debian's kernels, unpacked.
//!
//! Invariant: a kernel that is unpacked in the target folder is complete, and is used without looking
//! for a newer one. Remove `target/vm/kernels` to get newer ones.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    apt,
    shell::{has, output, program, run, target},
};

/// The flavour: small, and with drivers for virtual machines.
const FLAVOUR: &str = "-cloud-amd64";
const PACKAGE: &str = "linux-image-";

/// A kernel that guests can boot.
#[derive(Debug)]
pub struct Kernel {
    /// Its series, such as 6.1.
    pub series: &'static str,
    /// What `uname -r` says, such as 6.1.0-56-cloud-amd64.
    pub version: String,
    /// The image to boot.
    pub image: PathBuf,
    /// Its modules and their modules.dep.
    pub modules: PathBuf,
}

/// The newest unpacked kernel of a series, else the newest of Debian's. `None` if Debian has none.
pub fn find(series: &'static str) -> Result<Option<Kernel>> {
    let store = target().join("vm/kernels");
    fs::create_dir_all(&store).with_context(|| format!("making {}", store.display()))?;
    let mut unpacked = Vec::new();
    for entry in fs::read_dir(&store)? {
        unpacked.extend(entry?.file_name().into_string());
    }
    let version = match newest(series, unpacked.iter().map(String::as_str)) {
        Some(version) => version.to_owned(),
        None => {
            let Some(version) = packaged(series)? else {
                return Ok(None);
            };
            unpack(&version, &store).with_context(|| format!("getting Linux {version}"))?;
            version
        }
    };
    let folder = store.join(&version);
    Ok(Some(Kernel {
        series,
        image: folder.join("boot").join(format!("vmlinuz-{version}")),
        modules: folder.join("lib/modules").join(&version),
        version,
    }))
}

/// The newest version that Debian's package lists have.
fn packaged(series: &str) -> Result<Option<String>> {
    if !has("apt-cache") {
        return Ok(None);
    }
    let search = || -> Result<Option<String>> {
        let pattern = format!("^{PACKAGE}{}\\..*{FLAVOUR}$", series.replace('.', "\\."));
        let lines = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
        Ok(newest(series, versions(&lines)).map(str::to_owned))
    };
    match search()? {
        Some(version) => Ok(Some(version)),
        None if apt::usable().is_ok() => {
            apt::update();
            search()
        }
        None => Ok(None),
    }
}

/// Versions from `apt-cache search`: lines `PACKAGE - DESCRIPTION`.
fn versions(lines: &str) -> impl Iterator<Item = &str> {
    lines
        .lines()
        .filter_map(|line| line.split(' ').next()?.strip_prefix(PACKAGE))
}

/// The newest version of a series' flavour among names.
fn newest<'a>(series: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .filter(|name| name.ends_with(FLAVOUR))
        .filter(|name| {
            name.strip_prefix(series)
                .is_some_and(|rest| rest.starts_with('.'))
        })
        .max_by_key(|name| numbers(name))
}

/// All numbers of a version, in order. Those of a newer version are greater.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// Downloads a kernel and unpacks it below `store`.
fn unpack(version: &str, store: &Path) -> Result<()> {
    let half = store.join("unfinished");
    if half.exists() {
        fs::remove_dir_all(&half)?;
    }
    let tree = half.join("tree");
    fs::create_dir_all(&tree)?;
    apt::download(&format!("{PACKAGE}{version}"), &half)?;
    for entry in fs::read_dir(&half)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg").arg("--extract").arg(path).arg(&tree))?;
        }
    }
    // modules.dep is made when the package is installed, which it is not here.
    let depmod = program("depmod").context("depmod is missing: apt-get install kmod")?;
    run(Command::new(depmod).arg("-b").arg(&tree).arg(version))?;
    fs::rename(&tree, store.join(version))?;
    Ok(fs::remove_dir_all(&half)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUND: &str = "\
linux-image-6.1.0-9-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-56-cloud-amd64-dbg - Debug symbols for linux-image-6.1.0-56-cloud-amd64
linux-image-6.1.0-48-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-57-cloud-amd64-unsigned - Linux 6.1 for x86-64 cloud
linux-image-6.12-cloud-amd64 - Linux for x86-64 cloud (meta-package)
linux-image-6.12.9+bpo-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.117+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.118+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
";

    #[test]
    fn the_newest_is_found_by_its_numbers() {
        for (series, version) in [
            ("6.1", Some("6.1.0-48-cloud-amd64")),
            ("6.12", Some("6.12.117+deb12-cloud-amd64")),
            ("6.6", None),
        ] {
            assert_eq!(newest(series, versions(FOUND)), version);
        }
    }

    #[test]
    fn an_unfinished_folder_is_no_kernel() {
        let names = ["unfinished", "6.1.0-2-cloud-amd64", "6.1.0-10-cloud-amd64"];
        assert_eq!(
            newest("6.1", names.into_iter()),
            Some("6.1.0-10-cloud-amd64")
        );
    }
}
