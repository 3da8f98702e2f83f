//! The entry table: the state of every page of the space, 8 bytes a page.
//!
//! # The word
//!
//! | bits | meaning |
//! | --- | --- |
//! | 0..3 | tag: 0 None, 1 System, 2 Limbo, 3 Private, 4 Coherent, 5 Exclusive, 6 Migrating, 7 Poisoned |
//! | 3 | referenced: spared once by reclaim (only System) |
//! | 4 | wanted: somebody waits for the end of the migration (only Migrating) |
//! | 5 | System: duplicate, a device page still has the same bytes; Coherent: shared, another process may map the frame too, since a fork |
//! | 6..22 | how many pins keep the page where it is (System, Coherent, Poisoned, and Migrating from these); Exclusive: the mirror that has it |
//! | 22..31 | System: the stamp of when the page came to RAM (R20) |
//! | 32..64 | Limbo, Exclusive: the frame's slot; Private, Coherent, duplicate: device (3 bits), page (29 bits) |
//!
//! All that a waiter can wait for is in the low half, which is what a futex compares.
//!
//! # Protocol
//!
//! Whoever changes what a page *is* first claims the entry: a compare-and-swap from a settled word
//! to Migrating. Only the holder of the `Claim` takes it out of Migrating again, by
//! `EntryTable::settle`, or back to where it was by `EntryTable::restore`. So a page is in the hands of one
//! thread at a time, and no lock is held across copies and system calls. The exceptions are single
//! compare-and-swaps on a settled word: one sets or clears the referenced bit, two count pins up and down,
//! and one marks coherent pages as shared, around a fork.
//!
//! A pinned page may be claimed only by who leaves it where it is (`claims` sees to that),
//! and its pins outlast the claim: they stay in the word. So a pin is a promise that the page stays,
//! whatever else is done to it: a claim that would move it either came first, and the pin waits, or
//! finds it pinned, and lets it be (R11). A pin is counted down whoever has the page, so that who
//! releases one never waits: it may be in a notifier, called by who has the page.
//!
//! Who meets Migrating does not wait in a fault handler: it sets the wanted bit and goes on. The
//! claim's end sees the bit (it swaps the word) and wakes whoever faults or waits on the page.
//! Setting the bit is a compare-and-swap on the Migrating word, so no wake-up is lost: either the
//! bit is in before the swap, or the setter fails and looks again.

use crate::addr::{DeviceAddr, DevicePage, FrameNo, PageNo, PageRange};
use crate::mmu::Mmu;
use crate::stay::Stamp;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::Duration;

/// The most pages a device can have: what fits beside the device's number in an entry.
pub const MAX_DEVICE_PAGES: u32 = 1 << 29;

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nowhere yet: reads as zero.
    None,
    /// Mapped, in RAM.
    System {
        /// Brought in by a touch since reclaim last came by.
        referenced: bool,
        /// A device page with the same bytes. While there is one, writes are tracked.
        duplicate: Option<DeviceAddr>,
    },
    /// In RAM, unmapped, on its way out.
    Limbo(FrameNo),
    /// On a device, and not mapped: a touch brings it to RAM.
    Private(DeviceAddr),
    /// On a device, and mapped: the frame that the program touches is the device page.
    Coherent(DeviceAddr),
    /// In RAM, unmapped, and a device's alone until the program touches it.
    Exclusive {
        /// The slot of the page's frame.
        frame: FrameNo,
        /// The number of the mirror that has it.
        holder: u16,
    },
    /// In flight: in the hands of one thread.
    Migrating,
    /// Lost by a device, and known to be lost.
    Poisoned,
}

impl State {
    /// In RAM, and nowhere else.
    pub const fn system(referenced: bool) -> Self {
        Self::System {
            referenced,
            duplicate: None,
        }
    }

    /// Whether the page is mapped: a touch normally meets no fault.
    pub const fn is_mapped(self) -> bool {
        matches!(self, Self::System { .. } | Self::Coherent(_))
    }

