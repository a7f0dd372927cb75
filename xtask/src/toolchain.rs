//! The toolchain of the kernel object, found alike by `xtask setup` and by the agent's build script,
//! which includes this file.
//!
//! Building core for BPF takes a compiler with its library's source at hand and a linker for BPF.
//! Two compilers are known to do: a rustup nightly with the component rust-src, and Debian's
//! rustc-web with rust-web-src. Invariants: nothing but std in here; finding installs nothing and
//! takes milliseconds; a linker whose LLVM is older than the compiler's is never paired with it,
//! since it can't read what that compiler writes.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The oldest compiler that is taken: the agent's own minimum.
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
    /// What it is, for people.
    pub name: String,
    /// The folder of its rustc, cargo and clippy.
    pub bin: PathBuf,
    /// Major version of its LLVM.
    pub llvm: u32,
}

/// What a toolchain lacks. Shown as one sentence; what to do about it is `setup`'s to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No compiler; those that were looked at, and why they don't do.
    Compiler(Vec<String>),
    /// No bpf-linker for this compiler.
    Linker(Compiler),
    /// A bpf-linker whose LLVM is older than that of the only compiler.
    NewerLinker {
        /// The linker that is there.
        linker: PathBuf,
        /// Major version of its LLVM.
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

/// Finds a toolchain: a nightly before Debian's compiler.
///
/// # Errors
///
/// The piece that is missing.
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

/// The first compiler that the linker can read; the linker's LLVM may be unknown.
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

/// Where compilers may be, in the order of choice: name, and the folder that has bin and lib.
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
    // `nightly-HOST`, which is updated, before `nightly-2026-05-19-HOST`, and new ones before old.
    roots.sort_by(|a, b| b.cmp(a));
    roots.push(("Debian's rustc-web".to_owned(), PathBuf::from("/usr")));
    roots
}

/// The compiler below `root`, or why it doesn't do.
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

/// Release and LLVM's major version, from the output of `rustc -vV`.
fn versions(text: &str) -> Option<((u32, u32), u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let mut release = field("release: ")?.split('.');
    let release = (release.next()?.parse().ok()?, release.next()?.parse().ok()?);
    let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
    Some((release, llvm))
}

/// bpf-linker, and LLVM's major version if it can be told.
fn linker() -> Option<(PathBuf, Option<u32>)> {
    let file = search_path()
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())?;
    // Its --version is silent on LLVM. A dynamic one names the library that it needs, a static one
    // has LLVM's own identification, both as plain text.
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

/// The folders of PATH, then cargo's own, which a fresh shell or sudo may lack.
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
    /// `cargo VERB` for the kernel programs in `sources`, built into `target`, free of what the
    /// calling cargo and the caller's flags for the host have put into the environment.
    pub fn cargo(&self, verb: &str, sources: &Path, target: &Path) -> Command {
        let bin = &self.compiler.bin;
        let mut command = Command::new(bin.join("cargo"));
        for (name, _) in env::vars_os().filter(|(name, _)| !kept(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        let linkers = self.linker.parent().map(Path::to_path_buf);
        let path = [bin.clone()]
            .into_iter()
            .chain(search_path())
            .chain(linkers);
        // A folder with a colon can't stand in PATH, so it can't have come from there.
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
            // -Z build-std, on Debian's compiler, which is a stable one.
            .env("RUSTC_BOOTSTRAP", "1")
            // Set here, flags of a `.cargo/config.toml` above don't count.
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

    /// Builds the kernel object and returns where it is.
    ///
    /// # Errors
    ///
    /// cargo's messages.
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

/// Whether an environment variable is for a nested cargo too: where things are and how the network
/// is reached, but not what the outer cargo builds, with which flags and compiler.
fn kept(name: &str) -> bool {
    const KEPT: &[&str] = &["CARGO_HOME", "RUSTUP_HOME", "CARGO_BUILD_JOBS"];
    const KEPT_PREFIXES: &[&str] = &[
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    let cargos = name == "CARGO" || name.starts_with("CARGO_") || name.starts_with("RUST");
    !cargos || KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The folder that kernel programs are built into, given a path below cargo's target folder: one for
/// all profiles and for lints, since the object is the same for each.
pub fn target_folder(below: &Path) -> Option<PathBuf> {
    let tagged = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
    let nearest = below.ancestors().find(tagged)?;
    // cargo tags the folder of a --target as well.
    let outermost = nearest.ancestors().take_while(tagged).last()?;
    Some(outermost.join("ebpf"))
}

#[cfg(test)]
#[path = "toolchain/tests.rs"] // the build script, too, takes this file by its path
mod tests;
