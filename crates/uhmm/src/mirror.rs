//! Mirrors, with addresses: a device's own page table over a range, kept right while programs run.
//!
//! A device that reads and writes memory of the program by the program's own addresses has a
//! [`DeviceTable`]. The space tells it before pages change ([`DeviceTable::invalidate`]), and
//! [`Mirror::range_fault`] does the loop that fills it: no entry is written that is out of date already.
//! [`PageTable`] is such a table in software, for devices that have none of their own, and shows how one
//! is written.
//!
//! [`Mirror::make_exclusive`] takes pages from the program for a moment, for a device whose bus has no
//! atomic operations.

use crate::build::Space;
use crate::device_memory::DeviceId;
use crate::range::RangeError;
use std::fmt;
use uhmm_core::addr::{PAGE_SIZE, PageData, PageNo, PageRange};
use uhmm_core::fault::Scratch;
use uhmm_core::mirror;
use uhmm_linux::mmu::LinuxMmu;

pub use uhmm_core::mirror::{
    DeviceTable, Event, Invalidation, Mapped, Need, Notifier, NotifierError, Permission, Sequence,
};

/// The table of a mirror, locked, on this machine.
pub type Table<'a, T> = mirror::Table<'a, LinuxMmu, T>;
/// A notifier in its space's list, on this machine.
pub type IntervalNotifier<'a> = mirror::IntervalNotifier<'a, LinuxMmu>;

/// Why a device does not get at pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorError {
    /// Something is wrong with the range.
    Range(RangeError),
    /// The program may not write to some of it.
    NotWritable,
    /// The space has no such device.
    NoSuchDevice,
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
/// `invalidate` takes.
pub struct Mirror<'a, T> {
    space: &'a Space,
    mirror: mirror::Mirror<'a, LinuxMmu, T>,
}

impl Space {
    /// Makes `table` the page table of a device over a range, mapped or not: what is mapped there later
    /// is mirrored too. Pages that are in private memory of `device` (or of another one with the same
    /// owner) are mapped for it where they are, instead of being brought to RAM.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn mirror<T: DeviceTable + 'static>(
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
            mirror: self.core().mirror(pages, owner, table)?,
        })
    }

    /// Has `notifier` told before anything happens to the pages of a range, mapped or not: for a device
    /// that keeps a page table with a lock of its own. [`Space::mirror`] is the safer way.
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
        Ok(self.core().add_notifier(pages, notifier)?)
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
        let mut refused = None;
        let look = |pages| {
            self.space.permissions(pages).map_err(|error| {
                refused = Some(error);
                mirror::MirrorError::Forking
            })
        };
        let done = self
            .mirror
            .range_fault(&request, look, &mut Scratch::default(), install);
        match refused {
            Some(error) => Err(error.into()),
            None => Ok(done?),
        }
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

    /// Locks the table, for the device to use what it says. See [`Table`] for what may be done meanwhile.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub fn lock(&self) -> Result<Table<'_, T>, MirrorError> {
        Ok(self.mirror.lock()?)
    }

    /// Makes pages the device's alone, until the program touches them: see
    /// [`uhmm_core::mirror::Mirror::make_exclusive`]. `install` hears of each page whether the device has
    /// it.
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
        let permissions = self.space.permissions(pages)?;
        if permissions.iter().any(|(_, allowed)| !allowed.write) {
            return Err(MirrorError::NotWritable);
        }
        self.check_stack()?;
        let mut scratch = Scratch::default();
        Ok(self.mirror.make_exclusive(pages, &mut scratch, install)?)
    }

    /// Whether the device has the page at `address` alone now.
    pub fn has_alone(&self, address: usize) -> bool {
        let page = self
            .space
            .page_range(address - address % PAGE_SIZE, PAGE_SIZE);
        page.is_ok_and(|page| self.mirror.has_alone(page.start))
    }

    /// Gives the bytes of the page at `address`, which the device has alone, to `with`: nobody else reads
    /// or writes them meanwhile, so whatever it does there is atomic.
    ///
    /// # Errors
    /// [`MirrorError`]: the device does not have it alone (any more).
    pub fn with_exclusive<R>(
        &self,
        address: usize,
        with: impl FnOnce(&mut T, &mut PageData) -> R,
    ) -> Result<R, MirrorError> {
        let page = self
            .space
            .page_range(address - address % PAGE_SIZE, PAGE_SIZE)?;
        Ok(self.mirror.with_exclusive(page.start, with)?)
    }

    fn check_stack(&self) -> Result<(), MirrorError> {
        let checked = self.space.check_stack();
        checked.map_err(|_| MirrorError::ManagedStack)
    }
}

/// A page table in software: what a device may map, page by page, over one range.
#[derive(Debug)]
pub struct PageTable {
    pages: PageRange,
    entries: Box<[Mapped]>,
}

