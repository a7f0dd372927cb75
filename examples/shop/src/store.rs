//! Products and how many there are.
//!
//! Invariant: stock never goes below zero; once it is low, more comes, unless the supplier is
//! told not to deliver.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// What is sold, and its price in cents.
const PRODUCTS: [(&str, u64); 4] = [
    ("coffee", 1290),
    ("tea", 890),
    ("kettle", 4900),
    ("mug", 1150),
];
/// Items of each product after a delivery.
pub const FULL: u64 = 100;
/// Items at which a delivery comes.
const LOW: u64 = 20;

/// A product.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Product {
    /// What it is called.
    pub name: &'static str,
    /// Its price.
    pub price_cents: u64,
    /// How many there are.
    pub items: u64,
}

/// Why an order isn't taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such product.
    Unknown,
    /// There are fewer.
    SoldOut {
        /// How many there are.
        left: u64,
    },
}

/// The shelves.
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

    /// Takes items out; what they cost together.
    ///
    /// # Errors
    ///
    /// When there aren't so many.
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

    /// Leaves so many of each and no deliveries; `None`: full shelves, and deliveries again.
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
