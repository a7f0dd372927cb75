//! Builds requests and parses answers of rtnetlink (include/uapi/linux/netlink.h, rtnetlink.h,
//! if_link.h). Every access is checked against the length.

use std::io;

use super::{COUNTERS, Counter, InterfaceCounters};

/// A dump that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// RTM_GETLINK
    GetLink = 18,
    /// RTM_GETSTATS
    GetStatistics = 94,
}

impl MessageKind {
    /// The type of its answers: RTM_NEWLINK, RTM_NEWSTATS.
    pub fn answer(self) -> u16 {
        self as u16 - 2
    }
}

/// NLMSG_ERROR
pub const ERROR: u16 = 2;
/// NLMSG_DONE
pub const DONE: u16 = 3;

/// NLM_F_REQUEST and NLM_F_DUMP
const REQUEST_DUMP: u16 = 0x301;
/// NLM_F_MULTI: one of several answers.
const MULTI: u16 = 0x2;
/// NLM_F_DUMP_INTR: the dumped objects changed during the dump.
const INTERRUPTED: u16 = 0x10;

const IFLA_IFNAME: u16 = 3;
const IFLA_EXT_MASK: u16 = 29;
/// RTEXT_FILTER_SKIP_STATS: names without counters.
const SKIP_STATISTICS: u32 = 1 << 3;
/// IFLA_STATS_LINK_64. Its bit in the filter requests it.
const IFLA_STATS_LINK_64: u16 = 1;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER
const ATTRIBUTE_FLAGS: u16 = 0xc000;

const HEADER: usize = 16;
/// struct ifinfomsg
const LINK_HEADER: usize = 16;
/// struct if_stats_msg
const STATISTICS_HEADER: usize = 12;

/// The fields of struct nlmsghdr that are used.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub kind: u16,
    pub sequence: u32,
    pub multi: bool,
    pub interrupted: bool,
}

impl Header {
    /// Whether the message answers the dump with this sequence number. A notice may have any number
    /// (since 6.2 that of the request that made the change), but it never has NLM_F_MULTI.
    pub fn answers(self, sequence: u32) -> bool {
        self.sequence == sequence && (self.multi || self.kind == ERROR)
    }
}

/// A request for a dump.
pub fn dump(kind: MessageKind, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    bytes.extend_from_slice(&(kind as u16).to_ne_bytes());
    bytes.extend_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The part after the header in a request for links.
pub fn link_request() -> [u8; LINK_HEADER + 8] {
    let mut body = [0; LINK_HEADER + 8];
    body[16..18].copy_from_slice(&8u16.to_ne_bytes());
    body[18..20].copy_from_slice(&IFLA_EXT_MASK.to_ne_bytes());
    body[20..24].copy_from_slice(&SKIP_STATISTICS.to_ne_bytes());
    body
}

/// The part after the header in a request for statistics.
pub fn statistics_request() -> [u8; STATISTICS_HEADER] {
    let mut body = [0; STATISTICS_HEADER];
    let filter = 1u32 << (IFLA_STATS_LINK_64 - 1);
    body[8..12].copy_from_slice(&filter.to_ne_bytes());
    body
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a netlink message with {what}"),
    )
}

/// Iterates over the messages of a datagram. It ends after an error.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<(Header, &[u8])>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let message = first_message(bytes);
        match &message {
            Some((_, _, rest)) => bytes = rest,
            None => bytes = &[],
        }
        Some(match message {
            Some((header, payload, _)) => Ok((header, payload)),
            None => Err(malformed("a wrong length")),
        })
    })
}

fn first_message(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let payload = bytes.get(HEADER..length)?;
    let flags = u16_at(bytes, 6)?;
    let header = Header {
        kind: u16_at(bytes, 4)?,
        sequence: u32_at(bytes, 8)?,
        multi: flags & MULTI != 0,
        interrupted: flags & INTERRUPTED != 0,
    };
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((header, payload, rest))
}

