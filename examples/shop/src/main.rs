//! `shop`: an example application for dashboards, alerts and the demo.
//!
//! It sells a few products over HTTP, exports what such services usually export (a histogram of
//! requests, business metrics), logs JSON with W3C trace ids and can send spans to an OTLP collector. On
//! request it is slow, fails, holds memory or burns CPU: see [`chaos`].
//!
//! Invariant: its use of resources is bounded (`--max-memory`, the number of CPUs,
//! [`http::MAX_CONNECTIONS`]), and it ends cleanly at SIGTERM. It shares no code with the agent.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chaos;
mod cli;
mod client;
mod http;
mod load;
mod metrics;
mod routes;
mod spans;
mod store;
#[cfg(test)]
mod tests;
mod trace;

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use cli::{Cli, Command, Serve};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(async {
            match cli.command {
                None => serve(cli.serve).await,
                Some(Command::Check { address }) => client::check(&address).await,
                Some(Command::Chaos { address, settings }) => {
                    client::chaos(&address, &settings).await
                }
                Some(Command::Load(options)) => load::load(&options, ended()?).await,
            }
        }),
        Err(error) => Err(error).context("starting threads"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Serve) -> Result<()> {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stdout)
        .init();
    let ended = ended()?;
    let listener = TcpListener::bind(options.listen).await.with_context(|| {
        format!(
            "cannot listen on {}: choose another address with --listen",
            options.listen
        )
    })?;
    let chaos = options.chaos();
    let exporter = options.otlp_endpoint.map(spans::Exporter::start);
    let shop = routes::Shop::new(options.max_memory.0, exporter)?;
    shop.change(&chaos).map_err(anyhow::Error::msg)?;
    tracing::info!(address = %options.listen, "open");
    http::serve(listener, Arc::new(shop), ended).await;
    tracing::info!("closed");
    Ok(())
}

/// Completes when the process gets SIGTERM or SIGINT.
fn ended() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
