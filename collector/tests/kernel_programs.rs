//! The kernel programs make no Rust reference to memory that they share with other CPUs, with callbacks
//! of helpers and with the agent: only `shared.rs` and `maps.rs` follow a pointer into a map.
//!
//! A text check, because the type system can't keep it: aya's maps give out raw pointers, and an
//! `unsafe` block makes a reference of any of them.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Files that may follow a pointer into a map.
const FOLLOWERS: &[&str] = &["shared.rs", "maps.rs"];

/// What a reference to a map's value is made from, or what gets at a value without [`FOLLOWERS`].
const FORBIDDEN: &[&str] = &[
    // References, and raw pointers to parts of a value.
    "&mut ",
    "&raw ",
    "&*",
    "as_mut(",
    "as_ref(",
    "from_mut(",
    // aya's lookups.
    "get_ptr",
    "get_value",
    // The kernel's.
    "bpf_map_lookup",
    "storage_get",
    "ringbuf_reserve",
    ".reserve(",
    "bpf_loop",
    // Writes through pointers.
    "write_volatile",
    ".write(",
];

/// What a raw pointer that may be written through may point to: nothing that is in a map.
const POINTEES: &[&str] = &["c_void", "bpf_sock"];

/// What is wrong with a line of code.
fn fault(line: &str) -> Option<String> {
    let code = line.split("//").next().unwrap_or_default();
    if let Some(found) = FORBIDDEN.iter().find(|text| code.contains(**text)) {
        return Some((*found).to_owned());
    }
    // That of a handle has no argument; that of a map returns a reference.
    if code
        .split(".get(")
        .skip(1)
        .any(|after| !after.starts_with(')'))
    {
        return Some("get(".to_owned());
    }
    let pointee = |after: &str| {
        let name = after
            .trim_start()
            .split(|c: char| !c.is_alphanumeric() && c != '_');
        name.into_iter().next().unwrap_or_default().to_owned()
    };
    code.split("*mut ")
        .skip(1)
        .map(pointee)
        .find(|name| !POINTEES.contains(&name.as_str()))
        .map(|name| format!("*mut {name}"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn references_to_map_values_are_found() {
    for line in [
        "    let control = unsafe { &mut *control };",
        "    let Some(control) = TASKS.get_ptr_mut(0) else {",
        "    unsafe { TASK_STATE.get(task, 0).as_mut() }",
        "pub unsafe fn add(counter: *mut u64, n: u64) {",
        "fn cell_of(sock: TcpSock) -> Option<*mut TcpCell> {",
        "        cell::add(&raw mut (*cell).active, 1);",
        "    unsafe { bpf_loop(cpus(), callback as *mut c_void, ptr::null_mut(), 0) };",
        "    match unsafe { SUBMITTERS.get(request) } {",
        "    let zero = zero.get(0)?;",
    ] {
        assert!(fault(line).is_some(), "{line}");
    }
    for line in [
        "extern \"C\" fn device(_index: u64, _: *mut c_void) -> i64 {",
        "fn known(sk: *mut bpf_sock) -> Option<(Shared<NetCell>, u32)> {",
        "    member!(control.next).add_alone(1); // not &mut *control",
        "    let pid = member!(control.walked).get();",
    ] {
        assert_eq!(fault(line), None, "{line}");
    }
}

#[test]
fn no_reference_to_a_map_value_outside_of_shared() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../collector-ebpf/src");
    let mut files = Vec::new();
    sources(&folder, &mut files);
    let mut faults = Vec::new();
    for path in files {
        let name = path
            .strip_prefix(&folder)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        if FOLLOWERS.contains(&name.as_str()) {
            continue;
        }
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if let Some(what) = fault(line) {
                faults.push(format!("{name}:{}: {what}", number + 1));
            }
        }
    }
    assert!(
        faults.is_empty(),
        "memory of maps is reached through `Shared` alone (collector-ebpf/src/shared.rs):\n{}",
        faults.join("\n")
    );
}

#[test]
fn shared_memory_is_never_a_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../collector-ebpf/src");
    for name in FOLLOWERS {
        for line in fs::read_to_string(folder.join(name)).unwrap().lines() {
            let code = line.split("//").next().unwrap_or_default();
            for text in ["&mut *", "&*", ".as_mut()", ".as_ref()"] {
                assert!(!code.contains(text), "{name}: {line}");
            }
        }
    }
}
