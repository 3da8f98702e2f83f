//! Mirrors, with addresses: a device's own page table over a range, kept right while programs run.
//!
//! A device that reads and writes memory of the program by the program's own addresses has a
//! [`DeviceTable`]. It may be over any memory of the process, managed or not, and over all of it. The space tells it before pages change ([`DeviceTable::invalidate`]), and
//! [`Mirror::range_fault`] does the loop that fills it: no entry is written that is out of date already.
//! [`PageTable`] is such a table in software, for devices that have none of their own, and shows how one
//! is written.
//!
//! [`Mirror::exclusively`] takes a page from the program for a moment, for a device whose bus has no
//! atomic operations.
//!
//! # Memory that the space does not manage
//!
//! It is faulted in, read and written where it is, and only changes when the program asks the kernel for that.
//! The space sees what goes through it: its own calls on ranges, adoption, forks, and
//! [`Memory::around_unmap`](crate::memory::Memory::around_unmap) and its like, for whoever takes over the
//! program's system calls. Whatever else unmaps or protects such memory must not do so under a mirror.
//! Where it happens all the same the device gets an error, or what has been mapped there since, and nobody is
//! killed for it.
//!
//! | memory | what a device may map |
//! | --- | --- |
//! | that may not be read, or is not mapped | [`Mapped::Error`]; an error where it is needed |
//! | that nobody has touched, or that the kernel has swapped out | [`Mapped::Nothing`], until it is needed |
//! | the kernel's page of zeros; a file's page in a private mapping | [`Mapped::Ram`] to read, until it is needed to write |
//! | all other | [`Mapped::Ram`], to write if the program may |
//! | in huge pages, reserved or transparent | the same, of order 9 or 18 |
//!
//! # What holds while a table is locked
//!
//! What the table says is so for as long as the lock is held, because whoever is about to change a page
//! waits for it. So a thread that has a table locked, be it by [`Mirror::lock`] or within an `install`,
//!
//! - calls nothing of the space (it is refused: [`RangeError::InNotifier`]), and locks no second table;
//! - touches managed memory by [`Table::read`] and [`Table::write`] alone: a touch of a missing page
//!   might wait for the thread itself;
//! - does not fork, and lets go soon.
//!
//! The same holds within a notifier.

mod page_table;
mod told;

use crate::build::Space;
use crate::device_memory::DeviceId;
use crate::range::RangeError;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::time::{Duration, Instant};
use told::Told;
use uhmm_core::addr::{PAGE_SIZE, PageData, PageNo};
use uhmm_core::fault::Scratch;
use uhmm_core::mirror;
use uhmm_linux::mmu::LinuxMmu;
use uhmm_linux::signals::Blocked;

pub use page_table::{OwnMemory, PageTable};
pub use told::{DeviceTable, Invalidation, Notifier};
/// What is in the way of a page: in [`MirrorError::Mirror`].
pub use uhmm_core::mirror::MirrorError as PageError;
pub use uhmm_core::mirror::{Event, Mapped, Need, NotifierError, Permission, Sequence};

/// A notifier in its space's list, on this machine.
pub type IntervalNotifier<'a> = mirror::IntervalNotifier<'a, LinuxMmu>;

/// How long a device tries to have a page alone.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long it waits between two tries.
const PAUSE: Duration = Duration::from_micros(50);

/// Why a device does not get at pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorError {
    /// Something is wrong with the range.
    Range(RangeError),
    /// The program may not write to some of it.
    NotWritable,
    /// The space has no such device.
    NoSuchDevice,
    /// The page cannot be a device's alone: it is pinned, or in memory of a device that the CPU maps.
    NotAlone,
    /// The calling thread's stack is managed memory, which might itself be wanted.
    ManagedStack,
    /// Something is in the way of a page of it, or of the mirror.
    Mirror(mirror::MirrorError),
}

