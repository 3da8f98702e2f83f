//! A large array whose parts come into being when they are first written.

use std::sync::OnceLock;

/// Leaves to a node.
const NODE: usize = 512;

type Leaf<T> = Box<[T]>;
type Node<T> = Box<[OnceLock<Leaf<T>>]>;

/// An array of `T::default()` in three levels, `LEAF` elements to a leaf. Looking up never waits
/// and never allocates; parts stay where they are until the array ends.
pub struct LazyArray<T, const LEAF: usize> {
    root: Box<[OnceLock<Node<T>>]>,
}

impl<T: Default, const LEAF: usize> LazyArray<T, LEAF> {
    /// An array of `len` elements, none of them there yet.
    pub fn new(len: usize) -> Self {
        Self {
            root: empty(len.div_ceil(LEAF * NODE)),
        }
    }

    /// The element `index`, if its part is there.
    pub fn get(&self, index: usize) -> Option<&T> {
        let node = self.root[index / LEAF / NODE].get()?;
        Some(&node[index / LEAF % NODE].get()?[index % LEAF])
    }

    /// The element `index`; its part comes into being if it is not there.
    pub fn get_or_make(&self, index: usize) -> &T {
        let node = self.root[index / LEAF / NODE].get_or_init(|| empty(NODE));
        let leaf =
            node[index / LEAF % NODE].get_or_init(|| (0..LEAF).map(|_| T::default()).collect());
        &leaf[index % LEAF]
    }
}

fn empty<T>(len: usize) -> Box<[OnceLock<T>]> {
    (0..len).map(|_| OnceLock::new()).collect()
}
