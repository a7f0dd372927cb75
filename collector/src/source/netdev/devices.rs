//! From readings of a namespace's interfaces to a cgroup's counters by interface name.
//!
//! Invariant: what an interface counts is added once, to the row of the name that it has at the
//! time. A row's total never goes back, whether the interface is renamed, goes and comes again,
//! starts from 0, or its namespace goes to another cgroup.

use crate::kernel::netlink::{COUNTERS, Counters};

/// Rows of interfaces that are there that a cgroup may have, the root excepted: who has rights in
/// a namespace can make as many as they like.
const MOST_SHOWN: usize = 64;
/// Rows of interfaces that have gone which are remembered, in case they return.
const MOST_HIDDEN: usize = 64;

/// Interfaces that cAdvisor leaves out by the start of their names: ends of containers' cables and
/// their bridges, which count once more what is counted elsewhere.
const LEFT_OUT: [&str; 3] = ["veth", "docker", "nerdctl"];

fn is_left_out(name: &str) -> bool {
    name == "lo" || LEFT_OUT.iter().any(|prefix| name.starts_with(prefix))
}

/// A cgroup's counters for one interface name.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub total: Counters,
    /// False once the interface has gone from a namespace that is still there.
    pub shown: bool,
}

/// A cgroup's counters.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    rows: Vec<Row>,
    /// Whether the number of interfaces is not limited.
    pub unlimited: bool,
}

impl Rows {
    /// Those that are to be served.
    pub fn shown(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.shown)
    }

    fn find(&mut self, name: &str) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.name == name)
    }

    /// The row of an interface that is there; `None` where there are too many.
    fn row(&mut self, name: &str) -> Option<&mut Row> {
        let at = match self.rows.iter().position(|row| row.name == name) {
            Some(at) => at,
            None => {
                if !self.unlimited && self.shown().count() >= MOST_SHOWN {
                    return None;
                }
                self.rows.push(Row {
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

/// An interface: its name, and what has been added of it.
#[derive(Clone, Debug)]
struct Device {
    index: u32,
    name: String,
    taken: Counters,
}

/// The interfaces of a namespace.
#[derive(Clone, Debug, Default)]
pub struct Devices(Vec<Device>);

impl Devices {
    /// Whether there is one that has no name yet.
    pub fn lack_names(&self, readings: &[(u32, Counters)]) -> bool {
        let known = |index| self.0.iter().any(|device| device.index == index);
        readings.iter().any(|&(index, _)| !known(index))
    }

    /// Takes in the names that the interfaces have now.
    pub fn set_names(&mut self, names: &[(u32, String)], rows: &mut Rows) {
        for (index, name) in names {
            match self.0.iter_mut().find(|device| device.index == *index) {
                Some(device) if device.name == *name => {}
                Some(device) => {
                    rows.hide(&device.name);
                    device.name.clone_from(name);
                }
                None => self.0.push(Device {
                    index: *index,
                    name: name.clone(),
                    taken: [0; COUNTERS],
                }),
            }
        }
    }

    /// Adds what the interfaces have counted since the last reading. Those that are not in it have
    /// gone.
    pub fn take(&mut self, readings: &[(u32, Counters)], rows: &mut Rows) {
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
                // Less than before: its driver has started from 0.
                *total = total.wrapping_add(now.checked_sub(before).unwrap_or(*now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(n: u64) -> Counters {
        [n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7]
    }

    fn names(names: &[(u32, &str)]) -> Vec<(u32, String)> {
        names.iter().map(|&(n, name)| (n, name.into())).collect()
    }

    fn first(rows: &Rows) -> Vec<(&str, u64)> {
        rows.shown()
            .map(|row| (row.name.as_str(), row.total[0]))
            .collect()
    }

    #[test]
    fn the_first_reading_is_taken_whole_later_ones_by_their_growth() {
        let (mut devices, mut rows) = (Devices::default(), Rows::default());
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
    fn what_cadvisor_leaves_out() {
        let (mut devices, mut rows) = (Devices::default(), Rows::default());
        let all = ["lo", "veth1234", "docker0", "nerdctl0", "long0", "br-1"];
        for (index, name) in all.iter().enumerate() {
            devices.set_names(&names(&[(index as u32, name)]), &mut rows);
        }
        let readings: Vec<_> = (0..6).map(|index| (index, counters(1))).collect();
        devices.take(&readings, &mut rows);
        assert_eq!(first(&rows), [("long0", 1), ("br-1", 1)]);
    }

    #[test]
    fn a_new_name_goes_on_from_0() {
        let (mut devices, mut rows) = (Devices::default(), Rows::default());
        devices.set_names(&names(&[(2, "eth0")]), &mut rows);
        devices.take(&[(2, counters(100))], &mut rows);
        devices.set_names(&names(&[(2, "net1")]), &mut rows);
        devices.take(&[(2, counters(130))], &mut rows);
        assert_eq!(first(&rows), [("net1", 30)]);
        // And back.
        devices.set_names(&names(&[(2, "eth0")]), &mut rows);
        devices.take(&[(2, counters(135))], &mut rows);
        assert_eq!(first(&rows), [("eth0", 105)]);
    }

    #[test]
    fn one_that_goes_is_hidden_and_goes_on_when_it_returns() {
        let (mut devices, mut rows) = (Devices::default(), Rows::default());
        devices.set_names(&names(&[(2, "tun0")]), &mut rows);
        devices.take(&[(2, counters(100))], &mut rows);
        devices.take(&[], &mut rows);
        assert_eq!(first(&rows), []);
        devices.set_names(&names(&[(5, "tun0")]), &mut rows);
        devices.take(&[(5, counters(4))], &mut rows);
        assert_eq!(first(&rows), [("tun0", 104)]);
    }

    #[test]
    fn a_driver_that_starts_from_0_is_no_step_back() {
        let (mut devices, mut rows) = (Devices::default(), Rows::default());
        devices.set_names(&names(&[(2, "eth0")]), &mut rows);
        devices.take(&[(2, counters(100))], &mut rows);
        devices.take(&[(2, counters(10))], &mut rows);
        assert_eq!(first(&rows), [("eth0", 110)]);
    }

    #[test]
    fn another_cgroup_gets_what_comes_after() {
        let mut devices = Devices::default();
        let (mut one, mut other) = (Rows::default(), Rows::default());
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
        let (mut devices, mut rows) = (Devices::default(), Rows::default());
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
