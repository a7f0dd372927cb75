//! Rewrites type names so that the kernel's BTF parser accepts them.
//!
//! The kernel wants C identifiers as type names (kernel/bpf/btf.c, `btf_name_valid_identifier`).
//! bpf-linker rewrites the names of structures, but not those of generic *unions*. aya's
//! `Global<T>`, which aya-log uses for its level, contains `MaybeUninit<T>`, and the kernel would
//! refuse the whole object.

use std::ops::Range;

use anyhow::{Context, Result};

/// Rewrites names such as `MaybeUninit<u8>` in the string section of a `.BTF` section.
///
/// # Errors
///
/// If the section's header is invalid.
pub fn make_valid(btf: &mut [u8]) -> Result<()> {
    let strings = strings(btf).context("the object's .BTF section is damaged")?;
    for name in btf[strings].split_mut(|&byte| byte == 0) {
        let of_a_type = |byte: &u8| byte.is_ascii_alphanumeric() || b"_<>:,".contains(byte);
        if name.contains(&b'<') && name.iter().all(of_a_type) {
            for byte in name.iter_mut().filter(|byte| b"<>:,".contains(byte)) {
                *byte = b'_';
            }
        }
    }
    Ok(())
}

/// struct btf_header (include/uapi/linux/btf.h): magic, version, flags, hdr_len, type_off,
/// type_len, str_off, str_len; offsets are relative to the end of the header.
fn strings(btf: &[u8]) -> Option<Range<usize>> {
    let word = |at: usize| -> Option<usize> {
        let bytes = btf.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes) as usize)
    };
    let start = word(4)?.checked_add(word(16)?)?;
    let end = start.checked_add(word(20)?)?;
    (end <= btf.len()).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(strings: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, 0, 0, strings.len() as u32] {
            bytes.extend_from_slice(&u32::to_le_bytes(word));
        }
        bytes.extend_from_slice(strings);
        bytes
    }

    #[test]
    fn only_generic_types_are_renamed() {
        let mut bytes = section(b"\0MaybeUninit<u8>\0if a < b {\0plain\0");
        make_valid(&mut bytes).unwrap();
        assert_eq!(&bytes[24..], b"\0MaybeUninit_u8_\0if a < b {\0plain\0");
    }

    #[test]
    fn a_damaged_header_is_an_error() {
        let mut bytes = section(b"\0a\0");
        bytes.truncate(25);
        assert!(make_valid(&mut bytes).is_err());
    }
}
