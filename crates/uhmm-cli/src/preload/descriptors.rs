//! Keeps the program's hands off our userfaultfd.
//!
//! Daemons close every descriptor, whether they opened it or not. If ours went, every page that is
//! not in RAM would read as zero. So our descriptor does not exist for the program: closing it
//! fails as for one that is not open, and a range of closes goes around it.

use super::calls::{status, system};
use super::start::space;
use libc::{c_int, c_uint};
use rustix::fd::AsRawFd;
use std::io;

/// Our descriptor's number, or one that no descriptor has.
fn ours() -> c_int {
    space().map_or(-1, |space| space.core().mmu().uffd().fd().as_raw_fd())
}

fn not_open() -> c_int {
    status(Err(io::Error::from_raw_os_error(libc::EBADF)))
}

/// POSIX `close`.
#[unsafe(no_mangle)]
pub extern "C" fn close(fd: c_int) -> c_int {
    if fd >= 0 && fd == ours() {
        return not_open();
    }
    // SAFETY: the caller's own call.
    unsafe { system(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) as c_int }
}

/// Linux `close_range`.
#[unsafe(no_mangle)]
pub extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let range = |first: c_uint, last: c_uint| {
        let arguments = [first as usize, last as usize, flags as usize, 0, 0, 0];
        // SAFETY: the caller's own call, or a part of it.
        unsafe { system(libc::SYS_close_range, arguments) as c_int }
    };
    match c_uint::try_from(ours()) {
        Ok(ours) if (first..=last).contains(&ours) => {
            let before = if first < ours {
                range(first, ours - 1)
            } else {
                0
            };
            let after = if ours < last {
                range(ours + 1, last)
            } else {
                0
            };
            if before == 0 { after } else { before }
        }
        _ => range(first, last),
    }
}

/// The BSD `closefrom`.
#[unsafe(no_mangle)]
pub extern "C" fn closefrom(first: c_int) {
    close_range(first.max(0) as c_uint, c_uint::MAX, 0);
}

/// POSIX `dup2`.
#[unsafe(no_mangle)]
pub extern "C" fn dup2(from: c_int, to: c_int) -> c_int {
    if from >= 0 && from == to && from != ours() {
        // SAFETY: asks whether the descriptor is open, which is all that this case of dup2 does.
        let open = unsafe { libc::fcntl(from, libc::F_GETFD) } >= 0;
        return if open { to } else { -1 };
    }
    dup3(from, to, 0)
}

/// Linux `dup3`.
#[unsafe(no_mangle)]
pub extern "C" fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    if from.min(to) >= 0 && (from == ours() || to == ours()) {
        return not_open();
    }
    let arguments = [from as usize, to as usize, flags as usize, 0, 0, 0];
    // SAFETY: the caller's own call.
    unsafe { system(libc::SYS_dup3, arguments) as c_int }
}
