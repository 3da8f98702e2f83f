//! The mapping calls: private anonymous memory is the space's, everything else the kernel's.
//!
//! What begins in the space is handled by [`uhmm::memory`], whatever the flags, because the program
//! may map other things over parts of what it got from us. Executable mappings and stacks that the
//! kernel grows are left to it. Where the program has devices instead, all of them are the kernel's, and go
//! through [`mappings`].

use super::calls::{FAILED, address, status, system};
use super::dmirror::mappings;
use super::start::{has_devices, memory};
use libc::{c_int, c_void, off_t, size_t};
use std::io;
use uhmm::memory::{Contents, Memory, Protection};

const PAGE: usize = 4096;

/// Flags with which a mapping is not for us: shared, huge, growing, placed low, or code.
const NOT_OURS: c_int =
    libc::MAP_SHARED | libc::MAP_HUGETLB | libc::MAP_GROWSDOWN | libc::MAP_STACK | libc::MAP_32BIT;

fn protection(bits: c_int) -> Protection {
    Protection::from_bits_retain(bits as u32)
}

/// Whether a mapping with these arguments is one that we manage.
fn is_ours(prot: c_int, flags: c_int) -> bool {
    let wanted = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    flags & wanted == wanted && flags & NOT_OURS == 0 && prot & libc::PROT_EXEC == 0
}

/// The memory of the space, if the range at `at` is in it.
fn managed(at: *mut c_void, len: size_t) -> Option<&'static Memory> {
    memory().filter(|memory| memory.touches(at as usize, len.max(1)))
}

/// POSIX `mmap`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    at: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    let arguments = [
        at as usize,
        len,
        prot as usize,
        flags as usize,
        fd as isize as usize,
        offset as usize,
    ];
    // SAFETY: the caller's own call.
    let kernel = || unsafe { system(libc::SYS_mmap, arguments) } as *mut c_void;
    if let Some(memory) = mappings::memory() {
        let kernel = || mappings::made(kernel() as libc::c_long);
        // SAFETY: the caller's promise.
        let mapped =
            unsafe { mappings::map(memory, at as usize, len, flags, (fd, offset), kernel) };
        return address(mapped);
    }
    let Some(memory) = memory().filter(|_| len > 0) else {
        return kernel();
    };
    let fixed = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0;
    let keep = flags & libc::MAP_FIXED_NOREPLACE != 0;
    let mapped = if fixed {
        if !memory.touches(at as usize, len.max(1)) {
            return kernel();
        }
        if is_ours(prot, flags) {
            // SAFETY: the caller of the C function answers for what is there, as in C.
            unsafe { memory.map_at(at as usize, len, protection(prot), keep) }.map(|()| at as usize)
        } else {
            let over = || match kernel() {
                FAILED => Err(io::Error::last_os_error()),
                _ => Ok(()),
            };
            // SAFETY: the caller of the C function answers for what is there, as in C.
            unsafe { memory.map_foreign(at as usize, len, over) }.map(|()| at as usize)
        }
    } else if is_ours(prot, flags) {
        match memory.map(len, protection(prot)) {
            // No room, or a fork that waits for us: the kernel has memory too.
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => return kernel(),
            mapped => mapped,
        }
    } else {
        return kernel();
    };
    if let Ok(start) = mapped
        && flags & libc::MAP_POPULATE != 0
        && is_ours(prot, flags)
    {
        // Best effort, as the kernel's.
        // SAFETY: a fresh mapping; bringing its pages in changes nothing.
        unsafe {
            system(
                libc::SYS_madvise,
                [start, len, libc::MADV_POPULATE_WRITE as usize, 0, 0, 0],
            )
        };
    }
    address(mapped)
}

/// `mmap` with a wide offset, which is the same here.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    at: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { mmap(at, len, prot, flags, fd, offset) }
}

