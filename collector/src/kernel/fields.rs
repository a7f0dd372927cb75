//! Kernel fields: offsets from the running kernel's BTF, written into the object's instructions.
//!
//! See `collector_common::field` for the scheme. Invariant: no placeholder is left in an object
//! that is loaded; a field which this kernel lacks makes the sections that use it unusable, and
//! [`Patched::missing`] says which and why.

use std::{collections::HashMap, ops::Range};

use anyhow::{Context, Result, bail};
use btf_rs::{Btf, Type};
use collector_common::field::{PATHS, PLACEHOLDER};
use object::{Object, ObjectSection, SectionKind};

/// An object whose placeholders have been replaced.
#[derive(Debug)]
pub struct Patched {
    /// The object, ready to be loaded.
    pub bytes: Vec<u8>,
    /// Section name to the fields that it needs and this kernel lacks.
    pub missing: HashMap<String, Vec<&'static str>>,
}

/// Replaces the placeholders of `object` by the offsets of this kernel.
///
/// # Errors
///
/// When the object can't be parsed, or a placeholder stands in an instruction that can't have one.
pub fn patch(object: &[u8], btf: &Btf) -> Result<Patched> {
    let offsets: Vec<Option<u32>> = PATHS.iter().map(|path| offset_of(btf, path).ok()).collect();
    let mut bytes = object.to_vec();
    let mut missing: HashMap<String, Vec<&'static str>> = HashMap::new();
    let file = object::File::parse(object).context("the embedded kernel object is damaged")?;
    for section in file.sections() {
        let name = section.name()?.to_owned();
        let Some((start, size)) = section.file_range() else {
            continue;
        };
        let range = start as usize..(start + size) as usize;
        if name == ".BTF" {
            super::names::make_valid(&mut bytes[range])?;
            continue;
        }
        if section.kind() != SectionKind::Text {
            continue;
        }
        for field in patch_section(&mut bytes, range, &offsets)? {
            let fields = missing.entry(name.clone()).or_default();
            if !fields.contains(&field) {
                fields.push(field);
            }
        }
    }
    Ok(Patched { bytes, missing })
}

/// BPF instruction: opcode, registers, 16-bit offset, 32-bit immediate.
const INSTRUCTION: usize = 8;
/// BPF_LDX | BPF_MEM, whatever the size.
const LOAD: u8 = 0x61;
const LOAD_MASK: u8 = 0xe7;
/// BPF_LD | BPF_IMM | BPF_DW: two instructions wide.
const LOAD_IMM64: u8 = 0x18;
/// BPF_ALU64 | BPF_ADD | BPF_K
const ADD_IMM: u8 = 0x07;

fn patch_section(
    bytes: &mut [u8],
    range: Range<usize>,
    offsets: &[Option<u32>],
) -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    let mut at = range.start;
    while at + INSTRUCTION <= range.end {
        let opcode = bytes[at];
        if opcode == LOAD_IMM64 {
            at += 2 * INSTRUCTION;
            continue;
        }
        if opcode & LOAD_MASK == LOAD {
            let offset = i16::from_le_bytes([bytes[at + 2], bytes[at + 3]]);
            if let Some(number) = placeholder(i32::from(offset)) {
                let real = resolved(number, offsets, &mut missing);
                let real = i16::try_from(real)
                    .with_context(|| format!("{} lies beyond 32 KiB", PATHS[number]))?;
                bytes[at + 2..at + 4].copy_from_slice(&real.to_le_bytes());
            }
        } else if opcode == ADD_IMM {
            let value =
                i32::from_le_bytes([bytes[at + 4], bytes[at + 5], bytes[at + 6], bytes[at + 7]]);
            if let Some(number) = placeholder(value) {
                let real = resolved(number, offsets, &mut missing);
                bytes[at + 4..at + 8].copy_from_slice(&real.to_le_bytes());
            }
        }
        at += INSTRUCTION;
    }
    Ok(missing)
}

