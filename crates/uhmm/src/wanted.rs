//! Hints that last, in the regions that keep them and in the core, which follows them.

use crate::memory::{Call, Memory, to_io};
use crate::range::{RangeError, check};
use std::io;
use uhmm_core::addr::PageRange;
use uhmm_core::hints::Hints;

impl Memory {
    /// Makes the pages of a range, all of which must be mapped, the first that reclaim takes, when RAM is
    /// short; until they are brought in anew. Calls no device: [`Hint::DoNotNeed`](crate::Hint) does more.
    ///
    /// # Errors
    /// As [`Memory::protect`]; what is mapped is cooled.
    pub fn cool(&self, address: usize, len: usize) -> io::Result<()> {
        let call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        for (piece, attributes) in call.regions.pieces(pages) {
            if !attributes.foreign {
                call.inside.cool(piece).map_err(to_io)?;
            }
        }
        if call.regions.covers(pages) {
            Ok(())
        } else {
            Err(io::ErrorKind::OutOfMemory.into())
        }
    }

    /// Says whether a range is mostly read. Then a device keeps its copy of what is read there, and
    /// to push an unmodified page out again copies nothing; the first write to such a page costs one
    /// more fault. The hint is gone when the range is unmapped.
    ///
    /// # Errors
    /// As [`Memory::protect`], with nothing changed.
    pub fn read_mostly(&self, address: usize, len: usize, on: bool) -> io::Result<()> {
        let mut call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        let read_mostly = |hints| Hints {
            read_mostly: on,
            ..hints
        };
        hint(&mut call, pages, read_mostly).map_err(|error| match error {
            RangeError::Hole => io::ErrorKind::OutOfMemory.into(),
            _ => io::ErrorKind::InvalidInput.into(),
        })
    }

    /// Changes what is wanted of a range, all of which is ours. As a driver's thread waits: see
    /// [`Memory::call_soon`].
    pub(crate) fn hint(
        &self,
        pages: PageRange,
        change: impl Fn(Hints) -> Hints,
    ) -> Result<(), RangeError> {
        let call = self.call_soon();
        let mut call = call.map_err(crate::range::refused)?;
        hint(&mut call, pages, change)
    }
}

/// Gives `pages`, all of which are ours, the hints that `change` makes of those that they have.
pub(crate) fn hint(
    call: &mut Call<'_>,
    pages: PageRange,
    change: impl Fn(Hints) -> Hints,
) -> Result<(), RangeError> {
    let pieces: Vec<_> = call.regions.pieces(pages).collect();
    check(pages, &pieces, false)?;
    for (piece, was) in pieces {
        let hints = change(was.hints);
        if hints != was.hints {
            let set = call.inside.set_hints(piece, hints);
            set.map_err(|_| RangeError::Foreign)?;
        }
    }
    call.regions.change(pages, |attributes| {
        attributes.hints = change(attributes.hints)
    });
    Ok(())
}
