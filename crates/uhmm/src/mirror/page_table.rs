//! A page table in software, and a device that reads and writes by it.

use super::told::pieces;
use super::{DeviceTable, Invalidation, Mapped, Mirror, MirrorError, Need, Table};
use crate::device_memory::DeviceAddr;
use std::fmt;
use std::ops::Range;
use uhmm_core::addr::{PAGE_SHIFT, PAGE_SIZE};

/// How a device reaches pages of its own private memory. Runs with the table locked: see the
/// [module](super) for what it must not do.
pub trait OwnMemory: Send {
    /// Reads bytes of a page, from `offset` on.
    fn read(&mut self, page: DeviceAddr, offset: usize, to: &mut [u8]);

    /// Writes bytes of a page, from `offset` on.
    fn write(&mut self, page: DeviceAddr, offset: usize, from: &[u8]);
}

/// What a device may map, page by page, over one range; and its own memory, if it has some.
pub struct PageTable {
    address: usize,
    entries: Box<[Mapped]>,
    own: Option<Box<dyn OwnMemory>>,
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
        Self {
            address,
            entries: vec![Mapped::Nothing; len / PAGE_SIZE].into(),
            own: None,
        }
    }

    /// The same for a device that has `own` memory, which the space must know as that device's.
    ///
    /// # Panics
    /// As [`PageTable::new`].
    pub fn with_memory(address: usize, len: usize, own: Box<dyn OwnMemory>) -> Self {
        Self {
            own: Some(own),
            ..Self::new(address, len)
        }
    }

    fn entry(&mut self, address: usize) -> Option<&mut Mapped> {
        let offset = address.checked_sub(self.address)?;
        self.entries.get_mut(offset >> PAGE_SHIFT)
    }

    /// What the table says of the page at `address`.
    pub fn at(&self, address: usize) -> Mapped {
        let offset = address.checked_sub(self.address);
        let entry = offset.and_then(|offset| self.entries.get(offset >> PAGE_SHIFT));
        entry.copied().unwrap_or(Mapped::Nothing)
    }

    /// Writes what was found for the pages from `address` on.
    pub fn set(&mut self, address: usize, found: &[Mapped]) {
        for (i, &mapped) in found.iter().enumerate() {
            if let Some(entry) = self.entry(address + i * PAGE_SIZE) {
                *entry = mapped;
            }
        }
    }
}

impl fmt::Debug for PageTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: {:?}", self.address, self.entries)
    }
}

impl DeviceTable for PageTable {
    fn invalidate(&mut self, what: &Invalidation) {
        for page in what.pages() {
            if let Some(entry) = self.entry(page) {
                *entry = Mapped::Nothing;
            }
        }
    }
}

/// A device that reads and writes through a table in software, faulting as it goes.
impl Mirror<'_, PageTable> {
    /// Reads bytes the way a device does: from where its table says they are. Returns in how many rounds
    /// pages had to be faulted in.
    ///
    /// # Errors
    /// [`MirrorError`]; what `to` holds then is not used.
    pub fn read(&self, address: usize, to: &mut [u8]) -> Result<usize, MirrorError> {
        self.each_page(address, to.len(), Need::READ, |table, at, part, mapped| {
            let (read, to) = (table.read(at, &mut to[part.clone()]), &mut to[part]);
            match (read, mapped, &mut table.own) {
                (Err(_), Mapped::Device { at: page, .. }, Some(own)) => {
                    own.read(page, at % PAGE_SIZE, to);
                    Ok(())
                }
                (read, ..) => read,
            }
        })
    }

    /// Writes bytes the way a device does. Returns in how many rounds pages had to be faulted in.
    ///
    /// # Errors
    /// [`MirrorError`]; pages before the one that cannot be had have been written.
    pub fn write(&self, address: usize, from: &[u8]) -> Result<usize, MirrorError> {
        let len = from.len();
        self.each_page(address, len, Need::WRITE, |table, at, part, mapped| {
            let (written, from) = (table.write(at, &from[part.clone()]), &from[part]);
            match (written, mapped, &mut table.own) {
                (Err(_), Mapped::Device { at: page, .. }, Some(own)) => {
                    own.write(page, at % PAGE_SIZE, from);
                    Ok(())
                }
                (written, ..) => written,
            }
        })
    }

    /// Uses the table's entry for each page of a range of bytes, which is filled first where it does
    /// not do for `need`: address, place in the range, and what the entry says.
    fn each_page(
        &self,
        address: usize,
        len: usize,
        need: Need,
        mut with: impl FnMut(
            &mut Table<'_, PageTable>,
            usize,
            Range<usize>,
            Mapped,
        ) -> Result<(), MirrorError>,
    ) -> Result<usize, MirrorError> {
        let does = |mapped| match mapped {
            Mapped::Ram { write, .. } | Mapped::Device { write, .. } => write || !need.write,
            Mapped::Nothing | Mapped::Error => false,
        };
        let mut rounds = 0;
        for (at, part) in pieces(address, len) {
            let mut table = self.lock()?;
            let mapped = table.at(at);
            if does(mapped) {
                with(&mut table, at, part, mapped)?;
                continue;
            }
            drop(table);
            let (done, more) = self.fault_around(at, need, |table, first, found| {
                table.set(first, found);
                let mapped = found[(at - first) >> PAGE_SHIFT];
                with(table, at, part, mapped)
            })?;
            done?;
            rounds += more;
        }
        Ok(rounds)
    }
}
