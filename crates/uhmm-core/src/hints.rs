//! What programs want of their pages, where the fault path and reclaim can see it.
//!
//! [`Hints`] are a value of 16 bits for each page. They only advise: no answer of this table, however old
//! or wrong, can lose a byte. The regions ([`crate::regions`]) have the same values by range; they say what
//! there is to clear when a range is freed.
//!
//! # The table
//!
//! Pages come in chunks of 512. A chunk whose pages all have the same hints has them in its own word; only
//! a chunk with different ones uses the *lanes*, 16 bits for each page. So hints cost memory where they
//! were given, and 8 bytes for 512 pages where a whole region has them.
//!
//! | bits of a chunk's word | meaning |
//! | --- | --- |
//! | 0..16 | the hints of all its pages, unless *by page* |
//! | 16 | *splitting*: somebody fills the lanes; the hints in the word hold until then |
//! | 17 | *by page*: the lanes hold |
//!
//! | from | to | who |
//! | --- | --- | --- |
//! | all pages | splitting | who sets a part of the chunk, by compare-and-swap: it alone writes all the lanes |
//! | splitting | by page | the same, once all lanes have what the word says |
//! | all pages, by page | all pages | who sets the whole chunk, by compare-and-swap |
//!
//! Readers take no lock and never wait: one relaxed load where no hint was ever given in the space, one
//! more for the chunk, one more for a lane. A reader that meets a change sees the hints of before or after.
//!
//! Writers are application threads inside the gate. They set pages that share a word of lanes by
//! compare-and-swap, so neighbours never lose theirs. Two that set the same page at once leave what one of
//! them said. A writer waits only for another that is splitting the same chunk.

use crate::addr::{PageNo, PageRange};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// What a program wants of a page. The default is to want nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// A device keeps its copy of what is read. Then to push an unmodified page out again copies nothing,
    /// and the first write to it costs a fault.
    pub read_mostly: bool,
    /// Where the page should be.
    pub preferred: Option<Preferred>,
    /// Devices that use the page, a bit for each: their page tables should have it wherever it is.
    pub accessed_by: u8,
}

/// Where a page should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preferred {
    /// In RAM: reclaim takes other pages first.
    Ram,
    /// On the device with this number: when the page leaves RAM it goes there if it can.
    Device(u8),
}

impl Hints {
    /// None at all.
    pub const NONE: Self = Self {
        read_mostly: false,
        preferred: None,
        accessed_by: 0,
    };

    /// Mostly read, and nothing else.
    pub const READ_MOSTLY: Self = Self {
        read_mostly: true,
        ..Self::NONE
    };

    /// | bits | meaning |
    /// | --- | --- |
    /// | 0 | read mostly |
    /// | 1..5 | preferred: 0 nothing, 1..=8 the device with the number one less, 9 RAM |
    /// | 5..13 | accessed by |
    const fn to_bits(self) -> u64 {
        let preferred = match self.preferred {
            None => 0,
            Some(Preferred::Device(device)) => device as u64 + 1,
            Some(Preferred::Ram) => RAM,
        };
        self.read_mostly as u64 | preferred << 1 | (self.accessed_by as u64) << 5
    }

    const fn from_bits(bits: u64) -> Self {
        Self {
            read_mostly: bits & 1 != 0,
            preferred: match bits >> 1 & 15 {
                0 => None,
                RAM => Some(Preferred::Ram),
                device => Some(Preferred::Device(device as u8 - 1)),
            },
            accessed_by: (bits >> 5) as u8,
        }
    }

    /// The device that is preferred.
    pub(crate) fn device(self) -> Option<u8> {
        match self.preferred {
            Some(Preferred::Device(device)) => Some(device),
            _ => None,
        }
    }
}

const RAM: u64 = crate::stats::MAX_DEVICES as u64 + 1;

/// Pages of a chunk.
const CHUNK: usize = 512;
const LANE_BITS: usize = 16;
/// Lanes in a word.
const LANES: usize = 64 / LANE_BITS;
const LANE: u64 = (1 << LANE_BITS) - 1;

const SPLITTING: u64 = 1 << 16;
const BY_PAGE: u64 = 1 << 17;

/// See the module's head.
pub(crate) struct HintTable<T> {
    range: PageRange,
    chunks: T,
    lanes: T,
    /// Whether any hint was ever given: most spaces need not look.
    given: AtomicBool,
}

impl<T: Deref<Target = [AtomicU64]>> HintTable<T> {
    pub(crate) fn new(range: PageRange, table: impl Fn(usize) -> Option<T>) -> Option<Self> {
        let chunks = range.len.div_ceil(CHUNK);
        Some(Self {
            range,
            chunks: table(chunks)?,
            lanes: table(chunks * (CHUNK / LANES))?,
            given: AtomicBool::new(false),
        })
    }

    fn index(&self, page: PageNo) -> usize {
        (page.0 - self.range.start.0) as usize
    }

    /// Whether any hint was ever given.
    pub(crate) fn were_given(&self) -> bool {
        self.given.load(Relaxed)
    }

