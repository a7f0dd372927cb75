//! What families cost: samples, bytes of memory, or bytes of an exposition; and how they are cut.
//!
//! Invariants: a size does not depend on a value, unless the value is very long, so that what is
//! cut stays the same as long as the series do. [`TextSize`] is never less than what an encoder
//! writes. A series is kept whole or left out whole; those that come first are kept.

use std::{mem::size_of, sync::Arc};

use super::series::{AppFamily, AppSeries, Owner};
use crate::exposition::{self, LabelSet, Points};

/// A way to measure.
pub trait Measure {
    /// Size of a family without its series.
    fn family(&self, _: &AppFamily) -> usize {
        0
    }

    /// Size of one of its series.
    fn series(&self, family: &AppFamily, series: &AppSeries) -> usize;
}

/// Number of samples.
pub struct SampleCount;

impl Measure for SampleCount {
    fn series(&self, _: &AppFamily, series: &AppSeries) -> usize {
        series.points.samples()
    }
}

/// Bytes of memory, about.
pub struct MemorySize;

/// What the allocator and the counts of references add to a series.
const ALLOCATED: usize = 64;

impl Measure for MemorySize {
    fn family(&self, family: &AppFamily) -> usize {
        size_of::<AppFamily>() + family.name.len() + family.help.len() + ALLOCATED
    }

    fn series(&self, _: &AppFamily, series: &AppSeries) -> usize {
        let owner = match &series.owner {
            Some(Owner::Path(text) | Owner::ContainerId(text) | Owner::Container(text)) => {
                text.len()
            }
            None => 0,
        };
        let steps = match &series.points {
            Points::Single(_) => 0,
            Points::Distribution(distribution) => {
                distribution.steps.len() * size_of::<(f64, f64)>()
            }
        };
        size_of::<AppSeries>() + series.labels.size() + owner + steps + ALLOCATED
    }
}

/// Bytes in an exposition, at most.
pub struct TextSize<'a> {
    /// Labels of the cgroup.
    pub labels: &'a LabelSet,
    /// Length of `--custom.prefix`.
    pub prefix: usize,
    /// Name of the family that has plain values of all applications.
    pub plain: &'a str,
}

impl Measure for TextSize<'_> {
    fn family(&self, family: &AppFamily) -> usize {
        exposition::heading_size(self.prefix + family.name.len(), &family.help)
    }

    fn series(&self, family: &AppFamily, series: &AppSeries) -> usize {
        let name = self.prefix + family.name.len();
        let labels = self.labels.text_len() + 1 + series.labels.text_len();
        match &series.points {
            Points::Single(value) => {
                let named = labels + ",metric_name=\"\"".len() + family.name.len();
                exposition::line_size(name, labels, *value)
                    + exposition::line_size(self.plain.len(), named, *value)
            }
            Points::Distribution(distribution) => {
                exposition::distribution_size(name, labels, distribution)
            }
        }
    }
}

/// Size of families.
pub fn size(families: &[AppFamily], measure: &dyn Measure) -> usize {
    let of = |family: &AppFamily| {
        let series = family.series.iter();
        measure.family(family)
            + series
                .map(|series| measure.series(family, series))
                .sum::<usize>()
    };
    families.iter().map(of).sum()
}

/// Number of samples.
pub fn samples(families: &[AppFamily]) -> usize {
    size(families, &SampleCount)
}

/// Leaves out series until the families have at most this size. Returns what is kept.
pub fn cut(
    families: &Arc<Vec<AppFamily>>,
    limit: usize,
    measure: &dyn Measure,
) -> Arc<Vec<AppFamily>> {
    if size(families, measure) <= limit {
        return Arc::clone(families);
    }
    let mut left = limit;
    let mut kept = Vec::new();
    for family in families.iter() {
        let mut heading = measure.family(family);
        let mut series = Vec::new();
        for one in &family.series {
            let size = heading + measure.series(family, one);
            if size <= left {
                left -= size;
                heading = 0;
                series.push(one.clone());
            }
        }
        if !series.is_empty() {
            series.shrink_to_fit();
            kept.push(AppFamily {
                name: family.name.clone(),
                help: family.help.clone(),
                kind: family.kind,
                series,
            });
        }
    }
    kept.shrink_to_fit();
    Arc::new(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::custom::parse::families;

    #[test]
    fn what_comes_first_is_kept_and_series_stay_whole() {
        let text = "a{k=\"1\"} 1\na{k=\"2\"} 2\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\n\
                    h_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 2\nb 1\nc 1\n";
        let all = Arc::new(families(text));
        assert_eq!(samples(&all), 8);
        let names = |limit| {
            let kept = cut(&all, limit, &SampleCount);
            let names = kept.iter().map(|family| family.name.clone());
            (samples(&kept), names.collect::<Vec<_>>().concat())
        };
        assert_eq!(names(0), (0, String::new()));
        assert_eq!(names(1), (1, "a".to_owned()));
        // The histogram has four samples: too many, so that smaller ones take its place.
        assert_eq!(names(4), (4, "abc".to_owned()));
        assert_eq!(names(6), (6, "ah".to_owned()));
        assert!(Arc::ptr_eq(&cut(&all, 8, &SampleCount), &all));
    }

    #[test]
    fn memory_grows_with_labels_owners_and_buckets() {
        let size = |text: &str| size(&families(text), &MemorySize);
        let plain = size("a 1\n");
        assert!(plain > size_of::<AppFamily>() + size_of::<AppSeries>());
        let long = "x".repeat(1000);
        assert!(size(&format!("a{{k=\"{long}\"}} 1\n")) >= plain + 1000);
        assert!(size(&format!("# HELP a {long}\na 1\n")) >= plain + 1000);
        let histogram = |buckets: usize| {
            let lines = (0..buckets).map(|at| format!("h_bucket{{le=\"{at}\"}} 1\n"));
            let lines: String = lines.collect();
            size(&format!(
                "# TYPE h histogram\n{lines}h_bucket{{le=\"+Inf\"}} 1\n"
            ))
        };
        assert_eq!(histogram(50) - histogram(10), 40 * 16);
    }
}
