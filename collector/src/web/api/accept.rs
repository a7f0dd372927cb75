//! Whether a client accepts JSON.

/// Whether an `Accept` header allows `application/json`. The most specific range that matches it
/// decides. Without a header everything is allowed.
pub(in crate::web) fn json_is_welcome(accept: Option<&str>) -> bool {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
        return true;
    };
    let mut best = (0, false);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = match media.as_str() {
            "application/json" => 3,
            "application/*" => 2,
            "*/*" => 1,
            _ => continue,
        };
        let quality = parts
            .filter_map(|part| part.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            .map_or(1.0, |(_, value)| value.trim().parse().unwrap_or(0.0));
        if weight > best.0 {
            best = (weight, quality > 0.0);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_headers_that_allow_json() {
        for (accept, welcome) in [
            (None, true),
            (Some(""), true),
            (Some("*/*"), true),
            (Some("text/html, application/xhtml+xml, */*;q=0.8"), true),
            (Some("application/json"), true),
            (Some("APPLICATION/JSON; charset=utf-8"), true),
            (Some("application/*;q=0.1"), true),
            (Some("text/html"), false),
            (Some("application/xml"), false),
            (Some("application/json;q=0"), false),
            (Some("application/json;q=0, */*"), false),
            (Some("*/*;q=0"), false),
            (Some("*/*;q=nonsense"), false),
            (Some("application/json, */*;q=0"), true),
        ] {
            assert_eq!(json_is_welcome(accept), welcome, "{accept:?}");
        }
    }
}
