//! Orders that leave something behind in a worker's cgroup: descriptors, threads, children.
//!
//! Everything goes with the worker: children ask to be killed when it ends.

use std::{
    os::fd::{IntoRawFd, RawFd},
    sync::mpsc,
};

/// Carries out an order of this kind; `false` if it is none.
pub fn obey(words: &[&str]) -> bool {
    let number = |at: usize| {
        words
            .get(at)
            .and_then(|word| word.parse::<u64>().ok())
            .unwrap_or(0)
    };
    match words.first().copied().unwrap_or_default() {
        // files N: N descriptors of a file.
        "files" => (0..number(1)).for_each(|_| _ = duplicate(0, 0)),
        // sockets N
        "sockets" => (0..number(1)).for_each(|_| _ = socket()),
        // high N: one descriptor of that number.
        "high" => _ = duplicate(0, number(1) as RawFd),
        // fill N: descriptors until the limit is reached or there are N; every third is a socket's.
        "fill" => fill(number(1)),
        // unlimited: the highest limit of descriptors that this process can get.
        "unlimited" => raise_limit(),
        // limit N: a soft limit of N descriptors.
        "limit" => set_soft_limit(number(1)),
        // path-socket PATH: an O_PATH descriptor of a Unix socket's name.
        "path-socket" => path_socket(words.get(1).copied().unwrap_or_default()),
        // accepting N: N threads that wait for a connection that never comes.
        "accepting" => (0..number(1)).for_each(|_| accepting()),
        // own-tables N F: N threads with a file table of their own, each with F files more than it had.
        "own-tables" => own_tables(number(1), number(2)),
        // brood N F S: N children; the nth has n mod F descriptors more, and n mod S sockets.
        "brood" => (0..number(1)).for_each(|n| child(|| furnish(n, number(2), number(3)))),
        // zombies N: N children that have ended.
        "zombies" => (0..number(1)).for_each(|_| zombie()),
        // leaderless N: a child whose first thread has ended and N others live.
        "leaderless" => leaderless(number(1)),
        // stopped N: N children that have stopped themselves.
        "stopped" => (0..number(1)).for_each(|_| stopped()),
        // uninterruptible N: N children that wait in vfork(2), and what they wait for.
        "uninterruptible" => (0..number(1)).for_each(|_| child(|| _ = vfork())),
        // running N: N children that never sleep, as nice as can be.
        "running" => (0..number(1)).for_each(|_| child(run_forever)),
        _ => return false,
    }
    true
}

fn check(what: &str, result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
    result
}

/// A copy of a descriptor, at `lowest` or above, which stays open.
fn duplicate(of: RawFd, lowest: RawFd) -> RawFd {
    // SAFETY: always allowed.
    check("fcntl", unsafe { libc::fcntl(of, libc::F_DUPFD, lowest) })
}

fn socket() -> RawFd {
    // SAFETY: always allowed.
    check("socket", unsafe {
        libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)
    })
}

fn limits() -> libc::rlimit {
    let mut limits = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limits` is writable.
    check("getrlimit", unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits)
    });
    limits
}

fn set_limits(soft: u64, hard: u64) -> bool {
    let limits = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limits` is readable.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits) == 0 }
}

fn raise_limit() {
    let highest = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    let hard = limits().rlim_max;
    // Beyond the hard limit takes CAP_SYS_RESOURCE.
    assert!(set_limits(highest, highest) || set_limits(hard, hard));
}

fn set_soft_limit(soft: u64) {
    assert!(set_limits(soft, limits().rlim_max));
}

fn fill(most: u64) {
    let socket = socket();
    for n in 0..most {
        let of = if n % 3 == 0 { socket } else { 0 };
        // SAFETY: always allowed.
        if unsafe { libc::fcntl(of, libc::F_DUPFD, 0) } < 0 {
            return;
        }
    }
}

