//! What happens to pages, told by address: the core knows pages by number.

use std::ops::{Deref, DerefMut};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::mirror::{self, Event};

/// What a notifier is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// The first byte, on a page.
    pub address: usize,
    /// Bytes: whole pages, all within the notifier's range.
    pub len: usize,
    /// What happens to them.
    pub event: Event,
}

impl Invalidation {
    /// The address of each page. They may be many: a fork is told for all of the range.
    pub fn pages(&self) -> impl Iterator<Item = usize> + use<> {
        (self.address..self.address + self.len).step_by(PAGE_SIZE)
    }
}

/// A device's page table, as its mirror keeps it.
pub trait DeviceTable: Send {
    /// Forgets what the table says of the pages that `what` names. See [`Notifier`] for what it may do.
    fn invalidate(&mut self, what: &Invalidation);
}

/// Somebody who must know before pages change. It runs wherever pages change, fault handlers included:
/// so it allocates nothing, touches no managed memory, takes no lock whose holder may do so, waits for
/// nothing that takes long, and does not call the space. One that panics has failed: it is not called
/// again, and its device gets no answers any more.
pub trait Notifier: Send + Sync {
    /// The pages that `what` names are about to change: nothing may be read or written there by what
    /// was known of them once this has returned.
    fn invalidate(&self, what: &Invalidation);
}

fn told(what: &mirror::Invalidation) -> Invalidation {
    Invalidation {
        address: what.pages.start.address(),
        len: what.pages.bytes(),
        event: what.event,
    }
}

/// A table, or a notifier, that is told by address.
pub struct Told<T>(pub(super) T);

impl<T: DeviceTable> mirror::DeviceTable for Told<T> {
    fn invalidate(&mut self, what: &mirror::Invalidation) {
        self.0.invalidate(&told(what));
    }
}

impl mirror::Notifier for Told<Box<dyn Notifier>> {
    fn invalidate(&self, what: &mirror::Invalidation) {
        self.0.invalidate(&told(what));
    }
}

impl<T> Deref for Told<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Told<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
