//! Mirrors: a device's own page table over part of the space, kept right by notifiers (`hmm_range_fault`
//! and the interval notifiers of Linux).
//!
//! | file | what it is |
//! | --- | --- |
//! | `notifier.rs` | who is told before pages change, and the sequence that shows that they have |
//! | `range_fault.rs` | what a device may map for each page, with or without faulting it in |
//! | `foreign.rs` | the same of pages that the space does not manage |
//! | `table.rs` | [`Table`]: a table that is locked, and what a device does by it |
//! | `exclusive.rs` | pages that are a device's alone until the program touches them |
//! | this one | [`Mirror`]: a table with its lock, and the loop that keeps it right (R14) |
//!
//! [`IntervalNotifier`] and [`Space::range_fault`] are the pieces, for a device with a lock of its own. A
//! [`Mirror`] owns the lock, and does the whole loop: take the sequence, fault, lock, check, all over
//! again if it has moved; and only then is the table written, with the lock held.
//!
//! While the lock is held, what the table says is so: a notifier waits for it. So it is held for
//! short, by threads that touch no managed memory but by [`Table::read`] and [`Table::write`], which do
//! not fault. Whoever holds it must not call the space, and is refused as in a notifier: the caller of
//! the notifier may have in its hands what that call would wait for. So a thread has one table locked
//! at a time.
//!
//! A mutex alone would let a device that is at work all the time keep others from the lock, page faults
//! included. So a device does not take it while a notifier waits for it.
//!
//! A notifier or a device that panics with the lock held leaves a table that may say anything: the
//! mirror has failed then, and gives no answers any more.

mod exclusive;
mod foreign;
mod notifier;
mod range_fault;
mod table;

use crate::addr::{PageData, PageNo, PageRange};
use crate::device::Owner;
use crate::fault::Scratch;
use crate::mmu::Mmu;
use crate::space::Space;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

pub(crate) use notifier::Notifiers;
pub use notifier::in_notifier;
pub use notifier::{
    Event, IntervalNotifier, Invalidating, Invalidation, Notifier, NotifierError, Sequence,
};
pub use range_fault::{Mapped, Need, Permission, RangeFault};
pub use table::Table;

use notifier::patience;
use table::alone_in;

/// A device's page table, as its mirror keeps it.
pub trait DeviceTable: Send {
    /// Forgets what the table says of the pages that `what` names. Runs in the fault path: see
    /// [`Notifier`] for what it may do.
    fn invalidate(&mut self, what: &Invalidation);
}

/// Why a device does not get at pages. Its table has not changed, unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorError {
    /// Something is wrong with the mirror itself.
    Notifier(NotifierError),
    /// Some of the range is not the mirror's, or it is empty.
    NotMirrored,
    /// This page is not mapped, or the program may not read it.
    NoAccess(PageNo),
    /// The program may not write to this page.
    NotWritable(PageNo),
    /// This page is lost.
    Poisoned(PageNo),
    /// There is no RAM for this page.
    NoRam(PageNo),
    /// So much of the budget would be exclusive or pinned that the rest of the program could not go on.
    TooMuch {
        /// The most pages that can be so at a time.
        limit: usize,
    },
    /// The table does not have this page, or not for that: populate it first.
    NotInTable(PageNo),
    /// This page was in the table, and has gone by a call that the space has not seen; or its file ends
    /// before it now.
    Gone(PageNo),
    /// Nobody but the space can make this page a device's alone, and it does not manage it.
    NotManaged(PageNo),
    /// The kernel does not say what is mapped.
    Unseen,
    /// The process is forking, and the fork does not end; try again.
    Forking,
}

impl fmt::Display for MirrorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |page: &PageNo| page.address();
        match self {
            Self::Notifier(error) => error.fmt(f),
            Self::NotMirrored => f.write_str("some of the range is not the mirror's"),
            Self::NoAccess(page) => write!(
                f,
                "the page at {:#x} is not mapped, or may not be read",
                at(page)
            ),
            Self::NotWritable(page) => {
                write!(f, "the page at {:#x} may not be written to", at(page))
            }
            Self::Poisoned(page) => write!(f, "the page at {:#x} is lost", at(page)),
            Self::NoRam(page) => write!(f, "there is no RAM for the page at {:#x}", at(page)),
            Self::TooMuch { limit } => write!(
                f,
                "no more than {} KiB can be exclusive or pinned at a time: give a larger budget, or \
                 let some go",
                limit * 4
            ),
            Self::NotInTable(page) => write!(
                f,
                "the device's table does not have the page at {:#x} for that: fault it in first",
                at(page)
            ),
            Self::Gone(page) => write!(
                f,
                "the page at {:#x} has gone: its file is shorter now, or it was unmapped by a system \
                 call that the space has not seen",
                at(page)
            ),
            Self::NotManaged(page) => write!(
                f,
                "the space does not manage the page at {:#x}: adopt it first",
                at(page)
            ),
            Self::Unseen => f.write_str(
                "the kernel does not say what is mapped: raise the limit on open files (ulimit -n), and \
                 see that /proc is mounted",
            ),
            Self::Forking => f.write_str(crate::gate::Refused::FORKING),
        }
    }
}

