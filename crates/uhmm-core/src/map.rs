//! Device pages that do not migrate, mapped where a program wants them: generic memory, a file's
//! pages, a peer's window. They leave the program by being unmapped, and only so.

use crate::addr::{DeviceAddr, Home, PageData, PageNo, PageRange};
use crate::claims::Single;
use crate::entry::State;
use crate::gate::{Refused, takes_refusals};
use crate::hold::DevicePages;
use crate::mmu::Mmu;
use crate::space::Space;
use std::fmt;

/// Why device pages were not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Some of the range is not managed by this space.
    NotManaged,
    /// The pages are of another space's device.
    Foreign,
    /// Pages of this type come to programs by migration.
    Migrates,
    /// Something is there already, or the mapping is not writable.
    InTheWay,
    /// The process is forking, and the fork does not end; try again.
    Forking,
    /// Called from a notifier, which must not call the space.
    InNotifier,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotManaged => "the range is not managed by this space",
            Self::Foreign => "the pages are of a device of another space",
            Self::Migrates => "pages of this type of device memory come to programs by migration",
            Self::InTheWay => "the range is not empty, or not writable: discard it first",
            Self::Forking => Refused::FORKING,
            Self::InNotifier => Refused::IN_NOTIFIER,
        })
    }
}

impl std::error::Error for MapError {}

takes_refusals!(MapError);

impl<M: Mmu> Space<M> {
    /// Maps a block of device pages at the untouched pages from `to` on. They are freed when they are
    /// unmapped. For internal threads, and for threads that touch no managed memory.
    ///
    /// # Errors
    /// [`MapError`]; then nothing is mapped, and the block is freed.
    pub fn map_device_pages(
        &self,
        mut block: DevicePages<'_, M>,
        to: PageNo,
    ) -> Result<(), MapError> {
        if !block.is_of(self) {
            return Err(MapError::Foreign);
        }
        let (first, len) = (block.first(), 1 << block.order());
        let pages = PageRange::new(to, len);
        if !self.range().covers(pages) {
            return Err(MapError::NotManaged);
        }
        let memory = self.device(first.device);
        if memory.memory_type().migrates() {
            return Err(MapError::Migrates);
        }
        let _pass = self.gate.enter_soon(&self.mmu)?;
        let claims: Vec<_> = pages
            .iter()
            .map_while(|page| Single::claim(self, page, |state| state == State::None))
            .collect();
        if claims.len() < len {
            return Err(MapError::InTheWay);
        }
        let progress = self.mmu.put(Home::Arena(first), pages);
        if progress.pages < len {
            let back = PageRange::new(to, progress.pages);
            // What was mapped a moment ago goes back; a pin that came meanwhile keeps its frame.
            let home = self.mmu.take(back, Home::Arena(first)).pages;
            (home..back.len).for_each(|i| self.drop_mapped(to.plus(i), first.plus(i)));
            return Err(MapError::InTheWay);
        }
        for (i, claimed) in claims.into_iter().enumerate() {
            memory.set_owner(first.page.plus(i), claimed.page());
            claimed.settle(State::Coherent(first.plus(i)));
        }
        block.give_on(len);
        Ok(())
    }

    /// Drops a mapped device page, whose frame cannot be moved home, with its frame. What a file's page
    /// holds is copied home, and nowhere else then: it does not give up.
    pub(crate) fn drop_mapped(&self, page: PageNo, at: DeviceAddr) {
        let mut data = [PageData::ZERO];
        let memory_type = self.device(at.device).memory_type();
        let keeps = memory_type.keeps_bytes() && self.is_present(page);
        // A page that is there can be read, sooner or later.
        while keeps && !self.mmu.peek(page, &mut data[0]) {
            self.nap();
        }
        self.mmu.discard(PageRange::new(page, 1));
        let mut copy_home = |home: &mut PageData| home.0.copy_from_slice(&data[0].0);
        while keeps && !self.mmu.with_arena(at, &mut copy_home) {
            self.nap();
        }
    }
}
