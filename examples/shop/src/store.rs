//! Products and their stock.
//!
//! Invariant: stock never falls below zero. When it is low, it is refilled, unless deliveries are off.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// Names of the products, and prices in cents.
const PRODUCTS: [(&str, u64); 4] = [
    ("coffee", 1290),
    ("tea", 890),
    ("kettle", 4900),
    ("mug", 1150),
];
/// Items of each product after a delivery.
pub const FULL: u64 = 100;
/// Items at which a delivery is made.
const LOW: u64 = 20;

/// A product.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Product {
    /// Its name.
    pub name: &'static str,
    /// Its price in cents.
    pub price_cents: u64,
    /// Items in stock.
    pub items: u64,
}

/// Why an order is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The product doesn't exist.
    Unknown,
    /// The stock is too small.
    SoldOut {
        /// Items in stock.
        left: u64,
    },
}

/// The stock.
#[derive(Debug)]
pub struct Store(Mutex<Shelves>);

#[derive(Debug)]
struct Shelves {
    products: Vec<Product>,
    deliveries: bool,
}

impl Default for Store {
    fn default() -> Self {
        let product = |(name, price_cents)| Product {
            name,
            price_cents,
            items: FULL,
        };
        Self(Mutex::new(Shelves {
            products: PRODUCTS.into_iter().map(product).collect(),
            deliveries: true,
        }))
    }
}

impl Store {
    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All products.
    pub fn products(&self) -> Vec<Product> {
        self.shelves().products.clone()
    }

    /// Removes items from stock and returns their total price in cents.
    ///
    /// # Errors
    ///
    /// Returns why the order is refused.
    pub fn order(&self, name: &str, quantity: u64) -> Result<u64, Refusal> {
        let mut shelves = self.shelves();
        let deliveries = shelves.deliveries;
        let product = shelves
            .products
            .iter_mut()
            .find(|product| product.name == name)
            .ok_or(Refusal::Unknown)?;
        let left = product.items;
        product.items = left
            .checked_sub(quantity)
            .ok_or(Refusal::SoldOut { left })?;
        if deliveries && product.items <= LOW {
            product.items = FULL;
        }
        Ok(product.price_cents * quantity)
    }

    /// Sets the stock of each product and turns deliveries off; `None` refills and turns them on again.
    pub fn stock(&self, items: Option<u64>) {
        let mut shelves = self.shelves();
        shelves.deliveries = items.is_none();
        for product in &mut shelves.products {
            product.items = items.unwrap_or(FULL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_stock_is_filled_up_unless_nothing_is_delivered() {
        let store = Store::default();
        let items = |store: &Store| store.products()[0].items;
        assert_eq!(store.order("coffee", 79), Ok(79 * 1290));
        assert_eq!(items(&store), 21);
        assert_eq!(store.order("coffee", 1), Ok(1290));
        assert_eq!(items(&store), FULL);
        store.stock(Some(2));
        assert_eq!(store.order("coffee", 2), Ok(2580));
        assert_eq!(store.order("coffee", 1), Err(Refusal::SoldOut { left: 0 }));
        store.stock(None);
        assert_eq!(items(&store), FULL);
        assert_eq!(store.order("gold", 1), Err(Refusal::Unknown));
    }
}
