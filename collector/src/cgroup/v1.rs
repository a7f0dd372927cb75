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
pub struct V1Paths {
    paths: HashMap<u64, Vec<u8>>,
    /// Whether a cgroup was renamed since somebody asked.
    renamed: bool,
    /// Those of cgroups that an earlier agent knew and that are gone.
    earlier: HashMap<u64, Vec<u8>>,
}

impl V1Paths {
    /// Makes the paths of the cgroups that a walk found.
    pub fn new(found: Vec<Found>) -> Self {
        let paths = found.into_iter().map(|found| (found.id, found.path));
        Self {
            paths: paths.collect(),
            ..Self::default()
        }
    }

    /// All cgroups and their paths.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.paths.iter().map(|(&id, path)| (id, path.as_slice()))
    }

    /// Whether a cgroup was renamed since the last call.
    pub fn take_renamed(&mut self) -> bool {
        std::mem::take(&mut self.renamed)
    }

    /// Takes over a cgroup from an earlier agent. If it is gone, its removal may be still to be reported.
    pub fn recall(&mut self, id: u64, path: Vec<u8>) {
        if !self.paths.contains_key(&id) {
            self.earlier.insert(id, path);
        }
    }

    /// All removals that an earlier agent has not heard of are reported.
    pub fn forget_earlier(&mut self) {
        self.earlier = HashMap::new();
    }

    /// The path of a cgroup.
    pub fn get(&self, id: u64) -> Option<&[u8]> {
        let path = self.paths.get(&id).or_else(|| self.earlier.get(&id));
        path.map(Vec::as_slice)
    }

    /// Notes that a cgroup was made or renamed. Does nothing if the parent isn't known, because it
    /// is outside the root that the agent was given.
    pub fn place(&mut self, id: u64, parent: u64, name: &[u8]) {
        let Some(parent) = self.paths.get(&parent) else {
            return;
        };
        let path = join(parent, name);
        if let Some(before) = self.paths.insert(id, path.clone())
            && before != path
        {
            self.renamed = true;
            self.move_below(&before, &path);
        }
    }

    /// Gives what is below a renamed cgroup its new path.
    fn move_below(&mut self, before: &[u8], now: &[u8]) {
        for path in self.paths.values_mut() {
            if let Some(rest) = path.strip_prefix(before)
                && rest.starts_with(b"/")
            {
                *path = [now, rest].concat();
            }
        }
    }

    /// Forgets a cgroup that was removed; its path.
    pub fn remove(&mut self, id: u64) -> Option<Vec<u8>> {
        let earlier = || self.earlier.remove(&id);
        self.paths.remove(&id).or_else(earlier)
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
    fn removals_that_nobody_has_heard_of_have_their_paths() {
        let mut paths = paths();
        paths.recall(3, b"/another".to_vec());
        paths.recall(20, b"/gone".to_vec());
        paths.recall(21, b"/gone/too".to_vec());
        assert_eq!(path(&paths, 20), Some("/gone"));
        assert_eq!(path(&paths, 3), Some("/a/b"));
        assert_eq!(paths.remove(20).as_deref(), Some(&b"/gone"[..]));
        assert_eq!(paths.remove(20), None);
        paths.forget_earlier();
        assert_eq!(paths.remove(21), None);
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
