//! Lines of the log on their way to standard error.
//!
//! Invariant: who logs never waits for who reads the log. Lines go through a queue of
//! [`MOST_BYTES`]; a thread writes them. Where the queue is full, a line is dropped and counted,
//! and once there is room the log says how many are missing.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind, Write},
    os::fd::AsFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

use crate::threads;

/// Most bytes that wait to be written.
pub(super) const MOST_BYTES: usize = 256 * 1024;
/// Longest line, bytes. The rest is cut off.
const LONGEST_LINE: usize = 8 * 1024;
/// Pause before the next attempt where standard error is not ready and does not block.
const NOT_READY: Duration = Duration::from_millis(20);

/// Lines that were dropped since the start.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Number of log lines that were dropped, because standard error was full or could not be written.
pub fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// The queue. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is something to write or to look after.
    work: Condvar,
    /// The queue is empty and nothing is being written.
    written: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that were dropped and that the log has not mentioned.
    unsaid: u64,
    writing: bool,
    woken: bool,
}

/// What the writing thread looks after between lines.
pub(super) trait Between: Send + 'static {
    /// Logs what is due. Returns when it has to be called again.
    fn due(&mut self, now: Instant) -> Option<Instant>;
    /// Logs that lines were lost.
    fn say_lost(&mut self, lines: u64);
}

impl Lines {
    /// Starts the thread that writes to `out`.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        between: impl Between,
    ) -> io::Result<Self> {
        Self::start_as("cgmeter-log", out, between)
    }

    fn start_as(
        thread: &'static str,
        out: impl Write + Send + 'static,
        between: impl Between,
    ) -> io::Result<Self> {
        let lines = Self::default();
        let own = lines.clone();
        threads::spawn(thread, move || own.write_all(out, between))?;
        Ok(lines)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line, or counts it as lost.
    pub(super) fn push(&self, line: &[u8]) {
        let mut text = line[..line.len().min(LONGEST_LINE)].to_vec();
        if text.len() < line.len() {
            text.push(b'\n');
        }
        let mut queue = self.queue();
        if queue.bytes + text.len() > MOST_BYTES {
            LOST.fetch_add(1, Relaxed);
            queue.unsaid += 1;
            return;
        }
        queue.bytes += text.len();
        queue.lines.push_back(text);
        drop(queue);
        self.0.work.notify_one();
    }

    /// Makes the thread ask [`Between::due`] again.
    pub(super) fn wake(&self) {
        self.queue().woken = true;
        self.0.work.notify_one();
    }

    /// Waits until everything is written, for `limit` at most. Returns whether it is.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let waiting = |queue: &mut Queue| queue.writing || !queue.lines.is_empty();
        let (_queue, result) = self
            .0
            .written
            .wait_timeout_while(self.queue(), limit, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        !result.timed_out()
    }

    /// The thread: writes line after line, for ever.
    fn write_all(&self, mut out: impl Write, mut between: impl Between) {
        loop {
            let next = between.due(Instant::now());
            let mut queue = self.queue();
            if queue.unsaid > 0 && queue.bytes < MOST_BYTES / 2 {
                let lost = std::mem::take(&mut queue.unsaid);
                drop(queue);
                between.say_lost(lost);
                queue = self.queue();
            }
            let Some(line) = queue.lines.pop_front() else {
                if !std::mem::take(&mut queue.woken) {
                    self.rest(queue, next);
                }
                continue;
            };
            queue.bytes -= line.len();
            queue.writing = true;
            drop(queue);
            if write(&mut out, &line).is_err() {
                LOST.fetch_add(1, Relaxed);
            }
            let mut queue = self.queue();
            queue.writing = false;
            if queue.lines.is_empty() {
                self.0.written.notify_all();
            }
        }
    }

    fn rest(&self, queue: MutexGuard<'_, Queue>, until: Option<Instant>) {
        let work = &self.0.work;
        match until {
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                drop(work.wait_timeout(queue, left));
            }
            None => drop(work.wait(queue)),
        }
    }
}

