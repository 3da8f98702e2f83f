//! Managed memory as a program's own.

use crate::build::Space;
use crate::device_memory::Usage;
use crate::memory::Protection;
use crate::migrate::{MigrateError, Migrated, Place};
use crate::range::RangeError;
use crate::span::{BoundsError, Span, resolve};
use std::fmt;
use std::io;
use std::ops::RangeBounds;
use uhmm_core::addr::PAGE_SIZE;

/// Why a region was not made; inside of the `io::Error` that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionError {
    /// No bytes were asked for.
    Empty,
    /// More bytes were asked for than an address space has.
    TooLarge,
    /// The space has no such range free.
    NoRoom {
        /// What was asked for.
        bytes: usize,
    },
    /// The process is forking, and the fork does not end; try again.
    Forking,
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a region has no bytes: ask for at least one"),
            Self::TooLarge => f.write_str("no address space has room for a region of that size"),
            Self::NoRoom { bytes } => write!(
                f,
                "the space has no room for a region of {bytes} bytes: ask for less, or drop others"
            ),
            Self::Forking => f.write_str("the process is forking; try again"),
        }
    }
}

impl std::error::Error for RegionError {}

impl From<RegionError> for io::Error {
    fn from(error: RegionError) -> Self {
        let kind = match error {
            RegionError::Empty => io::ErrorKind::InvalidInput,
            RegionError::TooLarge | RegionError::NoRoom { .. } => io::ErrorKind::OutOfMemory,
            RegionError::Forking => io::ErrorKind::WouldBlock,
        };
        Self::new(kind, error)
    }
}

impl Space {
    /// Maps `len` bytes, rounded up to pages, that read as zero.
    ///
    /// # Errors
    /// [`RegionError`], inside of an error of the kind `InvalidInput`, `OutOfMemory` or `WouldBlock`.
    pub fn region(&self, len: usize) -> io::Result<Region> {
        let bytes = len.checked_next_multiple_of(PAGE_SIZE);
        let bytes = bytes.ok_or(RegionError::TooLarge)?;
        if bytes == 0 {
            return Err(RegionError::Empty.into());
        }
        let all = Protection::READ | Protection::WRITE;
        let mapped = self.memory().map(bytes, all);
        let address = mapped.map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => RegionError::NoRoom { bytes }.into(),
            io::ErrorKind::WouldBlock => RegionError::Forking.into(),
            _ => error,
        })?;
        Ok(Region {
            span: Span::new(self, address, bytes),
        })
    }
}

/// A range of managed memory; unmapped when dropped, or once nothing of it is pinned any more.
pub struct Region {
    span: Span,
}

impl Region {
    /// Bytes: a whole number of pages.
    pub fn len(&self) -> usize {
        self.span.len()
    }

    /// Whether it has no bytes; no region is so.
    pub fn is_empty(&self) -> bool {
        self.span.is_empty()
    }

    /// The first byte. Good for reads and writes of [`Region::len`] bytes while the region lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.span.address() as *mut u8
    }

    /// All of it. [`Region::as_slice_of`] has other types than bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.as_slice_of()
    }

    /// All of it, to write to.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.as_mut_slice_of()
    }

    /// All of it, as a name.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The name of a part of it, in bytes: for hints, migrations, pins and device views.
    ///
    /// # Errors
    /// [`BoundsError`].
    pub fn range(&self, bytes: impl RangeBounds<usize>) -> Result<Span, BoundsError> {
        let (first, len) = resolve(bytes, self.len())?;
        Ok(Span::new(self.space(), self.span.address() + first, len))
    }

    /// The space, and all of the region to write to.
    pub(crate) fn parts_mut(&mut self) -> (&Space, &mut [u8]) {
        // SAFETY: mapped and ours for as long as `self` lives, and borrowed mutably.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len()) };
        (self.span.space(), bytes)
    }

    /// Drops the contents: all of it reads as zero.
    ///
    /// # Errors
    /// When the process is forking and does not get done with it.
    pub fn clear(&mut self) -> io::Result<()> {
        let memory = self.space().memory();
        // SAFETY: the range is this region's, which is borrowed mutably.
        unsafe { memory.discard(self.span.address(), self.len()) }
    }

    /// Migrates all of it, best effort page by page.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn migrate(&self, to: Place) -> Result<Migrated, MigrateError> {
        self.span.migrate(to)
    }

    /// Where its pages are.
    ///
    /// # Errors
    /// [`RangeError::Forking`].
    pub fn usage(&self) -> Result<Usage, RangeError> {
        self.span.usage()
    }

    /// Says whether it is mostly read: see [`crate::memory::Memory::read_mostly`].
    ///
    /// # Errors
    /// When the process is forking and does not get done with it.
    pub fn read_mostly(&self, on: bool) -> io::Result<()> {
        self.span.read_mostly(on)
    }

    /// The space that it is in.
    pub fn space(&self) -> &Space {
        self.span.space()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Fails only while a fork does not end, or in a notifier; then the range stays mapped, unused.
        // SAFETY: the range is this region's, and what is borrowed of it ends before it does.
        let _ = unsafe {
            self.space()
                .memory()
                .abandon(self.span.address(), self.len())
        };
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:?})", self.span)
    }
}