    /// Whether writes to the page are tracked, because a device page has the same bytes.
    pub const fn is_tracked(self) -> bool {
        matches!(
            self,
            Self::System {
                duplicate: Some(_),
                ..
            }
        )
    }

    /// The device page that the entry holds a reference on.
    pub const fn device_page(self) -> Option<DeviceAddr> {
        match self {
            Self::Private(at) | Self::Coherent(at) => Some(at),
            Self::System { duplicate, .. } => duplicate,
            _ => None,
        }
    }

    /// Whether a page that is so may be pinned.
    const fn takes_pins(self) -> bool {
        matches!(
            self,
            Self::System { .. } | Self::Coherent(_) | Self::Poisoned
        )
    }

    /// Whether the word of a page that is so counts pins: no new ones while it is claimed.
    const fn counts_pins(self) -> bool {
        self.takes_pins() || matches!(self, Self::Migrating)
    }
}

/// One entry's word. See the module's head for the layout.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(u64);

const TAG: u64 = 7;
const REFERENCED: u64 = 1 << 3;
const WANTED: u64 = 1 << 4;
const DUPLICATE: u64 = 1 << 5;
/// The same bit, of a coherent page.
const SHARED: u64 = 1 << 5;
const COHERENT: u64 = 4;
const PIN_SHIFT: u32 = 6;
const PINS: u64 = 0xffff << PIN_SHIFT;
const STAMP_SHIFT: u32 = 22;
const MIGRATING: u64 = 6;

/// The most pins that one page can have at a time.
pub(crate) const MAX_PINS: u16 = u16::MAX;

impl Word {
    pub(crate) const fn of(state: State) -> Self {
        Self(match state {
            State::None => 0,
            State::System {
                referenced,
                duplicate,
            } => {
                let referenced = if referenced { REFERENCED } else { 0 };
                1 | referenced
                    | match duplicate {
                        Some(at) => DUPLICATE | device_page(at),
                        None => 0,
                    }
            }
            State::Limbo(frame) => 2 | (frame.0 as u64) << 32,
            State::Private(at) => 3 | device_page(at),
            State::Coherent(at) => COHERENT | device_page(at),
            State::Exclusive { frame, holder } => {
                5 | (holder as u64) << PIN_SHIFT | (frame.0 as u64) << 32
            }
            State::Migrating => MIGRATING,
            State::Poisoned => 7,
        })
    }

    pub(crate) const fn state(self) -> State {
        let payload = (self.0 >> 32) as u32;
        let at = DeviceAddr {
            device: (payload >> 29) as u8,
            page: DevicePage(payload & (MAX_DEVICE_PAGES - 1)),
        };
        match self.0 & TAG {
            0 => State::None,
            1 => State::System {
                referenced: self.0 & REFERENCED != 0,
                duplicate: if self.0 & DUPLICATE != 0 {
                    Some(at)
                } else {
                    None
                },
            },
            2 => State::Limbo(FrameNo(payload)),
            3 => State::Private(at),
            COHERENT => State::Coherent(at),
            5 => State::Exclusive {
                frame: FrameNo(payload),
                holder: self.pin_field(),
            },
            MIGRATING => State::Migrating,
            _ => State::Poisoned,
        }
    }

    const fn pin_field(self) -> u16 {
        ((self.0 & PINS) >> PIN_SHIFT) as u16
    }

    /// How many pins keep the page where it is.
    pub(crate) const fn pins(self) -> u16 {
        if self.state().counts_pins() {
            self.pin_field()
        } else {
            0
        }
    }

    /// Whether the page is coherent, and its frame may be another process's too, since a fork: writes to
    /// it are tracked ([`crate::cow`]). A shared page has no pins.
    pub(crate) const fn is_shared(self) -> bool {
        self.0 & TAG == COHERENT && self.0 & SHARED != 0
    }

    /// When the page came to RAM.
    pub(crate) const fn stamp(self) -> Stamp {
        Stamp::from_bits(self.0 >> STAMP_SHIFT)
    }

