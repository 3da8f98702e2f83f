//! Adopted memory in the regions: what is noted there may be named in requests.

use super::Memory;
use std::sync::PoisonError;
use uhmm_core::addr::PageRange;
use uhmm_core::error::RangeError;
use uhmm_core::ranges::Inside;
use uhmm_core::regions::Attributes;
use uhmm_linux::mmu::LinuxMmu;
use uhmm_linux::signals::Blocked;

impl Memory {
    /// Opens adopted memory to requests. From inside the gate, with signals blocked.
    pub(crate) fn open_adopted(
        &self,
        _inside: &Inside<'_, LinuxMmu>,
        pieces: &[(PageRange, Attributes)],
    ) {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        for &(piece, attributes) in pieces {
            regions.adopt(piece, attributes);
        }
    }

    /// Closes adopted memory to requests; returns what it was.
    ///
    /// # Errors
    /// [`RangeError::Forking`], [`RangeError::InNotifier`].
    pub(crate) fn close_adopted(
        &self,
        pages: PageRange,
    ) -> Result<Vec<(PageRange, Attributes)>, RangeError> {
        let _signals = Blocked::all();
        let _inside = self.core.inside()?;
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(regions.release(pages))
    }

    /// Opens what was closed.
    ///
    /// # Errors
    /// As [`Memory::close_adopted`].
    pub(crate) fn open_again(&self, pieces: &[(PageRange, Attributes)]) -> Result<(), RangeError> {
        let _signals = Blocked::all();
        let inside = self.core.inside()?;
        self.open_adopted(&inside, pieces);
        Ok(())
    }
}
