//! Which programs count, while an agent puts its own in the place of an earlier agent's.
//!
//! Both are attached then, to the same maps. The new ones return at once until the agent stores their
//! number; from then on the old ones do, and are detached. An event that is being counted at that moment
//! may be counted twice or not at all. Programs that count by how much a clock has grown, as `sched_switch`
//! does, need none of this: whoever comes second finds no growth.

use aya_ebpf::Global;

/// The programs that count. In a section of its own, which is a map that both have.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.generation")]
static GENERATION: Global<u32> = Global::new(0);

/// The number of these programs.
#[unsafe(no_mangle)]
static OWN_GENERATION: Global<u32> = Global::new(0);

/// Whether other programs count.
#[inline(always)]
pub fn is_other() -> bool {
    GENERATION.load() != OWN_GENERATION.load()
}
