//! Applications that export the usual histogram of HTTP requests: rate, errors, duration.

use super::{
    model::{Choice::Many, Dashboard, heatmap, lines, row, stat, table, variable},
    words::{buckets, quantile, ratio, sum, sum_rate},
};

/// Matchers for the requests that are chosen.
const REQUESTS: &str = r#"cluster=~"$cluster",job=~"$job",instance=~"$instance",route=~"$route""#;
/// The requests chosen that were answered with 5xx.
const ERRORS: &str =
    r#"cluster=~"$cluster",job=~"$job",instance=~"$instance",route=~"$route",status_code=~"5..""#;
/// Matchers for the applications that are chosen.
const JOBS: &str = r#"cluster=~"$cluster",job=~"$job",instance=~"$instance""#;

const COUNT: &str = "http_request_duration_seconds_count";
const SECONDS: &str = "http_request_duration_seconds";

/// Makes the dashboard.
pub fn dashboard() -> Dashboard {
    let requests = |by: &str| sum_rate(by, COUNT, REQUESTS);
    // Without failures there is no series of failures, which means 0.
    let failed = |by: &str| format!("({} or 0 * {})", sum_rate(by, COUNT, ERRORS), requests(by));
    let mean = |by: &str| {
        ratio(
            &sum_rate(by, "http_request_duration_seconds_sum", REQUESTS),
            &requests(by),
        )
    };
    Dashboard {
        uid: "cgmeter-applications",
        title: "cgmeter: applications",
        description: "Applications that export http_request_duration_seconds: rate, errors, duration.",
        variables: vec![
            variable("cluster", "Cluster", Many, COUNT, "cluster"),
            variable(
                "job",
                "Application",
                Many,
                r#"http_request_duration_seconds_count{cluster=~"$cluster"}"#,
                "job",
            ),
            variable(
                "instance",
                "Instance",
                Many,
                r#"http_request_duration_seconds_count{cluster=~"$cluster",job=~"$job"}"#,
                "instance",
            ),
            variable(
                "route",
                "Route",
                Many,
                r#"http_request_duration_seconds_count{cluster=~"$cluster",job=~"$job",instance=~"$instance"}"#,
                "route",
            ),
        ],
        rows: vec![
            row(
                "Now",
                vec![
                    stat("Requests", "reqps", "Requests a second.")
                        .width(6)
                        .query(requests(""), ""),
                    stat(
                        "Errors",
                        "percentunit",
                        "Part of the requests that were answered with 5xx.",
                    )
                    .width(6)
                    .query(ratio(&failed(""), &requests("")), ""),
                    stat(
                        "Duration, 99th percentile",
                        "s",
                        "Of 100 requests, 99 took no longer.",
                    )
                    .width(6)
                    .query(quantile(0.99, "", SECONDS, REQUESTS), ""),
                    stat("Instances", "none", "Instances that are scraped.")
                        .width(6)
                        .query(
                            format!("count(count by (instance) ({COUNT}{{{JOBS}}}))"),
                            "",
                        ),
                ],
            ),
            row(
                "Rate, errors, duration",
                vec![
                    lines("Requests by route", "reqps", "Requests a second.").query(
                        requests("job, method, route"),
                        "{{job}} {{method}} {{route}}",
                    ),
                    lines("Requests by status", "reqps", "Requests a second.")
                        .query(requests("job, status_code"), "{{job}} {{status_code}}"),
                    lines(
                        "Errors by route",
                        "percentunit",
                        "Part of the requests that were answered with 5xx.",
                    )
                    .query(
                        ratio(&failed("job, route"), &requests("job, route")),
                        "{{job}} {{route}}",
                    ),
                    heatmap("Duration", "How long requests took.")
                        .query(buckets(SECONDS, REQUESTS), "{{le}}"),
                    lines("Duration, quantiles", "s", "Of all requests chosen.")
                        .query(quantile(0.5, "job", SECONDS, REQUESTS), "{{job}} 50 %")
                        .query(quantile(0.95, "job", SECONDS, REQUESTS), "{{job}} 95 %")
                        .query(quantile(0.99, "job", SECONDS, REQUESTS), "{{job}} 99 %"),
                    table(
                        "Mean duration by route",
                        "s",
                        "How long requests took on average.",
                    )
                    .query(mean("job, method, route"), "{{job}} {{route}}"),
                ],
            ),
            row(
                "Processes",
                vec![
                    lines("CPU", "none", "CPUs that the process uses.").query(
                        sum_rate("job, instance", "process_cpu_seconds_total", JOBS),
                        "{{job}} {{instance}}",
                    ),
                    lines("Memory", "bytes", "Resident memory of the process.").query(
                        sum(
                            "job, instance",
                            &format!("process_resident_memory_bytes{{{JOBS}}}"),
                        ),
                        "{{job}} {{instance}}",
                    ),
                    lines("Open files", "none", "Descriptors of the process.").query(
                        sum("job, instance", &format!("process_open_fds{{{JOBS}}}")),
                        "{{job}} {{instance}}",
                    ),
                ],
            ),
            row(
                "Business: the example shop",
                vec![
                    lines("Inventory", "none", "Items left of each product.")
                        .width(12)
                        .query(
                            sum("product", &format!("shop_inventory_items{{{JOBS}}}")),
                            "{{product}}",
                        ),
                    lines("Orders", "ops", "Orders by product and what came of them.")
                        .width(12)
                        .query(
                            sum_rate("product, result", "shop_orders_total", JOBS),
                            "{{product}} {{result}}",
                        ),
                ],
            ),
        ],
    }
}
