//! The store: slabs, who has room in them, and how many there may be.
//!
//! Slots are handed out under one lock, for as long as it takes to choose one. They are given back
//! without it: a release that leaves its slab with news for the allocator (it has room again, it
//! is empty) puts the slab on a stack, and the next insertion looks at it. Slabs leave that stack
//! only all together, so a slab that comes back meanwhile harms nothing (no ABA).
//!
//! A slab is in one of these places, all of them the allocator's:
//!
//! | place | memory | pages |
//! | --- | --- | --- |
//! | `bare` | no | none |
//! | `empty` | yes | none |
//! | `roomy[units]` | yes | fewer than its slots; none when it became empty unnoticed |
//! | nowhere | yes | as many as its slots, when last looked at |

use crate::lazy::LazyArray;
use crate::slab::{MAX_UNITS, Place, Released, SLAB, Slab, class_of};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// No slab.
const NONE: u32 = u32::MAX;
/// The most slabs that an insertion looks at without need.
const LOOK_AT: usize = 16;
/// Empty slabs that are kept in any case.
const KEEP: usize = 16;

/// Bytes of any length up to a page, in slabs.
pub struct Store {
    slabs: LazyArray<Slab, 64>,
    /// The top of the stack of slabs that a release had news of.
    news: AtomicU32,
    /// Bytes of the slabs that have something in them.
    stored: AtomicU64,
    allocator: Mutex<Allocator>,
}

/// What the lock protects: where each slab is.
struct Allocator {
    /// The rest of a stack of news that has been taken over.
    unread: u32,
    roomy: [Vec<u32>; MAX_UNITS + 1],
    empty: Vec<u32>,
    bare: Vec<u32>,
    /// For each slab ever used, its slot size and its index in `roomy`, or `NONE`.
    homes: Vec<Home>,
    /// Slabs with memory, and the most that there may be.
    held: usize,
    limit: usize,
}

#[derive(Clone, Copy)]
struct Home {
    units: u32,
    index: u32,
}

impl Store {
    /// A store in at most `capacity` bytes of slabs.
    pub fn new(capacity: u64) -> Self {
        let limit = (capacity / SLAB as u64).min(NONE.into()) as usize;
        Self {
            slabs: LazyArray::new(limit),
            news: AtomicU32::new(NONE),
            stored: AtomicU64::new(0),
            allocator: Mutex::new(Allocator {
                unread: NONE,
                roomy: [const { Vec::new() }; MAX_UNITS + 1],
                empty: Vec::new(),
                bare: Vec::new(),
                homes: Vec::new(),
                held: 0,
                limit,
            }),
        }
    }

    /// Bytes of the slabs that have something in them.
    pub fn stored_bytes(&self) -> u64 {
        self.stored.load(Relaxed)
    }

    /// Bytes of all slabs that have memory.
    pub fn held_bytes(&self) -> u64 {
        (self.lock().held * SLAB) as u64
    }

    /// Stores `bytes`, or answers `None` when the capacity does not allow it.
    pub fn insert(&self, bytes: &[u8]) -> Option<Place> {
        let place = self.claim(bytes.len())?;
        self.slab(place.slab()).write(place, bytes);
        Some(place)
    }

    /// Reads what is at `place` to the beginning of `to`; up to 7 bytes more may be written.
    pub fn read(&self, place: Place, to: &mut [u8]) {
        self.slab(place.slab()).read(place, to);
    }

