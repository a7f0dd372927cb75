//! The workload: this binary, started again inside a cgroup. It reads orders, one per line.
//!
//! After each order it prints `done` and sleeps until the next one. Meanwhile the test can read the
//! kernel's statistics of it, which don't change then.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write},
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{born::Born, cgroup::Cgroup, sockets::Sockets, traffic::Traffic};

/// The first argument of a worker.
pub const FLAG: &str = "--worker";

/// A worker in a cgroup.
pub struct Worker {
    child: Born,
    orders: PipeWriter,
    answers: BufReader<PipeReader>,
}

/// The kernel's statistics of a process, summed over its threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskStatistics {
    /// Seconds on a CPU.
    pub run: f64,
    /// Seconds waiting for a CPU.
    pub wait: f64,
    /// Number of times that it got a CPU.
    pub periods: f64,
    /// Voluntary context switches.
    pub voluntary: f64,
    /// Involuntary context switches.
    pub involuntary: f64,
}

impl std::ops::Sub for TaskStatistics {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            run: self.run - other.run,
            wait: self.wait - other.wait,
            periods: self.periods - other.periods,
            voluntary: self.voluntary - other.voluntary,
            involuntary: self.involuntary - other.involuntary,
        }
    }
}

impl Worker {
    /// Starts a worker, which is born in `cgroup` and waits for orders.
    pub fn start(cgroup: &Cgroup) -> Result<Self> {
        Self::start_in(cgroup, None)
    }

    /// Starts a worker, which is born in `cgroup` and enters the network namespace, if one is given.
    pub fn start_in(cgroup: &Cgroup, namespace: Option<BorrowedFd<'_>>) -> Result<Self> {
        let (input, orders) = io::pipe()?;
        let (answers, output) = io::pipe()?;
        let program = c"/proc/self/exe";
        let flag = CString::new(FLAG)?;
        let argv = [program.as_ptr(), flag.as_ptr(), std::ptr::null()];
        let environment = std::env::vars_os()
            .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<Result<Vec<_>, _>>()?;
        let mut envp: Vec<_> = environment.iter().map(|entry| entry.as_ptr()).collect();
        envp.push(std::ptr::null());
        let child = Born::start(cgroup, || {
            // SAFETY: async-signal-safe. The descriptors are open, and the arrays end with a null pointer.
            unsafe {
                let has_entered = namespace.is_none_or(|namespace| {
                    libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) == 0
                });
                if has_entered
                    && libc::dup2(input.as_raw_fd(), 0) == 0
                    && libc::dup2(output.as_raw_fd(), 1) == 1
                {
                    libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
                }
            }
        })
        .context("starting a worker")?;
        drop((input, output));
        let mut worker = Self {
            child,
            orders,
            answers: BufReader::new(answers),
        };
        worker.wait_done()?;
        Ok(worker)
    }

    /// Starts a worker in `cgroup` that carries out one order and exits.
    pub fn once(cgroup: &Cgroup, order: &str) -> Result<()> {
        let mut worker = Self::start(cgroup)?;
        worker.run(order)?;
        worker.finish()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Gives an order without waiting for its end.
    pub fn order(&mut self, order: &str) -> Result<()> {
        Ok(writeln!(self.orders, "{order}")?)
    }

    /// Waits until an order is done and every thread sleeps.
    pub fn wait_done(&mut self) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line.trim() == "done", "the worker said {line:?}");
        self.wait_asleep()
    }

    /// Gives an order and waits until it is done.
    pub fn run(&mut self, order: &str) -> Result<()> {
        self.order(order)?;
        self.wait_done()
    }

    /// Gives an order that is answered with a line of numbers.
    pub fn ask(&mut self, order: &str) -> Result<Vec<f64>> {
        self.order(order)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let numbers = line
            .split_whitespace()
            .map(|word| word.parse().with_context(|| format!("{order}: {line:?}")))
            .collect::<Result<_>>()?;
        self.wait_done()?;
        Ok(numbers)
    }

    fn wait_asleep(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let asleep = self.threads()?.iter().all(|thread| {
                let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
                // The state follows the closing parenthesis of the command.
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with('S'))
            });
            if asleep {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the worker does not become idle");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn threads(&self) -> Result<Vec<PathBuf>> {
        let folder = format!("/proc/{}/task", self.pid());
        let mut threads = Vec::new();
        for entry in fs::read_dir(folder)? {
            threads.push(entry?.path());
        }
        Ok(threads)
    }

    /// The kernel's statistics of all its threads.
    pub fn statistics(&self) -> Result<TaskStatistics> {
        let mut sum = TaskStatistics::default();
        for thread in self.threads()? {
            let schedstat = fs::read_to_string(thread.join("schedstat"))?;
            let numbers: Vec<f64> = schedstat
                .split_whitespace()
                .filter_map(|text| text.parse().ok())
                .collect();
            ensure!(numbers.len() == 3, "{schedstat:?} is no schedstat");
            sum.run += numbers[0] / 1e9;
            sum.wait += numbers[1] / 1e9;
            sum.periods += numbers[2];
            let status = fs::read_to_string(thread.join("status"))?;
            let fields: BTreeMap<&str, &str> = status
                .lines()
                .filter_map(|line| line.split_once(":\t"))
                .collect();
            let count = |name: &str| -> Result<f64> {
                Ok(fields
                    .get(name)
                    .with_context(|| format!("no {name}"))?
                    .trim()
                    .parse()?)
            };
            sum.voluntary += count("voluntary_ctxt_switches")?;
            sum.involuntary += count("nonvoluntary_ctxt_switches")?;
        }
        Ok(sum)
    }

    /// Makes the worker exit.
    pub fn finish(mut self) -> Result<()> {
        self.order("exit")?;
        self.child.wait()?;
        Ok(())
    }
}

