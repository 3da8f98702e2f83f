//! The program changes mappings: the kernel does it, and who looks at the memory is told.
//!
//! Each call is the kernel's own, made from inside one of [`Memory`]'s: devices' tables forget the range
//! first, and what is managed of it is unmapped, discarded, protected or given back as the program means it.
//! What the C library changes by itself (the stacks of threads, libraries, `brk`) is not seen here.
//!
//! | call | on memory that is managed since it migrated |
//! | --- | --- |
//! | `mmap` over it, `munmap`, `mprotect`, `mremap`, and `madvise` that drops contents | as above |
//! | `madvise` about children (`DONTFORK`, `WIPEONFORK`), `mlock` | it is given back first, and migrates no more |
//! | `madvise` about huge and merged pages | nothing: the frames are the devices' too (R13) |
//! | other `madvise` | the kernel's |

use super::files;
use super::{error, listening};
use crate::preload::calls::system;
use libc::{c_int, off_t, size_t};
use std::io;
use uhmm::memory::{Memory, Protection};

const PAGE: usize = 4096;

/// The memory of the space, if what the calling thread does to mappings concerns it.
pub fn memory() -> Option<&'static Memory> {
    Some(listening()?.memory())
}

/// A result of a system call as Rust has them.
pub fn made(result: libc::c_long) -> io::Result<usize> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value as usize),
    }
}

/// Whether the kernel would refuse a range of these bytes at once: that it does itself.
fn is_refused(at: usize, len: size_t) -> bool {
    !at.is_multiple_of(PAGE) || len == 0 || at.checked_add(len).is_none()
}

/// Refuses a range that holds what is ours.
fn check(memory: &Memory, at: usize, len: size_t) -> io::Result<()> {
    match memory.touches(at, len) {
        true => Err(error(libc::EINVAL)),
        false => Ok(()),
    }
}

/// `mmap`, which `kernel` makes: over what was there, if the program says so, and of a device.
///
/// # Safety
/// As in C.
pub unsafe fn map(
    memory: &Memory,
    at: usize,
    len: size_t,
    flags: c_int,
    file: (c_int, off_t),
    kernel: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let end = (file.1 as u64).checked_add(len as u64);
    let device = match end {
        Some(end) if flags & libc::MAP_ANONYMOUS == 0 => files::before_mapping(file.0, end),
        _ => None,
    };
    let is_device = device.transpose()?.is_some();
    let replaces = flags & libc::MAP_FIXED != 0 && flags & libc::MAP_FIXED_NOREPLACE == 0;
    let start = if replaces && !is_refused(at, len) {
        check(memory, at, len)?;
        // SAFETY: the caller's promise.
        files::unmapping(|| unsafe { memory.around_unmap(at, len, kernel) })?
    } else {
        let start = kernel()?;
        if memory.has_adopted(start, len) {
            // It was unmapped behind our back. Nobody knows of what is there now.
            // SAFETY: nothing more is done than what has been done.
            unsafe { memory.around_unmap(start, len, || Ok(())) }?;
        }
        start
    };
    if is_device {
        populate(start, len)?;
    }
    Ok(start)
}

/// Has all of a fresh mapping of a device there, as the kernel's driver does: to be seen, and read-only
/// until it is written to.
fn populate(start: usize, len: size_t) -> io::Result<()> {
    let arguments = [start, len, libc::MADV_POPULATE_READ as usize, 0, 0, 0];
    // SAFETY: it changes no byte.
    let populated = made(unsafe { system(libc::SYS_madvise, arguments) });
    // Where nothing may be read there is nothing to see.
    if populated.is_err_and(|error| error.raw_os_error() == Some(libc::ENOMEM)) {
        // SAFETY: nobody knows of it yet.
        let _ = made(unsafe { system(libc::SYS_munmap, [start, len, 0, 0, 0, 0]) });
        return Err(error(libc::ENOMEM));
    }
    Ok(())
}