    /// The hints of `page`.
    pub(crate) fn of(&self, page: PageNo) -> Hints {
        self.run(page).0
    }

    /// The hints of `page`, and the end of a run of pages from there on that have the same.
    pub(crate) fn run(&self, page: PageNo) -> (Hints, PageNo) {
        if !self.were_given() {
            return (Hints::NONE, self.range.end());
        }
        let at = self.index(page);
        let word = self.chunks[at / CHUNK].load(Acquire);
        if word & BY_PAGE == 0 {
            return (Hints::from_bits(word), page.plus(CHUNK - at % CHUNK));
        }
        let lane = self.lanes[at / LANES].load(Relaxed) >> (at % LANES * LANE_BITS);
        (Hints::from_bits(lane), page.plus(1))
    }

    /// The hints of `pages`, in runs as long as they are the same.
    pub(crate) fn runs(&self, pages: PageRange) -> impl Iterator<Item = (PageRange, Hints)> {
        let (mut at, end) = (pages.start, pages.end());
        let next = move || {
            (at < end).then(|| {
                let (hints, mut stop) = self.run(at);
                while stop < end
                    && let (same, further) = self.run(stop)
                    && same == hints
                {
                    stop = further;
                }
                let start = std::mem::replace(&mut at, stop.min(end));
                (PageRange::new(start, (at.0 - start.0) as usize), hints)
            })
        };
        std::iter::from_fn(next)
    }

    /// Gives `pages` these hints, in place of those that they have.
    pub(crate) fn set(&self, pages: PageRange, hints: Hints) {
        if hints == Hints::NONE && !self.were_given() {
            return;
        }
        self.given.store(true, Relaxed);
        let (mut at, end) = (self.index(pages.start), self.index(pages.end()));
        while at < end {
            let len = (CHUNK - at % CHUNK).min(end - at);
            if len == CHUNK {
                self.set_chunk(at / CHUNK, hints.to_bits());
            } else if self.split(at / CHUNK, hints.to_bits()) {
                self.set_lanes(at, at + len, hints.to_bits());
            }
            at += len;
        }
    }

    fn set_chunk(&self, chunk: usize, bits: u64) {
        let settled = |word: u64| (word & SPLITTING == 0).then_some(bits);
        while self.chunks[chunk]
            .fetch_update(AcqRel, Acquire, settled)
            .is_err()
        {
            std::thread::yield_now();
        }
    }

    /// Makes the lanes of a chunk hold. `false`: there is no need, since all its pages have `bits`.
    fn split(&self, chunk: usize, bits: u64) -> bool {
        let word = &self.chunks[chunk];
        loop {
            let seen = word.load(Acquire);
            if seen & BY_PAGE != 0 {
                return true;
            }
            if seen == bits {
                return false;
            }
            if seen & SPLITTING == 0
                && word
                    .compare_exchange(seen, seen | SPLITTING, AcqRel, Acquire)
                    .is_ok()
            {
                let all = seen * (u64::MAX / LANE);
                let lanes = chunk * (CHUNK / LANES)..(chunk + 1) * (CHUNK / LANES);
                self.lanes[lanes]
                    .iter()
                    .for_each(|four| four.store(all, Relaxed));
                word.store(BY_PAGE, Release);
                return true;
            }
            std::thread::yield_now();
        }
    }

