//! Builds the kernel object and puts it where the agent embeds it from.

use std::{
    env,
    path::{Path, PathBuf},
};

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

fn main() {
    if let Err(message) = build() {
        // The one line of a build script that cargo shows in any case.
        println!("cargo::error={message}");
    }
}

fn build() -> Result<(), String> {
    let variable = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .ok_or(format!("{name} is not set"))
    };
    let root = variable("CARGO_MANIFEST_DIR")?.join("..");
    let out = variable("OUT_DIR")?;
    for path in [
        "collector-ebpf/src",
        "collector-ebpf/Cargo.toml",
        "collector-ebpf/Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    println!(
        "cargo::rerun-if-changed={}",
        root.join("collector-common/src").display()
    );
    println!(
        "cargo::rerun-if-changed={}",
        root.join("xtask/src/toolchain.rs").display()
    );
    let toolchain = toolchain::find()?;
    // A folder of its own for all profiles: the object is the same for each of them.
    let target = out.join("ebpf");
    let output = toolchain
        .cargo(&root.join("collector-ebpf"))
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            "bpfel-unknown-none",
        ])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&target)
        .output()
        .map_err(|error| format!("cannot run {}: {error}", toolchain.cargo[0]))?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(format!(
            "the kernel programs do not build with {}",
            toolchain.name
        ));
    }
    copy(
        &target.join("bpfel-unknown-none/release/cgmeter-ebpf"),
        &out.join("cgmeter.bpf.o"),
    )
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::copy(from, to)
        .map(drop)
        .map_err(|error| format!("cannot copy {}: {error}", from.display()))
}
