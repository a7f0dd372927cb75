//! Orders that create something lasting in a worker's cgroup: descriptors, threads, children.
//!
//! Everything ends with the worker: children ask the kernel to kill them when it ends.

use std::{
    os::fd::{IntoRawFd, RawFd},
    sync::mpsc,
};

/// Carries out an order. Returns `false` if it is not one of these.
pub fn obey(words: &[&str]) -> bool {
    let number = |at: usize| {
        words
            .get(at)
            .and_then(|word| word.parse::<u64>().ok())
            .unwrap_or(0)
    };
    match words.first().copied().unwrap_or_default() {
        // files N: opens N descriptors of a file.
        "files" => (0..number(1)).for_each(|_| _ = duplicate(0, 0)),
        // sockets N
        "sockets" => (0..number(1)).for_each(|_| _ = socket()),
        // high N: opens a descriptor with this number.
        "high" => _ = duplicate(0, number(1) as RawFd),
        // fill N: opens descriptors until the limit is reached or there are N. Every third is a
        // socket.
        "fill" => fill(number(1)),
        // unlimited: raises the limit of descriptors as far as this process can.
        "unlimited" => raise_limit(),
        // limit N: sets a soft limit of N descriptors.
        "limit" => set_soft_limit(number(1)),
        // path-socket PATH: opens an O_PATH descriptor of a Unix socket's file.
        "path-socket" => path_socket(words.get(1).copied().unwrap_or_default()),
        // accepting N: N threads that wait forever in accept(2).
        "accepting" => (0..number(1)).for_each(|_| accepting()),
        // own-tables N F: N threads, each with its own file table and F more files in it.
        "own-tables" => own_tables(number(1), number(2)),
        // brood N F S: N children. The nth has n mod F more descriptors, and n mod S more sockets.
        "brood" => (0..number(1)).for_each(|n| child(|| furnish(n, number(2), number(3)))),
        // zombies N: N children that have exited and are not waited for.
        "zombies" => (0..number(1)).for_each(|_| zombie()),
        // leaderless N: a child whose first thread has exited while N others run.
        "leaderless" => leaderless(number(1)),
        // stopped N: N children that stop themselves.
        "stopped" => (0..number(1)).for_each(|_| stopped()),
        // uninterruptible N: N children that wait in vfork(2), and the N children that they wait
        // for.
        "uninterruptible" => (0..number(1)).for_each(|_| child(|| _ = vfork())),
        // running N: N children that never sleep, at the lowest priority.
        "running" => (0..number(1)).for_each(|_| child(run_forever)),
        _ => return false,
    }
    true
}

fn check(what: &str, result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
    result
}

/// Duplicates a descriptor to a number of at least `lowest`. The copy stays open.
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
    // Raising the hard limit needs CAP_SYS_RESOURCE.
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
    // SAFETY: the path is NUL-terminated.
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
            // SAFETY: this gives only this thread its own file table.
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

/// Forks a child that does its work, reports that it is ready and sleeps.
fn child(work: impl FnOnce()) {
    let Ok((mut ours, theirs)) = std::io::pipe() else {
        panic!("no pipe");
    };
    // SAFETY: the worker has one thread at this time, so the child may call any function.
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
    // SAFETY: this is the child's own end of the pipe, and it is closed once.
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
    // SAFETY: the child only exits, and WNOWAIT leaves it a zombie.
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
        // SAFETY: this ends only this thread. The others keep running.
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

/// Creates a child that neither exits nor execs, so that its parent waits for it in state D
/// (kernel/fork.c, `wait_for_vfork_done`).
fn vfork() -> libc::c_long {
    say_ready();
    // SAFETY: without CLONE_VM the child has its own memory.
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
