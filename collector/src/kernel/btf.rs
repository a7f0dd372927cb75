//! Reads BTF, the kernel's description of its types (Documentation/bpf/btf.rst,
//! include/uapi/linux/btf.h).
//!
//! The bytes are read in place. One scan records where each type begins and hashes the names of
//! types that are looked up by name. Members, elements and enumerators are read on demand.
//!
//! Invariant: the input is not trusted. Every access is checked, chains of types are followed for
//! at most `MAX_DEPTH` steps, and invalid input is an error.

use std::{ffi::CStr, ops::Range};

use anyhow::{Context, Result, bail, ensure};

mod view;
pub use view::Wanted;

#[cfg(test)]
mod tests;

/// Maximum length of a chain of qualifiers, and maximum depth of nested anonymous structures or
/// arrays.
const MAX_DEPTH: u32 = 64;

/// Maximum number of members searched to find one. No real structure has so many; the limit ends
/// the search in structures that contain themselves.
const MAX_MEMBERS: u32 = 1 << 16;

/// The magic number in this machine's byte order.
const MAGIC: u16 = 0xeb9f;

/// The kind of a type: `BTF_KIND_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the format")]
pub enum BtfKind {
    Void,
    Int,
    Pointer,
    Array,
    Struct,
    Union,
    Enum,
    Forward,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Function,
    Prototype,
    Variable,
    Section,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl BtfKind {
    /// The kind with this number in the file format.
    const ALL: [Self; 20] = [
        Self::Void,
        Self::Int,
        Self::Pointer,
        Self::Array,
        Self::Struct,
        Self::Union,
        Self::Enum,
        Self::Forward,
        Self::Typedef,
        Self::Volatile,
        Self::Const,
        Self::Restrict,
        Self::Function,
        Self::Prototype,
        Self::Variable,
        Self::Section,
        Self::Float,
        Self::DeclTag,
        Self::TypeTag,
        Self::Enum64,
    ];

    /// Bytes that follow the common part of a type with `count` members.
    fn payload(self, count: usize) -> usize {
        match self {
            Self::Int | Self::Variable | Self::DeclTag => 4,
            Self::Array => 12,
            Self::Struct | Self::Union | Self::Section | Self::Enum64 => 12 * count,
            Self::Enum | Self::Prototype => 8 * count,
            _ => 0,
        }
    }

    /// Whether types of this kind are looked up by name.
    fn is_indexed(self) -> bool {
        matches!(
            self,
            Self::Struct | Self::Union | Self::Enum | Self::Enum64 | Self::Typedef
        )
    }
}

/// `struct btf_type`: name, info, and a size or the number of another type.
const COMMON: usize = 12;

/// The kernel's types.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    /// The string section, which begins and ends with a 0.
    strings: Range<usize>,
    /// Where each type begins in `bytes`; types are numbered from 1.
    types: Vec<u32>,
    /// Hashes of names with the number of their type, sorted.
    names: Vec<(u32, u32)>,
}

/// One of the kernel's types.
#[derive(Clone, Copy, Debug)]
pub struct Type<'a> {
    btf: &'a Btf,
    /// Whether it is a structure, a union, and so on.
    pub kind: BtfKind,
    /// Offset of the name in the string section.
    name: u32,
    /// Number of members, enumerators or parameters.
    count: usize,
    /// Whether members carry a bit-field size.
    bit_fields: bool,
    /// The size in bytes, or the number of another type.
    size_or_type: u32,
    /// Where the rest of the type begins in `bytes`.
    rest: usize,
}

/// A 32-bit number of the file.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// FNV-1a. Names with equal hashes are compared as strings afterwards.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// The range `offset..offset + length` after the header, if it lies within the file.
fn section(bytes: &[u8], header: usize, offset: u32, length: u32) -> Result<Range<usize>> {
    let start = header.checked_add(offset as usize);
    let end = start.and_then(|start| start.checked_add(length as usize));
    match (start, end) {
        (Some(start), Some(end)) if end <= bytes.len() => Ok(start..end),
        _ => bail!("a section extends beyond the end"),
    }
}

