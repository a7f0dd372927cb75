//! One connection as the others see it: what it does, and what its client has taken.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
};

use super::{STALLED, UNREAD, WIDE_BUFFER};
use crate::{
    exposition::Body,
    kernel::socket,
    web::{cut::Cut, listen::SEND_BUFFER},
};

/// Time that a connection has at least until its request is read.
pub(super) const YOUNG: Duration = Duration::from_millis(20);
/// Shortest time between two looks at a client because others need something.
const GLANCE: Duration = Duration::from_millis(20);

/// What a connection does.
#[derive(Debug)]
enum Phase {
    /// It waits for the head of a request, or for its end.
    Waiting {
        /// Whether the client's side has acknowledged the last answer to its end.
        drained: bool,
    },
    /// The answer is being made.
    Working,
    /// The answer is on its way.
    Sending(Sent),
}

/// An answer on its way.
#[derive(Debug)]
pub(super) enum Sent {
    Exposition(Body),
    /// Length of an answer that no other client shares.
    Other(usize),
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// When the connection began to wait for a request.
    waiting_since: Instant,
    /// Bytes that the client's side has acknowledged.
    acknowledged: u64,
    /// When that number last grew, or nothing was left to acknowledge.
    progress: Instant,
    /// When somebody last looked at that.
    looked: Instant,
    /// Whether the client's side takes nothing: all that was sent is acknowledged, and the rest can't
    /// be sent.
    closed: bool,
    /// That number when this was first seen since the answer began. What its kernel took before
    /// says nothing about the client.
    closed_at: Option<u64>,
    /// Whether the server has taken the whole body.
    taken: bool,
    /// For as long as the socket has the wide send buffer.
    wide: Option<OwnedSemaphorePermit>,
}

impl State {
    fn waits(&mut self) {
        self.phase = Phase::Waiting { drained: false };
        self.waiting_since = Instant::now();
    }

    /// Whether the client has read nothing of the answer, as far as can be seen.
    fn is_unread(&self) -> bool {
        self.closed && self.closed_at == Some(self.acknowledged)
    }
}

/// A connection.
#[derive(Debug)]
pub(in crate::web) struct Client {
    pub(in crate::web) stream: TcpStream,
    /// Bytes written to the socket.
    written: AtomicU64,
    state: Mutex<State>,
    cut: OnceLock<Cut>,
    cut_off: Notify,
}

