//! Which of a container's labels become labels of its series (`--container.label`).
//!
//! Invariant: the number of label names is bounded by what the operator allows, and no series has
//! one name twice.

use std::collections::{BTreeMap, BTreeSet};

/// Prefix of the names, as cAdvisor has it.
const PREFIX: &str = "container_label_";

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
    /// become `_`. If two names become the same, the second in byte order gets `_2`, and so on.
    pub fn select<'a>(&self, labels: &'a BTreeMap<String, String>) -> Vec<(String, &'a str)> {
        let mut selected: Vec<(String, &str)> = Vec::new();
        for (label, value) in labels {
            if value.is_empty() || !self.allows(label) {
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
