//! What the virtual machines have. xtask makes them by it, and the live tests know by it what is
//! skipped there.

/// The kernels, by the series of their Debian packages: the oldest one supported, and a newer one.
pub const SERIES: [&str; 2] = ["6.1", "6.12"];

/// The host's programs that tests use. They come before busybox's in the path.
pub const TOOLS: &[&str] = &[
    "ip",
    "tc",
    "ss",
    "nft",
    "mke2fs",
    "mkfs.ext4",
    "dmsetup",
    "setpriv",
];
