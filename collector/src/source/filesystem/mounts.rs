//! Mounted devices and their mount points.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::File,
    io::{self, Read, Seek},
    os::unix::fs::MetadataExt,
};

use super::prober::Probe;
use crate::{
    cgroup::unescape,
    kernel::system::{self, FileSystem},
};

/// A mounted device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    /// Name: the source of the mount.
    name: String,
    /// Mount points. Mounts of a subdirectory come last, as they may have their own quotas.
    points: Vec<(bool, CString)>,
    /// Device number of its files; `None` if the files have other numbers (btrfs).
    number: Option<(u32, u32)>,
}

/// Mounts of the agent's namespace. They are read again when they have changed.
#[derive(Debug)]
pub struct Mounts {
    mountinfo: File,
    read: bool,
    devices: Vec<Device>,
}

impl Mounts {
    /// Opens /proc/self/mountinfo.
    ///
    /// # Errors
    ///
    /// An error of open(2).
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            mountinfo: File::open("/proc/self/mountinfo")?,
            read: false,
            devices: Vec::new(),
        })
    }
}

impl Probe for Mounts {
    fn devices(&mut self) -> io::Result<Vec<String>> {
        // Checked first, so that a change during the reading is seen the next time.
        let changed = system::mounts_changed(&self.mountinfo);
        if changed || !self.read {
            self.read = false;
            self.mountinfo.rewind()?;
            let mut text = Vec::new();
            self.mountinfo.read_to_end(&mut text)?;
            self.devices = devices(&text);
            self.read = true;
        }
        Ok(self
            .devices
            .iter()
            .map(|device| device.name.clone())
            .collect())
    }

    fn probe(&mut self, name: &str) -> io::Result<FileSystem> {
        let device = self.devices.iter().find(|device| device.name == name);
        let device = device.ok_or(io::ErrorKind::NotFound)?;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for (_, point) in &device.points {
            // Another file system may be mounted on top.
            let shown = match number_at(point) {
                Ok(number) => number,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            if device.number.is_some_and(|number| number != shown) {
                last = io::Error::other("hidden by another mount");
                continue;
            }
            return system::file_system(point);
        }
        Err(last)
    }
}

/// Returns the device number of the file system at a path.
fn number_at(path: &CString) -> io::Result<(u32, u32)> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::OsStr::from_bytes(path.as_bytes());
    let device = std::fs::metadata(path)?.dev();
    Ok((libc::major(device), libc::minor(device)))
}

/// Whether a type is an image: read-only and always full. FUSE file systems other than fuseblk have
/// no block device.
fn is_left_out(kind: &[u8]) -> bool {
    const IMAGES: [&[u8]; 6] = [
        b"squashfs",
        b"erofs",
        b"iso9660",
        b"udf",
        b"cramfs",
        b"romfs",
    ];
    IMAGES.contains(&kind) || kind == b"fuse" || kind.starts_with(b"fuse.")
}

/// One mount.
struct Mount<'a> {
    number: (u32, u32),
    /// The directory of the file system that is mounted.
    root: &'a [u8],
    point: Vec<u8>,
    kind: &'a [u8],
    source: Vec<u8>,
}

impl<'a> Mount<'a> {
    /// Parses a line of mountinfo (Documentation/filesystems/proc.rst, 3.5): id, parent, device,
    /// root, mount point, options, tags, a dash, type, source, options.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let number = std::str::from_utf8(fields.nth(2)?).ok()?;
        let (major, minor) = number.split_once(':')?;
        let number = (major.parse().ok()?, minor.parse().ok()?);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        Some(Self {
            number,
            root,
            point: unescape(point),
            kind: fields.next()?,
            source: unescape(fields.next()?),
        })
    }
}

/// Returns the devices in a mountinfo, in its order.
fn devices(mountinfo: &[u8]) -> Vec<Device> {
    let mut found: Vec<Device> = Vec::new();
    // A device may be mounted under two names, or have two numbers under one name (btrfs).
    let mut by_name: HashMap<String, usize> = HashMap::new();
    let mut by_number: HashMap<(u32, u32), usize> = HashMap::new();
    for line in mountinfo.split(|&byte| byte == b'\n') {
        let Some(mount) = Mount::parse(line) else {
            continue;
        };
        if !mount.source.starts_with(b"/dev/") || is_left_out(mount.kind) {
            continue;
        }
        let Ok(point) = CString::new(mount.point) else {
            continue;
        };
        let name = String::from_utf8_lossy(&mount.source).into_owned();
        // Major number 0 means that the file system made the number up.
        let number = (mount.number.0 != 0).then_some(mount.number);
        let known = by_name
            .get(&name)
            .or_else(|| by_number.get(&number?))
            .copied();
        let at = known.unwrap_or(found.len());
        if at == found.len() {
            found.push(Device {
                name: name.clone(),
                points: Vec::new(),
                number,
            });
        }
        by_name.entry(name).or_insert(at);
        if let Some(number) = number {
            by_number.entry(number).or_insert(at);
        }
        found[at].points.push((mount.root != b"/", point));
    }
    for device in &mut found {
        device.points.sort_by_key(|(folder, _)| *folder);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = br"22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
31 27 254:0 /srv/data /data rw shared:1 master:2 - ext4 /dev/vda rw
32 27 7:3 / /snap/core/1 ro,nodev - squashfs /dev/loop3 ro
33 27 0:44 /@home /home rw - btrfs /dev/sdb2 rw,subvol=/@home
34 27 0:44 /@var /var rw - btrfs /dev/sdb2 rw,subvol=/@var
35 27 0:50 / /tmp rw - tmpfs tmpfs rw
36 27 253:1 /folder /mnt/one rw - xfs /dev/mapper/vg-data rw
37 27 253:1 / /mnt/with\040space rw - xfs /dev/mapper/vg-data rw
38 27 253:1 / /mnt/other rw - xfs /dev/dm-1 rw
39 27 11:0 / /cdrom ro - iso9660 /dev/sr0 ro
40 27 0:60 / /run/doc rw - fuse.portal /dev/fuse rw
41 27 0:61 / /net rw - nfs4 server:/export rw
42 27 8:17 / /usb rw - fuseblk /dev/sdc1 rw
";

    #[test]
    fn each_device_is_listed_once() {
        let devices = devices(MOUNTINFO);
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        let expected = ["/dev/vda", "/dev/sdb2", "/dev/mapper/vg-data", "/dev/sdc1"];
        assert_eq!(names, expected);
        assert_eq!(devices[0].number, Some((254, 0)));
        assert_eq!(devices[1].number, None, "made up by btrfs");
    }

    #[test]
    fn the_whole_file_system_comes_before_its_directories() {
        let devices = devices(MOUNTINFO);
        let points: Vec<&[u8]> = devices[2]
            .points
            .iter()
            .map(|(_, point)| point.as_bytes())
            .collect();
        let expected: [&[u8]; 3] = [b"/mnt/with space", b"/mnt/other", b"/mnt/one"];
        assert_eq!(points, expected);
    }

    #[test]
    fn malformed_lines_are_skipped() {
        assert!(devices(b"\n1 2 x:y / / rw - ext4 /dev/a rw\n1 2 8:1 / / rw\n").is_empty());
    }
}
