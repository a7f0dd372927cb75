//! Cost of the tasks iterator by number of tasks.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    agent::{Agent, Binary, value},
    median,
    programs::Statistics,
};

const SCRAPES: usize = 25;
/// Threads of each process.
const THREADS: usize = 10;
/// Descriptors of each process. One in four is a socket.
const DESCRIPTORS: usize = 16;

/// Measures with `count` tasks besides those of the host.
pub fn measure(binary: &Binary, count: usize) -> Result<Value> {
    let _processes = Processes::start(count / THREADS)?;
    let agent = Agent::start(binary)?;
    agent.scrape()?;
    let mut stage = Vec::new();
    for _ in 0..SCRAPES {
        let text = agent.scrape()?;
        stage.push(value(&text, "cgmeter_scrape_duration_seconds{stage=\"tasks\"} ") * 1e3);
    }
    let text = agent.scrape()?;
    let tasks = value(&text, "container_threads{id=\"/\"} ");
    let descriptors = value(&text, "container_file_descriptors{id=\"/\"} ");
    let _statistics = Statistics::on()?;
    let gained = |family: &str, text: &str| value(text, &format!("{family}{{program=\"tasks\"}} "));
    let before = agent.scrape()?;
    (0..SCRAPES).try_for_each(|_| agent.scrape().map(drop))?;
    let after = agent.scrape()?;
    let runs = "cgmeter_program_runs_total";
    let seconds = "cgmeter_program_run_seconds_total";
    let runs = gained(runs, &after) - gained(runs, &before);
    let seconds = gained(seconds, &after) - gained(seconds, &before);
    let stage = median(stage);
    Ok(json!({
        "tasks": tasks,
        "descriptors": descriptors,
        "iterator_ms": stage,
        "ns_a_task": stage * 1e6 / tasks,
        "program_ns": seconds * 1e9 / runs,
    }))
}

/// Sleeping processes.
struct Processes(Vec<libc::pid_t>);

impl Processes {
    fn start(count: usize) -> Result<Self> {
        let mut processes = Self(Vec::new());
        for _ in 0..count {
            let (mut ready, done) = std::io::pipe()?;
            // SAFETY: the child makes descriptors and threads, and sleeps until it is killed.
            let pid = unsafe { libc::fork() };
            ensure!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
            if pid == 0 {
                furnish();
                drop(done);
                sleep();
            }
            processes.0.push(pid);
            drop(done);
            // Returns once the child has closed its end.
            std::io::Read::read(&mut ready, &mut [0]).context("waiting for a process")?;
        }
        Ok(processes)
    }
}

fn furnish() {
    // SAFETY: always allowed.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        for n in 0..DESCRIPTORS {
            if n % 4 == 0 {
                libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0);
            } else {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
            }
        }
    }
    for _ in 1..THREADS {
        let thread = std::thread::Builder::new().stack_size(64 * 1024);
        let _ = thread.spawn(|| sleep());
    }
}

fn sleep() -> ! {
    loop {
        // SAFETY: always allowed.
        unsafe { libc::pause() };
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for &pid in &self.0 {
            // SAFETY: our own children, not yet waited for.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
        }
    }
}
