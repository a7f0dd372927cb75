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
mod faults;
#[path = "../../tests/live/guests.rs"]
mod guests;
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

use self::{console::Console, faults::Faults, guests::SERIES, initramfs::Contents, kernel::Kernel};
use crate::{
    build::{QUICK, TRIPLE, static_cargo},
    notes::Skip,
    setup::{setup, setup_guests},
    shell::{output, run, target, watched},
    skips::{self, Place},
    tally::Tally,
};

/// Minutes after which a guest is killed: several times what it needs.
const PATIENCE: u32 = 25;
/// Lines of a kernel log that are shown.
const LOG_LINES: usize = 20;
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
                scope.spawn(move || {
                    test(kernel.series, |done, console| {
                        boot(&Contents { done, ..contents }, console)
                    })
                })
            };
            let running: Vec<_> = found.iter().map(test).collect();
            let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
            ended.collect()
        });
        Ok(())
    });
    for (kernel, end) in found.iter().zip(ends) {
        match end {
            Ok(end) => count(tally, kernel.series, &kernel.version, end),
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

/// How the guests of a kernel have ended.
struct End {
    console: Console,
    outcome: Result<()>,
    time: Duration,
}

/// Runs the tests on a kernel. `boot` boots a guest that runs the tests but those that are done, and
/// returns its kernel log. Emulated guests die now and then: a second one runs the rest, and the test
/// that was running counts as run again. A fault of the kernel is an error.
fn test(series: &str, mut boot: impl FnMut(&[String], &mut Console) -> Result<String>) -> End {
    let begin = Instant::now();
    let mut console = Console::default();
    let mut guest = |done: &[String], console: &mut Console| {
        let log = boot(done, console)?;
        let found = Faults::of(&log).found.or(console.faults.found.take());
        match found {
            Some(fault) => bail!(
                "the kernel had a fault: {fault}\nThe end of its log:\n{}",
                last_lines(&log, LOG_LINES)
            ),
            None => Ok(log),
        }
    };
    let mut outcome = guest(&[], &mut console);
    if let Ok(log) = &outcome
        && console.status.is_none()
    {
        let last = console.last_test();
        let done = console.died();
        let rerun = format!("{last}: the guest died (Linux {series})");
        println!(
            "{series} | {rerun}, after {} tests, or was killed after {PATIENCE} minutes. A second \
             guest runs the rest. The end of its kernel log:\n{}",
            done.len(),
            last_lines(log, LOG_LINES)
        );
        console.counts.reruns.push(rerun);
        outcome = guest(&done, &mut console);
    }
    let outcome = outcome.and_then(|log| {
        if console.status.is_none() {
            bail!(
                "two guests died, or were killed after {PATIENCE} minutes, before their tests were \
                 done. The end of the kernel log:\n{}",
                last_lines(&log, LOG_LINES)
            );
        }
        Ok(())
    });
    if console.status.is_none() {
        console.died();
    }
    End {
        console,
        outcome,
        time: begin.elapsed(),
    }
}

/// Counts the tests of a guest.
fn count(tally: &mut Tally, series: &'static str, version: &str, end: End) {
    let End {
        console,
        outcome,
        time,
    } = end;
    let notes = console.notes();
    tally.counted(&format!("Linux {series}: live tests"), |counts| {
        *counts = console.counts;
        counts.take(&notes);
        println!(
            "Linux {series} ({version}): {counts} in {} s; {}",
            time.as_secs(),
            folder(series).display()
        );
        outcome?;
        counts.verdict(console.status == Some(0))
    });
    let place = Place::Guest(series);
    tally.noted(&format!("Linux {series}"), notes, place, skips::in_ci());
}

/// The folder of a guest's files.
fn folder(series: &str) -> PathBuf {
    target().join("vm").join(series)
}

/// Boots a guest and reads its console until it ends. Returns its kernel log.
fn boot(contents: &Contents<'_>, console: &mut Console) -> Result<String> {
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
    fs::write(&check, &console.check).with_context(|| format!("writing {}", check.display()))?;
    let log = fs::read(&kernel_log).with_context(|| format!("reading {}", kernel_log.display()))?;
    Ok(String::from_utf8_lossy(&log).into_owned())
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

fn last_lines(text: &str, count: usize) -> String {
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
        let text = "one\ntwo\nthree\n";
        assert_eq!(last_lines(text, 2), "two\nthree");
        assert_eq!(last_lines(text, 9), "one\ntwo\nthree");
        assert_eq!(last_lines("", 2), "");
    }

    const DIES: &str = ":::guest tests begin\ntest a::b ... ok\ntest a::c ... ";
    const ENDS: &str = ":::guest tests begin\ntest a::c ... ok\n\
                        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n\
                        :::guest tests end 0";

    /// Guests of one kernel after each other, each with its console and kernel log; how many of them
    /// were booted, and what each was told to leave out.
    fn guests(said: &[(&str, &str)]) -> (End, Vec<Vec<String>>) {
        let mut booted = Vec::new();
        let end = test("6.1", |done, console| {
            let (lines, log) = said[booted.len()];
            booted.push(done.to_vec());
            for line in lines.lines() {
                console.line(line);
            }
            Ok(log.to_owned())
        });
        (end, booted)
    }

    fn closed(ends: Vec<End>) -> Result<()> {
        let mut tally = Tally::default();
        for end in ends {
            count(&mut tally, "6.1", "6.1.0", end);
        }
        tally.close()
    }

    #[test]
    fn the_test_during_which_a_guest_died_counts_as_run_again() {
        let (end, booted) = guests(&[(DIES, "booted"), (ENDS, "booted")]);
        assert_eq!(booted, [vec![], vec!["a::b".to_owned()]]);
        let reruns = ["a::c: the guest died (Linux 6.1)"];
        assert_eq!(end.console.counts.reruns, reruns);
        assert_eq!(end.console.counts.passed, 2);
        closed(vec![end]).unwrap();
    }

    #[test]
    fn a_third_dead_guest_fails_the_run() {
        let deaths = |count| {
            let ends = (0..count).map(|_| guests(&[(DIES, ""), (ENDS, "")]).0);
            closed(ends.collect())
        };
        deaths(2).unwrap();
        let error = deaths(3).unwrap_err().to_string();
        assert_eq!(error, "failed: 3 tests were run again");
    }

    #[test]
    fn two_dead_guests_of_a_kernel_fail_it() {
        let (end, booted) = guests(&[(DIES, ""), (":::guest tests begin\ntest a::c ... ", "end")]);
        assert_eq!(booted.len(), 2);
        assert_eq!(
            end.console.counts.reruns.len(),
            1,
            "the second was not replaced"
        );
        assert!(
            end.outcome
                .as_ref()
                .unwrap_err()
                .to_string()
                .contains("two guests died")
        );
        assert!(closed(vec![end]).is_err());
    }

    #[test]
    fn a_fault_of_the_kernel_fails_the_run_whether_the_guest_died_or_not() {
        let oops = "booted\nOops: 0000 [#1] PREEMPT SMP NOPTI\n";
        let panic = format!("{DIES}\n[  9.1] Kernel panic - not syncing: Fatal exception");
        for guest in [(DIES, oops), (ENDS, oops), (&panic, "booted")] {
            let (end, booted) = guests(&[guest]);
            assert_eq!(booted.len(), 1, "there is no second guest");
            let error = end.outcome.as_ref().unwrap_err().to_string();
            assert!(error.starts_with("the kernel had a fault: "), "{error}");
            let error = closed(vec![end]).unwrap_err().to_string();
            assert_eq!(error, "failed: Linux 6.1: live tests");
        }
        // The second guest's kernel counts, too.
        let (end, _) = guests(&[(DIES, "booted"), (ENDS, oops)]);
        assert!(closed(vec![end]).is_err());
    }
}
