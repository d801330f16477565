//! The entities of a data set as a forest in flat arrays.

use std::collections::BTreeMap;

use omnify_operators::model::{EntityKey, Level};

/// Place of an entity in a [`Hierarchy`].
pub(super) type Node = usize;

/// Every entity met, parents before children.
#[derive(Default)]
pub(super) struct Hierarchy {
    nodes: BTreeMap<EntityKey, Node>,
    levels: Vec<Level>,
    parents: Vec<Option<Node>>,
}

impl Hierarchy {
    /// The place of `key`, with its ancestors entered on the way.
    pub(super) fn enter(&mut self, key: &EntityKey) -> Node {
        if let Some(node) = self.nodes.get(key) {
            return *node;
        }
        let parent = key.parent().map(|parent| self.enter(&parent));
        let node = self.levels.len();
        self.nodes.insert(key.clone(), node);
        self.levels.push(key.level());
        self.parents.push(parent);
        node
    }

    /// Number of entities.
    pub(super) fn len(&self) -> usize {
        self.levels.len()
    }

    /// The level of an entity.
    pub(super) fn level(&self, node: Node) -> Level {
        self.levels[node]
    }

    /// The entity above.
    pub(super) fn parent(&self, node: Node) -> Option<Node> {
        self.parents[node]
    }

    /// The entity and everything above it.
    pub(super) fn upwards(&self, node: Node) -> impl Iterator<Item = Node> + '_ {
        std::iter::successors(Some(node), |node| self.parents[*node])
    }

    /// All entities, by key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&EntityKey, Node)> {
        self.nodes.iter().map(|(key, node)| (key, *node))
    }
}