    /// This word, without a stamp so far, of a page that came to RAM at `now`.
    const fn stamped(self, now: Stamp) -> Self {
        Self(self.0 | now.bits() << STAMP_SHIFT)
    }

    /// This word, but for the pins.
    const fn without_pins(self) -> Self {
        if self.state().counts_pins() {
            self.pinned(0)
        } else {
            self
        }
    }

    /// This word with so many pins.
    const fn pinned(self, pins: u16) -> Self {
        Self(self.0 & !PINS | (pins as u64) << PIN_SHIFT)
    }
}

const fn device_page(at: DeviceAddr) -> u64 {
    (at.page.0 as u64) << 32 | (at.device as u64) << 61
}

/// What a word adds to the counts of its chunk: entries in use below, mapped pages above.
const fn weight(word: u64) -> u64 {
    match word & TAG {
        0 => 0,
        1 => 1 | 1 << 32,
        _ => 1,
    }
}

/// The same for an entry that is claimed and was `word`. It is in use even if it was not before: its
/// page may be mapped by now, and a walk that drops what is mapped must not pass it by.
const fn claimed_weight(word: u64) -> u64 {
    weight(word) | 1
}

/// Pages that share a word of the counts.
const CHUNK: usize = 512;

/// The entries of a space, with counts that let walks skip what is empty.
pub(crate) struct EntryTable<T> {
    range: PageRange,
    words: T,
    /// For each chunk of pages: entries that are not None (low half), System (high half). A claimed
    /// entry still counts as what it was, and as in use.
    chunks: T,
    /// The same for each chunk of chunks.
    giants: T,
    /// For each chunk of giants: not 0 if any of them was ever used. A space may have an entry for each
    /// page of a process, nearly all of which are never used.
    tops: T,
}

impl<T: Deref<Target = [AtomicU64]>> EntryTable<T> {
    /// A table for `range`, in zeroed memory that `table` makes; `None` when it cannot.
    pub(crate) fn new(range: PageRange, table: impl Fn(usize) -> Option<T>) -> Option<Self> {
        let chunks = range.len.div_ceil(CHUNK);
        let giants = chunks.div_ceil(CHUNK);
        Some(Self {
            range,
            words: table(range.len)?,
            chunks: table(chunks)?,
            giants: table(giants)?,
            tops: table(giants.div_ceil(CHUNK))?,
        })
    }

    /// The pages that have an entry.
    pub(crate) fn range(&self) -> PageRange {
        self.range
    }

    fn index(&self, page: PageNo) -> usize {
        (page.0 - self.range.start.0) as usize
    }

    fn word(&self, page: PageNo) -> &AtomicU64 {
        &self.words[self.index(page)]
    }

    pub(crate) fn load(&self, page: PageNo) -> Word {
        Word(self.word(page).load(Acquire))
    }

    /// The state of `page` now. Out of date as soon as it is read, unless it is claimed.
    pub(crate) fn state(&self, page: PageNo) -> State {
        self.load(page).state()
    }

    fn count(&self, page: PageNo, was: u64, now: u64) {
        let change = now.wrapping_sub(was);
        if change != 0 {
            let chunk = self.index(page) / CHUNK;
            let giant = chunk / CHUNK;
            let top = &self.tops[giant / CHUNK];
            if top.load(Relaxed) == 0 {
                top.store(1, Release);
            }
            self.chunks[chunk].fetch_add(change, AcqRel);
            self.giants[giant].fetch_add(change, AcqRel);
        }
    }

    /// Claims `page` if its entry is still `seen`, which is settled.
    pub(crate) fn claim(&self, page: PageNo, seen: Word) -> Option<Claim> {
        debug_assert!(seen.state() != State::Migrating);
        let claimed = Word(MIGRATING).pinned(seen.pins());
        self.word(page)
            .compare_exchange(seen.0, claimed.0, AcqRel, Acquire)
            .ok()?;
        self.count(page, weight(seen.0), claimed_weight(seen.0));
        Some(Claim { page, was: seen })
    }

