//! Memory that the programs share with others: values of maps, and storage of tasks and sockets.
//!
//! Such a value is used at the same time by other CPUs, by interrupts on this CPU, by callbacks of
//! helpers and by the agent, which maps it. A Rust reference claims that nobody else writes, so none
//! is made: a [`Shared`] is a copyable pointer whose words are read and written by one volatile
//! access each, or atomically.
//!
//! Invariant: this file and maps.rs are the only ones that follow a pointer into a map. Checked by
//! collector/tests/kernel_programs.rs.

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{self, NonNull},
};

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel, bpf_probe_read_kernel_str};
use collector_common::{cell::Cell, keyed::Counters};

/// A value in shared memory.
#[repr(transparent)]
pub struct Shared<T>(NonNull<T>);

impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

/// A member of a shared value: `member!(cell.run_ns)`.
macro_rules! member {
    ($shared:ident . $($member:ident).+) => {
        // SAFETY: the handle is of a whole value, and a member is within it.
        unsafe { $shared.project(|value| &raw mut (*value).$($member).+) }
    };
}
pub(crate) use member;

impl<T> Shared<T> {
    /// The value that a lookup has returned, `None` for null.
    ///
    /// # Safety
    ///
    /// The pointer is null, or that of a value which stays valid until the program ends.
    #[inline(always)]
    pub unsafe fn new(value: *mut T) -> Option<Self> {
        NonNull::new(value).map(Self)
    }

    /// Part of the value. For [`member`].
    ///
    /// # Safety
    ///
    /// What the function returns is within the value that it is given.
    #[inline(always)]
    pub unsafe fn project<U>(self, part: impl FnOnce(*mut T) -> *mut U) -> Shared<U> {
        // SAFETY: part of a value, so not null.
        Shared(unsafe { NonNull::new_unchecked(part(self.0.as_ptr())) })
    }

    /// For helpers that take a value's address.
    #[inline(always)]
    pub fn address(self) -> *const c_void {
        self.0.as_ptr().cast_const().cast()
    }
}

/// Integers that one load or store moves.
///
/// # Safety
///
/// Every bit pattern is valid.
pub unsafe trait Word: Copy {}

// SAFETY: integers.
unsafe impl Word for u32 {}
// SAFETY: as above.
unsafe impl Word for u64 {}

impl<T: Word> Shared<T> {
    #[inline(always)]
    pub fn get(self) -> T {
        // SAFETY: valid by `new`, aligned as a member of its type.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    #[inline(always)]
    pub fn set(self, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.0.as_ptr().write_volatile(value) }
    }
}

impl Shared<u64> {
    /// Adds to a counter that nobody else writes meanwhile: one of this CPU's own, of a program that
    /// is not interrupted by another writer.
    #[inline(always)]
    pub fn add_alone(self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    /// Adds to a counter atomically.
    ///
    /// Assembly, because core has no atomics for this target.
    #[inline(always)]
    pub fn add(self, n: u64) {
        // SAFETY: an aligned word, valid by `new`.
        unsafe {
            asm!(
                "lock *(u64 *)({counter} + 0) += {n}",
                counter = in(reg) self.0.as_ptr(),
                n = in(reg) n,
                options(nostack),
            );
        }
    }

    /// Adds a counter that nobody else writes to another one, atomically, and sets it to 0.
    #[inline(always)]
    fn move_to(self, to: Self) {
        let value = self.get();
        if value != 0 {
            to.add(value);
            self.set(0);
        }
    }

    /// Replaces a value atomically and returns what it was. A full barrier.
    #[inline(always)]
    pub fn swap(self, new: u64) -> u64 {
        let mut old = new;
        // SAFETY: as in `add`.
        unsafe {
            asm!(
                "{old} = xchg_64({value} + 0, {old})",
                value = in(reg) self.0.as_ptr(),
                old = inout(reg) old,
                options(nostack),
            );
        }
        old
    }

    /// Sets bits atomically. A full barrier.
    #[inline(always)]
    pub fn set_bits(self, bits: u64) {
        // SAFETY: as in `add`.
        unsafe {
            asm!(
                "{bits} = atomic_fetch_or((u64 *)({value} + 0), {bits})",
                value = in(reg) self.0.as_ptr(),
                bits = inout(reg) bits => _,
                options(nostack),
            );
        }
    }

    /// Replaces a value atomically if it is `old`; returns what it was. A full barrier.
    #[inline(always)]
    pub fn exchange(self, old: u64, new: u64) -> u64 {
        let mut was = old;
        // SAFETY: as in `add`. The instruction has r0 for what is compared and returned.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({value} + 0, r0, {new})",
                value = in(reg) self.0.as_ptr(),
                new = in(reg) new,
                inout("r0") was,
                options(nostack),
            );
        }
        was
    }
}

impl<T, const N: usize> Shared<[T; N]> {
    /// An element, `None` beyond the end.
    #[inline(always)]
    pub fn at(self, index: usize) -> Option<Shared<T>> {
        // SAFETY: within the array.
        (index < N).then(|| unsafe { self.element(index) })
    }

    /// The element of an array whose length is a power of two; an index beyond wraps around. The
    /// mask is the bound that the verifier sees.
    #[inline(always)]
    pub fn wrapped(self, index: usize) -> Shared<T> {
        const { assert!(N.is_power_of_two()) };
        // SAFETY: within the array.
        unsafe { self.element(index & (N - 1)) }
    }

    /// # Safety
    ///
    /// The index is less than the length.
    #[inline(always)]
    unsafe fn element(self, index: usize) -> Shared<T> {
        // SAFETY: by the caller.
        unsafe { self.project(|array| array.cast::<T>().add(index)) }
    }
}

