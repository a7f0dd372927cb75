//! Kernel fields: offsets from the running kernel's BTF, written into the object's instructions.
//!
//! See `collector_common::field` for the scheme. Invariant: an object that is loaded has no
//! placeholders left. If this kernel lacks a field, the programs that need it can't be used, and
//! [`Patched::missing`] lists them with the field. A field is optional to a program that first
//! checks whether it exists.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
};

use anyhow::{Context, Result, bail};
use collector_common::{
    field::{PLACEHOLDER, PRESENT},
    paths::PATHS,
};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SectionKind, SymbolKind,
};

use super::btf::{Btf, BtfKind, Type};

/// An object whose placeholders have been replaced.
#[derive(Debug)]
pub struct Patched {
    /// The object, ready to be loaded.
    pub bytes: Vec<u8>,
    /// For each program, the fields that it needs and this kernel lacks.
    pub missing: HashMap<String, Vec<&'static str>>,
}

/// A function of the object: its position, the fields that it reads and the functions that it
/// calls.
#[derive(Debug)]
struct Function {
    name: String,
    section: SectionIndex,
    /// Address in its section.
    address: u64,
    size: u64,
    needed: BTreeSet<usize>,
    optional: BTreeSet<usize>,
    calls: BTreeSet<usize>,
}

/// Replaces the placeholders in `object` with the offsets of this kernel.
///
/// # Errors
///
/// If the object can't be parsed, or a placeholder is in an instruction that can't hold one.
pub fn patch(object: &[u8], btf: &Btf) -> Result<Patched> {
    let offsets: Vec<Option<u32>> = PATHS.iter().map(|path| offset_of(btf, path).ok()).collect();
    let mut bytes = object.to_vec();
    let file = object::File::parse(object).context("the embedded kernel object is damaged")?;
    for section in file.sections() {
        if section.name()? == ".BTF"
            && let Some((start, size)) = section.file_range()
        {
            super::names::make_valid(&mut bytes[start as usize..(start + size) as usize])?;
        }
    }
    let mut functions = functions(&file);
    for index in 0..functions.len() {
        let calls = calls(&file, &functions, &functions[index])?;
        let function = &mut functions[index];
        function.calls = calls;
        let section = file.section_by_index(function.section)?;
        let Some((start, _)) = section.file_range() else {
            continue;
        };
        let begin = (start + function.address) as usize;
        patch_function(
            &mut bytes,
            begin..begin + function.size as usize,
            &offsets,
            function,
        )?;
    }
    let missing = (0..functions.len())
        .map(|index| {
            let missing = missing(&functions, index, &offsets);
            (functions[index].name.clone(), missing)
        })
        .filter(|(_, missing)| !missing.is_empty())
        .collect();
    Ok(Patched { bytes, missing })
}

fn functions(file: &object::File<'_>) -> Vec<Function> {
    let code = |symbol: &object::Symbol<'_, '_>| {
        let section = file.section_by_index(symbol.section_index()?).ok()?;
        (section.kind() == SectionKind::Text).then_some(section.index())
    };
    file.symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
        .filter_map(|symbol| {
            Some(Function {
                name: symbol.name().ok()?.to_owned(),
                section: code(&symbol)?,
                address: symbol.address(),
                size: symbol.size(),
                needed: BTreeSet::new(),
                optional: BTreeSet::new(),
                calls: BTreeSet::new(),
            })
        })
        .collect()
}

/// Functions that a function calls, or whose address it takes.
fn calls(
    file: &object::File<'_>,
    functions: &[Function],
    function: &Function,
) -> Result<BTreeSet<usize>> {
    let section = file.section_by_index(function.section)?;
    let code = section.data()?;
    let range = function.address..function.address + function.size;
    let at = |section: SectionIndex, address: u64| {
        functions
            .iter()
            .position(|other| other.section == section && other.address == address)
    };
    let word = |offset: u64| {
        let bytes = code.get(offset as usize + 4..offset as usize + 8)?;
        Some(i64::from(i32::from_le_bytes(bytes.try_into().ok()?)))
    };
    let mut found = BTreeSet::new();
    let mut relocated = BTreeSet::new();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            continue;
        };
        if !range.contains(&offset) {
            continue;
        }
        relocated.insert(offset);
        let symbol = file.symbol_by_index(index)?;
        let Some(section) = symbol.section_index() else {
            continue;
        };
        // A call's immediate counts instructions from the next one; an address is in bytes.
        let is_call = code.get(offset as usize) == Some(&CALL);
        let addend = word(offset).unwrap_or(0);
        let address = match (symbol.kind(), is_call) {
            (SymbolKind::Section, true) => (addend + 1) * INSTRUCTION as i64,
            (SymbolKind::Section, false) => addend,
            _ => symbol.address() as i64,
        };
        found.extend(at(section, address as u64));
    }
    // Calls within a section need no relocation.
    for offset in range.step_by(INSTRUCTION) {
        let call = code.get(offset as usize) == Some(&CALL)
            && code
                .get(offset as usize + 1)
                .map(|registers| registers >> 4)
                == Some(LOCAL_CALL);
        if call && !relocated.contains(&offset) {
            let target = offset as i64 + (word(offset).unwrap_or(0) + 1) * INSTRUCTION as i64;
            found.extend(at(function.section, target as u64));
        }
    }
    Ok(found)
}

