//! Quantiles of log2 histograms.
//!
//! They are interpolated as Prometheus's `histogram_quantile()` does, so that both give the same
//! result for the same buckets: events are spread evenly within their bucket, the first bucket
//! begins at 0, and a quantile in the unbounded bucket is that bucket's lower bound.

use collector_common::histogram::{BUCKETS, MIN_EXPONENT};

/// Upper bound of a bucket in seconds; for the last bucket, its lower bound.
fn bound(bucket: usize) -> f64 {
    2f64.powi(MIN_EXPONENT + bucket.min(BUCKETS - 2) as i32)
}

/// Returns a quantile (0 to 1) in seconds; `None` without events.
pub fn quantile(events: &[u64; BUCKETS], quantile: f64) -> Option<f64> {
    let total: u64 = events.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = quantile * total as f64;
    let mut below = 0;
    for (bucket, &here) in events.iter().enumerate() {
        if ((below + here) as f64) < rank || here == 0 {
            below += here;
            continue;
        }
        if bucket == BUCKETS - 1 {
            return Some(bound(bucket));
        }
        let low = bucket.checked_sub(1).map_or(0.0, bound);
        let share = (rank - below as f64) / here as f64;
        return Some(low + (bound(bucket) - low) * share);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_histogram_quantile() {
        let mut events = [0; BUCKETS];
        assert_eq!(quantile(&events, 0.5), None);
        // In the first bucket, up to 2^-20 s.
        events[0] = 4;
        assert_eq!(quantile(&events, 0.5), Some(2f64.powi(-21)));
        // In the buckets up to 1 s and up to 2 s.
        events = [0; BUCKETS];
        events[20] = 1;
        events[21] = 1;
        assert_eq!(quantile(&events, 0.5), Some(1.0));
        assert_eq!(quantile(&events, 0.75), Some(1.5));
        // In the unbounded bucket: the last bound.
        events = [0; BUCKETS];
        events[BUCKETS - 1] = 3;
        assert_eq!(quantile(&events, 0.99), Some(4.0));
    }

    #[test]
    fn quantiles_rise() {
        let events = std::array::from_fn(|bucket| (bucket as u64 * 7) % 5);
        let values: Vec<f64> = (1..100)
            .filter_map(|at| quantile(&events, f64::from(at) / 100.0))
            .collect();
        assert_eq!(values.len(), 99);
        assert!(values.is_sorted(), "{values:?}");
    }
}
