//! Builds the kernel object and puts it where the agent embeds it from: `$OUT_DIR/cgmeter.bpf.o`.
//!
//! Invariants: it reads nothing of the repository but the inputs that it names to cargo, so it runs
//! again only when one of them changes; it needs no crate of the project's chores or tests
//! (tests/product.rs).

use std::{
    env,
    path::{Path, PathBuf},
};

/// What the object is built from. Cargo itself reruns this script when `ebpf-toolchain` changes.
const INPUTS: &[&str] = &[
    "collector-ebpf/src",
    "collector-ebpf/Cargo.toml",
    "collector-ebpf/Cargo.lock",
    "collector-common/src",
    "collector-common/Cargo.toml",
];

fn main() {
    if let Err(message) = build() {
        // cargo prints these lines and fails the build.
        println!("cargo::error={message}");
    }
}

fn build() -> Result<(), String> {
    let folder = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .ok_or(format!("{name} is not set"))
    };
    let root = folder("CARGO_MANIFEST_DIR")?.join("..");
    let out = folder("OUT_DIR")?;
    for path in INPUTS {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let toolchain = ebpf_toolchain::find().map_err(|missing| {
        format!("the kernel programs can't be built: {missing}. Run `cargo xtask setup`")
    })?;
    let target = ebpf_toolchain::target_folder(&out).unwrap_or_else(|| out.join("ebpf"));
    let object = toolchain
        .build(&root.join("collector-ebpf"), &target)
        .map_err(|messages| {
            // cargo shows nothing else that a failed build script prints.
            for line in messages.lines() {
                println!("cargo::error={line}");
            }
            let compiler = &toolchain.compiler.name;
            format!("the kernel programs don't build with {compiler}")
        })?;
    copy(&object, &out.join("cgmeter.bpf.o"))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::copy(from, to)
        .map(drop)
        .map_err(|error| format!("cannot copy {}: {error}", from.display()))
}
