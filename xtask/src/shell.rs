//! Commands and paths.
//!
//! Invariant: every cargo that is started here builds into the target folder of xtask itself.

use std::{
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The root of the repository.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// cargo's target folder.
pub fn target() -> PathBuf {
    // TARGET/debug/xtask
    let own = std::env::current_exe().ok();
    own.and_then(|file| Some(file.parent()?.parent()?.to_path_buf()))
        .unwrap_or_else(|| root().join("target"))
}

/// The agent that `build` makes.
pub fn agent() -> PathBuf {
    target().join("release/cgmeter")
}

/// cargo, in the root of the repository.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command
        .args(arguments)
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target());
    command
}

/// Runs a command, which has to succeed. The error names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a command, which has to succeed, and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command, copies its standard output to `out` at once, and calls `line` for each line. Returns
/// whether the command succeeded.
pub fn watched(
    command: &mut Command,
    mut out: impl Write,
    mut line: impl FnMut(&str),
) -> Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    let mut stdout = child.stdout.take().context("no pipe to read from")?;
    let (mut buffer, mut pending) = (vec![0; 8192], Vec::new());
    loop {
        let count = stdout.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        // Not by lines, because `test name ... ` should be visible while the test runs.
        out.write_all(&buffer[..count])?;
        out.flush()?;
        pending.extend_from_slice(&buffer[..count]);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            line(&String::from_utf8_lossy(&pending[..end]));
            pending.drain(..=end);
        }
    }
    line(&String::from_utf8_lossy(&pending));
    Ok(child.wait()?.success())
}

/// A command as it would be typed, without its environment.
pub fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(
        command
            .get_args()
            .map(|argument| argument.to_string_lossy()),
    );
    words.join(" ")
}

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Fails if this process is not root. Verbs call it before they build anything.
pub fn require_root(verb: &str, why: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!(
        "`cargo xtask {verb}` needs root: {why}. Go on with\n  \
         sudo -E env \"PATH=$PATH\" cargo xtask {verb}\n\
         (`cargo xtask build` and `cargo xtask check` need no root)"
    )
}

/// Whether a program is on the path.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// A program on the path, or in the sbin folders, which users other than root often lack there.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_comes_by_lines() {
        let (mut lines, mut out) = (Vec::new(), Vec::new());
        let mut command = Command::new("sh");
        command.args(["-c", "printf 'one\ntwo ... '; printf 'ok\nlast'; exit 3"]);
        assert!(!watched(&mut command, &mut out, |line| lines.push(line.to_owned())).unwrap());
        assert_eq!(lines, ["one", "two ... ok", "last"]);
        assert_eq!(out, b"one\ntwo ... ok\nlast");
    }

    #[test]
    fn a_failure_names_its_command() {
        let error = run(Command::new("false").arg("x")).unwrap_err().to_string();
        assert!(error.starts_with("false x failed"), "{error}");
        let error = run(&mut Command::new("/nowhere/at-all"))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "cannot run /nowhere/at-all");
    }
}
