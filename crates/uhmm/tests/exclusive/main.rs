//! Exclusive access on real faults (R17): a device has pages alone, works there as if it had atomic
//! operations, and gives them back to whoever wants to see them.

mod atomics;
mod ends;
mod takes;
#[path = "../world/mod.rs"]
mod world;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use uhmm::device::PageData;
use uhmm::mirror::{DeviceTable, Event, Invalidation, Mirror};
use uhmm_core::entry::State;
use world::World;

/// A table that remembers what it was told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Invalidation>>>);

impl DeviceTable for Told {
    fn invalidate(&mut self, what: &Invalidation) {
        self.0.lock().unwrap().push(*what);
    }
}

impl Told {
    /// The pages that were said to be its no more, since it was last asked.
    fn ended(&self, world: &World) -> Vec<usize> {
        let told = std::mem::take(&mut *self.0.lock().unwrap());
        let ended = told.iter().filter(|what| what.event == Event::EndExclusive);
        let pages = ended.flat_map(Invalidation::pages);
        pages.map(|at| (at - world.address) / 4096).collect()
    }
}

impl World {
    fn mirror(&self, told: &Told) -> Mirror<'_, Told> {
        let table = told.clone();
        // SAFETY: pages of a test, which are touched by pointers alone while a device is at them.
        unsafe { self.space.mirror(self.address, self.len(), None, table) }.unwrap()
    }

    /// Makes all of it a device's alone; which pages it has.
    fn take(&self, mirror: &Mirror<'_, Told>) -> Vec<bool> {
        let alone = mirror.make_exclusive(self.address, self.len(), |_, alone| alone.to_vec());
        alone.unwrap()
    }

    /// Writes a page as the device does that has it alone.
    fn fill(&self, mirror: &Mirror<'_, Told>, page: usize) {
        let write = |_: &mut Told, data: &mut PageData| self.oracle.write(page, data);
        mirror.exclusively(self.at(page), write).unwrap();
    }

    fn is_exclusive(&self, page: usize) -> bool {
        matches!(self.state(page), State::Exclusive { .. })
    }

    /// A word of the program's memory.
    fn word(&self, page: usize, word: usize) -> &AtomicU64 {
        let at = self.at(page) + 8 * word;
        // SAFETY: within the mapping, aligned, and used by atomic accesses and by the device.
        unsafe { AtomicU64::from_ptr(at as *mut u64) }
    }
}

/// Adds to a word of a page that a device has alone, and returns what it was.
fn add(data: &mut PageData, word: usize, more: u64) -> u64 {
    let bytes = &mut data.0[8 * word..][..8];
    let was = u64::from_ne_bytes((&*bytes).try_into().unwrap());
    bytes.copy_from_slice(&(was + more).to_ne_bytes());
    was
}
