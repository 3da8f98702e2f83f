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
        libc::process_vm_readv(own(), local, 1, remote, 1, 0)
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
        libc::process_vm_writev(own(), local, 1, remote, 1, 0)
    })
}

/// This process: a child of a fork has another number.
fn own() -> libc::pid_t {
    std::process::id() as libc::pid_t
}

/// A call does a part where a page cannot be had: the next one says so.
fn copy(
    local: *mut c_void,
    address: usize,
    len: usize,
    call: impl Fn(*const libc::iovec, *const libc::iovec) -> isize,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;
    use rustix::mm::MprotectFlags;

    #[test]
    fn bytes_are_copied_up_to_what_may_not_be_touched() {
        let map = Mapping::anonymous(4 * 4096, c"uhmm-test").unwrap();
        map.allow_all().unwrap();
        map.protect(2 * 4096, 4096, MprotectFlags::READ).unwrap();
        map.protect(3 * 4096, 4096, MprotectFlags::empty()).unwrap();
        let at = |offset: usize| map.address() + offset;
        // SAFETY: the test's own.
        let write = |offset, bytes: &[u8]| unsafe { super::write(at(offset), bytes) };
        assert_eq!(write(4000, &[7; 200]), 200);
        assert_eq!(
            write(2 * 4096 - 3, &[8; 200]),
            3,
            "the rest may only be read"
        );
        let mut bytes = [1; 4096];
        assert_eq!(read(at(4096), &mut bytes), 4096);
        assert_eq!(bytes[..104], [7; 104]);
        assert_eq!(bytes[104..4093], [0; 3989]);
        assert_eq!(bytes[4093..], [8; 3]);
        bytes.fill(1);
        assert_eq!(read(at(3 * 4096 - 9), &mut bytes), 9);
        assert_eq!(bytes[..9], [0; 9]);
        assert_eq!(bytes[9..], [1; 4087], "nothing after it");
        assert_eq!(read(8, &mut bytes), 0);
        assert_eq!(read(usize::MAX - 8, &mut bytes), 0);
        assert_eq!(read(at(0), &mut []), 0);
    }
}
