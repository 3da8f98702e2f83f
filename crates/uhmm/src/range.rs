//! Ranges of bytes that callers name, checked before anything is done to them.

use crate::build::Space;
use crate::memory::Protection;
use std::fmt;
use std::io;
use std::ops::Range;
use uhmm_core::addr::{PAGE_SIZE, PageNo, PageRange};
use uhmm_core::error;
use uhmm_core::mirror::{MirrorError, NotifierError, Permission, Permissions};
use uhmm_core::regions::Attributes;
use uhmm_linux::mmu::EVERYWHERE;

/// What is wrong with a range. Nothing has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// It is empty.
    Empty,
    /// It does not begin and end on a page (4096 bytes).
    Unaligned,
    /// It goes past the end of the address space.
    Overflow,
    /// Some of it is not this space's memory.
    Foreign,
    /// Some of it is not mapped.
    Hole,
    /// The program may not touch some of it.
    NoAccess,
    /// The address space is limited, and this space has tables for its own memory alone.
    Limited,
    /// The process is forking, or another thread is changing its mappings, and does not end; try again.
    Forking,
    /// Called from a notifier, or with a mirror's table locked: the space must not be called then.
    InNotifier,
    /// Some of the range is pinned: it is neither dropped nor moved until the pins are released.
    Pinned,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match self {
            Self::Empty => "the range is empty",
            Self::Unaligned => "the range must begin and end on a page: a multiple of 4096 bytes",
            Self::Overflow => "the range goes past the end of the address space",
            Self::Foreign => "some of the range is not managed by this space",
            Self::Hole => "some of the range is not mapped",
            Self::NoAccess => "some of the range may not be touched: change its protection first",
            Self::InNotifier => return error::RangeError::InNotifier.fmt(f),
            Self::Pinned => return error::RangeError::Pinned.fmt(f),
            Self::Limited => {
                "the space knows its own memory alone: raise the limit on virtual memory (ulimit -v \
                 unlimited) before it is built"
            }
            Self::Forking => "the process is forking, or changing its mappings; try again",
        };
        f.write_str(line)
    }
}

impl std::error::Error for RangeError {}

impl From<error::RangeError> for RangeError {
    fn from(error: error::RangeError) -> Self {
        match error {
            error::RangeError::NotManaged => Self::Foreign,
            error::RangeError::Forking => Self::Forking,
            error::RangeError::InNotifier => Self::InNotifier,
            error::RangeError::Pinned => Self::Pinned,
        }
    }
}

/// Why the regions cannot be looked at.
pub(crate) fn refused(error: io::Error) -> RangeError {
    match error.kind() {
        io::ErrorKind::Deadlock => RangeError::InNotifier,
        _ => RangeError::Forking,
    }
}

/// A range that is not empty, and of whole pages.
pub(crate) fn whole_pages(address: usize, len: usize) -> Result<Range<usize>, RangeError> {
    if len == 0 {
        return Err(RangeError::Empty);
    }
    if !address.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
        return Err(RangeError::Unaligned);
    }
    let end = address.checked_add(len).ok_or(RangeError::Overflow)?;
    Ok(address..end)
}

/// The pages of such a range.
fn page_range_of(address: usize, len: usize) -> Result<PageRange, RangeError> {
    let range = whole_pages(address, len)?;
    Ok(PageRange::new(
        PageNo::containing(address),
        range.len() / PAGE_SIZE,
    ))
}

impl Space {
    /// The pages of a range all of which is mapped in this space, or adopted; with `accessible`, and which
    /// the program may touch.
    pub(crate) fn pages(
        &self,
        address: usize,
        len: usize,
        accessible: bool,
    ) -> Result<PageRange, RangeError> {
        let pages = page_range_of(address, len)?;
        let pieces = self.pieces(pages)?;
        self.check_ours(pages, &pieces)?;
        check(pages, &pieces, accessible)?;
        Ok(pages)
    }

    /// The regions within `pages`, with their attributes.
    pub(crate) fn pieces(
        &self,
        pages: PageRange,
    ) -> Result<Vec<(PageRange, Attributes)>, RangeError> {
        let pieces = self.memory().pieces(pages);
        pieces.map_err(refused)
    }

    /// The pages of a range, whoever has mapped what there.
    pub(crate) fn page_range(&self, address: usize, len: usize) -> Result<PageRange, RangeError> {
        let pages = page_range_of(address, len)?;
        if self.core().range().covers(pages) {
            return Ok(pages);
        }
        match EVERYWHERE.covers(pages) {
            true => Err(RangeError::Limited),
            false => Err(RangeError::Overflow),
        }
    }

    /// Whether all of `pages` that are not of the space are adopted, as `pieces` has it.
    fn check_ours(
        &self,
        pages: PageRange,
        pieces: &[(PageRange, Attributes)],
    ) -> Result<(), RangeError> {
        let space = self.core().mmu().space_range();
        let outside = |pages: PageRange| {
            let (start, end) = (pages.start.max(space.start), pages.end().min(space.end()));
            pages.len - end.0.saturating_sub(start.0) as usize
        };
        let adopted: usize = pieces.iter().map(|&(piece, _)| outside(piece)).sum();
        if adopted != outside(pages) {
            return Err(RangeError::Foreign);
        }
        Ok(())
    }

    /// Whether the program may write to all parts of `pages` that are mapped in this space.
    pub(crate) fn is_writable(&self, pages: PageRange) -> Result<bool, RangeError> {
        let permissions = self.permissions(pages)?;
        Ok(permissions.iter().all(|(_, allowed)| allowed.write))
    }

    /// What the program may do with the parts of `pages` that are mapped in this space, or adopted. The
    /// rest is the kernel's to tell.
    pub(crate) fn permissions(&self, pages: PageRange) -> Result<Permissions, RangeError> {
        let ours = self
            .pieces(pages)?
            .into_iter()
            .filter(|(_, is)| !is.foreign);
        let allowed = ours.map(|(piece, is)| {
            let protection = Protection::from_bits_retain(is.protection);
            let permission = Permission {
                // On the machines there are, what may be written or executed may be read.
                read: !protection.is_empty(),
                write: protection.contains(Protection::WRITE),
            };
            (piece, permission)
        });
        Ok(allowed.collect())
    }
}

impl Space {
    /// [`Space::permissions`], for the core.
    pub(crate) fn managed(&self, pages: PageRange) -> Result<Permissions, MirrorError> {
        self.permissions(pages).map_err(|error| match error {
            RangeError::InNotifier => NotifierError::InNotifier.into(),
            // Nothing else is in the way of a look at the regions.
            _ => MirrorError::Forking,
        })
    }
}

/// Whether `pages` are all within `pieces`, and ours; with `accessible`, and the program may touch them.
pub(crate) fn check(
    pages: PageRange,
    pieces: &[(PageRange, Attributes)],
    accessible: bool,
) -> Result<(), RangeError> {
    if pieces.iter().any(|(_, attributes)| attributes.foreign) {
        return Err(RangeError::Foreign);
    }
    if pieces.iter().map(|(piece, _)| piece.len).sum::<usize>() != pages.len {
        return Err(RangeError::Hole);
    }
    if accessible && pieces.iter().any(|(_, is)| is.protection == 0) {
        return Err(RangeError::NoAccess);
    }
    Ok(())
}
