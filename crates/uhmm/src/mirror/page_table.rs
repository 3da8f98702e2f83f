//! A page table in software, and a device that reads and writes by it.

use super::{DeviceTable, Invalidation, Mapped, Mirror, MirrorError, Need, Table};
use crate::device_memory::DeviceAddr;
use crate::range::RangeError;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use uhmm_core::addr::{PAGE_SHIFT, PAGE_SIZE, PageNo};
use uhmm_core::mirror;

/// How a device reaches pages of its own private memory. Runs with the table locked: see the
/// [module](super) for what it must not do.
pub trait OwnMemory: Send {
    /// Reads bytes of a page, from `offset` on.
    fn read(&mut self, page: DeviceAddr, offset: usize, to: &mut [u8]);

    /// Writes bytes of a page, from `offset` on.
    fn write(&mut self, page: DeviceAddr, offset: usize, from: &[u8]);
}

/// Bytes that a part of the table is about.
const PART: usize = 2 << 20;

/// Pages that are used with the table locked once, and that are faulted in together.
const AT_ONCE: usize = 64 * PAGE_SIZE;

/// Parts that are empty, and not worth a look.
const FEW: usize = 64;

/// What a device may map in one part of its range.
struct Part {
    entries: [Mapped; PART >> PAGE_SHIFT],
    /// Entries that say something.
    used: usize,
}

impl Part {
    fn new() -> Box<Self> {
        Box::new(Self {
            entries: [Mapped::Nothing; _],
            used: 0,
        })
    }

    fn set(&mut self, page: usize, mapped: Mapped) {
        let was = std::mem::replace(&mut self.entries[page], mapped);
        self.used += usize::from(mapped != Mapped::Nothing);
        self.used -= usize::from(was != Mapped::Nothing);
    }
}

/// What a device may map, page by page, over one range, which may be all of the address space; and its own
/// memory, if it has some.
///
/// It has parts only of what it maps. They are made by [`PageTable::set`], on the device's own thread, and
/// freed there too, some time after they have become empty: whoever tells the table of a change allocates
/// nothing and frees nothing.
pub struct PageTable {
    range: Range<usize>,
    /// By the address of the first byte, on 2 MiB.
    parts: BTreeMap<usize, Box<Part>>,
    /// How many of them are empty.
    empty: usize,
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
            range: address..address + len,
            parts: BTreeMap::new(),
            empty: 0,
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

    /// What the table says of the page at `address`.
    pub fn at(&self, address: usize) -> Mapped {
        let (start, page) = place(address);
        let part = self.parts.get(&start);
        part.map_or(Mapped::Nothing, |part| part.entries[page])
    }

    /// Writes what was found for the pages from `address` on. What is outside of the table's range is passed
    /// over.
    pub fn set(&mut self, address: usize, found: &[Mapped]) {
        if self.empty > FEW && self.empty > self.parts.len() / 2 {
            self.parts.retain(|_, part| part.used > 0);
            self.empty = 0;
        }
        for (i, &mapped) in found.iter().enumerate() {
            let at = address + i * PAGE_SIZE;
            if !self.range.contains(&at) {
                continue;
            }
            let (start, page) = place(at);
            if mapped != Mapped::Nothing {
                let empty = &mut self.empty;
                self.parts.entry(start).or_insert_with(|| {
                    *empty += 1;
                    Part::new()
                });
            }
            if let Some(part) = self.parts.get_mut(&start) {
                self.empty -= usize::from(part.used == 0);
                part.set(page, mapped);
                self.empty += usize::from(part.used == 0);
            }
        }
    }

    /// How many bytes from `at` on, up to `end`, can be used for `need` as the table has them, in one piece of
    /// memory; and what it says of the first.
    fn usable(&self, at: usize, end: usize, need: Need) -> Option<(usize, Mapped)> {
        let does = |mapped| match mapped {
            Mapped::Ram { write, .. } | Mapped::Device { write, .. } => write || !need.write,
            Mapped::Nothing | Mapped::Error => false,
        };
        let first = Some(self.at(at)).filter(|mapped| does(*mapped))?;
        let end = end.min(at.saturating_add(AT_ONCE));
        let mut next = at - at % PAGE_SIZE + PAGE_SIZE;
        if let Mapped::Ram { .. } = first {
            let is_ram = |mapped| matches!(mapped, Mapped::Ram { .. }) && does(mapped);
            while next < end && is_ram(self.at(next)) {
                next += PAGE_SIZE;
            }
        }
        Some((next.min(end) - at, first))
    }
}

