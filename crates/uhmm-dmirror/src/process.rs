//! The memory of the process, by address: everything here that Rust cannot check.
//!
//! A device asks nobody before it reads or writes. That the memory is the program's to give is a promise
//! of whoever makes a [`Process`], once, for all commands that are sent afterwards.

use crate::access::{batches, buffer};
use crate::command::END;
use crate::errno::Errno;
use std::ops::Range;
use uhmm::mirror::{DeviceTable, Mirror, MirrorError};
use uhmm::{DeviceId, Space};

/// The right to read and write memory of the process by address, for devices of a space.
#[derive(Clone, Copy)]
pub struct Process<'a>(&'a Space);

impl<'a> Process<'a> {
    /// Lets devices of `space` at the memory of the process.
    ///
    /// # Safety
    /// Whoever sends a command to a device owns the memory that the command names: what the device writes
    /// is not borrowed meanwhile, and what it reads not mutably (but for atomics and cells). Private memory
    /// that is told to migrate is managed by the space from then on: see [`Space::adopt`] for what must not
    /// be done with it.
    pub const unsafe fn new(space: &'a Space) -> Self {
        Self(space)
    }

    pub(crate) const fn space(self) -> &'a Space {
        self.0
    }

    /// Makes `table` a device's page table over all of the process.
    ///
    /// # Errors
    /// [`Errno::NoMem`]: the process may not have as many addresses as that takes. What else is in the way of
    /// a mirror.
    pub(crate) fn mirror<T: DeviceTable + 'static>(
        self,
        device: Option<DeviceId>,
        table: T,
    ) -> Result<Mirror<'a, T>, Errno> {
        // SAFETY: the promise of `new`; the table forgets what it is told to, and its users ask it first.
        let mirror = unsafe { self.0.mirror(0, END, device, table) };
        mirror.map_err(|error| match error {
            MirrorError::Range(_) => Errno::NoMem,
            error => error.into(),
        })
    }

    /// Has the space manage what can be managed of a range; returns those parts.
    ///
    /// # Errors
    /// [`Errno::Inval`]: some of it is not mapped, or may not be read. [`Errno::NoMem`]: there is no room for
    /// all that is there.
    pub(crate) fn manage(self, range: &Range<usize>) -> Result<Vec<Range<usize>>, Errno> {
        // SAFETY: the promise of `new`.
        Ok(unsafe { self.0.manage(range.start, range.len())? })
    }

    /// Copies bytes of the program.
    ///
    /// # Errors
    /// [`Errno::Fault`]: they are not there. [`Errno::NoMem`].
    pub(crate) fn read(self, from: usize, len: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = buffer(len)?;
        // In parts: what is not there is found out before there is memory for all of it.
        for part in batches(0..len) {
            let from = from.checked_add(part.start).ok_or(Errno::Fault)?;
            bytes.resize(part.end, 0);
            self.0.read_bytes(from, &mut bytes[part])?;
        }
        Ok(bytes)
    }

    /// Copies bytes to the program. Not with a table locked: the memory may have to be faulted in.
    ///
    /// # Errors
    /// [`Errno::Fault`]; some of the bytes may have been written.
    pub(crate) fn write(self, to: usize, from: &[u8]) -> Result<(), Errno> {
        // SAFETY: the promise of `new`.
        unsafe { self.0.write_bytes(to, from)? };
        Ok(())
    }
}
