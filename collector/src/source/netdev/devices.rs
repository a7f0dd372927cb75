//! Turns readings of a namespace's interfaces into a cgroup's counters by interface name.
//!
//! Invariant: what an interface counts is added once, to the row of the name that it has at that
//! time. A row's total never decreases, even if the interface is renamed, disappears and returns,
//! or starts from 0, or if its namespace moves to another cgroup.

use std::collections::{BTreeMap, HashSet};

use crate::{
    kernel::netlink::{COUNTERS, InterfaceCounters},
    source::values::{Retained, Words},
};

/// Maximum number of rows of existing interfaces per cgroup, except for the root. A user with
/// rights in a namespace can create any number of interfaces.
const MOST_SHOWN: usize = 64;
/// Maximum number of remembered rows of interfaces that have disappeared and may return.
const MOST_HIDDEN: usize = 64;

/// Prefixes of the interfaces that cAdvisor leaves out: ends of containers' veth pairs, and
/// bridges. They count traffic that is counted elsewhere.
const LEFT_OUT: [&str; 3] = ["veth", "docker", "nerdctl"];

fn is_left_out(name: &str) -> bool {
    name == "lo" || LEFT_OUT.iter().any(|prefix| name.starts_with(prefix))
}

/// A cgroup's counters for one interface name.
#[derive(Clone, Debug)]
pub struct InterfaceRow {
    pub name: String,
    pub total: InterfaceCounters,
    /// False once the interface has disappeared from a namespace that still exists.
    pub shown: bool,
}

/// A cgroup's counters.
#[derive(Clone, Debug, Default)]
pub struct InterfaceRows {
    rows: Vec<InterfaceRow>,
    /// Whether the number of interfaces is unlimited.
    pub unlimited: bool,
}

impl InterfaceRows {
    /// Returns the rows to serve.
    pub fn shown(&self) -> impl Iterator<Item = &InterfaceRow> {
        self.rows.iter().filter(|row| row.shown)
    }

    fn find(&mut self, name: &str) -> Option<&mut InterfaceRow> {
        self.rows.iter_mut().find(|row| row.name == name)
    }

    /// Returns the row of an existing interface; `None` if there are too many.
    fn row(&mut self, name: &str) -> Option<&mut InterfaceRow> {
        let at = match self.rows.iter().position(|row| row.name == name) {
            Some(at) => at,
            None => {
                if !self.unlimited && self.shown().count() >= MOST_SHOWN {
                    return None;
                }
                self.rows.push(InterfaceRow {
                    name: name.to_owned(),
                    total: [0; COUNTERS],
                    shown: true,
                });
                self.rows.len() - 1
            }
        };
        self.rows[at].shown = true;
        Some(&mut self.rows[at])
    }

    fn hide(&mut self, name: &str) {
        if let Some(row) = self.find(name) {
            row.shown = false;
        }
    }

    /// Forgets rows of interfaces that have disappeared, if there are too many.
    pub fn forget(&mut self) {
        while self.rows.iter().filter(|row| !row.shown).count() > MOST_HIDDEN
            && let Some(first) = self.rows.iter().position(|row| !row.shown)
        {
            self.rows.remove(first);
        }
    }
}

/// [`super::Netdev`] saves rows together with what was added to them.
impl Retained for InterfaceRows {}

impl Words for InterfaceRows {
    const SHAPE: u64 = Vec::<(String, (InterfaceCounters, bool))>::SHAPE;

    fn put(&self, words: &mut Vec<u64>) {
        (self.rows.len() as u64).put(words);
        for row in &self.rows {
            row.name.put(words);
            row.total.put(words);
            row.shown.put(words);
        }
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        let rows = Vec::<(String, (InterfaceCounters, bool))>::take(words)?;
        let rows =
            rows.into_iter()
                .map(|(name, (total, shown))| InterfaceRow { name, total, shown });
        Some(Self {
            rows: rows.collect(),
            unlimited: false,
        })
    }
}

impl Words for Interfaces {
    const SHAPE: u64 = Vec::<(u64, (String, InterfaceCounters))>::SHAPE;

    fn put(&self, words: &mut Vec<u64>) {
        (self.0.len() as u64).put(words);
        for (index, device) in &self.0 {
            u64::from(*index).put(words);
            device.name.put(words);
            device.taken.put(words);
        }
    }

    fn take(words: &mut &[u64]) -> Option<Self> {
        let devices = Vec::<(u64, (String, InterfaceCounters))>::take(words)?;
        let devices = devices.into_iter().map(|(index, (name, taken))| {
            let index = u32::try_from(index).ok()?;
            Some((index, Interface { name, taken }))
        });
        devices.collect::<Option<_>>().map(Self)
    }
}

/// Maximum number of interfaces of a namespace that are known. The host may have more.
const MOST_KNOWN: usize = 1024;

/// An interface: its name, and the counts that have been added.
#[derive(Clone, Debug)]
struct Interface {
    name: String,
    taken: InterfaceCounters,
}

/// The interfaces of a namespace, by index.
#[derive(Clone, Debug, Default)]
pub struct Interfaces(BTreeMap<u32, Interface>);

