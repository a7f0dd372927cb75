//! Tests of the reader with BTF written out here and with damaged BTF. The live tests compare the
//! BTF of the running kernel with bpftool's output.

use super::*;

/// A writer of BTF. Types are numbered from 1.
#[derive(Clone, Default)]
struct Writer {
    types: Vec<u32>,
    count: u32,
    strings: Vec<u8>,
}

const FLAG: u32 = 1 << 31;

impl Writer {
    fn name(&mut self, name: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if name.is_empty() {
            return 0;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        offset
    }

    fn ty(&mut self, kind: BtfKind, name: &str, count: u32, last: u32, rest: &[u32]) -> u32 {
        let name = self.name(name);
        self.types.extend([name, (kind as u32) << 24 | count, last]);
        self.types.extend_from_slice(rest);
        self.count += 1;
        self.count
    }

    fn int(&mut self, name: &str, size: u32) -> u32 {
        self.ty(BtfKind::Int, name, 0, size, &[size * 8])
    }

    fn of(&mut self, kind: BtfKind, name: &str, ty: u32) -> u32 {
        self.ty(kind, name, 0, ty, &[])
    }

    fn array(&mut self, ty: u32, count: u32) -> u32 {
        self.ty(BtfKind::Array, "", 0, 0, &[ty, 1, count])
    }

    fn structure(
        &mut self,
        kind: BtfKind,
        name: &str,
        size: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        let mut rest = Vec::new();
        for &(name, ty, offset) in members {
            rest.extend([self.name(name), ty, offset]);
        }
        self.ty(kind, name, members.len() as u32, size, &rest)
    }

    fn enumeration(&mut self, name: &str, list: &[(&str, u32)]) -> u32 {
        let mut rest = Vec::new();
        for &(name, value) in list {
            rest.extend([self.name(name), value]);
        }
        self.ty(BtfKind::Enum, name, list.len() as u32, 4, &rest)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let types = 4 * self.types.len() as u32;
        let strings = self.strings.len() as u32;
        for word in [24, 0, types, types, strings].iter().chain(&self.types) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.strings);
        bytes
    }
}

/// One type of each kind that occurs in the field paths of programs.
fn example() -> Writer {
    let mut file = Writer::default();
    let int = file.int("int", 4);
    let long = file.int("unsigned long", 8);
    let u64 = file.of(BtfKind::Typedef, "u64", long);
    let constant = file.of(BtfKind::Const, "", u64);
    let volatile = file.of(BtfKind::Volatile, "", constant);
    let inner = file.structure(
        BtfKind::Struct,
        "",
        16,
        &[("first", long, 0), ("second", volatile, 64)],
    );
    let choice = file.structure(
        BtfKind::Union,
        "",
        16,
        &[("", inner, 0), ("other", long, 0)],
    );
    let elements = file.array(inner, 3);
    let table = file.array(elements, 2);
    let of_structures = file.of(BtfKind::Typedef, "table_t", table);
    let pointer = file.of(BtfKind::Pointer, "", 0);
    file.structure(
        BtfKind::Struct,
        "outer",
        152,
        &[
            ("pointer", pointer, 0),
            ("", choice, 64),
            ("plain", int, 192),
            ("table", of_structures, 256),
        ],
    );
    // In a structure with bit fields, the upper 8 bits of a member's offset are its size in bits.
    let flags = [(0, int, 0), (1, int, 1 << 24 | 32), (2, int, 3 << 24 | 33)];
    let mut rest = Vec::new();
    for (at, ty, offset) in flags {
        rest.extend([file.name(["whole", "one", "three"][at]), ty, offset]);
    }
    let name = file.name("flags");
    file.types
        .extend([name, (BtfKind::Struct as u32) << 24 | 3 | FLAG, 8]);
    file.types.extend(rest);
    file.count += 1;
    file.enumeration("colour", &[("RED", 1), ("BLUE", u32::MAX)]);
    file.enumeration("", &[("NAMELESS", 7)]);
    let parameters = [0, pointer, 0, pointer, 0, int];
    let prototype = file.ty(BtfKind::Prototype, "", 3, 0, &parameters);
    let function = file.of(BtfKind::Pointer, "", prototype);
    file.of(BtfKind::Typedef, "btf_trace_thing", function);
    file.of(BtfKind::Function, "bpf_iter_task", prototype);
    file
}

