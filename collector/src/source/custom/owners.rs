//! Whose a text file's samples are.

use std::collections::{BTreeMap, HashMap};

use super::targets::container_of;
use crate::{
    cgroup::{Node, NodeId, Tree, printable},
    custom::Owner,
};

/// Where text files' owners are found.
pub struct Owners {
    paths: HashMap<String, NodeId>,
    /// In the order of their ids.
    ids: BTreeMap<String, NodeId>,
    names: HashMap<String, NodeId>,
}

impl Owners {
    /// Of the cgroups that there are now.
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

    /// The owner's node.
    pub fn find(&self, owner: &Owner) -> Option<NodeId> {
        match owner {
            Owner::Path(path) => self.paths.get(path).copied(),
            Owner::Container(name) => self.names.get(name).copied(),
            Owner::ContainerId(id) => {
                // The short form has 12 digits; less may well be of several.
                let mut found = self.ids.range(id.clone()..);
                let (first, node) = found.next().filter(|(found, _)| found.starts_with(id))?;
                (first == id || id.len() >= 12).then_some(*node)
            }
        }
    }
}