/// Where the entry of the page at `address` is: the part's address, and which of its entries.
fn place(address: usize) -> (usize, usize) {
    let within = address % PART;
    (address - within, within >> PAGE_SHIFT)
}

impl fmt::Debug for PageTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.parts.iter().flat_map(|(start, part)| {
            let all = part.entries.iter().enumerate();
            let said = all.filter(|(_, mapped)| **mapped != Mapped::Nothing);
            said.map(move |(page, mapped)| (start + page * PAGE_SIZE, mapped))
        });
        f.debug_map().entries(entries).finish()
    }
}

impl DeviceTable for PageTable {
    /// In the time of what the table has there, however large the range is.
    fn invalidate(&mut self, what: &Invalidation) {
        let (start, end) = (what.address, what.address + what.len);
        let parts = self.parts.range_mut(place(start).0..end);
        for (&first, part) in parts.filter(|(_, part)| part.used > 0) {
            let from = start.saturating_sub(first) >> PAGE_SHIFT;
            let to = PART.min(end - first) >> PAGE_SHIFT;
            (from..to).for_each(|page| part.set(page, Mapped::Nothing));
            self.empty += usize::from(part.used == 0);
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
        let len = to.len();
        self.each_piece(address, len, Need::READ, &mut |table, at, part, mapped| {
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
        self.each_piece(address, len, Need::WRITE, &mut |table, at, part, mapped| {
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

    /// Uses the table's entries for each piece of a range of bytes, which are filled first where they do
    /// not do for `need`.
    fn each_piece(
        &self,
        address: usize,
        len: usize,
        need: Need,
        with: &mut Piece<'_>,
    ) -> Result<usize, MirrorError> {
        let end = address.checked_add(len).ok_or(RangeError::Overflow)?;
        let (mut at, mut rounds) = (address, 0);
        // What the table has from `at` on; nothing is a piece of no bytes.
        let mut step = |table: &mut Table<'_, PageTable>, at: usize| {
            let Some((len, mapped)) = table.usable(at, end, need) else {
                return Ok(0);
            };
            with(table, at, at - address..at - address + len, mapped).map(|()| len)
        };
        while at < end {
            let mut done = step(&mut self.lock()?, at)?;
            if done == 0 {
                let (used, more) = self.fault_rest(at, end, need, &mut |table, first, found| {
                    table.set(first, found);
                    step(table, at)
                })?;
                done = used?;
                rounds += more;
                if done == 0 {
                    // It is the mirror's, and not the table's.
                    let page = PageNo::containing(at);
                    return Err(mirror::MirrorError::NotInTable(page).into());
                }
            }
            at += done;
        }
        Ok(rounds)
    }

    /// Faults in the page at `at`, and those after it up to `end`, or those around it that the program has
    /// said the device uses. Where there is something wrong with another one, only that one.
    fn fault_rest<R>(
        &self,
        at: usize,
        end: usize,
        need: Need,
        install: &mut Install<'_, R>,
    ) -> Result<(R, usize), MirrorError> {
        let page = at - at % PAGE_SIZE;
        let rest = (end - page).next_multiple_of(PAGE_SIZE).min(AT_ONCE);
        if rest > PAGE_SIZE && self.accessed_around(page)?.len() == PAGE_SIZE {
            let all = self.range_fault(page, rest, need, &[], |table, found| {
                install(table, page, found)
            });
            if all.is_ok() {
                return all;
            }
        }
        self.fault_around(at, need, install)
    }
}

/// What is done with what was found for pages from an address on.
type Install<'a, R> = dyn FnMut(&mut Table<'_, PageTable>, usize, &[Mapped]) -> R + 'a;

/// What is done with a piece of memory that the table has: its address, its place in the range, and what the
/// table says of its first page.
type Piece<'a> = dyn FnMut(&mut Table<'_, PageTable>, usize, Range<usize>, Mapped) -> Result<(), MirrorError>
    + 'a;

#[cfg(test)]
mod tests {
    use super::*;
    use uhmm_core::mirror::Event;

    const RAM: Mapped = Mapped::ram(true);
    const ALL: usize = 1 << 47;

    fn forget(table: &mut PageTable, range: Range<usize>) {
        table.invalidate(&Invalidation {
            address: range.start,
            len: range.len(),
            event: Event::Unmap,
        });
    }

    #[test]
    fn entries_lie_anywhere_and_are_forgotten_to_the_page() {
        let mut table = PageTable::new(0, ALL);
        let places = [0, PART - PAGE_SIZE, 1 << 46, ALL - 2 * PAGE_SIZE];
        for at in places {
            assert_eq!(table.at(at), Mapped::Nothing);
            table.set(at, &[RAM, Mapped::Error]);
            assert_eq!(table.at(at), RAM);
            assert_eq!(table.at(at + PAGE_SIZE), Mapped::Error);
        }
        forget(&mut table, PART - PAGE_SIZE..PART);
        assert_eq!(table.at(PART - PAGE_SIZE), Mapped::Nothing);
        assert_eq!(table.at(PART), Mapped::Error);
        forget(&mut table, PART..(1 << 46) + PAGE_SIZE);
        assert_eq!(table.at(PART), Mapped::Nothing);
        assert_eq!(table.at(1 << 46), Mapped::Nothing);
        assert_eq!(table.at((1 << 46) + PAGE_SIZE), Mapped::Error);
        assert_eq!([table.at(0), table.at(ALL - 2 * PAGE_SIZE)], [RAM; 2]);
        forget(&mut table, 0..ALL);
        assert!(places.iter().all(|at| table.at(*at) == Mapped::Nothing));
        assert_eq!(table.empty, table.parts.len());
    }

    #[test]
    fn what_is_outside_of_the_range_is_passed_over() {
        let mut table = PageTable::new(PART, 2 * PAGE_SIZE);
        table.set(PART - PAGE_SIZE, &[RAM; 4]);
        let said = [0, 1, 2, 3].map(|page| table.at(PART - PAGE_SIZE + page * PAGE_SIZE));
        assert_eq!(said, [Mapped::Nothing, RAM, RAM, Mapped::Nothing]);
        let shown = format!("{table:?}");
        assert_eq!(shown.matches("Ram").count(), 2, "{shown}");
    }

    /// Parts that are empty are freed by the next that is written, once they are many.
    #[test]
    fn a_table_that_is_forgotten_over_and_over_does_not_grow() {
        let mut table = PageTable::new(0, ALL);
        for round in 0..2000 {
            table.set(round * PART, &[RAM]);
            if round % 10 != 0 {
                forget(&mut table, 0..ALL);
            }
            assert!(table.parts.len() <= 2 * FEW);
            let empty = table.parts.values().filter(|part| part.used == 0).count();
            assert_eq!(table.empty, empty);
        }
    }

    #[test]
    fn pages_in_ram_are_used_in_one_piece() {
        let mut table = PageTable::new(0, ALL);
        let at = PART - 2 * PAGE_SIZE;
        table.set(at, &[RAM, RAM, RAM, Mapped::ram(false), RAM]);
        let usable = |from, end, need| table.usable(from, end, need).map(|(len, _)| len);
        assert_eq!(
            usable(at + 5, at + 50_000, Need::WRITE),
            Some(3 * PAGE_SIZE - 5)
        );
        assert_eq!(usable(at + 5, at + 9000, Need::WRITE), Some(8995));
        assert_eq!(usable(at, at + 50_000, Need::READ), Some(5 * PAGE_SIZE));
        assert_eq!(usable(at + 3 * PAGE_SIZE, ALL, Need::WRITE), None);
        assert_eq!(usable(0, ALL, Need::READ), None);
        table.set(0, &[RAM; 100]);
        assert_eq!(table.usable(0, ALL, Need::READ), Some((AT_ONCE, RAM)));
    }
}
