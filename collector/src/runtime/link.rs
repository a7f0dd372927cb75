//! What a follower needs: where the runtime listens, and where to leave what it learns.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    descriptor::Descriptor,
    directory::Directory,
    status::SocketStatus,
    wire::{self, Answer, Fault},
};

/// A runtime at a socket, for its follower.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) directory: Arc<Directory>,
    pub(super) status: Arc<SocketStatus>,
    pub(super) socket: PathBuf,
    /// The runtime that is expected there.
    pub(super) descriptor: &'static Descriptor,
    settled: Arc<Notify>,
}

impl Link {
    pub(super) fn new(
        directory: &Arc<Directory>,
        descriptor: &'static Descriptor,
        socket: PathBuf,
    ) -> Self {
        Self {
            directory: Arc::clone(directory),
            status: Arc::new(SocketStatus::new(descriptor.runtime(), socket.clone())),
            socket,
            descriptor,
            settled: Arc::default(),
        }
    }

    /// Notes that the first list is in, or that there will be none soon.
    pub(super) fn settle(&self) {
        self.settled.notify_one();
    }

    /// What `settle` notifies.
    pub(super) fn settled(&self) -> Arc<Notify> {
        Arc::clone(&self.settled)
    }

    /// Notes that the session has failed.
    pub(super) fn down(&self, fault: &Fault) {
        self.status.down(fault);
        self.directory.look_again();
    }

    /// Sends a GET request, and counts whether it was answered.
    pub(super) async fn get(
        &self,
        target: &str,
        limit: usize,
        time: Duration,
    ) -> Result<Answer, Fault> {
        let begin = Instant::now();
        let result = wire::get(&self.socket, target, limit, time).await;
        self.status.count(&result, begin.elapsed());
        result
    }
}