    fn set_lanes(&self, mut at: usize, end: usize, bits: u64) {
        while at < end {
            let len = (LANES - at % LANES).min(end - at);
            let mask = (u64::MAX >> (64 - len * LANE_BITS)) << (at % LANES * LANE_BITS);
            let all = bits * (u64::MAX / LANE);
            let set = |four: u64| Some(four & !mask | all & mask);
            let _ = self.lanes[at / LANES].fetch_update(Relaxed, Relaxed, set);
            at += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: Hints = Hints {
        read_mostly: true,
        preferred: Some(Preferred::Device(7)),
        accessed_by: 0x81,
    };

    fn table(pages: usize) -> HintTable<Vec<AtomicU64>> {
        let make = |n: usize| Some((0..n).map(|_| AtomicU64::new(0)).collect());
        HintTable::new(PageRange::new(PageNo(1000), pages), make).unwrap()
    }

    fn pages(start: u64, len: usize) -> PageRange {
        PageRange::new(PageNo(1000 + start), len)
    }

    #[test]
    fn every_hint_survives_its_bits() {
        let places = (0..8).map(|device| Some(Preferred::Device(device)));
        for preferred in places.chain([None, Some(Preferred::Ram)]) {
            for read_mostly in [false, true] {
                for accessed_by in [0, 1, 0x80, 0xff] {
                    let hints = Hints {
                        read_mostly,
                        preferred,
                        accessed_by,
                    };
                    assert_eq!(Hints::from_bits(hints.to_bits()), hints);
                    assert!(hints.to_bits() <= LANE);
                }
            }
        }
        assert_eq!(Hints::NONE.to_bits(), 0);
    }

    #[test]
    fn hints_are_those_of_a_naive_table() {
        const PAGES: usize = 3 * CHUNK + 100;
        let all = pages(0, PAGES);
        let table = table(PAGES);
        let mut naive = [Hints::NONE; PAGES];
        let mut seed = 7_u64;
        let mut below = |most: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % most
        };
        for _ in 0..3000 {
            let start = below(PAGES);
            let most = [5, 600, PAGES][below(3)];
            let some = pages(start as u64, 1 + below((PAGES - start).min(most)));
            // Whole chunks, now and then.
            let some = if below(4) == 0 {
                pages(start as u64 / 512 * 512 % 1536, 512)
            } else {
                some
            };
            let hints = [
                Hints::NONE,
                MANY,
                Hints {
                    preferred: Some(Preferred::Ram),
                    ..Hints::NONE
                },
            ];
            let hints = hints[below(3)];
            table.set(some, hints);
            some.iter()
                .for_each(|page| naive[(page.0 - 1000) as usize] = hints);
            let start = below(PAGES);
            let some = pages(start as u64, 1 + below(PAGES - start));
            for page in all.iter() {
                let (found, end) = table.run(page);
                assert_eq!(found, naive[(page.0 - 1000) as usize], "{page:?}");
                assert!(end > page);
                for same in page.0..end.0.min(all.end().0) {
                    assert_eq!(naive[(same - 1000) as usize], found);
                }
            }
            let mut at = some.start;
            let mut before = None;
            for (run, hints) in table.runs(some) {
                assert_eq!(run.start, at);
                assert_ne!(
                    before,
                    Some(hints),
                    "a run that does not end where it could"
                );
                assert!(
                    run.iter()
                        .all(|page| naive[(page.0 - 1000) as usize] == hints)
                );
                (at, before) = (run.end(), Some(hints));
            }
            assert_eq!(at, some.end());
        }
    }

    #[test]
    fn a_hint_costs_memory_only_where_it_was_given() {
        let table = table(64 * CHUNK);
        let used =
            |words: &[AtomicU64]| words.iter().filter(|word| word.load(Relaxed) != 0).count();
        // To free what no hint was given for costs nothing, and many chunks a word each.
        table.set(pages(0, 64 * CHUNK), Hints::NONE);
        assert!(!table.were_given());
        table.set(pages(CHUNK as u64, 10 * CHUNK), MANY);
        assert_eq!((used(&table.chunks), used(&table.lanes)), (10, 0));
        table.set(pages(40 * CHUNK as u64 + 3, 100), Hints::NONE);
        assert_eq!((used(&table.chunks), used(&table.lanes)), (10, 0));
        table.set(pages(CHUNK as u64 + 7, 100), MANY);
        assert_eq!((used(&table.chunks), used(&table.lanes)), (10, 0));
        // A part of a chunk: its lanes, and no other's.
        table.set(pages(CHUNK as u64 + 7, 100), Hints::NONE);
        assert!(used(&table.lanes) <= CHUNK / LANES);
        table.set(pages(0, 64 * CHUNK), Hints::NONE);
        assert_eq!(used(&table.chunks), 0);
    }

    /// Each thread has pages of its own in the same words, and sets whole chunks beside.
    #[test]
    fn neighbours_do_not_lose_each_others() {
        let table = table(2 * CHUNK);
        let hint = |thread: u8| Hints {
            accessed_by: thread + 1,
            ..MANY
        };
        std::thread::scope(|scope| {
            for thread in 0..LANES as u8 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..20_000_usize {
                        let page = pages(u64::from(thread) + (round * LANES % CHUNK) as u64, 1);
                        table.set(page, hint(thread));
                        assert_eq!(table.of(page.start), hint(thread), "round {round}");
                        table.set(page, Hints::NONE);
                        assert_eq!(table.of(page.start), Hints::NONE, "round {round}");
                        if thread == 0 {
                            table.set(pages(CHUNK as u64, CHUNK), hint(thread));
                        } else if thread == 1 {
                            table.set(pages(CHUNK as u64 + 3, 5), hint(thread));
                        }
                    }
                });
            }
        });
        assert!(
            pages(0, CHUNK)
                .iter()
                .all(|page| table.of(page) == Hints::NONE)
        );
    }

    /// Many threads split chunks at once: what each of them sets is there afterwards.
    #[test]
    fn a_chunk_is_split_once() {
        for round in 0..300 {
            let table = table(CHUNK);
            table.set(pages(0, CHUNK), MANY);
            let start = std::sync::Barrier::new(3);
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let (table, start) = (&table, &start);
                    scope.spawn(move || {
                        start.wait();
                        table.set(pages(thread * 2, 1), Hints::NONE);
                    });
                }
            });
            for page in pages(0, CHUNK).iter() {
                let cleared = [1000, 1002, 1004].contains(&page.0);
                let hints = if cleared { Hints::NONE } else { MANY };
                assert_eq!(table.of(page), hints, "{page:?} in round {round}");
            }
        }
    }
}
