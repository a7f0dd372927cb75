//! Arrays in an array of maps, created as needed and read through memory.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use zerocopy::FromBytes;

use super::{
    bpf::{self, MapType},
    map::{Map, OpenError},
    mapping::Mapping,
};

/// Chunks of `T`. Each is an mmapable array of the same length, in an array of maps. The number of
/// a value is `chunk * per_chunk + entry`.
#[derive(Debug)]
pub struct MappedChunks<T> {
    name: &'static str,
    /// The array of maps: index to the descriptor of a map.
    outer: Map<u32, u32>,
    per_chunk: u32,
    chunks: Vec<Mapping<T>>,
}

impl<T: FromBytes> MappedChunks<T> {
    /// An empty list of chunks for the array of maps `outer`. Each chunk's map is called `name`.
    ///
    /// # Errors
    ///
    /// If `outer` is not an array of maps, or its descriptor can't be duplicated.
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

    /// Number of chunks for so many values.
    pub fn needed(&self, values: u64) -> usize {
        usize::try_from(values.div_ceil(u64::from(self.per_chunk))).unwrap_or(usize::MAX)
    }

    /// Number of chunks.
    pub fn count(&self) -> usize {
        self.chunks.len()
    }

    /// Creates chunks until there are so many. The kernel waits for programs that may still use the
    /// old map of an index (kernel/bpf/syscall.c, `maybe_wait_bpf_programs`).
    ///
    /// # Errors
    ///
    /// Errors of bpf(2): ENOMEM, E2BIG beyond the end of the array, EINVAL if the object's programs
    /// expect chunks of another shape (kernel/bpf/map_in_map.c, `bpf_map_meta_equal`).
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

    /// The chunk of a value and its entry there. `None` if the chunk does not exist yet.
    pub fn place(&self, number: u32) -> Option<(&Mapping<T>, usize)> {
        let chunk = self.chunks.get((number / self.per_chunk) as usize)?;
        Some((chunk, (number % self.per_chunk) as usize))
    }

    /// The positions of all values.
    pub fn places(&self) -> impl Iterator<Item = (&Mapping<T>, usize)> {
        self.chunks
            .iter()
            .flat_map(|chunk| (0..chunk.entries()).map(move |entry| (chunk, entry)))
    }

    /// Kernel memory used by the chunks, bytes.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes() as u64).sum()
    }
}