fn path_socket(path: &str) {
    let bound = std::os::unix::net::UnixDatagram::bind(path);
    assert!(bound.is_ok(), "binding {path}");
    let Ok(name) = std::ffi::CString::new(path) else {
        return;
    };
    // SAFETY: the path is terminated.
    check("open", unsafe { libc::open(name.as_ptr(), libc::O_PATH) });
}

fn accepting() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0");
    let Ok(listener) = listener else {
        panic!("listening on a port of loopback");
    };
    std::thread::spawn(move || _ = listener.accept());
}

fn own_tables(count: u64, files: u64) {
    let (done, finished) = mpsc::channel();
    for _ in 0..count {
        let done = done.clone();
        std::thread::spawn(move || {
            // SAFETY: this thread's own table from now on.
            check("unshare", unsafe { libc::unshare(libc::CLONE_FILES) });
            (0..files).for_each(|_| _ = duplicate(0, 0));
            let _ = done.send(());
            sleep();
        });
    }
    (0..count).for_each(|_| _ = finished.recv());
}

fn sleep() -> ! {
    loop {
        // SAFETY: always allowed.
        unsafe { libc::pause() };
    }
}

/// A child that does something, says so and sleeps.
fn child(work: impl FnOnce()) {
    let Ok((mut ours, theirs)) = std::io::pipe() else {
        panic!("no pipe");
    };
    // SAFETY: the worker has one thread when it gives birth, so the child may do as it likes.
    if check("fork", unsafe { libc::fork() }) == 0 {
        die_with_parent();
        drop(ours);
        let ready = theirs.into_raw_fd();
        READY.with(|cell| cell.set(ready));
        work();
        say_ready();
        sleep();
    }
    drop(theirs);
    // The child closes its end when it is ready.
    let _ = std::io::Read::read(&mut ours, &mut [0]);
}

thread_local! {
    static READY: std::cell::Cell<RawFd> = const { std::cell::Cell::new(-1) };
}

fn say_ready() {
    // SAFETY: the child's own end of the pipe, closed once.
    unsafe { libc::close(READY.replace(-1)) };
}

fn die_with_parent() {
    // SAFETY: always allowed.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

fn furnish(n: u64, files: u64, sockets: u64) {
    (0..n % files.max(1)).for_each(|_| _ = duplicate(0, 0));
    (0..n % sockets.max(1)).for_each(|_| _ = socket());
}

fn zombie() {
    // SAFETY: the child only ends; WNOWAIT leaves it a zombie.
    unsafe {
        let pid = check("fork", libc::fork());
        if pid == 0 {
            libc::_exit(0);
        }
        let mut info = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOWAIT;
        libc::waitid(libc::P_PID, pid as libc::id_t, &raw mut info, options);
    }
}

fn leaderless(threads: u64) {
    child(|| {
        for _ in 0..threads {
            std::thread::spawn(|| sleep());
        }
        say_ready();
        // SAFETY: ends this thread alone; the others live on.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
}

fn stopped() {
    // SAFETY: the child only stops itself.
    unsafe {
        let pid = check("fork", libc::fork());
        if pid == 0 {
            die_with_parent();
            libc::raise(libc::SIGSTOP);
            libc::_exit(0);
        }
        let mut status = 0;
        libc::waitpid(pid, &raw mut status, libc::WUNTRACED);
    }
}

/// A child whose parent waits for it to end or exec, which it doesn't: in state D
/// (kernel/fork.c, `wait_for_vfork_done`).
fn vfork() -> libc::c_long {
    say_ready();
    // SAFETY: without CLONE_VM the child has a memory of its own.
    unsafe {
        let pid = libc::syscall(
            libc::SYS_clone,
            libc::CLONE_VFORK | libc::SIGCHLD,
            0,
            0,
            0,
            0,
        );
        if pid == 0 {
            die_with_parent();
            sleep();
        }
        pid
    }
}

fn run_forever() {
    // SAFETY: always allowed.
    unsafe { libc::nice(19) };
    say_ready();
    loop {
        std::hint::spin_loop();
    }
}
