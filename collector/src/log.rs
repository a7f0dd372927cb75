//! Logs: logfmt or JSON lines on standard error.

use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

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

/// Starts logging. Messages of crates that use `log`, and those of the eBPF programs, are included.
pub fn init(level: LogLevel, format: LogFormat) {
    let registry = tracing_subscriber::registry().with(level.filter());
    match format {
        LogFormat::Logfmt => {
            let layer = tracing_logfmt::builder()
                .layer()
                .with_writer(std::io::stderr);
            registry.with(layer).init();
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer()
                .json()
                .with_writer(std::io::stderr);
            registry.with(layer).init();
        }
    }
}
