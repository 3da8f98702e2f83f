//! Policies for the RAM of a range: huge pages, a NUMA node. They see ordinary pages alone, and pass
//! pages of devices by, mapped or not (R13).
//!
//! The kernel's own policies of these kinds are off for managed memory, because the kernel cannot tell a
//! device's frames from RAM: no collapsing in the background, and no balancing between nodes where a
//! device's memory is bound to one. Memory that is managed is never swapped to the kernel's swap by us,
//! is not locked (a pin is what keeps a page), and is not merged.

use crate::build::Space;
use crate::range::RangeError;
use std::fmt;
use std::io;
use uhmm_core::addr::{PageNo, PageRange};

/// Pages of a huge page.
const HUGE: usize = 512;

/// What a policy came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Pages of RAM that it holds for now.
    pub pages: usize,
    /// Pages of devices that were passed by.
    pub passed: usize,
}

/// Why a policy was not applied.
#[derive(Debug)]
pub enum PolicyError {
    /// Something is wrong with the range.
    Range(RangeError),
    /// The kernel refuses it for all pages: there is no such node, or it may not be done.
    Kernel(io::Error),
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(error) => error.fmt(f),
            Self::Kernel(error) => write!(f, "the kernel refuses: {error}"),
        }
    }
}

impl std::error::Error for PolicyError {}

impl From<RangeError> for PolicyError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl Space {
    /// Makes huge pages of all parts of a range that are 2 MiB of ordinary pages. Best effort: what is
    /// in use stays as it is.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn collapse(&self, address: usize, len: usize) -> Result<Applied, PolicyError> {
        let pages = self.pages(address, len, true)?;
        let mut applied = Applied::default();
        applied.passed = self.core().walk_ordinary(pages, |run| {
            let first = run.start.0.next_multiple_of(HUGE as u64);
            for start in (first..run.end().0.saturating_sub(HUGE as u64 - 1)).step_by(HUGE) {
                let huge = PageRange::new(PageNo(start), HUGE);
                applied.pages += usize::from(self.core().mmu().collapse(huge).is_ok()) * HUGE;
            }
        });
        Ok(applied)
    }

    /// Moves the ordinary pages of a range to a NUMA node. Best effort: what is in use stays where it
    /// is.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn balance(&self, address: usize, len: usize, node: u32) -> Result<Applied, PolicyError> {
        let pages = self.pages(address, len, true)?;
        let mut applied = Applied::default();
        let mut refused = None;
        applied.passed = self.core().walk_ordinary(pages, |run| {
            match self.core().mmu().move_to_node(run, node) {
                Ok(moved) => applied.pages += moved,
                Err(errno) => refused = Some(errno),
            }
        });
        match refused {
            Some(errno) if applied.pages == 0 => Err(PolicyError::Kernel(errno.into())),
            _ => Ok(applied),
        }
    }
}