impl std::error::Error for MirrorError {}

impl From<NotifierError> for MirrorError {
    fn from(error: NotifierError) -> Self {
        Self::Notifier(error)
    }
}

impl From<crate::gate::Refused> for MirrorError {
    fn from(refused: crate::gate::Refused) -> Self {
        match refused {
            crate::gate::Refused::Forking => Self::Forking,
            crate::gate::Refused::InNotifier => Self::Notifier(NotifierError::InNotifier),
        }
    }
}

/// What the program may do with parts of a range. Parts that are not named are not mapped.
pub type Permissions = Vec<(PageRange, Permission)>;

/// A table, and its lock.
struct Locked<T> {
    table: Mutex<T>,
    /// Notifiers that wait for it.
    wanted: AtomicUsize,
}

/// The notifier of a mirror.
struct Invalidate<T>(Arc<Locked<T>>);

impl<T: DeviceTable> Notifier for Invalidate<T> {
    fn invalidate(&self, what: &Invalidation) {
        // Even if the device has panicked: it may have said somewhere else what it has mapped.
        self.0.wanted.fetch_add(1, SeqCst);
        let table = self.0.table.lock();
        self.0.wanted.fetch_sub(1, SeqCst);
        let mut table = table.unwrap_or_else(PoisonError::into_inner);
        table.invalidate(what);
    }
}

/// A device's page table over part of the space. Dropping it gives back what was exclusive to it, and
/// ends its notifier.
pub struct Mirror<'a, M: Mmu, T> {
    notifier: IntervalNotifier<'a, M>,
    table: Arc<Locked<T>>,
    owner: Option<Owner>,
}

/// What [`Mirror::fault_and_lock`] has found.
pub struct Faulted<'a, M: Mmu, T> {
    /// The table, locked.
    pub table: Table<'a, M, T>,
    /// What the device may map for each page, which is so while the table is locked.
    pub found: Vec<Mapped>,
    /// In how many rounds pages had to be faulted in.
    pub rounds: usize,
}

impl<M: Mmu> Space<M> {
    /// Makes `table` a device's page table over `pages`. Private pages of `owner`'s devices are
    /// mapped for it where they are, instead of being brought to RAM.
    ///
    /// # Errors
    /// [`NotifierError`].
    pub fn mirror<T: DeviceTable + 'static>(
        &self,
        pages: PageRange,
        owner: Option<Owner>,
        table: T,
    ) -> Result<Mirror<'_, M, T>, NotifierError> {
        let table = Arc::new(Locked {
            table: Mutex::new(table),
            wanted: AtomicUsize::new(0),
        });
        let invalidate = Box::new(Invalidate(Arc::clone(&table)));
        Ok(Mirror {
            notifier: self.add_notifier(pages, invalidate)?,
            table,
            owner,
        })
    }
}

impl<'a, M: Mmu, T: DeviceTable> Mirror<'a, M, T> {
    /// The pages that are mirrored.
    pub fn pages(&self) -> PageRange {
        self.notifier.pages()
    }