/// POSIX `munmap`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(at: *mut c_void, len: size_t) -> c_int {
    if let Some(memory) = mappings::memory() {
        // SAFETY: the caller's promise.
        return status(unsafe { mappings::unmap(memory, at as usize, len) }.map(drop));
    }
    match managed(at, len) {
        Some(_) if len == 0 => status(Err(io::ErrorKind::InvalidInput.into())),
        // SAFETY: the caller of the C function answers for what is there, as in C.
        Some(memory) => status(unsafe { memory.unmap(at as usize, len) }),
        // SAFETY: the caller's own call.
        None => unsafe { system(libc::SYS_munmap, [at as usize, len, 0, 0, 0, 0]) as c_int },
    }
}

/// Linux `mremap`. The fifth argument is read only where the flags say that there is one.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mremap(
    at: *mut c_void,
    old_len: size_t,
    new_len: size_t,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    if let Some(memory) = mappings::memory() {
        let arguments = [at as usize, old_len, new_len, flags as usize, to as usize];
        // SAFETY: the caller's promise.
        return address(unsafe { mappings::remap(memory, arguments) });
    }
    let fixed = flags & libc::MREMAP_FIXED != 0;
    let keep = flags & libc::MREMAP_DONTUNMAP != 0;
    let may_move = flags & libc::MREMAP_MAYMOVE != 0;
    let invalid = || address(Err(io::ErrorKind::InvalidInput.into()));
    if let Some(memory) = managed(at, old_len) {
        let bad = (fixed || keep) && !may_move || keep && old_len != new_len;
        if bad || fixed && !memory.touches(to as usize, new_len) {
            return invalid();
        }
        let to = fixed.then_some(to as usize);
        // SAFETY: the caller of the C function answers for what is there, as in C.
        return address(unsafe { memory.remap(at as usize, old_len, new_len, may_move, to, keep) });
    }
    if fixed && managed(to, new_len).is_some() {
        // What is not ours cannot become part of the space.
        return invalid();
    }
    let arguments = [
        at as usize,
        old_len,
        new_len,
        flags as usize,
        to as usize,
        0,
    ];
    // SAFETY: the caller's own call.
    unsafe { system(libc::SYS_mremap, arguments) as *mut c_void }
}

/// POSIX `mprotect`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mprotect(at: *mut c_void, len: size_t, prot: c_int) -> c_int {
    if let Some(memory) = mappings::memory() {
        // SAFETY: the caller's promise.
        return status(unsafe { mappings::protect(memory, at as usize, len, prot) }.map(drop));
    }
    match managed(at, len) {
        // SAFETY: the caller of the C function answers for what is there, as in C.
        Some(memory) => status(unsafe { memory.protect(at as usize, len, protection(prot)) }),
        None => {
            let arguments = [at as usize, len, prot as usize, 0, 0, 0];
            // SAFETY: the caller's own call.
            unsafe { system(libc::SYS_mprotect, arguments) as c_int }
        }
    }
}

