//! Pieces that PromQL queries are made of.

/// A metric's growth a second.
pub fn rate(metric: &str, selector: &str) -> String {
    format!("rate({metric}{{{selector}}}[$__rate_interval])")
}

/// A sum over all labels but these.
pub fn sum(by: &str, of: &str) -> String {
    if by.is_empty() {
        return format!("sum({of})");
    }
    format!("sum by ({by}) ({of})")
}

/// A metric's growth a second, summed.
pub fn sum_rate(by: &str, metric: &str, selector: &str) -> String {
    sum(by, &rate(metric, selector))
}

/// The largest.
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

/// A part of a whole; where there is no whole, nothing.
pub fn ratio(part: &str, whole: &str) -> String {
    format!("{part} / ({whole} > 0)")
}
