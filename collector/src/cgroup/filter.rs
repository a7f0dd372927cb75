//! Which cgroups are exported. Those left out still count in their parents.

use std::str::FromStr;

use regex::Regex;

use super::identity::{Names, PlaceKind};

/// `--cgroup.include` and `--cgroup.exclude`, matched anywhere in the path, and the rules for
/// containers.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only matching paths are exported.
    pub include: Option<Regex>,
    /// Matching paths are not exported.
    pub exclude: Option<Regex>,
    /// By the names of containers, pods and units.
    pub containers: ContainerRules,
}

impl Filter {
    /// Whether a cgroup with this path is exported.
    pub fn admits(&self, path: &str) -> bool {
        self.include
            .as_ref()
            .is_none_or(|regex| regex.is_match(path))
            && !self
                .exclude
                .as_ref()
                .is_some_and(|regex| regex.is_match(path))
    }
}

/// `--container.include` and `--container.exclude`.
#[derive(Clone, Debug, Default)]
pub struct ContainerRules {
    /// For each field that has rules here, one of them must match.
    pub include: Vec<ContainerRule>,
    /// Rules that exclude: a container that matches one is not exported.
    pub exclude: Vec<ContainerRule>,
}

/// Field of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleField {
    /// Name of the container or the machine.
    Name,
    /// Name of the systemd unit.
    Unit,
    /// The container's image.
    Image,
    /// The pod's namespace in Kubernetes.
    Namespace,
}

/// One rule: a field, and an expression that matches anywhere in it.
#[derive(Clone, Debug)]
pub struct ContainerRule {
    /// The field that is compared.
    pub field: RuleField,
    /// The expression that the field has to match.
    pub regex: Regex,
}

/// Why a rule is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ContainerRuleError {
    /// It is not of the form `FIELD=REGEX`.
    #[error("name=REGEX, unit=REGEX, image=REGEX or namespace=REGEX")]
    Field,
    /// The expression is not a valid regular expression.
    #[error(transparent)]
    Regex(#[from] regex::Error),
}

impl FromStr for ContainerRule {
    type Err = ContainerRuleError;

    fn from_str(text: &str) -> Result<Self, ContainerRuleError> {
        let (field, regex) = text.split_once('=').ok_or(ContainerRuleError::Field)?;
        let field = match field {
            "name" => RuleField::Name,
            "unit" => RuleField::Unit,
            "image" => RuleField::Image,
            "namespace" => RuleField::Namespace,
            _ => return Err(ContainerRuleError::Field),
        };
        let regex = Regex::new(regex)?;
        Ok(Self { field, regex })
    }
}

impl RuleField {
    fn of<'a>(self, names: &Names<'a>) -> &'a str {
        match self {
            Self::Name => names.name,
            Self::Unit => names.unit,
            Self::Image => names.image,
            Self::Namespace => names.namespace,
        }
    }

    /// Whether cgroups of this kind have the field.
    fn concerns(self, kind: PlaceKind) -> bool {
        match kind {
            PlaceKind::Container => self != Self::Unit,
            PlaceKind::Machine => self == Self::Name,
            PlaceKind::Unit => self == Self::Unit,
            PlaceKind::Pod => self == Self::Namespace,
            PlaceKind::Root | PlaceKind::Group | PlaceKind::Nested | PlaceKind::Other => false,
        }
    }
}

