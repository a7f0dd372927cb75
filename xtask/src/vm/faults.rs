//! Faults of a guest's kernel, as its log and its console show them.
//!
//! Emulated CPUs are slow, and a kernel may take that for a stall. A stall is a fault only if the
//! report names a BPF program or the verifier: the kernel programs or their loading held up the CPU.

/// What the kernel prints for nothing but a fault.
const FAULTS: &[&str] = &["BUG:", "Oops", "Kernel panic", "general protection fault"];

/// What the report of a stall begins with: RCU's of CPUs and tasks, and that of hung tasks.
const STALLS: &[&str] = &[
    "detected stall",
    "detected expedited stall",
    "blocked for more than",
];

/// Functions in the report of a stall that is due to the kernel programs.
const OURS: &[&str] = &["bpf_prog_", "bpf_check", "do_check"];

/// Lines of the report of a stall: registers and call traces of a few CPUs.
const REPORT: usize = 120;

/// Looks for faults, line by line.
#[derive(Debug, Default)]
pub struct Faults {
    /// The first line that shows one.
    pub found: Option<String>,
    /// The first line of the report of a stall, and how many lines of it are still to come.
    stall: Option<(String, usize)>,
}

impl Faults {
    /// Looks through a text.
    pub fn of(text: &str) -> Self {
        let mut faults = Self::default();
        text.lines().for_each(|line| faults.line(line));
        faults
    }

    /// Looks at the next line.
    pub fn line(&mut self, line: &str) {
        let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
        if self.found.is_some() {
            return;
        }
        if has(FAULTS) {
            self.found = Some(line.trim().to_owned());
        } else if has(STALLS) {
            self.stall = Some((line.trim().to_owned(), REPORT));
        } else if let Some((begin, left)) = &mut self.stall {
            if has(OURS) {
                self.found = Some(format!("{begin} … {}", line.trim()));
            }
            *left -= 1;
            if *left == 0 {
                self.stall = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_found() {
        for line in [
            "[   61.20] BUG: kernel NULL pointer dereference, address: 0000000000000010",
            "[   61.21] Oops: 0000 [#1] PREEMPT SMP NOPTI",
            "[   61.22] Kernel panic - not syncing: Fatal exception in interrupt",
            "[   61.23] general protection fault, probably for non-canonical address 0x1: 0000",
            "[   90.00] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [live:812]",
        ] {
            let text = format!("[    0.00] Linux version 6.1.0\r\n{line}\r\n[   99.00] x\r\n");
            assert_eq!(Faults::of(&text).found.as_deref(), Some(line));
        }
    }

    #[test]
    fn usual_messages_are_no_faults() {
        let text = "Command line: console=ttyS1 loglevel=6 cgroup_no_v1=all psi=1 panic=-1\n\
                    Memory cgroup out of memory: Killed process 9 (live)\n\
                    traps: live[7] trap int3 ip:1 sp:2 error:0\nreboot: Power down\n";
        assert_eq!(Faults::of(text).found, None);
    }

    #[test]
    fn a_stall_is_a_fault_only_in_our_programs_or_their_verification() {
        let report = |function: &str| {
            format!(
                "rcu: INFO: rcu_preempt self-detected stall on CPU\n{}Call Trace:\n {function}+0x1/0x2\n",
                "rcu: \t0-....: (5249 ticks this GP)\n".repeat(20)
            )
        };
        for function in [
            "bpf_prog_6deef7357e7b4530_sched_switch",
            "do_check",
            "bpf_check",
        ] {
            let found = Faults::of(&report(function)).found.unwrap();
            assert!(
                found.starts_with("rcu: INFO") && found.contains(function),
                "{found}"
            );
        }
        assert_eq!(Faults::of(&report("text_poke_bp_batch")).found, None);
        // Long after the report, the same name says nothing of the stall.
        let later = "systemd[1]: x\n".repeat(REPORT) + "bpf_prog_1_x";
        assert_eq!(Faults::of(&(report("text_poke") + &later)).found, None);
    }
}
