//! Walking a hierarchy: once at the start, and again when events were lost.

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

/// A cgroup that a walk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Cgroup id: the directory's inode number.
    pub id: u64,
    /// The parent's id; 0 for the root of the walk.
    pub parent: u64,
    /// Directory name; empty for the root.
    pub name: Vec<u8>,
    /// Path below the root, `/` for the root itself.
    pub path: Vec<u8>,
}

/// An entry of a made-up hierarchy. The tree takes paths from parents and names.
#[cfg(test)]
pub(crate) fn found(id: u64, parent: u64, name: &str) -> Found {
    Found {
        id,
        parent,
        name: name.into(),
        path: Vec::new(),
    }
}

/// A path and a name below it.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = if path == b"/" {
        Vec::new()
    } else {
        path.to_vec()
    };
    joined.push(b'/');
    joined.extend_from_slice(name);
    joined
}

/// Every cgroup below `root`, parents before children. A cgroup that is removed meanwhile is left
/// out.
///
/// # Errors
///
/// When the root can't be read.
pub fn walk(root: &Path) -> io::Result<Vec<Found>> {
    let id = fs::metadata(root)?.ino();
    let mut found = vec![Found {
        id,
        parent: 0,
        name: Vec::new(),
        path: b"/".to_vec(),
    }];
    let mut at = 0;
    while at < found.len() {
        let (parent, path) = (found[at].id, found[at].path.clone());
        let relative = Path::new(std::ffi::OsStr::from_bytes(
            path.get(1..).unwrap_or_default(),
        ));
        at += 1;
        let entries = match fs::read_dir(root.join(relative)) {
            Ok(entries) => entries,
            Err(error) if at == 1 => return Err(error),
            Err(_) => continue,
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let name = entry.file_name().as_bytes().to_vec();
            found.push(Found {
                id: metadata.ino(),
                parent,
                path: join(&path, &name),
                name,
            });
        }
    }
    Ok(found)
}
