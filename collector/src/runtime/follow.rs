//! The followers: a task for each socket, and one that looks for sockets.
//!
//! Invariant: a runtime that does not answer costs one attempt every 30 s at most.

use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::{broadcast, mpsc::UnboundedReceiver, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    choice::Choice, cri, descriptor::RuntimeProtocol, directory::Directory, docker, link::Link,
    status::SocketStatus, wire::Fault,
};
use crate::threads::caught_async;

/// How often sockets are looked for and records of removed containers dropped.
const LOOK: Duration = Duration::from_secs(5);
/// Pause after a failure: the first one, and the longest.
const FIRST: Duration = Duration::from_millis(500);
const LAST: Duration = Duration::from_secs(30);
/// How long a session has to last for the next failure to count as a first one.
const STABLE: Duration = Duration::from_secs(10);
/// Time limit where each runtime is asked once.
const ONCE: Duration = Duration::from_secs(2);
/// How many requested ids a busy follower may be behind; beyond, it asks for the whole list.
const BEHIND: usize = 1024;

/// One session: follows a runtime until a request fails. With `once`, until each container has been
/// asked for.
async fn session(
    link: &Link,
    wanted: &mut broadcast::Receiver<String>,
    once: bool,
) -> Result<(), Fault> {
    let result = match link.descriptor.protocol {
        RuntimeProtocol::Docker { .. } => docker::session(link, wanted, once).await,
        RuntimeProtocol::Cri { .. } => cri::session(link, wanted, once).await,
    };
    if let Err(fault) = &result {
        link.down(fault);
    }
    link.settle();
    result
}

/// Follows a runtime, session after session.
async fn follow_one(link: Link, mut wanted: broadcast::Receiver<String>) {
    let mut delay = FIRST;
    loop {
        let begin = Instant::now();
        match caught_async(session(&link, &mut wanted, false)).await {
            Ok(Ok(())) => return,
            Ok(Err(_)) => {}
            Err(panicked) => {
                link.down(&Fault::Broken(panicked.to_string()));
                link.settle();
            }
        }
        if begin.elapsed() >= STABLE {
            delay = FIRST;
        }
        pause(&link.socket, jittered(delay)).await;
        delay = (delay * 2).min(LAST);
    }
}

/// Adds up to a quarter, so that many agents or followers don't ask in step.
fn jittered(delay: Duration) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let part = now.map_or(0, |now| now.subsec_nanos() % 256);
    delay + delay * part / 1024
}

/// Waits. Ends early if another socket has taken the path.
async fn pause(socket: &Path, delay: Duration) {
    let identity = || {
        let found = socket.metadata().ok()?;
        Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
    };
    let (before, begin) = (identity(), Instant::now());
    while begin.elapsed() < delay {
        sleep(
            delay
                .saturating_sub(begin.elapsed())
                .min(Duration::from_secs(1)),
        )
        .await;
        let now = identity();
        if now.is_some() && now != before {
            return;
        }
    }
}

/// Owner of the followers, which end when it is dropped.
#[derive(Debug)]
pub struct Followers {
    task: JoinHandle<()>,
    settled: watch::Receiver<bool>,
}

impl Drop for Followers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followers {
    /// Waits until every runtime that was there at the start has listed its containers or has failed
    /// to; for `limit` at most. Whether they all have.
    pub async fn settled(&mut self, limit: Duration) -> bool {
        let settled = self.settled.wait_for(|settled| *settled);
        timeout(limit, settled).await.is_ok()
    }
}

/// Starts the followers. To be called within a tokio runtime with timers and sockets.
pub fn follow(
    directory: Arc<Directory>,
    mut asked: UnboundedReceiver<String>,
    choice: Choice,
    linger: Duration,
) -> Followers {
    directory.set_linger(linger);
    let (notify, settled) = watch::channel(false);
    let task = tokio::spawn(async move {
        // After a panic all followers have ended; they are started anew.
        while caught_async(supervise(&directory, &mut asked, &choice, &notify))
            .await
            .is_err()
        {
            sleep(LAST).await;
        }
    });
    Followers { task, settled }
}

struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn supervise(
    directory: &Arc<Directory>,
    asked: &mut UnboundedReceiver<String>,
    choice: &Choice,
    notify: &watch::Sender<bool>,
) {
    directory.statuses().clear();
    let (wanted, _) = broadcast::channel(BEHIND);
    let mut followers: HashMap<PathBuf, Follower> = HashMap::new();
    let mut look = tokio::time::interval(LOOK);
    let mut first = true;
    loop {
        tokio::select! {
            id = asked.recv() => {
                let Some(id) = id else { return };
                // Without a runtime there is no receiver.
                let _ = wanted.send(id);
                continue;
            }
            _ = look.tick() => {}
        }
        directory.sweep(directory.linger());
        let found = choice.sockets();
        // A user's Podman ends with the user's session. Others stay, and are reported as down.
        followers.retain(|path, _| {
            let stays =
                found.contains_key(path) || !path.starts_with("/run/user") || choice.names(path);
            if !stays {
                directory
                    .statuses()
                    .retain(|status| status.socket() != path);
            }
            stays
        });
        let mut new = Vec::new();
        for (path, descriptor) in found {
            if followers.contains_key(&path) {
                continue;
            }
            let link = Link::new(directory, descriptor, path.clone());
            directory.statuses().push(Arc::clone(&link.status));
            new.push(link.settled());
            let task = tokio::spawn(follow_one(link, wanted.subscribe()));
            followers.insert(path, Follower(task));
        }
        if std::mem::take(&mut first) {
            let notify = notify.clone();
            tokio::spawn(async move {
                for settled in new {
                    settled.notified().await;
                }
                let _ = notify.send(true);
            });
        }
    }
}

/// Asks every runtime once, and returns how they answered. Not to be called within a tokio runtime.
///
/// # Errors
///
/// When no tokio runtime can be made.
pub fn ask(directory: &Arc<Directory>, choice: &Choice) -> std::io::Result<Vec<Arc<SocketStatus>>> {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(tokio.block_on(ask_once(directory, choice, ONCE)))
}

/// The same with another time limit.
pub(super) async fn ask_once(
    directory: &Arc<Directory>,
    choice: &Choice,
    limit: Duration,
) -> Vec<Arc<SocketStatus>> {
    let (wanted, _) = broadcast::channel(1);
    let mut tasks = tokio::task::JoinSet::new();
    for (path, descriptor) in choice.sockets() {
        let link = Link::new(directory, descriptor, path);
        directory.statuses().push(Arc::clone(&link.status));
        let mut wanted = wanted.subscribe();
        tasks.spawn(async move {
            match timeout(limit, session(&link, &mut wanted, true)).await {
                Ok(_) => {}
                Err(_) if link.status.reported().up == Some(true) => {}
                Err(_) => link.status.down(&Fault::Late(limit)),
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    directory.runtimes()
}
