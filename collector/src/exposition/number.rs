//! Values and their text.

use std::io::Write as _;

/// A sample's value. Durations are exact: they are written as decimal seconds and not rounded to a
/// binary fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Count(u64),
    /// A duration in nanoseconds, exported in seconds.
    Nanos(u64),
    /// A floating-point number.
    Float(f64),
}

impl Value {
    #[inline]
    pub(super) fn write(self, to: &mut Vec<u8>) {
        match self {
            Self::Count(count) => {
                to.extend_from_slice(itoa::Buffer::new().format(count).as_bytes())
            }
            Self::Nanos(ns) => nanos(ns, to),
            Self::Float(float) => write_float(float, to),
        }
    }
}

const NS: u64 = 1_000_000_000;

fn nanos(ns: u64, to: &mut Vec<u8>) {
    to.extend_from_slice(itoa::Buffer::new().format(ns / NS).as_bytes());
    let mut fraction = ns % NS;
    if fraction == 0 {
        return;
    }
    let mut digits = [b'0'; 10];
    digits[0] = b'.';
    for digit in digits[1..].iter_mut().rev() {
        *digit = b'0' + (fraction % 10) as u8;
        fraction /= 10;
    }
    let end = digits
        .iter()
        .rposition(|&digit| digit != b'0')
        .map_or(0, |last| last + 1);
    to.extend_from_slice(&digits[..end]);
}

/// Writes the shortest text that parses to the same number.
fn write_float(float: f64, to: &mut Vec<u8>) {
    if float.is_nan() {
        to.extend_from_slice(b"NaN");
    } else if float.is_infinite() {
        to.extend_from_slice(if float > 0.0 { b"+Inf" } else { b"-Inf" });
    } else {
        // Writing to a vector does not fail.
        let _ = write!(to, "{float}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: Value) -> String {
        let mut to = Vec::new();
        value.write(&mut to);
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn durations_are_exact_decimals() {
        assert_eq!(text(Value::Nanos(0)), "0");
        assert_eq!(text(Value::Nanos(5 * NS)), "5");
        assert_eq!(text(Value::Nanos(123_456_789_012)), "123.456789012");
        assert_eq!(text(Value::Nanos(1_500_000_000)), "1.5");
        assert_eq!(text(Value::Nanos(1)), "0.000000001");
        assert_eq!(text(Value::Nanos(u64::MAX)), "18446744073.709551615");
    }

    #[test]
    fn floats_are_read_back_unchanged() {
        for float in [0.0, 1.0, 0.1, 1e300, -2.5, 1_700_000_000.25] {
            assert_eq!(text(Value::Float(float)).parse::<f64>().unwrap(), float);
        }
        assert_eq!(text(Value::Float(f64::NAN)), "NaN");
        assert_eq!(text(Value::Float(f64::NEG_INFINITY)), "-Inf");
        assert_eq!(text(Value::Float(f64::INFINITY)), "+Inf");
    }
}
