//! Structures of the block layer.

use core::ffi::c_void;

use collector_common::field;

use super::{Cgroup, Task, read};

/// `struct request`
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Request(pub *const c_void);

/// `struct gendisk`
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Gendisk(pub *const c_void);

/// `struct bio`
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Bio(pub *const c_void);

/// A pointer that may be read by `bpf_probe_read_kernel` alone: a number to the verifier.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Unchecked(u64);

impl Task {
    /// Whether the task's I/O is charged to that css (`blkcg_css`, block/blk-cgroup.c): the io
    /// controller's of its css_set, in whichever hierarchy the controller is.
    #[inline(always)]
    pub fn is_charged_by(self, blkcg: *const c_void) -> bool {
        let css_set = load64!(self.0, field::TASK_CGROUPS) as *const c_void;
        load64!(css_set, field::CSS_SET_IO) == blkcg as u64
    }
}

impl Cgroup {
    /// Whether the io controller keeps statistics of this very cgroup: its own `subsys[io]`, which is
    /// null where the controller is not enabled, and in all of cgroup2 where it is a v1 one.
    #[inline(always)]
    pub fn has_io_controller(self) -> bool {
        has!(field::CGROUP_IO) && load64!(self.0, field::CGROUP_IO) != 0
    }
    #[inline(always)]
    pub fn has_descendants(self) -> bool {
        load32!(self.0, field::CGROUP_DESCENDANTS) != 0
    }
}

impl Request {
    /// Operation and flags (`blk_opf_t`).
    #[inline(always)]
    pub fn flags(self) -> u32 {
        load32!(self.0, field::REQUEST_FLAGS)
    }
    /// The request's flags (`rq_flags`), a combination of `RQF_*`.
    #[inline(always)]
    pub fn state(self) -> u32 {
        load32!(self.0, field::REQUEST_STATE)
    }
    /// Bytes that are not complete yet (`blk_rq_bytes`).
    #[inline(always)]
    pub fn length(self) -> u32 {
        load32!(self.0, field::REQUEST_LENGTH)
    }
    /// The first bio that is not complete yet, `None` for a request without data.
    #[inline(always)]
    pub fn bio(self) -> Option<Bio> {
        let bio = load64!(self.0, field::REQUEST_BIO) as *const c_void;
        if bio.is_null() { None } else { Some(Bio(bio)) }
    }
    /// When it was made, ns of `ktime_get_ns`; 0 where statistics are off.
    #[inline(always)]
    pub fn start_ns(self) -> u64 {
        load64!(self.0, field::REQUEST_START)
    }
    /// When it was given to the driver, ns; 0 where the kernel doesn't stamp it
    /// (`blk_mq_start_request`, block/blk-mq.c: QUEUE_FLAG_STATS, which write-back throttling, kyber
    /// and iocost set).
    #[inline(always)]
    pub fn issued_ns(self) -> u64 {
        load64!(self.0, field::REQUEST_ISSUED)
    }
    /// The whole disk that the queue is of.
    #[inline(always)]
    pub fn disk(self) -> Gendisk {
        let queue = load64!(self.0, field::REQUEST_QUEUE) as *const c_void;
        Gendisk(load64!(queue, field::QUEUE_DISK) as *const c_void)
    }
    /// If this is the flush command of the flush machinery, the request that has waited for it
    /// longest (block/blk-flush.c: `blk_kick_flush` sends the command on behalf of all that are in
    /// the pending list, which is the running one until `flush_end_io`).
    #[inline(always)]
    pub fn flushed_for(self) -> Option<Unchecked> {
        let hctx = load64!(self.0, field::REQUEST_HCTX) as *const c_void;
        let machinery = load64!(hctx, field::HCTX_FLUSH) as *const c_void;
        // Not for a clone that a stacking driver sends down.
        if load64!(machinery, field::FLUSH_REQUEST) != self.0 as u64 {
            return None;
        }
        // Two bit fields of one bit: pending, running.
        let index: u8 = read(address!(machinery, field::FLUSH_INDEX));
        const LIST_HEAD: u64 = 16;
        let list =
            address!(machinery, field::FLUSH_LISTS) as u64 + u64::from(index >> 1 & 1) * LIST_HEAD;
        let first: u64 = read(list as *const c_void);
        if first == 0 || first == list {
            return None;
        }
        Some(Unchecked(
            first - address!(0u64, field::REQUEST_FLUSH_LINK) as u64,
        ))
    }
}