impl fmt::Display for MirrorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(error) => error.fmt(f),
            Self::NotWritable => f.write_str("the program may not write to some of the range"),
            Self::NoSuchDevice => f.write_str("the space has no such device"),
            Self::NotAlone => f.write_str(
                "the page cannot be a device's alone now: release its pins, or migrate it to RAM",
            ),
            Self::ManagedStack => crate::migrate::MigrateError::ManagedStack.fmt(f),
            Self::Mirror(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for MirrorError {}

impl From<RangeError> for MirrorError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl From<mirror::MirrorError> for MirrorError {
    fn from(error: mirror::MirrorError) -> Self {
        match error {
            mirror::MirrorError::Forking => Self::Range(RangeError::Forking),
            mirror::MirrorError::Notifier(NotifierError::InNotifier) => {
                Self::Range(RangeError::InNotifier)
            }
            error => Self::Mirror(error),
        }
    }
}

impl From<NotifierError> for MirrorError {
    fn from(error: NotifierError) -> Self {
        mirror::MirrorError::from(error).into()
    }
}

/// A device's page table over a range of the space. See the module's head.
///
/// Its calls are for threads whose stack is not managed memory, and that hold no lock which the table's
/// `invalidate` takes. It ends after whoever uses its table:
///
/// ```compile_fail,E0505
/// fn too_early(mirror: uhmm::mirror::Mirror<'_, uhmm::mirror::PageTable>) {
///     let table = mirror.lock().unwrap();
///     drop(mirror);
///     table.at(0);
/// }
/// ```
pub struct Mirror<'a, T> {
    space: &'a Space,
    device: Option<DeviceId>,
    mirror: mirror::Mirror<'a, LinuxMmu, Told<T>>,
}

/// The table of a mirror, locked: what it says is so for as long as this lives. See the module's head
/// for what must not be done meanwhile.
pub struct Table<'a, T>(mirror::Table<'a, LinuxMmu, Told<T>>);

impl Space {
    /// Makes `table` the page table of a device over a range of addresses, mapped or not, managed or not:
    /// what is mapped there later is mirrored too. Pages that are in private memory of `device` (or of another one with the same
    /// owner) are mapped for it where they are, instead of being brought to RAM.
    ///
    /// # Errors
    /// [`MirrorError`].
    ///
    /// # Safety
    /// The device reads and writes the range by address, at any time until the mirror is dropped: what it
    /// writes must not be borrowed meanwhile, and what it reads not mutably (but for atomics and cells).
    /// [`Table::read`] and [`Table::write`] are used only for pages that the table says are mapped, and the
    /// second only where it says that they may be written to; a table of one's own forgets what
    /// [`DeviceTable::invalidate`] names. What of the range is mapped is not memory of uhmm itself that the
    /// device writes to.
    pub unsafe fn mirror<T: DeviceTable + 'static>(
        &self,
        address: usize,
        len: usize,
        device: Option<DeviceId>,
        table: T,
    ) -> Result<Mirror<'_, T>, MirrorError> {
        let pages = self.page_range(address, len)?;
        let owner = match device {
            Some(device) => Some(
                self.core()
                    .owner(device.0)
                    .ok_or(MirrorError::NoSuchDevice)?,
            ),
            None => None,
        };
        Ok(Mirror {
            space: self,
            device,
            mirror: self.core().mirror(pages, owner, Told(table))?,
        })
    }

    /// Has `notifier` told before anything happens to the pages of a range, whatever is mapped there: for a
    /// device that keeps a page table with a lock of its own. [`Space::mirror`] does the whole loop.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn add_notifier(
        &self,
        address: usize,
        len: usize,
        notifier: Box<dyn Notifier>,
    ) -> Result<IntervalNotifier<'_>, MirrorError> {
        let pages = self.page_range(address, len)?;
        Ok(self.core().add_notifier(pages, Box::new(Told(notifier)))?)
    }
}

