//! Finds the compiler and the linker of the kernel programs, and builds with them.
//!
//! The agent's build script and `cargo xtask setup` both use this crate, so they agree on what is
//! there. Building `core` for BPF needs a compiler that has the source of its standard library, and
//! a linker for BPF. Two compilers work: a rustup nightly with the component rust-src, and Debian's
//! rustc-web with rust-web-src.
//!
//! Invariants: the crate depends on std alone, because every build of the agent compiles it. Finding
//! installs nothing and takes milliseconds. A linker is never paired with a compiler whose LLVM is
//! newer than its own: it could not read what that compiler writes.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The oldest compiler that is accepted: the minimum of the agent itself.
const OLDEST: (u32, u32) = (1, 95);

/// Compiler and linker for the kernel object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler.
    pub compiler: Compiler,
    /// Where bpf-linker is.
    pub linker: PathBuf,
}

/// A compiler that has core's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// Its name in messages.
    pub name: String,
    /// The folder with its rustc, cargo and clippy.
    pub bin: PathBuf,
    /// The major version of its LLVM.
    pub llvm: u32,
}

/// The part of a toolchain that is missing. `Display` gives one sentence, without a remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No usable compiler. Holds why each candidate was rejected.
    Compiler(Vec<String>),
    /// No bpf-linker. Holds the compiler that was chosen.
    Linker(Compiler),
    /// A bpf-linker whose LLVM is older than that of every compiler.
    NewerLinker {
        /// The linker that was found.
        linker: PathBuf,
        /// The major version of its LLVM.
        llvm: u32,
        /// The compiler that needs a newer one.
        compiler: Compiler,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler(seen) => {
                let (major, minor) = OLDEST;
                write!(
                    out,
                    "there is no compiler that can build core for BPF: neither a rustup nightly with the \
                     component rust-src nor Debian's rustc-web with rust-web-src, {major}.{minor} or newer"
                )?;
                if !seen.is_empty() {
                    write!(out, " (looked at {})", seen.join(", "))?;
                }
                Ok(())
            }
            Self::Linker(compiler) => {
                write!(out, "there is no bpf-linker to go with {}", compiler.name)
            }
            Self::NewerLinker {
                linker,
                llvm,
                compiler,
            } => write!(
                out,
                "{} is made with LLVM {llvm} and can't read what {} writes, which has LLVM {}",
                linker.display(),
                compiler.name,
                compiler.llvm
            ),
        }
    }
}

/// Finds a toolchain. A nightly is preferred to Debian's compiler.
///
/// # Errors
///
/// Returns the part that is missing.
pub fn find() -> Result<Toolchain, Missing> {
    let (mut compilers, mut seen) = (Vec::new(), Vec::new());
    for (name, root) in roots() {
        match compiler(name, &root) {
            Ok(compiler) => compilers.push(compiler),
            Err(why) => seen.push(why),
        }
    }
    choose(compilers, seen, linker())
}

/// Pairs the linker with the first compiler whose output it can read. A linker of unknown LLVM is
/// taken to read everything.
fn choose(
    compilers: Vec<Compiler>,
    seen: Vec<String>,
    linker: Option<(PathBuf, Option<u32>)>,
) -> Result<Toolchain, Missing> {
    let Some(first) = compilers.first().cloned() else {
        return Err(Missing::Compiler(seen));
    };
    let Some((linker, llvm)) = linker else {
        return Err(Missing::Linker(first));
    };
    let readable = |compiler: &Compiler| llvm.is_none_or(|llvm| llvm >= compiler.llvm);
    match (compilers.into_iter().find(readable), llvm) {
        (Some(compiler), _) => Ok(Toolchain { compiler, linker }),
        (None, llvm) => Err(Missing::NewerLinker {
            linker,
            llvm: llvm.unwrap_or(0),
            compiler: first,
        }),
    }
}

/// Where compilers may be, in order of preference: name, and the folder that has bin and lib.
fn roots() -> Vec<(String, PathBuf)> {
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| in_home(".rustup"));
    let mut roots: Vec<(String, PathBuf)> = rustup
        .and_then(|home| fs::read_dir(home.join("toolchains")).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        .filter(|(name, _)| name.starts_with("nightly"))
        .collect();
    // `nightly-HOST` sorts before `nightly-2026-05-19-HOST`, and newer dates before older ones.
    roots.sort_by(|a, b| b.cmp(a));
    roots.push(("Debian's rustc-web".to_owned(), PathBuf::from("/usr")));
    roots
}

/// The compiler below `root`, or why it can't be used.
fn compiler(name: String, root: &Path) -> Result<Compiler, String> {
    let bin = root.join("bin");
    if !bin.join("rustc").is_file() || !bin.join("cargo").is_file() {
        return Err(format!("{name}: not installed"));
    }
    if !root
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
    {
        return Err(format!("{name}: no source of core"));
    }
    let output = Command::new(bin.join("rustc"))
        .arg("-vV")
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((release, llvm)) = versions(&text) else {
        return Err(format!("{name}: `rustc -vV` says nothing of its version"));
    };
    if release < OLDEST {
        return Err(format!("{name}: it is {}.{}", release.0, release.1));
    }
    Ok(Compiler { name, bin, llvm })
}

