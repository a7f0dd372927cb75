//! Skips that are certain before a test has run, against the list of those that CI allows.
//!
//! Virtual machines are the last step of a run. A test that can't run in them, and is not on the
//! list, is found by the first run of any test instead.

use crate::{
    Test,
    guests::{SERIES, TOOLS},
    needs::Need,
};

/// Lines `PLACE: NAME # reason`; `cargo xtask test` reads the same file, and checks that each names a
/// test.
const LIST: &str = include_str!("../allowed-skips.txt");

/// Programs that tests use and guests have from busybox.
const BUSYBOX: [&str; 3] = ["busybox", "nsenter", "unshare"];

/// Lines that the list lacks.
pub fn missing_lines(tests: &[&Test]) -> Vec<String> {
    missing_in(LIST, tests)
}

fn missing_in(list: &str, tests: &[&Test]) -> Vec<String> {
    let rows = || list.lines().filter_map(|line| line.split(" # ").next());
    let lacks = |place: &str, name: &str| {
        let everywhere = place.starts_with("vm ").then(|| format!("vm: {name}"));
        let row = format!("{place}: {name}");
        (!rows().any(|found| found == row || Some(found) == everywhere.as_deref())).then_some(row)
    };
    let mut lines = Vec::new();
    for (name, needs, _) in tests {
        let first = |lacks: &dyn Fn(&Need) -> bool| needs.iter().find(|need| lacks(need));
        let places = SERIES.map(|series| {
            let need = first(&|need| guests_lack(need, series))?;
            Some((format!("vm {series}"), need))
        });
        let mut found: Vec<_> = places.into_iter().flatten().collect();
        if found.len() == SERIES.len()
            && found.iter().all(|(place, _)| lacks(place, name).is_some())
        {
            found = vec![("vm".to_owned(), found[0].1)];
        }
        found.extend(first(&hosts_lack).map(|need| ("host".to_owned(), need)));
        for (place, need) in found {
            let row = lacks(&place, name);
            lines.extend(row.map(|row| format!("{row} # the test needs {need:?}")));
        }
    }
    lines
}

/// Whether a virtual machine with a kernel never meets a need.
fn guests_lack(need: &Need, series: &str) -> bool {
    match need {
        Need::Example(_)
        | Need::Python(_)
        | Need::Variable(..)
        | Need::Venv(_)
        | Need::RealCpus
        | Need::V1(_) => true,
        Need::Program(name) => !TOOLS.contains(name) && !BUSYBOX.contains(name),
        Need::File(path) => path.starts_with("/lib/") || path.starts_with("/usr/"),
        Need::Kernel(major, minor) => version(series) < (*major, *minor),
        _ => false,
    }
}

/// Whether a host never meets a need.
fn hosts_lack(need: &Need) -> bool {
    matches!(need, Need::Guest(_) | Need::SpareDisk)
}

fn version(series: &str) -> (u32, u32) {
    let mut numbers = series.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