impl Interfaces {
    /// Whether an interface has no name yet.
    pub fn lack_names(&self, readings: &[(u32, InterfaceCounters)]) -> bool {
        let unknown = |&(index, _): &(u32, _)| !self.0.contains_key(&index);
        self.0.len() < MOST_KNOWN && readings.iter().any(unknown)
    }

    /// Sets the current names of the interfaces.
    pub fn set_names(&mut self, names: &[(u32, String)], rows: &mut InterfaceRows) {
        for (index, name) in names {
            let full = self.0.len() >= MOST_KNOWN && !rows.unlimited;
            match self.0.get_mut(index) {
                Some(device) if device.name == *name => {}
                Some(device) => {
                    rows.hide(&device.name);
                    device.name.clone_from(name);
                }
                None if !full => {
                    let new = Interface {
                        name: name.clone(),
                        taken: [0; COUNTERS],
                    };
                    self.0.insert(*index, new);
                }
                None => {}
            }
        }
    }

    /// Adds what the interfaces have counted since the last reading. Interfaces that are missing
    /// from a whole list have disappeared.
    pub fn take(
        &mut self,
        readings: &[(u32, InterfaceCounters)],
        whole: bool,
        rows: &mut InterfaceRows,
    ) {
        if whole {
            let present: HashSet<u32> = readings.iter().map(|&(index, _)| index).collect();
            self.0.retain(|index, device| {
                let there = present.contains(index);
                if !there {
                    rows.hide(&device.name);
                }
                there
            });
        }
        for (index, counters) in readings {
            let Some(device) = self.0.get_mut(index) else {
                continue;
            };
            let taken = std::mem::replace(&mut device.taken, *counters);
            if is_left_out(&device.name) {
                continue;
            }
            let Some(row) = rows.row(&device.name) else {
                continue;
            };
            for (total, (now, before)) in row.total.iter_mut().zip(counters.iter().zip(taken)) {
                // A smaller value means that the driver has started from 0.
                *total = total.wrapping_add(now.checked_sub(before).unwrap_or(*now));
            }
        }
    }

    /// Shows the rows of all interfaces that are there. Another namespace of the same cgroup may have
    /// had one of the same name, and may have hidden the row.
    pub fn show(&self, rows: &mut InterfaceRows) {
        for device in self.0.values() {
            if let Some(row) = rows.find(&device.name) {
                row.shown = true;
            }
        }
    }

    /// Hides the rows of all interfaces: they are not read any more.
    pub fn hide(&self, rows: &mut InterfaceRows) {
        for device in self.0.values() {
            rows.hide(&device.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(n: u64) -> InterfaceCounters {
        [n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7]
    }

    fn names(names: &[(u32, &str)]) -> Vec<(u32, String)> {
        names.iter().map(|&(n, name)| (n, name.into())).collect()
    }

    fn first(rows: &InterfaceRows) -> Vec<(&str, u64)> {
        rows.shown()
            .map(|row| (row.name.as_str(), row.total[0]))
            .collect()
    }

    #[test]
    fn the_first_reading_counts_in_full_later_ones_by_their_growth() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        let reading = [(2, counters(100)), (3, counters(7))];
        assert!(devices.lack_names(&reading));
        devices.set_names(&names(&[(1, "lo"), (2, "eth0"), (3, "eth1")]), &mut rows);
        assert!(!devices.lack_names(&reading));
        devices.take(&reading, true, &mut rows);
        devices.take(&[(2, counters(150)), (3, counters(7))], true, &mut rows);
        assert_eq!(first(&rows), [("eth0", 150), ("eth1", 7)]);
        assert_eq!(rows.rows[0].total, counters(150));
    }

    #[test]
    fn interfaces_that_cadvisor_leaves_out() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        let all = ["lo", "veth1234", "docker0", "nerdctl0", "long0", "br-1"];
        for (index, name) in all.iter().enumerate() {
            devices.set_names(&names(&[(index as u32, name)]), &mut rows);
        }
        let readings: Vec<_> = (0..6).map(|index| (index, counters(1))).collect();
        devices.take(&readings, true, &mut rows);
        assert_eq!(first(&rows), [("long0", 1), ("br-1", 1)]);
    }

    #[test]
    fn a_new_name_starts_from_0() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        devices.set_names(&names(&[(2, "eth0")]), &mut rows);
        devices.take(&[(2, counters(100))], true, &mut rows);
        devices.set_names(&names(&[(2, "net1")]), &mut rows);
        devices.take(&[(2, counters(130))], true, &mut rows);
        assert_eq!(first(&rows), [("net1", 30)]);
        // It gets its old name back.
        devices.set_names(&names(&[(2, "eth0")]), &mut rows);
        devices.take(&[(2, counters(135))], true, &mut rows);
        assert_eq!(first(&rows), [("eth0", 105)]);
    }

