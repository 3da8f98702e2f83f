//! Pages come to the device and go home; so do chunks of its memory.
//!
//! A migration has phases, each of them a type, so that none is forgotten: pages are collected and unmapped
//! (`migrate_vma`), given places on the device, copied; then it shows which of them go (`pages`), and they
//! are what they have become (`finalize`). What drops out on the way stays where it was.
//!
//! Pages migrate 2 MiB at a time, at the most: that is what a touch may have to wait for. The core gives
//! them the largest blocks that the device has, so that 2 MiB stay in one piece where they can.
//!
//! The page table is written last and as always, by asking the mirror what is so: the program may have
//! touched a page meanwhile, which is home again then.

use crate::access::{batches, pages};
use crate::errno::Errno;
use crate::file::{File, PATIENCE};
use std::ops::Range;
use uhmm::device::PAGE_SIZE;
use uhmm::migrate::{MigrateVma, Select};
use uhmm::mirror::{Mapped, Need, PageTable, Table};
use uhmm::{AddChunkError, AllocError, RemoveError};

impl File<'_> {
    /// Migrates what can migrate of a range, all of which the program may read. Pages on other devices stay
    /// there.
    pub(crate) fn migrate_to_device(&self, range: &Range<usize>) -> Result<(), Errno> {
        for part in self.process.manage(range)? {
            for batch in batches(part) {
                while self.send(&batch)? && self.grow() {}
            }
        }
        Ok(())
    }

    /// Migrates a batch, as far as there is room. `true`: there was too little.
    fn send(&self, batch: &Range<usize>) -> Result<bool, Errno> {
        let space = self.process.space();
        let (mut gone, mut full) = (Vec::new(), false);
        let args = MigrateVma {
            address: batch.start,
            len: batch.len(),
            select: Select::SYSTEM,
            owner: None,
            except: None,
            fault_page: None,
        };
        space.migrate_vma_with(&args, |mut migration| {
            // Also what the program may only read, which its memory cannot be mapped for.
            migration.allow_unmapped();
            let wanted = migration.selected().count();
            full |= match migration.allocate_free(self.unit.id.0) {
                Ok(given) => given < wanted,
                Err(error) => error == AllocError::Full,
            };
            let migration = migration.copy().pages();
            gone.extend(migration.selected().map(|page| page.page.address()));
            migration.finalize()
        })?;
        self.map_local(batch, &gone)?;
        Ok(full)
    }

    /// Writes pages that have come to this device to its table, if they are still there.
    fn map_local(&self, batch: &Range<usize>, come: &[usize]) -> Result<(), Errno> {
        let (start, len) = (batch.start, batch.len());
        let install = |table: &mut Table<'_, PageTable>, found: &[Mapped]| {
            for &at in come {
                let found = found[(at - start) / PAGE_SIZE];
                if self.is_local(found) {
                    table.set(at, &[found]);
                }
            }
        };
        self.mirror
            .range_fault(start, len, Need::SNAPSHOT, &[], install)?;
        Ok(())
    }

    /// Has the device's memory grow. Chunks that were never there come by themselves, but what was removed
    /// comes again only when its driver says so. `false`: the device has all its chunks.
    fn grow(&self) -> bool {
        let (unit, space) = (&self.unit, self.process.space());
        let added = unit.device.missing_chunk();
        let added = added.map(|chunk| space.add_chunk(unit.id, chunk));
        // Somebody else may have been faster.
        matches!(added, Some(Ok(()) | Err(AddChunkError::AlreadyThere)))
    }

    /// Migrates the device's pages of a range home; returns how many have come.
    pub(crate) fn migrate_to_system(&self, range: Range<usize>) -> Result<usize, Errno> {
        self.check_access(&range)?;
        let mut home = 0;
        for batch in batches(range) {
            let found = self.mirror.snapshot(batch.start, batch.len())?;
            let found: Vec<(usize, Mapped)> = pages(&batch).zip(found).collect();
            for run in found.chunk_by(|(_, a), (_, b)| self.is_local(*a) == self.is_local(*b)) {
                let (address, first) = run[0];
                if self.is_local(first) {
                    home += self.bring(address, run.len() * PAGE_SIZE)?;
                }
            }
        }
        Ok(home)
    }

    /// Migrates pages that are on this device home; returns how many have come.
    fn bring(&self, address: usize, len: usize) -> Result<usize, Errno> {
        let args = MigrateVma {
            address,
            len,
            select: Select::DEVICE_PRIVATE | Select::DEVICE_COHERENT,
            owner: Some(self.unit.device.owner()),
            except: None,
            fault_page: None,
        };
        let done = self
            .process
            .space()
            .migrate_vma_with(&args, |mut migration| {
                migration.to_system();
                migration.copy().pages().finalize()
            })?;
        Ok(done.migrated)
    }

    /// The program must have access to all of the range.
    fn check_access(&self, range: &Range<usize>) -> Result<(), Errno> {
        for batch in batches(range.clone()) {
            let found = self.mirror.snapshot(batch.start, batch.len())?;
            if found.contains(&Mapped::Error) {
                return Err(Errno::Inval);
            }
        }
        Ok(())
    }

    /// Removes all of the device's memory. Its pages come home first.
    pub(crate) fn release(&self) -> Result<(), Errno> {
        for chunk in 0..self.unit.device.chunks() {
            let space = self.process.space();
            match space.remove_chunk(self.unit.id, chunk, PATIENCE) {
                // It was removed before, or has never been needed.
                Ok(()) | Err(RemoveError::AlreadyRemoved | RemoveError::NoSuchDevice) => {}
                Err(_) => return Err(Errno::Busy),
            }
        }
        Ok(())
    }
}
