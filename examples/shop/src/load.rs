//! `shop load`: sends the requests of customers.
//!
//! Invariant: requests are sent at the configured rate, however slow the shop is, but at most [`MOST`] are
//! open at a time.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{cli::Load, client, trace::Context};

/// The most open requests.
const MOST: usize = 256;

/// Sends requests until `ended` or for the configured time, and prints how they were answered.
///
/// # Errors
///
/// Returns an error if no request was answered.
pub async fn load(options: &Load, ended: impl Future<Output = ()>) -> Result<()> {
    let (results, mut came) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(MOST));
    let mut ticks = interval(Duration::from_secs(1) / options.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let over = async {
        match options.duration {
            Some(duration) => sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(ended, over);
    let mut number = 0;
    loop {
        tokio::select! {
            () = &mut ended => break,
            () = &mut over => break,
            _ = ticks.tick() => {}
        }
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            continue;
        };
        number += 1;
        let (results, authority) = (results.clone(), options.address.clone());
        tokio::spawn(async move {
            let (method, path, body) = request(number);
            let traceparent = Context::new(None).traceparent();
            let answer = client::ask(&authority, method, path, body, Some(&traceparent)).await;
            let _ = results.send(answer.map(|answer| answer.status.as_u16()).ok());
            drop(permit);
        });
    }
    drop(results);
    let (mut well, mut errors, mut lost) = (0_u64, 0_u64, 0_u64);
    while let Some(status) = came.recv().await {
        match status {
            Some(status) if status < 500 => well += 1,
            Some(_) => errors += 1,
            None => lost += 1,
        }
    }
    println!("{well} answered, {errors} with an error of the shop's, {lost} without an answer");
    ensure!(well + errors > 0, "nobody answers on {}", options.address);
    Ok(())
}

/// The mix of requests: of ten, six list the products, three show one, one orders.
fn request(number: u64) -> (&'static str, &'static str, String) {
    let order = |product: &str| format!(r#"{{"product":"{product}","quantity":1}}"#);
    match number % 20 {
        0 => ("POST", "/orders", order("coffee")),
        10 => ("POST", "/orders", order("tea")),
        n if n % 3 == 0 => ("GET", "/products/coffee", String::new()),
        13 => ("GET", "/products/gold", String::new()),
        _ => ("GET", "/products", String::new()),
    }
}
