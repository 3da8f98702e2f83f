//! The kernel's own calls, past our interposed ones, and results in the C library's form.

use libc::{c_int, c_long, c_void};
use std::io;

/// `MAP_FAILED`.
pub const FAILED: *mut c_void = libc::MAP_FAILED;

/// Makes a system call; sets `errno` on failure.
///
/// # Safety
/// As the system call.
pub unsafe fn system(number: c_long, arguments: [usize; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

/// A result in the C library's form: 0, or -1 with `errno`.
pub fn status(result: io::Result<()>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => {
            fail(&error);
            -1
        }
    }
}

/// An address in the C library's form, or `MAP_FAILED` with `errno`.
pub fn address(result: io::Result<usize>) -> *mut c_void {
    match result {
        Ok(address) => address as *mut c_void,
        Err(error) => {
            fail(&error);
            FAILED
        }
    }
}

/// Sets `errno` as the kernel would for `error`.
fn fail(error: &io::Error) {
    use io::ErrorKind::*;
    let errno = error.raw_os_error().unwrap_or(match error.kind() {
        InvalidInput => libc::EINVAL,
        AlreadyExists => libc::EEXIST,
        NotFound => libc::EFAULT,
        WouldBlock => libc::EAGAIN,
        _ => libc::ENOMEM,
    });
    // SAFETY: the address is the calling thread's own.
    unsafe { *libc::__errno_location() = errno };
}
