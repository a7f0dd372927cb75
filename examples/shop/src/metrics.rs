//! The metrics of the shop.

use std::time::Duration;

use anyhow::Result;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
    process_collector::ProcessCollector,
};

use crate::store::Product;

/// The shop's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: HistogramVec,
    orders: IntCounterVec,
    inventory: IntGaugeVec,
}

impl Metrics {
    /// Makes and registers all metrics, with those of the process.
    ///
    /// # Errors
    ///
    /// Returns an error if two definitions clash.
    pub fn new() -> Result<Self> {
        let metrics = Self {
            registry: Registry::new(),
            requests: HistogramVec::new(
                HistogramOpts::new(
                    "http_request_duration_seconds",
                    "Time from a request's arrival to its answer.",
                ),
                &["method", "route", "status_code"],
            )?,
            orders: IntCounterVec::new(
                Opts::new(
                    "shop_orders_total",
                    "Orders by product and what came of them.",
                ),
                &["product", "result"],
            )?,
            inventory: IntGaugeVec::new(
                Opts::new("shop_inventory_items", "Items left of a product."),
                &["product"],
            )?,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.orders.clone()))?;
        registry.register(Box::new(metrics.inventory.clone()))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// Counts a request that was answered.
    pub fn answered(&self, method: &str, route: &str, status: u16, time: Duration) {
        self.requests
            .with_label_values(&[method, route, &status.to_string()])
            .observe(time.as_secs_f64());
    }

    /// Counts an order and its result. `product` is one that exists, or "unknown".
    pub fn ordered(&self, product: &str, result: &str) {
        self.orders.with_label_values(&[product, result]).inc();
    }

    /// The exposition, as text.
    ///
    /// # Errors
    ///
    /// Returns an error if it can't be encoded.
    pub fn text(&self, products: &[Product]) -> Result<String> {
        for product in products {
            let items = i64::try_from(product.items).unwrap_or(i64::MAX);
            self.inventory.with_label_values(&[product.name]).set(items);
        }
        Ok(TextEncoder::new().encode_to_string(&self.registry.gather())?)
    }
}