/// Writes a line, however often that needs another attempt.
fn write(out: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match out.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Whoever shares standard error may have set O_NONBLOCK.
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(NOT_READY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Standard error, without the lock of the standard library, which a write that does not return
/// would hold.
pub(super) fn standard_error() -> io::Result<File> {
    Ok(io::stderr().as_fd().try_clone_to_owned()?.into())
}

/// A line that is being formatted.
#[derive(Debug)]
pub(super) struct Line<'a> {
    lines: &'a Lines,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.lines.push(&self.text);
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            lines: self,
            text: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Hands out each line, and waits for a token before it takes the next one.
    struct Slow {
        go: mpsc::Receiver<()>,
        out: mpsc::Sender<String>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            if self.go.recv().is_err() {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let text = String::from_utf8_lossy(line).into_owned();
            self.out.send(text).map_err(io::Error::other)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Lost(mpsc::Sender<u64>);

    impl Between for Lost {
        fn due(&mut self, _: Instant) -> Option<Instant> {
            None
        }

        fn say_lost(&mut self, lines: u64) {
            self.0.send(lines).unwrap();
        }
    }

    #[test]
    fn who_logs_does_not_wait_and_lost_lines_are_said() {
        let (token, go) = mpsc::channel();
        let (out, written) = mpsc::channel();
        let (lost, said) = mpsc::channel();
        let lines = Lines::start(Slow { go, out }, Lost(lost)).unwrap();
        let before = super::lost();
        let line = format!("{}\n", "x".repeat(1023));
        let pushed = 1000;
        let begin = Instant::now();
        for _ in 0..pushed {
            lines.push(line.as_bytes());
        }
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert!(!lines.flush(Duration::from_millis(10)), "nobody has read");
        let waiting = lines.queue().lines.len();
        assert!(waiting <= MOST_BYTES / line.len());
        for _ in 0..pushed {
            token.send(()).unwrap();
        }
        let dropped = said.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(lines.flush(Duration::from_secs(60)));
        let read = written.try_iter().count();
        assert_eq!(read as u64 + dropped, pushed);
        assert!(super::lost() >= before + dropped);
    }

    #[test]
    fn a_line_that_can_not_be_written_is_lost_and_the_next_is_tried() {
        let (token, go) = mpsc::channel();
        let (out, _) = mpsc::channel();
        let (lost, _said) = mpsc::channel();
        drop(token);
        let lines = Lines::start(Slow { go, out }, Lost(lost)).unwrap();
        let before = super::lost();
        lines.push(b"a\n");
        lines.push(b"b\n");
        assert!(lines.flush(Duration::from_secs(60)));
        assert!(super::lost() >= before + 2);
    }

    /// The agent was ready for ever, and nobody could read why it did what it did.
    #[test]
    fn a_thread_that_can_not_write_any_more_is_missed() {
        struct Faulty;
        impl Between for Faulty {
            fn due(&mut self, _: Instant) -> Option<Instant> {
                panic!("a test");
            }

            fn say_lost(&mut self, _: u64) {}
        }
        let name = "cgmeter-test-log";
        let _lines = Lines::start_as(name, io::sink(), Faulty).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !threads::ended().iter().any(|ended| ended == name) {
            assert!(Instant::now() < deadline, "nobody misses it");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_long_line_is_cut() {
        let lines = Lines::default();
        lines.push(&[b'x'; LONGEST_LINE * 2]);
        let queue = lines.queue();
        assert_eq!(queue.lines[0].len(), LONGEST_LINE + 1);
        assert_eq!(queue.lines[0].last(), Some(&b'\n'));
    }

    #[test]
    fn an_unready_descriptor_gets_the_whole_line() {
        struct Unready(Vec<u8>, bool);
        impl Write for Unready {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if self.1 {
                    return Err(ErrorKind::WouldBlock.into());
                }
                self.0.push(line[0]);
                Ok(1)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = Unready(Vec::new(), false);
        write(&mut out, b"abc\n").unwrap();
        assert_eq!(out.0, b"abc\n");
    }
}
