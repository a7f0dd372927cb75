//! Which network namespaces are read where there are more than may be held open.
//!
//! Invariant: whoever makes many takes none from others. A cgroup's share is divided among itself and
//! its children, and what one does not use goes to the others. Checked by the tests below and by
//! tests/live/namespaces.rs.

use crate::cgroup::{NodeId, Tree};

/// Descriptors that stay free for what a scrape opens for a moment, for runtimes and for endpoints of
/// applications.
pub const RESERVE: u64 = 32;
/// Cgroups below this depth share their ancestor's part as if they were one.
const DEPTH: usize = 64;

/// Number of namespaces that a process may hold open whose limit of open files is `limit`, that needs
/// `own` of them for everything else, and that must not hold more than `most`. The host's is one.
pub fn room(limit: u64, own: u64, most: usize) -> usize {
    let free = limit.saturating_sub(own.saturating_add(RESERVE));
    usize::try_from(free).unwrap_or(usize::MAX).min(most).max(1)
}

/// Orders namespaces, given with their owners, so that each prefix is a fair choice.
pub fn in_turn(namespaces: &[(u64, NodeId)], tree: &Tree) -> Vec<u64> {
    let mut paths: Vec<(Vec<NodeId>, u64)> = namespaces
        .iter()
        .map(|&(cookie, owner)| (path(owner, tree), cookie))
        .collect();
    // Of one owner, the oldest come first: cookies are given out in ascending order.
    paths.sort_unstable();
    divide(&paths, 0)
}

/// The nodes from the root to a node.
fn path(node: NodeId, tree: &Tree) -> Vec<NodeId> {
    let above = |&node: &NodeId| tree.node(node)?.parent;
    let mut path: Vec<NodeId> = std::iter::successors(Some(node), above).collect();
    path.reverse();
    path.truncate(DEPTH);
    path
}

/// Takes one of each group in turn. Groups are the children at this depth, and what the cgroup itself
/// owns. The paths are sorted, so that those of a group are neighbours.
fn divide(paths: &[(Vec<NodeId>, u64)], depth: usize) -> Vec<u64> {
    let groups = paths.chunk_by(|(one, _), (other, _)| one.get(depth) == other.get(depth));
    let mut orders: Vec<std::vec::IntoIter<u64>> = groups
        .map(|group| match group.first() {
            Some((path, _)) if path.len() > depth => divide(group, depth + 1),
            _ => group.iter().map(|&(_, cookie)| cookie).collect(),
        })
        .map(Vec::into_iter)
        .collect();
    let mut order = Vec::with_capacity(paths.len());
    while order.len() < paths.len() {
        order.extend(orders.iter_mut().filter_map(Iterator::next));
    }
    order
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cgroup::{Filter, found};

    #[test]
    fn what_is_left_after_everything_else() {
        assert_eq!(room(65_536, 600, 4096), 4096);
        assert_eq!(room(1024, 400, 4096), 1024 - 400 - 32);
        // The host's interfaces are always read.
        assert_eq!(room(160, 150, 4096), 1);
        assert_eq!(room(0, u64::MAX, 4096), 1);
        assert_eq!(room(u64::MAX, 600, 4096), 4096);
    }

    #[test]
    fn a_tenant_with_many_takes_none_from_others() {
        // /tenant has 1,000 in one cgroup and 100 in cgroups below it; /pods has five with one each.
        let mut cgroups = vec![found(1, 0, ""), found(2, 1, "tenant"), found(3, 1, "pods")];
        let names: Vec<String> = (0..105).map(|n| format!("c{n}")).collect();
        for (n, name) in names.iter().enumerate() {
            let parent = if n < 100 { 2 } else { 3 };
            cgroups.push(found(10 + n as u64, parent, name));
        }
        let tree = Tree::new(&cgroups, Filter::default());
        let node = |id| tree.living(id).unwrap();
        let mut namespaces: Vec<(u64, NodeId)> = (0..1000).map(|n| (n, node(2))).collect();
        namespaces.extend((0..100).map(|n| (2000 + n, node(10 + n))));
        namespaces.extend((100..105).map(|n| (9000 + n, node(10 + n))));
        namespaces.reverse();
        let order = in_turn(&namespaces, &tree);
        assert_eq!(order.len(), 1105);
        let pods = |first: usize| order[..first].iter().filter(|&&n| n >= 9000).count();
        assert_eq!((pods(10), pods(1)), (5, 0));
        // The tenant's own share is divided in the same way.
        let (own, below): (Vec<u64>, Vec<u64>) = order[..205]
            .iter()
            .filter(|&&n| n < 9000)
            .partition(|&&n| n < 1000);
        assert_eq!((own.len(), below.len()), (100, 100));
        // The oldest stay.
        assert_eq!(own, (0..100).collect::<Vec<u64>>());
        let mut all = order.clone();
        all.sort_unstable();
        let mut expected: Vec<u64> = namespaces.iter().map(|&(cookie, _)| cookie).collect();
        expected.sort_unstable();
        assert_eq!(all, expected);
    }
}
