//! File systems of mounted devices. Oracle: statvfs(3), called by the test.

use std::{
    ffi::CString,
    fs,
    io::Write,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    agent::Agent,
    block_device::Loop,
    metrics::{Metrics, same},
    mounted::{Folder, fuse, isolated, mount, unmount},
    needs::Need,
};

pub const TESTS: &[Test] = &[
    (
        "filesystem::a_device_is_added_filled_and_removed",
        &[Need::Agent, Need::Loop, Need::Program("mkfs.ext4")],
        || isolated(device),
    ),
    (
        "filesystem::every_device_once",
        &[Need::Agent, Need::Loop, Need::Program("mkfs.ext4")],
        || isolated(binds),
    ),
    (
        "filesystem::a_device_that_hangs",
        &[
            Need::Agent,
            Need::Loop,
            Need::Program("mkfs.ext4"),
            Need::FuseBlock,
        ],
        || isolated(hang),
    ),
];

const FAMILIES: [&str; 4] = [
    "container_fs_usage_bytes",
    "container_fs_limit_bytes",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
];
const SIZE: u64 = 64 << 20;

/// A device with an ext4 file system.
fn formatted() -> Result<Loop> {
    let device = Loop::new(SIZE)?;
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", &device.disk.0])
        .output()
        .context("mkfs.ext4")?;
    ensure!(output.status.success(), "mkfs.ext4: {output:?}");
    Ok(device)
}

/// Calls statvfs(3). The values are in the order of [`FAMILIES`].
fn statvfs(path: &Path) -> Result<[f64; 4]> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an all-zero statvfs is valid, and the path is NUL-terminated.
    let (result, info) = unsafe {
        let mut info: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut info), info)
    };
    ensure!(result == 0, "statvfs: {}", std::io::Error::last_os_error());
    let bytes = |blocks: u64| (blocks * info.f_frsize) as f64;
    Ok([
        bytes(info.f_blocks - info.f_bfree),
        bytes(info.f_blocks),
        info.f_ffree as f64,
        info.f_files as f64,
    ])
}

fn check(metrics: &Metrics, device: &str, expected: [f64; 4]) -> Result<()> {
    for (family, expected) in FAMILIES.iter().zip(expected) {
        let found = metrics.get(family, &[("id", "/"), ("device", device)])?;
        same(&format!("{family} of {device}"), found, expected)?;
    }
    Ok(())
}

fn absent(metrics: &Metrics, device: &str) -> Result<()> {
    for family in FAMILIES {
        ensure!(
            !metrics.has(family, &[("device", device)]),
            "{family} of {device}, which is not there"
        );
    }
    Ok(())
}

fn errors(metrics: &Metrics) -> Result<f64> {
    metrics.get("cgmeter_source_errors_total", &[("source", "filesystem")])
}

fn device() -> Result<()> {
    let agent = Agent::start(&[])?;
    let folder = Folder::new("filesystem")?;
    let point = folder.folder("with a space")?;
    let device = formatted()?;
    let name = &device.disk.0;
    absent(&agent.scrape()?, name)?;
    mount(
        Some(Path::new(&device.disk.0)),
        &point,
        Some(c"ext4"),
        0,
        "",
    )?;
    let empty = statvfs(&point)?;
    check(&agent.scrape()?, name, empty)?;
    ensure!(empty[1] > SIZE as f64 / 2.0, "{empty:?}");
    let mut file = fs::File::create(point.join("file"))?;
    file.write_all(&vec![1; 5 << 20])?;
    file.sync_all()?;
    drop(file);
    let full = statvfs(&point)?;
    ensure!(full[0] >= empty[0] + (5 << 20) as f64, "{full:?}");
    same("free inodes", full[2], empty[2] - 1.0)?;
    check(&agent.scrape()?, name, full)?;
    unmount(&point)?;
    let metrics = agent.scrape()?;
    absent(&metrics, name)?;
    same("errors", errors(&metrics)?, 0.0)
}

fn binds() -> Result<()> {
    let folder = Folder::new("binds")?;
    let (point, bind, shadow) = (
        folder.folder("point")?,
        folder.folder("bind")?,
        folder.folder("shadow")?,
    );
    let device = formatted()?;
    mount(
        Some(Path::new(&device.disk.0)),
        &point,
        Some(c"ext4"),
        0,
        "",
    )?;
    fs::create_dir(point.join("inside"))?;
    mount(Some(&point.join("inside")), &bind, None, libc::MS_BIND, "")?;
    let agent = Agent::start(&[])?;
    check(&agent.scrape()?, &device.disk.0, statvfs(&point)?)?;
    // Another file system now hides the first mount point. The device is still visible at the
    // second.
    mount(Some(&shadow), &point, Some(c"tmpfs"), 0, "")?;
    let metrics = agent.scrape()?;
    check(&metrics, &device.disk.0, statvfs(&bind)?)?;
    same("errors", errors(&metrics)?, 0.0)?;
    unmount(&point)?;
    unmount(&bind)?;
    unmount(&point)
}

/// A FUSE file system on a block device. Its server is this test, which never answers, so
/// statvfs(3) waits until the server ends.
fn hang() -> Result<()> {
    let folder = Folder::new("hang")?;
    let (good, bad) = (folder.folder("good")?, folder.folder("bad")?);
    let device = formatted()?;
    mount(Some(Path::new(&device.disk.0)), &good, Some(c"ext4"), 0, "")?;
    let agent = Agent::start(&[])?;
    same("errors", errors(&agent.scrape()?)?, 0.0)?;

    let hanging = Loop::new(SIZE)?;
    let (server, options) = fuse("40000")?;
    mount(
        Some(Path::new(&hanging.disk.0)),
        &bad,
        Some(c"fuseblk"),
        libc::MS_NOSUID | libc::MS_NODEV,
        &options,
    )
    .context("mounting a FUSE file system")?;
    for round in 1..=3 {
        let metrics = agent.scrape()?;
        check(&metrics, &device.disk.0, statvfs(&good)?)?;
        absent(&metrics, &hanging.disk.0)?;
        same("errors", errors(&metrics)?, f64::from(round))?;
        metrics.scrape_error(1.0)?;
    }
    // The server ends, and so does the wait. The file system reports an error until it is
    // unmounted.
    drop(server);
    let deadline = Instant::now() + Duration::from_secs(20);
    let wait = |what: &str| -> Result<()> {
        ensure!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    };
    // EBUSY until the waiting thread has left.
    while unmount(&bad).is_err() {
        wait("the file system stays in use")?;
    }
    while agent.scrape()?.get("container_scrape_error", &[])? != 0.0 {
        wait("still an error")?;
    }
    let metrics = agent.scrape()?;
    check(&metrics, &device.disk.0, statvfs(&good)?)?;
    absent(&metrics, &hanging.disk.0)
}