impl PageTable {
    /// An empty table for `len` bytes at `address`, which begin and end on a page.
    ///
    /// # Panics
    /// They do not.
    pub fn new(address: usize, len: usize) -> Self {
        assert!(
            address.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE),
            "a page table covers whole pages"
        );
        let pages = PageRange::new(PageNo::containing(address), len / PAGE_SIZE);
        Self {
            pages,
            entries: vec![Mapped::Nothing; pages.len].into(),
        }
    }

    fn index(&self, page: PageNo) -> Option<usize> {
        let inside = self.pages.contains(page);
        inside.then(|| (page.0 - self.pages.start.0) as usize)
    }

    /// What the table says of the page at `address`.
    pub fn at(&self, address: usize) -> Mapped {
        let index = self.index(PageNo::containing(address));
        index.map_or(Mapped::Nothing, |index| self.entries[index])
    }

    /// Writes what was found for the pages from `address` on.
    pub fn set(&mut self, address: usize, found: &[Mapped]) {
        let first = PageNo::containing(address);
        for (i, &mapped) in found.iter().enumerate() {
            if let Some(index) = self.index(first.plus(i)) {
                self.entries[index] = mapped;
            }
        }
    }
}

impl DeviceTable for PageTable {
    fn invalidate(&mut self, what: &Invalidation) {
        for page in what.pages.iter() {
            if let Some(index) = self.index(page) {
                self.entries[index] = Mapped::Nothing;
            }
        }
    }
}

/// A device that reads and writes through a table in software, faulting as it goes. `own` reaches a page
/// of its private memory.
impl Mirror<'_, PageTable> {
    /// Reads bytes the way a device does: from where its table says they are. `own` copies from the
    /// device's own memory: (page, offset, bytes). Returns in how many rounds pages had to be faulted in.
    ///
    /// # Errors
    /// [`MirrorError`]; what `to` holds then is not used.
    pub fn read(
        &self,
        address: usize,
        to: &mut [u8],
        mut own: impl FnMut(uhmm_core::addr::DeviceAddr, usize, &mut [u8]),
    ) -> Result<usize, MirrorError> {
        let mut rounds = 0;
        for (at, part) in pieces(address, to.len()) {
            let to = &mut to[part];
            rounds += self.with_page(at, Need::READ, |table, mapped| {
                let (page, offset) = (PageNo::containing(at), at % PAGE_SIZE);
                match mapped {
                    Mapped::Device { at, .. } if table.read(page, offset, to).is_err() => {
                        own(at, offset, to);
                        Ok(())
                    }
                    Mapped::Device { .. } => Ok(()),
                    _ => table.read(page, offset, to),
                }
            })?;
        }
        Ok(rounds)
    }

    /// Writes bytes the way a device does. `own` copies to the device's own memory.
    ///
    /// # Errors
    /// [`MirrorError`]; pages before the one that cannot be had have been written.
    pub fn write(
        &self,
        address: usize,
        from: &[u8],
        mut own: impl FnMut(uhmm_core::addr::DeviceAddr, usize, &[u8]),
    ) -> Result<usize, MirrorError> {
        let mut rounds = 0;
        for (at, part) in pieces(address, from.len()) {
            let from = &from[part];
            rounds += self.with_page(at, Need::WRITE, |table, mapped| {
                let (page, offset) = (PageNo::containing(at), at % PAGE_SIZE);
                match mapped {
                    Mapped::Device { at, .. } if table.write(page, offset, from).is_err() => {
                        own(at, offset, from);
                        Ok(())
                    }
                    Mapped::Device { .. } => Ok(()),
                    _ => table.write(page, offset, from),
                }
            })?;
        }
        Ok(rounds)
    }

    /// Uses the table's entry for one page, which is filled first where it does not do for `need`.
    fn with_page(
        &self,
        address: usize,
        need: Need,
        mut with: impl FnMut(&mut Table<'_, PageTable>, Mapped) -> Result<(), mirror::MirrorError>,
    ) -> Result<usize, MirrorError> {
        let does = |mapped| match mapped {
            Mapped::Ram { write } | Mapped::Device { write, .. } => write || !need.write,
            Mapped::Nothing | Mapped::Error => false,
        };
        let mut table = self.lock()?;
        let mapped = table.at(address);
        if does(mapped) {
            with(&mut table, mapped)?;
            return Ok(0);
        }
        drop(table);
        let start = address - address % PAGE_SIZE;
        let fill = |table: &mut Table<'_, PageTable>, found: &[Mapped]| {
            table.set(start, found);
            with(table, found[0])
        };
        let (done, rounds) = self.range_fault(start, PAGE_SIZE, need, &[], fill)?;
        done?;
        Ok(rounds)
    }
}

/// The parts of a range of bytes that lie in one page each: address, and place in the range.
fn pieces(address: usize, len: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address + done;
        let part = (PAGE_SIZE - at % PAGE_SIZE).min(len - done);
        let range = done..done + part;
        done += part;
        (part > 0).then_some((at, range))
    })
}