/// The payload of an attribute.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(bytes, 0)?);
        let payload = bytes.get(4..length)?;
        if u16_at(bytes, 2)? & !ATTRIBUTE_FLAGS == wanted {
            return Some(payload);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// Index and name of a link.
pub fn link(payload: &[u8]) -> io::Result<(u32, String)> {
    let index = u32_at(payload, 4).ok_or_else(|| malformed("no interface"))?;
    let name = payload
        .get(LINK_HEADER..)
        .and_then(|attributes| attribute(attributes, IFLA_IFNAME))
        .ok_or_else(|| malformed("no interface name"))?;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok((index, String::from_utf8_lossy(name).into_owned()))
}

/// Index and counters of a link. `None` if the link has no counters.
pub fn statistics(payload: &[u8]) -> io::Result<Option<(u32, InterfaceCounters)>> {
    let index = u32_at(payload, 4).ok_or_else(|| malformed("no interface"))?;
    let attributes = payload.get(STATISTICS_HEADER..).unwrap_or_default();
    let Some(found) = attribute(attributes, IFLA_STATS_LINK_64) else {
        return Ok(None);
    };
    // struct rtnl_link_stats64 consists of words. Later kernels append more.
    let word = |at: usize| u64_at(found, 8 * at).ok_or_else(|| malformed("too few counters"));
    const RX_MISSED: usize = 15;
    let mut counters = [0; COUNTERS];
    for (counter, at) in [
        (Counter::ReceivePackets, 0),
        (Counter::TransmitPackets, 1),
        (Counter::ReceiveBytes, 2),
        (Counter::TransmitBytes, 3),
        (Counter::ReceiveErrors, 4),
        (Counter::TransmitErrors, 5),
        (Counter::ReceiveDropped, 6),
        (Counter::TransmitDropped, 7),
    ] {
        counters[counter as usize] = word(at)?;
    }
    let missed = word(RX_MISSED)?;
    let dropped = &mut counters[Counter::ReceiveDropped as usize];
    *dropped = dropped.wrapping_add(missed);
    Ok(Some((index, counters)))
}

/// The error in an NLMSG_ERROR message.
pub fn error(payload: &[u8]) -> io::Error {
    match u32_at(payload, 0) {
        Some(negative) if negative != 0 => numbered(negative),
        _ => malformed("an error without a number"),
    }
}

fn numbered(negative: u32) -> io::Error {
    io::Error::from_raw_os_error((negative as i32).wrapping_neg())
}

/// The result of a dump in its NLMSG_DONE message: an error means that it is not whole.
pub fn done(payload: &[u8]) -> io::Result<()> {
    match u32_at(payload, 0) {
        None | Some(0) => Ok(()),
        Some(negative) => Err(numbered(negative)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = dump(MessageKind::GetLink, sequence, payload);
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn attribute_of(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((payload.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn with_index(header: usize, index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut payload = vec![0; header];
        payload[4..8].copy_from_slice(&index.to_ne_bytes());
        payload.extend(attributes.concat());
        payload
    }

    #[test]
    fn requests_have_the_kernels_format() {
        // A request as `ip -s -s link` sends it: length, type, flags, sequence.
        let request = dump(MessageKind::GetStatistics, 7, &statistics_request());
        let mut expected = Vec::new();
        expected.extend(28u32.to_ne_bytes());
        expected.extend(94u16.to_ne_bytes());
        expected.extend(0x301u16.to_ne_bytes());
        expected.extend(7u32.to_ne_bytes());
        expected.extend([0; 12]);
        expected.extend(1u32.to_ne_bytes());
        assert_eq!(request, expected);
        assert_eq!(link_request().len() % 4, 0);
        assert_eq!(MessageKind::GetStatistics.answer(), 92);
        assert_eq!(MessageKind::GetLink.answer(), 16);
    }

    #[test]
    fn a_datagram_is_parsed() {
        let mut bytes = message(16, 0x12, 5, &[1, 2, 3]);
        bytes.extend(message(DONE, 2, 5, &0u32.to_ne_bytes()));
        let found: Vec<_> = messages(&bytes).map(Result::unwrap).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0.kind, found[0].0.sequence), (16, 5));
        assert!(found[0].0.interrupted && !found[1].0.interrupted);
        assert_eq!(found[0].1, [1, 2, 3]);
        assert_eq!(found[1].0.kind, DONE);
        assert!(found[0].0.answers(5) && !found[0].0.answers(4));
    }

    #[test]
    fn notices_are_not_answers() {
        let found = |bytes: &[u8]| messages(bytes).next().unwrap().unwrap().0;
        assert!(!found(&message(16, 0, 5, &[])).answers(5));
        assert!(found(&message(ERROR, 0, 5, &[0; 20])).answers(5));
    }

    #[test]
    fn links_have_names() {
        let attributes = [
            attribute_of(7, &[1]),
            attribute_of(IFLA_IFNAME, b"eth0\0"),
            attribute_of(4, &[0; 4]),
        ];
        let payload = with_index(LINK_HEADER, 3, &attributes);
        assert_eq!(link(&payload).unwrap(), (3, "eth0".to_owned()));
        assert!(link(&with_index(LINK_HEADER, 3, &attributes[..1])).is_err());
    }

    #[test]
    fn counters_match_proc_net_dev() {
        let words: Vec<u8> = (0..25u64).flat_map(|n| (n + 100).to_ne_bytes()).collect();
        let attributes = [attribute_of(0, &[]), attribute_of(1 | 0x8000, &words)];
        let payload = with_index(STATISTICS_HEADER, 9, &attributes);
        let (index, counters) = statistics(&payload).unwrap().unwrap();
        assert_eq!(index, 9);
        // Receive: bytes, packets, errors, drops and missed packets. Transmit: the same without
        // missed packets.
        assert_eq!(counters, [102, 100, 104, 106 + 115, 103, 101, 105, 107]);
        let none = with_index(STATISTICS_HEADER, 9, &attributes[..1]);
        assert!(statistics(&none).unwrap().is_none());
        let short = with_index(STATISTICS_HEADER, 9, &[attribute_of(1, &words[..64])]);
        assert!(statistics(&short).is_err());
    }

    #[test]
    fn truncated_messages_are_refused() {
        let words: Vec<u8> = vec![7; 25 * 8];
        let whole = message(
            92,
            2,
            1,
            &with_index(STATISTICS_HEADER, 1, &[attribute_of(1, &words)]),
        );
        for length in 1..whole.len() {
            assert!(messages(&whole[..length]).all(|found| found.is_err()));
        }
        // Wrong lengths: shorter than a header, longer than the datagram.
        for length in [0u32, 4, 15, u32::MAX] {
            let mut lying = whole.clone();
            lying[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(messages(&lying).filter(Result::is_err).count(), 1);
        }
        for length in [0u16, 3, u16::MAX] {
            let mut lying = attribute_of(5, &[0; 4]);
            lying[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(attribute(&lying, 3), None);
        }
    }

    #[test]
    fn errors_carry_their_number() {
        let payload = (-libc::EOPNOTSUPP).to_ne_bytes();
        assert_eq!(error(&payload).raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(error(&[0; 4]).kind(), io::ErrorKind::InvalidData);
        assert_eq!(error(&[]).kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_dump_that_ends_with_an_error_is_not_whole() {
        done(&0i32.to_ne_bytes()).unwrap();
        done(&[]).unwrap();
        let found = done(&(-libc::EMSGSIZE).to_ne_bytes()).unwrap_err();
        assert_eq!(found.raw_os_error(), Some(libc::EMSGSIZE));
    }
}
