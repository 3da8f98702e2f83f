//! Interval notifiers: a device that has a page table of its own over part of the space is told before
//! pages change under it.
//!
//! The idea is Linux' `mmu_interval_notifier`. A device reads what its table should say (the space's
//! entries), and writes it to its table under its own lock. In between, the entries may have moved. A
//! sequence number tells:
//!
//! | the device | whoever changes pages |
//! | --- | --- |
//! | 1. `read_begin`: waits until nothing is active, takes the sequence | 1. the sequence goes up |
//! | 2. reads the entries | 2. calls the notifier, which takes the device's lock and drops what its table says of these pages |
//! | 3. takes its lock | 3. changes the pages |
//! | 4. `read_retry`: if the sequence has moved, or something is active, all over again | |
//! | 5. writes its table, uses it, gives up its lock | |
//!
//! Either the device has its lock first: then it saw the old sequence, and the notifier, which waits
//! for the lock, drops what was written. Or the notifier came first, and the sequence has moved (R14).
//!
//! Pages change in two ways:
//!
//! - *Claimed first* (migration, reclaim, faults): `Space::notify` is called with the claim in hand and
//!   before the mapping changes. Who reads the entry after that finds it Migrating, and waits; so the
//!   sequence alone is enough, and nothing is active.
//! - *A range at a time* (unmap, protect, discard, remap, fork): `Space::invalidating` returns a guard.
//!   The interval is active for as long as it lives, and who reads waits. It counts from before the
//!   first page is looked at.
//!
//! # The list
//!
//! Intervals are kept in a list, by number, that is never changed: who adds or removes one makes a new list,
//! exchanges it under a lock that is held for that moment, and waits until nobody has the old one any
//! more. So nobody's notifier is called after it was removed. A new one is not open until then: a
//! change that began without it has ended before its device first reads. Who claims first and then
//! finds no list at all has claimed before the new device reads (both sides are sequentially
//! consistent), and its page is Migrating.
//!
//! # What a notifier may do
//!
//! It runs wherever pages change, fault handlers included, and rule R18 holds for it: no allocation,
//! no managed memory, no lock whose holder may touch missing managed memory, and no long wait. It
//! must not call the space: every call of that kind is refused ([`Refused::InNotifier`]), and so it is
//! on a thread that has the table of a mirror locked, which a notifier may be waiting for. One that
//! panics has failed: it is not called again, and its device gets no answers any more.

use crate::addr::{PageNo, PageRange};
use crate::gate::Refused;
use crate::lock::Lock;
use crate::mmu::Mmu;
use crate::space::Space;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*, fence};
use std::time::{Duration, Instant};

/// How long a device waits for pages to come to rest, as HMM's drivers in Linux do.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// The same for so many pages, each of which may have to be brought.
pub(super) fn patience(pages: usize) -> Duration {
    PATIENCE + Duration::from_micros(100 * pages as u64)
}

thread_local! {
    /// How many notifiers this thread is in, and how many tables of mirrors it has locked.
    static BARRED: Cell<u32> = const { Cell::new(0) };
}

/// Whether the calling thread is in a notifier, or has a mirror's table locked: then it must not call
/// the space.
pub fn in_notifier() -> bool {
    BARRED.get() > 0
}

/// The calling thread must not call the space while this lives.
pub(super) struct Barred(PhantomData<*const ()>);

impl Barred {
    pub(super) fn new() -> Self {
        BARRED.set(BARRED.get() + 1);
        Self(PhantomData)
    }
}

impl Drop for Barred {
    fn drop(&mut self) {
        BARRED.set(BARRED.get() - 1);
    }
}

/// What happens to pages of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// They are unmapped, or moved elsewhere.
    Unmap,
    /// Their contents are dropped, or their memory has failed.
    Clear,
    /// What the program may do with them changes.
    Protect,
    /// They go somewhere else: to a device, to RAM, out of RAM.
    Migrate,
    /// A device gets them for itself alone: another one, or this one.
    Exclusive,
    /// The device itself had them alone, and somebody else wants to see them.
    EndExclusive,
    /// The space begins to manage them.
    Adopt,
    /// The process forks.
    Fork,
}

/// What a notifier is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// The pages, all within the notifier's interval.
    pub pages: PageRange,
    /// What happens to them.
    pub event: Event,
}

/// Somebody who must know before pages change. See the module's head for what it may do.
pub trait Notifier: Send + Sync {
    /// The pages that `what` names are about to change: nothing may be read or written there by what
    /// was known of them once this has returned.
    fn invalidate(&self, what: &Invalidation);
}

/// A sequence number, to be checked under the device's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence(u64);

/// Why a device does not get to see pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifierError {
    /// Some of the range is not managed by this space, or it is empty.
    NotManaged,
    /// The space has as many notifiers as it can (65,536).
    TooMany,
    /// It was removed, or its process is the parent of this one.
    Removed,
    /// It panicked, and is not called any more.
    Failed,
    /// Pages do not come to rest; try again.
    Busy,
    /// Called from a notifier, or with a mirror's table locked: the space must not be called then.
    InNotifier,
}