/// Takes a lock even if a thread has panicked while it held it.
pub(in crate::web) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    pub(super) fn new(stream: TcpStream) -> Self {
        let now = Instant::now();
        Self {
            stream,
            written: AtomicU64::new(0),
            state: Mutex::new(State {
                phase: Phase::Waiting { drained: true },
                waiting_since: now,
                acknowledged: 0,
                progress: now,
                looked: now,
                closed: false,
                closed_at: None,
                taken: true,
                wide: None,
            }),
            cut: OnceLock::new(),
            cut_off: Notify::new(),
        }
    }

    /// Notes that a request has arrived.
    pub(in crate::web) fn works(&self) {
        lock(&self.state).phase = Phase::Working;
    }

    pub(super) fn sends(&self, sent: Sent) {
        let mut state = lock(&self.state);
        state.phase = Phase::Sending(sent);
        state.taken = false;
        state.closed = false;
        state.closed_at = None;
        state.progress = Instant::now();
    }

    /// Gives the socket the wide send buffer until it is empty again, if there is a permit left and
    /// the kernel does not refuse.
    pub(super) fn widen(&self, permits: &Arc<Semaphore>) {
        let mut state = lock(&self.state);
        if state.wide.is_none()
            && let Ok(permit) = Arc::clone(permits).try_acquire_owned()
            && socket::set_send_buffer(&self.stream, WIDE_BUFFER).is_ok()
        {
            state.wide = Some(permit);
        }
    }

    /// Whether the socket has the wide send buffer.
    #[cfg(test)]
    pub(super) fn is_wide(&self) -> bool {
        lock(&self.state).wide.is_some()
    }

    /// Notes that the server has taken the whole body, or has dropped it.
    pub(in crate::web) fn taken(&self) {
        lock(&self.state).taken = true;
    }

    /// Notes that bytes were written to the socket.
    pub(in crate::web) fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Relaxed);
    }

    /// Notes that everything the server had to send is written to the socket.
    pub(in crate::web) fn flushed(&self) {
        let mut state = lock(&self.state);
        if state.taken && matches!(state.phase, Phase::Sending(_)) {
            state.waits();
        }
    }

    /// Notes that no further request will be answered.
    pub(in crate::web) fn lingers(&self) {
        lock(&self.state).waits();
    }

    /// Number of written bytes that the client's side has not acknowledged.
    pub(in crate::web) fn unacknowledged(&self) -> u64 {
        socket::unacknowledged(&self.stream).unwrap_or(0)
    }

    /// When the client last took bytes, or had none to take.
    pub(in crate::web) fn progress(&self, now: Instant) -> Instant {
        // Read first: a byte written in between would look acknowledged.
        let written = self.written.load(Relaxed);
        let left = self.unacknowledged();
        let closed = left > 0 && socket::unsent(&self.stream).is_ok_and(|unsent| unsent >= left);
        let acknowledged = written.saturating_sub(left);
        let mut state = lock(&self.state);
        state.looked = now;
        if left == 0 || acknowledged > state.acknowledged {
            state.acknowledged = acknowledged.max(state.acknowledged);
            state.progress = now.max(state.progress);
        }
        state.closed = closed;
        if closed && state.closed_at.is_none() {
            state.closed_at = Some(state.acknowledged);
        }
        let narrow = left == 0 && matches!(state.phase, Phase::Waiting { .. });
        if narrow
            && state.wide.is_some()
            && socket::set_send_buffer(&self.stream, SEND_BUFFER).is_ok()
        {
            state.wide = None;
        }
        state.progress
    }

    /// When the client last took bytes, as [`progress`](Self::progress) says, and from when on it may
    /// be cut off in favour of others if it takes no more: earlier if it has read nothing of its
    /// answer.
    pub(super) fn yields(&self, now: Instant) -> (Instant, Instant) {
        if now.saturating_duration_since(lock(&self.state).looked) >= GLANCE {
            self.progress(now);
        }
        let state = lock(&self.state);
        let patience = if state.is_unread() { UNREAD } else { STALLED };
        (state.progress, state.progress + patience)
    }

    /// Ends the connection, whatever it does. Whether that was not done before.
    pub(super) fn cut(&self, why: Cut) -> bool {
        let first = self.cut.set(why).is_ok();
        self.cut_off.notify_one();
        first
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.get().is_some()
    }

    /// Waits until the connection has to end.
    pub(in crate::web) async fn cut_off(&self) -> Cut {
        loop {
            if let Some(cut) = self.cut.get() {
                return *cut;
            }
            self.cut_off.notified().await;
        }
    }

    /// In which order connections end so that others get a place. `None` for one that has to stay.
    ///
    /// One that has just begun to wait has to stay. Where all others take answers, each new connection
    /// would otherwise end the one before it, a scraper's too.
    pub(super) fn rank(&self, now: Instant) -> Option<(u8, Instant)> {
        let age = |time: Instant| now.saturating_duration_since(time);
        {
            let mut state = lock(&self.state);
            match &mut state.phase {
                Phase::Working => return None,
                Phase::Waiting { drained } => {
                    *drained = *drained || self.unacknowledged() == 0;
                    if *drained {
                        let since = state.waiting_since;
                        return (age(since) >= YOUNG).then_some((0, since));
                    }
                }
                Phase::Sending(_) => {}
            }
        }
        let (_, yields) = self.yields(now);
        (yields <= now).then_some((1, yields))
    }

    /// The exposition on its way.
    pub(super) fn exposition(&self) -> Option<Body> {
        match &lock(&self.state).phase {
            Phase::Sending(Sent::Exposition(body)) => Some(body.clone()),
            _ => None,
        }
    }

    /// Bytes of an answer on its way that is not an exposition.
    pub(super) fn other_bytes(&self) -> Option<usize> {
        match &lock(&self.state).phase {
            Phase::Sending(Sent::Other(bytes)) => Some(*bytes),
            _ => None,
        }
    }

    /// When the connection began to wait for a request.
    #[cfg(test)]
    pub(super) fn waiting_since(&self) -> Instant {
        lock(&self.state).waiting_since
    }
}