/// The main function of a worker.
pub fn main() -> ExitCode {
    say_done();
    let mut threads = Vec::new();
    let mut traffic = Traffic::default();
    let mut sockets = Sockets::default();
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else {
            break;
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| {
            words
                .get(at)
                .and_then(|word| word.parse::<u64>().ok())
                .unwrap_or(0)
        };
        match words.first().copied().unwrap_or_default() {
            "exit" => break,
            "spin" => spin(Duration::from_millis(number(1)), false),
            "spin-yielding" => spin(Duration::from_millis(number(1)), true),
            "forever" => loop {
                std::hint::spin_loop();
            },
            "pin" => pin(number(1) as usize),
            "policy" => set_policy(words.get(1).copied().unwrap_or_default()),
            "threads" => threads.extend(spinners(number(1), Duration::from_millis(number(2)))),
            "start-threads" => threads.extend((0..number(1)).map(|_| forever())),
            "sleeps" => (0..number(1)).for_each(|_| std::thread::sleep(Duration::from_micros(100))),
            "pingpong" => threads.push(pingpong(number(1))),
            "migrate" => (0..number(1)).for_each(|n| pin(n as usize % 2)),
            "fork" => (0..number(1)).for_each(|_| fork(0)),
            "kill" => (0..number(1)).for_each(|_| fork(libc::SIGKILL)),
            "anon" => keep(anonymous(number(1), 0)),
            "huge" => keep(anonymous(number(1), libc::MAP_HUGETLB)),
            "cache" => read_file(words.get(1).copied().unwrap_or_default()),
            "cache-some" => read_some(words.get(1).copied().unwrap_or_default(), number(2)),
            "write" => write_file(words.get(1).copied().unwrap_or_default(), number(2)),
            "io" => {
                if let Err(error) = crate::block_device::order(&words[1..]) {
                    eprintln!("{line}: {error:#}");
                    return ExitCode::FAILURE;
                }
            }
            "exec" => (0..number(1)).for_each(|_| exec()),
            "tcp" | "udp" => match sockets.obey(&words) {
                Ok(answer) => print!("{answer}"),
                Err(error) => {
                    eprintln!("{line}: {error:?}");
                    return ExitCode::FAILURE;
                }
            },
            "http" => {
                let folder = words.get(2).copied().unwrap_or_default();
                if let Err(error) = crate::folder_server::serve(number(1) as u16, folder) {
                    eprintln!("{line}: {error}");
                    return ExitCode::FAILURE;
                }
            }
            _ if crate::resident::obey(&words) => {}
            other => match traffic.obey(&words) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    eprintln!("{line}: {error:#}");
                    return ExitCode::FAILURE;
                }
                None => {
                    eprintln!("unknown order {other:?}");
                    return ExitCode::FAILURE;
                }
            },
        }
        say_done();
    }
    ExitCode::SUCCESS
}

fn say_done() {
    println!("done");
}

