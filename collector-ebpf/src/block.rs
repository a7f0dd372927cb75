//! Block I/O: bytes, requests, errors and latencies, by cgroup and disk.
//!
//! Hooks: `tp_btf/block_rq_complete` (block/blk-mq.c, `blk_update_request`, before the request's
//! bios are ended); `block_io_start` where a request is submitted (since 6.5; before that the first
//! of `block_rq_insert` and `block_rq_issue`); `block_bio_queue` and `block_bio_complete` for
//! drivers that take bios and make no requests (dm, md, zram).
//! Metrics: collector/src/source/block.rs. Oracle: tests/live/block.rs.
//!
//! A request carries what is needed: its clocks, its first bio, and through that the cgroup that the
//! kernel charges, which for written-back pages is the one that made them dirty. No request is
//! looked up by its address where the kernel charges cgroup2 at every leaf. Where it charges v1's
//! hierarchy, or an ancestor because the io controller is not enabled further down, the submitter
//! is remembered.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    btf_maps::LruHashMap,
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};
use collector_common::{
    block::{BlockOperation, BlockValue, DISCARD, FLUSH, READ, Submitter, WRITE},
    histogram,
    slot::ROOT_ID,
};

use crate::{
    generation,
    kernel::{AnyCgroup, Bio, Gendisk, Request, Task},
    keyed::{self, keyed},
    maps::Find,
    shared::{Shared, member},
    slot,
};

keyed!(
    Block,
    BlockValue,
    Block,
    BLOCK_TABLES,
    BLOCK_VALUES,
    FREE_BLOCK_VALUES,
    find_block_value,
    hand_over_block_value
);

/// By the address of a request. Requests are made once for each tag and used again, so their number
/// is bounded and an entry is mostly there already; the least recently used go first. The loader
/// sets `max_entries`.
#[btf_map]
static SUBMITTERS: LruHashMap<u64, Submitter, 1> = LruHashMap::new();

/// `RQF_FLUSH_SEQ`, which has moved between kernels.
#[unsafe(no_mangle)]
static RQF_FLUSH_SEQ: Global<u32> = Global::new(0);

/// The cgroup that I/O belongs to.
#[derive(Clone, Copy)]
struct Owner {
    id: u64,
    /// 0: unknown. Such a cgroup has had a slot.
    cgroup: AnyCgroup,
}

impl Owner {
    /// For I/O that is charged to no cgroup.
    const ROOT: Self = Self::by_id(ROOT_ID);

    const fn by_id(id: u64) -> Self {
        Self {
            id,
            cgroup: AnyCgroup(0),
        }
    }
}

/// The kind of an operation and its flags, `None` for commands that are not the block layer's own
/// (REQ_OP_DRV_IN, REQ_OP_DRV_OUT: SG_IO, NVMe administration), which the kernel doesn't count either.
/// Numbers are those of `enum req_op` (include/linux/blk_types.h), the same since 4.10.
#[inline(always)]
fn kind(flags: u32) -> Option<usize> {
    const REQ_OP_FLUSH: u32 = 2;
    const REQ_OP_DISCARD: u32 = 3;
    const REQ_OP_DRV_IN: u32 = 34;
    match operation(flags) {
        REQ_OP_FLUSH => Some(FLUSH),
        REQ_OP_DISCARD => Some(DISCARD),
        op if op >= REQ_OP_DRV_IN => None,
        op if op & 1 != 0 => Some(WRITE),
        _ => Some(READ),
    }
}

#[inline(always)]
fn operation(flags: u32) -> u32 {
    const REQ_OP_MASK: u32 = (1 << 8) - 1;
    flags & REQ_OP_MASK
}

const REQ_OP_WRITE: u32 = 1;

/// Some bytes of a request are complete, perhaps the last ones.
///
/// What needs a flush before or after its data completes twice: the data, while the request is in
/// the flush sequence, and then nothing, which ends it (block/blk-flush.c). A request that only
/// flushes is a write without pages. It is not counted as a write, because the flush command that
/// it waits for is counted as a flush.
#[btf_tracepoint(function = "block_rq_complete")]
pub fn block_rq_complete(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    // TP_PROTO(struct request *rq, blk_status_t error, unsigned int nr_bytes)
    let request = Request(ctx.arg::<*const c_void>(0));
    let failed = ctx.arg::<u8>(1) != 0;
    let bytes: u32 = ctx.arg(2);
    let flags = request.flags();
    let Some(kind) = kind(flags) else {
        return 0;
    };
    if kind == FLUSH {
        return flush(request, failed);
    }
    let Some(bio) = request.bio() else {
        return 0;
    };
    if bytes == 0 && operation(flags) == REQ_OP_WRITE && !bio.has_pages() {
        return 0;
    }
    let Some(to) = counters(owner(request, bio), request.disk(), kind) else {
        return 0;
    };
    member!(to.bytes).add(bytes.into());
    if request.state() & RQF_FLUSH_SEQ.load() == 0 {
        if bytes >= request.length() {
            time(to, request);
        }
        if failed {
            member!(to.errors).add(1);
        }
    }
    0
}