    /// Locks the table, for the device to use what it says.
    ///
    /// # Errors
    /// [`NotifierError::InNotifier`], [`NotifierError::Failed`], [`NotifierError::Removed`].
    pub fn lock(&self) -> Result<Table<'_, M, T>, NotifierError> {
        self.notifier.check()?;
        let mut looks = 0;
        while self.table.wanted.load(SeqCst) > 0 {
            looks += 1;
            match looks {
                ..64 => std::thread::yield_now(),
                _ => self.notifier.space.nap(),
            }
        }
        // Poisoned: see the module's head.
        let table = self.table.table.lock().map_err(|_| NotifierError::Failed)?;
        Ok(Table::new(
            self.notifier.space,
            &self.notifier.interval,
            table,
        ))
    }

    /// Brings pages to where the device can map them, as `request` says, and calls `install` with what
    /// it may map, with the table locked and while that is so (R14). `look` tells what the program may
    /// do with the range; it is called again in each round. Returns what `install` does, and in how
    /// many rounds pages had to be faulted in.
    ///
    /// # Errors
    /// [`MirrorError`]; `install` was not called.
    pub fn range_fault<R>(
        &self,
        request: &RangeFault<'_>,
        look: impl FnMut(PageRange) -> Result<Permissions, MirrorError>,
        scratch: &mut Scratch,
        install: impl FnOnce(&mut Table<'_, M, T>, &[Mapped]) -> R,
    ) -> Result<(R, usize), MirrorError> {
        let mut faulted = self.fault_and_lock(request, look, scratch)?;
        Ok((install(&mut faulted.table, &faulted.found), faulted.rounds))
    }

    /// [`Mirror::range_fault`], up to where the table is locked: what is found is so while it is.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn fault_and_lock(
        &self,
        request: &RangeFault<'_>,
        mut look: impl FnMut(PageRange) -> Result<Permissions, MirrorError>,
        scratch: &mut Scratch,
    ) -> Result<Faulted<'_, M, T>, MirrorError> {
        let pages = request.pages;
        if pages.len == 0 || !self.pages().covers(pages) {
            return Err(MirrorError::NotMirrored);
        }
        let space = self.notifier.space;
        let start = Instant::now();
        let is_late = || start.elapsed() > patience(pages.len);
        let (mut found, mut rounds) = (Vec::new(), 0);
        loop {
            let sequence = self.notifier.read_begin()?;
            let allowed = look(pages)?;
            match space.range_fault(request, &allowed, self.owner, scratch, &mut found) {
                Ok(more) => rounds += more,
                // What is in the way of a page may be that it has just changed.
                Err(_) if self.notifier.read_retry(sequence) && !is_late() => continue,
                Err(error) => return Err(error),
            }
            let table = self.lock()?;
            if !self.notifier.read_retry(sequence) {
                return Ok(Faulted {
                    table,
                    found,
                    rounds,
                });
            }
            drop(table);
            if is_late() {
                return Err(NotifierError::Busy.into());
            }
        }
    }

    /// Makes pages the device's alone (R17): unmapped, until the program touches them, they are pinned,
    /// their protection changes or the process forks; then the table is told ([`Event::EndExclusive`])
    /// and the page is the program's again. Best effort page by page: pinned pages and pages of devices
    /// that the CPU maps stay what they are. Calls `install` with the table locked, and for each page
    /// whether the device has it alone: nobody else sees it while that runs, although somebody may have
    /// come to wait for it already, and then [`Table::with_exclusive`] is refused. The program must be
    /// allowed to write to all of the range.
    ///
    /// # Errors
    /// [`MirrorError`]; `install` was not called.
    pub fn make_exclusive<R>(
        &self,
        pages: PageRange,
        scratch: &mut Scratch,
        install: impl FnOnce(&mut Table<'_, M, T>, &[bool]) -> R,
    ) -> Result<R, MirrorError> {
        let (mut table, alone) = self.take_and_lock(pages, scratch)?;
        Ok(install(&mut table, &alone))
    }

    /// [`Mirror::make_exclusive`], up to where the table is locked.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn take_and_lock(
        &self,
        pages: PageRange,
        scratch: &mut Scratch,
    ) -> Result<(Table<'_, M, T>, Vec<bool>), MirrorError> {
        if pages.len == 0 || !self.pages().covers(pages) {
            return Err(MirrorError::NotMirrored);
        }
        self.notifier
            .space
            .take_exclusive(pages, &self.notifier, scratch)?;
        let table = self.lock()?;
        let alone = pages.iter().map(|page| self.has_alone(page)).collect();
        Ok((table, alone))
    }

    /// Whether the device has `page` alone now.
    pub fn has_alone(&self, page: PageNo) -> bool {
        alone_in(self.notifier.space, &self.notifier.interval, page).is_some()
    }

    /// Gives the bytes of a page that the device has alone to `with`: nobody else reads or writes them
    /// meanwhile, so whatever it does there is atomic.
    ///
    /// # Errors
    /// [`MirrorError::NotInTable`]: the device does not have it alone (any more).
    pub fn with_exclusive<R>(
        &self,
        page: PageNo,
        with: impl FnOnce(&mut T, &mut PageData) -> R,
    ) -> Result<R, MirrorError> {
        self.lock()?.with_exclusive(page, with)
    }
}

impl<M: Mmu, T> Drop for Mirror<'_, M, T> {
    fn drop(&mut self) {
        let pages = self.notifier.pages();
        self.notifier.space.end_exclusive_of(&self.notifier, pages);
    }
}