fn parsed(file: &Writer) -> Btf {
    Btf::parse(file.bytes()).unwrap()
}

#[test]
fn members_are_found_at_any_depth() {
    use crate::kernel::fields::{bit_of, len_of, offset_of};
    let btf = parsed(&example());
    for (path, offset) in [
        ("outer.pointer", 0),
        ("outer.first", 8),
        ("outer.second", 16),
        ("outer.other", 8),
        ("outer.plain", 24),
        ("outer.table", 32),
        ("outer.table[1]", 80),
        ("outer.missing|outer.plain", 24),
        ("flags.one", 4),
        ("thing(first, second)", 8),
        ("colour::RED", 1),
        ("colour::BLUE", u32::MAX),
    ] {
        assert_eq!(offset_of(&btf, path).unwrap(), offset, "{path}");
    }
    assert_eq!(bit_of(&btf, "flags.three").unwrap(), 1);
    assert_eq!(len_of(&btf, "outer.table").unwrap(), 2);
    for path in [
        "outer.missing",
        "nothing.at",
        "outer.table[2]",
        "outer.plain[0]",
        "outer.plain.first",
        "thing(first, second, third)",
        "colour::GREEN",
        "table_t.first",
        "",
    ] {
        assert!(offset_of(&btf, path).is_err(), "{path}");
    }
}

#[test]
fn types_are_found_by_name_and_kind() {
    let btf = parsed(&example());
    let kinds = |name| btf.named(name).map(|ty| ty.kind).collect::<Vec<_>>();
    assert_eq!(kinds("outer"), [BtfKind::Struct]);
    assert_eq!(kinds("u64"), [BtfKind::Typedef]);
    assert_eq!(kinds("int"), [], "integers are not looked up");
    assert_eq!(btf.types().count(), 19);
    let list = btf.named("colour").next().unwrap();
    let values: Vec<_> = list.enumerators().collect();
    assert_eq!(values, [(&b"RED"[..], 1), (&b"BLUE"[..], u32::MAX)]);
}

#[test]
fn the_loader_sees_the_same_numbers() {
    let file = example();
    let btf = parsed(&file);
    let wanted = [
        Wanted::Iterator("task"),
        Wanted::Tracepoint("thing"),
        Wanted::Tracepoint("not_here"),
    ];
    let view = Btf::parse(btf.view_bytes(&wanted)).unwrap();
    let numbers = |btf: &Btf, kind, name: &[u8]| {
        let types = btf.types().enumerate();
        let of = types.filter(|(_, ty)| ty.kind == kind && ty.name() == name);
        of.map(|(at, _)| at).collect::<Vec<_>>()
    };
    for (kind, name) in [
        (BtfKind::Typedef, &b"btf_trace_thing"[..]),
        (BtfKind::Function, b"bpf_iter_task"),
    ] {
        let found = numbers(&view, kind, name);
        assert_eq!(found.len(), 1);
        assert_eq!(found, numbers(&btf, kind, name));
    }
    // aya keeps every type that it reads.
    let loaded = btf.view(&wanted).unwrap().to_bytes();
    assert_eq!(loaded, btf.view_bytes(&wanted));
}

