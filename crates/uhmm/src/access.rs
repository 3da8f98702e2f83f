//! Bytes of any memory of the process, copied as the kernel copies them for a system call.

use crate::build::Space;
use crate::mirror::MirrorError;
use std::fmt;
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::user_copy::CopyError;
use uhmm_linux::signals::Blocked;

/// Bytes that are copied with signals blocked.
const AT_ONCE: usize = 2 << 20;

/// Why bytes were not read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessError {
    /// Bytes that were, before the one that could not be.
    pub done: usize,
    /// What is in the way of that one.
    pub error: MirrorError,
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, error } = self;
        match done {
            0 => error.fmt(f),
            _ => write!(f, "{error} (the {done} bytes before it were copied)"),
        }
    }
}

impl std::error::Error for AccessError {}

impl Space {
    /// Reads bytes at any address of the process, managed or not, as the kernel does for a system call
    /// (`copy_from_user`): where the program would be killed for reading there, this is an error. Managed
    /// pages are faulted in first, so it does not matter which engine serves faults.
    ///
    /// For threads whose stack is not managed memory, and that have no mirror's table locked.
    ///
    /// # Errors
    /// [`AccessError`], with how far it came.
    pub fn read_bytes(&self, address: usize, to: &mut [u8]) -> Result<(), AccessError> {
        self.check_access()?;
        let mut done = 0;
        for to in to.chunks_mut(AT_ONCE) {
            let (page, offset) = place(address, done, to.len())?;
            // A handler may touch what is in hand.
            let _signals = Blocked::all();
            let look = |pages| self.managed(pages);
            let copied = self.core().read_bytes(page, offset, to, look);
            copied.map_err(|error| failed(done, error))?;
            done += to.len();
        }
        Ok(())
    }

    /// Writes bytes at any address of the process in the same way (`copy_to_user`).
    ///
    /// # Errors
    /// [`AccessError`], with how far it came.
    ///
    /// # Safety
    /// What is written must not be borrowed meanwhile (but for atomics and cells), and may hold any bytes.
    pub unsafe fn write_bytes(&self, address: usize, from: &[u8]) -> Result<(), AccessError> {
        self.check_access()?;
        let mut done = 0;
        for from in from.chunks(AT_ONCE) {
            let (page, offset) = place(address, done, from.len())?;
            let _signals = Blocked::all();
            let look = |pages| self.managed(pages);
            let copied = self.core().write_bytes(page, offset, from, look);
            copied.map_err(|error| failed(done, error))?;
            done += from.len();
        }
        Ok(())
    }

    fn check_access(&self) -> Result<(), AccessError> {
        let checked = self.check_stack();
        checked.map_err(|_| AccessError {
            done: 0,
            error: MirrorError::ManagedStack,
        })
    }
}

/// The page of the byte at `address + done`, and where in it that is.
fn place(address: usize, done: usize, len: usize) -> Result<(PageNo, usize), AccessError> {
    let at = address.checked_add(done);
    match at.filter(|at| at.checked_add(len).is_some()) {
        Some(at) => Ok((PageNo::containing(at), at % PAGE_SIZE)),
        None => Err(AccessError {
            done,
            error: crate::range::RangeError::Overflow.into(),
        }),
    }
}

fn failed(before: usize, CopyError { done, error }: CopyError) -> AccessError {
    AccessError {
        done: before + done,
        error: error.into(),
    }
}