    /// Forgets what is at `place`.
    pub fn remove(&self, place: Place) {
        let number = place.slab();
        let slab = self.slab(number);
        let released = slab.release(place);
        if released == Released::GotEmpty {
            self.stored.fetch_sub(SLAB as u64, Relaxed);
        }
        // Whoever takes the slab off the stack clears the mark first and looks at it then, so
        // news that finds the mark set is still going to be seen.
        if released == Released::Neither || slab.queued.swap(true, AcqRel) {
            return;
        }
        let mut top = self.news.load(Relaxed);
        loop {
            slab.below.store(top, Relaxed);
            match self
                .news
                .compare_exchange_weak(top, number, Release, Relaxed)
            {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Gives the memory of all empty slabs back.
    pub fn trim(&self) {
        let mut allocator = self.lock();
        while self.read_news(&mut allocator) {}
        while let Some(number) = allocator.empty.pop() {
            drop(allocator);
            self.strip(number);
            allocator = self.lock();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Allocator> {
        self.allocator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn slab(&self, number: u32) -> &Slab {
        self.slabs.get_or_make(number as usize)
    }

    /// Finds a slot for `len` bytes: in a slab that has room, in an empty one, in a new one, and
    /// when there can be no new one, in a slab of larger slots.
    fn claim(&self, len: usize) -> Option<Place> {
        let units = class_of(len);
        let mut allocator = self.lock();
        for _ in 0..LOOK_AT {
            if !self.read_news(&mut allocator) {
                break;
            }
        }
        let number = loop {
            if let Some(&number) = allocator.roomy[units].last() {
                break number;
            }
            if let Some(number) = allocator.empty.pop() {
                self.slab(number).cut(units);
                allocator.settle(number, units);
                break number;
            }
            if self.read_news(&mut allocator) {
                continue;
            }
            let Some(number) = allocator.grow() else {
                let larger = &allocator.roomy[units..];
                break *larger.iter().find_map(|slabs| slabs.last())?;
            };
            // Fresh memory is slow: each page of it faults.
            drop(allocator);
            self.slab(number).fill();
            allocator = self.lock();
            allocator.empty.push(number);
        };

        let units = allocator.homes[number as usize].units as usize;
        let slab = self.slab(number);
        let (slot, used_before) = slab.claim(units);
        if used_before == 0 {
            self.stored.fetch_add(SLAB as u64, Relaxed);
        }
        if !slab.has_room(units) {
            allocator.unsettle(number);
        }
        let surplus = allocator.surplus();
        drop(allocator);
        if let Some(number) = surplus {
            self.strip(number);
        }
        Some(Place::new(number, slot, units, len))
    }

    /// Looks at one slab that a release had news of; `false` if there is none.
    fn read_news(&self, allocator: &mut Allocator) -> bool {
        if allocator.unread == NONE && self.news.load(Relaxed) != NONE {
            allocator.unread = self.news.swap(NONE, Acquire);
        }
        let number = allocator.unread;
        if number == NONE {
            return false;
        }
        let slab = self.slab(number);
        // Read before the mark is cleared: from then on the slab may be put on the stack again.
        allocator.unread = slab.below.load(Relaxed);
        slab.queued.swap(false, AcqRel);

        let home = allocator.homes[number as usize];
        if home.units == NONE {
            // It is known to be empty.
        } else if slab.is_empty() {
            allocator.unsettle(number);
            allocator.homes[number as usize].units = NONE;
            allocator.empty.push(number);
        } else if home.index == NONE && slab.has_room(home.units as usize) {
            allocator.settle(number, home.units as usize);
        }
        true
    }

    /// Takes the memory of a slab that is in no list.
    fn strip(&self, number: u32) {
        self.slab(number).drain();
        let mut allocator = self.lock();
        allocator.held -= 1;
        allocator.bare.push(number);
    }
}

impl Allocator {
    /// Puts the slab among those with room for `units`.
    fn settle(&mut self, number: u32, units: usize) {
        let list = &mut self.roomy[units];
        let home = Home {
            units: units as u32,
            index: list.len() as u32,
        };
        self.homes[number as usize] = home;
        list.push(number);
    }

    /// Takes the slab from those with room, if it is there. It keeps its slot size.
    fn unsettle(&mut self, number: u32) {
        let Home { units, index } = self.homes[number as usize];
        if index == NONE {
            return;
        }
        let list = &mut self.roomy[units as usize];
        list.swap_remove(index as usize);
        if let Some(&moved) = list.get(index as usize) {
            self.homes[moved as usize].index = index;
        }
        self.homes[number as usize].index = NONE;
    }

    /// A slab to give memory to, if there may be one more.
    fn grow(&mut self) -> Option<u32> {
        if self.held == self.limit {
            return None;
        }
        self.held += 1;
        Some(self.bare.pop().unwrap_or_else(|| {
            self.homes.push(Home {
                units: NONE,
                index: NONE,
            });
            self.homes.len() as u32 - 1
        }))
    }

    /// An empty slab that is one too many: more than an eighth of all are empty.
    fn surplus(&mut self) -> Option<u32> {
        let keep = KEEP.max(self.held / 8);
        if self.empty.len() > keep {
            self.empty.pop()
        } else {
            None
        }
    }
}
