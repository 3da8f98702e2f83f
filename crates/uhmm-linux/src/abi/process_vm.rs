//! `process_vm_readv` and `process_vm_writev` of this process itself: memory that may not be there is an
//! error, and no signal.

use super::last_errno;
use rustix::io::Errno;
use std::ffi::c_void;

/// Copies bytes from `address` on to `to`; returns how many there were before the first that the program
/// may not read.
pub fn read(address: usize, to: &mut [u8]) -> usize {
    let local = to.as_mut_ptr().cast();
    // SAFETY: the kernel writes to `to` alone, and checks the rest.
    copy(local, address, to.len(), |local, remote| unsafe {
        libc::process_vm_readv(libc::getpid(), local, 1, remote, 1, 0)
    })
}

/// Copies `from` to `address`; returns how many bytes there were before the first that the program may not
/// write to.
///
/// # Safety
/// What lies there is given up to whoever calls this: no Rust value is changed that does not expect it.
pub unsafe fn write(address: usize, from: &[u8]) -> usize {
    let local = from.as_ptr().cast_mut().cast();
    // SAFETY: the kernel only reads `from`, and checks the rest; the caller has the memory.
    copy(local, address, from.len(), |local, remote| unsafe {
        libc::process_vm_writev(libc::getpid(), local, 1, remote, 1, 0)
    })
}

/// A call does a part where a page cannot be had: the next one says so.
fn copy(
    local: *mut c_void,
    address: usize,
    len: usize,
    call: impl Fn(*const libc::iovec, *const libc::iovec) -> libc::ssize_t,
) -> usize {
    let mut done = 0;
    while done < len {
        let part = |base: *mut c_void| libc::iovec {
            iov_base: base.wrapping_byte_add(done),
            iov_len: len - done,
        };
        match call(&part(local), &part(address as *mut c_void)) {
            copied if copied > 0 => done += copied as usize,
            copied if copied < 0 && last_errno() == Errno::INTR => {}
            _ => break,
        }
    }
    done
}
