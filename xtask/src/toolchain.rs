//! The toolchain that builds the kernel object, found the same way by `xtask setup` and by the
//! agent's build script (which includes this file).
//!
//! Building core for BPF needs a compiler with its library's source at hand. Two are known to do:
//! a rustup nightly with the component rust-src, and Debian's packages rustc-web and rust-web-src.
//! Both need bpf-linker, whose LLVM must not be older than the compiler's.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Compiler and linker for the kernel object.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// What it is, for people.
    pub name: &'static str,
    /// cargo, with the arguments that select the toolchain.
    pub cargo: Vec<String>,
    /// Value of RUSTC; `None` where cargo knows.
    pub rustc: Option<PathBuf>,
    /// Value of PATH.
    pub path: String,
}

/// Debian's compiler.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Finds a toolchain.
///
/// # Errors
///
/// What is missing and how to get it.
pub fn find() -> Result<Toolchain, String> {
    if bpf_linker().is_none() {
        return Err(missing("bpf-linker is not installed"));
    }
    rustup_nightly().or_else(debian).ok_or_else(|| {
        missing(
            "there is no compiler with core's source: neither a rustup nightly with rust-src \
                 nor Debian's rustc-web with rust-web-src",
        )
    })
}

fn missing(what: &str) -> String {
    format!(
        "the kernel programs can't be built: {what}. Run `cargo xtask setup`, which installs what is \
         missing on Debian as root; or by hand: `rustup toolchain install nightly --component \
         rust-src && cargo install bpf-linker`"
    )
}

/// Where bpf-linker is: on PATH, or where cargo installs.
pub fn bpf_linker() -> Option<PathBuf> {
    let path = search_path();
    env::split_paths(&path)
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())
}

/// PATH with cargo's folder of installed programs at its end.
fn search_path() -> String {
    let home = env::var("CARGO_HOME")
        .or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")))
        .unwrap_or_default();
    format!("{}:{home}/bin", env::var("PATH").unwrap_or_default())
}

fn rustup_nightly() -> Option<Toolchain> {
    let output = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    has_source(&sysroot).then(|| Toolchain {
        name: "rustup nightly",
        cargo: ["rustup", "run", "nightly", "cargo"]
            .map(str::to_owned)
            .to_vec(),
        rustc: None,
        path: search_path(),
    })
}

fn debian() -> Option<Toolchain> {
    let output = Command::new(DEBIAN_RUSTC)
        .args(["--print", "sysroot"])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (has_source(&sysroot) && Path::new("/usr/bin/cargo").is_file()).then(|| Toolchain {
        name: "Debian's rustc-web",
        cargo: vec!["/usr/bin/cargo".to_owned()],
        rustc: Some(PathBuf::from(DEBIAN_RUSTC)),
        path: format!("/usr/bin:{}", search_path()),
    })
}

fn has_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
}

impl Toolchain {
    /// A cargo command of this toolchain in the kernel programs' folder, free of what the calling
    /// cargo has put into the environment.
    pub fn cargo(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.cargo[0]);
        command.args(&self.cargo[1..]).current_dir(folder);
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let cargos = name.starts_with("CARGO_") && name != "CARGO_HOME";
            if cargos || name.starts_with("RUST") && name != "RUSTUP_HOME" {
                command.env_remove(name);
            }
        }
        command.env("PATH", &self.path).env("RUSTC_BOOTSTRAP", "1");
        // A stray `.cargo/config.toml` above can't change flags that are set here.
        let flags = [
            "-Clinker=bpf-linker",
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
            "-Ctarget-cpu=v3",
        ];
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        if let Some(rustc) = &self.rustc {
            command.env("RUSTC", rustc);
        }
        command
    }
}
