//! Paths of a v1 hierarchy's cgroups.
//!
//! A v1 cgroup is joined with the cgroup2 one of the same path. Its events carry ids, not paths.
//! Unlike cgroup2's, v1 cgroups can be renamed (kernel/cgroup/cgroup-v1.c, `cgroup1_rename`, Linux
//! 6.18: within their parent only; `cgroup_kf_syscall_ops` of cgroup2 has no rename).
//!
//! Invariant: every path consists of the present names of the cgroups above.

use std::collections::HashMap;

use super::walk::{Found, join};

/// Paths by cgroup id.
#[derive(Clone, Debug, Default)]
pub struct V1Paths(HashMap<u64, Vec<u8>>);

impl V1Paths {
    /// Makes the paths of the cgroups that a walk found.
    pub fn new(found: Vec<Found>) -> Self {
        let paths = found.into_iter().map(|found| (found.id, found.path));
        Self(paths.collect())
    }

    /// The path of a cgroup.
    pub fn get(&self, id: u64) -> Option<&[u8]> {
        self.0.get(&id).map(Vec::as_slice)
    }

    /// Notes that a cgroup was made or renamed. Does nothing if the parent isn't known, because it
    /// is outside the root that the agent was given.
    pub fn place(&mut self, id: u64, parent: u64, name: &[u8]) {
        let Some(parent) = self.0.get(&parent) else {
            return;
        };
        let path = join(parent, name);
        if let Some(before) = self.0.insert(id, path.clone())
            && before != path
        {
            self.move_below(&before, &path);
        }
    }

    /// Gives what is below a renamed cgroup its new path.
    fn move_below(&mut self, before: &[u8], now: &[u8]) {
        for path in self.0.values_mut() {
            if let Some(rest) = path.strip_prefix(before)
                && rest.starts_with(b"/")
            {
                *path = [now, rest].concat();
            }
        }
    }

    /// Forgets a cgroup that was removed; its path.
    pub fn remove(&mut self, id: u64) -> Option<Vec<u8>> {
        self.0.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/`, `/a`, `/a/b`, `/a/b/c` and `/ab`, with ids from 1.
    fn paths() -> V1Paths {
        let mut paths = V1Paths::new(vec![Found {
            id: 1,
            parent: 0,
            name: Vec::new(),
            path: b"/".to_vec(),
        }]);
        for (id, parent, name) in [(2, 1, "a"), (3, 2, "b"), (4, 3, "c"), (5, 1, "ab")] {
            paths.place(id, parent, name.as_bytes());
        }
        paths
    }

    fn path(paths: &V1Paths, id: u64) -> Option<&str> {
        std::str::from_utf8(paths.get(id)?).ok()
    }

    #[test]
    fn cgroups_come_and_go() {
        let mut paths = paths();
        assert_eq!(path(&paths, 4), Some("/a/b/c"));
        assert_eq!(paths.remove(4).as_deref(), Some(&b"/a/b/c"[..]));
        assert_eq!(path(&paths, 4), None);
        assert_eq!(paths.remove(4), None);
        // Its parent was never reported.
        paths.place(7, 6, b"x");
        assert_eq!(path(&paths, 7), None);
    }

    #[test]
    fn a_renamed_v1_cgroup_takes_its_descendants_along() {
        let mut paths = paths();
        paths.place(2, 1, b"x");
        assert_eq!(path(&paths, 2), Some("/x"));
        assert_eq!(path(&paths, 3), Some("/x/b"));
        assert_eq!(path(&paths, 4), Some("/x/b/c"));
        assert_eq!(path(&paths, 5), Some("/ab"), "no descendant of /a");
        // Further down, with siblings of the same beginning, and back.
        paths.place(6, 2, b"bb");
        paths.place(3, 2, b"y");
        assert_eq!(path(&paths, 4), Some("/x/y/c"));
        assert_eq!(path(&paths, 6), Some("/x/bb"));
        paths.place(2, 1, b"a");
        assert_eq!(path(&paths, 4), Some("/a/y/c"));
        assert_eq!(paths.remove(4).as_deref(), Some(&b"/a/y/c"[..]));
    }

    #[test]
    fn a_renamed_v1_cgroup_leaves_its_old_path_to_others() {
        let mut paths = paths();
        paths.place(2, 1, b"x");
        paths.place(8, 1, b"a");
        paths.place(9, 8, b"b");
        paths.place(8, 1, b"z");
        assert_eq!(path(&paths, 9), Some("/z/b"));
        assert_eq!(path(&paths, 3), Some("/x/b"));
    }
}
