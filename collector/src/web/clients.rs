//! The connections, and which of them have to end so that others get a place.
//!
//! Invariants: there are at most [`Limits::connections`] connections, apart from one a listener that
//! waits for a place. Of encoded expositions at most [`Limits::expositions`] are on their way, of
//! other answers [`Limits::other_bytes`]. Where one of these is reached, the client that has taken
//! nothing for the longest time is cut off, so that a new one is served. A client that goes on
//! reading, however slowly, has no time limit. Checked by unit tests over sockets, and under attack
//! by tests/live/attack.rs.

mod client;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use client::Sent;
pub(super) use client::{Client, lock};

use super::{Counters, cut::Cut};
use crate::{exposition::Body, kernel};

/// Time without progress after which a client may be cut off in favour of another one.
const STALLED: Duration = Duration::from_millis(250);
/// Time without progress after which an exposition may be given up in favour of another one.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a scrape waits for that at most.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of the send buffer of a socket that an exposition is sent to, as long as few sockets have
/// one. With the usual buffer the server and the client wake each other more often.
pub(super) const WIDE_BUFFER: i32 = 256 << 10;
/// How long to wait before looking again for a connection that may end.
const RECHECK: Duration = Duration::from_millis(5);

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Concurrent connections.
    pub connections: usize,
    /// Encoded expositions on their way to clients. Clients of one snapshot and format share one.
    pub expositions: usize,
    /// Bytes of those beside the newest one, as long as their clients have stalled. One may be
    /// larger.
    pub older_bytes: usize,
    /// Time without progress after which a client's exposition counts as one of those. A client on a
    /// poor link pauses for less.
    pub older_stall: Duration,
    /// Bytes of other answers on their way to clients.
    pub other_bytes: usize,
    /// Sockets with a wide send buffer. More than there are scrapers.
    pub wide_buffers: usize,
    /// Time after which a client that has not taken a byte of its answer is cut off.
    pub stall: Duration,
    /// Time limit for a client to send the head of a request.
    pub head: Duration,
}

impl Limits {
    /// The limits of a process that may open this many files. Connections use a quarter of them
    /// at most.
    pub fn new(open_files: u64) -> Self {
        Self {
            connections: kernel::open_files::connections(open_files) as usize,
            expositions: 3,
            older_bytes: 8 << 20,
            older_stall: Duration::from_secs(3),
            other_bytes: 16 << 20,
            wide_buffers: 16,
            stall: Duration::from_secs(10),
            head: Duration::from_secs(10),
        }
    }
}

/// All connections.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) limits: Limits,
    places: Arc<Semaphore>,
    /// For wide send buffers.
    wide: Arc<Semaphore>,
    /// By number, in the order in which they were accepted.
    connected: Mutex<Connected>,
    counters: Counters,
    /// Whether clients were cut off whose answers' memory was not yet returned to the kernel.
    has_cut: AtomicBool,
}

#[derive(Debug, Default)]
struct Connected {
    clients: BTreeMap<u64, Arc<Client>>,
    next: u64,
    /// Expositions that are being made.
    coming: usize,
}

/// The place of a connection. It is free again when this is dropped.
pub(super) struct Place {
    pub(super) client: Arc<Client>,
    pub(super) clients: Arc<Clients>,
    number: u64,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.clients.connected).clients.remove(&self.number);
    }
}

/// An exposition that is being made.
pub(super) struct Coming<'a>(&'a Clients);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        lock(&self.0.connected).coming -= 1;
    }
}

impl Clients {
    pub(super) fn new(limits: Limits, counters: Counters) -> Arc<Self> {
        Arc::new(Self {
            limits,
            places: Arc::new(Semaphore::new(limits.connections)),
            wide: Arc::new(Semaphore::new(limits.wide_buffers)),
            connected: Mutex::default(),
            counters,
            has_cut: AtomicBool::new(false),
        })
    }

