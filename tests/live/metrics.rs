//! Reads an exposition to look up values. Whether it is well-formed is checked by other parsers,
//! see `formats`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

/// One sample of an exposition.
#[derive(Clone, Debug)]
pub struct Sample {
    name: String,
    /// Labels as in the text, without braces.
    labels: String,
    value: f64,
}

/// A parsed series.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name of the family, with its suffix.
    pub name: String,
    /// Labels, unescaped.
    pub labels: BTreeMap<String, String>,
}

impl Series {
    /// A label. Empty if there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// Parses labels as in the text.
fn labels(text: &str) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").context("a label without a value")?;
        let (mut value, mut end, mut escaped) = (String::new(), None, false);
        for (at, character) in after.char_indices() {
            match (escaped, character) {
                (true, 'n') => value.push('\n'),
                (true, other) => value.push(other),
                (false, '"') => {
                    end = Some(at + 1);
                    break;
                }
                (false, '\\') => {
                    escaped = true;
                    continue;
                }
                (false, other) => value.push(other),
            }
            escaped = false;
        }
        let end = end.with_context(|| format!("no end of a label's value: {text}"))?;
        ensure!(
            labels.insert(name.to_owned(), value).is_none(),
            "a label twice: {text}"
        );
        rest = after[end..].trim_start_matches(',');
    }
    Ok(labels)
}

/// All samples of a scrape.
#[derive(Debug)]
pub struct Metrics(Vec<Sample>);

impl Metrics {
    /// Parses a text exposition.
    pub fn parse(text: &str) -> Result<Self> {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.strip_suffix('}').unwrap_or(labels);
            Some(Sample {
                name: name.to_owned(),
                labels: labels.to_owned(),
                value: value.parse().ok()?,
            })
        };
        text.lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| sample(line).with_context(|| format!("not a sample: {line}")))
            .collect::<Result<Vec<_>>>()
            .map(Self)
    }

    /// Every sample: name, labels as they stand, value.
    pub fn samples(&self) -> impl Iterator<Item = (&str, &str, f64)> {
        self.0
            .iter()
            .map(|of| (of.name.as_str(), of.labels.as_str(), of.value))
    }

    /// All series with this value of a label.
    pub fn with(&self, name: &str, value: &str) -> Result<Vec<Series>> {
        let mut found = Vec::new();
        for sample in &self.0 {
            let labels = labels(&sample.labels)?;
            if labels.get(name).is_some_and(|label| label == value) {
                found.push(Series {
                    name: sample.name.clone(),
                    labels,
                });
            }
        }
        Ok(found)
    }

    /// Fails if two series of a cgroup differ only in the labels that name it: two containers, with
    /// and without a name, or an old and a new name.
    pub fn no_doubles(&self) -> Result<()> {
        const NAMES: [&str; 6] = ["name", "unit", "image", "namespace", "pod", "container"];
        let mut seen = BTreeSet::new();
        for sample in &self.0 {
            let mut labels = labels(&sample.labels)?;
            // The value of a state may change, but there must not be two series of it.
            labels.retain(|label, _| {
                !NAMES.contains(&label.as_str()) && !label.starts_with("container_label_")
            });
            ensure!(
                seen.insert((sample.name.clone(), labels)),
                "twice: {}{{{}}}",
                sample.name,
                sample.labels
            );
        }
        Ok(())
    }

    /// Values of the series of `name` that have all of `labels`.
    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = f64> + 'a {
        let wanted: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{value}\""))
            .collect();
        self.0
            .iter()
            .filter(move |sample| {
                sample.name == name && wanted.iter().all(|label| sample.labels.contains(label))
            })
            .map(|sample| sample.value)
    }

    /// The value of the only such series.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let values: Vec<f64> = self.matching(name, labels).collect();
        match values[..] {
            [value] => Ok(value),
            _ => anyhow::bail!("{name}{labels:?}: {} series instead of one", values.len()),
        }
    }

    /// The value of a cgroup's only series of a family.
    pub fn of(&self, id: &str, name: &str) -> Result<f64> {
        self.get(name, &[("id", id)])
    }

    /// Checks `container_scrape_error`: 1 if a source could not be read, else 0.
    pub fn scrape_error(&self, expected: f64) -> Result<()> {
        let found = self.get("container_scrape_error", &[])?;
        same("scrape errors", found, expected)
    }

    /// Whether there is such a series.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    /// Sum over all such series.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).sum()
    }

    /// Number of such series.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> usize {
        self.matching(name, labels).count()
    }

    /// Values of the label `id` of a family's series, as in the text.
    pub fn ids(&self, name: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter(|sample| sample.name == name)
            .filter_map(|sample| sample.labels.strip_prefix("id=\"")?.split('"').next())
            .collect()
    }
}

/// Whether two agents have the same value of a series. Each reads the end of a block request and of a task's
/// hold-up itself, some hundred nanoseconds apart. So the sums of these times may differ slightly, and one
/// may fall into the next bucket.
pub fn alike(name: &str, one: Option<f64>, other: Option<f64>) -> bool {
    let own_clock = [
        "container_block_io_",
        "container_fs_",
        "container_memory_reclaim_",
    ]
    .iter()
    .any(|start| name.starts_with(start));
    if own_clock && name.contains("_seconds_bucket") {
        return true;
    }
    match (one, other) {
        (Some(one), Some(other)) if own_clock && name.contains("_seconds") => {
            (one - other).abs() <= 1e-3 + other * 0.05
        }
        _ => one == other,
    }
}

/// Fails unless two numbers agree within a fraction of the second one plus an absolute slack.
pub fn agree(what: &str, found: f64, expected: f64, fraction: f64, slack: f64) -> Result<()> {
    let allowed = expected.abs() * fraction + slack;
    anyhow::ensure!(
        (found - expected).abs() <= allowed,
        "{what}: {found} instead of {expected} (more than {allowed} apart)"
    );
    Ok(())
}

/// Fails unless two counts are equal.
pub fn same(what: &str, found: f64, expected: f64) -> Result<()> {
    anyhow::ensure!(found == expected, "{what}: {found} instead of {expected}");
    Ok(())
}
