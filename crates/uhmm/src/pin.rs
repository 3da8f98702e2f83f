//! Pins, with addresses: pages that stay where they are for I/O or for a device.
//!
//! The kernel does not wait for pages that a space is to bring (with the signal engine a system call
//! that meets one fails with `EFAULT`), and a long transfer into memory that moves meanwhile is slow
//! with either engine. A pinned range is all there, and stays there: it is good for `read` and `write`,
//! `O_DIRECT`, and for buffers that are registered with io_uring.

use crate::build::Space;
use crate::range::RangeError;
use crate::region::Region;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use uhmm_core::addr::{PAGE_SIZE, PageRange};
use uhmm_core::fault::Scratch;
use uhmm_core::pin;
use uhmm_linux::mmu::LinuxMmu;

pub use uhmm_core::pin::PinFlags;

/// Why pages are not pinned. None of the range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinError {
    /// Something is wrong with the range.
    Range(RangeError),
    /// The program may not write to some of it.
    NotWritable,
    /// Something is in the way of a page of it.
    Page(pin::PinError),
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(error) => error.fmt(f),
            Self::NotWritable => f.write_str(
                "some of the range may not be written to: change its protection, or pin it to read",
            ),
            Self::Page(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PinError {}

impl From<RangeError> for PinError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl From<pin::PinError> for PinError {
    fn from(error: pin::PinError) -> Self {
        match error {
            pin::PinError::NotManaged => Self::Range(RangeError::Foreign),
            pin::PinError::Forking => Self::Range(RangeError::Forking),
            pin::PinError::InNotifier => Self::Range(RangeError::InNotifier),
            error => Self::Page(error),
        }
    }
}

/// Pages that stay where they are until this is released or dropped.
pub struct Pin<'a> {
    space: &'a Space,
    pages: pin::PinnedPages<'a, LinuxMmu>,
    bytes: Range<usize>,
}

impl Pin<'_> {
    /// The addresses that were asked for. All of the pages that they lie in are pinned.
    pub fn bytes(&self) -> Range<usize> {
        self.bytes.clone()
    }

    /// Whether it was released.
    pub fn is_released(&self) -> bool {
        self.pages.pages().len == 0
    }

    /// Releases the pages.
    ///
    /// # Errors
    /// [`pin::PinError::Released`]: that was done before.
    pub fn release(&mut self) -> Result<(), PinError> {
        self.pages.release()?;
        // A region may have been dropped meanwhile.
        self.space.memory().unmap_orphans();
        Ok(())
    }
}

impl fmt::Debug for Pin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:#x?}", self.pages, self.bytes)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        // Released before: as good.
        let _ = self.release();
    }
}

/// Part of a region that is pinned to be read.
#[derive(Debug)]
pub struct Pinned<'a> {
    bytes: &'a [u8],
    _pin: Pin<'a>,
}

impl Deref for Pinned<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

/// Part of a region that is pinned to be written to.
#[derive(Debug)]
pub struct PinnedMut<'a> {
    bytes: &'a mut [u8],
    _pin: Pin<'a>,
}

impl Deref for PinnedMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for PinnedMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

type Take = for<'a> fn(
    &'a uhmm_core::Space<LinuxMmu>,
    PageRange,
    PinFlags,
    &mut Scratch,
) -> Result<pin::PinnedPages<'a, LinuxMmu>, pin::PinError>;

impl Space {
    /// Pins the pages that `len` bytes at `address` lie in (`pin_user_pages`): they are brought to RAM
    /// where they must be, and stay where they are, mapped, until the guard is released. While they are
    /// pinned, the range cannot be unmapped, dropped or moved.
    ///
    /// # Errors
    /// [`PinError`], with nothing pinned.
    pub fn pin_pages(
        &self,
        address: usize,
        len: usize,
        flags: PinFlags,
    ) -> Result<Pin<'_>, PinError> {
        self.take_pages(address, len, flags, uhmm_core::Space::pin_pages)
    }

    /// Takes references on the pages that `len` bytes at `address` lie in (`get_user_pages`), to look at
    /// them for a moment. As [`Space::pin_pages`], but never long-term, and counted apart.
    ///
    /// # Errors
    /// [`PinError`], with none taken.
    pub fn get_pages(
        &self,
        address: usize,
        len: usize,
        flags: PinFlags,
    ) -> Result<Pin<'_>, PinError> {
        self.take_pages(address, len, flags, uhmm_core::Space::get_pages)
    }

    fn take_pages(
        &self,
        address: usize,
        len: usize,
        flags: PinFlags,
        take: Take,
    ) -> Result<Pin<'_>, PinError> {
        let end = address.checked_add(len).ok_or(RangeError::Overflow)?;
        let end = end.checked_next_multiple_of(PAGE_SIZE);
        let start = address - address % PAGE_SIZE;
        let bytes = if len == 0 {
            0
        } else {
            end.ok_or(RangeError::Overflow)? - start
        };
        let accessible = || {
            let pages = self.pages(start, bytes, true)?;
            if flags.write && !self.is_writable(pages)? {
                return Err(PinError::NotWritable);
            }
            Ok(pages)
        };
        let pages = accessible()?;
        let pages = self.off_managed_stack(|| {
            let mut scratch = Scratch::default();
            take(self.core(), pages, flags, &mut scratch)
        })?;
        // From now on the range stays mapped; it may have been unmapped since the look at it.
        accessible()?;
        Ok(Pin {
            space: self,
            pages,
            bytes: address..address + len,
        })
    }
}

impl Region {
    /// Pins part of the region, to be read by the kernel or a device.
    ///
    /// # Errors
    /// [`PinError`], with nothing pinned.
    ///
    /// # Panics
    /// `bytes` is not within the region, as with any slice.
    pub fn pin(&self, bytes: Range<usize>, flags: PinFlags) -> Result<Pinned<'_>, PinError> {
        let bytes = &self.as_slice()[bytes];
        let address = bytes.as_ptr() as usize;
        Ok(Pinned {
            _pin: self.space().pin_pages(address, bytes.len(), flags)?,
            bytes,
        })
    }

    /// Pins part of the region, to be written to by the kernel or a device.
    ///
    /// # Errors
    /// [`PinError`], with nothing pinned.
    ///
    /// # Panics
    /// `bytes` is not within the region, as with any slice.
    pub fn pin_mut(
        &mut self,
        bytes: Range<usize>,
        flags: PinFlags,
    ) -> Result<PinnedMut<'_>, PinError> {
        let flags = PinFlags {
            write: true,
            ..flags
        };
        let (space, all) = self.parts_mut();
        let bytes = &mut all[bytes];
        let address = bytes.as_ptr() as usize;
        Ok(PinnedMut {
            _pin: space.pin_pages(address, bytes.len(), flags)?,
            bytes,
        })
    }
}
