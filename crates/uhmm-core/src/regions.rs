//! Regions: which parts of the space are handed out, with what attributes, and what is free; and, beside
//! that, memory that lies elsewhere and is adopted.
//!
//! Plain bookkeeping, for application threads only: the fault path never looks here, since entries
//! say all that it needs. Neighbouring regions with the same attributes are one.

use crate::addr::{PageNo, PageRange};
use crate::hints::Hints;
use std::collections::{BTreeMap, BTreeSet};

/// What holds for all pages of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Protection bits as the platform has them.
    pub protection: u32,
    /// A child of a fork finds the region empty.
    pub wipe_on_fork: bool,
    /// A child of a fork does not have the region.
    pub not_in_child: bool,
    /// The pages are not ours to manage: something else was mapped over them.
    pub foreign: bool,
    /// What the program wants of the pages.
    pub hints: Hints,
    /// They are not the space's: the program has mapped them, and they are adopted.
    pub adopted: Option<Adoption>,
}

/// What more holds for pages that are adopted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Somebody has a handle on them, and gives them back with that.
    pub guarded: bool,
    /// The program has asked the kernel for huge pages there.
    pub huge: bool,
}

/// The regions of a space. See the module's head.
#[derive(Debug)]
pub struct Regions {
    range: PageRange,
    /// First page of each region; disjoint.
    used: BTreeMap<u64, (usize, Attributes)>,
    /// First page and length of each free range; disjoint, maximal.
    free: BTreeMap<u64, usize>,
    /// The same, by length.
    by_len: BTreeSet<(usize, u64)>,
}

impl Regions {
    /// All of `range` free.
    pub fn new(range: PageRange) -> Self {
        let mut regions = Self {
            range,
            used: BTreeMap::new(),
            free: BTreeMap::new(),
            by_len: BTreeSet::new(),
        };
        regions.add_free(range.start.0, range.len);
        regions
    }

    /// The pages that are shared out.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// Takes `len` free pages whose first page is a multiple of `align` (a power of two), from the
    /// smallest free range that has them; `None` when none has.
    pub fn take(&mut self, len: usize, align: usize, attributes: Attributes) -> Option<PageRange> {
        let align = align.max(1) as u64;
        let (start, at) = self.by_len.range((len, 0)..).find_map(|&(free, start)| {
            let at = start.next_multiple_of(align);
            ((at - start) as usize + len <= free).then_some((start, at))
        })?;
        let pages = PageRange::new(PageNo(at), len);
        self.cut_free(start, pages);
        self.insert(pages, attributes);
        Some(pages)
    }

    /// Takes exactly `pages` if all of them are free.
    pub fn take_at(&mut self, pages: PageRange, attributes: Attributes) -> bool {
        let Some((&start, &len)) = self.free.range(..=pages.start.0).next_back() else {
            return false;
        };
        if start + (len as u64) < pages.end().0 {
            return false;
        }
        self.cut_free(start, pages);
        self.insert(pages, attributes);
        true
    }

    /// Gives `pages` back; parts of it that are free already stay so.
    pub fn give(&mut self, pages: PageRange) {
        for (piece, _) in self.remove(pages) {
            let (mut start, mut len) = (piece.start.0, piece.len);
            if let Some((&before, &before_len)) = self.free.range(..start).next_back()
                && before + before_len as u64 == start
            {
                self.remove_free(before, before_len);
                start = before;
                len += before_len;
            }
            if let Some(&after_len) = self.free.get(&(start + len as u64)) {
                self.remove_free(start + len as u64, after_len);
                len += after_len;
            }
            self.add_free(start, len);
        }
    }

    /// Notes that `pages`, which are not shared out here, are adopted.
    pub fn adopt(&mut self, pages: PageRange, attributes: Attributes) {
        debug_assert!(!pages.overlaps(self.range), "{pages:?} are ours");
        debug_assert!(self.pieces(pages).next().is_none(), "{pages:?} are adopted");
        self.insert(pages, attributes);
    }

    /// Forgets `pages`, which were adopted; returns what they were.
    pub fn release(&mut self, pages: PageRange) -> Vec<(PageRange, Attributes)> {
        debug_assert!(!pages.overlaps(self.range), "{pages:?} are ours");
        self.remove(pages)
    }

    /// Changes the attributes of `pages`, all of which must be in regions (see [`Regions::covers`]).
    pub fn change(&mut self, pages: PageRange, change: impl Fn(&mut Attributes)) {
        let pieces: Vec<_> = self.pieces(pages).collect();
        for (piece, mut attributes) in pieces {
            let old = attributes;
            change(&mut attributes);
            if attributes != old {
                self.remove(piece);
                self.insert(piece, attributes);
            }
        }
    }

    /// Whether every page of `pages` is in a region.
    pub fn covers(&self, pages: PageRange) -> bool {
        self.pieces(pages)
            .map(|(piece, _)| piece.len)
            .sum::<usize>()
            == pages.len
    }

    /// The parts of regions within `pages`, in ascending order.
    pub fn pieces(&self, pages: PageRange) -> impl Iterator<Item = (PageRange, Attributes)> {
        let first = self
            .used
            .range(..=pages.start.0)
            .next_back()
            .map_or(pages.start.0, |(&s, _)| s);
        self.used.range(first..pages.end().0.max(first)).filter_map(
            move |(&start, &(len, attributes))| {
                let from = start.max(pages.start.0);
                let to = (start + len as u64).min(pages.end().0);
                (from < to).then(|| {
                    (
                        PageRange::new(PageNo(from), (to - from) as usize),
                        attributes,
                    )
                })
            },
        )
    }