    /// Gives a new connection its place. If there is none, ends the connection that has waited
    /// for a request for the longest time, or else the one whose client has taken nothing of its
    /// answer for the longest time. Waits while every connection is at work.
    pub(super) async fn place(self: &Arc<Self>, stream: TcpStream) -> Option<Place> {
        let permit = loop {
            if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
                break permit;
            }
            self.make_place();
            let freed = Arc::clone(&self.places).acquire_owned();
            match tokio::time::timeout(RECHECK, freed).await {
                Ok(permit) => break permit.ok()?,
                Err(_) => continue,
            }
        };
        let client = Arc::new(Client::new(stream));
        let mut connected = lock(&self.connected);
        let number = connected.next;
        connected.next += 1;
        connected.clients.insert(number, Arc::clone(&client));
        drop(connected);
        Some(Place {
            client,
            number,
            clients: Arc::clone(self),
            _permit: permit,
        })
    }

    /// Ends one connection, so that its place becomes free.
    pub(super) fn make_place(&self) {
        let now = Instant::now();
        let connected = lock(&self.connected);
        let clients = connected.clients.values().filter(|client| !client.is_cut());
        let candidates = clients.filter_map(|client| Some((client.rank(now)?, client)));
        if let Some((_, client)) = candidates.min_by_key(|(rank, _)| *rank) {
            self.cut(client, Cut::Place);
        }
    }

    /// Cuts a client off, and counts it.
    pub(super) fn cut(&self, client: &Client, why: Cut) {
        if client.cut(why) {
            if why != Cut::Place {
                self.has_cut.store(true, Relaxed);
            }
            self.counters.cut(why);
        }
    }

    /// Makes room for an exposition that is about to be made. As long as there are too many on
    /// their way, the clients of one are cut off: of the one of which no client has taken a byte
    /// for the longest time. Blocks while that is so short that the client may be reading.
    pub(super) fn expect(&self) -> Coming<'_> {
        lock(&self.connected).coming += 1;
        let coming = Coming(self);
        let begin = Instant::now();
        while !self.make_room(begin.elapsed() >= PATIENCE) {
            std::thread::sleep(RECHECK);
        }
        if self.has_cut.load(Relaxed) {
            // Their tasks end meanwhile.
            std::thread::sleep(RECHECK);
            self.release_memory();
        }
        coming
    }

    /// Returns to the kernel what clients have held that were cut off. Takes milliseconds, and the
    /// allocator would keep it.
    pub(super) fn release_memory(&self) {
        if self.has_cut.swap(false, Relaxed) {
            kernel::release_free_memory();
        }
    }

    /// Makes room for the expositions that are coming, if `now_or_never` even at the cost of a
    /// client that may be reading. Whether there is room.
    fn make_room(&self, now_or_never: bool) -> bool {
        let now = Instant::now();
        let connected = lock(&self.connected);
        let mut live: Vec<(Body, Instant, Vec<&Arc<Client>>)> = Vec::new();
        for client in connected.clients.values().filter(|c| !c.is_cut()) {
            let Some(body) = client.exposition() else {
                continue;
            };
            let progress = client.progress(now);
            match live.iter_mut().find(|(other, ..)| other.is_same(&body)) {
                Some((_, last, clients)) => {
                    *last = progress.max(*last);
                    clients.push(client);
                }
                None => live.push((body, progress, vec![client])),
            }
        }
        live.sort_by_key(|(_, progress, _)| *progress);
        let room = self.limits.expositions.saturating_sub(connected.coming);
        let excess = live.len().saturating_sub(room);
        let mut bytes: usize = live.iter().map(|(body, ..)| body.len()).sum();
        for (at, (body, progress, clients)) in live.iter().enumerate() {
            let too_many = at < excess;
            let too_large = at + 1 < live.len() && bytes > self.limits.older_bytes;
            if !too_many && !too_large {
                break;
            }
            let pause = now.saturating_duration_since(*progress);
            if too_many && pause < PAUSE && !now_or_never {
                return false;
            }
            // Those that follow have paused for less.
            if !too_many && pause < self.limits.older_stall {
                break;
            }
            for client in clients {
                self.cut(client, Cut::Superseded);
            }
            bytes -= body.len();
        }
        true
    }

    /// Notes that a client is sent an exposition.
    pub(super) fn sends_exposition(&self, client: &Client, body: &Body) {
        client.sends(Sent::Exposition(body.clone()));
        client.widen(&self.wide);
    }

    /// Notes that a client is sent another answer. Cuts clients off that have stalled if there
    /// would be too many bytes on their way. Whether the answer may be sent.
    pub(super) fn sends_other(&self, client: &Client, bytes: usize) -> bool {
        let now = Instant::now();
        let connected = lock(&self.connected);
        let mut others = Vec::new();
        for other in connected.clients.values().filter(|c| !c.is_cut()) {
            others.extend(other.other_bytes().map(|bytes| (other, bytes)));
        }
        let mut sum: usize = others.iter().map(|(_, bytes)| bytes).sum();
        if sum + bytes > self.limits.other_bytes {
            let mut stalled: Vec<_> = others
                .iter()
                .map(|(other, bytes)| (other.progress(now), other, bytes))
                .filter(|(progress, ..)| now.saturating_duration_since(*progress) >= STALLED)
                .collect();
            stalled.sort_by_key(|(progress, ..)| *progress);
            for (_, other, freed) in stalled {
                if sum + bytes <= self.limits.other_bytes {
                    break;
                }
                self.cut(other, Cut::Superseded);
                sum -= freed;
            }
        }
        // One answer may be larger than the limit.
        let room = sum == 0 || sum + bytes <= self.limits.other_bytes;
        if room {
            client.sends(Sent::Other(bytes));
        }
        room
    }

    /// Notes that a client is sent a refusal, which has a few bytes.
    pub(super) fn sends_refusal(client: &Client, bytes: usize) {
        client.sends(Sent::Other(bytes));
    }

    /// Waits until every connection has ended.
    pub(super) async fn ended(&self) {
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        let _ = self.places.acquire_many(all).await;
    }
}

#[cfg(test)]
mod tests;