    #[test]
    fn a_missing_interface_is_hidden_and_continues_when_it_returns() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        devices.set_names(&names(&[(2, "tun0")]), &mut rows);
        devices.take(&[(2, counters(100))], true, &mut rows);
        devices.take(&[], true, &mut rows);
        assert_eq!(first(&rows), []);
        devices.set_names(&names(&[(5, "tun0")]), &mut rows);
        devices.take(&[(5, counters(4))], true, &mut rows);
        assert_eq!(first(&rows), [("tun0", 104)]);
    }

    #[test]
    fn a_driver_that_starts_from_0_does_not_decrease_the_total() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        devices.set_names(&names(&[(2, "eth0")]), &mut rows);
        devices.take(&[(2, counters(100))], true, &mut rows);
        devices.take(&[(2, counters(10))], true, &mut rows);
        assert_eq!(first(&rows), [("eth0", 110)]);
    }

    #[test]
    fn a_new_owner_gets_only_later_counts() {
        let mut devices = Interfaces::default();
        let (mut one, mut other) = (InterfaceRows::default(), InterfaceRows::default());
        devices.set_names(&names(&[(2, "eth0")]), &mut one);
        devices.take(&[(2, counters(100))], true, &mut one);
        devices.take(&[(2, counters(120))], true, &mut other);
        assert_eq!(
            (first(&one), first(&other)),
            (vec![("eth0", 100)], vec![("eth0", 20)])
        );
    }

    #[test]
    fn rows_are_bounded() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        let many: Vec<(u32, String)> = (0..500).map(|n| (n, format!("d{n}"))).collect();
        let readings: Vec<_> = (0..500).map(|n| (n, counters(1))).collect();
        devices.set_names(&many, &mut rows);
        devices.take(&readings, true, &mut rows);
        assert_eq!(rows.shown().count(), MOST_SHOWN);
        for n in 0..500 {
            devices.set_names(&names(&[(n, &format!("e{n}"))]), &mut rows);
            rows.forget();
        }
        assert!(rows.rows.len() <= MOST_SHOWN + MOST_HIDDEN);
        rows.unlimited = true;
        devices.take(&readings, true, &mut rows);
        assert_eq!(rows.shown().count(), 500);
    }

    #[test]
    fn known_interfaces_are_bounded_but_for_the_host_s() {
        let most = MOST_KNOWN as u32;
        let many: Vec<(u32, String)> = (0..2 * most).map(|n| (n, "lo".into())).collect();
        let readings: Vec<_> = (0..2 * most).map(|n| (n, counters(1))).collect();
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        devices.set_names(&many, &mut rows);
        assert_eq!(devices.0.len(), MOST_KNOWN);
        // Names are not asked for again and again.
        assert!(!devices.lack_names(&readings));
        rows.unlimited = true;
        devices.set_names(&many, &mut rows);
        assert_eq!(devices.0.len(), 2 * MOST_KNOWN);
    }

    #[test]
    fn interfaces_of_one_name_in_two_namespaces_of_a_cgroup() {
        // Whichever is read first.
        for (first_read, last_read) in [(0, 1), (1, 0)] {
            let mut namespaces = [Interfaces::default(), Interfaces::default()];
            let mut rows = InterfaceRows::default();
            for (devices, count) in namespaces.iter_mut().zip([100, 7]) {
                devices.set_names(&names(&[(2, "eth0"), (3, "eth1")]), &mut rows);
                let reading = [(2, counters(count)), (3, counters(1))];
                devices.take(&reading, true, &mut rows);
            }
            assert_eq!(first(&rows), [("eth0", 107), ("eth1", 2)]);
            // The first namespace loses eth0, and renames eth1.
            let readings = [
                vec![(3, counters(1))],
                vec![(2, counters(9)), (3, counters(2))],
            ];
            for at in [first_read, last_read] {
                if at == 0 {
                    namespaces[0].set_names(&names(&[(3, "net1")]), &mut rows);
                }
                namespaces[at].take(&readings[at], true, &mut rows);
            }
            for devices in &namespaces {
                devices.show(&mut rows);
            }
            rows.forget();
            assert_eq!(first(&rows), [("eth0", 109), ("eth1", 3), ("net1", 0)]);
        }
    }

    #[test]
    fn an_incomplete_list_takes_nothing_away() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        devices.set_names(&names(&[(2, "eth0"), (3, "eth1")]), &mut rows);
        let all = [(2, counters(100)), (3, counters(7))];
        devices.take(&all, true, &mut rows);
        devices.take(&[(3, counters(8)), (3, counters(9))], false, &mut rows);
        assert_eq!(first(&rows), [("eth0", 100), ("eth1", 9)]);
        devices.take(&[(2, counters(120)), (3, counters(9))], true, &mut rows);
        assert_eq!(first(&rows), [("eth0", 120), ("eth1", 9)]);
    }

    #[test]
    fn what_is_not_read_any_more_is_hidden_and_goes_on_later() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        devices.set_names(&names(&[(2, "eth0")]), &mut rows);
        devices.take(&[(2, counters(100))], true, &mut rows);
        devices.hide(&mut rows);
        assert_eq!(first(&rows), []);
        devices.take(&[(2, counters(130))], true, &mut rows);
        assert_eq!(first(&rows), [("eth0", 130)]);
    }
}