/// The fields that a function, or one that it calls, needs and this kernel lacks.
fn missing(functions: &[Function], start: usize, offsets: &[Option<u32>]) -> Vec<&'static str> {
    let mut seen = BTreeSet::from([start]);
    let mut waiting = vec![start];
    while let Some(index) = waiting.pop() {
        waiting.extend(
            functions[index]
                .calls
                .iter()
                .filter(|&&call| seen.insert(call)),
        );
    }
    let optional: BTreeSet<usize> = seen
        .iter()
        .flat_map(|&index| functions[index].optional.iter().copied())
        .collect();
    let needed: BTreeSet<usize> = seen
        .iter()
        .flat_map(|&index| functions[index].needed.iter().copied())
        .collect();
    needed
        .difference(&optional)
        .filter(|&&number| offsets[number].is_none())
        .map(|&number| PATHS[number])
        .collect()
}

/// BPF instruction: opcode, registers, 16-bit offset, 32-bit immediate.
const INSTRUCTION: usize = 8;
/// BPF_LDX | BPF_MEM, of any size.
const LOAD: u8 = 0x61;
const LOAD_MASK: u8 = 0xe7;
/// BPF_LD | BPF_IMM | BPF_DW: two instructions wide.
const LOAD_IMM64: u8 = 0x18;
/// BPF_ALU64 | BPF_ADD | BPF_K
const ADD_IMM: u8 = 0x07;
/// BPF_ALU64 | BPF_MOV | BPF_K
const MOVE_IMM: u8 = 0xb7;
/// Code of an instruction that calls a function: `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// BPF_PSEUDO_CALL, the source register of a call within the object.
const LOCAL_CALL: u8 = 1;

fn patch_function(
    bytes: &mut [u8],
    range: Range<usize>,
    offsets: &[Option<u32>],
    function: &mut Function,
) -> Result<()> {
    let offset_of = |number: usize| offsets[number].unwrap_or(0);
    let mut at = range.start;
    while at + INSTRUCTION <= range.end {
        let opcode = bytes[at];
        let immediate =
            i32::from_le_bytes([bytes[at + 4], bytes[at + 5], bytes[at + 6], bytes[at + 7]]);
        if opcode == LOAD_IMM64 {
            at += 2 * INSTRUCTION;
            continue;
        }
        if opcode & LOAD_MASK == LOAD {
            let offset = i16::from_le_bytes([bytes[at + 2], bytes[at + 3]]);
            if let Some(number) = number(i32::from(offset), i32::from(PLACEHOLDER)) {
                let real = i16::try_from(offset_of(number))
                    .with_context(|| format!("{} lies beyond 32 KiB", PATHS[number]))?;
                bytes[at + 2..at + 4].copy_from_slice(&real.to_le_bytes());
                function.needed.insert(number);
            }
        } else if opcode == ADD_IMM
            && let Some(number) = number(immediate, i32::from(PLACEHOLDER))
        {
            bytes[at + 4..at + 8].copy_from_slice(&offset_of(number).to_le_bytes());
            function.needed.insert(number);
        } else if opcode == MOVE_IMM
            && let Some(number) = number(immediate, PRESENT)
        {
            let present = u32::from(offsets[number].is_some());
            bytes[at + 4..at + 8].copy_from_slice(&present.to_le_bytes());
            function.optional.insert(number);
        }
        at += INSTRUCTION;
    }
    Ok(())
}

/// The number of the field that a placeholder stands for.
fn number(value: i32, first: i32) -> Option<usize> {
    let number = usize::try_from(value.checked_sub(first)?).ok()?;
    (number < PATHS.len()).then_some(number)
}

/// The byte offset of a field path such as `task_struct.se.sum_exec_runtime`.
///
/// # Errors
///
/// If this kernel has none of the path's alternatives.
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

/// Whether the kernel has a structure of this name.
pub fn has_structure(btf: &Btf, name: &str) -> bool {
    btf.named(name)
        .any(|ty| matches!(ty.kind, BtfKind::Struct | BtfKind::Union))
}

fn offset_of_one(btf: &Btf, path: &str) -> Result<u32> {
    if let Some((tracepoint, arguments)) = path.split_once('(') {
        return argument_offset(btf, tracepoint, arguments.split(',').count());
    }
    if let Some((of, name)) = path.split_once("::") {
        return enumerator_value(btf, of, name);
    }
    walk(btf, path).map(|(bits, _)| bits / 8)
}