impl Btf {
    /// Parses the contents of a file such as /sys/kernel/btf/vmlinux.
    ///
    /// # Errors
    ///
    /// If the bytes are not BTF in this machine's byte order, or are damaged.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        let magic = bytes.get(..2).context("no header")?;
        ensure!(
            u16::from_ne_bytes([magic[0], magic[1]]) == MAGIC,
            "not BTF of this machine"
        );
        // struct btf_header: magic, version and flags, then the words hdr_len, type_off, type_len,
        // str_off and str_len.
        let mut words = [0; 5];
        for (at, field) in words.iter_mut().enumerate() {
            *field = word(&bytes, 4 + 4 * at).context("the header is cut off")?;
        }
        let [
            header,
            type_offset,
            type_length,
            string_offset,
            string_length,
        ] = words;
        let header = header as usize;
        let strings = section(&bytes, header, string_offset, string_length)?;
        let found = &bytes[strings.clone()];
        ensure!(
            found.first() == Some(&0) && found.last() == Some(&0),
            "the section of strings does not end"
        );
        let section = section(&bytes, header, type_offset, type_length)?;
        ensure!(u32::try_from(section.end).is_ok(), "larger than 4 GiB");
        let mut btf = Self {
            bytes,
            strings,
            types: vec![0],
            names: Vec::new(),
        };
        btf.scan(section)?;
        Ok(btf)
    }

    /// Finds where the types begin, and hashes their names.
    fn scan(&mut self, section: Range<usize>) -> Result<()> {
        let mut at = section.start;
        while at < section.end {
            let number = self.types.len();
            let (ty, end) = self
                .read(at)
                .filter(|&(_, end)| end <= section.end)
                .with_context(|| format!("type {number} is damaged"))?;
            if ty.kind.is_indexed() && ty.name != 0 {
                let entry = (hash(ty.name()), number as u32);
                self.names.push(entry);
            }
            self.types.push(at as u32);
            at = end;
        }
        self.types.shrink_to_fit();
        self.names.sort_unstable();
        self.names.shrink_to_fit();
        Ok(())
    }

    /// The type at an offset, and where the next one is.
    fn read(&self, at: usize) -> Option<(Type<'_>, usize)> {
        let info = word(&self.bytes, at + 4)?;
        let kind = *BtfKind::ALL.get((info >> 24 & 0x1f) as usize)?;
        let count = (info & 0xffff) as usize;
        let ty = Type {
            btf: self,
            kind,
            name: word(&self.bytes, at)?,
            count,
            bit_fields: info >> 31 != 0,
            size_or_type: word(&self.bytes, at + 8)?,
            rest: at + COMMON,
        };
        Some((ty, at + COMMON + kind.payload(count)))
    }

    /// A type by its number; 0 is void.
    fn by_number(&self, number: u32) -> Result<Type<'_>> {
        if number == 0 {
            return Ok(Type {
                btf: self,
                kind: BtfKind::Void,
                name: 0,
                count: 0,
                bit_fields: false,
                size_or_type: 0,
                rest: 0,
            });
        }
        let at = self.types.get(number as usize);
        at.and_then(|&at| self.read(at as usize))
            .map(|(ty, _)| ty)
            .with_context(|| format!("no type {number}"))
    }

    /// All types, in the order of their numbers.
    pub fn types(&self) -> impl Iterator<Item = Type<'_>> {
        let places = self.types.iter().skip(1);
        places.filter_map(|&at| self.read(at as usize).map(|(ty, _)| ty))
    }

    /// Structures, unions, enumerations and typedefs with this name.
    pub fn named(&self, name: &str) -> impl Iterator<Item = Type<'_>> {
        let wanted = hash(name.as_bytes());
        let start = self.names.partition_point(|&(hash, _)| hash < wanted);
        self.names[start..]
            .iter()
            .take_while(move |&&(hash, _)| hash == wanted)
            .filter_map(|&(_, number)| self.by_number(number).ok())
            .filter(move |ty| ty.name() == name.as_bytes())
    }

    /// The string at an offset, without its terminating 0. Empty for an offset beyond the section.
    fn string(&self, offset: u32) -> &[u8] {
        let strings = &self.bytes[self.strings.clone()];
        let rest = strings.get(offset as usize..).unwrap_or_default();
        CStr::from_bytes_until_nul(rest).map_or(&[], CStr::to_bytes)
    }
}

