//! Logs: logfmt or JSON lines on standard error.
//!
//! Invariants: who logs never waits (`lines`), and a message that comes again and again costs a
//! line a minute (`repeats`).

mod lines;
mod repeats;

use std::{io, time::Duration};

use tracing_subscriber::{
    Registry, filter::LevelFilter, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use lines::Lines;
pub use lines::lost;
use repeats::{Limit, Repeats};

/// How long the end of the agent waits for the log to be written.
const PATIENCE: Duration = Duration::from_millis(500);

/// Format of log messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// `ts=… level=info … key=value`
    #[default]
    Logfmt,
    /// One JSON object per line
    Json,
}

/// Least severe messages to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// Failures
    Error,
    /// Also what is less exact or slower than it should be
    Warn,
    /// Also what the agent does
    #[default]
    Info,
    /// Also details for developers
    Debug,
    /// Everything
    Trace,
}

impl LogLevel {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }

    /// The level as aya-log counts it, for messages of the eBPF programs. At info it is that of
    /// warnings, because messages below cost time in the kernel.
    pub fn kernel(self) -> u8 {
        match self {
            Self::Error => 1,
            Self::Warn | Self::Info => 2,
            Self::Debug => 4,
            Self::Trace => 5,
        }
    }
}

/// The log of the running agent. What is queued is written before it is dropped, if standard error
/// takes it.
#[derive(Debug)]
pub struct Log {
    lines: Lines,
    level: reload::Handle<LevelFilter, Registry>,
}

impl Log {
    /// Starts logging. Messages of crates that use `log`, and those of the eBPF programs, are
    /// included.
    ///
    /// # Errors
    ///
    /// When the thread that writes can't be started.
    pub fn start(level: LogLevel, format: LogFormat) -> io::Result<Self> {
        let repeats = Repeats::default();
        let lines = match lines::standard_error() {
            Ok(file) => Lines::start(file, repeats.clone())?,
            // The agent was started without one.
            Err(_) => Lines::start(io::sink(), repeats.clone())?,
        };
        let (filter, handle) = reload::Layer::new(level.filter());
        let limit = Limit {
            repeats,
            lines: lines.clone(),
        };
        let registry = tracing_subscriber::registry().with(filter).with(limit);
        match format {
            LogFormat::Logfmt => {
                let layer = tracing_logfmt::builder().layer().with_writer(lines.clone());
                registry.with(layer).init();
            }
            LogFormat::Json => {
                let layer = tracing_subscriber::fmt::layer()
                    .json()
                    .with_writer(lines.clone());
                registry.with(layer).init();
            }
        }
        Ok(Self {
            lines,
            level: handle,
        })
    }

    /// Changes the level. Messages of the eBPF programs keep theirs: it is compiled into them.
    pub fn set_level(&self, level: LogLevel) {
        // An error means that the subscriber is gone, and with it whatever could log.
        let _ = self.level.reload(level.filter());
        ::log::set_max_level(match level {
            LogLevel::Error => ::log::LevelFilter::Error,
            LogLevel::Warn => ::log::LevelFilter::Warn,
            LogLevel::Info => ::log::LevelFilter::Info,
            LogLevel::Debug => ::log::LevelFilter::Debug,
            LogLevel::Trace => ::log::LevelFilter::Trace,
        });
    }

    /// Writes a line as it is, after those that are queued. Waits a limited time for that.
    pub fn print(&self, line: &str) {
        self.lines.push(format!("{line}\n").as_bytes());
        self.lines.flush(PATIENCE);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.flush(PATIENCE);
    }
}
