//! Policies for the RAM of a range: huge pages, a NUMA node. They see ordinary pages alone, and pass
//! pages of devices by, mapped or not (R13).
//!
//! The kernel's own policies of these kinds are off for managed memory, because the kernel cannot tell a
//! device's frames from RAM: no collapsing in the background, and no balancing between nodes where a
//! device's memory is bound to one. Memory that is managed is never swapped to the kernel's swap by us,
//! is not locked (a pin is what keeps a page), and is not merged.

use crate::build::Space;
use crate::migrate::MigrateError;
use crate::range::RangeError;
use std::fmt;
use std::io;
use uhmm_core::addr::PageRange;

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
    /// The calling thread's stack is managed memory.
    ManagedStack,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(error) => error.fmt(f),
            Self::Kernel(error) => write!(f, "the kernel refuses: {error}"),
            Self::ManagedStack => MigrateError::ManagedStack.fmt(f),
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
        self.apply(address, len, |run| {
            let whole = run.len == HUGE && self.core().mmu().collapse(run).is_ok();
            Ok(if whole { HUGE } else { 0 })
        })
    }

    /// Moves the ordinary pages of a range to a NUMA node. Best effort: what is in use stays where it
    /// is.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn balance(&self, address: usize, len: usize, node: u32) -> Result<Applied, PolicyError> {
        self.apply(address, len, |run| {
            let moved = self.core().mmu().move_to_node(run, node);
            moved.map_err(io::Error::from)
        })
    }

    /// Applies `policy`, which says of how many pages it holds then, to runs of ordinary pages.
    fn apply(
        &self,
        address: usize,
        len: usize,
        policy: impl Fn(PageRange) -> io::Result<usize>,
    ) -> Result<Applied, PolicyError> {
        let pages = self.pages(address, len, true)?;
        self.check_stack().map_err(|_| PolicyError::ManagedStack)?;
        let (mut held, mut refused) = (0, None);
        let walked = self
            .core()
            .walk_ordinary(pages, HUGE, |run| match policy(run) {
                Ok(pages) => held += pages,
                Err(error) => refused = Some(error),
            });
        let passed = walked.map_err(RangeError::from)?;
        match refused {
            Some(error) if held == 0 => Err(PolicyError::Kernel(error)),
            _ => Ok(Applied {
                pages: held,
                passed,
            }),
        }
    }
}
