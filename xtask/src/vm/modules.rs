//! The files of the kernel modules that a guest needs.
//!
//! Invariant: a module that a kernel lacks or has built in is no error. Tests that need a missing one
//! are skipped.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// The modules that tests use, by modprobe's names.
pub const WANTED: &[&str] = &[
    // Block devices: the guest's disk, RAM, null, files.
    "virtio_pci",
    "virtio_blk",
    "brd",
    "null_blk",
    // zram's default compression; built into zram since 6.12.
    "lzo-rle",
    "zram",
    "loop",
    "dm-mod",
    // File systems, and what checksums them.
    "ext4",
    "crc32c_generic",
    "fuse",
    // Network devices, shaping and filters.
    "dummy",
    "veth",
    "sch_netem",
    "sch_tbf",
    "nf_tables",
    "nft_ct",
    "nft_limit",
    "nft_reject_inet",
    "nft_chain_nat",
    // Socket lists by netlink, for ss.
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "mptcp_diag",
];

/// A kernel's modules and what each needs, from its modules.dep.
#[derive(Debug)]
pub struct Modules<'a>(BTreeMap<String, Vec<&'a str>>);

impl<'a> Modules<'a> {
    /// Reads modules.dep: lines `PATH: PATHS`. The paths are all that the first one needs, directly
    /// or not.
    pub fn parse(text: &'a str) -> Self {
        let entry = |line: &'a str| {
            let (path, needs) = line.split_once(':')?;
            let files = std::iter::once(path).chain(needs.split_whitespace());
            Some((name(path)?, files.collect()))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    /// The files of modules and of all that they need.
    pub fn files(&self, wanted: &[&str]) -> BTreeSet<&'a str> {
        let lists = wanted
            .iter()
            .filter_map(|module| self.0.get(&plain(module)));
        lists.flatten().copied().collect()
    }

    /// Those of `wanted` that are modules of this kernel.
    pub fn present<'w>(&self, wanted: &[&'w str]) -> Vec<&'w str> {
        let is_there = |module: &&&str| self.0.contains_key(&plain(module));
        wanted.iter().filter(is_there).copied().collect()
    }
}

/// The name of a module's file, compressed or not.
fn name(path: &str) -> Option<String> {
    let file = Path::new(path).file_name()?.to_str()?;
    Some(plain(file.split_once(".ko")?.0))
}

/// A name as the kernel has it: file names may have dashes.
fn plain(module: &str) -> String {
    module.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
kernel/drivers/md/dm-mod.ko.xz: kernel/drivers/dax/dax.ko.xz
kernel/drivers/dax/dax.ko.xz:
";

    #[test]
    fn files_include_dependencies_once() {
        let modules = Modules::parse(DEP);
        let files = modules.files(&["virtio_blk", "virtio_ring", "not_there"]);
        assert_eq!(
            files.into_iter().collect::<Vec<_>>(),
            [
                "kernel/drivers/block/virtio_blk.ko",
                "kernel/drivers/virtio/virtio.ko",
                "kernel/drivers/virtio/virtio_ring.ko",
            ]
        );
    }

    #[test]
    fn names_match_with_dashes_and_compression() {
        let modules = Modules::parse(DEP);
        for name in ["dm-mod", "dm_mod"] {
            assert_eq!(modules.files(&[name]).len(), 2, "{name}");
        }
        assert_eq!(
            modules.present(&["ext4", "dm-mod", "virtio"]),
            ["dm-mod", "virtio"]
        );
    }
}
