//! Keeps the program's hands off our descriptors: the userfaultfd, and the files about our own memory.
//!
//! Daemons close every descriptor, whether they opened it or not. If the userfaultfd went, every page
//! that is not in RAM would read as zero; without the files, or with another file under one of their
//! numbers, nobody knows any more what is mapped. So our descriptors do not exist for the program:
//! closing one fails as for one that is not open, and a range of closes goes around them.
//!
//! A descriptor of a device that is closed may be the last of its file ([`files`]).

use super::calls::{status, system};
use super::dmirror::files;
use super::start::space;
use libc::{c_int, c_uint};
use std::io;
use uhmm_linux::mmu::DESCRIPTORS;

/// Our descriptors' numbers, or such as no descriptor has.
fn ours() -> [c_int; DESCRIPTORS] {
    space().map_or([-1; DESCRIPTORS], |space| space.internals().descriptors())
}

fn is_ours(fd: c_int) -> bool {
    fd >= 0 && ours().contains(&fd)
}

fn not_open() -> c_int {
    status(Err(io::Error::from_raw_os_error(libc::EBADF)))
}

/// POSIX `close`.
#[unsafe(no_mangle)]
pub extern "C" fn close(fd: c_int) -> c_int {
    if is_ours(fd) {
        return not_open();
    }
    // SAFETY: the caller's own call.
    files::closing(Some(fd), || unsafe {
        system(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) as c_int
    })
}

/// Linux `close_range`.
#[unsafe(no_mangle)]
pub extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    files::closing(None, || close_others(first, last, flags))
}

/// Closes a range, but for what is ours.
fn close_others(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let range = |first: c_uint, last: c_uint| {
        let arguments = [first as usize, last as usize, flags as usize, 0, 0, 0];
        // SAFETY: the caller's own call, or a part of it.
        unsafe { system(libc::SYS_close_range, arguments) as c_int }
    };
    let mut hidden = ours();
    hidden.sort_unstable();
    let hidden = hidden.iter().filter_map(|&fd| c_uint::try_from(fd).ok());
    // A range that is not one is for the kernel to refuse.
    let mut result = if first > last { range(first, last) } else { 0 };
    let mut rest = first;
    for fd in hidden.filter(|fd| (first..=last).contains(fd)) {
        if rest < fd {
            result = result.min(range(rest, fd - 1));
        }
        rest = fd + 1;
    }
    if rest <= last {
        result = result.min(range(rest, last));
    }
    result
}

/// The BSD `closefrom`.
#[unsafe(no_mangle)]
pub extern "C" fn closefrom(first: c_int) {
    close_range(first.max(0) as c_uint, c_uint::MAX, 0);
}

/// POSIX `dup2`.
#[unsafe(no_mangle)]
pub extern "C" fn dup2(from: c_int, to: c_int) -> c_int {
    if from >= 0 && from == to && !is_ours(from) {
        // SAFETY: asks whether the descriptor is open, which is all that this case of dup2 does.
        let open = unsafe { libc::fcntl(from, libc::F_GETFD) } >= 0;
        return if open { to } else { -1 };
    }
    dup3(from, to, 0)
}

/// Linux `dup3`.
#[unsafe(no_mangle)]
pub extern "C" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    if from.min(to) >= 0 && (is_ours(from) || is_ours(to)) {
        return not_open();
    }
    let arguments = [from as usize, to as usize, flags as usize, 0, 0, 0];
    // SAFETY: the caller's own call.
    files::closing(Some(to), || unsafe {
        system(libc::SYS_dup3, arguments) as c_int
    })
}
