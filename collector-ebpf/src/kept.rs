//! Maps that agents alone use: what they note for the agents after them. They are here so that they are made and
//! pinned with the others. The loader sets `max_entries`.

use aya_ebpf::{btf_maps::HashMap, macros::btf_map};
use collector_common::kept::{Earlier, KeptKey, KeptPart};

use crate::maps::NO_PREALLOC;

/// By cgroup id, of cgroups that are older than the first agent.
#[btf_map]
pub static EARLIER: HashMap<u64, Earlier, 1, NO_PREALLOC> = HashMap::new();

/// What sources keep for cgroups that live.
#[btf_map]
pub static KEPT: HashMap<KeptKey, KeptPart, 1, NO_PREALLOC> = HashMap::new();
