//! Turns readings of a namespace's interfaces into a cgroup's counters by interface name.
//!
//! Invariant: what an interface counts is added once, to the row of the name that it has at that
//! time. A row's total never decreases, even if the interface is renamed, disappears and returns,
//! or starts from 0, or if its namespace moves to another cgroup.

use crate::kernel::netlink::{COUNTERS, InterfaceCounters};

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
        if self.rows.iter().filter(|row| !row.shown).count() > MOST_HIDDEN
            && let Some(first) = self.rows.iter().position(|row| !row.shown)
        {
            self.rows.remove(first);
        }
    }
}

/// An interface: its name, and the counts that have been added.
#[derive(Clone, Debug)]
struct Interface {
    index: u32,
    name: String,
    taken: InterfaceCounters,
}

/// The interfaces of a namespace.
#[derive(Clone, Debug, Default)]
pub struct Interfaces(Vec<Interface>);

impl Interfaces {
    /// Whether an interface has no name yet.
    pub fn lack_names(&self, readings: &[(u32, InterfaceCounters)]) -> bool {
        let known = |index| self.0.iter().any(|device| device.index == index);
        readings.iter().any(|&(index, _)| !known(index))
    }

    /// Sets the current names of the interfaces.
    pub fn set_names(&mut self, names: &[(u32, String)], rows: &mut InterfaceRows) {
        for (index, name) in names {
            match self.0.iter_mut().find(|device| device.index == *index) {
                Some(device) if device.name == *name => {}
                Some(device) => {
                    rows.hide(&device.name);
                    device.name.clone_from(name);
                }
                None => self.0.push(Interface {
                    index: *index,
                    name: name.clone(),
                    taken: [0; COUNTERS],
                }),
            }
        }
    }

    /// Adds what the interfaces have counted since the last reading. Interfaces that are missing
    /// from it have disappeared.
    pub fn take(&mut self, readings: &[(u32, InterfaceCounters)], rows: &mut InterfaceRows) {
        self.0.retain(|device| {
            let there = readings.iter().any(|&(index, _)| index == device.index);
            if !there {
                rows.hide(&device.name);
            }
            there
        });
        for (index, counters) in readings {
            let Some(device) = self.0.iter_mut().find(|device| device.index == *index) else {
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
        devices.take(&reading, &mut rows);
        devices.take(&[(2, counters(150)), (3, counters(7))], &mut rows);
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
        devices.take(&readings, &mut rows);
        assert_eq!(first(&rows), [("long0", 1), ("br-1", 1)]);
    }

    #[test]
    fn a_new_name_starts_from_0() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        devices.set_names(&names(&[(2, "eth0")]), &mut rows);
        devices.take(&[(2, counters(100))], &mut rows);
        devices.set_names(&names(&[(2, "net1")]), &mut rows);
        devices.take(&[(2, counters(130))], &mut rows);
        assert_eq!(first(&rows), [("net1", 30)]);
        // It gets its old name back.
        devices.set_names(&names(&[(2, "eth0")]), &mut rows);
        devices.take(&[(2, counters(135))], &mut rows);
        assert_eq!(first(&rows), [("eth0", 105)]);
    }

    #[test]
    fn a_missing_interface_is_hidden_and_continues_when_it_returns() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        devices.set_names(&names(&[(2, "tun0")]), &mut rows);
        devices.take(&[(2, counters(100))], &mut rows);
        devices.take(&[], &mut rows);
        assert_eq!(first(&rows), []);
        devices.set_names(&names(&[(5, "tun0")]), &mut rows);
        devices.take(&[(5, counters(4))], &mut rows);
        assert_eq!(first(&rows), [("tun0", 104)]);
    }

    #[test]
    fn a_driver_that_starts_from_0_does_not_decrease_the_total() {
        let (mut devices, mut rows) = (Interfaces::default(), InterfaceRows::default());
        devices.set_names(&names(&[(2, "eth0")]), &mut rows);
        devices.take(&[(2, counters(100))], &mut rows);
        devices.take(&[(2, counters(10))], &mut rows);
        assert_eq!(first(&rows), [("eth0", 110)]);
    }

    #[test]
    fn a_new_owner_gets_only_later_counts() {
        let mut devices = Interfaces::default();
        let (mut one, mut other) = (InterfaceRows::default(), InterfaceRows::default());
        devices.set_names(&names(&[(2, "eth0")]), &mut one);
        devices.take(&[(2, counters(100))], &mut one);
        devices.take(&[(2, counters(120))], &mut other);
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
        devices.take(&readings, &mut rows);
        assert_eq!(rows.shown().count(), MOST_SHOWN);
        for n in 0..500 {
            devices.set_names(&names(&[(n, &format!("e{n}"))]), &mut rows);
        }
        assert!(rows.rows.len() <= MOST_SHOWN + MOST_HIDDEN);
        rows.unlimited = true;
        devices.take(&readings, &mut rows);
        assert_eq!(rows.shown().count(), 500);
    }
}