impl fmt::Display for NotifierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotManaged => "some of the range is not managed by this space",
            Self::TooMany => "the space has as many notifiers as it can: remove some",
            Self::Removed => "the notifier was removed: add it again",
            Self::Failed => "the notifier has panicked, and is not called any more",
            Self::Busy => "the pages do not come to rest; try again",
            Self::InNotifier => Refused::IN_NOTIFIER,
        })
    }
}

impl std::error::Error for NotifierError {}

/// An interval with its notifier, as the list has it.
pub(crate) struct Interval {
    /// Its name in entries that are exclusive to its device.
    pub(super) number: u16,
    pub(super) pages: PageRange,
    sequence: AtomicU64,
    /// Changes of ranges under way, and one while it is not open yet.
    active: AtomicUsize,
    removed: AtomicBool,
    failed: AtomicBool,
    notifier: Box<dyn Notifier>,
}

impl Interval {
    /// Whether a range of it is changing, or it is not open yet.
    pub(super) fn is_active(&self) -> bool {
        self.active.load(SeqCst) > 0
    }

    /// Whether it was removed, or is of the parent of this process.
    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Acquire)
    }

    fn call(&self, pages: PageRange, event: Event) {
        let start = pages.start.max(self.pages.start);
        let end = pages.end().min(self.pages.end());
        if start >= end || self.failed.load(Acquire) || self.is_removed() {
            return;
        }
        let what = Invalidation {
            pages: PageRange::new(start, (end.0 - start.0) as usize),
            event,
        };
        let _barred = Barred::new();
        let called = catch_unwind(AssertUnwindSafe(|| self.notifier.invalidate(&what)));
        if called.is_err() {
            self.failed.store(true, Release);
        }
    }
}

type List = Arc<[Arc<Interval>]>;

/// The notifiers of a space. See the module's head.
pub(crate) struct Notifiers {
    /// How many there are: most spaces have none, and need not look further.
    len: AtomicUsize,
    list: Lock<List>,
    /// Held by who adds or removes.
    changing: Lock<()>,
}

impl Default for Notifiers {
    fn default() -> Self {
        Self {
            len: AtomicUsize::new(0),
            list: Lock::new(Arc::new([])),
            changing: Lock::new(()),
        }
    }
}

impl Notifiers {
    fn list(&self) -> List {
        Arc::clone(&self.list.lock())
    }

    /// Exchanges the list, and waits until nobody has the old one. `false`: somebody has it for long, who
    /// may himself wait for the caller.
    fn exchange<M: Mmu>(&self, new: List, space: &Space<M>) -> bool {
        let len = new.len();
        if len > 0 {
            self.len.store(len, SeqCst);
        }
        let old = std::mem::replace(&mut *self.list.lock(), new);
        self.len.store(len, SeqCst);
        // What we drop last is dropped here, and not in a fault.
        let start = Instant::now();
        while Arc::strong_count(&old) > 1 {
            if start.elapsed() > PATIENCE {
                // Whoever has it lets go of it some time, and must not be the last.
                std::mem::forget(old);
                return false;
            }
            space.nap();
        }
        true
    }

    fn add<M: Mmu>(
        &self,
        pages: PageRange,
        notifier: Box<dyn Notifier>,
        space: &Space<M>,
    ) -> Result<Arc<Interval>, NotifierError> {
        let _one_at_a_time = self.changing.lock();
        let list = self.list();
        // The first number that is free.
        let ordered = list.iter().enumerate();
        let before = ordered.take_while(|(i, other)| usize::from(other.number) == *i);
        let place = before.count();
        let number = u16::try_from(place).map_err(|_| NotifierError::TooMany)?;
        let interval = Arc::new(Interval {
            number,
            pages,
            sequence: AtomicU64::new(0),
            active: AtomicUsize::new(1),
            removed: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            notifier,
        });
        let (before, after) = list.split_at(place);
        let added = [Arc::clone(&interval)];
        let new = [before, &added, after].concat().into();
        drop(list);
        if !self.exchange(new, space) {
            // It has not been open, and is told nothing any more.
            interval.removed.store(true, Release);
            self.take_out(&interval, space);
            return Err(NotifierError::Busy);
        }
        interval.active.fetch_sub(1, SeqCst);
        // Before any entry is read: pairs with the one in `notify`.
        fence(SeqCst);
        Ok(interval)
    }

    fn remove<M: Mmu>(&self, interval: &Arc<Interval>, space: &Space<M>) {
        interval.removed.store(true, Release);
        // A notifier that is waited for here would wait for itself. It stays in the list, uncalled.
        if in_notifier() {
            return;
        }
        let _one_at_a_time = self.changing.lock();
        self.take_out(interval, space);
    }

    /// Makes a list without `interval`.
    fn take_out<M: Mmu>(&self, interval: &Arc<Interval>, space: &Space<M>) {
        let list = self.list();
        let others = list.iter().filter(|other| !Arc::ptr_eq(other, interval));
        let new = others.cloned().collect();
        drop(list);
        self.exchange(new, space);
    }

