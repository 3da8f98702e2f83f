//! What is stored under each page number.
//!
//! One word and one bit a page. The bit says how to read the word:
//!
//! | bit | word | meaning |
//! | --- | --- | --- |
//! | 0 | 0 | nothing is stored |
//! | 0 | other | a [`Place`] in the store |
//! | 1 | any | the page repeats this `u64` |
//!
//! Words are relaxed: calls for one page are ordered by the core. The bit shares its word with
//! those of other pages, which may change at the same time, so it is changed atomically.

use crate::lazy::LazyArray;
use crate::slab::Place;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use uhmm_core::addr::DevicePage;

/// What is stored under a page number.
#[derive(Clone, Copy)]
pub enum Stored {
    Nothing,
    Same(u64),
    At(Place),
}

/// 64 pages.
struct Group {
    same: AtomicU64,
    words: [AtomicU64; 64],
}

impl Default for Group {
    fn default() -> Self {
        Self {
            same: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; 64],
        }
    }
}

/// The table of all page numbers.
pub struct PageTable {
    groups: LazyArray<Group, 8>,
}

impl PageTable {
    /// A table of `len` page numbers with nothing stored under any.
    pub fn new(len: u32) -> Self {
        Self {
            groups: LazyArray::new((len as usize).div_ceil(64)),
        }
    }

    /// What is stored as `page`.
    pub fn get(&self, page: DevicePage) -> Stored {
        let (group, index) = split(page);
        let Some(group) = self.groups.get(group) else {
            return Stored::Nothing;
        };
        let word = group.words[index].load(Relaxed);
        if group.same.load(Relaxed) & (1 << index) != 0 {
            Stored::Same(word)
        } else {
            Place::from_word(word).map_or(Stored::Nothing, Stored::At)
        }
    }

    /// Notes what is stored as `page`, which had nothing.
    pub fn set(&self, page: DevicePage, stored: Stored) {
        let (group, index) = split(page);
        let group = self.groups.get_or_make(group);
        let word = match stored {
            Stored::Nothing => 0,
            Stored::At(place) => place.to_word(),
            Stored::Same(value) => {
                group.same.fetch_or(1 << index, Relaxed);
                value
            }
        };
        group.words[index].store(word, Relaxed);
    }

    /// What was stored as `page`; nothing is afterwards.
    pub fn take(&self, page: DevicePage) -> Stored {
        let stored = self.get(page);
        let (group, index) = split(page);
        if let Some(group) = self.groups.get(group) {
            if matches!(stored, Stored::Same(_)) {
                group.same.fetch_and(!(1 << index), Relaxed);
            }
            group.words[index].store(0, Relaxed);
        }
        stored
    }
}

fn split(page: DevicePage) -> (usize, usize) {
    (page.0 as usize / 64, page.0 as usize % 64)
}