/// Offset of the tracepoint's argument `number`, counted from 1, in the context of a `tp_btf`
/// program.
///
/// The kernel describes a tracepoint by `typedef void (*btf_trace_NAME)(void *, ...)`, the
/// arguments after the first (include/trace/bpf_probe.h).
fn argument_offset(btf: &Btf, tracepoint: &str, number: usize) -> Result<u32> {
    for ty in btf.named(&format!("btf_trace_{tracepoint}")) {
        if ty.kind != BtfKind::Typedef {
            continue;
        }
        let pointer = ty.target()?;
        if pointer.kind == BtfKind::Pointer && pointer.target()?.parameters()? > number {
            return Ok(8 * (number as u32 - 1));
        }
    }
    bail!("no {tracepoint} with {number} arguments")
}

/// The bit number of a bit field within the byte at [`offset_of`] its path.
///
/// # Errors
///
/// See [`offset_of`].
pub fn bit_of(btf: &Btf, path: &str) -> Result<u32> {
    walk(btf, path).map(|(bits, _)| bits % 8)
}

/// Offset in bits and type of the field at the end of a path.
fn walk<'a>(btf: &'a Btf, path: &str) -> Result<(u32, Type<'a>)> {
    let mut parts = path.split('.');
    let root = parts.next().unwrap_or_default();
    let mut current = btf
        .named(root)
        .find(|ty| matches!(ty.kind, BtfKind::Struct | BtfKind::Union))
        .with_context(|| format!("no struct {root}"))?;
    let mut offset = 0u32;
    for part in parts {
        let (name, element) = match part.split_once('[') {
            Some((name, rest)) => (name, Some(rest.trim_end_matches(']'))),
            None => (part, None),
        };
        let (mut bits, mut ty) = current
            .member(name)?
            .with_context(|| format!("no member {name} in {path}"))?;
        if let Some(element) = element {
            let (len, of) = ty.elements().with_context(|| format!("{part} in {path}"))?;
            let index = match element.parse() {
                Ok(index) => index,
                Err(_) => enumerator_value(btf, "cgroup_subsys_id", element)?,
            };
            if index >= len {
                bail!("{name} in {path} has {len} elements");
            }
            let inner = index.checked_mul(of.size()?).and_then(|n| n.checked_mul(8));
            bits = inner
                .and_then(|inner| bits.checked_add(inner))
                .with_context(|| format!("the offset of {path} overflows"))?;
            ty = of;
        }
        offset = offset
            .checked_add(bits)
            .with_context(|| format!("the offset of {path} overflows"))?;
        current = ty;
    }
    Ok((offset, current))
}

/// Number of elements of the array that a path ends in, such as `memcg_vmstats.state`.
///
/// # Errors
///
/// If this kernel has no such array.
pub fn len_of(btf: &Btf, path: &str) -> Result<u32> {
    let (_, ty) = walk(btf, path)?;
    Ok(ty.elements()?.0)
}

/// Values and names of all enumerators.
///
/// # Errors
///
/// If this kernel doesn't have the enumeration.
pub fn enumerators(btf: &Btf, of: &str) -> Result<Vec<(u32, String)>> {
    let list = btf.named(of).find(|ty| ty.kind == BtfKind::Enum);
    let list = list.with_context(|| format!("no enum {of}"))?;
    Ok(list
        .enumerators()
        .map(|(name, value)| (value, String::from_utf8_lossy(name).into_owned()))
        .collect())
}

/// Value of an enumerator, such as `NR_FILE_PAGES` of `node_stat_item`.
///
/// # Errors
///
/// If this kernel doesn't have it.
pub fn enumerator_value(btf: &Btf, of: &str, name: &str) -> Result<u32> {
    btf.named(of)
        .find_map(|list| value_in(&list, name))
        .with_context(|| format!("no enumerator {name} of {of}"))
}

fn value_in(list: &Type<'_>, name: &str) -> Option<u32> {
    let mut found = list.enumerators();
    found.find_map(|(found, value)| (found == name.as_bytes()).then_some(value))
}

/// Whether the kernel has a tracepoint (include/trace/bpf_probe.h).
pub fn has_tracepoint(btf: &Btf, name: &str) -> bool {
    btf.named(&format!("btf_trace_{name}"))
        .any(|ty| ty.kind == BtfKind::Typedef)
}

/// `RQF_FLUSH_SEQ`. Since 6.11 an enumerator gives the number of the bit (include/linux/blk-mq.h,
/// `__RQF_FLUSH_SEQ`, in an enumeration without a name at first). Before that it was a macro,
/// always with this bit.
pub fn flush_sequence_flag(btf: &Btf) -> u32 {
    const NAME: &str = "__RQF_FLUSH_SEQ";
    let bit = enumerator_value(btf, "rqf_flags", NAME).ok().or_else(|| {
        btf.types()
            .filter(|ty| ty.kind == BtfKind::Enum && ty.name().is_empty())
            .find_map(|list| value_in(&list, NAME))
    });
    1u32.checked_shl(bit.unwrap_or(4)).unwrap_or(1 << 4)
}
