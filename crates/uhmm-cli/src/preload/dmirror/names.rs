//! The files that the program finds, by name.
//!
//! A name is compared as it is given: other ways to the same place (a link, a path from a directory) lead
//! to what the kernel has there.

use libc::{c_char, c_void, iovec};
use std::ffi::CStr;
use uhmm_dmirror::UNITS;

/// What a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A device.
    Device(usize),
    /// What pins pages.
    Gup,
}

const DEVICE: &[u8] = b"/dev/hmm_dmirror";
const GUP: &[u8] = b"/sys/kernel/debug/gup_test";

/// More than the longest name and the zero byte behind it.
const LONGEST: usize = 32;

const PAGE: usize = 4096;

impl Name {
    /// What the string at `path` is the name of. The kernel copies it, so an address that is no string's is
    /// nobody's name.
    pub fn of(path: *const c_char) -> Option<Self> {
        let mut bytes = [0; LONGEST];
        let len = copy(path as usize, &mut bytes);
        let name = CStr::from_bytes_until_nul(&bytes[..len]).ok()?.to_bytes();
        if name == GUP {
            return Some(Self::Gup);
        }
        match name.strip_prefix(DEVICE)? {
            [digit @ b'0'..=b'9'] => {
                let unit = usize::from(digit - b'0');
                (unit < UNITS).then_some(Self::Device(unit))
            }
            _ => None,
        }
    }

    /// What the memory file behind it is called, in `/proc/self/fd`.
    pub fn of_memory(self) -> &'static CStr {
        match self {
            Self::Device(0) => c"hmm_dmirror0",
            Self::Device(1) => c"hmm_dmirror1",
            Self::Device(2) => c"hmm_dmirror2",
            Self::Device(_) => c"hmm_dmirror3",
            Self::Gup => c"gup_test",
        }
    }
}

/// Copies what is there of the bytes at `from`; returns how many.
fn copy(from: usize, to: &mut [u8; LONGEST]) -> usize {
    // In two parts where a page ends: it may be the last.
    let first = (PAGE - from % PAGE).min(LONGEST);
    let part = |at: usize, len| iovec {
        iov_base: at as *mut c_void,
        iov_len: len,
    };
    let local = part(to.as_mut_ptr() as usize, LONGEST);
    let remote = [
        part(from, first),
        part(from.wrapping_add(first), LONGEST - first),
    ];
    // SAFETY: writes no more than `to` has; of what is read, the kernel checks that it is there.
    let copied = unsafe {
        let me = libc::getpid();
        libc::process_vm_readv(me, &raw const local, 1, remote.as_ptr(), 2, 0)
    };
    usize::try_from(copied).unwrap_or(0)
}
