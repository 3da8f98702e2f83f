//! Hints about a range that are followed at once: its pages are not needed soon, or they will be.
//!
//! Both are best effort, go through the range once, and take part in everything that pages are kept from
//! by: claims, the gate, what is pinned. For internal threads, and for driver threads: they call into
//! devices. What they come to is counted before and after, so what others do meanwhile is in it.

use super::clean::Cleaned;
use super::unmap::{Effort, Hand};
use crate::addr::{PageNo, PageRange};
use crate::around::MAX_WINDOW;
use crate::entry::State;
use crate::error::RangeError;
use crate::fault::{Access, Scratch};
use crate::frames::{BLOCK, place};
use crate::migrate::Migrated;
use crate::mmu::Mmu;
use crate::space::Space;

/// Entries that are looked at in one pass of the gate, which a fork waits for.
const LOOK: usize = 512;

impl<M: Mmu> Space<M> {
    /// The pages of a range will be needed: those that are mapped in RAM are spared by reclaim once, those
    /// on their way out come back, and those on devices that the CPU does not map come to RAM, in order,
    /// as long as nothing has to be pushed out for them. What was never touched stays so.
    ///
    /// # Errors
    /// [`RangeError`]; what has come until then has come.
    pub fn will_need(
        &self,
        pages: PageRange,
        scratch: &mut Scratch,
    ) -> Result<Migrated, RangeError> {
        let is_away = |state| matches!(state, State::Limbo(_) | State::Private(_));
        let before = self.count(pages, is_away)?;
        let mut at = pages.start;
        while let Some(from) = self.next_used(at, pages.end()) {
            at = from.plus(LOOK).min(pages.end());
            let _pass = self.gate.enter_soon(&self.mmu)?;
            for page in PageRange::new(from, (at.0 - from.0) as usize).iter() {
                // A call may bring in a few at once.
                let enough = self.reclaim.pressure.high + MAX_WINDOW;
                let there_is_room = || self.pool.available() > enough;
                let comes = match self.state(page) {
                    State::Limbo(_) => true,
                    State::Private(_) => there_is_room(),
                    _ => false,
                };
                if comes {
                    // Best effort.
                    let _ = self.look(page, Access::Read, scratch);
                }
                self.entries.set_referenced(page);
            }
        }
        let left = self.count(pages, is_away)?;
        Ok(Migrated {
            migrated: before.saturating_sub(left),
            left,
        })
    }

    /// The pages of a range are not needed soon: those in RAM go to devices now, by preference, then in
    /// the order of the space, hot or cold. What devices have no room for stays, and so does what the CPU
    /// maps of devices (R13).
    ///
    /// # Errors
    /// [`RangeError`]; what has gone until then has gone.
    pub fn do_not_need(
        &self,
        pages: PageRange,
        scratch: &mut Scratch,
    ) -> Result<Migrated, RangeError> {
        let in_ram = |state| matches!(state, State::System { .. } | State::Limbo(_));
        let before = self.count(pages, in_ram)?;
        let mut hand = Hand::once_over(pages);
        let mut more = before > 0;
        while more {
            let _pass = self.gate.enter_soon(&self.mmu)?;
            let from = hand.at;
            let effort = Effort {
                pages: BLOCK,
                look: LOOK,
                spare: 0,
                scratch: Some(scratch),
            };
            more = self.unmap_some(&mut hand, effort).more;
            let done = PageRange::new(from, (hand.at.0 - from.0) as usize);
            // Also what was in limbo before.
            let cleaned = self.clean_range(done);
            if let Some(block) = hand.give_block_up() {
                self.end_block(block);
            }
            more &= cleaned != Cleaned::NoRoom;
        }
        let left = self.count(pages, in_ram)?;
        Ok(Migrated {
            migrated: before.saturating_sub(left),
            left,
        })
    }

    /// Stores what of `pages` is in limbo, as far as devices have room.
    fn clean_range(&self, pages: PageRange) -> Cleaned {
        let mut cleaned = Cleaned::Nothing;
        // Neighbours are often in one block.
        let (mut block, mut bits) = (0, 0);
        self.entries.for_each_used(pages, |_, word| {
            if let State::Limbo(slot) = word.state() {
                let (its, bit) = place(slot);
                if its != block && bits != 0 {
                    cleaned = cleaned.max(self.clean_pages(block as u32, bits));
                    bits = 0;
                }
                block = its;
                bits |= bit;
            }
        });
        if bits != 0 {
            cleaned = cleaned.max(self.clean_pages(block as u32, bits));
        }
        cleaned
    }

    /// The next page at or after `from`, before `end`, near pages that are not [`State::None`]: a walk may
    /// go on there.
    pub fn next_used(&self, from: PageNo, end: PageNo) -> Option<PageNo> {
        self.entries.next_used(from, end)
    }

    fn count(&self, pages: PageRange, is_one: impl Fn(State) -> bool) -> Result<usize, RangeError> {
        if !self.range().covers(pages) {
            return Err(RangeError::NotManaged);
        }
        let mut count = 0;
        self.entries
            .for_each_used(pages, |_, word| count += usize::from(is_one(word.state())));
        Ok(count)
    }
}
