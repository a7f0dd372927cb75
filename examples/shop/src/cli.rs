//! The command line.

use std::{net::SocketAddr, str::FromStr};

use clap::{Args, Parser, Subcommand};

use crate::spans::Endpoint;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "shop",
    version,
    about = "An example application: a small shop that can be told to misbehave",
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// The subcommand; without one the shop serves.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of the server.
    #[command(flatten)]
    pub serve: Serve,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask a shop for its health; fails unless it is well (for a container's health check)
    Check {
        /// Where the shop listens
        #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT", value_parser = place)]
        address: String,
    },
    /// Tell a shop on this host to misbehave: KEY=VALUE of latency, error_rate, memory, cpu, inventory, or reset=true
    Chaos {
        /// Where the shop listens
        #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT", value_parser = place)]
        address: String,
        /// What to change, for example latency=300ms error_rate=0.2; nothing: show the present state
        #[arg(value_name = "KEY=VALUE", value_parser = pair)]
        settings: Vec<(String, String)>,
    },
    /// Send requests to a shop, until SIGTERM or for a time
    Load(Load),
}

/// Options of `load`.
#[derive(Clone, Debug, Args)]
pub struct Load {
    /// Where the shop listens
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT", value_parser = place)]
    pub address: String,
    /// Requests a second
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rate: u32,
    /// How long, for example 30s; without it until SIGTERM
    #[arg(long, value_parser = humantime::parse_duration)]
    pub duration: Option<std::time::Duration>,
}

/// Options of the server.
#[derive(Debug, Args)]
pub struct Serve {
    /// Where to listen; /chaos answers to loopback peers alone, wherever this is
    #[arg(long, env = "SHOP_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where to send spans by OTLP over HTTP, for example http://127.0.0.1:4318; none without it
    #[arg(long, env = "SHOP_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<Endpoint>,
    /// Most memory that chaos may take
    #[arg(long, env = "SHOP_MAX_MEMORY", default_value = "512MiB")]
    pub max_memory: Size,
    /// Chaos at the start: time added to each answer, for example 300ms
    #[arg(long, env = "SHOP_LATENCY")]
    latency: Option<String>,
    /// Chaos at the start: part of the requests that fail, 0 to 1
    #[arg(long, env = "SHOP_ERROR_RATE")]
    error_rate: Option<String>,
    /// Chaos at the start: memory to hold, for example 64MiB
    #[arg(long, env = "SHOP_MEMORY")]
    memory: Option<String>,
    /// Chaos at the start: CPUs to burn, for example 0.5
    #[arg(long, env = "SHOP_CPU")]
    cpu: Option<String>,
    /// Chaos at the start: items left of each product, with no more to come
    #[arg(long, env = "SHOP_INVENTORY")]
    inventory: Option<String>,
}

impl Serve {
    /// The chaos to start with, as changes for `/chaos`.
    pub fn chaos(&self) -> Vec<(String, String)> {
        let all = [
            ("latency", &self.latency),
            ("error_rate", &self.error_rate),
            ("memory", &self.memory),
            ("cpu", &self.cpu),
            ("inventory", &self.inventory),
        ];
        let given = |(key, value): (&str, &Option<String>)| Some((key.to_owned(), value.clone()?));
        all.into_iter().filter_map(given).collect()
    }
}

fn place(text: &str) -> Result<String, String> {
    let authority: Option<hyper::http::uri::Authority> = text.parse().ok();
    match authority {
        Some(place) if place.port_u16().is_some() => Ok(text.to_owned()),
        _ => Err("expected HOST:PORT, for example 127.0.0.1:8080".to_owned()),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("expected KEY=VALUE, for example latency=300ms")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Parses bytes with a unit, such as 64MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match &text[digits.len()..] {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(wrong(text)),
        };
        let number: usize = digits.parse().map_err(|_| wrong(text))?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| wrong(text))
    }
}

fn wrong(text: &str) -> String {
    format!("{text:?} is not a size: expected bytes, for example 1048576, 512KiB, 64MiB or 1GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn places() {
        for text in ["127.0.0.1:80", "[::1]:80", "shop:8080"] {
            assert_eq!(place(text).as_deref(), Ok(text));
        }
        for text in [
            "",
            "shop",
            "shop:",
            "shop:x",
            "http://shop:80",
            "shop:99999",
        ] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("12", 12), ("3KiB", 3072), ("2MiB", 2 << 20)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "1MB", "99999999999999GiB"] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains("expected bytes"), "{error}");
        }
    }
}