fn placeholder(value: i32) -> Option<usize> {
    let number = usize::try_from(value - i32::from(PLACEHOLDER)).ok()?;
    (number < PATHS.len()).then_some(number)
}

fn resolved(number: usize, offsets: &[Option<u32>], missing: &mut Vec<&'static str>) -> u32 {
    match offsets[number] {
        Some(offset) => offset,
        None => {
            missing.push(PATHS[number]);
            0
        }
    }
}

/// The byte offset of a field path such as `task_struct.se.sum_exec_runtime`.
///
/// # Errors
///
/// When no alternative of the path exists on this kernel.
pub fn offset_of(btf: &Btf, path: &str) -> Result<u32> {
    let mut last = anyhow::anyhow!("empty path");
    for alternative in path.split('|') {
        match offset_of_one(btf, alternative) {
            Ok(offset) => return Ok(offset),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn offset_of_one(btf: &Btf, path: &str) -> Result<u32> {
    let mut parts = path.split('.');
    let root = parts.next().unwrap_or_default();
    let mut current = btf
        .resolve_types_by_name(root)?
        .into_iter()
        .find(|ty| matches!(ty, Type::Struct(_) | Type::Union(_)))
        .with_context(|| format!("no struct {root}"))?;
    let mut offset = 0;
    for part in parts {
        let (name, element) = match part.split_once('[') {
            Some((name, rest)) => (name, Some(rest.trim_end_matches(']'))),
            None => (part, None),
        };
        let (bits, ty) =
            member(btf, &current, name)?.with_context(|| format!("no member {name} in {path}"))?;
        offset += bits / 8;
        current = ty;
        if let Some(enumerator) = element {
            // Arrays of pointers are all that is needed.
            offset += 8 * enumerator_value(btf, enumerator)?;
        }
    }
    Ok(offset)
}

/// A member's offset in bits and its type, anonymous structures and unions included.
fn member(btf: &Btf, of: &Type, name: &str) -> Result<Option<(u32, Type)>> {
    let (Type::Struct(structure) | Type::Union(structure)) = of else {
        bail!("{name}: not a structure");
    };
    for field in &structure.members {
        let field_name = btf.resolve_name(field).unwrap_or_default();
        if field_name == name {
            return Ok(Some((
                field.bit_offset(),
                unqualified(btf, btf.resolve_chained_type(field)?)?,
            )));
        }
        if field_name.is_empty() {
            let inner = unqualified(btf, btf.resolve_chained_type(field)?)?;
            if matches!(inner, Type::Struct(_) | Type::Union(_))
                && let Some((bits, ty)) = member(btf, &inner, name)?
            {
                return Ok(Some((field.bit_offset() + bits, ty)));
            }
        }
    }
    Ok(None)
}

/// A type without typedefs and qualifiers.
fn unqualified(btf: &Btf, ty: Type) -> Result<Type> {
    let mut ty = ty;
    loop {
        ty = match &ty {
            Type::Typedef(inner) => btf.resolve_chained_type(inner)?,
            Type::Const(inner) | Type::Volatile(inner) | Type::Restrict(inner) => {
                btf.resolve_chained_type(inner)?
            }
            Type::TypeTag(inner) => btf.resolve_chained_type(inner)?,
            _ => return Ok(ty),
        };
    }
}

fn enumerator_value(btf: &Btf, name: &str) -> Result<u32> {
    // Controllers are the only enumerators in use: enum cgroup_subsys_id { cpuset_cgrp_id, … }.
    for ty in btf.resolve_types_by_name("cgroup_subsys_id")? {
        let Type::Enum(list) = ty else {
            continue;
        };
        for member in &list.members {
            if btf.resolve_name(member).is_ok_and(|found| found == name) {
                return Ok(member.val());
            }
        }
    }
    bail!("no enumerator {name}")
}
