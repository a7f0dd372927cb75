//! Namespaces that are being read, and those that were closed.

use std::{
    collections::{HashMap, VecDeque},
    io,
};

use collector_common::netdev::Witness;

use super::devices::{InterfaceRows, Interfaces};
use crate::{
    cgroup::NodeId,
    kernel::netlink::{Buffer, Dump, InterfaceCounters, Rtnetlink},
};

/// A namespace that is being read.
#[derive(Debug)]
pub struct Open {
    pub socket: Rtnetlink,
    /// Cgroup id of its owner.
    pub owner: u64,
    pub node: NodeId,
    /// A process in it; `None` of the host's, which does not end.
    pub witness: Option<Witness>,
    pub devices: Interfaces,
}

/// Buffers that all readings share.
#[derive(Debug, Default)]
pub struct Room {
    buffer: Buffer,
    names: Vec<(u32, String)>,
    readings: Vec<(u32, InterfaceCounters)>,
}

impl Open {
    /// Adds what the interfaces have counted since the last reading.
    pub fn read(&mut self, rows: &mut InterfaceRows, room: &mut Room) -> io::Result<()> {
        let Room {
            buffer,
            names,
            readings,
        } = room;
        let dump = self.socket.counters(buffer, readings)?;
        if self.socket.changed() || self.devices.lack_names(readings) {
            self.socket.names(buffer, names)?;
            self.devices.set_names(names, rows);
        }
        let whole = dump == Dump::Consistent;
        self.devices.take(readings, whole, rows);
        Ok(())
    }
}

/// Maximum number of closed namespaces whose interfaces are remembered.
const REMEMBERED: usize = 4096;

/// Interfaces of the namespaces closed last. A namespace that a mount or another cgroup keeps alive may
/// be opened again, and then continues where it was.
#[derive(Debug, Default)]
pub struct Remembered {
    interfaces: HashMap<u64, Interfaces>,
    /// Cookies in the order of closing. Those of namespaces that were opened again are left out of
    /// the map.
    order: VecDeque<u64>,
}

impl Remembered {
    /// Remembers the interfaces of a namespace that is closed.
    pub fn put(&mut self, cookie: u64, interfaces: Interfaces) {
        self.interfaces.insert(cookie, interfaces);
        self.order.push_back(cookie);
        while self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            // Unless it was opened and closed again since.
            if !self.order.contains(&oldest) {
                self.interfaces.remove(&oldest);
            }
        }
    }

    /// Takes the interfaces of a namespace that is opened.
    pub fn take(&mut self, cookie: u64) -> Interfaces {
        self.interfaces.remove(&cookie).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut remembered = Remembered::default();
        for cookie in 0..3 * REMEMBERED as u64 {
            // One is opened and closed again and again.
            remembered.put(7, Interfaces::default());
            remembered.put(cookie, Interfaces::default());
            remembered.take(cookie / 2);
        }
        assert!(remembered.interfaces.len() <= REMEMBERED);
        assert!(remembered.order.len() <= REMEMBERED);
        assert!(remembered.interfaces.contains_key(&7));
    }
}
