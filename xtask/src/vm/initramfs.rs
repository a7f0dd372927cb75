//! A guest's initramfs.
//!
//! Invariant: it is made for each run from the binaries that were built and the host's programs. The
//! guest lacks what the host lacks, and skips the tests that need it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{
    guests::TOOLS,
    kernel::Kernel,
    modules::{self, Modules},
};
use crate::shell::{output, program, run, shown};

/// The script that the guest's first process runs.
const INIT: &str = include_str!("init.sh");

/// Small files that programs read.
const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
];

/// The folders, and links to those in /usr, as in Debian.
const FOLDERS: &[&str] = &[
    "dev",
    "etc",
    "guest",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/local/bin",
    "usr/sbin",
];
const LINKS: &[&str] = &["bin", "lib", "lib64", "sbin"];

/// What it is made of.
pub struct Contents<'a> {
    /// The kernel, whose modules are needed.
    pub kernel: &'a Kernel,
    /// The agent's binary.
    pub agent: &'a Path,
    /// The binary of the live tests.
    pub tests: &'a Path,
    /// Only the tests with this in their name.
    pub filter: Option<&'a str>,
    /// Both tiers, or the short one.
    pub all: bool,
    /// Tests that ran in a guest that died.
    pub done: &'a [String],
}

/// Makes the archive in a folder; its path.
pub fn make(contents: &Contents<'_>, folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    for folder in FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    for link in LINKS {
        symlink(format!("usr/{link}"), tree.join(link))?;
    }
    for (path, text) in FILES {
        fs::write(tree.join(path), text)?;
    }
    fs::write(tree.join("init"), INIT)?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    fs::write(
        tree.join("guest/filter"),
        contents.filter.unwrap_or_default(),
    )?;
    fs::write(
        tree.join("guest/tier"),
        if contents.all { "all" } else { "short" },
    )?;
    fs::write(tree.join("guest/done"), contents.done.join("\n"))?;
    copy(contents.agent, &tree.join("usr/bin/cgmeter"))?;
    copy(contents.tests, &tree.join("usr/bin/live"))?;
    let busybox =
        program("busybox").context("busybox is missing: apt-get install busybox-static")?;
    add_program(&busybox, &tree.join("usr/bin/busybox"), &tree)?;
    for tool in TOOLS {
        if let Some(path) = program(tool) {
            add_program(&path, &tree.join("usr/local/bin").join(tool), &tree)?;
        }
    }
    let configuration = Path::new("/etc/mke2fs.conf");
    if configuration.exists() {
        copy(configuration, &tree.join("etc/mke2fs.conf"))?;
    }
    add_modules(contents.kernel, &tree)?;
    let archive = folder.join("initramfs.cpio");
    pack(&tree, &archive)?;
    Ok(archive)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {}", from.display()))
}

/// Copies a program of the host's and the libraries that it is linked with.
fn add_program(from: &Path, to: &Path, tree: &Path) -> Result<()> {
    copy(from, to)?;
    // It fails for a static program, and prints no libraries.
    let found = Command::new("ldd")
        .arg(from)
        .output()
        .context("cannot run ldd")?;
    for library in libraries(&String::from_utf8_lossy(&found.stdout)) {
        let place = tree.join(library.trim_start_matches('/'));
        if !place.exists() {
            fs::create_dir_all(place.parent().unwrap_or(tree))?;
            copy(Path::new(library), &place)?;
        }
    }
    Ok(())
}

/// The files that ldd names: lines `NAME => FILE (ADDRESS)` or `FILE (ADDRESS)`.
fn libraries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let (file, _) = line.trim().rsplit_once(" (")?;
        let file = file.split_once(" => ").map_or(file, |(_, file)| file);
        file.starts_with('/').then_some(file)
    })
}

/// Adds the modules that tests use, unpacked, and the list of those to load at once.
fn add_modules(kernel: &Kernel, tree: &Path) -> Result<()> {
    let dependencies = kernel.modules.join("modules.dep");
    let text = fs::read_to_string(&dependencies)
        .with_context(|| format!("reading {}", dependencies.display()))?;
    let all = Modules::parse(&text);
    let folder = tree.join("lib/modules").join(&kernel.version);
    for file in all.files(modules::WANTED) {
        let place = folder.join(file);
        fs::create_dir_all(place.parent().unwrap_or(&folder))?;
        let source = kernel.modules.join(file);
        if file.ends_with(".xz") {
            let unpacked = fs::File::create(place.with_extension(""))?;
            run(Command::new("xz").arg("-dc").arg(source).stdout(unpacked))?;
        } else {
            copy(&source, &place)?;
        }
    }
    for list in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        copy(&kernel.modules.join(list), &folder.join(list))?;
    }
    let depmod = program("depmod").context("depmod is missing: apt-get install kmod")?;
    run(Command::new(depmod)
        .arg("-b")
        .arg(tree)
        .arg(&kernel.version))?;
    let lines: String = all
        .present(modules::WANTED)
        .iter()
        .map(|module| format!("{module}\n"))
        .collect();
    Ok(fs::write(tree.join("guest/modules"), lines)?)
}

/// Packs a tree as cpio. Not compressed: that would only cost time on both sides.
fn pack(tree: &Path, archive: &Path) -> Result<()> {
    let list = output(Command::new("find").arg(".").current_dir(tree))?;
    let names = archive.with_extension("list");
    fs::write(&names, list)?;
    let mut command = Command::new("cpio");
    command
        .args(["--create", "--quiet", "--format=newc", "--owner=0:0"])
        .current_dir(tree)
        .stdin(Stdio::from(fs::File::open(&names)?))
        .stdout(Stdio::from(fs::File::create(archive)?));
    run(&mut command)?;
    if fs::metadata(archive)?.len() == 0 {
        bail!("{} made an empty {}", shown(&command), archive.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_files_that_ldd_names() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x00007f1)\n\
                    \tlibodd.so => not found\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        assert_eq!(
            libraries(text).collect::<Vec<_>>(),
            [
                "/lib/x86_64-linux-gnu/libmnl.so.0",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        assert_eq!(libraries("\tstatically linked\n").count(), 0);
    }
}
