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
    pins::ChunkPins,
};

/// Chunks of `T`. Each is an mmapable array of the same length, in an array of maps. The number of
/// a value is `chunk * per_chunk + entry`.
#[derive(Debug)]
pub struct MappedChunks<T> {
    name: &'static str,
    pins: Option<ChunkPins>,
    /// The array of maps: index to the descriptor of a map.
    outer: Map<u32, u32>,
    per_chunk: u32,
    chunks: Vec<Mapping<T>>,
}

/// An array of maps in the kernel object.
#[derive(Debug)]
pub struct Outer<'a> {
    /// Its name, which its chunks have as well.
    pub name: &'static str,
    /// The array.
    pub map: BorrowedFd<'a>,
    /// Where its chunks are pinned.
    pub pins: Option<ChunkPins>,
}

impl<T: FromBytes> MappedChunks<T> {
    /// The chunks of an array of maps: those that are pinned, else none.
    ///
    /// # Errors
    ///
    /// If it is not an array of maps, its descriptor can't be duplicated, or a chunk that is pinned has
    /// another shape.
    pub fn new(outer: &Outer<'_>, per_chunk: u32) -> Result<Self, OpenError> {
        let mut chunks = Self {
            name: outer.name,
            pins: outer.pins.clone(),
            outer: Map::open(outer.map, MapType::ArrayOfMaps)?,
            per_chunk,
            chunks: Vec::new(),
        };
        chunks.open_pinned()?;
        Ok(chunks)
    }

    /// Opens the chunks that an earlier agent has made.
    fn open_pinned(&mut self) -> Result<(), OpenError> {
        let Some(pins) = self.pins.clone() else {
            return Ok(());
        };
        for index in 0.. {
            let Some(inner) = pins.open(index)? else {
                break;
            };
            let mapping = Mapping::open(inner.as_fd())?;
            if mapping.entries() != self.per_chunk as usize {
                return Err(OpenError::Kernel(io::Error::other(format!(
                    "chunk {index} of {} has {} entries instead of {}",
                    self.name,
                    mapping.entries(),
                    self.per_chunk
                ))));
            }
            // The agent may have been killed between pinning it and putting it in.
            let id = bpf::map_info(inner.as_fd())?.id;
            if self.outer.get(&index)? != Some(id) {
                self.outer.insert(&index, &(inner.as_raw_fd() as u32))?;
            }
            self.chunks.push(mapping);
        }
        Ok(())
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
            let index = u32::try_from(self.chunks.len()).map_err(io::Error::other)?;
            // One that was pinned, and could not be put in, is there already.
            let pinned = self.pins.as_ref().map(|pins| pins.open(index));
            let pinned = pinned.transpose()?.flatten();
            let is_new = pinned.is_none();
            let inner = match pinned {
                Some(inner) => inner,
                None => bpf::create_mmapable_array(self.name, size_of::<T>(), self.per_chunk)?,
            };
            let mapping = Mapping::open(inner.as_fd()).map_err(io::Error::other)?;
            if let Some(pins) = self.pins.as_ref().filter(|_| is_new) {
                pins.pin(index, inner.as_fd())?;
            }
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
