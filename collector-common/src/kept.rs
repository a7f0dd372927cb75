//! What agents note for the agents after them. No program reads it; it is in maps because these live as long as
//! the cells do, and a value in a map is never half written.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// CPU time that a cgroup had used before the first agent started.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Earlier {
    /// The cgroup's parent: it has the time once the cgroup is gone. 0 for the root.
    pub parent: u64,
    /// CPU time of the cgroup itself, without its descendants', ns.
    pub run_ns: u64,
}

/// Number of words in a part of what is kept: with its key and what the kernel needs for each value of a hash, a part takes
/// 256 bytes.
pub const KEPT_WORDS: usize = 23;

/// For which cgroup a source keeps something.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct KeptKey {
    /// The cgroup's id.
    pub cgroup: u64,
    /// A digest of the source's name, 32 bits, and the number of the part.
    pub part: u64,
}

/// A part of what a source keeps for a cgroup. The first word is a digest of all parts; the second one of the first
/// part is the number of bytes in all: the words, packed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct KeptPart(pub [u64; KEPT_WORDS]);

const _: () = assert!(size_of::<Earlier>() == 16);
const _: () = assert!(size_of::<KeptKey>() == 16);
const _: () = assert!(size_of::<KeptPart>() == 184);
