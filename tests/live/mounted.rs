//! Mounts in a namespace that ends with the test.

use std::{
    ffi::{CStr, CString},
    fs::{File, OpenOptions},
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    ptr,
};

use anyhow::{Result, anyhow, ensure};

/// Runs a test in its own mount namespace. Processes that it starts are in it too.
pub fn isolated(test: fn() -> Result<()>) -> Result<()> {
    let run = move || -> Result<()> {
        // SAFETY: this affects only this thread and the processes that it starts.
        ensure(unsafe { libc::unshare(libc::CLONE_NEWNS) }, "unshare")?;
        mount(
            None,
            Path::new("/"),
            None,
            libc::MS_REC | libc::MS_PRIVATE,
            "",
        )?;
        test()
    };
    std::thread::spawn(run)
        .join()
        .map_err(|_| anyhow!("the test panicked"))?
}

fn ensure(result: libc::c_int, what: &str) -> Result<()> {
    ensure!(result == 0, "{what}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// A connection to FUSE for a server in this process, and the options with which its file system is mounted. The
/// root has this mode, in octal.
pub fn fuse(root_mode: &str) -> Result<(File, String)> {
    let connection = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode={root_mode},user_id=0,group_id=0,allow_other",
        connection.as_raw_fd()
    );
    Ok((connection, options))
}

/// Calls mount(2).
pub fn mount(
    source: Option<&Path>,
    point: &Path,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    data: &str,
) -> Result<()> {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let source = source.map(text).transpose()?;
    let (point, data) = (text(point)?, CString::new(data)?);
    // SAFETY: every string is NUL-terminated and outlives the call.
    let result = unsafe {
        libc::mount(
            source.as_ref().map_or(ptr::null(), |text| text.as_ptr()),
            point.as_ptr(),
            kind.map_or(ptr::null(), CStr::as_ptr),
            flags,
            data.as_ptr().cast(),
        )
    };
    ensure(result, "mount")
}

/// Calls umount2(2), without MNT_DETACH: it fails while the file system is in use.
pub fn unmount(point: &Path) -> Result<()> {
    let point = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: the string is NUL-terminated.
    ensure(unsafe { libc::umount2(point.as_ptr(), 0) }, "umount")
}

/// A folder that is removed when the test ends.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("cgmeter-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Creates a folder in it.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Unmount first, so that nothing inside a mount is removed. A busy mount stays.
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = unmount(&path);
            let _ = std::fs::remove_dir(&path).or_else(|_| std::fs::remove_file(&path));
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}
