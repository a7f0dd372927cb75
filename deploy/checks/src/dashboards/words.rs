//! Pieces that PromQL queries are made of.

/// The rate of a metric.
pub fn rate(metric: &str, selector: &str) -> String {
    format!("rate({metric}{{{selector}}}[$__rate_interval])")
}

/// A sum by labels.
pub fn sum(by: &str, of: &str) -> String {
    if by.is_empty() {
        return format!("sum({of})");
    }
    format!("sum by ({by}) ({of})")
}

/// The sum of rates by labels.
pub fn sum_rate(by: &str, metric: &str, selector: &str) -> String {
    sum(by, &rate(metric, selector))
}

/// The largest series.
pub fn top(count: u32, of: &str) -> String {
    format!("topk({count}, {of})")
}

/// A quantile of a histogram, whose name has no suffix.
pub fn quantile(quantile: f64, by: &str, histogram: &str, selector: &str) -> String {
    let separator = if by.is_empty() { "" } else { ", " };
    let buckets = sum_rate(
        &format!("{by}{separator}le"),
        &format!("{histogram}_bucket"),
        selector,
    );
    format!("histogram_quantile({quantile}, {buckets})")
}

/// The buckets of a histogram, for a heatmap.
pub fn buckets(histogram: &str, selector: &str) -> String {
    sum_rate("le", &format!("{histogram}_bucket"), selector)
}

/// A ratio, without a result where the divisor is 0.
pub fn ratio(part: &str, whole: &str) -> String {
    format!("{part} / ({whole} > 0)")
}
