//! For a test of the grace period: makes a race likely, or takes away what prevents its harm.

use aya_ebpf::{Global, helpers::bpf_ktime_get_ns};

use crate::{
    kernel::Task,
    shared::{Words, repeat_on},
};

/// How long the switch program waits for a task that ends, µs. 0 but in that test.
#[unsafe(no_mangle)]
static SLOW_US: Global<u32> = Global::new(0);

/// Not 0: slots are swept without a grace period. 0 but in that test.
#[unsafe(no_mangle)]
static NO_GRACE: Global<u32> = Global::new(0);

/// Looks at the clock so often at most. The kernel allows twice as many.
const LOOKS: u32 = 1 << 22;

/// Whether slots are swept without a grace period.
#[inline(always)]
pub fn no_grace() -> bool {
    NO_GRACE.load() != 0
}

/// Between the finding of a task's cell and the adding to it. When a task that ends is switched out for the last
/// time, its cgroup can be removed.
#[inline(always)]
pub fn pause(task: Task) {
    let time = SLOW_US.load();
    if time != 0 && task.is_ending() {
        wait(time);
    }
}

#[inline(never)]
fn wait(us: u32) {
    // SAFETY: always allowed.
    let until = unsafe { bpf_ktime_get_ns() } + u64::from(us) * 1000;
    repeat_on(LOOKS, look, [until]);
}

#[inline(never)]
extern "C" fn look(_: u64, words: Words<1>) -> i64 {
    // SAFETY: always allowed.
    (unsafe { bpf_ktime_get_ns() } >= words.get::<0>()).into()
}
