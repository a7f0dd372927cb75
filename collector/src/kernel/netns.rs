//! Finds network namespaces with an iterator, opens sockets inside them, and says whether processes are
//! still there.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use collector_common::netdev::{Inhabitant, NamespaceControl, Witness};
use zerocopy::FromBytes;

use super::{
    bpf,
    load::Kernel,
    mapping::{Mapping, Word, word},
    netlink::Rtnetlink,
};

/// The programs that know the namespaces (collector-ebpf/src/netdev.rs).
#[derive(Debug)]
pub struct Namespaces {
    iterator: OwnedFd,
    look: OwnedFd,
    control: Mapping<NamespaceControl>,
    witnesses: Mapping<Witness>,
    buffer: Box<[u8]>,
}

const HOST: Word<NamespaceControl> = word!(NamespaceControl, host);
const WATCHED: Word<NamespaceControl> = word!(NamespaceControl, watched);
const LEFT: Word<NamespaceControl> = word!(NamespaceControl, left);
const TASK: Word<Witness> = word!(Witness, task);
const ADDRESS: Word<Witness> = word!(Witness, address);

/// What an iterator writes at most between two readings (kernel/bpf/bpf_iter.c, `prepare_seq_file`).
const BUFFER: usize = 32 << 10;

impl Namespaces {
    /// Attaches the iterator of a loaded object.
    ///
    /// # Errors
    ///
    /// If it can't be attached, or its maps can't be opened.
    pub fn new(kernel: &mut Kernel) -> Result<Self> {
        let iterator = kernel
            .task_iterator("namespaces")
            .context("attaching the namespaces' iterator")?;
        let mut namespaces = Self {
            iterator,
            look: kernel.on_demand("namespaces_left")?,
            control: Mapping::open(kernel.map("NETNS")?)
                .context("opening the control block of network namespaces")?,
            witnesses: Mapping::open(kernel.map("NETNS_WITNESSES")?)
                .context("opening the list of watched network namespaces")?,
            buffer: vec![0; BUFFER].into_boxed_slice(),
        };
        // The first run only learns which namespace is the host's.
        namespaces
            .find(|_| {})
            .context("searching for network namespaces")?;
        Ok(namespaces)
    }

    /// Finds the processes outside of the host's namespace, and passes each on.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn find(&mut self, mut found: impl FnMut(&Inhabitant)) -> io::Result<()> {
        let mut records = Records::default();
        bpf::read_iterator(self.iterator.as_fd(), &mut self.buffer, |piece| {
            records.add(piece, &mut found);
        })
    }

    /// Cookie of the host's namespace, once the iterator has seen a kernel thread.
    pub fn host(&self) -> Option<u64> {
        let cookie = self.control.load(0, HOST);
        (cookie != 0).then_some(cookie)
    }

    /// Sets the processes that [`left`](Self::left) looks at. Those for which there is no room are
    /// not looked at.
    pub fn watch(&self, witnesses: impl Iterator<Item = Witness>) {
        let mut watched = 0;
        for (entry, witness) in witnesses.take(self.witnesses.entries()).enumerate() {
            self.witnesses.store(entry, TASK, witness.task);
            self.witnesses.store(entry, ADDRESS, witness.address);
            watched += 1;
        }
        self.control.store(0, WATCHED, watched);
    }

    /// Number of watched processes that have ended or left their namespace.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn left(&self) -> io::Result<u64> {
        if self.control.load(0, WATCHED) == 0 {
            return Ok(0);
        }
        bpf::run_program(self.look.as_fd(), None)?;
        Ok(self.control.load(0, LEFT))
    }
}

/// Puts records together that may come in pieces.
#[derive(Default)]
struct Records {
    /// The beginning of a record whose end is still to come.
    begun: Vec<u8>,
}

impl Records {
    fn add(&mut self, piece: &[u8], found: &mut impl FnMut(&Inhabitant)) {
        const SIZE: usize = size_of::<Inhabitant>();
        let mut rest = piece;
        if !self.begun.is_empty() {
            let (end, after) = rest.split_at(rest.len().min(SIZE - self.begun.len()));
            self.begun.extend_from_slice(end);
            rest = after;
            if self.begun.len() < SIZE {
                return;
            }
            pass(&self.begun, found);
            self.begun.clear();
        }
        let mut records = rest.chunks_exact(SIZE);
        records.by_ref().for_each(|record| pass(record, found));
        self.begun.extend_from_slice(records.remainder());
    }
}

fn pass(record: &[u8], found: &mut impl FnMut(&Inhabitant)) {
    if let Ok(inhabitant) = Inhabitant::read_from_bytes(record) {
        found(&inhabitant);
    }
}

/// Opens a socket in the network namespace of each task.
///
/// A separate thread enters the namespaces one after the other and ends. All other threads of the
/// agent stay in their namespace.
///
/// # Errors
///
/// If the thread can't be created. For each task: if it no longer exists (ENOENT, ESRCH), or its
/// namespace can't be entered (EPERM, EACCES; CAP_SYS_ADMIN and CAP_SYS_PTRACE are needed).
pub fn open_in(tasks: Vec<u64>) -> io::Result<Vec<io::Result<Rtnetlink>>> {
    let thread = std::thread::Builder::new()
        .name("cgmeter-netns".to_owned())
        .spawn(move || tasks.into_iter().map(open).collect())?;
    thread
        .join()
        .map_err(|_| io::Error::other("the thread that enters namespaces panicked"))
}

fn open(task: u64) -> io::Result<Rtnetlink> {
    enter(&File::open(format!("/proc/{task}/ns/net"))?)?;
    Rtnetlink::open()
}

/// Does something inside a network namespace, and passes the result to `done`. It must not take long.
///
/// As in [`open_in`], a separate thread enters the namespace and ends afterwards.
///
/// # Errors
///
/// If the thread can't be created. All other errors are passed to `done`.
pub fn run_in<T>(
    namespace: File,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
    done: impl FnOnce(io::Result<T>) + Send + 'static,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name("cgmeter-netns".to_owned())
        .spawn(move || done(enter(&namespace).and_then(|()| work())))
        .map(drop)
}

/// Moves this thread into a network namespace.
fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open. setns(2) with CLONE_NEWNET passes no memory and affects only
    // the calling thread.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn records_in_pieces() {
        let all: Vec<Inhabitant> = (1..=20)
            .map(|n| Inhabitant {
                namespace: n,
                cgroup: n + 100,
                start_time: n + 200,
                pid: n + 300,
                task: n + 400,
                address: n + 500,
            })
            .collect();
        let bytes = all.as_bytes();
        for size in [1, 7, 48, 49, 100, 959, 960] {
            let (mut records, mut found) = (Records::default(), Vec::new());
            for piece in bytes.chunks(size) {
                records.add(piece, &mut |inhabitant| found.push(*inhabitant));
            }
            assert_eq!(found.as_bytes(), bytes, "pieces of {size}");
            assert!(records.begun.is_empty());
        }
    }
}