impl Unchecked {
    /// The address as a number, for keys of maps.
    pub fn number(self) -> u64 {
        self.0
    }
    /// Of a request: see [`Request::start_ns`].
    #[inline(always)]
    pub fn start_ns(self) -> u64 {
        read(address!(self.0, field::REQUEST_START))
    }
    /// Of a request: the cgroup that its only bio is charged to. While the request waits for a flush
    /// after its data, the bio is `biotail` alone.
    #[inline(always)]
    pub fn charged(self) -> Self {
        let bio: u64 = read(address!(self.0, field::REQUEST_LAST_BIO));
        let blkg: u64 = read(address!(bio, field::BIO_BLKG));
        let blkcg: u64 = read(address!(blkg, field::BLKG_BLKCG));
        Self(read(address!(blkcg, field::BLKCG_CGROUP)))
    }
    /// Of a cgroup: see [`Cgroup::hierarchy`].
    #[inline(always)]
    pub fn hierarchy(self) -> u32 {
        let root: u64 = read(address!(self.0, field::CGROUP_ROOT));
        read(address!(root, field::CGROUP_ROOT_HIERARCHY))
    }
    /// Of a cgroup: see [`Cgroup::id`].
    #[inline(always)]
    pub fn id(self) -> u64 {
        let node: u64 = read(address!(self.0, field::CGROUP_KN));
        read(address!(node, field::KERNFS_ID))
    }
    /// Of a cgroup: see [`Cgroup::has_descendants`].
    #[inline(always)]
    pub fn has_descendants(self) -> bool {
        read::<u32>(address!(self.0, field::CGROUP_DESCENDANTS)) != 0
    }
}

impl Gendisk {
    /// Its `dev_t`. (That of `part0` is 0 for a hidden disk, a path of a multipath NVMe disk.)
    #[inline(always)]
    pub fn number(self) -> u64 {
        /// `MINORBITS` (include/linux/kdev_t.h)
        const MINOR_BITS: u32 = 20;
        let major = load32!(self.0, field::DISK_MAJOR);
        u64::from(major << MINOR_BITS | load32!(self.0, field::DISK_MINOR))
    }
    /// Whether its driver takes requests (`queue_is_mq`), or bios as they are.
    #[inline(always)]
    pub fn takes_requests(self) -> bool {
        let queue = load64!(self.0, field::DISK_QUEUE) as *const c_void;
        load64!(queue, field::QUEUE_MQ_OPS) != 0
    }
}

impl Bio {
    /// Operation and flags (`blk_opf_t`).
    #[inline(always)]
    pub fn flags(self) -> u32 {
        load32!(self.0, field::BIO_FLAGS)
    }
    /// Bytes that are not transferred yet.
    #[inline(always)]
    pub fn size(self) -> u32 {
        load32!(self.0, field::BIO_SIZE)
    }
    /// The bio's `blk_status_t`: 0 if it succeeded.
    #[inline(always)]
    pub fn status(self) -> u8 {
        load8!(self.0, field::BIO_STATUS)
    }
    /// Whether it has pages to read into or write from; size and vectors count down, this stays.
    #[inline(always)]
    pub fn has_pages(self) -> bool {
        load64!(self.0, field::BIO_VECS) != 0
    }
    #[inline(always)]
    pub fn disk(self) -> Gendisk {
        let device = load64!(self.0, field::BIO_BDEV) as *const c_void;
        Gendisk(load64!(device, field::BDEV_DISK) as *const c_void)
    }
    /// The io controller's css that the kernel charges; its first member, so a `struct blkcg`.
    #[inline(always)]
    pub fn blkcg(self) -> *const c_void {
        let blkg = load64!(self.0, field::BIO_BLKG) as *const c_void;
        load64!(blkg, field::BLKG_BLKCG) as *const c_void
    }
    /// The cgroup that the kernel charges, of whichever hierarchy the io controller is in.
    #[inline(always)]
    pub fn charged(self) -> Cgroup {
        Cgroup(load64!(self.blkcg(), field::BLKCG_CGROUP) as *const c_void)
    }
    /// Whether this kernel charges I/O to cgroups at all (CONFIG_BLK_CGROUP): a constant.
    #[inline(always)]
    pub fn are_charged() -> bool {
        has!(field::BIO_BLKG)
            && has!(field::BLKG_BLKCG)
            && has!(field::BLKCG_CGROUP)
            && has!(field::CSS_SET_IO)
    }
}
