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
const STALLED: Duration = Duration::from_millis(500);
/// The same for a client that has read nothing of its answer, although it is there.
const UNREAD: Duration = Duration::from_millis(200);
/// How long a scrape waits at most until one of three expositions may be given up.
const PATIENCE: Duration = STALLED;
/// How long it waits for the memory of one that was given up.
const LEAVING: Duration = Duration::from_millis(100);
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
    /// Age up to which an exposition that is in memory is sent again while there are as many
    /// connections or expositions as there may be.
    pub reuse: Duration,
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
            reuse: Duration::from_millis(500),
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
    /// Expositions that are being made, and those that are being handed over to clients.
    coming: BTreeMap<u64, Option<Body>>,
}

/// An exposition in memory.
struct Live<'a> {
    body: Body,
    /// Those that are not cut off yet.
    clients: Vec<&'a Arc<Client>>,
    /// Whether more clients may get it.
    is_coming: bool,
    /// When a client last took bytes of it.
    progress: Instant,
    /// From when on it may be given up.
    yields: Instant,
}

impl Connected {
    /// The expositions in memory. Those of clients that are cut off are there until their tasks end.
    fn live(&self, now: Instant) -> Vec<Live<'_>> {
        let mut all: Vec<Live<'_>> = Vec::new();
        let find = |all: &mut Vec<_>, body: Body| {
            let same = |live: &Live<'_>| live.body.is_same(&body);
            all.iter().position(same).unwrap_or_else(|| {
                all.push(Live {
                    body,
                    clients: Vec::new(),
                    is_coming: false,
                    progress: now,
                    yields: now,
                });
                all.len() - 1
            })
        };
        for client in self.clients.values() {
            let Some(body) = client.exposition() else {
                continue;
            };
            let at = find(&mut all, body);
            if client.is_cut() {
                continue;
            }
            let (progress, yields) = client.yields(now);
            let live = &mut all[at];
            if live.clients.is_empty() {
                (live.progress, live.yields) = (progress, yields);
            }
            live.progress = live.progress.max(progress);
            live.yields = live.yields.max(yields);
            live.clients.push(client);
        }
        for body in self.coming.values().flatten() {
            let at = find(&mut all, body.clone());
            all[at].is_coming = true;
        }
        all
    }

    /// Number of expositions that are not in memory yet.
    fn unmade(&self) -> usize {
        self.coming.values().filter(|body| body.is_none()).count()
    }
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

/// An exposition that is being made, and then handed over to clients.
#[derive(Debug)]
pub(super) struct Coming {
    clients: Arc<Clients>,
    number: u64,
}

impl Coming {
    /// Notes that it is in memory.
    pub(super) fn made(&self, body: &Body) {
        let mut connected = lock(&self.clients.connected);
        connected.coming.insert(self.number, Some(body.clone()));
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        lock(&self.clients.connected).coming.remove(&self.number);
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
            if client.exposition().is_some() || client.other_bytes().is_some() {
                self.has_cut.store(true, Relaxed);
            }
            self.counters.cut(why);
        }
    }

    /// Whether there are as many connections, or expositions on their way, as there may be.
    pub(super) fn is_crowded(&self) -> bool {
        let now = Instant::now();
        self.places.available_permits() == 0
            || lock(&self.connected).live(now).len() >= self.limits.expositions
    }

    /// Makes room for an exposition that is about to be made. As long as there are too many on
    /// their way, the clients of one are cut off: of the one of which no client has taken a byte
    /// for the longest time. Blocks while that is so short that the client may be reading, and until
    /// the memory is free.
    pub(super) fn expect(self: &Arc<Self>) -> Coming {
        let coming = {
            let mut connected = lock(&self.connected);
            let number = connected.next;
            connected.next += 1;
            connected.coming.insert(number, None);
            Coming {
                clients: Arc::clone(self),
                number,
            }
        };
        let begin = Instant::now();
        while !self.make_room(begin.elapsed() >= PATIENCE) && begin.elapsed() < PATIENCE + LEAVING {
            std::thread::sleep(RECHECK);
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

    /// Cuts clients off so that there is room for the expositions that are coming, if `forced` even
    /// some that may be reading. Whether there is room already.
    fn make_room(&self, forced: bool) -> bool {
        let now = Instant::now();
        let connected = lock(&self.connected);
        let mut all = connected.live(now);
        let room = (self.limits.expositions).saturating_sub(connected.unmade());
        let is_room = all.len() <= room;
        let leaving = |live: &&Live<'_>| live.clients.is_empty() && !live.is_coming;
        let leaving = all.iter().filter(leaving).count();
        let mut excess = all.len().saturating_sub(room + leaving);
        all.retain(|live| !live.clients.is_empty() && !live.is_coming);
        all.sort_by_key(|live| live.yields);
        let mut count = all.len();
        let mut bytes: usize = all.iter().map(|live| live.body.len()).sum();
        for live in all {
            let too_many = excess > 0 && (forced || live.yields <= now);
            let too_large = count > 1
                && bytes > self.limits.older_bytes
                && now.saturating_duration_since(live.progress) >= self.limits.older_stall;
            if !too_many && !too_large {
                continue;
            }
            for client in live.clients {
                self.cut(client, Cut::Superseded);
            }
            excess = excess.saturating_sub(1);
            count -= 1;
            bytes -= live.body.len();
        }
        is_room
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
                .map(|(other, bytes)| (other.yields(now).1, other, bytes))
                .filter(|(yields, ..)| *yields <= now)
                .collect();
            stalled.sort_by_key(|(yields, ..)| *yields);
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
