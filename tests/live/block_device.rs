//! Disks for the tests, their statistics in /proc/diskstats, and I/O of known size on them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail, ensure};

/// A disk's line in /proc/diskstats (Documentation/admin-guide/iostats.rst): requests, sectors of
/// 512 bytes, milliseconds. Flushes have no sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    pub reads: f64,
    pub read_sectors: f64,
    pub read_ms: f64,
    pub writes: f64,
    pub write_sectors: f64,
    pub write_ms: f64,
    pub discards: f64,
    pub discard_sectors: f64,
    pub flushes: f64,
}

impl std::ops::Sub for Stats {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            reads: self.reads - other.reads,
            read_sectors: self.read_sectors - other.read_sectors,
            read_ms: self.read_ms - other.read_ms,
            writes: self.writes - other.writes,
            write_sectors: self.write_sectors - other.write_sectors,
            write_ms: self.write_ms - other.write_ms,
            discards: self.discards - other.discards,
            discard_sectors: self.discard_sectors - other.discard_sectors,
            flushes: self.flushes - other.flushes,
        }
    }
}

/// A disk by its path.
#[derive(Clone, Debug)]
pub struct Disk(pub String);

impl Disk {
    /// The kernel's statistics of the disk.
    pub fn stats(&self) -> Result<Stats> {
        let name = self.0.trim_start_matches("/dev/");
        let text = fs::read_to_string("/proc/diskstats")?;
        let numbers: Vec<f64> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|words| words.get(2) == Some(&name))
            .with_context(|| format!("no {name} in /proc/diskstats"))?
            .iter()
            .skip(3)
            .filter_map(|word| word.parse().ok())
            .collect();
        ensure!(numbers.len() >= 17, "/proc/diskstats has no flushes");
        Ok(Stats {
            reads: numbers[0],
            read_sectors: numbers[2],
            read_ms: numbers[3],
            writes: numbers[4],
            write_sectors: numbers[6],
            write_ms: numbers[7],
            discards: numbers[11],
            discard_sectors: numbers[13],
            flushes: numbers[15],
        })
    }

    /// `MAJOR:MINOR`
    pub fn number(&self) -> Result<String> {
        let name = self.0.trim_start_matches("/dev/");
        let text = fs::read_to_string(format!("/sys/class/block/{name}/dev"))?;
        Ok(text.trim().to_owned())
    }
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

fn unique(what: &str) -> String {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("cgmeter-test-{what}-{}-{number}", std::process::id())
}

// include/uapi/linux/loop.h, fs.h
const LOOP_SET_FD: libc::c_ulong = 0x4C00;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_CTL_ADD: libc::c_ulong = 0x4C80;
const LOOP_CTL_REMOVE: libc::c_ulong = 0x4C81;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const BLKDISCARD: libc::c_ulong = 0x1277;

fn ioctl(file: &File, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: the argument is a number or the address of what the request takes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A loop device over its own file.
pub struct Loop {
    /// The device.
    pub disk: Disk,
    device: File,
    /// Its own file.
    file: Option<PathBuf>,
}

impl Loop {
    /// Creates a loop device of so many bytes over a sparse file.
    pub fn new(bytes: u64) -> Result<Self> {
        Self::over(std::env::temp_dir().join(unique("disk")), bytes)
    }

    /// Creates a loop device over the given file, which is created too.
    pub fn over(file: PathBuf, bytes: u64) -> Result<Self> {
        let backing = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&file)
            .with_context(|| format!("making {}", file.display()))?;
        let made = backing
            .set_len(bytes)
            .map_err(Into::into)
            .and_then(|()| attach(&backing));
        match made {
            Ok((disk, device)) => Ok(Self {
                disk,
                device,
                file: Some(file),
            }),
            Err(error) => {
                let _ = fs::remove_file(&file);
                Err(error)
            }
        }
    }

    /// Binds an open file, which stays, to a device.
    pub fn of(node: &NewLoop, backing: &File) -> Result<Self> {
        let (disk, device) = bind(node.0, backing)?;
        Ok(Self {
            disk,
            device,
            file: None,
        })
    }
}

fn loop_control() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
}

/// A loop device that was not there before, without a file, and is removed in the end. Its pages have belonged to
/// nobody: the kernel charges what is written back to the cgroup that has written to the device first.
pub struct NewLoop(u32);

