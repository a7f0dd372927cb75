//! log2 histograms in seconds: bucket `i` holds values up to 2^([`MIN_EXPONENT`] + i) s.
//!
//! Bounds are powers of two of a *second* (not of a nanosecond), so that the classic buckets are
//! at the same time exact buckets of a Prometheus native histogram with schema 0.

/// Buckets of a histogram, the last one unbounded.
pub const BUCKETS: usize = 24;
/// Exponent of the first bucket's upper bound: 2^-20 s, about 0.95 µs.
pub const MIN_EXPONENT: i32 = -20;

/// Nanoseconds above which a value is in the last bucket whatever it is (2^33 ns, 8.6 s): it keeps
/// the multiplication in [`bucket`] within 64 bits.
const CLAMP_NS: u64 = 1 << 33;
/// floor(2^30 * 2^30 / 10^9). Rounded down, so that a value equal to a bound stays below it
/// (upper bounds are inclusive).
const NS_TO_2_30: u64 = 1_152_921_504;

/// The bucket of a duration in nanoseconds.
///
/// Upper bounds are inclusive, as Prometheus's `le` is; they are exact to 10^-9 of their value.
#[inline(always)]
pub const fn bucket(ns: u64) -> u32 {
    // The usual case first: hardly any wait.
    if ns <= 953 {
        return 0;
    }
    let ns = if ns > CLAMP_NS { CLAMP_NS } else { ns };
    // In units of 2^-20 s, 1 at least; below 2^24.
    let mut units = (ns * NS_TO_2_30) >> 40;
    // log2 by halving: BPF has no count-leading-zeros, and LLVM's substitute is a long
    // dependent chain.
    let mut log = 1;
    if units >= 1 << 16 {
        units >>= 16;
        log += 16;
    }
    if units >= 1 << 8 {
        units >>= 8;
        log += 8;
    }
    if units >= 1 << 4 {
        units >>= 4;
        log += 4;
    }
    if units >= 1 << 2 {
        units >>= 2;
        log += 2;
    }
    if units >= 1 << 1 {
        log += 1;
    }
    // The clamp is for the verifier as well: it has to see an index inside the array.
    if log >= BUCKETS as u32 {
        BUCKETS as u32 - 1
    } else {
        log
    }
}

/// log2 of how much wider the buckets of a *long* histogram are: bucket `i` holds values up to
/// 2^([`MIN_EXPONENT`] + [`LONG_SHIFT`] + i) s, from 1 ms to 68 min.
pub const LONG_SHIFT: u32 = 10;

/// The bucket of a duration in nanoseconds in a long histogram: of things that last. Upper bounds are
/// inclusive, and exact to a microsecond.
#[inline(always)]
pub const fn long_bucket(ns: u64) -> u32 {
    bucket(ns >> LONG_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound_ns(bucket: usize) -> f64 {
        2f64.powi(MIN_EXPONENT + bucket as i32) * 1e9
    }

    #[test]
    fn every_value_lies_between_its_bucket_s_bounds() {
        let mut ns = 1u64;
        while ns < 1 << 40 {
            for value in [ns - 1, ns, ns + 1, ns + ns / 3] {
                let b = bucket(value) as usize;
                let slack = 1.0 + 2e-9;
                if b + 1 < BUCKETS {
                    assert!(
                        value as f64 <= bound_ns(b) * slack,
                        "{value} above bucket {b}"
                    );
                }
                if b > 0 {
                    assert!(
                        value as f64 * slack > bound_ns(b - 1),
                        "{value} below bucket {b}"
                    );
                }
            }
            ns += ns / 7 + 1;
        }
    }

    #[test]
    fn upper_bounds_are_inclusive() {
        // 2^-9 s is the smallest bound that is a whole number of nanoseconds.
        for exponent in -9..=1 {
            let ns = (2f64.powi(exponent) * 1e9) as u64;
            assert_eq!(bucket(ns) as i32, exponent - MIN_EXPONENT, "2^{exponent} s");
            assert_eq!(
                bucket(ns + ns / 1_000_000 + 1) as i32,
                exponent - MIN_EXPONENT + 1
            );
        }
    }

    #[test]
    fn buckets_of_a_long_histogram_are_as_many_and_wider() {
        for exponent in -9..=12 {
            let ns = (2f64.powi(exponent) * 1e9) as u64;
            let expected = exponent - MIN_EXPONENT - LONG_SHIFT as i32;
            assert_eq!(long_bucket(ns) as i32, expected, "2^{exponent} s");
            assert_eq!(
                long_bucket(ns + ns / 1_000_000 + 1025) as i32,
                expected + 1,
                "above 2^{exponent} s"
            );
        }
        assert_eq!(long_bucket(900_000), 0);
        assert_eq!(long_bucket(4_097_000_000_000) as usize, BUCKETS - 1);
    }

    #[test]
    fn extremes_stay_inside() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX) as usize, BUCKETS - 1);
        assert_eq!(long_bucket(0), 0);
        assert_eq!(long_bucket(u64::MAX) as usize, BUCKETS - 1);
    }
}