/// The flush machinery's own command: no bio, no bytes. It is charged to the owner of the request
/// that has waited for it longest. Other requests may share it.
///
/// Not inlined: it is rare beside the rest, and reads through unchecked pointers.
#[inline(never)]
fn flush(request: Request, failed: bool) -> i32 {
    let Some(to) = counters(flushed_for(request), request.disk(), FLUSH) else {
        return 0;
    };
    time(to, request);
    if failed {
        member!(to.errors).add(1);
    }
    0
}

#[inline(always)]
fn flushed_for(request: Request) -> Owner {
    let Some(waiting) = request.flushed_for() else {
        return Owner::ROOT;
    };
    let mut charged = Owner::by_id(0);
    if Bio::are_charged() {
        let cgroup = waiting.charged();
        if cgroup.hierarchy() == 0 {
            charged = Owner {
                id: cgroup.id(),
                cgroup: AnyCgroup(cgroup.number()),
            };
            if charged.id != 0 && !cgroup.has_descendants() {
                return charged;
            }
        }
    }
    let submitter = remembered(waiting.number(), waiting.start_ns());
    first_known(submitter, charged)
}

/// A request has been made from a bio, by the task that submits it (`blk_account_io_start`, once
/// each time that the request is used).
#[btf_tracepoint(function = "block_io_start")]
pub fn block_submit(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    // TP_PROTO(struct request *rq)
    // No stamp: `start_time_ns` may still be that of the last use (6.18).
    remember(Request(ctx.arg::<*const c_void>(0)), 0)
}

/// Before 6.5: a request is put into a queue, the first time by the task that submits it.
#[btf_tracepoint(function = "block_rq_insert")]
pub fn block_insert(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    // TP_PROTO(struct request *rq)
    let request = Request(ctx.arg::<*const c_void>(0));
    remember(request, request.start_ns())
}

/// Before 6.5: a request is given to its driver; by the task that submits it, if it was not put
/// into a queue before.
#[btf_tracepoint(function = "block_rq_issue")]
pub fn block_issue(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    // TP_PROTO(struct request *rq)
    let request = Request(ctx.arg::<*const c_void>(0));
    remember(request, request.start_ns())
}

/// Notes who submits a request, unless [`owner`] will find it by the cgroup that the kernel charges.
/// With a stamp, only the first time.
#[inline(always)]
fn remember(request: Request, stamp: u64) -> i32 {
    let Some(bio) = request.bio() else {
        return 0;
    };
    let task = Task::current();
    let cgroup = task.cgroup();
    let own = is_own(task, bio);
    if own && cgroup.has_io_controller() && !cgroup.has_descendants() {
        return 0;
    }
    if own {
        slot::prepare(cgroup);
    }
    let submitter = Submitter {
        cgroup: if own { cgroup.id() } else { 0 },
        start_ns: stamp,
    };
    let key = request.0 as u64;
    if let Some(known) = SUBMITTERS.find(key) {
        // A request has one submitter at a time.
        if stamp == 0 || member!(known.start_ns).get() != stamp {
            member!(known.cgroup).set(submitter.cgroup);
            member!(known.start_ns).set(submitter.start_ns);
        }
        return 0;
    }
    let _ = SUBMITTERS.insert(key, submitter, 0);
    0
}

/// Whether the task does this I/O for itself, as far as the kernel knows. The flusher, a loop
/// device's worker and the like do it for the cgroup that the bio is charged to.
#[inline(always)]
fn is_own(task: Task, bio: Bio) -> bool {
    !Bio::are_charged() || task.is_charged_by(bio.blkcg())
}

/// The cgroup2 cgroup that a completed request belongs to: the one that the kernel charges, if that
/// is a leaf of cgroup2, because then no other cgroup's I/O is charged to it; else the submitter's.
#[inline(always)]
fn owner(request: Request, bio: Bio) -> Owner {
    let mut charged = Owner::by_id(0);
    if Bio::are_charged() {
        let cgroup = bio.charged();
        if cgroup.hierarchy() == 0 {
            charged = Owner {
                id: cgroup.id(),
                cgroup: AnyCgroup(cgroup.0 as u64),
            };
            if charged.id != 0 && !cgroup.has_descendants() {
                return charged;
            }
        }
    }
    let submitter = remembered(request.0 as u64, request.start_ns());
    first_known(submitter, charged)
}

