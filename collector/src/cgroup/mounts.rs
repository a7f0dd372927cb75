//! Where the hierarchies are mounted: pure cgroup2, or a hybrid host with v1 controllers beside.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The directory where it is mounted.
    pub path: PathBuf,
    /// `cgroup_root.hierarchy_id`: 0 for cgroup2.
    pub hierarchy: u32,
}

/// A mounted v1 hierarchy with controllers that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Mount {
    /// Its mount point and number.
    pub mount: Mount,
    /// Its controllers, as far as the agent reads them.
    pub controllers: Vec<&'static str>,
}

/// Controllers whose statistics are read, in cgroup2 or v1.
pub const CONTROLLERS: &[&str] = &["cpu", "memory", "pids", "hugetlb"];

/// The hierarchies that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    /// cgroup2, the one that BPF knows tasks by.
    pub unified: Mount,
    /// v1 hierarchies, on hybrid hosts.
    pub v1: Vec<V1Mount>,
}

/// Why there is no cgroup tree to follow.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No cgroup2 is mounted.
    #[error(
        "no cgroup2 hierarchy is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) \
         or name it with --cgroup.root"
    )]
    NoUnified,
    /// `--cgroup.root` is not a cgroup2 directory.
    #[error(
        "--cgroup.root {0}: not a cgroup2 directory; give the mount point of a cgroup2 hierarchy"
    )]
    NotUnified(PathBuf),
    /// A file or directory can't be read.
    #[error("cannot read {path}: {error}")]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel answered.
        error: io::Error,
    },
}

impl Hierarchies {
    /// Finds the hierarchies, cgroup2 at `root` if one is given.
    ///
    /// # Errors
    ///
    /// When there is no cgroup2, or it can't be read.
    pub fn find(root: Option<&Path>) -> Result<Self, MountError> {
        let read = |path: &str| {
            std::fs::read(path).map_err(|error| MountError::Unreadable {
                path: PathBuf::from(path),
                error,
            })
        };
        let mountinfo = read("/proc/self/mountinfo")?;
        // Absent on kernels that have dropped it; v1 is absent there as well.
        let cgroups = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
        let (unified, v1) = parse(&mountinfo, &cgroups);
        let path = match root {
            Some(root) => {
                if !is_cgroup2(root)? {
                    return Err(MountError::NotUnified(root.to_owned()));
                }
                root.to_owned()
            }
            None => unified.ok_or(MountError::NoUnified)?,
        };
        std::fs::read_dir(&path).map_err(|error| MountError::Unreadable {
            path: path.clone(),
            error,
        })?;
        Ok(Self {
            unified: Mount { path, hierarchy: 0 },
            v1,
        })
    }
}

fn is_cgroup2(path: &Path) -> Result<bool, MountError> {
    let unreadable = |error| MountError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|error| unreadable(io::Error::other(error)))?;
    crate::kernel::filesystem_type(&name)
        .map(|kind| kind == libc::CGROUP2_SUPER_MAGIC)
        .map_err(unreadable)
}

/// The first cgroup2 mount, and the v1 mounts with controllers that matter, each hierarchy once.
fn parse(mountinfo: &[u8], cgroups: &str) -> (Option<PathBuf>, Vec<V1Mount>) {
    let mut unified = None;
    let mut v1: Vec<V1Mount> = Vec::new();
    for line in mountinfo.split(|&byte| byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let Some(dash) = fields.iter().position(|&field| field == b"-") else {
            continue;
        };
        let (Some(mount_point), Some(&kind), Some(&options)) =
            (fields.get(4), fields.get(dash + 1), fields.get(dash + 3))
        else {
            continue;
        };
        let path = PathBuf::from(OsString::from_vec(unescape(mount_point)));
        if kind == b"cgroup2" && unified.is_none() {
            unified = Some(path);
        } else if kind == b"cgroup" {
            let has = |name: &str| {
                options
                    .split(|&byte| byte == b',')
                    .any(|option| option == name.as_bytes())
            };
            let controllers: Vec<&str> = CONTROLLERS
                .iter()
                .copied()
                .filter(|name| has(name))
                .collect();
            if let Some(first) = controllers.first()
                && let Some(hierarchy) = hierarchy_of(first, cgroups)
                && !v1.iter().any(|other| other.mount.hierarchy == hierarchy)
            {
                let mount = Mount { path, hierarchy };
                v1.push(V1Mount { mount, controllers });
            }
        }
    }
    (unified, v1)
}

/// Number of a controller's hierarchy: column 2 of /proc/cgroups.
fn hierarchy_of(controller: &str, cgroups: &str) -> Option<u32> {
    cgroups.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        (columns.next()? == controller).then(|| columns.next()?.parse().ok())?
    })
}

/// mountinfo writes blanks and backslashes in octal.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field
            .get(at + 1..at + 4)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if field[at] == b'\\' => {
                bytes.push(byte);
                at += 4;
            }
            _ => {
                bytes.push(field[at]);
                at += 1;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const CGROUPS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
                           cpuset\t3\t1\t1\ncpu\t1\t1\t1\ncpuacct\t2\t1\t1\nmemory\t5\t1\t1\n";

    #[test]
    fn pure_cgroup2() {
        let text = b"30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let (unified, v1) = parse(text, CGROUPS);
        assert_eq!(unified, Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(v1, []);
    }

    #[test]
    fn hybrid() {
        let text = b"31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                     32 30 0:28 / /sys/fs/cgroup/my\\040unified rw shared:4 - cgroup2 none rw\n\
                     33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     34 30 0:29 / /elsewhere rw - cgroup cgroup rw,memory\n";
        let (unified, v1) = parse(text, CGROUPS);
        assert_eq!(unified, Some(PathBuf::from("/sys/fs/cgroup/my unified")));
        let of = |path: &str, hierarchy, controllers: &[&'static str]| V1Mount {
            mount: Mount {
                path: PathBuf::from(path),
                hierarchy,
            },
            controllers: controllers.to_vec(),
        };
        assert_eq!(
            v1,
            [
                of("/sys/fs/cgroup/cpu,cpuacct", 1, &["cpu"]),
                of("/sys/fs/cgroup/memory", 5, &["memory"])
            ]
        );
    }

    #[test]
    fn cpuset_is_not_cpu() {
        let text = b"31 30 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";
        assert_eq!(parse(text, CGROUPS), (None, Vec::new()));
    }
}