    /// Ends `claim`: the page now is `state`, with the pins that it has. Wakes whoever waited for it. `now`
    /// is asked for if the page has come to RAM.
    pub(crate) fn settle<M: Mmu>(
        &self,
        claim: Claim,
        state: State,
        now: impl FnOnce() -> Stamp,
        mmu: &M,
    ) {
        let mut settled = Word::of(state);
        if let State::System { .. } = state {
            let was_there = matches!(claim.was(), State::System { .. });
            settled = settled.stamped(if was_there { claim.was.stamp() } else { now() });
        }
        self.end(claim, settled, mmu);
    }

    /// Ends `claim`: the page is what it was (R5, R7).
    pub(crate) fn restore<M: Mmu>(&self, claim: Claim, mmu: &M) {
        let was = claim.was.without_pins();
        self.end(claim, was, mmu);
    }

    /// Ends `claim` with a word that has no pins: those that the page has are kept.
    fn end<M: Mmu>(&self, claim: Claim, settled: Word, mmu: &M) {
        let (word, state) = (self.word(claim.page), settled.state());
        self.count(claim.page, claimed_weight(claim.was.0), weight(settled.0));
        let settle = |now| match Word(now).pins() {
            0 => Some(settled.0),
            pins => {
                assert!(state.takes_pins(), "a pinned page stays: {state:?} (R11)");
                Some(settled.pinned(pins).0)
            }
        };
        let was = word.fetch_update(AcqRel, Acquire, settle);
        if was.is_ok_and(|was| was & WANTED != 0) {
            mmu.wake(PageRange::new(claim.page, 1));
            mmu.wake_waiters(word);
        }
    }

    /// Gives the page its second chance up: clears the referenced bit.
    pub(crate) fn clear_referenced(&self, page: PageNo, seen: Word) {
        let _ = self
            .word(page)
            .compare_exchange(seen.0, seen.0 & !REFERENCED, AcqRel, Relaxed);
    }

    /// Counts a pin of `page` if its entry is still `seen`, which is of a page that takes pins, and
    /// fewer than [`MAX_PINS`].
    pub(crate) fn pin(&self, page: PageNo, seen: Word) -> bool {
        debug_assert!(seen.state().takes_pins() && seen.pins() < MAX_PINS);
        let pinned = seen.pinned(seen.pins() + 1);
        self.word(page)
            .compare_exchange(seen.0, pinned.0, AcqRel, Relaxed)
            .is_ok()
    }

    /// Takes a pin of `page` back, whoever has the page in hand; returns whether it was the last.
    pub(crate) fn unpin(&self, page: PageNo) -> bool {
        let fewer = |now| {
            let left = Word(now).pins().checked_sub(1)?;
            Some(Word(now).pinned(left).0)
        };
        match self.word(page).fetch_update(AcqRel, Acquire, fewer) {
            Ok(was) => Word(was).pins() == 1,
            Err(_) => panic!("{page:?} is unpinned more often than pinned (R12)"),
        }
    }

    /// Marks `page` as shared, if it is coherent, settled, and not pinned; returns whether it is so.
    pub(crate) fn share(&self, page: PageNo) -> bool {
        let is_coherent = |word: Word| matches!(word.state(), State::Coherent(_));
        let shared =
            |now| (is_coherent(Word(now)) && Word(now).pins() == 0).then_some(now | SHARED);
        self.word(page)
            .fetch_update(AcqRel, Acquire, shared)
            .is_ok()
    }

    /// Takes that mark away again.
    pub(crate) fn share_no_more(&self, page: PageNo) {
        let plain = |now| Word(now).is_shared().then_some(now & !SHARED);
        let _ = self.word(page).fetch_update(AcqRel, Acquire, plain);
    }

    /// Forgets all pins of `page`: in the child of a fork nobody has any.
    pub(crate) fn forget_pins(&self, page: PageNo) {
        let seen = self.load(page);
        if seen.pins() > 0 {
            self.word(page).store(seen.pinned(0).0, Release);
        }
    }

