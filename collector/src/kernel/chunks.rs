//! Arrays in an array of maps, made as they are needed and read through memory.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use zerocopy::FromBytes;

use super::{
    bpf,
    map::{Map, MapType, OpenError},
    mapping::Mapping,
};

/// Chunks of `T`s: each is an mmapable array of the same length in an array of maps. A value's number
/// is `chunk * per_chunk + entry`.
#[derive(Debug)]
pub struct Chunks<T> {
    name: &'static str,
    /// The array of maps: index to the descriptor of a map.
    outer: Map<u32, u32>,
    per_chunk: u32,
    chunks: Vec<Mapping<T>>,
}

impl<T: FromBytes> Chunks<T> {
    /// No chunks yet, in the array of maps `outer`; `name` is what each chunk's map is called.
    ///
    /// # Errors
    ///
    /// When `outer` is no array of maps, or its descriptor can't be duplicated.
    pub fn new(
        name: &'static str,
        outer: BorrowedFd<'_>,
        per_chunk: u32,
    ) -> Result<Self, OpenError> {
        Ok(Self {
            name,
            outer: Map::open(outer, MapType::ArrayOfMaps)?,
            per_chunk,
            chunks: Vec::new(),
        })
    }

    /// Chunks that so many values need.
    pub fn needed(&self, values: u64) -> usize {
        usize::try_from(values.div_ceil(u64::from(self.per_chunk))).unwrap_or(usize::MAX)
    }

    /// Number of chunks.
    pub fn count(&self) -> usize {
        self.chunks.len()
    }

    /// Makes chunks until there are so many. Where a kernel program may still use the old map of an
    /// index, the kernel waits for it (kernel/bpf/syscall.c, `maybe_wait_bpf_programs`).
    ///
    /// # Errors
    ///
    /// The kernel's: ENOMEM, E2BIG beyond the array's end, EINVAL when the object's programs expect
    /// chunks of another shape (kernel/bpf/map_in_map.c, `bpf_map_meta_equal`).
    pub fn grow_to(&mut self, chunks: usize) -> io::Result<()> {
        while self.chunks.len() < chunks {
            let inner = bpf::create_mmapable_array(self.name, size_of::<T>(), self.per_chunk)?;
            let mapping = Mapping::open(inner.as_fd()).map_err(io::Error::other)?;
            let index = u32::try_from(self.chunks.len()).map_err(io::Error::other)?;
            self.outer.insert(&index, &(inner.as_raw_fd() as u32))?;
            self.chunks.push(mapping);
        }
        Ok(())
    }

    /// Where a value is: its chunk and its entry there. `None` if there is no such chunk yet.
    pub fn place(&self, number: u32) -> Option<(&Mapping<T>, usize)> {
        let chunk = self.chunks.get((number / self.per_chunk) as usize)?;
        Some((chunk, (number % self.per_chunk) as usize))
    }

    /// Every value's place.
    pub fn places(&self) -> impl Iterator<Item = (&Mapping<T>, usize)> {
        self.chunks
            .iter()
            .flat_map(|chunk| (0..chunk.entries()).map(move |entry| (chunk, entry)))
    }

    /// Kernel memory of the chunks, bytes.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes() as u64).sum()
    }
}
