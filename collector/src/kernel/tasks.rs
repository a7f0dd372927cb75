//! Runs the iterator over all tasks.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    time::Duration,
};

use anyhow::{Context, Result};
use collector_common::tasks::TasksControl;

use super::{
    bpf, fields,
    load::Kernel,
    mapping::{Mapping, Word, word},
    system,
};

const GENERATION: Word<TasksControl> = word!(TasksControl, generation);
const WALKED: Word<TasksControl> = word!(TasksControl, walked);
const IOWAIT_MASK: Word<TasksControl> = word!(TasksControl, iowait_mask);
const SAMPLE_SOCKET: Word<TasksControl> = word!(TasksControl, sample_socket);
const SOCKET_OPS: Word<TasksControl> = word!(TasksControl, socket_ops);
const WITH_SOCKETS: Word<TasksControl> = word!(TasksControl, with_sockets);

/// The tasks iterator.
#[derive(Debug)]
pub struct TasksIterator {
    link: OwnedFd,
    control: Mapping<TasksControl>,
    generation: u64,
}

impl TasksIterator {
    /// Attaches the program. A first run finds what BTF can't tell it: which bit `in_iowait` is,
    /// and which file operations sockets have.
    ///
    /// # Errors
    ///
    /// If the program can't be run, or did not find them.
    pub fn new(kernel: &mut Kernel) -> Result<Self> {
        let bit = fields::bit_of(kernel.types()?, "task_struct.in_iowait")?;
        let link = kernel.task_iterator("tasks")?;
        let control = Mapping::open(kernel.map("TASKS")?)
            .context("opening the control block of the tasks iterator")?;
        control.store(0, IOWAIT_MASK, 1 << bit);
        // Cells carry the numbers of an earlier agent's iterations.
        let generation = control.load(0, GENERATION);
        control.store(0, GENERATION, 0);
        // It may have been killed while it looked at a task's descriptors.
        control.store(0, WALKED, 0);
        let iterator = Self {
            link,
            control,
            generation,
        };
        let socket = UnixDatagram::unbound().context("making a socket")?;
        let descriptor = u64::try_from(socket.as_raw_fd())?;
        iterator.control.store(0, SAMPLE_SOCKET, descriptor);
        // The run with generation 0 only finds these and counts nothing, because there are no slots
        // yet.
        bpf::run_iterator(iterator.link.as_fd()).context("running the tasks iterator")?;
        anyhow::ensure!(
            iterator.control.load(0, SOCKET_OPS) != 0,
            "the tasks iterator has not found the agent's own socket"
        );
        Ok(iterator)
    }

    /// Visits every task, with or without its sockets. Returns the CPU time that this took.
    ///
    /// # Errors
    ///
    /// Errors of bpf(2).
    pub fn run(&mut self, with_sockets: bool) -> io::Result<Duration> {
        self.generation += 1;
        self.control.store(0, WITH_SOCKETS, u64::from(with_sockets));
        self.control.store(0, GENERATION, self.generation);
        let begin = system::thread_cpu_time();
        bpf::run_iterator(self.link.as_fd())?;
        Ok(system::thread_cpu_time() - begin)
    }

    /// Number of the last run. The cells that it wrote carry this number.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}
