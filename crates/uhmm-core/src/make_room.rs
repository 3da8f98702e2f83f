//! Room on a full device: it evicts its own coldest pages, so that no driver has to.
//!
//! # Protocol
//!
//! Who wants pages of a device (a migration, a driver) and finds it full makes room, on its own thread,
//! and tries again:
//!
//! 1. *pick*: the device's [hand](crate::pagemap) names cold pages: not held, not used since the hand
//!    came by last, and not younger than [`MIN_STAY`] (R20). Where there are none but young ones, the
//!    caller waits until they are old enough, for at most about twice that time.
//! 2. *send*: the pages leave as in any eviction, by their device pages alone (R8), in a migration of
//!    their own. They go to RAM where that has plenty; else to the next device of the space's order that
//!    has room, by way of the migration's buffers; else to RAM, down to what is kept for faults.
//! 3. The allocation is tried again. Another thread may have taken what has become free, so all of this
//!    is done a bounded number of times. Then the device counts as full (R19): an error, with every page
//!    where it was or at another place that has room for it.
//!
//! Meanwhile reclaim puts the device last, as one that is being emptied: it would fill what is freed.
//!
//! The caller may have a migration of its own in its hands. That is no matter here: nothing waits for a
//! page, what others have claimed is passed by, and the caller's own pass of the gate is used again, so
//! that a fork that waits for the one migration is not waited for by the other. Nothing here makes room
//! for what it sends away, so it does not call itself.
//!
//! Never on a fault handler (R18): it allocates, waits, and calls devices.

use crate::addr::{DevicePage, PageNo, PageRange};
use crate::entry::State;
use crate::gate::Pass;
use crate::mmu::Mmu;
use crate::pagemap::{AllocError, MAX_ORDER};
use crate::space::Space;
use crate::stay::MIN_STAY;
use std::ops::RangeInclusive;

/// How often an allocation is tried again for which there was room a moment ago.
const TRIES: usize = 8;

/// Rests of a millisecond until what is young must be old.
const NAPS: usize = 2 * MIN_STAY.as_millis() as usize;

/// Where cold pages go.
#[derive(Clone, Copy)]
enum Way {
    /// To RAM, at most so many.
    Ram(usize),
    /// To whichever other devices have room.
    Devices,
}

impl<M: Mmu> Space<M> {
    /// Hands out a block of `device` of the largest of `orders` that it has free; returns its order too.
    pub(crate) fn alloc_largest(
        &self,
        device: u8,
        orders: RangeInclusive<u32>,
    ) -> Result<(DevicePage, u32), AllocError> {
        for order in orders.rev() {
            match self.alloc(device, order) {
                Err(AllocError::Full) => {}
                done => return done.map(|page| (page, order)),
            }
        }
        Err(AllocError::Full)
    }

    /// As [`Space::alloc_largest`]; a device that is full makes room first, for `pages` pages at once
    /// where it can, but not of `spared` ones.
    pub(crate) fn alloc_with_room(
        &self,
        pass: &Pass<'_, M>,
        device: u8,
        orders: RangeInclusive<u32>,
        pages: usize,
        spared: PageRange,
    ) -> Result<(DevicePage, u32), AllocError> {
        let alloc = || self.alloc_largest(device, orders.clone());
        let mut result = alloc();
        if result != Err(AllocError::Full) {
            return result;
        }
        let _last = self.device(device).begin_emptying();
        for _ in 0..TRIES {
            if result != Err(AllocError::Full)
                || !self.make_room(pass, device, &orders, pages, spared)
            {
                break;
            }
            result = alloc();
        }
        result
    }

    /// Sends away up to `pages` cold pages of `device`, together with what else makes up a block of the
    /// largest of `orders`, or else of the smallest. `false`: there are none, or they have nowhere to go.
    fn make_room(
        &self,
        pass: &Pass<'_, M>,
        device: u8,
        orders: &RangeInclusive<u32>,
        pages: usize,
        spared: PageRange,
    ) -> bool {
        let memory = self.device(device);
        if !memory.memory_type().migrates() {
            return false;
        }
        // In nobody's hands, and not pinned.
        let leaves = |page: PageNo| {
            let word = self.entries.load(page);
            !spared.contains(page) && word.state() != State::Migrating && word.pins() == 0
        };
        for _ in 0..NAPS {
            let now = self.stamp();
            let mut later = false;
            for order in [*orders.end(), *orders.start()] {
                let picked = memory.pick(order, pages.min(1 << MAX_ORDER), now, &leaves);
                later |= picked.young || !picked.pages.is_empty();
                match self.send_away(pass, device, picked.pages) {
                    Some(0) => {}
                    Some(_) => return true,
                    None => return false,
                }
            }
            if !later {
                return false;
            }
            self.nap();
        }
        false
    }

    /// Sends cold pages of `device` to the first place that takes any; returns how many have gone, or
    /// `None`, when there is no place for them.
    fn send_away(
        &self,
        pass: &Pass<'_, M>,
        device: u8,
        mut pages: Vec<DevicePage>,
    ) -> Option<usize> {
        if pages.is_empty() {
            return Some(0);
        }
        pages.sort_unstable();
        let pressure = &self.reclaim.pressure;
        let above = |mark| self.pool.available().saturating_sub(mark);
        let plenty = if above(pressure.high) >= pages.len() {
            pages.len()
        } else {
            0
        };
        let ways = [
            Way::Ram(plenty),
            Way::Devices,
            Way::Ram(above(pressure.low)),
        ];
        let mut place = false;
        for way in ways {
            match self.send(pass, device, &pages, way) {
                None => {}
                Some(0) => place = true,
                Some(gone) => {
                    self.stats().pages_evicted.add(gone as u64);
                    self.relieve();
                    return Some(gone);
                }
            }
        }
        place.then_some(0)
    }

    /// Sends pages of `device` away; returns how many have gone, or `None` when not one has got a place.
    fn send(
        &self,
        pass: &Pass<'_, M>,
        device: u8,
        pages: &[DevicePage],
        way: Way,
    ) -> Option<usize> {
        if matches!(way, Way::Ram(0)) {
            return None;
        }
        let mut migration = self.migrate_device_pages(pass.again(), device, pages);
        let mut selected = migration.selected().peekable();
        // In other hands by now; or duplicates, which have gone already.
        let none = selected.peek().is_none();
        drop(selected);
        let given = match way {
            Way::Ram(most) => migration.send_to_system(most),
            Way::Devices => {
                let (next, before): (Vec<u8>, Vec<u8>) = self
                    .takers()
                    .map(|(other, _)| other)
                    .filter(|&other| other != device)
                    .partition(|&other| other > device);
                let others = next.into_iter().chain(before);
                others
                    .map(|other| migration.allocate_free(other).unwrap_or(0))
                    .sum()
            }
        };
        let gone = migration.copy().pages().finalize().migrated;
        (none || given > 0 || gone > 0).then_some(gone)
    }
}
