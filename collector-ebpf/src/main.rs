//! The kernel programs of cgmeter, one file a subsystem.
//!
//! Invariants: nothing is sent to userspace per event but cgroup lifecycle; no program needs a
//! kprobe; kernel memory is read through the typed fields of [`kernel`] alone; a program that the
//! running kernel can't have is left out by the loader without touching the others.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod block;
mod cell;
mod cgroup;
mod cgroup_iterator;
mod clocks;
mod drops;
mod event;
mod final_record;
mod generation;
mod grace;
mod heir;
mod kept;
mod kernel;
mod keyed;
mod maps;
mod net;
mod netdev;
mod process;
mod race;
mod reclaim;
mod removal;
mod sched;
mod shared;
mod slot;
mod sock;
mod stat;
mod task;
mod tasks;
mod tcp;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program that could get here.
    loop {}
}

/// Helpers such as `bpf_probe_read_kernel` are for GPL-compatible programs; cgmeter's own licence,
/// MIT OR Apache-2.0, is joined by the GPL for the object alone.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
