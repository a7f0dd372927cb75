//! Finds the owners of a text file's samples.

use std::collections::{BTreeMap, HashMap};

use super::{series::Owner, targets::container_of};
use crate::cgroup::{Node, NodeId, Tree, printable};

/// Indexes by which owners are found.
pub struct Owners {
    paths: HashMap<String, NodeId>,
    /// Nodes by container id, in order, so that the short form of an id can be found.
    ids: BTreeMap<String, NodeId>,
    names: HashMap<String, NodeId>,
}

impl Owners {
    /// Indexes the cgroups that exist now.
    pub fn new(tree: &Tree) -> Self {
        let mut owners = Self {
            paths: HashMap::new(),
            ids: BTreeMap::new(),
            names: HashMap::new(),
        };
        let alive = |node: &&Node| node.exported && node.died.is_none();
        for (number, node) in tree.iter() {
            let Some(node) = Some(node).filter(alive) else {
                continue;
            };
            owners.paths.insert(printable(&node.path), number);
            if let Some(container) = container_of(node) {
                owners.ids.insert(container.id.clone(), number);
                owners.names.insert(container.name.clone(), number);
            }
        }
        owners
    }

    /// Returns the owner's node.
    pub fn find(&self, owner: &Owner) -> Option<NodeId> {
        match owner {
            Owner::Path(path) => self.paths.get(path).copied(),
            Owner::Container(name) => self.names.get(name).copied(),
            Owner::ContainerId(id) => {
                // The short form of an id has 12 digits; a shorter prefix may match several ids.
                let mut found = self.ids.range(id.clone()..);
                let (first, node) = found.next().filter(|(found, _)| found.starts_with(id))?;
                (first == id || id.len() >= 12).then_some(*node)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::custom::targets::tests::{ID, container, tree};

    #[test]
    fn paths_ids_and_names() {
        let mut tree = tree(&[&format!("/docker/{ID}")]);
        let node = tree.by_path(format!("/docker/{ID}").as_bytes()).unwrap();
        tree.set_container(node, &container(&[], None));
        let owners = Owners::new(&tree);
        let id = |text: &str| owners.find(&Owner::ContainerId(text.to_owned()));
        assert_eq!(id(ID), Some(node));
        assert_eq!(id(&ID[..12]), Some(node));
        assert_eq!(id(&ID[..11]), None);
        assert_eq!(id(&ID.replace('a', "b")), None);
        assert_eq!(
            owners.find(&Owner::Container("shop".to_owned())),
            Some(node)
        );
        assert_eq!(owners.find(&Owner::Container("sho".to_owned())), None);
        assert!(owners.find(&Owner::Path("/docker".to_owned())).is_some());
        assert_eq!(owners.find(&Owner::Path("/podman".to_owned())), None);
    }
}
