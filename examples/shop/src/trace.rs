//! W3C trace context: `traceparent: 00-TRACE-PARENT-FLAGS`.
//!
//! Invariant: a malformed header is ignored, and ids are never all zeroes.

/// The trace context of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace, 32 hex digits.
    pub trace: String,
    /// This request's span, 16 hex digits.
    pub span: String,
    /// The caller's span.
    pub parent: Option<String>,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl Context {
    /// Makes a span, in the caller's trace if the header names one.
    pub fn new(traceparent: Option<&str>) -> Self {
        let span = format!("{:016x}", fastrand::u64(1..));
        if let Some((trace, parent, sampled)) = traceparent.and_then(parse) {
            return Self {
                trace,
                span,
                parent: Some(parent),
                sampled,
            };
        }
        Self {
            trace: format!("{:032x}", fastrand::u128(1..)),
            span,
            parent: None,
            sampled: true,
        }
    }

    /// The header for requests that this one causes.
    pub fn traceparent(&self) -> String {
        let flags = u8::from(self.sampled);
        format!("00-{}-{}-{flags:02x}", self.trace, self.span)
    }
}

fn parse(header: &str) -> Option<(String, String, bool)> {
    let mut parts = header.split('-');
    let version = hex(parts.next()?, 2)?;
    let trace = hex(parts.next()?, 32)?;
    let parent = hex(parts.next()?, 16)?;
    let flags = hex(parts.next()?, 2)?;
    let zeroes = |text: &str| text.bytes().all(|byte| byte == b'0');
    // Versions above 00 may have more parts, and ff is not allowed.
    let whole = match version {
        "00" => parts.next().is_none(),
        "ff" => false,
        _ => true,
    };
    if !whole || zeroes(trace) || zeroes(parent) {
        return None;
    }
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    Some((trace.to_owned(), parent.to_owned(), sampled))
}

fn hex(text: &str, length: usize) -> Option<&str> {
    let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == length && text.bytes().all(lower)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn a_caller_s_trace_goes_on() {
        let context = Context::new(Some(&format!("00-{TRACE}-b7ad6b7169203331-01")));
        assert_eq!(context.trace, TRACE);
        assert_eq!(context.parent.as_deref(), Some("b7ad6b7169203331"));
        assert!(context.sampled);
        assert_ne!(context.span, "b7ad6b7169203331");
        let next = Context::new(Some(&context.traceparent()));
        assert_eq!(
            (next.trace, next.parent),
            (context.trace, Some(context.span))
        );
        let quiet = Context::new(Some(&format!("cc-{TRACE}-b7ad6b7169203331-00-more")));
        assert!(!quiet.sampled && quiet.trace == TRACE);
    }

    #[test]
    fn anything_else_begins_a_trace() {
        let zeroes = "0".repeat(32);
        for header in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-b7ad6b7169203331"),
            format!("00-{TRACE}-b7ad6b7169203331-01-more"),
            format!("ff-{TRACE}-b7ad6b7169203331-01"),
            format!("00-{zeroes}-b7ad6b7169203331-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()),
        ] {
            let context = Context::new(Some(&header));
            assert_ne!(context.trace, TRACE, "{header}");
            assert_eq!(context.parent, None, "{header}");
            assert_eq!((context.trace.len(), context.span.len()), (32, 16));
        }
    }
}
