//! Which cgroups are exported, and with which labels of their containers.

use super::{filter::Filter, identity::AllowList};

/// What is exported.
#[derive(Clone, Debug)]
pub struct Export {
    /// Which cgroups.
    pub filter: Filter,
    /// Which labels of their containers.
    pub labels: AllowList,
    /// How many cgroups at most (`--cgroup.export-max`); the excess counts in its parents.
    pub max: usize,
}

impl Default for Export {
    fn default() -> Self {
        Self::from(Filter::default())
    }
}

impl From<Filter> for Export {
    /// All that the filter admits, without labels of containers.
    fn from(filter: Filter) -> Self {
        Self {
            filter,
            labels: AllowList::default(),
            max: usize::MAX,
        }
    }
}