    fn insert(&mut self, pages: PageRange, attributes: Attributes) {
        let (mut start, mut len) = (pages.start.0, pages.len);
        if let Some((&before, &(before_len, like))) = self.used.range(..start).next_back()
            && before + before_len as u64 == start
            && like == attributes
        {
            self.used.remove(&before);
            start = before;
            len += before_len;
        }
        if let Some(&(after_len, like)) = self.used.get(&(start + len as u64))
            && like == attributes
        {
            self.used.remove(&(start + len as u64));
            len += after_len;
        }
        self.used.insert(start, (len, attributes));
    }

    /// Takes `pages` out of the regions; returns what was in one.
    fn remove(&mut self, pages: PageRange) -> Vec<(PageRange, Attributes)> {
        let touched: Vec<_> = self.pieces(pages).collect();
        for (piece, attributes) in &touched {
            let (&start, &(len, _)) = self
                .used
                .range(..=piece.start.0)
                .next_back()
                .expect("the piece's region");
            self.used.remove(&start);
            let end = start + len as u64;
            if start < piece.start.0 {
                self.used
                    .insert(start, ((piece.start.0 - start) as usize, *attributes));
            }
            if piece.end().0 < end {
                self.used
                    .insert(piece.end().0, ((end - piece.end().0) as usize, *attributes));
            }
        }
        touched
    }

    fn cut_free(&mut self, start: u64, pages: PageRange) {
        let len = self.free[&start];
        self.remove_free(start, len);
        self.add_free(start, (pages.start.0 - start) as usize);
        self.add_free(pages.end().0, (start + len as u64 - pages.end().0) as usize);
    }

    fn add_free(&mut self, start: u64, len: usize) {
        if len > 0 {
            self.free.insert(start, len);
            self.by_len.insert((len, start));
        }
    }

    fn remove_free(&mut self, start: u64, len: usize) {
        self.free.remove(&start);
        self.by_len.remove(&(len, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Attributes = Attributes {
        protection: 3,
        wipe_on_fork: false,
        not_in_child: false,
        foreign: false,
        hints: Hints::NONE,
        adopted: None,
    };
    const READ: Attributes = Attributes {
        protection: 1,
        ..PLAIN
    };

    fn pages(start: u64, len: usize) -> PageRange {
        PageRange::new(PageNo(start), len)
    }

    #[test]
    fn what_is_given_back_merges_and_is_found_again() {
        let mut regions = Regions::new(pages(100, 1000));
        let a = regions.take(10, 1, PLAIN).unwrap();
        let b = regions.take(10, 64, PLAIN).unwrap();
        assert_eq!(b.start.0 % 64, 0);
        assert!(!regions.take_at(pages(a.start.0, 1), PLAIN));
        assert!(regions.take_at(pages(1099, 1), PLAIN));
        regions.give(a);
        regions.give(b);
        regions.give(pages(1099, 1));
        assert_eq!(regions.free.len(), 1);
        assert_eq!(regions.take(1000, 1, PLAIN), Some(pages(100, 1000)));
        assert_eq!(regions.take(1, 1, PLAIN), None);
    }

    #[test]
    fn attributes_split_and_merge_regions() {
        let mut regions = Regions::new(pages(0, 100));
        regions.take_at(pages(10, 30), PLAIN);
        regions.change(pages(20, 10), |a| *a = READ);
        let all: Vec<_> = regions.pieces(pages(0, 100)).collect();
        assert_eq!(
            all,
            [
                (pages(10, 10), PLAIN),
                (pages(20, 10), READ),
                (pages(30, 10), PLAIN)
            ]
        );
        assert!(regions.covers(pages(15, 20)));
        assert!(!regions.covers(pages(5, 10)));
        regions.change(pages(10, 30), |a| *a = PLAIN);
        assert_eq!(regions.pieces(pages(0, 100)).count(), 1);
        regions.give(pages(15, 5));
        assert!(!regions.covers(pages(10, 10)));
        assert_eq!(regions.pieces(pages(12, 10)).count(), 2);
    }

    #[test]
    fn what_is_adopted_is_found_and_never_shared_out() {
        let mut regions = Regions::new(pages(100, 10));
        regions.adopt(pages(90, 10), PLAIN);
        regions.adopt(pages(110, 10), PLAIN);
        regions.adopt(pages(500, 50), READ);
        assert!(regions.covers(pages(90, 10)) && !regions.covers(pages(90, 30)));
        assert_eq!(regions.take(11, 1, PLAIN), None);
        // Between neighbours that are like it.
        assert_eq!(regions.take(10, 1, PLAIN), Some(pages(100, 10)));
        assert!(regions.covers(pages(90, 30)));
        regions.change(pages(510, 5), |a| *a = PLAIN);
        let was = regions.release(pages(505, 20));
        assert_eq!(
            was,
            [
                (pages(505, 5), READ),
                (pages(510, 5), PLAIN),
                (pages(515, 10), READ)
            ]
        );
        assert!(!regions.covers(pages(504, 2)));
        assert_eq!(regions.release(pages(90, 10)), [(pages(90, 10), PLAIN)]);
        regions.give(pages(100, 10));
        assert_eq!(regions.take(11, 1, PLAIN), None);
        assert!(regions.covers(pages(110, 10)));
    }
}