impl NewLoop {
    pub fn new() -> Result<Self> {
        let control = loop_control()?;
        for number in 64..1024 {
            match ioctl(&control, LOOP_CTL_ADD, number.into()) {
                Ok(_) => return Ok(Self(number)),
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bail!("no loop device can be added");
    }
}

impl Drop for NewLoop {
    fn drop(&mut self) {
        let Ok(control) = loop_control() else {
            return;
        };
        // EBUSY until the kernel has closed it.
        for _ in 0..100 {
            if ioctl(&control, LOOP_CTL_REMOVE, self.0.into()).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// Binds a file to a free loop device.
fn attach(backing: &File) -> Result<(Disk, File)> {
    let control = loop_control()?;
    for _ in 0..100 {
        let number = ioctl(&control, LOOP_CTL_GET_FREE, 0)?;
        match bind(number as u32, backing) {
            // Another process was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            bound => return Ok(bound?),
        }
    }
    bail!("no loop device is free");
}

/// Binds a file to a loop device.
fn bind(number: u32, backing: &File) -> io::Result<(Disk, File)> {
    let path = format!("/dev/loop{number}");
    let device = OpenOptions::new().read(true).write(true).open(&path)?;
    ioctl(&device, LOOP_SET_FD, backing.as_raw_fd() as libc::c_ulong)?;
    Ok((Disk(path), device))
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = ioctl(&self.device, LOOP_CLR_FD, 0);
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }
}

/// A compressed memory disk. Its driver handles bios without requests.
pub struct Zram {
    /// The device.
    pub disk: Disk,
    number: String,
}

/// The directory for creating zram devices.
pub const ZRAM_CONTROL: &str = "/sys/class/zram-control";

impl Zram {
    /// Creates a zram device of so many bytes.
    pub fn new(bytes: u64) -> Result<Self> {
        let number = fs::read_to_string(format!("{ZRAM_CONTROL}/hot_add"))?;
        let number = number.trim().to_owned();
        let zram = Self {
            disk: Disk(format!("/dev/zram{number}")),
            number,
        };
        let size = format!("/sys/block/zram{}/disksize", zram.number);
        fs::write(size, bytes.to_string()).context("sizing a zram device")?;
        Ok(zram)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let _ = fs::write(format!("/sys/block/zram{}/reset", self.number), "1");
        let _ = fs::write(format!("{ZRAM_CONTROL}/hot_remove"), &self.number);
    }
}

/// A device-mapper disk, created by dmsetup from a table.
pub struct Mapped {
    /// The device.
    pub disk: Disk,
    name: String,
}

impl Mapped {
    /// Creates a disk from a table.
    pub fn new(table: &str) -> Result<Self> {
        let name = unique("mapped");
        run(Command::new("dmsetup").args(["create", &name, "--table", table]))?;
        let mut mapped = Self {
            disk: Disk(String::new()),
            name,
        };
        let info = ["info", "-c", "--noheadings", "-o", "blkdevname"];
        let named = run(Command::new("dmsetup").args(info).arg(&mapped.name))?;
        mapped.disk = Disk(format!("/dev/{}", named.trim()));
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = run(Command::new("dmsetup").args(["remove", "--retry", &self.name]));
    }
}

/// A file system mounted on its own folder.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Formats a disk with ext4 and mounts it.
    pub fn ext4(disk: &Disk) -> Result<Self> {
        // Initialise everything now, so that nothing is written later in the background.
        let eager = "lazy_itable_init=0,lazy_journal_init=0";
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", eager, &disk.0]))?;
        Self::new(&disk.0, "ext4", "")
    }

    /// Mounts a tmpfs of so many bytes.
    pub fn tmpfs(bytes: u64) -> Result<Self> {
        Self::new("tmpfs", "tmpfs", &format!("size={bytes}"))
    }

    fn new(source: &str, kind: &str, options: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(unique("mount"));
        fs::create_dir(&folder)?;
        let mounted = Self(folder);
        let string = |text: &str| std::ffi::CString::new(text);
        let (source, kind, options) = (string(source)?, string(kind)?, string(options)?);
        let path = std::ffi::CString::new(mounted.0.as_os_str().as_encoded_bytes())?;
        // SAFETY: all of them are NUL-terminated strings.
        let result = unsafe {
            libc::mount(
                source.as_ptr(),
                path.as_ptr(),
                kind.as_ptr(),
                0,
                options.as_ptr().cast(),
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error()).context("mounting");
        }
        Ok(mounted)
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes back all dirty data of the file system, with syncfs(2).
    pub fn sync(&self) -> Result<()> {
        let folder = File::open(&self.0)?;
        // SAFETY: the descriptor is open.
        if unsafe { libc::syncfs(folder.as_raw_fd()) } != 0 {
            return Err(io::Error::last_os_error()).context("syncfs");
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Ok(path) = std::ffi::CString::new(self.0.as_os_str().as_encoded_bytes()) {
            // SAFETY: the string is NUL-terminated.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
        let _ = fs::remove_dir(&self.0);
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Alignment of direct I/O.
const BLOCK: usize = 4096;

/// A worker's order: `read|write|fail|dirty PATH SIZE COUNT`, `discard PATH BYTES`, `fsync PATH`,
/// `mix PATH COUNT SEED`. Does not wait for the end of `read-ahead PATH BYTES`, `write-out PATH BYTES`.
pub fn order(words: &[&str]) -> Result<()> {
    let path = *words.get(1).context("no path")?;
    let number = |at: usize| -> Result<usize> { Ok(words.get(at).context("too few")?.parse()?) };
    match words[0] {
        "read" => direct(path, number(2)?, number(3)?, |file, buffer, at| {
            file.read_exact_at(buffer, at)
        }),
        "write" => direct(path, number(2)?, number(3)?, |file, buffer, at| {
            file.write_all_at(buffer, at)
        }),
        "fail" => direct(path, number(2)?, number(3)?, |file, buffer, at| match file
            .write_at(buffer, at)
        {
            Err(_) => Ok(()),
            Ok(_) => Err(io::Error::other("it did not fail")),
        }),
        "fail-read" => direct(path, number(2)?, number(3)?, |file, buffer, at| match file
            .read_at(buffer, at)
        {
            Err(_) => Ok(()),
            Ok(_) => Err(io::Error::other("it did not fail")),
        }),
        "dirty" => {
            let file = File::create(path)?;
            for at in 0..number(3)? {
                file.write_all_at(&vec![at as u8; number(2)?], (at * number(2)?) as u64)?;
            }
            Ok(())
        }
        "discard" => {
            let file = OpenOptions::new().write(true).open(path)?;
            let range = [0u64, number(2)? as u64];
            ioctl(&file, BLKDISCARD, (&raw const range) as libc::c_ulong)?;
            Ok(())
        }
        "read-ahead" => {
            let file = File::open(path)?;
            let length = number(2)? as libc::off_t;
            // SAFETY: the descriptor is open.
            match unsafe {
                libc::posix_fadvise(file.as_raw_fd(), 0, length, libc::POSIX_FADV_WILLNEED)
            } {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(error).into()),
            }
        }
        "write-out" => {
            let file = OpenOptions::new().write(true).open(path)?;
            let length = number(2)?;
            file.write_all_at(&vec![0x5a; length], 0)?;
            // SAFETY: the descriptor is open.
            let begun = unsafe {
                libc::sync_file_range(
                    file.as_raw_fd(),
                    0,
                    length as libc::off64_t,
                    libc::SYNC_FILE_RANGE_WRITE,
                )
            };
            ensure!(begun == 0, io::Error::last_os_error());
            Ok(())
        }
        "fsync" => Ok(OpenOptions::new().write(true).open(path)?.sync_all()?),
        "mix" => mix(path, number(2)?, number(3)? as u64),
        other => bail!("unknown I/O {other:?}"),
    }
}

fn open_direct(path: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}

/// Returns an aligned part of a buffer.
fn aligned(buffer: &mut [u8], size: usize) -> &mut [u8] {
    let start = buffer.as_ptr().align_offset(BLOCK);
    &mut buffer[start..start + size]
}

/// Sequential direct I/O from the start of a disk.
fn direct(
    path: &str,
    size: usize,
    count: usize,
    mut io: impl FnMut(&File, &mut [u8], u64) -> io::Result<()>,
) -> Result<()> {
    let file = open_direct(path)?;
    let mut buffer = vec![0x5a; size + BLOCK];
    let buffer = aligned(&mut buffer, size);
    for at in 0..count {
        io(&file, buffer, (at * size) as u64)?;
    }
    Ok(())
}

/// Four threads read and write varying sizes at varying offsets, and the kernel merges and splits
/// the requests. I/O in the first half of the disk is direct. In the second half it is cached, with
/// a sync now and then.
fn mix(path: &str, count: usize, seed: u64) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| scope.spawn(move || mix_one(path, count, seed * 4 + thread)))
            .collect();
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

fn mix_one(path: &str, count: usize, seed: u64) -> Result<()> {
    const LARGEST: usize = 512 << 10;
    let direct = seed.is_multiple_of(2);
    let file = if direct {
        open_direct(path)?
    } else {
        OpenOptions::new().read(true).write(true).open(path)?
    };
    let half = file_size(&file)? as usize / BLOCK / 2;
    let first = if direct { 0 } else { half };
    let mut buffer = vec![0xa5; LARGEST + BLOCK];
    let buffer = aligned(&mut buffer, LARGEST);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    for n in 0..count {
        let blocks = 1 + random(LARGEST / BLOCK);
        let at = ((first + random(half - blocks)) * BLOCK) as u64;
        let part = &mut buffer[..blocks * BLOCK];
        if random(2) == 0 {
            file.read_exact_at(part, at)?;
        } else {
            file.write_all_at(part, at)?;
        }
        if !direct && n % 16 == 15 {
            file.sync_all()?;
        }
    }
    if !direct {
        file.sync_all()?;
    }
    Ok(())
}

/// Size of a disk or a file, found by seeking.
fn file_size(file: &File) -> Result<u64> {
    Ok(io::Seek::seek(&mut &*file, io::SeekFrom::End(0))?)
}
