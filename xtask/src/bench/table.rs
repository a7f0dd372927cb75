//! The results as aligned text, which is Markdown at the same time.

use serde_json::Value;

/// A column: its head, its key in a row's JSON (or a pointer to it), and the decimals of a number.
type Column = (&'static str, &'static str, usize);

const PROGRAMS: &[Column] = &[
    ("program", "/program", 0),
    ("agent", "/agent", 0),
    ("runs", "/runs", 0),
    ("ns gross", "/gross_ns", 1),
    ("ns empty", "/empty_ns", 1),
    ("ns net", "/net_ns", 1),
];
const SWITCHES: &[Column] = &[
    ("pinned ping-pong with", "/with", 0),
    ("slow-down %", "/percent", 1),
];
const THROUGHPUT: &[Column] = &[
    ("load", "/load", 0),
    ("agent", "/agent", 0),
    ("without the agent", "/without", 0),
    ("with it, %", "/agent_percent", 1),
];
const SCRAPES: &[Column] = &[
    ("cgroups", "/cgroups", 0),
    ("agent", "/agent", 0),
    ("series", "/series", 0),
    ("bytes", "/bytes", 0),
    ("CPU ms", "/cpu_ms", 2),
    ("wall ms", "/wall_ms", 2),
    ("ns a series", "/ns_a_series", 0),
    ("RSS MB", "/rss_mb", 1),
    ("anonymous MB", "/anonymous_mb", 1),
    ("peak MB", "/peak_mb", 1),
    ("kernel KiB", "/kernel_kib", 0),
    ("start ms", "/start_ms", 0),
    ("peak at start MB", "/start_peak_mb", 1),
];
const FRAMES: &[Column] = &[
    ("cgroups", "/cgroups", 0),
    ("agent", "/agent", 0),
    ("CPU ms of one scrape", "/frames/one_cpu_ms", 2),
    ("scrapes at once", "/frames/scrapes_at_once", 0),
    ("CPU ms of all", "/frames/at_once_cpu_ms", 2),
    ("ratio", "/frames/at_once_ratio", 2),
];
const REMOVALS: &[Column] = &[
    ("program", "/program", 0),
    ("agent", "/agent", 0),
    ("other cgroups", "/live", 0),
    ("lanes", "/lanes", 0),
    ("runs", "/runs", 0),
    ("ns net", "/net_ns", 0),
];
const TASKS: &[Column] = &[
    ("tasks", "/tasks", 0),
    ("agent", "/agent", 0),
    ("descriptors", "/descriptors", 0),
    ("iterator ms", "/iterator_ms", 2),
    ("ns a task", "/ns_a_task", 0),
    ("ns a run of the program, gross", "/program_ns", 0),
];

/// All tables that have a row.
pub fn text(result: &Value) -> String {
    let mut text = table(PROGRAMS, &result["programs"]);
    let switching = &result["context_switches"];
    if let Some(without) = switching["without_ns"].as_f64() {
        text += &format!(
            "A round trip of the pinned ping-pong takes {without:.0} ns with nothing; medians of {} \
             interleaved ratios:\n\n",
            switching["rounds"]
        );
    }
    text += &table(SWITCHES, &switching["with"]);
    text += &table(THROUGHPUT, &result["throughput"]);
    text += &table(SCRAPES, &result["scrapes"]);
    text += &table(FRAMES, &result["scrapes"]);
    text += &stages(&result["scrapes"]);
    text += &table(TASKS, &result["tasks"]);
    text + &table(REMOVALS, &result["removals"])
}

fn table(columns: &[Column], rows: &Value) -> String {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return String::new();
    }
    let heads: Vec<&str> = columns.iter().map(|(head, ..)| *head).collect();
    let rules = rows[0..1].iter().flat_map(|row| {
        columns.iter().map(|(_, key, _)| match row.pointer(key) {
            Some(Value::String(_)) => "---",
            _ => "--:",
        })
    });
    let mut text = format!("| {} |\n", heads.join(" | "));
    text += &format!("| {} |\n", rules.collect::<Vec<_>>().join(" | "));
    for row in rows {
        let cells: Vec<String> = columns
            .iter()
            .map(|(_, key, decimals)| cell(row.pointer(key), *decimals))
            .collect();
        text += &format!("| {} |\n", cells.join(" | "));
    }
    text + "\n"
}

fn cell(value: Option<&Value>, decimals: usize) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => {
            format!("{:.decimals$}", number.as_f64().unwrap_or_default())
        }
        _ => String::new(),
    }
}

/// What each stage of a scrape takes, by number of cgroups and agent.
fn stages(scrapes: &Value) -> String {
    let scrapes = scrapes.as_array().map_or(&[][..], Vec::as_slice);
    let Some(names) = scrapes
        .last()
        .and_then(|last| last["stages_us"].as_object())
    else {
        return String::new();
    };
    let heads: Vec<String> = scrapes
        .iter()
        .map(|scrape| {
            let agent = scrape["agent"].as_str().unwrap_or_default();
            format!("{} cgroups, {agent}", scrape["cgroups"])
        })
        .collect();
    let mut text = format!(
        "| stage, µs | {} |\n| --- |{}\n",
        heads.join(" | "),
        " --: |".repeat(heads.len())
    );
    for name in names.keys() {
        let cells: Vec<String> = scrapes
            .iter()
            .map(|scrape| cell(scrape["stages_us"].get(name), 0))
            .collect();
        text += &format!("| {name} | {} |\n", cells.join(" | "));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn what_was_not_measured_has_no_table() {
        assert_eq!(super::text(&json!({"machine": "m"})), "");
    }

    #[test]
    fn words_are_to_the_left_and_numbers_to_the_right() {
        let result = json!({"tasks": [
            {"tasks": 74, "agent": "now", "descriptors": 143, "iterator_ms": 0.031, "ns_a_task": 427.4},
        ]});
        assert_eq!(
            super::text(&result),
            "| tasks | agent | descriptors | iterator ms | ns a task | ns a run of the program, gross |\n\
             | --: | --- | --: | --: | --: | --: |\n\
             | 74 | now | 143 | 0.03 | 427 |  |\n\n"
        );
    }
}