impl<const N: usize> Shared<[u64; N]> {
    /// Writes every element.
    #[inline(always)]
    pub fn store(self, values: [u64; N]) {
        for (at, value) in values.into_iter().enumerate() {
            // SAFETY: within the array.
            unsafe { self.element(at) }.set(value);
        }
    }

    /// Copies the array from a kernel address; zeroes it if that can't be read.
    #[inline(always)]
    pub fn copy(self, from: *const c_void) {
        // SAFETY: the helper writes as many bytes as the array has, and checks the source.
        unsafe { bpf_probe_read_kernel(self.0.as_ptr().cast(), N as u32 * 8, from) };
    }

    /// Copies the first words of the array from a kernel address, at most as many as it has.
    #[inline(always)]
    pub fn copy_first(self, words: u64, from: *const c_void) {
        let words = if words > N as u64 { N as u64 } else { words };
        // SAFETY: as in `copy`.
        unsafe { bpf_probe_read_kernel(self.0.as_ptr().cast(), words as u32 * 8, from) };
    }
}

impl<const N: usize> Shared<[u8; N]> {
    /// Copies a string from a kernel address, with its final 0. Returns its length without that.
    #[inline(always)]
    pub fn copy_string(self, from: *const c_void) -> u32 {
        // SAFETY: the helper writes no more bytes than the array has, and checks the source.
        let n = unsafe { bpf_probe_read_kernel_str(self.0.as_ptr().cast(), N as u32, from) };
        if n > 0 { n as u32 - 1 } else { 0 }
    }
}

impl<T: Cell> Shared<T> {
    /// The cgroup id that the cell is of, 0 if it is nobody's.
    #[inline(always)]
    pub fn owner(self) -> Shared<u64> {
        self.word(T::OWNER / 8)
    }

    /// Adds every word but the owner to another cell's, atomically, and sets it to 0.
    #[inline(always)]
    pub fn pour(self, to: Self) {
        for at in 0..size_of::<T>() / 8 {
            if at != T::OWNER / 8 {
                self.word(at).move_to(to.word(at));
            }
        }
    }

    /// Sets every word but the owner to 0.
    #[inline(always)]
    pub fn clear(self) {
        for at in 0..size_of::<T>() / 8 {
            if at != T::OWNER / 8 {
                self.word(at).set(0);
            }
        }
    }

    #[inline(always)]
    fn word(self, at: usize) -> Shared<u64> {
        const { assert!(T::OWNER % 8 == 0 && T::OWNER < size_of::<T>()) };
        debug_assert!(at < size_of::<T>() / 8);
        // SAFETY: a cell consists of 64-bit words; both callers stay within it.
        unsafe { self.project(|cell| cell.cast::<u64>().add(at)) }
    }
}

impl<T: Counters> Shared<T> {
    /// Adds every counter to another value's, atomically, and sets it to 0.
    #[inline(always)]
    pub fn pour_counters(self, to: Self) {
        for at in 0..size_of::<T>() / 8 {
            // SAFETY: the values consist of 64-bit words, and have this many.
            let (from, to) = unsafe {
                (
                    self.project(|value| value.cast::<u64>().add(at)),
                    to.project(|value| value.cast::<u64>().add(at)),
                )
            };
            from.move_to(to);
        }
    }
}

/// Calls a function up to `rounds` times, until it returns 1 (`bpf_loop`). It has no context: what it
/// works on is in a map, so that one look at it satisfies the verifier whatever the number of rounds.
#[inline(always)]
pub fn repeat(rounds: u32, callback: extern "C" fn(u64, *mut c_void) -> i64) {
    // SAFETY: the callback is a function of this object.
    unsafe { bpf_loop(rounds, callback as *mut c_void, ptr::null_mut(), 0) };
}

/// A pointer as a number, for functions that the verifier looks at by themselves: it wants to know what
/// their arguments are, and takes no pointer for a number. Costs a call of a helper.
#[inline(always)]
pub fn number(pointer: u64) -> u64 {
    let (from, mut to) = (pointer, 0u64);
    // SAFETY: both are on the stack, and have eight bytes.
    unsafe {
        bpf_probe_read_kernel(
            ptr::from_mut(&mut to).cast(),
            size_of::<u64>() as u32,
            ptr::from_ref(&from).cast(),
        );
    }
    to
}

/// Words on the stack of a program, for a callback of [`repeat_on`].
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Words<const N: usize>(*mut u64);

impl<const N: usize> Words<N> {
    #[inline(always)]
    pub fn get<const AT: usize>(self) -> u64 {
        const { assert!(AT < N) };
        // SAFETY: one of the words that `repeat_on` has on its stack.
        unsafe { self.0.add(AT).read_volatile() }
    }

    #[inline(always)]
    pub fn set<const AT: usize>(self, value: u64) {
        const { assert!(AT < N) };
        // SAFETY: as in `get`.
        unsafe { self.0.add(AT).write_volatile(value) }
    }
}

/// Calls a function up to `rounds` times, until it returns 1 (`bpf_loop`). It works on some words, which
/// are returned.
///
/// The verifier looks at the function once or twice. It would look at a loop of the language's once for
/// each round and each way through it, which takes it seconds where one such loop is in another.
#[inline(always)]
pub fn repeat_on<const N: usize>(
    rounds: u32,
    callback: extern "C" fn(u64, Words<N>) -> i64,
    words: [u64; N],
) -> [u64; N] {
    let mut words = words;
    let context = ptr::from_mut(&mut words);
    // SAFETY: the callback is a function of this object, and the words outlive the call.
    unsafe {
        bpf_loop(rounds, callback as *mut c_void, context.cast(), 0);
        context.read_volatile()
    }
}
