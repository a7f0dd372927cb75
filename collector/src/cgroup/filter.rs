//! Which cgroups are exported. Those left out still count in their parents.

use regex::Regex;

/// `--cgroup.include` and `--cgroup.exclude`, matched anywhere in the path.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only matching paths are exported.
    pub include: Option<Regex>,
    /// Matching paths are not exported.
    pub exclude: Option<Regex>,
}

impl Filter {
    /// Whether a cgroup with this path is exported.
    pub fn admits(&self, path: &str) -> bool {
        self.include
            .as_ref()
            .is_none_or(|regex| regex.is_match(path))
            && !self
                .exclude
                .as_ref()
                .is_some_and(|regex| regex.is_match(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclude_wins_over_include() {
        let filter = Filter {
            include: Some(Regex::new("^/docker/").unwrap()),
            exclude: Some(Regex::new("tmp$").unwrap()),
        };
        assert!(filter.admits("/docker/a"));
        assert!(!filter.admits("/docker/tmp"));
        assert!(!filter.admits("/system.slice"));
        assert!(Filter::default().admits("/"));
    }
}
