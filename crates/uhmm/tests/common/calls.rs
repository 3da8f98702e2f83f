//! System calls on managed memory, in either engine: the kernel waits for a handler thread, and does not
//! wait for a signal handler.

use std::io::{self, Read, Write};
use uhmm::{Engine, Space};

/// What a page's size is to the kernel.
const PAGE: usize = 4096;

/// How often a page may have gone again between a touch and the call.
const PATIENCE: usize = 1000;

/// Writes all of `from`, which is memory of `space`. Some of it must be missing: in the thread engine the
/// kernel has it brought in, in the signal engine it says `EFAULT` there, and a touch is the mend.
pub fn write_missing(space: &Space, mut to: impl Write, from: &[u8]) {
    transfer(space, from.as_ptr().cast_mut(), from.len(), |done| {
        to.write(&from[done..])
    });
}

/// Fills `to`, as [`write_missing`].
pub fn read_missing(space: &Space, mut from: impl Read, to: &mut [u8]) {
    let (address, len) = (to.as_mut_ptr(), to.len());
    transfer(space, address, len, |done| from.read(&mut to[done..]));
}

fn transfer(
    space: &Space,
    address: *mut u8,
    len: usize,
    mut some: impl FnMut(usize) -> io::Result<usize>,
) {
    let (mut done, mut faults, mut in_vain) = (0, 0, 0);
    while done < len {
        match some(done) {
            Ok(0) => panic!("the end of the file after {done} bytes of {len}"),
            Ok(bytes) => {
                done += bytes;
                in_vain = 0;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{error}");
                assert_eq!(space.engine(), Engine::Signal, "the kernel has not waited");
                faults += 1;
                in_vain += 1;
                assert!(in_vain < PATIENCE, "the page at {done} does not stay");
                for byte in [done, (done + PAGE).min(len - 1)] {
                    let byte = address.wrapping_add(byte);
                    // SAFETY: within the range, which nobody else uses. A write, since the kernel's is one.
                    unsafe { byte.write_volatile(byte.read_volatile()) };
                }
            }
        }
    }
    if space.engine() == Engine::Signal {
        assert!(
            faults > 0,
            "no page was missing, or the kernel has waited for us"
        );
    }
}
