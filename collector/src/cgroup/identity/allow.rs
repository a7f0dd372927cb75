//! Which of a container's labels become labels of its series (`--container.label`).
//!
//! Invariant: the number of label names is bounded by what the operator allows, a container's labels have
//! [`MOST_BYTES`] on a series, and no series has one name twice.

use std::collections::{BTreeMap, BTreeSet};

/// Prefix of the names, as cAdvisor has it.
const PREFIX: &str = "container_label_";

/// Most bytes of names and values of a container's labels: every series of the container has them.
const MOST_BYTES: usize = 4096;

/// Names of labels that are exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    exact: BTreeSet<String>,
    prefixes: Vec<String>,
}

/// An invalid pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a `*` may only stand at the end")]
pub struct AllowError;

impl AllowList {
    /// From patterns: a name, a prefix followed by `*`, or `*` for all. Empty ones are ignored.
    ///
    /// # Errors
    ///
    /// When a `*` stands elsewhere.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, AllowError> {
        let mut list = Self::default();
        for pattern in patterns.into_iter().filter(|pattern| !pattern.is_empty()) {
            let bare = pattern.strip_suffix('*').unwrap_or(pattern);
            if bare.contains('*') {
                return Err(AllowError);
            }
            if bare.len() < pattern.len() {
                list.prefixes.push(bare.to_owned());
            } else {
                list.exact.insert(bare.to_owned());
            }
        }
        Ok(list)
    }

    /// Whether a label is exported.
    pub fn allows(&self, label: &str) -> bool {
        self.exact.contains(label) || self.prefixes.iter().any(|prefix| label.starts_with(prefix))
    }

    /// Names and values of the labels that are exported. Characters other than letters, digits and `_`
    /// become `_`. If two names become the same, the second in byte order gets `_2`, and so on. Labels that are
    /// allowed by their names come first, then all in byte order; what does not fit into 4 KiB is left out.
    pub fn select<'a>(&self, labels: &'a BTreeMap<String, String>) -> Vec<(String, &'a str)> {
        let fitting = self.fitting(labels);
        let mut selected: Vec<(String, &str)> = Vec::new();
        for (label, value) in labels {
            if !fitting.contains(label.as_str()) {
                continue;
            }
            let name = sanitised(label);
            let taken = |name: &str| selected.iter().any(|(found, _)| found == name);
            let free = std::iter::once(name.clone())
                .chain((2..).map(|number| format!("{name}_{number}")))
                .find(|name| !taken(name));
            selected.extend(free.map(|name| (name, value.as_str())));
        }
        selected
    }
}

impl AllowList {
    /// Names of the labels for which there is room.
    fn fitting<'a>(&self, labels: &'a BTreeMap<String, String>) -> BTreeSet<&'a str> {
        let allowed = labels.iter();
        let allowed = allowed.filter(|(label, value)| !value.is_empty() && self.allows(label));
        let mut allowed: Vec<_> = allowed.collect();
        allowed.sort_by_key(|(label, _)| !self.exact.contains(*label));
        let mut left = MOST_BYTES;
        let mut fitting = BTreeSet::new();
        for (label, value) in allowed {
            // A name that another label has as well becomes a little longer.
            let length = PREFIX.len() + label.len() + value.len() + 4;
            if let Some(rest) = left.checked_sub(length) {
                left = rest;
                fitting.insert(label.as_str());
            }
        }
        fitting
    }
}

fn sanitised(label: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    PREFIX.chars().chain(label.chars().map(legal)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        pairs.collect()
    }

    #[test]
    fn exact_names_beginnings_and_all() {
        let list = AllowList::new(["team", "com.docker.*", ""]).unwrap();
        assert!(list.allows("team") && !list.allows("teams") && !list.allows(""));
        assert!(list.allows("com.docker.compose.project") && !list.allows("com.dockerx"));
        assert!(AllowList::new(["*"]).unwrap().allows("anything"));
        assert!(!AllowList::new([""]).unwrap().allows("anything"));
        for pattern in ["*x", "a*b", "**"] {
            assert_eq!(AllowList::new([pattern]), Err(AllowError), "{pattern}");
        }
    }

    #[test]
    fn names_are_made_legal_as_cadvisor_makes_them() {
        let labels = labels(&[
            ("com.docker.compose.project", "shop"),
            ("ä-1", "x"),
            ("e", ""),
        ]);
        let selected = AllowList::new(["*"]).unwrap().select(&labels);
        assert_eq!(
            selected,
            [
                (
                    "container_label_com_docker_compose_project".to_owned(),
                    "shop"
                ),
                ("container_label___1".to_owned(), "x"),
            ]
        );
    }

    #[test]
    fn labels_have_so_much_room_and_those_that_were_named_come_first() {
        let mut many: BTreeMap<String, String> = (0..200)
            .map(|n| (format!("label-{n:03}"), "x".repeat(30)))
            .collect();
        many.insert("zone".to_owned(), "here".to_owned());
        many.insert("huge".to_owned(), "x".repeat(MOST_BYTES));
        let list = AllowList::new(["*", "zone"]).unwrap();
        let selected = list.select(&many);
        let bytes: usize = selected
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        assert!(bytes <= MOST_BYTES, "{bytes}");
        assert!(selected.len() > 50, "{} labels", selected.len());
        let has = |name: &str| selected.iter().any(|(found, _)| found == name);
        assert!(has("container_label_zone") && has("container_label_label_000"));
        assert!(!has("container_label_huge") && !has("container_label_label_199"));
        assert_eq!(list.select(&many), selected);
    }

    #[test]
    fn names_that_become_one_stay_apart_and_in_order() {
        let labels = labels(&[("a-b", "1"), ("a.b", "2"), ("a_b", "3"), ("a_b_2", "4")]);
        let selected = AllowList::new(["*"]).unwrap().select(&labels);
        let names: Vec<(&str, &str)> = selected
            .iter()
            .map(|(name, value)| (&name[PREFIX.len()..], *value))
            .collect();
        assert_eq!(
            names,
            [
                ("a_b", "1"),
                ("a_b_2", "2"),
                ("a_b_3", "3"),
                ("a_b_2_2", "4")
            ]
        );
    }
}