    /// In the child of a fork, which has none of the devices' threads: there are no notifiers.
    pub(crate) fn forget(&self) {
        let old = std::mem::replace(&mut *self.list.lock(), Arc::new([]));
        for interval in old.iter() {
            interval.removed.store(true, Release);
        }
        self.len.store(0, SeqCst);
        // Threads of the parent may have held it, so nobody knows whether we are the last.
        std::mem::forget(old);
    }
}

/// The pages of a range are changing: what is under way from [`Space::invalidating`] to its drop.
#[must_use]
pub struct Invalidating {
    list: List,
    pages: PageRange,
}

impl Drop for Invalidating {
    fn drop(&mut self) {
        for interval in self.list.iter().filter(|at| at.pages.overlaps(self.pages)) {
            interval.active.fetch_sub(1, SeqCst);
        }
    }
}

/// A notifier that is in its space's list; removed when dropped, and not called after that.
pub struct IntervalNotifier<'a, M: Mmu> {
    pub(super) space: &'a Space<M>,
    pub(super) interval: Arc<Interval>,
}

impl<M: Mmu> IntervalNotifier<'_, M> {
    /// The pages that it is told of.
    pub fn pages(&self) -> PageRange {
        self.interval.pages
    }

    /// Waits until no range of the interval is changing; returns the sequence to check later.
    ///
    /// # Errors
    /// [`NotifierError::Busy`] after a second, and what makes it useless.
    pub fn read_begin(&self) -> Result<Sequence, NotifierError> {
        let start = Instant::now();
        loop {
            self.check()?;
            let sequence = self.interval.sequence.load(SeqCst);
            if !self.interval.is_active() {
                return Ok(Sequence(sequence));
            }
            if start.elapsed() > PATIENCE {
                return Err(NotifierError::Busy);
            }
            self.space.nap();
        }
    }

    /// Whether the notifier still works, and may be asked.
    pub(super) fn check(&self) -> Result<(), NotifierError> {
        if in_notifier() {
            Err(NotifierError::InNotifier)
        } else if self.interval.is_removed() {
            Err(NotifierError::Removed)
        } else if self.interval.failed.load(Acquire) {
            Err(NotifierError::Failed)
        } else {
            Ok(())
        }
    }

    /// Whether pages may have changed since [`read_begin`](Self::read_begin). To be called with the
    /// device's lock held, which the notifier takes too; what was read counts only if it says no, and
    /// for as long as the lock is held.
    #[must_use]
    pub fn read_retry(&self, sequence: Sequence) -> bool {
        let interval = &self.interval;
        interval.sequence.load(SeqCst) != sequence.0
            || interval.is_active()
            || interval.is_removed()
            || interval.failed.load(Acquire)
    }
}

impl<M: Mmu> Drop for IntervalNotifier<'_, M> {
    fn drop(&mut self) {
        self.space.notifiers.remove(&self.interval, self.space);
    }
}

impl<M: Mmu> Space<M> {
    /// Has `notifier` told of everything that happens to `pages`.
    ///
    /// # Errors
    /// [`NotifierError`].
    pub fn add_notifier(
        &self,
        pages: PageRange,
        notifier: Box<dyn Notifier>,
    ) -> Result<IntervalNotifier<'_, M>, NotifierError> {
        if in_notifier() {
            return Err(NotifierError::InNotifier);
        }
        if pages.len == 0 || !self.range().covers(pages) {
            return Err(NotifierError::NotManaged);
        }
        let interval = self.notifiers.add(pages, notifier, self)?;
        Ok(IntervalNotifier {
            space: self,
            interval,
        })
    }

    /// Tells notifiers that `pages`, which the caller has claimed, are about to change.
    pub(crate) fn notify(&self, pages: PageRange, event: Event) {
        // After the claim: see the module's head.
        fence(SeqCst);
        if self.notifiers.len.load(SeqCst) == 0 {
            return;
        }
        let list = self.notifiers.list();
        for interval in list.iter().filter(|at| at.pages.overlaps(pages)) {
            self.tell(interval, pages, event);
        }
    }

    /// Tells the notifier of mirror `number` that `page`, which the caller has claimed, is not its alone
    /// any more.
    pub(crate) fn notify_one(&self, number: u16, page: PageNo, event: Event) {
        let list = self.notifiers.list();
        if let Some(interval) = list.iter().find(|interval| interval.number == number) {
            self.tell(interval, PageRange::new(page, 1), event);
        }
    }

    fn tell(&self, interval: &Interval, pages: PageRange, event: Event) {
        self.stats().invalidations.add(1);
        interval.sequence.fetch_add(1, SeqCst);
        interval.call(pages, event);
    }

    /// Tells notifiers that pages of a range are about to change, and keeps their devices from looking
    /// until the guard is dropped. Nothing may be claimed.
    pub fn invalidating(&self, pages: PageRange, event: Event) -> Invalidating {
        // Even an empty list is taken: who adds a notifier waits for those who have the old one.
        let list = self.notifiers.list();
        for interval in list.iter().filter(|at| at.pages.overlaps(pages)) {
            interval.active.fetch_add(1, SeqCst);
            self.tell(interval, pages, event);
        }
        Invalidating { list, pages }
    }
}