/// The release and LLVM's major version, from the output of `rustc -vV`.
fn versions(text: &str) -> Option<((u32, u32), u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let mut release = field("release: ")?.split('.');
    let release = (release.next()?.parse().ok()?, release.next()?.parse().ok()?);
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((release, llvm))
}

/// bpf-linker, and the major version of its LLVM where it can be found out.
fn linker() -> Option<(PathBuf, Option<u32>)> {
    let file = search_path()
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())?;
    // `--version` doesn't name LLVM. A dynamically linked one contains the name of the library, a
    // static one contains LLVM's identification, both as plain text.
    let output = Command::new("grep")
        .args([
            "-aoE",
            "-m1",
            r"libLLVM(\.so\.|-)[0-9]+|LLVM[0-9]+\.[0-9]+\.[0-9]+",
        ])
        .arg(&file)
        .output()
        .ok();
    let llvm = output.and_then(|output| llvm_named(&String::from_utf8_lossy(&output.stdout)));
    Some((file, llvm))
}

/// 22, from `libLLVM.so.22`, `libLLVM-22` or `LLVM22.1.2`.
fn llvm_named(text: &str) -> Option<u32> {
    let line = text.lines().next()?;
    let digits = line.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split('.').next()?.parse().ok()
}

/// The folders of PATH, then cargo's own, which is not on PATH in a fresh shell or under sudo.
fn search_path() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| in_home(".cargo"));
    let folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders
        .into_iter()
        .chain(cargo.map(|home| home.join("bin")))
}

fn in_home(folder: &str) -> Option<PathBuf> {
    env::var_os("HOME").map(|home| Path::new(&home).join(folder))
}

impl Toolchain {
    /// `cargo VERB` for the kernel programs in `sources`, built into `target`. Variables that the
    /// calling cargo has set, and flags meant for the host, are removed from its environment.
    pub fn cargo(&self, verb: &str, sources: &Path, target: &Path) -> Command {
        let bin = &self.compiler.bin;
        let mut command = Command::new(bin.join("cargo"));
        for (name, _) in env::vars_os().filter(|(name, _)| !inherited(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        let linkers = self.linker.parent().map(Path::to_path_buf);
        let path = [bin.clone()]
            .into_iter()
            .chain(search_path())
            .chain(linkers);
        // Fails only for a folder with a colon in its name, which PATH can't hold.
        if let Ok(path) = env::join_paths(path) {
            command.env("PATH", path);
        }
        let linker = format!("-Clinker={}", self.linker.display());
        let flags = [
            &linker,
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
            "-Ctarget-cpu=v3",
        ];
        command
            .current_dir(sources)
            .env("RUSTC", bin.join("rustc"))
            .env("RUSTDOC", bin.join("rustdoc"))
            // Debian's compiler is a stable one: this makes it accept -Z build-std.
            .env("RUSTC_BOOTSTRAP", "1")
            // Overrides flags of any `.cargo/config.toml` in a folder above.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .args([
                verb,
                "--release",
                "--locked",
                "--target",
                "bpfel-unknown-none",
            ])
            .args(["-Z", "build-std=core", "--target-dir"])
            .arg(target);
        command
    }

    /// Builds the kernel object and returns its path.
    ///
    /// # Errors
    ///
    /// Returns cargo's messages.
    pub fn build(&self, sources: &Path, target: &Path) -> Result<PathBuf, String> {
        let output = self
            .cargo("build", sources, target)
            .output()
            .map_err(|error| format!("cannot run {}: {error}", self.compiler.bin.display()))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(target.join("bpfel-unknown-none/release/cgmeter-ebpf"))
    }
}

/// Whether a nested cargo gets an environment variable. It gets the locations and the network
/// settings, but neither the flags nor the compiler of the outer cargo.
fn inherited(name: &str) -> bool {
    const NAMES: &[&str] = &["CARGO_HOME", "RUSTUP_HOME", "CARGO_BUILD_JOBS"];
    const PREFIXES: &[&str] = &[
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    let of_cargo = name == "CARGO" || name.starts_with("CARGO_") || name.starts_with("RUST");
    !of_cargo || NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The folder that the kernel programs are built into, given a path below cargo's target folder. It
/// is the same for all profiles and for lints, because the object is.
pub fn target_folder(below: &Path) -> Option<PathBuf> {
    let tagged = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
    let nearest = below.ancestors().find(tagged)?;
    // cargo also tags the folder of a --target.
    let outermost = nearest.ancestors().take_while(tagged).last()?;
    Some(outermost.join("ebpf"))
}

#[cfg(test)]
mod tests;