    /// Gives a page in RAM its second chance again.
    pub(crate) fn set_referenced(&self, page: PageNo) {
        let seen = self.load(page);
        if matches!(seen.state(), State::System { .. }) {
            let _ = self
                .word(page)
                .compare_exchange(seen.0, seen.0 | REFERENCED, AcqRel, Relaxed);
        }
    }

    /// Asks to be woken when the migration that `seen` shows has ended. `false`: it has; look
    /// again.
    pub(crate) fn want(&self, page: PageNo, seen: Word) -> bool {
        seen.0 & WANTED != 0 && self.load(page) == seen
            || self
                .word(page)
                .compare_exchange(seen.0, seen.0 | WANTED, AcqRel, Acquire)
                .is_ok()
    }

    /// Waits for the end of a migration of `page`.
    pub(crate) fn wait<M: Mmu>(&self, page: PageNo, mmu: &M) {
        let seen = self.load(page);
        if seen.state() == State::Migrating && self.want(page, seen) {
            mmu.wait(self.word(page), seen.0 | WANTED, Duration::from_millis(10));
        }
    }

    /// The first page at or after `from` and before `end` whose entry counts in the half of the
    /// counts that `half` selects, at the granularity of chunks: the answer is either such a page's
    /// chunk start (or `from` itself), or `None` when no chunk up to `end` has one.
    fn next_chunk(&self, from: PageNo, end: PageNo, half: u64) -> Option<PageNo> {
        let end = self.index(end);
        let mut index = self.index(from);
        while index < end {
            let chunk = index / CHUNK;
            let giant = chunk / CHUNK;
            let begins = |size| chunk.is_multiple_of(size);
            if begins(CHUNK * CHUNK) && self.tops[giant / CHUNK].load(Acquire) == 0 {
                index = (chunk + CHUNK * CHUNK) * CHUNK;
            } else if begins(CHUNK) && self.giants[giant].load(Acquire) & half == 0 {
                index = (chunk + CHUNK) * CHUNK;
            } else if self.chunks[chunk].load(Acquire) & half == 0 {
                index = (chunk + 1) * CHUNK;
            } else {
                return Some(self.range.start.plus(index));
            }
        }
        None
    }

    /// The next page at or after `from`, before `end`, in a chunk with mapped pages.
    pub(crate) fn next_mapped(&self, from: PageNo, end: PageNo) -> Option<PageNo> {
        self.next_chunk(from, end, u64::from(u32::MAX) << 32)
    }

    /// The next page at or after `from`, before `end`, in a chunk with pages that are not None.
    pub(crate) fn next_used(&self, from: PageNo, end: PageNo) -> Option<PageNo> {
        self.next_chunk(from, end, u64::from(u32::MAX))
    }

    /// Calls `each` for the pages of `pages` whose entries are not None. Pages that have no entry
    /// are passed over.
    pub(crate) fn for_each_used(&self, pages: PageRange, mut each: impl FnMut(PageNo, Word)) {
        let mut at = pages.start.max(self.range.start);
        let end = pages.end().min(self.range.end()).max(at);
        while let Some(page) = self.next_used(at, end) {
            let rest_of_chunk = CHUNK - self.index(page) % CHUNK;
            let stop = page.plus(rest_of_chunk).min(end);
            for page in PageRange::new(page, (stop.0 - page.0) as usize).iter() {
                let word = self.load(page);
                if word.0 != 0 {
                    each(page, word);
                }
            }
            at = stop;
        }
    }

    /// Mapped pages in the whole space, as the counts have it.
    pub(crate) fn mapped(&self) -> usize {
        let used = |at: &usize| self.tops[at / CHUNK].load(Acquire) != 0;
        let giants = (0..self.giants.len()).filter(used);
        giants
            .map(|at| (self.giants[at].load(Acquire) >> 32) as usize)
            .sum()
    }
}

/// The right to decide what one page becomes. Must be ended by [`EntryTable::settle`] or
/// [`EntryTable::restore`]; [`crate::claims`] holds claims in a type that does so when dropped.
#[must_use]
#[derive(Debug)]
pub(crate) struct Claim {
    page: PageNo,
    was: Word,
}

