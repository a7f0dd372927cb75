//! Paths as label values.

use std::fmt::Write as _;

/// A path as text. Label values are UTF-8; a path is any bytes. A path that is not UTF-8 has each
/// offending byte written as `\xNN`, and its backslashes as `\x5c`, so that two such paths never
/// look the same.
pub fn printable(path: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(path) {
        return text.to_owned();
    }
    let mut text = String::with_capacity(path.len() + 8);
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' {
                text.push_str("\\x5c")
            } else {
                text.push(c)
            }
        }
        for byte in chunk.invalid() {
            // Writing to a String does not fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf8_is_left_alone() {
        assert_eq!(printable(b"/a b\"\n\\x/\xc3\xa4"), "/a b\"\n\\x/\u{e4}");
    }

    #[test]
    fn other_bytes_are_escaped_and_stay_distinct() {
        assert_eq!(printable(b"/a\xff\\b"), "/a\\xff\\x5cb");
        assert_eq!(printable(b"/\xff"), "/\\xff");
        assert_ne!(printable(b"/\xff\\xfe"), printable(b"/\xff\xfe"));
    }
}
