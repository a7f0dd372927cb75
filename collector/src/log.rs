//! Logs: logfmt or JSON lines on standard error.

use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `ts=… level=info … key=value`
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only failures.
    Error,
    /// Also what works less well than it should.
    Warn,
    /// Also what the agent does.
    Info,
    /// Also details for its developers.
    Debug,
    /// Everything.
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

    /// The level as aya-log counts it; kernel-side records below warnings cost time in hot
    /// programs' slow ways, and are only compiled in at debug and trace.
    pub fn kernel(self) -> u8 {
        match self {
            Self::Error => 1,
            Self::Warn | Self::Info => 2,
            Self::Debug => 4,
            Self::Trace => 5,
        }
    }
}

/// Starts logging. Records of crates that use `log`, the kernel programs' among them, come along.
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
