//! A slab: 32 KiB, cut into slots of one size.
//!
//! The number of slots in use and the map of free ones are two words, changed one after the other.
//! The order makes the count the word to trust: a slot is marked free before the count goes down,
//! and the count goes up before a slot is claimed. So at every moment
//!
//! ```text
//! marked free >= slots - used
//! ```
//!
//! and who has raised the count finds a slot. Only one thread claims at a time (it holds the
//! allocator's lock); any number release.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::*};
use std::sync::{PoisonError, RwLock};

/// Bytes in a slab.
pub const SLAB: usize = 32 << 10;
/// Slot sizes are multiples of this.
pub const UNIT: usize = 64;
/// The largest slot, in units: a plain page.
pub const MAX_UNITS: usize = 4096 / UNIT;

const UNITS: usize = SLAB / UNIT;

/// The size class for `len` bytes, named by its slot size in units: the largest slots of which as
/// many fit into a slab, so that no tail is left over.
pub const fn class_of(len: usize) -> usize {
    UNITS / slots_of(len.div_ceil(UNIT))
}

/// Slots in a slab of the class.
const fn slots_of(units: usize) -> usize {
    UNITS / units
}

/// Where bytes are in the store: 13 bits of length, 7 of slot size, 10 of slot, 32 of slab. Never
/// zero, since the length is not.
#[derive(Clone, Copy)]
pub struct Place(u64);

impl Place {
    pub fn new(slab: u32, slot: usize, units: usize, len: usize) -> Self {
        Self(len as u64 | (units as u64) << 13 | (slot as u64) << 20 | (slab as u64) << 30)
    }

    pub fn from_word(word: u64) -> Option<Self> {
        (word != 0).then_some(Self(word))
    }

    pub fn to_word(self) -> u64 {
        self.0
    }

    /// How many bytes are stored.
    pub fn len(self) -> usize {
        self.0 as usize & 0x1fff
    }

    fn units(self) -> usize {
        (self.0 >> 13) as usize & 0x7f
    }

    fn slot(self) -> usize {
        (self.0 >> 20) as usize & 0x3ff
    }

    pub fn slab(self) -> u32 {
        (self.0 >> 30) as u32
    }

    /// The first of the slab's words that is in the slot.
    fn first_word(self) -> usize {
        self.slot() * self.units() * (UNIT / 8)
    }
}

/// What a release did to the slab.
#[derive(PartialEq, Eq)]
pub enum Released {
    /// It was full, and has room now.
    GotRoom,
    /// It is empty now.
    GotEmpty,
    /// Nothing that the allocator wants to know.
    Neither,
}

/// A slab, with or without memory.
#[derive(Default)]
pub struct Slab {
    /// Atomic words, so that a slot can be written while another is read, under a shared lock.
    memory: RwLock<Box<[AtomicU64]>>,
    free: [AtomicU64; UNITS / 64],
    used: AtomicU16,
    /// On the store's stack of slabs to look at, and the slab below it there.
    pub queued: AtomicBool,
    pub below: AtomicU32,
}

impl Slab {
    /// Gives the slab memory. It holds nothing.
    pub fn fill(&self) {
        let memory = (0..SLAB / 8).map(|_| AtomicU64::new(0)).collect();
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = memory;
    }

    /// Gives the slab's memory back. It holds nothing.
    pub fn drain(&self) {
        debug_assert!(self.is_empty());
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = Box::default();
    }

    /// Cuts the empty slab into slots of `units`.
    pub fn cut(&self, units: usize) {
        let slots = slots_of(units);
        for (i, word) in self.free.iter().enumerate() {
            let bits = slots.saturating_sub(i * 64).min(64);
            word.store(u64::MAX.checked_shr(64 - bits as u32).unwrap_or(0), Relaxed);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.used.load(Acquire) == 0
    }

    pub fn has_room(&self, units: usize) -> bool {
        usize::from(self.used.load(Acquire)) < slots_of(units)
    }

    /// Claims a slot of a slab with room, and returns it and how many were used before.
    pub fn claim(&self, units: usize) -> (usize, usize) {
        let used = self.used.fetch_add(1, AcqRel);
        debug_assert!(usize::from(used) < slots_of(units));
        loop {
            for (i, word) in self.free.iter().enumerate() {
                let free = word.load(Acquire);
                if free != 0 {
                    let bit = free.trailing_zeros();
                    word.fetch_and(!(1 << bit), Acquire);
                    return (i * 64 + bit as usize, used.into());
                }
            }
        }
    }

    /// Releases the slot of `place`.
    pub fn release(&self, place: Place) -> Released {
        let slot = place.slot();
        self.free[slot / 64].fetch_or(1 << (slot % 64), Release);
        match self.used.fetch_sub(1, AcqRel) {
            1 => Released::GotEmpty,
            used if usize::from(used) == slots_of(place.units()) => Released::GotRoom,
            _ => Released::Neither,
        }
    }

    /// Writes `bytes` to `place`.
    pub fn write(&self, place: Place, bytes: &[u8]) {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let words = &memory[place.first_word()..][..bytes.len().div_ceil(8)];
        let (chunks, rest) = bytes.as_chunks();
        for (word, chunk) in words.iter().zip(chunks) {
            word.store(u64::from_ne_bytes(*chunk), Relaxed);
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            words[chunks.len()].store(u64::from_ne_bytes(last), Relaxed);
        }
    }

    /// Reads what is at `place` to the beginning of `to`, in whole words.
    pub fn read(&self, place: Place, to: &mut [u8]) {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let words = &memory[place.first_word()..][..place.len().div_ceil(8)];
        for (word, chunk) in words.iter().zip(to.as_chunks_mut().0) {
            *chunk = word.load(Relaxed).to_ne_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_for_and_fit_their_slab() {
        for len in 1..=4096 {
            let units = class_of(len);
            assert!(len <= units * UNIT && units <= MAX_UNITS, "{len}");
            assert!(slots_of(units) * units <= UNITS, "{len}");
            assert_eq!(class_of(units * UNIT), units, "{len}");
        }
    }

    #[test]
    fn a_slab_hands_out_each_slot_once() {
        for units in [1, 5, 32, 51, 64] {
            let slab = Slab::default();
            slab.cut(units);
            let mut slots: Vec<_> = (0..slots_of(units)).map(|_| slab.claim(units).0).collect();
            slots.sort_unstable();
            assert!(slots.iter().copied().eq(0..slots_of(units)));
            assert!(!slab.has_room(units));
        }
    }

    #[test]
    fn a_place_keeps_its_parts() {
        let place = Place::new(u32::MAX, 511, 64, 4096);
        assert_eq!(
            (place.slab(), place.slot(), place.units(), place.len()),
            (u32::MAX, 511, 64, 4096)
        );
    }
}
