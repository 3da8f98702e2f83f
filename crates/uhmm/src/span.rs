//! Parts of regions, by name: what hints, migrations, pins and device views are told.
//!
//! A span is made by a region or a slice that has it, so its bounds are right. It borrows nothing: the
//! program goes on reading and writing there, and may keep the span for longer than the region. So
//! each call looks again whether the memory is there, and nothing that a span can do changes what the
//! memory holds.

use crate::build::Space;
use crate::device_memory::Usage;
use crate::migrate::{MigrateError, Migrated, Place};
use crate::range::RangeError;
use std::fmt;
use std::io;
use std::ops::{Bound, RangeBounds};
use uhmm_core::addr::PAGE_SIZE;

/// Part of a region: see the module's head.
///
/// Calls that work on pages take all those that the span touches.
#[derive(Clone)]
pub struct Span {
    space: Space,
    address: usize,
    len: usize,
}

impl Span {
    pub(crate) fn new(space: &Space, address: usize, len: usize) -> Self {
        Self {
            space: space.clone(),
            address,
            len,
        }
    }

    /// The address of the first byte.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes; no span is so.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The space that it is in.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// All of the pages (4096 bytes) that the span touches: for calls that take an address and a
    /// length that must begin and end on a page.
    pub fn pages(&self) -> Self {
        let start = self.address & !(PAGE_SIZE - 1);
        let end = (self.address + self.len).next_multiple_of(PAGE_SIZE);
        Self::new(&self.space, start, end - start)
    }

    /// Migrates its pages, best effort page by page.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn migrate(&self, to: Place) -> Result<Migrated, MigrateError> {
        let pages = self.pages();
        self.space.migrate(pages.address, pages.len, to)
    }

    /// Where its pages are.
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn usage(&self) -> Result<Usage, RangeError> {
        let pages = self.pages();
        self.space.usage(pages.address, pages.len)
    }

    /// Says whether it is mostly read: see [`Memory::read_mostly`](crate::memory::Memory::read_mostly).
    ///
    /// # Errors
    /// `OutOfMemory` where the memory is gone; `WouldBlock` while the process is forking.
    pub fn read_mostly(&self, on: bool) -> io::Result<()> {
        let pages = self.pages();
        let memory = self.space.memory();
        memory.read_mostly(pages.address, pages.len, on)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.len, self.address)
    }
}

/// Why a range names no part of a region or a slice. Counted as the range is: in bytes of a region, in
/// elements of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundsError {
    /// The range is empty.
    Empty,
    /// The range ends before it begins.
    Reversed {
        /// Where it begins.
        start: usize,
        /// Where it ends.
        end: usize,
    },
    /// The range goes past the end.
    PastEnd {
        /// How far it goes.
        end: usize,
        /// How many there are.
        len: usize,
    },
}

impl fmt::Display for BoundsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the range is empty: name at least one element"),
            Self::Reversed { start, end } => {
                write!(f, "the range begins at {start} and ends before, at {end}")
            }
            Self::PastEnd { end, len } => {
                write!(f, "the range goes to {end}, and there are only {len}")
            }
        }
    }
}

impl std::error::Error for BoundsError {}

/// The first element of `range` and how many it has, among `len`.
pub(crate) fn resolve(
    range: impl RangeBounds<usize>,
    len: usize,
) -> Result<(usize, usize), BoundsError> {
    // What is beyond all numbers is past the end too.
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    if start.max(end) > len {
        let end = start.max(end);
        return Err(BoundsError::PastEnd { end, len });
    }
    match end.checked_sub(start) {
        None => Err(BoundsError::Reversed { start, end }),
        Some(0) => Err(BoundsError::Empty),
        Some(count) => Ok((start, count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_range_has_an_error_of_its_own() {
        assert_eq!(resolve(.., 10), Ok((0, 10)));
        assert_eq!(resolve(3..=9, 10), Ok((3, 7)));
        assert_eq!(resolve(9.., 10), Ok((9, 1)));
        assert_eq!(
            resolve((Bound::Excluded(2), Bound::Unbounded), 10),
            Ok((3, 7))
        );
        assert_eq!(resolve(4..4, 10), Err(BoundsError::Empty));
        assert_eq!(resolve(.., 0), Err(BoundsError::Empty));
        let past = |end| Err(BoundsError::PastEnd { end, len: 10 });
        assert_eq!(resolve(0..11, 10), past(11));
        assert_eq!(resolve(0..=10, 10), past(11));
        assert_eq!(resolve(0..=usize::MAX, 10), past(usize::MAX));
        let reversed = |start, end| Err(BoundsError::Reversed { start, end });
        assert_eq!(
            resolve((Bound::Included(7), Bound::Excluded(3)), 10),
            reversed(7, 3)
        );
        assert_eq!(resolve(20.., 10), past(20));
    }
}
