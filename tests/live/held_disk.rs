//! A disk whose requests complete when the test says so: a loop device over a file of a FUSE file system. Its
//! server is the test.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    block_device::{Disk, Loop, NewLoop},
    mounted::{fuse, mount},
};

/// What the server knows.
#[derive(Debug, Default)]
struct State {
    is_held: bool,
    /// Reads and writes that have reached the server, which answers one after another.
    arrived: u64,
}

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, is_held: bool) {
        self.state().is_held = is_held;
        self.changed.notify_all();
    }

    /// The server is about to answer a read or a write.
    fn pass(&self) {
        let mut state = self.state();
        state.arrived += 1;
        self.changed.notify_all();
        while state.is_held {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The disk. To be made in a mount namespace of the test's own ([`isolated`](crate::mounted::isolated)).
pub struct HeldDisk {
    /// The device.
    pub disk: Disk,
    gate: Arc<Gate>,
    // Dropped in this order.
    _device: Loop,
    _node: NewLoop,
}

impl HeldDisk {
    /// Makes a disk of so many bytes. Its file system is mounted at `point`, which has to be an empty file.
    pub fn new(point: &Path, bytes: u64) -> Result<Self> {
        let (connection, options) = fuse("100000")?;
        mount(Some(Path::new("held")), point, Some(c"fuse"), 0, &options)?;
        let gate = Arc::new(Gate::default());
        let server = Server {
            connection,
            bytes,
            gate: gate.clone(),
        };
        // It ends when the file system is unmounted, at the latest with the namespace.
        thread::spawn(move || server.serve());
        let backing = OpenOptions::new().read(true).write(true).open(point)?;
        ensure!(backing.metadata()?.len() == bytes, "{backing:?}");
        let node = NewLoop::new()?;
        let device = Loop::of(&node, &backing)?;
        Ok(Self {
            disk: device.disk.clone(),
            gate,
            _device: device,
            _node: node,
        })
    }

    /// From now on no request completes.
    pub fn hold(&self) {
        self.gate.state().arrived = 0;
        self.gate.hold(true);
    }

    /// Lets all requests complete, and waits until they have.
    pub fn let_go(&self) -> Result<()> {
        self.gate.hold(false);
        wait("requests do not complete", || Ok(self.under_way()? == 0.0))
    }

    /// Waits until a request has reached the server.
    pub fn wait_until_held(&self) -> Result<()> {
        wait("no request is held", || Ok(self.gate.state().arrived > 0))
    }

    /// The number of requests that the driver has got and that have not completed, by the kernel.
    pub fn under_way(&self) -> Result<f64> {
        let name = self.disk.0.trim_start_matches("/dev/");
        let text = fs::read_to_string(format!("/sys/block/{name}/inflight"))?;
        text.split_whitespace().try_fold(0.0, |sum, number| {
            Ok(sum + number.parse::<f64>().with_context(|| text.clone())?)
        })
    }
}

impl Drop for HeldDisk {
    fn drop(&mut self) {
        let _ = self.let_go();
    }
}

fn wait(what: &str, mut until: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !until()? {
        ensure!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A FUSE file system (include/uapi/linux/fuse.h) that consists of one file, its root, full of zeros. What is
/// written is forgotten.
struct Server {
    connection: File,
    bytes: u64,
    gate: Arc<Gate>,
}

// enum fuse_opcode
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// `struct fuse_in_header`
const HEADER: usize = 40;
/// Bytes of a write at most.
const MAX_WRITE: u32 = 128 << 10;

impl Server {
    fn serve(mut self) {
        let mut request = vec![0; 4096 + MAX_WRITE as usize];
        // An error: unmounted.
        while let Ok(length @ HEADER..) = self.connection.read(&mut request) {
            let request = &request[..length];
            let Some(answer) = self.answer(request) else {
                continue;
            };
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(error) => (-error, Vec::new()),
            };
            // `struct fuse_out_header`
            let length = 16 + body.len() as u32;
            let mut bytes = [length.to_ne_bytes(), error.to_ne_bytes()].concat();
            bytes.extend(&request[8..16]);
            bytes.extend(body);
            // An error: who asked is gone.
            let _ = self.connection.write(&bytes);
        }
    }

    /// The answer to a request, if it gets one: what follows the header, or an error.
    fn answer(&self, request: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        let word = |at: usize| -> u32 {
            let bytes = request
                .get(at..at + 4)
                .and_then(|part| part.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        // The size in `struct fuse_read_in` and `struct fuse_write_in`.
        let size = word(HEADER + 16);
        Some(Ok(match word(4) {
            FORGET | BATCH_FORGET | INTERRUPT => return None,
            INIT => init(),
            GETATTR | SETATTR => self.attributes(),
            OPEN => vec![0; 16],
            READ => {
                self.gate.pass();
                vec![0; size as usize]
            }
            WRITE => {
                self.gate.pass();
                words(&[size, 0])
            }
            RELEASE | FSYNC | FLUSH => Vec::new(),
            _ => return Some(Err(libc::ENOSYS)),
        }))
    }

    /// `struct fuse_attr_out`
    fn attributes(&self) -> Vec<u8> {
        let (low, high) = (self.bytes as u32, (self.bytes >> 32) as u32);
        let mut all = [0; 26];
        // Valid for that long, s.
        all[0] = 3600;
        // ino, size
        (all[4], all[6], all[7]) = (1, low, high);
        // mode, nlink
        (all[19], all[20]) = (libc::S_IFREG | 0o600, 1);
        words(&all)
    }
}

/// `struct fuse_init_out`
fn init() -> Vec<u8> {
    const FUSE_BIG_WRITES: u32 = 1 << 5;
    let mut all = [0; 16];
    // Version, read-ahead, flags.
    all[..4].copy_from_slice(&[7, 31, MAX_WRITE, FUSE_BIG_WRITES]);
    all[5] = MAX_WRITE;
    // time_gran
    all[6] = 1;
    words(&all)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
