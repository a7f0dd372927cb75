//! Divides what there is between those that want it: who wants little gets all of it, and the rest
//! share what is left evenly (max-min fairness).

use std::collections::BTreeMap;

/// Returns the most that one of them gets; `usize::MAX` if there is enough for all.
pub fn level(wanted: impl IntoIterator<Item = usize>, total: usize) -> usize {
    let mut wanted: Vec<usize> = wanted.into_iter().collect();
    wanted.sort_unstable();
    let mut left = total;
    let mut sharing = wanted.len();
    for want in wanted {
        let share = left / sharing;
        if want > share {
            return share;
        }
        left -= want;
        sharing -= 1;
    }
    usize::MAX
}

/// Groups the parts by their owner.
fn by_owner<K: Ord>(wanted: &[(K, usize)]) -> BTreeMap<&K, Vec<usize>> {
    let mut owners: BTreeMap<&K, Vec<usize>> = BTreeMap::new();
    for (owner, want) in wanted {
        owners.entry(owner).or_default().push(*want);
    }
    owners
}

/// Divides between owners first, and then between the parts of each owner. `wanted` has the owner
/// and the size of each part. Returns what each part gets, in the same order.
pub fn shares<K: Ord>(wanted: &[(K, usize)], total: usize) -> Vec<usize> {
    let sum = |parts: Vec<usize>| {
        let add = |sum: usize, part: &usize| sum.saturating_add(*part);
        parts.iter().fold(0, add)
    };
    let most = level(by_owner(wanted).into_values().map(sum), total);
    within(wanted, most)
}

/// Divides between the parts of each owner, of which each has `each`.
pub fn within<K: Ord>(wanted: &[(K, usize)], each: usize) -> Vec<usize> {
    let owners = by_owner(wanted).into_iter();
    let levels: BTreeMap<&K, usize> = owners
        .map(|(owner, parts)| (owner, level(parts, each)))
        .collect();
    wanted
        .iter()
        .map(|(owner, want)| levels.get(owner).map_or(0, |level| *want.min(level)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_little_gets_it_and_the_rest_share_evenly() {
        for (wanted, total, most) in [
            (&[][..], 0, usize::MAX),
            (&[5, 5], 10, usize::MAX),
            (&[1, 100, 100], 21, 10),
            (&[100, 1, 7], 20, 12),
            (&[10, 10, 10], 10, 3),
            (&[1], 0, 0),
            (&[0, 1], 0, 0),
            (&[usize::MAX, usize::MAX], 8, 4),
        ] {
            assert_eq!(level(wanted.iter().copied(), total), most, "{wanted:?}");
        }
    }

    #[test]
    fn many_parts_of_one_owner_take_nothing_from_others() {
        let mut wanted = vec![("greedy", 1000); 50];
        wanted.extend([("modest", 30), ("modest", 3), ("other", 500)]);
        let shares = shares(&wanted, 1033);
        assert_eq!(shares[50..], [30, 3, 500]);
        assert_eq!(shares[..50], [10; 50]);
    }

    #[test]
    fn owners_with_the_same_limit_do_not_touch_each_other() {
        let wanted = [("a", 7), ("b", 10), ("a", 2), ("b", 10)];
        assert_eq!(within(&wanted, 8), [6, 4, 2, 4]);
    }

    #[test]
    fn shares_never_exceed_the_total_or_what_is_wanted() {
        let mut seed = 1_u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize
        };
        for _ in 0..500 {
            let parts = random() % 40;
            let wanted: Vec<(usize, usize)> = (0..parts)
                .map(|_| (random() % 7, random() % (1 << (random() % 20))))
                .collect();
            let total = random() % 100_000;
            let shares = shares(&wanted, total);
            let sum: usize = shares.iter().sum();
            let all: usize = wanted.iter().map(|(_, want)| want).sum();
            assert!(sum <= total, "{wanted:?}");
            let fits = wanted
                .iter()
                .zip(&shares)
                .all(|((_, want), share)| share <= want);
            assert!(fits, "{wanted:?}: {shares:?}");
            // Nothing is left unused, but for what a division leaves.
            assert!(
                sum == all || sum + 2 * parts >= total,
                "{sum} of {total}: {wanted:?}"
            );
        }
    }
}