impl<T: DeviceTable> Mirror<'_, T> {
    /// Brings the pages of a range to where the device can map them, and calls `install` with what it
    /// may map, with the table locked and while that is so. `need` is of all pages, `each` of single ones
    /// besides. Returns what `install` does, and in how many rounds pages had to be faulted in.
    ///
    /// # Errors
    /// [`MirrorError`]; `install` was not called.
    pub fn range_fault<R>(
        &self,
        address: usize,
        len: usize,
        need: Need,
        each: &[Need],
        install: impl FnOnce(&mut Table<'_, T>, &[Mapped]) -> R,
    ) -> Result<(R, usize), MirrorError> {
        let pages = self.space.page_range(address, len)?;
        self.check_stack()?;
        let request = mirror::RangeFault {
            pages,
            default: need,
            each,
        };
        let look = |pages| self.space.managed(pages);
        // A handler may touch what is in hand, or what the table has.
        let _signals = Blocked::all();
        let mut scratch = Scratch::default();
        let mirror::Faulted {
            table,
            found,
            rounds,
        } = self.mirror.fault_and_lock(&request, look, &mut scratch)?;
        Ok((install(&mut Table(table), &found), rounds))
    }

    /// As [`Mirror::range_fault`] of the one page at `address`, for a device that has met a fault there. If
    /// the program has said that the device uses the range ([`Hint::AccessedBy`](crate::Hint::AccessedBy)),
    /// the pages around it go along, as they are, up to where 2 MiB begin and end: so a device takes one
    /// fault for all of them, also after they have moved. `install` is given the address of the first page.
    ///
    /// # Errors
    /// [`MirrorError`]; `install` was not called.
    pub fn fault_around<R>(
        &self,
        address: usize,
        need: Need,
        install: impl FnOnce(&mut Table<'_, T>, usize, &[Mapped]) -> R,
    ) -> Result<(R, usize), MirrorError> {
        let page = address - address % PAGE_SIZE;
        let around = self.accessed_around(page)?;
        let mut each = vec![Need::SNAPSHOT; around.len() / PAGE_SIZE];
        each[(page - around.start) / PAGE_SIZE] = need;
        self.range_fault(
            around.start,
            around.len(),
            Need::SNAPSHOT,
            &each,
            |table, found| install(table, around.start, found),
        )
    }

    /// The bytes around a page that the program has said this device uses: that page at least.
    fn accessed_around(&self, page: usize) -> Result<Range<usize>, MirrorError> {
        const HUGE: usize = 2 << 20;
        let pages = self.mirror.pages();
        let whole = pages.start.address()..pages.end().address();
        if !whole.contains(&page) {
            return Err(mirror::MirrorError::NotMirrored.into());
        }
        let mut around = page..page + PAGE_SIZE;
        let Some(DeviceId(device)) = self.device else {
            return Ok(around);
        };
        let start = (page - page % HUGE).max(whole.start);
        let end = (page - page % HUGE).saturating_add(HUGE).min(whole.end);
        let pages = self.space.page_range(start, end - start)?;
        let runs = self.space.core().inside().map_err(RangeError::from)?;
        let runs = runs.hints(pages).map_err(RangeError::from)?;
        let mut at = start;
        for (run, hints) in runs {
            let next = at + run.bytes();
            if (at..next).contains(&page) && hints.accessed_by >> device & 1 != 0 {
                around = at..next;
            }
            at = next;
        }
        Ok(around)
    }

    /// What the pages of a range are to this device, without a fault and without waiting for one.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn snapshot(&self, address: usize, len: usize) -> Result<Vec<Mapped>, MirrorError> {
        let copy = |_: &mut Table<'_, T>, found: &[Mapped]| found.to_vec();
        let done = self.range_fault(address, len, Need::SNAPSHOT, &[], copy);
        Ok(done?.0)
    }

    /// Locks the table, for the device to use what it says. See the [module](self) for what must not be
    /// done meanwhile.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn lock(&self) -> Result<Table<'_, T>, MirrorError> {
        Ok(Table(self.mirror.lock()?))
    }

    /// Makes pages the device's alone: unmapped, until the program touches them, they are pinned, their
    /// range changes or the process forks. Then the table is told ([`Event::EndExclusive`]), and the
    /// page is the program's again. Best effort page by page: pinned pages and pages of devices that the
    /// CPU maps stay what they are. `install` hears of each page whether the device has it: nobody else
    /// sees it while that runs, although somebody may have come to wait for it already, and then
    /// [`Table::with_exclusive`] is refused.
    ///
    /// # Errors
    /// [`MirrorError`]; `install` was not called.
    pub fn make_exclusive<R>(
        &self,
        address: usize,
        len: usize,
        install: impl FnOnce(&mut Table<'_, T>, &[bool]) -> R,
    ) -> Result<R, MirrorError> {
        let pages = self.space.pages(address, len, true)?;
        if !self.space.is_writable(pages)? {
            return Err(MirrorError::NotWritable);
        }
        self.check_stack()?;
        let _signals = Blocked::all();
        let mut scratch = Scratch::default();
        let (table, alone) = self.mirror.take_and_lock(pages, &mut scratch)?;
        Ok(install(&mut Table(table), &alone))
    }

    /// Has the page at `address` for the device alone, and gives its bytes to `with`: nobody else reads or
    /// writes them meanwhile, so whatever it does there is atomic. Takes the page first where the device
    /// does not have it, and leaves it to the device afterwards, until somebody else wants it.
    ///
    /// # Errors
    /// [`MirrorError`]; `with` was not called.
    pub fn exclusively<R>(
        &self,
        address: usize,
        with: impl FnOnce(&mut T, &mut PageData) -> R,
    ) -> Result<R, MirrorError> {
        let _signals = Blocked::all();
        let page = address - address % PAGE_SIZE;
        let start = Instant::now();
        let (mut with, mut done) = (Some(with), None);
        let mut work = |table: &mut Table<'_, T>| {
            // Refused where somebody has just taken the page: once more then.
            let once = |told: &mut T, data: &mut PageData| {
                done = with.take().map(|with| with(told, data));
            };
            table.with_exclusive(page, once).is_ok()
        };
        let mut worked = work(&mut self.lock()?);
        while !worked {
            if start.elapsed() > PATIENCE {
                return Err(MirrorError::NotAlone);
            }
            worked = self.make_exclusive(page, PAGE_SIZE, |table, _| work(table))?;
            if !worked {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(done.expect("it was called"))
    }

    /// Whether the device has the page at `address` alone now.
    pub fn has_alone(&self, address: usize) -> bool {
        self.mirror.has_alone(PageNo::containing(address))
    }

    fn check_stack(&self) -> Result<(), MirrorError> {
        let checked = self.space.check_stack();
        checked.map_err(|_| MirrorError::ManagedStack)
    }
}

impl<T> Table<'_, T> {
    /// Reads bytes that the CPU has mapped, as the table says, the way a device reads memory: while the
    /// program may be writing to them.
    ///
    /// # Errors
    /// [`MirrorError`]: the CPU does not map some of them; what `to` holds then is not used.
    pub fn read(&self, address: usize, to: &mut [u8]) -> Result<(), MirrorError> {
        let page = PageNo::containing(address);
        Ok(self.0.read(page, address % PAGE_SIZE, to)?)
    }

    /// Writes bytes that the CPU has mapped writable, as the table says.
    ///
    /// # Errors
    /// As [`Table::read`]; what is before the page that cannot be written to has been written.
    pub fn write(&mut self, address: usize, from: &[u8]) -> Result<(), MirrorError> {
        let page = PageNo::containing(address);
        Ok(self.0.write(page, address % PAGE_SIZE, from)?)
    }

    /// Gives the bytes of the page at `address`, which the device has alone, to `with`: nobody else reads
    /// or writes them meanwhile, so whatever it does there is atomic.
    ///
    /// # Errors
    /// [`MirrorError`]: the device does not have it alone (any more).
    pub fn with_exclusive<R>(
        &mut self,
        address: usize,
        with: impl FnOnce(&mut T, &mut PageData) -> R,
    ) -> Result<R, MirrorError> {
        let page = PageNo::containing(address);
        let with = |told: &mut Told<T>, data: &mut PageData| with(&mut told.0, data);
        Ok(self.0.with_exclusive(page, with)?)
    }
}

impl<T> Deref for Table<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Table<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
