//! docs/compatibility.md says what became of each of cAdvisor's families: it has to be true.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, path::Path};

use cgmeter::reference;

/// Families of cAdvisor 0.60, as many as its code has: the page lists each once.
const FAMILIES: usize = 123;

/// Family of cAdvisor to what is here in its stead.
fn page() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md");
    let text = fs::read_to_string(path).unwrap();
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let columns: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, family, here, remark, _] = columns[..] else {
            panic!("not three columns: {line}");
        };
        let name = |text: &str| text.trim_matches('`').to_owned();
        assert!(
            here == "served" || !remark.is_empty(),
            "{family}: no reason is given"
        );
        let before = rows.insert(name(family), name(here));
        assert!(before.is_none(), "{family} is there twice");
    }
    rows
}

fn served() -> Vec<&'static str> {
    let families = reference::families().into_iter();
    families
        .flat_map(|(_, families)| families)
        .map(|family| family.name)
        .collect()
}

#[test]
fn the_page_is_complete_and_true() {
    let (page, served) = (page(), served());
    assert_eq!(page.len(), FAMILIES);
    for (family, here) in &page {
        let is_served = served.contains(&family.as_str());
        match here.as_str() {
            "served" => assert!(is_served, "{family} is not served"),
            "left out" => assert!(!is_served, "{family} is served"),
            other => {
                assert!(!is_served, "{family} is served");
                assert!(served.contains(&other), "{family}: {other} is not served");
            }
        }
    }
}

#[test]
fn what_its_users_query_is_served() {
    // kubernetes-mixin's rules and the widespread dashboards.
    for family in [
        "container_cpu_usage_seconds_total",
        "container_cpu_user_seconds_total",
        "container_cpu_system_seconds_total",
        "container_cpu_cfs_periods_total",
        "container_cpu_cfs_throttled_periods_total",
        "container_cpu_cfs_throttled_seconds_total",
        "container_memory_working_set_bytes",
        "container_memory_usage_bytes",
        "container_memory_rss",
        "container_memory_swap",
        "container_memory_cache",
        "container_network_receive_bytes_total",
        "container_network_transmit_bytes_total",
        "container_network_receive_packets_total",
        "container_network_transmit_packets_total",
        "container_network_receive_packets_dropped_total",
        "container_network_transmit_packets_dropped_total",
        "container_network_receive_errors_total",
        "container_network_transmit_errors_total",
        "container_fs_reads_total",
        "container_fs_writes_total",
        "container_fs_reads_bytes_total",
        "container_fs_writes_bytes_total",
        "container_fs_usage_bytes",
        "container_fs_limit_bytes",
        "container_fs_inodes_free",
        "container_fs_inodes_total",
        "container_start_time_seconds",
        "container_last_seen",
        "container_health_state",
        "container_oom_events_total",
        "container_spec_cpu_quota",
        "container_spec_cpu_period",
        "container_spec_memory_limit_bytes",
        "machine_cpu_cores",
        "machine_memory_bytes",
    ] {
        assert!(served().contains(&family), "{family} is not served");
        assert_eq!(page().get(family).map(String::as_str), Some("served"));
    }
}
