//! Reduced BTF that holds only the types that the loader looks up.

use aya::Endianness;

use super::{Btf, BtfKind, COMMON};

/// A type that the loader looks up by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// `typedef btf_trace_NAME`: a tracepoint.
    Tracepoint(&'static str),
    /// `bpf_iter_NAME`, a function: an iterator.
    Iterator(&'static str),
}

impl Wanted {
    fn kind(&self) -> BtfKind {
        match self {
            Self::Tracepoint(_) => BtfKind::Typedef,
            Self::Iterator(_) => BtfKind::Function,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Tracepoint(name) => format!("btf_trace_{name}"),
            Self::Iterator(name) => format!("bpf_iter_{name}"),
        }
    }
}

impl Btf {
    /// The BTF that the loader needs for these types. The loader looks them up by name and passes
    /// their numbers to the kernel. They therefore keep their original numbers, and every type
    /// between them is replaced by the shortest one, `const void`.
    ///
    /// # Errors
    ///
    /// If the loader can't read it.
    pub fn view(&self, wanted: &[Wanted]) -> anyhow::Result<aya::Btf> {
        let bytes = self.view_bytes(wanted);
        Ok(aya::Btf::parse(&bytes, Endianness::default())?)
    }

    pub(super) fn view_bytes(&self, wanted: &[Wanted]) -> Vec<u8> {
        let mut waiting: Vec<(BtfKind, String)> = wanted
            .iter()
            .map(|wanted| (wanted.kind(), wanted.name()))
            .collect();
        let mut types = Vec::new();
        let mut strings = vec![0u8];
        // Types after the last wanted one are left out.
        let mut used = 0;
        for ty in self.types() {
            let is_it =
                |(kind, name): &(BtfKind, String)| *kind == ty.kind && name.as_bytes() == ty.name();
            let found = match ty.kind {
                BtfKind::Typedef | BtfKind::Function => waiting.iter().position(is_it),
                _ => None,
            };
            let name = match found {
                // The first type with a name is used.
                Some(at) => {
                    let (_, name) = waiting.swap_remove(at);
                    let offset = strings.len() as u32;
                    strings.extend_from_slice(name.as_bytes());
                    strings.push(0);
                    offset
                }
                None => 0,
            };
            let kind = if found.is_some() {
                ty.kind
            } else {
                BtfKind::Const
            };
            for word in [name, (kind as u32) << 24, 0] {
                types.extend_from_slice(&word.to_ne_bytes());
            }
            if found.is_some() {
                used = types.len();
            }
            if waiting.is_empty() {
                break;
            }
        }
        types.truncate(used);
        debug_assert!(types.len().is_multiple_of(COMMON));
        let mut bytes = Vec::with_capacity(24 + types.len() + strings.len());
        // struct btf_header, version 1.
        bytes.extend_from_slice(&super::MAGIC.to_ne_bytes());
        bytes.extend_from_slice(&[1, 0]);
        let (types_length, strings_length) = (types.len() as u32, strings.len() as u32);
        for word in [24, 0, types_length, types_length, strings_length] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&types);
        bytes.extend_from_slice(&strings);
        bytes
    }
}