impl ContainerRules {
    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether a cgroup with these names is exported. An unknown name is empty and matches no rule;
    /// the rules are applied again when it becomes known. Slices have none of the fields.
    pub fn admit(&self, kind: PlaceKind, names: &Names<'_>) -> bool {
        let matches = |rule: &ContainerRule| {
            let text = rule.field.of(names);
            rule.field.concerns(kind) && !text.is_empty() && rule.regex.is_match(text)
        };
        let met = |field: RuleField| {
            let mut rules = self
                .include
                .iter()
                .filter(|rule| rule.field == field)
                .peekable();
            rules.peek().is_none() || !field.concerns(kind) || rules.any(matches)
        };
        let fields = [
            RuleField::Name,
            RuleField::Unit,
            RuleField::Image,
            RuleField::Namespace,
        ];
        fields.into_iter().all(met) && !self.exclude.iter().any(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclude_wins_over_include() {
        let filter = Filter {
            include: Some(Regex::new("^/docker/").unwrap()),
            exclude: Some(Regex::new("tmp$").unwrap()),
            ..Filter::default()
        };
        assert!(filter.admits("/docker/a"));
        assert!(!filter.admits("/docker/tmp"));
        assert!(!filter.admits("/system.slice"));
        assert!(Filter::default().admits("/"));
    }

    fn rules(include: &[&str], exclude: &[&str]) -> ContainerRules {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        ContainerRules {
            include: parse(include),
            exclude: parse(exclude),
        }
    }

    const WEB: Names<'_> = Names {
        name: "web",
        unit: "",
        image: "nginx:1",
        namespace: "shop",
        pod: "web-0",
        container: "web",
        is_sandbox: false,
    };

    #[test]
    fn rules_of_one_field_are_alternatives_and_fields_must_all_match() {
        let admit = |include: &[&str], exclude: &[&str]| {
            rules(include, exclude).admit(PlaceKind::Container, &WEB)
        };
        assert!(admit(&[], &[]));
        assert!(admit(&["name=^db$", "name=^web$"], &[]));
        assert!(!admit(&["name=^db$"], &[]));
        assert!(admit(&["name=web", "image=nginx"], &[]));
        assert!(!admit(&["name=web", "image=redis"], &[]));
        assert!(!admit(&["name=web"], &["namespace=^shop$"]));
        assert!(admit(&[], &["namespace=^sho$"]));
    }

    #[test]
    fn what_is_not_known_matches_nothing() {
        let unknown = Names::default();
        assert!(!rules(&["name=.*"], &[]).admit(PlaceKind::Container, &unknown));
        assert!(rules(&[], &["name=.*"]).admit(PlaceKind::Container, &unknown));
    }

    #[test]
    fn a_rule_concerns_only_what_can_have_its_field() {
        let none = Names::default();
        let include = rules(&["name=x", "unit=x", "image=x", "namespace=x"], &[]);
        for kind in [PlaceKind::Root, PlaceKind::Group, PlaceKind::Other] {
            assert!(include.admit(kind, &none), "{kind:?}");
        }
        for kind in [
            PlaceKind::Container,
            PlaceKind::Unit,
            PlaceKind::Machine,
            PlaceKind::Pod,
        ] {
            assert!(!include.admit(kind, &none), "{kind:?}");
        }
        let image = rules(&["image=x"], &[]);
        assert!(image.admit(PlaceKind::Unit, &none) && image.admit(PlaceKind::Pod, &none));
        let name = rules(&["name=x"], &[]);
        assert!(name.admit(PlaceKind::Unit, &none));
        let unit = rules(&["unit=^ssh"], &[]);
        let ssh = Names {
            unit: "ssh.service",
            ..none
        };
        assert!(unit.admit(PlaceKind::Unit, &ssh) && unit.admit(PlaceKind::Container, &WEB));
        assert!(!rules(&[], &["unit=^ssh"]).admit(PlaceKind::Unit, &ssh));
        // A pod is its containers' namespace, and has no name.
        assert!(rules(&["name=x", "namespace=shop"], &[]).admit(PlaceKind::Pod, &WEB));
    }

    #[test]
    fn a_rule_is_a_field_and_an_expression() {
        for text in ["web", "pod=web", "=web", "Name=web"] {
            let error = text.parse::<ContainerRule>().unwrap_err();
            assert!(matches!(error, ContainerRuleError::Field), "{text}");
        }
        let error = "name=(".parse::<ContainerRule>().unwrap_err();
        assert!(matches!(error, ContainerRuleError::Regex(_)));
        assert_eq!(
            "image=a=b".parse::<ContainerRule>().unwrap().regex.as_str(),
            "a=b"
        );
    }
}
