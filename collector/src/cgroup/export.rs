//! Which cgroups are exported, and with which labels of their containers.

use super::{filter::Filter, identity::AllowList};

/// Which cgroups have series of their own, and with which labels.
#[derive(Clone, Debug)]
pub struct Export {
    /// Which cgroups may be exported.
    pub filter: Filter,
    /// Which labels of containers become labels of series.
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
