//! Evidence that no program can still be using a retired slot: an RCU grace period has passed.
//!
//! It costs nothing. A task that ends notes how many slots have been retired; the kernel frees it after
//! a grace period (kernel/exit.c, `delayed_put_task_struct`), and by then whatever program ran when it
//! noted has ended. A cgroup is released after a grace period as well (kernel/cgroup/cgroup.c,
//! `css_killed_ref_fn`), which began before its slot was retired: that is evidence for the slots retired
//! before. Clocks and counts of switches would prove nothing: a program may be preempted, and a virtual
//! CPU may stand still.

use collector_common::{sched::TaskState, slot::SlotControl};

use crate::{
    heir,
    maps::Find,
    shared::{Shared, member},
    slot::SLOT_CONTROL,
};

/// Notes, for a task that ends, how many slots have been retired.
#[inline(always)]
pub fn note_end(state: Shared<TaskState>) {
    if let Some(control) = SLOT_CONTROL.find(0) {
        member!(state.retired).set(member!(control.head).get());
    }
}

/// A task is freed that has ended with that note.
#[inline(always)]
pub fn note_freed(state: Shared<TaskState>) {
    if let Some(control) = SLOT_CONTROL.find(0) {
        raise(control, member!(state.retired).get());
    }
}

/// A removed cgroup is released.
#[inline(always)]
pub fn note_released(id: u64) {
    if let (Some(control), Some((_, place))) = (SLOT_CONTROL.find(0), heir::of(id)) {
        raise(control, place);
    }
}

#[inline(always)]
fn raise(control: Shared<SlotControl>, to: u64) {
    let graced = member!(control.graced);
    let now = graced.get();
    if now < to {
        // If somebody else was faster, the next evidence comes soon.
        graced.exchange(now, to);
    }
}
