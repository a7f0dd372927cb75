//! Cgroup lifecycle, as sent over the ring buffer.

use core::mem::offset_of;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::cgroup_iterator::CgroupRecord;

/// Longest name of a cgroup directory (NAME_MAX), with its terminating 0.
pub const NAME_LEN: usize = 256;

/// What happened to a cgroup.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupEventKind {
    /// `cgroup_mkdir`
    Made = 1,
    /// `cgroup_rmdir`
    Removed = 2,
    /// `cgroup_rename` (cgroup v1 only)
    Renamed = 3,
    /// A process with several threads was moved into the cgroup (`cgroup_attach_task`).
    ThreadsMoved = 4,
}

/// One lifecycle event. The path is the parent's and `name`: the tracepoint's own path argument
/// is cut at 1,024 bytes (kernel/cgroup/cgroup.c, TRACE_CGROUP_PATH_LEN).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct CgroupEvent {
    /// A [`CgroupEventKind`].
    pub kind: u32,
    /// `cgroup_root.hierarchy_id`; 0 is cgroup2 (the default hierarchy).
    pub hierarchy: u32,
    /// Cgroup id (`kernfs_node.id`).
    pub id: u64,
    /// The parent's cgroup id.
    pub parent: u64,
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// Bytes of `name` that are used, without the terminating 0.
    pub name_len: u32,
    /// Keeps the layout explicit.
    pub reserved: u32,
    /// Directory name, any bytes but 0 and '/'.
    pub name: [u8; NAME_LEN],
}

const _: () = assert!(size_of::<CgroupEvent>() == 40 + NAME_LEN);

/// The event of [`CgroupEventKind::Removed`], with what the kernel had counted of the cgroup until then.
///
/// A message ends where there is nothing more to be said: before the record if none is wanted, else before
/// what the controllers that the cgroup doesn't have would say.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RemovedEvent {
    /// [`CgroupEventKind::Removed`].
    pub kind: u32,
    /// `cgroup_root.hierarchy_id`; 0 is cgroup2 (the default hierarchy).
    pub hierarchy: u32,
    /// Cgroup id.
    pub id: u64,
    /// CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// The final record.
    pub record: CgroupRecord,
}

/// Length of such a message without a record, bytes.
pub const REMOVED_ALONE: usize = offset_of!(RemovedEvent, record);
/// Length of one of a cgroup without controllers, bytes.
pub const REMOVED_BASE: usize = REMOVED_ALONE + offset_of!(CgroupRecord, quota_ns);
/// Length of one with at most the cpu and pids controllers, bytes.
pub const REMOVED_SHORT: usize = REMOVED_ALONE + offset_of!(CgroupRecord, hugetlb);

impl RemovedEvent {
    /// A message, and whether it has a record. What a message leaves out is 0. `None` if it is none.
    #[must_use]
    pub fn read(message: &[u8]) -> Option<(Self, bool)> {
        let mut event = Self::new_zeroed();
        let length = message.len().min(size_of::<Self>());
        event
            .as_mut_bytes()
            .get_mut(..length)?
            .copy_from_slice(message.get(..length)?);
        let is_one = length >= REMOVED_ALONE && event.kind == CgroupEventKind::Removed as u32;
        is_one.then_some((event, length >= REMOVED_BASE))
    }
}

const _: () = assert!(REMOVED_ALONE == 24);
const _: () = assert!(size_of::<RemovedEvent>() == REMOVED_ALONE + size_of::<CgroupRecord>());

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut event = RemovedEvent::new_zeroed();
        event.kind = CgroupEventKind::Removed as u32;
        event.id = 7;
        event.record.usage_ns = 8;
        event.record.memory.low = 9;
        event.as_bytes()[..length].to_vec()
    }

    #[test]
    fn what_a_message_leaves_out_is_0() {
        let read = |length| RemovedEvent::read(&message(length)).expect("a message");
        let (event, has_record) = read(REMOVED_ALONE);
        assert_eq!((event.id, event.record.usage_ns, has_record), (7, 0, false));
        for length in [REMOVED_BASE, REMOVED_SHORT] {
            let (event, has_record) = read(length);
            let found = (event.record.usage_ns, event.record.memory.low, has_record);
            assert_eq!(found, (8, 0, true), "{length}");
        }
        let (event, has_record) = read(size_of::<RemovedEvent>());
        assert_eq!((event.record.memory.low, has_record), (9, true));
    }

    #[test]
    fn other_messages_are_none() {
        assert!(RemovedEvent::read(&[]).is_none());
        assert!(RemovedEvent::read(&message(REMOVED_ALONE - 1)).is_none());
        let mut made = message(size_of::<RemovedEvent>());
        made[0] = CgroupEventKind::Made as u8;
        assert!(RemovedEvent::read(&made).is_none());
    }
}