/// Linux `madvise`.
///
/// `MADV_COLD` and `MADV_PAGEOUT` make pages the first that reclaim takes, when RAM is short: to push them
/// out now would call into devices, which the program's threads must not do. Other advice that only hints
/// (huge pages, merging, read-ahead, dumps) succeeds and does nothing on managed memory: who is to be in
/// RAM is decided here.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(at: *mut c_void, len: size_t, advice: c_int) -> c_int {
    if let Some(memory) = mappings::memory() {
        // SAFETY: the caller's promise.
        return status(unsafe { mappings::advise(memory, at as usize, len, advice) }.map(drop));
    }
    // SAFETY: the caller's own call.
    let kernel = || unsafe {
        system(
            libc::SYS_madvise,
            [at as usize, len, advice as usize, 0, 0, 0],
        ) as c_int
    };
    let Some(memory) = managed(at, len) else {
        return kernel();
    };
    let start = at as usize;
    let contents = match memory.contents(start, len) {
        Ok(Contents::Foreign) => return kernel(),
        Ok(contents) => contents,
        Err(error) => return status(Err(error)),
    };
    match advice {
        libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_DONTNEED_LOCKED => {
            // SAFETY: the caller of the C function answers for what is there, as in C.
            status(unsafe { memory.discard(start, len) })
        }
        // SAFETY: the caller of the C function answers for what is there, as in C.
        libc::MADV_WIPEONFORK => status(unsafe { memory.wipe_on_fork(start, len, true) }),
        // SAFETY: the caller of the C function answers for what is there, as in C.
        libc::MADV_KEEPONFORK => status(unsafe { memory.wipe_on_fork(start, len, false) }),
        // SAFETY: the caller of the C function answers for what is there, as in C.
        libc::MADV_DONTFORK => status(unsafe { memory.leave_out_of_fork(start, len, true) }),
        // SAFETY: the caller of the C function answers for what is there, as in C.
        libc::MADV_DOFORK => status(unsafe { memory.leave_out_of_fork(start, len, false) }),
        libc::MADV_COLD | libc::MADV_PAGEOUT => status(memory.cool(start, len)),
        libc::MADV_NORMAL
        | libc::MADV_RANDOM
        | libc::MADV_SEQUENTIAL
        | libc::MADV_WILLNEED
        | libc::MADV_HUGEPAGE
        | libc::MADV_NOHUGEPAGE
        | libc::MADV_MERGEABLE
        | libc::MADV_UNMERGEABLE
        | libc::MADV_DODUMP
        | libc::MADV_DONTDUMP
        | libc::MADV_COLLAPSE => match contents {
            Contents::Holes => status(Err(io::ErrorKind::OutOfMemory.into())),
            _ => 0,
        },
        libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE => kernel(),
        _ => status(Err(io::ErrorKind::InvalidInput.into())),
    }
}

/// POSIX `posix_madvise`: only hints, all of them.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_madvise(at: *mut c_void, len: size_t, advice: c_int) -> c_int {
    if advice == libc::POSIX_MADV_DONTNEED || managed(at, len).is_some() {
        return 0;
    }
    let arguments = [at as usize, len, advice as usize, 0, 0, 0];
    // SAFETY: the caller's own call.
    match unsafe { system(libc::SYS_madvise, arguments) } {
        0 => 0,
        _ => io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EINVAL),
    }
}

/// POSIX `mlock`.
///
/// What is managed stays in this machine's memory anyway, mapped or on a device of memory: uhmm
/// writes no page to a disk, which is what most callers are after. It does not keep the kernel from
/// swapping, and what is locked is not exempt from the budget.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlock(at: *const c_void, len: size_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { lock(at, len, libc::SYS_mlock, 0) }
}

/// Linux `mlock2`; see [`mlock`].
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlock2(at: *const c_void, len: size_t, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { lock(at, len, libc::SYS_mlock2, flags) }
}

/// POSIX `munlock`; see [`mlock`].
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munlock(at: *const c_void, len: size_t) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { lock(at, len, libc::SYS_munlock, 0) }
}

unsafe fn lock(at: *const c_void, len: size_t, number: libc::c_long, flags: c_int) -> c_int {
    // SAFETY: the caller's own call.
    let kernel = || unsafe { system(number, [at as usize, len, flags as usize, 0, 0, 0]) };
    if let Some(memory) = mappings::memory().filter(|_| number != libc::SYS_munlock) {
        let kernel = || mappings::made(kernel());
        // SAFETY: the caller's promise.
        return status(unsafe { mappings::lock(memory, at as usize, len, kernel) }.map(drop));
    }
    let start = at as usize & !(PAGE - 1);
    let end = (at as usize).saturating_add(len);
    let contents = managed(start as *mut c_void, end - start)
        .map_or(Ok(Contents::Foreign), |memory| {
            memory.contents(start, end - start)
        });
    match contents {
        Ok(Contents::Managed) => 0,
        Ok(Contents::Holes) => status(Err(io::ErrorKind::OutOfMemory.into())),
        Err(error) => status(Err(error)),
        Ok(Contents::Foreign) => kernel() as c_int,
    }
}

/// POSIX `mlockall`. The kernel's would bring in all that a space has room for, one that is built later
/// too; see [`mlock`].
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    match memory().is_some() || has_devices() {
        true => 0,
        // SAFETY: the caller's own call.
        false => unsafe { system(libc::SYS_mlockall, [flags as usize, 0, 0, 0, 0, 0]) as c_int },
    }
}
