//! Pages pinned by the kernel, as for direct I/O.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Pins these bytes by registering them with an io_uring, for as long as that is open. `None`, with a
/// message, where there is no io_uring.
pub fn pin(bytes: Range<usize>) -> Option<OwnedFd> {
    match register(bytes) {
        Ok(ring) => Some(ring),
        Err(error) => {
            eprintln!("NOT CHECKED: pinned pages, since there is no io_uring here ({error})");
            None
        }
    }
}

fn register(bytes: Range<usize>) -> io::Result<OwnedFd> {
    const REGISTER_BUFFERS: libc::c_int = 0;
    // SAFETY: the calls take a zeroed structure of the kernel's size, and an array of one buffer.
    unsafe {
        let mut parameters = [0u32; 30];
        let ring = libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr());
        if ring < 0 {
            return Err(io::Error::last_os_error());
        }
        let ring = OwnedFd::from_raw_fd(ring as i32);
        let buffer = libc::iovec {
            iov_base: bytes.start as *mut _,
            iov_len: bytes.len(),
        };
        let done = libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_BUFFERS,
            &raw const buffer,
            1,
        );
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(ring)
    }
}
