//! Managed memory as a program's own.

use crate::build::Space;
use crate::device_memory::Usage;
use crate::memory::Protection;
use crate::migrate::{MigrateError, Migrated, Place};
use crate::range::RangeError;
use std::io;

/// A range of managed memory; unmapped when dropped.
pub struct Region {
    space: Space,
    address: usize,
    len: usize,
}

impl Region {
    pub(crate) fn map(space: &Space, len: usize) -> io::Result<Self> {
        let address = space
            .memory()
            .map(len, Protection::READ | Protection::WRITE)?;
        Ok(Self {
            space: space.clone(),
            address,
            len,
        })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes; no region is so.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte. Good for reads and writes of [`Region::len`] bytes while the region lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.address as *mut u8
    }

    /// All of it.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped, readable and ours for as long as `self` lives; missing pages come in by
        // a fault, as with any memory.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }

    /// All of it, to write to.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }

    /// The space, and all of the region to write to.
    pub(crate) fn parts_mut(&mut self) -> (&Space, &mut [u8]) {
        // SAFETY: as in `as_mut_slice`.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) };
        (&self.space, bytes)
    }

    /// Drops the contents: all of it reads as zero.
    ///
    /// # Errors
    /// When the process is forking and does not get done with it.
    pub fn clear(&mut self) -> io::Result<()> {
        // SAFETY: the range is this region's, which is borrowed mutably.
        unsafe { self.space.memory().discard(self.address, self.len) }
    }

    /// Migrates all of it, best effort page by page.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn migrate(&self, to: Place) -> Result<Migrated, MigrateError> {
        self.space.migrate(self.address, self.len, to)
    }

    /// Where its pages are.
    ///
    /// # Errors
    /// [`RangeError::Forking`].
    pub fn usage(&self) -> Result<Usage, RangeError> {
        self.space.usage(self.address, self.len)
    }

    /// Says whether it is mostly read: see [`crate::memory::Memory::read_mostly`].
    ///
    /// # Errors
    /// When the process is forking and does not get done with it.
    pub fn read_mostly(&self, on: bool) -> io::Result<()> {
        let memory = self.space.memory();
        memory.read_mostly(self.address, self.len, on)
    }

    /// The space that it is in.
    pub fn space(&self) -> &Space {
        &self.space
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Fails only while a fork does not end; then the range stays mapped, unused.
        // SAFETY: the range is this region's, and what is borrowed of it ends before it does.
        let _ = unsafe { self.space.memory().unmap(self.address, self.len) };
    }
}