#[test]
fn types_that_contain_themselves_do_not_loop() {
    let mut file = Writer::default();
    // [1] typedef of itself; [2], [3] structures of each other, twice each; [4] array of itself.
    file.of(BtfKind::Typedef, "round", 1);
    file.structure(BtfKind::Struct, "a", 8, &[("", 3, 0), ("", 3, 0)]);
    file.structure(BtfKind::Struct, "b", 8, &[("", 2, 0), ("", 2, 0)]);
    file.array(4, 2);
    file.structure(
        BtfKind::Struct,
        "c",
        8,
        &[("typedef", 1, 0), ("array", 4, 0)],
    );
    let btf = parsed(&file);
    let named = |name| btf.named(name).next().unwrap();
    assert!(named("round").unqualified().is_err());
    assert!(named("a").member("missing").is_err());
    assert!(named("c").member("typedef").is_err());
    let (_, array) = named("c").member("array").unwrap().unwrap();
    assert!(array.size().is_err());
}

#[test]
fn sizes_that_overflow_are_refused() {
    let mut file = Writer::default();
    let int = file.int("int", 4);
    let array = file.array(int, u32::MAX);
    file.structure(BtfKind::Struct, "large", 4, &[("array", array, 0)]);
    let outer = file.array(array, u32::MAX);
    file.structure(BtfKind::Struct, "larger", 4, &[("array", outer, 0)]);
    let btf = parsed(&file);
    use crate::kernel::fields::offset_of;
    assert!(offset_of(&btf, "large.array[4294967294]").is_err());
    assert!(offset_of(&btf, "larger.array[1]").is_err());
}

/// Calls every method. The results don't matter; each call must return.
fn ask_everything(btf: &Btf) {
    for ty in btf.types() {
        let _ = ty.name();
        let _ = ty.target();
        let _ = ty.unqualified();
        let _ = ty.elements();
        let _ = ty.size();
        let _ = ty.parameters();
        let _ = ty.enumerators().count();
        let _ = ty.member("second");
        let _ = ty.member("missing");
    }
    for path in [
        "outer.second",
        "outer.table[1]",
        "thing(a, b)",
        "colour::RED",
    ] {
        let _ = crate::kernel::fields::offset_of(btf, path);
    }
    let _ = btf.view_bytes(&[Wanted::Tracepoint("thing"), Wanted::Iterator("task")]);
}

#[test]
fn truncated_input_is_refused() {
    let whole = example().bytes();
    for length in 0..whole.len() {
        assert!(Btf::parse(whole[..length].to_vec()).is_err(), "{length}");
    }
    ask_everything(&Btf::parse(whole).unwrap());
}

#[test]
fn other_files_are_refused() {
    for bytes in [
        &b""[..],
        b"\x7fELF",
        &[0xeb, 0x9f, 1, 0, 24, 0, 0, 0],
        &[0; 64],
    ] {
        assert!(Btf::parse(bytes.to_vec()).is_err());
    }
}

#[test]
fn changed_words_do_not_panic() {
    let whole = example().bytes();
    // Replace every word, the header included, by values that are invalid as offsets, counts, kinds
    // or type numbers.
    for at in (0..whole.len() - 4).step_by(4) {
        let word = u32::from_ne_bytes(whole[at..at + 4].try_into().unwrap());
        let kinds = (0..32u32).step_by(3);
        let kinds = kinds.map(|kind| (word & !(0x1f << 24)) | kind << 24);
        let bits = [1, 2, 15, 16, 23, 31].map(|bit| word ^ 1 << bit);
        let others = [
            0,
            1,
            0xffff,
            u32::MAX,
            word.wrapping_add(1),
            word.wrapping_sub(1),
        ];
        for value in kinds.chain(bits).chain(others) {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            if let Ok(btf) = Btf::parse(bytes) {
                ask_everything(&btf);
            }
        }
    }
}

#[test]
fn random_changes_do_not_panic() {
    let whole = example().bytes();
    // A fixed random generator (xorshift), so that a failure can be reproduced.
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..2000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random(8) {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
        }
        if let Ok(btf) = Btf::parse(bytes) {
            ask_everything(&btf);
        }
    }
}
