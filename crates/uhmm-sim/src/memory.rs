//! How many physical pages there are, of RAM and of arenas.

use uhmm_core::mmu::Stop;

pub(crate) struct Memory {
    /// The most that there may be, of both kinds together.
    pub limit: usize,
    pub ram: usize,
    /// The most of RAM that there were.
    pub ram_peak: usize,
    pub arena: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            limit: usize::MAX,
            ram: 0,
            ram_peak: 0,
            arena: 0,
        }
    }
}

impl Memory {
    fn kind(&mut self, arena: bool) -> &mut usize {
        if arena {
            &mut self.arena
        } else {
            &mut self.ram
        }
    }

    /// One page more, if the machine has it.
    pub fn charge(&mut self, arena: bool) -> Result<(), Stop> {
        if self.ram + self.arena >= self.limit {
            return Err(Stop::NoMemory);
        }
        *self.kind(arena) += 1;
        self.ram_peak = self.ram_peak.max(self.ram);
        Ok(())
    }

    /// One page less.
    pub fn uncharge(&mut self, arena: bool) {
        let kind = self.kind(arena);
        assert!(*kind > 0, "a page is given back of none in use");
        *kind -= 1;
    }
}
