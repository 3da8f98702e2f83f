//! Device pages that do not migrate, mapped where a program wants them: generic memory, a file's
//! pages, a peer's window. They leave the program by being unmapped, and only so.

use crate::addr::{Home, PageNo, PageRange};
use crate::claims::Single;
use crate::entry::State;
use crate::hold::DevicePages;
use crate::mmu::Mmu;
use crate::space::Space;
use std::fmt;

/// Why device pages were not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Some of the range is not managed by this space.
    NotManaged,
    /// Pages of this type come to programs by migration.
    Migrates,
    /// Something is there already, or the mapping is not writable.
    InTheWay,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotManaged => "the range is not managed by this space",
            Self::Migrates => "pages of this type of device memory come to programs by migration",
            Self::InTheWay => "the range is not empty, or not writable: discard it first",
        })
    }
}

impl std::error::Error for MapError {}

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
        let (first, len) = (block.first(), 1 << block.order());
        let pages = PageRange::new(to, len);
        let all = self.range();
        if pages.start < all.start || pages.end() > all.end() {
            return Err(MapError::NotManaged);
        }
        let memory = self.device(first.device);
        if memory.memory_type().migrates() {
            return Err(MapError::Migrates);
        }
        let _pass = self.gate.enter_patiently(&self.mmu);
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
            if self.mmu.take(back, Home::Arena(first)).pages < back.len {
                self.mmu.discard(back);
            }
            return Err(MapError::InTheWay);
        }
        for (i, claimed) in claims.into_iter().enumerate() {
            memory.set_owner(first.page.plus(i), claimed.page());
            claimed.settle(State::Coherent(first.plus(i)));
        }
        block.give_on(len);
        Ok(())
    }
}
