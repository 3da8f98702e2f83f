//! The device reads and writes memory, through its page table.
//!
//! The table says of each page where the device reaches it: in RAM or in memory of a device that the CPU
//! maps, where the device reads what the CPU reads; or in the device's own memory. What the table does not
//! say is faulted in: [`range_fault`] brings pages to where the device reaches them, and calls back with the
//! table locked, when what it has found is so and stays so. There the table is written, and the pages are
//! used at once: nobody can take them away before, so one round always does.
//!
//! [`range_fault`]: uhmm::mirror::Mirror::range_fault

use crate::errno::Errno;
use crate::file::File;
use std::ops::Range;
use uhmm::device::{DevicePage, PAGE_SIZE, PageData};
use uhmm::mirror::{Mapped, Need, PageTable, Table};

/// The most bytes that the device works on with its table locked, or that migrate together: 2 MiB.
const BATCH: usize = 512 * PAGE_SIZE;

/// The parts of a range that are worked on at a time: they end where 2 MiB do.
pub(crate) fn batches(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let batch = at..(at - at % BATCH + BATCH).min(range.end);
        at = batch.end;
        (!batch.is_empty()).then_some(batch)
    })
}

/// The address of each page of a range.
pub(crate) fn pages(range: &Range<usize>) -> impl Iterator<Item = usize> + use<> {
    range.clone().step_by(PAGE_SIZE)
}

/// An empty buffer for `len` bytes. A command may name any length: one that there is no memory for is an
/// error.
pub(crate) fn buffer(len: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).map_err(|_| Errno::NoMem)?;
    Ok(buffer)
}

/// How the device reaches a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As the CPU does.
    Cpu,
    /// In its own memory.
    Own(DevicePage),
    /// Not by what is mapped.
    None,
}

/// What is done with pages that the device reaches in one way: their addresses, and which way.
type Use<'a> = dyn FnMut(&mut Table<'_, PageTable>, Range<usize>, Way) -> Result<(), Errno> + 'a;

impl File<'_> {
    /// Reads a range; returns the bytes, and in how many rounds pages were faulted in.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<(Vec<u8>, u64), Errno> {
        let mut bytes = buffer(range.len())?;
        let faults = self.access(range, Need::READ, &mut |table, part, way| {
            self.read_part(table, part, way, &mut bytes)
        })?;
        Ok((bytes, faults))
    }

    /// Reads a range of which the table has everything.
    pub(crate) fn read_mapped(&self, range: Range<usize>) -> Result<Vec<u8>, Errno> {
        let mut bytes = buffer(range.len())?;
        let mut at = range.start;
        let all = self.access_mapped(&mut at, range.end, Need::READ, &mut |table, part, way| {
            self.read_part(table, part, way, &mut bytes)
        })?;
        all.then_some(bytes).ok_or(Errno::NoEnt)
    }

    /// Writes a range; returns in how many rounds pages were faulted in.
    pub(crate) fn write(&self, range: Range<usize>, from: &[u8]) -> Result<u64, Errno> {
        let start = range.start;
        self.access(range, Need::WRITE, &mut |table, part, way| {
            let from = &from[part.start - start..part.end - start];
            match way {
                Way::Cpu => Ok(table.write(part.start, from)?),
                Way::Own(page) => self.unit.device.write(page, from).ok_or(Errno::NoEnt),
                Way::None => Err(Errno::NoEnt),
            }
        })
    }

    /// Adds the bytes of pages to `to`: all of them, or none.
    fn read_part(
        &self,
        table: &mut Table<'_, PageTable>,
        part: Range<usize>,
        way: Way,
        to: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let before = to.len();
        to.resize(before + part.len(), 0);
        let bytes = &mut to[before..];
        let read = match way {
            Way::Cpu => table.read(part.start, bytes).map_err(Errno::from),
            Way::Own(page) => self.unit.device.read(page, bytes).ok_or(Errno::NoEnt),
            // The device may have the page alone.
            Way::None => {
                let copy = |_: &mut _, page: &mut PageData| bytes.copy_from_slice(&page.0);
                table.with_exclusive(part.start, copy).map_err(Errno::from)
            }
        };
        if read.is_err() {
            to.truncate(before);
        }
        read
    }

    /// Uses a range, in order: by the table as far as that goes, and by faulting in the rest from the first
    /// page on that it does not have. Returns in how many rounds that was.
    fn access(&self, range: Range<usize>, need: Need, each: &mut Use<'_>) -> Result<u64, Errno> {
        let mut at = range.start;
        if self.access_mapped(&mut at, range.end, need, each)? {
            return Ok(0);
        }
        for batch in batches(at..range.end) {
            let (start, len) = (batch.start, batch.len());
            let install = |table: &mut Table<'_, PageTable>, found: &[Mapped]| {
                table.set(start, found);
                self.each_part(table, &mut at, found, need, each)
            };
            let (used, _) = self.mirror.range_fault(start, len, need, &[], install)?;
            used?;
        }
        Ok(1)
    }

    /// Uses a range from `at` on by what the table says. `false`: it does not have the page at `at`.
    fn access_mapped(
        &self,
        at: &mut usize,
        end: usize,
        need: Need,
        each: &mut Use<'_>,
    ) -> Result<bool, Errno> {
        for batch in batches(*at..end) {
            let mut table = self.mirror.lock()?;
            let mapped: Vec<Mapped> = pages(&batch).map(|at| table.at(at)).collect();
            // Whatever is in the way is found out by a fault.
            if self.each_part(&mut table, at, &mapped, need, each).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Uses pages from `at` on, of which this is known, and has `at` follow.
    fn each_part(
        &self,
        table: &mut Table<'_, PageTable>,
        at: &mut usize,
        mapped: &[Mapped],
        need: Need,
        each: &mut Use<'_>,
    ) -> Result<(), Errno> {
        let way = |mapped: &Mapped| self.way(*mapped, need);
        for part in mapped.chunk_by(|a, b| way(a) == Way::Cpu && way(b) == Way::Cpu) {
            let end = *at + part.len() * PAGE_SIZE;
            each(table, *at..end, way(&part[0]))?;
            *at = end;
        }
        Ok(())
    }

    fn way(&self, mapped: Mapped, need: Need) -> Way {
        match mapped {
            Mapped::Nothing | Mapped::Error => Way::None,
            Mapped::Ram { write, .. } | Mapped::Device { write, .. } if need.write && !write => {
                Way::None
            }
            Mapped::Device { at, .. } if self.is_local(mapped) && self.unit.device.is_private() => {
                Way::Own(at.page)
            }
            Mapped::Ram { .. } | Mapped::Device { .. } => Way::Cpu,
        }
    }

    /// Whether a page is in this device's memory.
    pub(crate) fn is_local(&self, mapped: Mapped) -> bool {
        matches!(mapped, Mapped::Device { at, .. } if at.device == self.unit.id.0)
    }

    /// Makes all pages of a range the device's alone.
    pub(crate) fn make_exclusive(&self, range: &Range<usize>) -> Result<(), Errno> {
        let mut alone = 0;
        let parts = self.process.manage(range).map_err(|_| Errno::Busy)?;
        for part in parts {
            for batch in batches(part) {
                let count =
                    |_: &mut Table<'_, _>, alone: &[bool]| alone.iter().filter(|is| **is).count();
                let made = self.mirror.make_exclusive(batch.start, batch.len(), count);
                // What is not writable, say, is only one more reason not to have all of it.
                alone += made.unwrap_or(0);
            }
        }
        let all = alone * PAGE_SIZE == range.len();
        all.then_some(()).ok_or(Errno::Busy)
    }
}
