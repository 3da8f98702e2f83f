//! Who is told of changes, in tests: a notifier that writes down what it hears and can be stepped into,
//! and a device's page table in software.

use crate::hook::HookedMmu;
use crate::rig::args;
use crate::world::{BASE, SimSpace};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use uhmm_core::addr::{PageNo, PageRange};
use uhmm_core::fault::Scratch;
use uhmm_core::mirror::{
    DeviceTable, Event, IntervalNotifier, Invalidation, Mapped, Mirror, MirrorError, Need,
    Notifier, Permission, Permissions, RangeFault, Table,
};
use uhmm_core::pin::{PinError, PinFlags, PinnedPages};

type Step = Box<dyn FnOnce() + Send>;

/// What was heard: the first page, how many, and what happened.
pub type Heard = (usize, usize, Event);

#[derive(Default)]
struct Inner {
    heard: Mutex<Vec<Heard>>,
    steps: Mutex<VecDeque<Step>>,
}

/// A notifier that writes down what it hears.
#[derive(Clone, Default)]
pub struct Listener(Arc<Inner>);

impl Listener {
    /// Listens for `len` pages from `first` on.
    pub fn on(
        space: &SimSpace,
        first: usize,
        len: usize,
    ) -> (Self, IntervalNotifier<'_, HookedMmu>) {
        let listener = Self::default();
        let notifier = space.add_notifier(pages(first, len), Box::new(listener.clone()));
        (listener, notifier.expect("a notifier"))
    }

    /// What was heard since this was asked last.
    pub fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut self.0.heard.lock().unwrap())
    }

    /// Runs `step` once, in the next call that no other step waits for.
    pub fn in_next(&self, step: impl FnOnce() + Send + 'static) {
        self.0.steps.lock().unwrap().push_back(Box::new(step));
    }

    pub fn steps_left(&self) -> usize {
        self.0.steps.lock().unwrap().len()
    }

    fn hear(&self, what: &Invalidation) {
        let first = (what.pages.start.0 - BASE.0) as usize;
        let heard = (first, what.pages.len, what.event);
        self.0.heard.lock().unwrap().push(heard);
        let step = self.0.steps.lock().unwrap().pop_front();
        if let Some(step) = step {
            step();
        }
    }
}

impl Notifier for Listener {
    fn invalidate(&self, what: &Invalidation) {
        self.hear(what);
    }
}

/// A device's page table: the pages that it may use, and whether to write to.
#[derive(Default)]
pub struct Book {
    pub entries: BTreeMap<PageNo, Mapped>,
    pub listener: Listener,
}

impl DeviceTable for Book {
    fn invalidate(&mut self, what: &Invalidation) {
        self.entries.retain(|page, _| !what.pages.contains(*page));
        self.listener.hear(what);
    }
}

pub type Device<'a> = Mirror<'a, HookedMmu, Book>;
pub type Locked<'a> = Table<'a, HookedMmu, Book>;

/// A device with a table over `len` pages from `first` on, that owns no memory.
pub fn device(space: &SimSpace, first: usize, len: usize) -> (Listener, Device<'_>) {
    let listener = Listener::default();
    let book = Book {
        listener: listener.clone(),
        ..Book::default()
    };
    let mirror = space.mirror(pages(first, len), None, book);
    (listener, mirror.expect("a mirror"))
}

pub fn pages(first: usize, len: usize) -> PageRange {
    args(first, len, crate::rig::SYSTEM).pages
}

/// The program may do everything.
pub fn all(pages: PageRange) -> Result<Permissions, MirrorError> {
    let permission = Permission {
        read: true,
        write: true,
    };
    Ok(vec![(pages, permission)])
}

/// Fills the device's table for a range.
pub fn populate(
    device: &Device<'_>,
    first: usize,
    len: usize,
    need: Need,
) -> Result<Vec<Mapped>, MirrorError> {
    let request = RangeFault::all(pages(first, len), need);
    let install = |table: &mut Locked<'_>, found: &[Mapped]| {
        table
            .entries
            .extend(request.pages.iter().zip(found.iter().copied()));
        found.to_vec()
    };
    let done = device.range_fault(&request, all, &mut Scratch::default(), install);
    Ok(done?.0)
}

/// Makes pages the device's alone; returns of each whether it is.
pub fn alone(device: &Device<'_>, first: usize, len: usize) -> Result<Vec<bool>, MirrorError> {
    let install = |_: &mut Locked<'_>, alone: &[bool]| alone.to_vec();
    device.make_exclusive(pages(first, len), &mut Scratch::default(), install)
}

/// How to pin.
pub const READ: PinFlags = PinFlags {
    write: false,
    longterm: false,
    fast: false,
    peer: false,
};
pub const WRITE: PinFlags = PinFlags {
    write: true,
    ..READ
};
pub const LONG: PinFlags = PinFlags {
    longterm: true,
    ..READ
};
pub const FAST: PinFlags = PinFlags { fast: true, ..READ };

pub type Pinned<'a> = PinnedPages<'a, HookedMmu>;

/// Pins pages.
pub fn pin(
    space: &SimSpace,
    first: usize,
    len: usize,
    flags: PinFlags,
) -> Result<Pinned<'_>, PinError> {
    space.pin_pages(pages(first, len), flags, &mut Scratch::default())
}