#[inline(always)]
fn first_known(submitter: u64, charged: Owner) -> Owner {
    if submitter != 0 {
        Owner::by_id(submitter)
    } else if charged.id != 0 {
        charged
    } else {
        Owner::ROOT
    }
}

/// Cgroup id of who submitted a request, 0 if that isn't known. When the request is used again, its
/// entry is written before it can complete again.
#[inline(always)]
fn remembered(request: u64, start_ns: u64) -> u64 {
    let Some(submitter) = SUBMITTERS.find(request) else {
        return 0;
    };
    let stamp = member!(submitter.start_ns).get();
    if stamp != 0 && stamp != start_ns {
        return 0;
    }
    member!(submitter.cgroup).get()
}

/// A bio is submitted, in the context of the submitter. Those for drivers that take requests are
/// counted when their request completes.
///
/// Bytes are counted here, because a driver may use up the bio's iterator, and split bios don't
/// pass here again. The time of submission is not stored, so there is no latency.
#[btf_tracepoint(function = "block_bio_queue")]
pub fn block_bio_queue(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    // TP_PROTO(struct bio *bio)
    let bio = Bio(ctx.arg::<*const c_void>(0));
    let disk = bio.disk();
    if disk.takes_requests() {
        return 0;
    }
    let Some(kind) = kind_of(bio) else {
        return 0;
    };
    let task = Task::current();
    let mut cgroup = task.cgroup();
    if Bio::are_charged() && !task.is_charged_by(bio.blkcg()) {
        let charged = bio.charged();
        if charged.hierarchy() == 0 && charged.id() != 0 {
            cgroup = charged;
        }
    }
    let owner = Owner {
        id: cgroup.id(),
        cgroup: AnyCgroup(cgroup.0 as u64),
    };
    let Some(to) = counters(owner, disk, kind) else {
        return 0;
    };
    member!(to.bytes).add(bio.size().into());
    member!(to.untimed).add(1);
    0
}

/// A bio has ended that never became part of a request: its error is counted. It belongs to the
/// cgroup that the kernel charges; the submitter is not noted.
#[btf_tracepoint(function = "block_bio_complete")]
pub fn block_bio_complete(ctx: BtfTracePointContext) -> i32 {
    if generation::is_other() {
        return 0;
    }
    // TP_PROTO(struct request_queue *q, struct bio *bio)
    let bio = Bio(ctx.arg::<*const c_void>(1));
    if bio.status() == 0 {
        return 0;
    }
    let disk = bio.disk();
    if disk.takes_requests() {
        return 0;
    }
    let Some(kind) = kind_of(bio) else {
        return 0;
    };
    let mut owner = Owner::ROOT;
    if Bio::are_charged() {
        let charged = bio.charged();
        if charged.hierarchy() == 0 && charged.id() != 0 {
            owner = Owner {
                id: charged.id(),
                cgroup: AnyCgroup(charged.0 as u64),
            };
        }
    }
    if let Some(to) = counters(owner, disk, kind) {
        member!(to.errors).add(1);
    }
    0
}

/// The kind of a bio: a write without pages is a flush.
#[inline(always)]
fn kind_of(bio: Bio) -> Option<usize> {
    let flags = bio.flags();
    if operation(flags) == REQ_OP_WRITE && !bio.has_pages() {
        return Some(FLUSH);
    }
    kind(flags)
}

#[inline(always)]
fn counters(owner: Owner, disk: Gendisk, kind: usize) -> Option<Shared<BlockOperation>> {
    let value = keyed::value::<Block>(owner.id, owner.cgroup, disk.number())?;
    Some(member!(value.operations).wrapped(kind))
}

/// Counts a request that is complete, by its times.
#[inline(always)]
fn time(to: Shared<BlockOperation>, request: Request) {
    let (start, issued) = (request.start_ns(), request.issued_ns());
    if start == 0 {
        member!(to.untimed).add(1);
        return;
    }
    // SAFETY: always allowed.
    let now = unsafe { bpf_ktime_get_ns() };
    // The kernel's clocks may differ by some nanoseconds (kernel/time/timekeeping.c, fast clocks).
    let latency = now.saturating_sub(start);
    member!(to.latency_ns).add(latency);
    if let Some(count) = member!(to.latency).at(histogram::bucket(latency) as usize) {
        count.add(1);
    }
    if issued == 0 {
        return;
    }
    let device = now.saturating_sub(issued);
    member!(to.device_ns).add(device);
    if let Some(count) = member!(to.device).at(histogram::bucket(device) as usize) {
        count.add(1);
    }
}
