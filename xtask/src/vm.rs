//! `vm`: the live tests on other kernels, each in a virtual machine of its own.
//!
//! A guest runs the host's test binary, linked statically, in an initramfs. The host reads nothing but
//! the guest's console. Neither root nor KVM is needed: QEMU emulates the CPUs. Emulation is slow, so
//! no test may depend on time.
//!
//! QEMU emulates all CPUs of a guest in one thread (`-accel tcg,thread=single`). With a thread a CPU,
//! a CPU may run stale code that another has patched; Linux patches itself and crashes. The guests run
//! side by side instead.

mod console;
mod initramfs;
mod kernel;
mod modules;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use self::{console::Console, initramfs::Contents, kernel::Kernel};
use crate::{
    build::{QUICK, TRIPLE, static_cargo},
    notes::Skip,
    setup::{setup, setup_guests},
    shell::{output, run, target, watched},
    skips::{self, Place},
    tally::Tally,
};

/// The kernels, by the series of their Debian packages: the oldest one supported, and a newer one.
const SERIES: [&str; 2] = ["6.1", "6.12"];
/// Minutes after which a guest is killed: several times what it needs.
const PATIENCE: u32 = 25;
/// The guest's disk, /dev/vda.
const DISK_BYTES: u64 = 256 << 20;

/// What to test.
#[derive(Debug, Default, clap::Args)]
pub struct VmOptions {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only this kernel; may be given again
    #[arg(long = "kernel", value_name = "SERIES", value_parser = SERIES)]
    kernels: Vec<String>,
    /// Every live test, also those that take long and those not listed in tests/live/kernels.rs
    #[arg(long)]
    all: bool,
}

impl VmOptions {
    /// All kernels, and both tiers or the short one.
    pub fn tier(all: bool) -> Self {
        Self {
            all,
            ..Self::default()
        }
    }
}

/// Sets up, builds, and runs the live tests on each kernel.
pub fn vm(options: &VmOptions) -> Result<()> {
    let mut tally = Tally::default();
    tally.required("setup", setup)?;
    matrix(&mut tally, options);
    tally.close()
}

/// Runs the live tests on each kernel.
pub fn matrix(tally: &mut Tally, options: &VmOptions) {
    let wanted = |series: &&str| {
        options.kernels.is_empty() || options.kernels.iter().any(|kernel| kernel == series)
    };
    let kernels: Vec<&str> = SERIES.into_iter().filter(wanted).collect();
    if let Err(why) = usable() {
        return leave_out(tally, &kernels, &why);
    }
    let mut programs = None;
    tally.step("build for virtual machines", || {
        programs = Some(build()?);
        Ok(())
    });
    let Some((agent, tests)) = programs else {
        return;
    };
    let mut found = Vec::new();
    for series in kernels {
        match kernel::find(series) {
            Ok(Some(kernel)) => found.push(kernel),
            Ok(None) => {
                let why = format!("no cloud kernel of Linux {series} in Debian's package lists");
                leave_out(tally, &[series], &why);
            }
            Err(error) => tally.step(&format!("Linux {series}"), || Err(error)),
        }
    }
    let (agent, tests) = (&*agent, &*tests);
    let mut ends = Vec::new();
    tally.step("virtual machines, side by side", || {
        ends = thread::scope(|scope| {
            let test = |kernel| {
                let contents = Contents {
                    kernel,
                    agent,
                    tests,
                    filter: options.filter.as_deref(),
                    all: options.all,
                    done: &[],
                };
                scope.spawn(move || test(&contents))
            };
            let running: Vec<_> = found.iter().map(test).collect();
            let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
            ended.collect()
        });
        Ok(())
    });
    for (kernel, end) in found.iter().zip(ends) {
        match end {
            Ok(end) => count(tally, kernel, end),
            // The thread has printed why.
            Err(_) => tally.step(&format!("Linux {}", kernel.series), || bail!("panicked")),
        }
    }
}

/// Whether there can be virtual machines; if not, why not.
fn usable() -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the guests are x86-64, and this machine is not".to_owned());
    }
    setup_guests()
}

/// Counts kernels as skipped, loudly.
fn leave_out(tally: &mut Tally, kernels: &[&str], why: &str) {
    let skips = kernels
        .iter()
        .map(|series| Skip::new(format!("vm::{series}"), why));
    tally.skip("virtual machines", skips.collect());
}

/// Builds the agent and the live tests; their paths.
fn build() -> Result<(PathBuf, PathBuf)> {
    run(static_cargo("build", QUICK).args(["--package", "cgmeter"]))?;
    let messages = output(static_cargo("test", QUICK).args([
        "--package",
        "cgmeter-tests",
        "--test",
        "live",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]))?;
    let agent = target().join(TRIPLE).join(QUICK).join("cgmeter");
    let tests = executable(&messages).context("cargo names no executable of the live tests")?;
    Ok((agent, tests))
}

/// The executable in cargo's messages, a JSON object a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    })
}