impl Claim {
    pub(crate) fn page(&self) -> PageNo {
        self.page
    }

    pub(crate) fn was(&self) -> State {
        self.was.state()
    }

    /// Whether it was shared.
    pub(crate) fn was_shared(&self) -> bool {
        self.was.is_shared()
    }

    /// How many pins keep the page where it is.
    pub(crate) fn pins(&self) -> u16 {
        self.was.pins()
    }
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.state())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_the_word() {
        let far = DeviceAddr {
            device: 7,
            page: DevicePage(MAX_DEVICE_PAGES - 1),
        };
        for state in [
            State::None,
            State::System {
                referenced: false,
                duplicate: None,
            },
            State::System {
                referenced: true,
                duplicate: Some(far),
            },
            State::Coherent(far),
            State::Limbo(FrameNo(0)),
            State::Limbo(FrameNo(u32::MAX)),
            State::Private(far),
            State::Private(DeviceAddr {
                device: 0,
                page: DevicePage(0),
            }),
            State::Exclusive {
                frame: FrameNo(u32::MAX),
                holder: u16::MAX,
            },
            State::Exclusive {
                frame: FrameNo(0),
                holder: 0,
            },
            State::Migrating,
            State::Poisoned,
        ] {
            let word = Word::of(state);
            assert_eq!((word.state(), word.pins()), (state, 0));
            if state.counts_pins() {
                let pinned = word.pinned(MAX_PINS);
                assert_eq!((pinned.state(), pinned.pins()), (state, MAX_PINS));
                assert_eq!(pinned.pinned(0), word);
            }
        }
    }

    #[test]
    fn walks_see_exactly_what_is_used() {
        let range = PageRange::new(PageNo(1 << 20), 3 * CHUNK * CHUNK);
        let make = |n: usize| Some((0..n).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        let table = EntryTable::new(range, make).unwrap();
        let spots = [0, 5, CHUNK, CHUNK * CHUNK - 1, 2 * CHUNK * CHUNK + 7];
        for spot in spots {
            let page = range.start.plus(spot);
            let word = Word::of(State::system(false));
            table.word(page).store(word.0, Release);
            table.count(page, 0, weight(word.0));
        }
        let mut seen = Vec::new();
        table.for_each_used(range, |page, _| seen.push(table.index(page)));
        assert_eq!(seen, spots);
        assert_eq!(table.mapped(), spots.len());
        for spot in spots {
            let page = range.start.plus(spot);
            let was = table.word(page).swap(0, AcqRel);
            table.count(page, weight(was), 0);
        }
        assert_eq!(table.next_mapped(range.start, range.end()), None);
        // A page that was nowhere, and is in somebody's hands.
        let _claimed = table.claim(range.start, table.load(range.start)).unwrap();
        let mut seen = Vec::new();
        table.for_each_used(range, |_, word| seen.push(word.state()));
        assert_eq!(seen, [State::Migrating]);
        assert_eq!(table.mapped(), 0);
    }

    #[test]
    fn walks_pass_by_what_was_never_used() {
        const TOP: usize = CHUNK * CHUNK * CHUNK;
        let make = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        // Walks by chunks look at no entry.
        let table = EntryTable {
            range: PageRange::new(PageNo(0), 3 * TOP),
            words: make(0),
            chunks: make(3 * TOP / CHUNK),
            giants: make(3 * CHUNK),
            tops: make(3),
        };
        let (from, end) = (table.range.start, table.range.end());
        assert_eq!(table.next_used(from, end), None);
        let page = PageNo(2 * TOP as u64 + 5 * CHUNK as u64);
        table.count(page, 0, weight(Word::of(State::system(false)).0));
        for from in [0, 1, TOP - 1, TOP, 2 * TOP - 1, 2 * TOP] {
            let from = PageNo(from as u64);
            assert_eq!(table.next_mapped(from, end), Some(page));
            assert_eq!(table.next_mapped(from, page), None);
        }
        assert_eq!(table.next_used(page.plus(CHUNK), end), None);
        assert_eq!(table.mapped(), 1);
    }
}
