//! Names of block devices.

use std::collections::HashMap;

/// A device's number and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Name as users know it: `/dev/vda`; `8:0` if the device no longer exists.
    pub name: String,
}

/// Bits of the minor number in the kernel's `dev_t` (include/linux/kdev_t.h, MINORBITS).
const MINOR_BITS: u32 = 20;

impl Device {
    /// Looks up the device of a kernel `dev_t`.
    pub fn of(number: u32) -> Self {
        let (major, minor) = (number >> MINOR_BITS, number & ((1 << MINOR_BITS) - 1));
        let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
        // sysfs writes a `/` in a device's name as `!` (drivers/base/core.c, device_add).
        let name = link.ok().and_then(|link| {
            let name = link.file_name()?.to_str()?.replace('!', "/");
            Some(format!("/dev/{name}"))
        });
        Self {
            major,
            minor,
            name: name.unwrap_or_else(|| format!("{major}:{minor}")),
        }
    }
}

/// Devices by number, each looked up once while it exists.
#[derive(Debug, Default)]
pub struct Devices(HashMap<u32, Device>);

impl Devices {
    /// Returns the device of a number.
    pub fn get(&mut self, number: u32) -> &Device {
        self.0.entry(number).or_insert_with(|| Device::of(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_named_by_its_number() {
        let device = Device::of(4095 << MINOR_BITS | 17);
        assert_eq!((device.major, device.minor), (4095, 17));
        assert_eq!(device.name, "4095:17");
    }
}