impl<'a> Type<'a> {
    /// The name, empty if the type has none.
    pub fn name(&self) -> &'a [u8] {
        self.btf.string(self.name)
    }

    /// A word after the common part of the type.
    fn word(&self, at: usize) -> Result<u32> {
        word(&self.btf.bytes, self.rest + 4 * at).context("a type is cut off")
    }

    fn is_structure(&self) -> bool {
        matches!(self.kind, BtfKind::Struct | BtfKind::Union)
    }

    /// The type that a pointer, a typedef or a qualifier refers to.
    ///
    /// # Errors
    ///
    /// If the type is none of these.
    pub fn target(&self) -> Result<Self> {
        match self.kind {
            BtfKind::Pointer
            | BtfKind::Typedef
            | BtfKind::Volatile
            | BtfKind::Const
            | BtfKind::Restrict
            | BtfKind::TypeTag => self.btf.by_number(self.size_or_type),
            kind => bail!("a {kind:?} does not refer to another type"),
        }
    }

    /// The type with typedefs and qualifiers removed.
    ///
    /// # Errors
    ///
    /// If the chain of typedefs and qualifiers is longer than `MAX_DEPTH`.
    pub fn unqualified(self) -> Result<Self> {
        let mut ty = self;
        for _ in 0..MAX_DEPTH {
            match ty.kind {
                BtfKind::Typedef
                | BtfKind::Volatile
                | BtfKind::Const
                | BtfKind::Restrict
                | BtfKind::TypeTag => {
                    ty = ty.target()?;
                }
                _ => return Ok(ty),
            }
        }
        bail!("the chain of typedefs is too long")
    }

    /// Offset in bits and type of a member. Members of anonymous members are found too. `None` if
    /// no member has this name.
    ///
    /// # Errors
    ///
    /// If the type has no members, or is damaged.
    pub fn member(&self, name: &str) -> Result<Option<(u32, Self)>> {
        ensure!(self.is_structure(), "{name}: not a structure");
        let mut left = MAX_MEMBERS;
        self.member_within(name.as_bytes(), MAX_DEPTH, &mut left)
    }

    fn member_within(
        &self,
        name: &[u8],
        depth: u32,
        left: &mut u32,
    ) -> Result<Option<(u32, Self)>> {
        for at in (0..3 * self.count).step_by(3) {
            ensure!(
                depth > 0 && *left > 0,
                "structures are nested too deep or too large"
            );
            *left -= 1;
            let found = self.btf.string(self.word(at)?);
            if found != name && !found.is_empty() {
                continue;
            }
            let ty = self.btf.by_number(self.word(at + 1)?)?.unqualified()?;
            let offset = self.word(at + 2)?;
            // The upper 8 bits are the size of a bit field.
            let offset = if self.bit_fields {
                offset & 0xff_ffff
            } else {
                offset
            };
            if found == name {
                return Ok(Some((offset, ty)));
            }
            if ty.is_structure()
                && let Some((inner, ty)) = ty.member_within(name, depth - 1, left)?
            {
                let bits = offset.checked_add(inner).context("an offset overflows")?;
                return Ok(Some((bits, ty)));
            }
        }
        Ok(None)
    }

    /// Number and type of an array's elements.
    ///
    /// # Errors
    ///
    /// If the type is not an array.
    pub fn elements(&self) -> Result<(u32, Self)> {
        ensure!(self.kind == BtfKind::Array, "not an array");
        // struct btf_array: type, index_type, nelems.
        let element = self.btf.by_number(self.word(0)?)?.unqualified()?;
        Ok((self.word(2)?, element))
    }

    /// Size in bytes.
    ///
    /// # Errors
    ///
    /// If the type has no size, or the size overflows.
    pub fn size(&self) -> Result<u32> {
        let mut ty = *self;
        let mut factor = 1u32;
        for _ in 0..MAX_DEPTH {
            let size = match ty.kind {
                BtfKind::Pointer => size_of::<u64>() as u32,
                BtfKind::Int
                | BtfKind::Struct
                | BtfKind::Union
                | BtfKind::Enum
                | BtfKind::Enum64
                | BtfKind::Float => ty.size_or_type,
                BtfKind::Array => {
                    let (count, element) = ty.elements()?;
                    factor = factor.checked_mul(count).context("a size overflows")?;
                    ty = element;
                    continue;
                }
                kind => bail!("a {kind:?} has no size"),
            };
            return factor.checked_mul(size).context("a size overflows");
        }
        bail!("arrays are nested too deep")
    }

    /// Number of a function prototype's parameters.
    ///
    /// # Errors
    ///
    /// If the type is not a function prototype.
    pub fn parameters(&self) -> Result<usize> {
        ensure!(self.kind == BtfKind::Prototype, "not a function");
        Ok(self.count)
    }

    /// Names and values of the enumerators of a 32-bit enumeration. Empty for any other type.
    pub fn enumerators(&self) -> impl Iterator<Item = (&'a [u8], u32)> + 'a {
        let ty = *self;
        let count = if ty.kind == BtfKind::Enum {
            ty.count
        } else {
            0
        };
        (0..2 * count).step_by(2).filter_map(move |at| {
            let name = ty.btf.string(ty.word(at).ok()?);
            Some((name, ty.word(at + 1).ok()?))
        })
    }
}
