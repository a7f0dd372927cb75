//! The command `cgmeter`.

use std::{convert::Infallible, io::Write, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use cgmeter::{
    agent::Agent,
    check,
    cli::{self, Command, DumpFormat},
    dump, healthcheck,
    kernel::{open_files, pins::Pins, system::monotonic_ns},
    log::Log,
    reference,
    reload::Reload,
    runtime::{self, Directory},
    service::Manager,
    settings::{self, Flags, Settings},
    threads, web,
};
use collector_common::LAYOUT;
use prometheus::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit status for a command line or configuration that can't be used.
const USAGE: u8 = 2;
/// Exit status after a fault of the agent itself (EX_SOFTWARE of sysexits.h).
const FAULT: u8 = 70;
/// How long to wait for the container runtimes' answers before the first scrape is served.
const SETTLED: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    // Maps, network namespaces and connections each take a descriptor.
    let raised = open_files::raise();
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // --help and --version.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let text = error.to_string();
            let lines: Vec<&str> = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .collect();
            let reason = lines.iter().take_while(|line| !line.starts_with("Usage:"));
            let reason: Vec<&str> = reason
                .map(|line| line.trim_start_matches("error: "))
                .collect();
            return fail(USAGE, &reason.join("; "));
        }
    };
    let settings = match Settings::resolve(&cli.flags) {
        Ok(settings) => settings,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    let result = match cli.command {
        Command::Run => {
            let log = match Log::start(settings.log_level, settings.log_format) {
                Ok(log) => log,
                Err(error) => return fail(1, &format!("cannot start the log's thread: {error}")),
            };
            return match run(cli.flags, &settings, &log, raised) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    let status = if error.is::<Fault>() { FAULT } else { 1 };
                    // After the lines that are queued, and without waiting for ever.
                    log.print(&reason(&format!("{error:#}")));
                    ExitCode::from(status)
                }
            };
        }
        Command::Check => {
            return match check::run(&settings, std::io::stdout()) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) | Err(_) => ExitCode::FAILURE,
            };
        }
        Command::Healthcheck => healthcheck::run(&settings.listen),
        Command::Dump { format } => dump(&settings, format),
        Command::Unload => unload(&settings),
        Command::Metrics { format } => print(reference::metrics(format).as_bytes()),
        Command::Settings { format } => print(reference::settings(format).as_bytes()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("{error:#}")),
    }
}

/// Removes what an agent has left pinned.
fn unload(settings: &Settings) -> Result<()> {
    let Some(state) = &settings.agent.state else {
        bail!("--state.pin does not say which directory");
    };
    if !state.exists() {
        return print(format!("nothing is pinned: there is no {}\n", state.display()).as_bytes());
    }
    let pins = Pins::open(state, LAYOUT)?;
    let removed = pins
        .clear()
        .with_context(|| format!("cannot remove what is in {}", state.display()))?;
    pins.remove_root();
    let text = format!(
        "removed {} programs and {} maps from {}\n",
        removed.programs,
        removed.maps,
        state.display()
    );
    print(text.as_bytes())
}

/// Prints the reason on one line.
fn fail(status: u8, message: &str) -> ExitCode {
    // Who can't read it has the status.
    let _ = writeln!(std::io::stderr(), "{}", reason(message));
    ExitCode::from(status)
}

