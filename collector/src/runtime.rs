//! Container runtimes: what they know of their containers.
//!
//! Invariant: whoever reads the [`Directory`] never waits for a runtime. Tasks of their own follow
//! the runtimes' events, ask within limits of time and size, and leave what they learn here.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::mpsc;

use crate::cgroup::Container;

/// What is known of containers, by full id.
#[derive(Debug)]
pub struct Directory {
    containers: Mutex<HashMap<String, Arc<Container>>>,
    changes: AtomicU64,
    wanted: mpsc::UnboundedSender<String>,
}

impl Directory {
    /// An empty one, and the ids that its readers would like to know of.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<String>) {
        let (wanted, asked) = mpsc::unbounded_channel();
        let directory = Self {
            containers: Mutex::default(),
            changes: AtomicU64::new(0),
            wanted,
        };
        (Arc::new(directory), asked)
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a container.
    pub fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.containers().get(id).cloned()
    }

    /// A number that grows whenever anything here changes.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Asks for a container of which there is a cgroup and no record.
    pub fn want(&self, id: &str) {
        // Nobody listens where no runtime is followed.
        let _ = self.wanted.send(id.to_owned());
    }

    /// Takes in what a runtime says.
    pub fn put(&self, container: Container) {
        let mut containers = self.containers();
        if containers
            .get(&container.id)
            .is_some_and(|known| **known == container)
        {
            return;
        }
        containers.insert(container.id.clone(), Arc::new(container));
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Forgets a container.
    pub fn forget(&self, id: &str) {
        if self.containers().remove(id).is_some() {
            self.changes.fetch_add(1, Ordering::Release);
        }
    }
}
