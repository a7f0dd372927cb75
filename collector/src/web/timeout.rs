//! How long a scraper waits: the header `X-Prometheus-Scrape-Timeout-Seconds`.

use std::time::Duration;

use hyper::HeaderMap;

/// The header. Its value is a number of seconds, such as `10` or `0.5`.
const HEADER: &str = "x-prometheus-scrape-timeout-seconds";
/// Longest time that is left for the answer's way to the scraper.
const MARGIN: Duration = Duration::from_millis(500);

/// How long a scraper waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScrapeTimeout(Duration);

impl ScrapeTimeout {
    /// Reads the header. `None` if there is none, or no usable time in it.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(HEADER)?.to_str().ok()?;
        let seconds = text.trim().parse().ok()?;
        let time = Duration::try_from_secs_f64(seconds).ok()?;
        (!time.is_zero()).then_some(Self(time))
    }

    /// How long a scrape may take, so that the scraper still gets an answer: a tenth less, but at
    /// most half a second.
    pub(super) fn budget(self) -> Duration {
        self.0 - (self.0 / 10).min(MARGIN)
    }

    /// What a scraper is told whose scrape has taken longer.
    pub(super) fn exceeded(self) -> String {
        format!(
            "no snapshot was ready within {:?}, and the scraper waits {:?} at most \
             (X-Prometheus-Scrape-Timeout-Seconds); raise scrape_timeout in Prometheus, or see \
             /api/v1/status for what takes long",
            self.budget(),
            self.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_and_nonsense_is_left_aside() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, text.parse().unwrap());
            ScrapeTimeout::of(&headers).map(|timeout| timeout.budget().as_millis())
        };
        for (text, budget) in [
            ("10", Some(9500)),
            ("10.000000", Some(9500)),
            (" 1 ", Some(900)),
            ("0.5", Some(450)),
            ("60", Some(59_500)),
            ("0", None),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("1e300", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(read(text), budget, "{text}");
        }
        assert_eq!(ScrapeTimeout::of(&HeaderMap::new()), None);
    }
}