fn reason(message: &str) -> String {
    format!("cgmeter: error: {}", message.replace('\n', " "))
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // `cgmeter dump | head` is not a failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Meters and serves until a signal ends the agent.
fn run(flags: Flags, settings: &Settings, log: &Log, raised: std::io::Result<()>) -> Result<()> {
    threads::watch();
    for name in settings::unknown_variables() {
        tracing::warn!(
            name,
            "this environment variable is not a setting of cgmeter"
        );
    }
    let manager = Manager::from_environment().unwrap_or_else(|reason| {
        tracing::warn!(reason, "the service manager will not be told anything");
        Manager::default()
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let limits = web::Limits::new(open_files::limit());
    // Frames are taken one at a time, and scrapes share what is encoded: one thread a format, and
    // two for the API. More threads would only cost memory.
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(4)
        .thread_name(threads::WEB)
        .enable_all()
        .build()?;
    let _guard = tokio.enter();
    // These would end the agent while it starts.
    let harmless = Harmless::new()?;
    // Before loading, so that a port in use is reported at once.
    let listeners = web::bind(&settings.listen)?;
    let registry = Registry::new();
    let counters = web::Counters::new(&registry)?;
    // The runtimes are asked while the kernel side is loaded.
    let (directory, asked) = Directory::new();
    let mut followers = runtime::follow(
        Arc::clone(&directory),
        asked,
        settings.runtimes.clone(),
        settings.agent.linger,
    );
    let agent = Agent::start(settings.agent.clone(), registry, Arc::clone(&directory))?;
    // The first scrape has the names, unless a runtime is slow.
    if !tokio.block_on(followers.settled(SETTLED)) {
        tracing::info!("a container runtime is slow to answer; its names will come later");
    }
    agent
        .follow()
        .context("cannot start the thread that follows cgroups")?;
    for listener in &listeners {
        let address = listener.local_addr()?;
        tracing::info!(%address, path = settings.web.telemetry_path, "listening");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let served = web::serve(
        listeners,
        Arc::clone(&agent) as _,
        settings.web.clone(),
        limits,
        counters,
        async {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = agent.broken() => return,
            };
            manager.stopping();
            tracing::info!(signal = name, "stopping");
        },
    );
    let reload = Reload::new(flags, settings.clone());
    tokio.block_on(async {
        manager.ready();
        tokio::select! {
            result = served => result,
            never = harmless.handle(reload, log, &agent, &directory, &manager) => match never {},
            never = watchdog(&agent, &manager) => match never {},
        }
    })?;
    if agent.is_broken() {
        return Err(Fault.into());
    }
    if let Err(error) = agent.keep_totals() {
        tracing::warn!(
            error = format!("{error:#}"),
            "an agent of another version may have to begin anew"
        );
    }
    if let Some(state) = settings.agent.state.as_ref().filter(|_| agent.stays()) {
        tracing::info!(
            directory = %state.display(),
            "the kernel programs go on counting for the next agent; `cgmeter unload --state.pin={}` ends that",
            state.display()
        );
    }
    Ok(())
}

/// Why the agent ends by itself.
#[derive(Debug, thiserror::Error)]
#[error(
    "the agent has a fault, which its log describes, and its totals can't be trusted any more: \
     start it again"
)]
struct Fault;

/// Signals that would end a program that does not expect them.
struct Harmless {
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    alarm: Signal,
}

impl Harmless {
    /// From here on the signals don't end the agent.
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            alarm: signal(SignalKind::alarm())?,
        })
    }

    /// Does what they ask for.
    async fn handle(
        mut self,
        mut reload: Reload,
        log: &Log,
        agent: &Agent,
        directory: &Directory,
        manager: &Manager,
    ) -> Infallible {
        loop {
            let name = tokio::select! {
                _ = self.hangup.recv() => {
                    manager.reloading(monotonic_ns());
                    reload.reload(log, agent, directory);
                    manager.ready();
                    continue;
                }
                _ = self.user1.recv() => "SIGUSR1",
                _ = self.user2.recv() => "SIGUSR2",
                _ = self.alarm.recv() => "SIGALRM",
            };
            tracing::info!(signal = name, "this signal means nothing to cgmeter");
        }
    }
}

/// Tells the service manager that the agent is alive, as long as it is.
async fn watchdog(agent: &Arc<Agent>, manager: &Manager) -> Infallible {
    let Some(pause) = manager.watchdog() else {
        return std::future::pending().await;
    };
    let mut well = true;
    loop {
        let agent = Arc::clone(agent);
        // By way of the threads that a scrape needs. A snapshot that takes longer than the pause
        // is one that is stuck.
        let asked = tokio::spawn(async move {
            let asked = tokio::task::spawn_blocking(move || agent.alive(pause));
            asked.await.unwrap_or_else(|error| Err(error.to_string()))
        });
        let answer = match tokio::time::timeout(pause, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the threads that answer requests are stuck".to_owned()),
        };
        match answer {
            Ok(()) => {
                manager.alive();
                if !std::mem::replace(&mut well, true) {
                    manager.status("");
                }
            }
            Err(reason) => {
                if std::mem::replace(&mut well, false) {
                    tracing::error!(reason, "the agent does not work");
                }
                manager.status(&reason);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

fn dump(settings: &Settings, format: DumpFormat) -> Result<()> {
    let (directory, _) = Directory::new();
    runtime::ask(&directory, &settings.runtimes)?;
    let options = settings.agent.clone().on_its_own();
    let agent = Agent::start(options, Registry::new(), directory)?;
    match format.exposition() {
        Some(format) => print(&agent.scrape(format)?.to_vec()),
        None => {
            let mut dump = dump::Dump::default();
            agent.encode(&mut dump)?;
            print(dump.finish()?.as_bytes())
        }
    }
}