/// How a guest has ended.
struct End {
    console: Console,
    outcome: Result<()>,
    time: Duration,
    /// Tests that the first guest had run when it died, if it did.
    died_after: Option<usize>,
}

/// Runs the tests on a kernel. Emulated guests die now and then: a second one runs the rest.
fn test(contents: &Contents<'_>) -> End {
    let begin = Instant::now();
    let mut console = Console::default();
    let mut died_after = None;
    let series = contents.kernel.series;
    let mut outcome = boot(contents, &mut console);
    if outcome.is_ok() && console.status.is_none() {
        let done = console.died();
        died_after = Some(done.len());
        println!(
            "{series} | THE GUEST DIED after {} tests, or was killed after {PATIENCE} minutes. \
             A second guest runs the rest. The end of its kernel log:\n{}",
            done.len(),
            kernel_log(series)
        );
        let contents = Contents {
            done: &done,
            ..*contents
        };
        outcome = boot(&contents, &mut console);
    }
    End {
        console,
        outcome,
        time: begin.elapsed(),
        died_after,
    }
}

/// Counts the tests of a guest.
fn count(tally: &mut Tally, kernel: &Kernel, end: End) {
    let series = kernel.series;
    let End {
        mut console,
        outcome,
        time,
        died_after,
    } = end;
    let notes = console.notes();
    if let Some(tests) = died_after {
        tally.remark(format!(
            "Linux {series}: the guest died after {tests} tests, a second one ran the rest"
        ));
    }
    tally.counted(&format!("Linux {series}: live tests"), |counts| {
        let status = console.status;
        if status.is_none() {
            console.died();
        }
        *counts = console.counts;
        counts.take(&notes);
        println!(
            "Linux {series} ({}): {counts} in {} s; {}",
            kernel.version,
            time.as_secs(),
            folder(series).display()
        );
        outcome?;
        let Some(status) = status else {
            bail!(
                "two guests died, or were killed after {PATIENCE} minutes, before their tests were \
                 done. The end of the kernel log:\n{}",
                kernel_log(series)
            );
        };
        counts.verdict(status == 0)
    });
    let place = Place::Guest(series);
    tally.noted(&format!("Linux {series}"), notes, place, skips::in_ci());
}

/// The end of a guest's kernel log.
fn kernel_log(series: &str) -> String {
    last_lines(&folder(series).join("kernel.log"), 20)
}

/// The folder of a guest's files.
fn folder(series: &str) -> PathBuf {
    target().join("vm").join(series)
}

/// Boots a guest and reads its console until it ends.
fn boot(contents: &Contents<'_>, console: &mut Console) -> Result<()> {
    let series = contents.kernel.series;
    let folder = folder(series);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let initramfs = initramfs::make(contents, &folder).context("making the initramfs")?;
    let disk = folder.join("disk.img");
    File::create(&disk)
        .and_then(|file| file.set_len(DISK_BYTES))
        .with_context(|| format!("making {}", disk.display()))?;
    let log = folder.join("console.log");
    let file = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let kernel_log = folder.join("kernel.log");
    let mut command = qemu(contents.kernel, &initramfs, &disk, &kernel_log);
    watched(&mut command, file, |line| {
        if let Some(text) = console.line(line) {
            println!("{series} | {text}");
        }
    })?;
    let check = folder.join("check.txt");
    fs::write(&check, &console.check).with_context(|| format!("writing {}", check.display()))
}

/// QEMU, with the guest's first serial port on its standard output.
fn qemu(kernel: &Kernel, initramfs: &Path, disk: &Path, log: &Path) -> Command {
    // In the foreground: Ctrl-C in a terminal ends the guest, too.
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=10", &format!("{PATIENCE}m")]);
    command.args("qemu-system-x86_64 -nodefaults -display none -no-reboot".split(' '));
    command.args("-accel tcg,thread=single -smp 2 -m 1024 -serial stdio".split(' '));
    command.arg("-serial").arg(joined("file:", log));
    command.arg("-kernel").arg(&kernel.image);
    command.arg("-initrd").arg(initramfs);
    let drive = joined("format=raw,if=virtio,cache=unsafe,file=", disk);
    command.arg("-drive").arg(drive);
    // The kernel logs to the second port, so that its lines don't mix with those of the tests.
    let line = "console=ttyS1 loglevel=6 cgroup_no_v1=all psi=1 panic=-1";
    command.args(["-append", line]);
    command.stdin(Stdio::null());
    command
}

fn joined(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

fn last_lines(path: &Path, count: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_among_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                        not json\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/live-1\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/live-1")));
        assert_eq!(executable("{}\n"), None);
    }

    #[test]
    fn a_log_is_shown_from_its_end() {
        let file = std::env::temp_dir().join(format!("xtask-log-{}", std::process::id()));
        fs::write(&file, "one\ntwo\nthree\n").unwrap();
        assert_eq!(last_lines(&file, 2), "two\nthree");
        assert_eq!(last_lines(&file, 9), "one\ntwo\nthree");
        fs::remove_file(&file).unwrap();
        assert_eq!(last_lines(&file, 2), "");
    }
}