/// Uses CPU time, measured by this thread's clock. Yields the CPU repeatedly, if requested.
fn spin(time: Duration, yielding: bool) {
    let end = cpu_time() + time;
    while cpu_time() < end {
        if yielding {
            std::thread::yield_now();
        }
        for _ in 0..1000 {
            std::hint::spin_loop();
        }
    }
}

fn cpu_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn pin(cpu: usize) {
    // SAFETY: an all-zero set is empty, and CPU_SET stays within it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

fn set_policy(name: &str) {
    let (policy, priority) = match name {
        "fifo" => (libc::SCHED_FIFO, 1),
        "idle" => (libc::SCHED_IDLE, 0),
        _ => (libc::SCHED_OTHER, 0),
    };
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: `parameters` is readable.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } != 0 {
        eprintln!("sched_setscheduler: {}", io::Error::last_os_error());
        std::process::exit(1);
    }
}

/// A thread that stays after its work is done, so that its statistics stay readable.
type Parked = std::thread::JoinHandle<()>;

fn park() {
    loop {
        std::thread::park();
    }
}

fn spinners(count: u64, time: Duration) -> Vec<Parked> {
    let (done, finished) = mpsc::channel();
    let threads: Vec<Parked> = (0..count)
        .map(|_| {
            let done = done.clone();
            std::thread::spawn(move || {
                spin(time, false);
                let _ = done.send(());
                park();
            })
        })
        .collect();
    for _ in 0..count {
        let _ = finished.recv();
    }
    threads
}

fn forever() -> Parked {
    std::thread::spawn(|| {
        loop {
            std::hint::spin_loop();
        }
    })
}

fn pingpong(rounds: u64) -> Parked {
    let (there, theirs) = mpsc::sync_channel::<()>(0);
    let (back, ours) = mpsc::sync_channel::<()>(0);
    let thread = std::thread::spawn(move || {
        while theirs.recv().is_ok() {
            let _ = back.send(());
        }
        park();
    });
    for _ in 0..rounds {
        let _ = there.send(());
        let _ = ours.recv();
    }
    thread
}

fn fork(signal: libc::c_int) {
    // SAFETY: the child only raises a signal or exits.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            if signal != 0 {
                libc::raise(signal);
            }
            libc::_exit(3);
        }
        let mut status = 0;
        libc::waitpid(pid, &raw mut status, 0);
        let status = std::process::ExitStatus::from_raw(status);
        assert_eq!(status.signal().unwrap_or(0), signal);
    }
}

fn exec() {
    // A worker without orders ends at once.
    let status = Command::new("/proc/self/exe")
        .arg(FLAG)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(status.is_ok_and(|status| status.success()));
}

/// Maps so many MiB of memory and writes to each page.
fn anonymous(mib: u64, flags: libc::c_int) -> *mut u8 {
    let length = (mib << 20) as usize;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: this creates a new mapping at an address that the kernel chooses, and writes only
    // within its length.
    unsafe {
        let memory = libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0);
        assert!(memory != libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let memory = memory.cast::<u8>();
        // With huge pages the number of faults would vary.
        libc::madvise(memory.cast(), length, libc::MADV_NOHUGEPAGE);
        for at in (0..length).step_by(4096) {
            memory.add(at).write_volatile(1);
        }
        memory
    }
}

/// Mappings stay until the process ends.
fn keep<T>(_mapping: *mut T) {}

/// Reads a whole file in pieces.
fn read_file(path: &str) {
    let read = fs::File::open(path).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
    assert!(matches!(read, Ok(1..)), "reading {path}: {read:?}");
}

/// Reads the first MiBs of a file from the disk, not from the page cache.
fn read_some(path: &str, mib: u64) {
    use std::{io::Read, os::fd::AsRawFd};
    let read = fs::File::open(path).and_then(|mut file| {
        // SAFETY: the descriptor is open, and the call is only a hint.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        file.read_exact(&mut vec![0; (mib << 20) as usize])
    });
    assert!(read.is_ok(), "reading {path}: {read:?}");
}

/// Writes a file of so many MiB through the page cache, one MiB at a time.
fn write_file(path: &str, mib: u64) {
    let written = fs::File::create(path).and_then(|mut file| {
        let block = vec![7; 1 << 20];
        (0..mib).try_for_each(|_| file.write_all(&block))
    });
    assert!(written.is_ok(), "writing {path}: {written:?}");
}
