//! A ring of events: any number of tellers, any number of readers, no lock and no `unsafe`.
//!
//! Events have positions: 0, 1, 2 and on without end. The event at position `p` is kept in slot
//! `p % SLOTS`, until that of `p + SLOTS` takes its place. All words are atomics, so that a reader that
//! is overtaken reads nonsense, which it notices, and nothing worse.
//!
//! # Protocol
//!
//! | word | value | who writes it |
//! | --- | --- | --- |
//! | `next` | the first position that is free | a teller, by compare-and-swap from `p` to `p + 1`: it owns `p` then |
//! | a slot's mark | 0: never used | |
//! | | `2p + 1`: the event at `p` is being written | the owner of `p` |
//! | | `2p + 2`: it is there | the owner of `p` |
//! | a slot's other words | the event | the owner of `p`, between the two marks |
//! | `dropped` | events that found no slot | whoever told them |
//!
//! - A position may be taken only once its slot holds the event of one lap before, complete (or was
//!   never used). So a slot has one writer at a time, and the next one's acquire load of the mark pairs
//!   with the last one's release. Where that event is not complete, because its teller sleeps in the
//!   middle, the new one is dropped, and counted: nobody waits.
//! - The first mark is stored before the words (release fence), the second after them (release). A
//!   reader loads the mark (acquire), the words, and, after an acquire fence, the mark again. Twice
//!   `2p + 2`: the event is as it was told. A higher mark: it was overwritten.
//! - In the child of a fork nobody is left to complete what was begun: it is completed as void.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::*, fence};

/// Events that are kept for readers who have not looked yet.
pub(super) const SLOTS: usize = 1024;

/// Words of an event.
pub(super) const WORDS: usize = 4;

/// How often a teller tries again when others are faster.
const TRIES: usize = 64;

/// Words of no event.
const VOID: [u64; WORDS] = [0; WORDS];

/// See the module's head.
pub(super) struct Ring<T> {
    next: AtomicU64,
    dropped: AtomicU64,
    words: T,
}

/// What a reader finds at a position.
pub(super) enum Read {
    Event([u64; WORDS]),
    /// Nobody has come that far, or who has is not done.
    NotYet,
    /// It was overwritten.
    Lost,
}

/// The mark of a slot that holds the event at `position`.
const fn done(position: u64) -> u64 {
    2 * position + 2
}

impl<T: Deref<Target = [AtomicU64]>> Ring<T> {
    /// Costs memory where it has been used. `None`: `table` has no room.
    pub(super) fn new(table: impl Fn(usize) -> Option<T>) -> Option<Self> {
        Some(Self {
            next: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            words: table(SLOTS * (1 + WORDS))?,
        })
    }

    /// The position of the next event.
    pub(super) fn next(&self) -> u64 {
        self.next.load(Acquire)
    }

    /// How many events were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// The mark of the slot for `position`, and its other words.
    fn slot(&self, position: u64) -> (&AtomicU64, &[AtomicU64]) {
        let first = position as usize % SLOTS * (1 + WORDS);
        (&self.words[first], &self.words[first + 1..][..WORDS])
    }

    /// Adds an event, or drops it.
    pub(super) fn write(&self, event: [u64; WORDS]) {
        match self.take_position() {
            Some(position) => self.complete(position, event),
            None => _ = self.dropped.fetch_add(1, Relaxed),
        }
    }

    pub(super) fn take_position(&self) -> Option<u64> {
        let mut position = self.next.load(Relaxed);
        for _ in 0..TRIES {
            let one_lap_before = done(position).saturating_sub(2 * SLOTS as u64);
            let free = self.slot(position).0.load(Acquire) == one_lap_before;
            let next = &self.next;
            let now = if free {
                match next.compare_exchange_weak(position, position + 1, AcqRel, Relaxed) {
                    Ok(_) => return Some(position),
                    Err(now) => now,
                }
            } else {
                match next.load(Relaxed) {
                    // The slot is not this position's yet: its writer sleeps.
                    now if now == position => return None,
                    now => now,
                }
            };
            position = now;
        }
        None
    }

    /// Says that the event at a position that the caller has taken is being written.
    pub(super) fn begin(&self, position: u64) {
        self.slot(position).0.store(done(position) - 1, Release);
        fence(Release);
    }

    /// Writes the event at a position that the caller has taken.
    pub(super) fn complete(&self, position: u64, event: [u64; WORDS]) {
        self.begin(position);
        let (mark, words) = self.slot(position);
        for (word, value) in words.iter().zip(event) {
            word.store(value, Relaxed);
        }
        mark.store(done(position), Release);
    }

    /// What is at `position`.
    pub(super) fn read(&self, position: u64) -> Read {
        self.read_while(position, || ())
    }

    /// The same, with `meanwhile` in the middle of it, for a test to overtake the reader.
    pub(super) fn read_while(&self, position: u64, meanwhile: impl FnOnce()) -> Read {
        let (mark, words) = self.slot(position);
        let seen = mark.load(Acquire);
        if seen < done(position) {
            return Read::NotYet;
        }
        let mut event = VOID;
        for (word, value) in words.iter().zip(&mut event) {
            *value = word.load(Relaxed);
        }
        meanwhile();
        fence(Acquire);
        if seen == done(position) && mark.load(Relaxed) == seen {
            Read::Event(event)
        } else {
            Read::Lost
        }
    }

    /// In the child of a fork, while it has but one thread.
    pub(super) fn begin_in_child(&self) {
        let next = self.next();
        for position in next.saturating_sub(SLOTS as u64)..next {
            if self.slot(position).0.load(Relaxed) != done(position) {
                self.complete(position, VOID);
            }
        }
    }
}