/// `munmap`.
///
/// # Safety
/// As in C.
pub unsafe fn unmap(memory: &Memory, at: usize, len: size_t) -> io::Result<usize> {
    // SAFETY: the caller's promise.
    let kernel = || made(unsafe { system(libc::SYS_munmap, [at, len, 0, 0, 0, 0]) });
    if is_refused(at, len) {
        return kernel();
    }
    check(memory, at, len)?;
    // SAFETY: the caller's promise.
    files::unmapping(|| unsafe { memory.around_unmap(at, len, kernel) })
}

/// `mremap`.
///
/// # Safety
/// As in C.
pub unsafe fn remap(
    memory: &Memory,
    [at, old_len, new_len, flags, to]: [usize; 5],
) -> io::Result<usize> {
    let arguments = [at, old_len, new_len, flags, to, 0];
    // SAFETY: the caller's promise.
    let kernel = || made(unsafe { system(libc::SYS_mremap, arguments) });
    if is_refused(at, old_len) {
        return kernel();
    }
    let fixed = flags as c_int & libc::MREMAP_FIXED != 0 && !is_refused(to, new_len);
    let new = fixed.then(|| to..to + new_len);
    for range in [Some(at..at + old_len), new.clone()].iter().flatten() {
        check(memory, range.start, range.len())?;
    }
    // SAFETY: the caller's promise.
    files::unmapping(|| unsafe { memory.around_move(at..at + old_len, new, kernel) })
}

/// `mprotect`.
///
/// # Safety
/// As in C.
pub unsafe fn protect(memory: &Memory, at: usize, len: size_t, prot: c_int) -> io::Result<usize> {
    // SAFETY: the caller's promise.
    let kernel = || made(unsafe { system(libc::SYS_mprotect, [at, len, prot as usize, 0, 0, 0]) });
    if is_refused(at, len) {
        return kernel();
    }
    check(memory, at, len)?;
    let protection = Protection::from_bits_retain(prot as u32);
    // SAFETY: the caller's promise.
    unsafe { memory.around_protect(at, len, protection, kernel) }
}

/// `madvise`.
///
/// # Safety
/// As in C.
pub unsafe fn advise(memory: &Memory, at: usize, len: size_t, advice: c_int) -> io::Result<usize> {
    // SAFETY: the caller's promise.
    let kernel = || made(unsafe { system(libc::SYS_madvise, [at, len, advice as usize, 0, 0, 0]) });
    if is_refused(at, len) {
        return kernel();
    }
    check(memory, at, len)?;
    match advice {
        libc::MADV_DONTNEED
        | libc::MADV_DONTNEED_LOCKED
        | libc::MADV_FREE
        // SAFETY: the caller's promise.
        | libc::MADV_REMOVE => unsafe { memory.around_discard(at, len, kernel) },
        // SAFETY: the caller's promise.
        libc::MADV_DONTFORK | libc::MADV_WIPEONFORK => unsafe {
            memory.around_other(at, len, kernel)
        },
        libc::MADV_HUGEPAGE | libc::MADV_COLLAPSE | libc::MADV_MERGEABLE
            if memory.has_adopted(at, len) =>
        {
            Ok(0)
        }
        _ => kernel(),
    }
}

/// `mlock` and its like, which `kernel` makes. They take any bytes, and mean the pages that these are in.
///
/// # Safety
/// As in C.
pub unsafe fn lock(
    memory: &Memory,
    at: usize,
    len: size_t,
    kernel: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let start = at / PAGE * PAGE;
    let end = at.saturating_add(len).checked_next_multiple_of(PAGE);
    let Some(len) = end.map(|end| end - start).filter(|len| *len > 0) else {
        return kernel();
    };
    check(memory, start, len)?;
    // SAFETY: the caller's promise.
    unsafe { memory.around_other(start, len, kernel) }
}
