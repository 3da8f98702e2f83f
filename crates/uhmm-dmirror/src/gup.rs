//! Pins and references, as the kernel's `gup_test` takes them: on pages of the program's choice, for the
//! length of the call, with the time that it took.
//!
//! Memory that the space manages is pinned by the space. Other memory never moves by itself, so there is
//! nothing to pin; it is faulted in, as a pin would do.

use crate::command::{END, field};
use crate::errno::Errno;
use crate::process::Process;
use std::ops::Range;
use std::time::Instant;
use uhmm::device::PAGE_SIZE;
use uhmm::mirror::{DeviceTable, Invalidation, Mirror, Need};
use uhmm::{Pin, PinError, PinFlags, RangeError};

/// Bytes of the struct.
pub const LEN: usize = 80;

/// `_IOWR('g', 0, struct)`; the tests count from here, and begin with 1.
pub const FIRST: u32 = 0xc050_6700;

/// `FOLL_WRITE`.
pub const WRITE: u32 = 1;
/// `FOLL_LONGTERM`, as Linux 6.12 has it.
pub const LONGTERM: u32 = 0x100;
/// `FOLL_LONGTERM`, as Linux 6.1 had it.
pub const LONGTERM_6_1: u32 = 0x1_0000;

/// What a test takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// References, by `get_user_pages`.
    References,
    /// Pins, by `pin_user_pages`.
    Pins,
}

/// A test that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// References or pins.
    pub take: Take,
    /// How.
    pub flags: PinFlags,
    /// Which pages: those that these bytes begin in.
    pub range: Range<usize>,
    /// How many of them a call.
    pub at_a_time: usize,
}

/// Reads a test. Of a request number the low 32 bits count.
///
/// # Errors
/// [`Errno::Inval`]: there is no such test, or its range goes past the end of the address space.
pub fn decode(request: u64, bytes: &[u8; LEN]) -> Result<Test, Errno> {
    let (take, fast, always_longterm) = match (request as u32).wrapping_sub(FIRST) {
        1 => (Take::References, true, false),
        2 => (Take::Pins, true, false),
        3 => (Take::Pins, false, true),
        4 => (Take::References, false, false),
        5 => (Take::Pins, false, false),
        _ => return Err(Errno::Inval),
    };
    let (address, size) = (field(bytes, 2), field(bytes, 3));
    let end = address.checked_add(size).filter(|end| *end <= END as u64);
    let start = address as usize / PAGE_SIZE * PAGE_SIZE;
    let len = size as usize / PAGE_SIZE * PAGE_SIZE;
    // Two `u32`, the first of them in the low half.
    let [at_a_time, flags] = [field(bytes, 4) as u32, (field(bytes, 4) >> 32) as u32];
    end.ok_or(Errno::Inval)?;
    Ok(Test {
        take,
        flags: PinFlags {
            write: flags & WRITE != 0,
            longterm: always_longterm || flags & (LONGTERM | LONGTERM_6_1) != 0,
            fast,
            peer: false,
        },
        range: start..start + len,
        at_a_time: at_a_time as usize,
    })
}

/// A table of a device that remembers nothing: it only has pages faulted in.
struct Nothing;

impl DeviceTable for Nothing {
    fn invalidate(&mut self, _what: &Invalidation) {}
}

/// `gup_test`, opened by a process.
pub struct Gup<'a> {
    process: Process<'a>,
    mirror: Mirror<'a, Nothing>,
    opened_by: u32,
}

impl<'a> Gup<'a> {
    pub(crate) fn open(process: Process<'a>) -> Result<Self, Errno> {
        Ok(Self {
            process,
            mirror: process.mirror(None, Nothing)?,
            opened_by: std::process::id(),
        })
    }

    /// Takes pages as a test says, and gives them back. `bytes` is the struct of `gup_test`: when all went
    /// well, the microseconds that both took are written to it, and as its size the bytes that were got,
    /// which are fewer where a page cannot be had.
    ///
    /// # Errors
    /// [`Errno`].
    pub fn ioctl(&self, request: u64, bytes: &mut [u8; LEN]) -> Result<(), Errno> {
        if self.opened_by != std::process::id() {
            return Err(Errno::Inval);
        }
        let test = decode(request, bytes)?;
        let start = Instant::now();
        let (pins, got) = self.take_all(&test);
        let get = start.elapsed();
        let start = Instant::now();
        drop(pins);
        let put = start.elapsed();
        let fields = [
            get.as_micros() as u64,
            put.as_micros() as u64,
            field(bytes, 2),
            got,
        ];
        for (to, field) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(fields) {
            *to = field.to_ne_bytes();
        }
        Ok(())
    }

    /// Takes all pages of a test up to the first that cannot be had; returns how many bytes that is.
    fn take_all(&self, test: &Test) -> (Vec<Pin<'a>>, u64) {
        // References are not for long, wherever the page is.
        if test.take == Take::References && test.flags.longterm {
            return (Vec::new(), 0);
        }
        let (mut pins, mut at) = (Vec::new(), test.range.start);
        while at < test.range.end && test.at_a_time > 0 {
            let call = at..test
                .range
                .end
                .min(at.saturating_add(test.at_a_time.saturating_mul(PAGE_SIZE)));
            if let Ok(pin) = self.take(test, &call) {
                pins.push(pin);
                at = call.end;
                continue;
            }
            // Not all of it, or not all of it by the space: page by page, then.
            for page in call.step_by(PAGE_SIZE) {
                match self.take(test, &(page..page + PAGE_SIZE)) {
                    Ok(pin) => pins.push(pin),
                    Err(PinError::Range(RangeError::Foreign)) if self.bring(test, page) => {}
                    Err(_) => return (pins, (page - test.range.start) as u64),
                }
                at = page + PAGE_SIZE;
            }
        }
        (pins, (at - test.range.start) as u64)
    }

    /// Takes pages that the space manages. A fast call looks first whether it can do without a fault.
    fn take(&self, test: &Test, bytes: &Range<usize>) -> Result<Pin<'a>, PinError> {
        let space = self.process.space();
        let take = |flags| match test.take {
            Take::References => space.get_pages(bytes.start, bytes.len(), flags),
            Take::Pins => space.pin_pages(bytes.start, bytes.len(), flags),
        };
        let slow = PinFlags {
            fast: false,
            ..test.flags
        };
        match test.flags.fast {
            true => take(test.flags).or_else(|_| take(slow)),
            false => take(slow),
        }
    }

    /// Faults in a page that the space does not manage. `false`: it is not there, or not for that.
    fn bring(&self, test: &Test, page: usize) -> bool {
        let need = if test.flags.write {
            Need::WRITE
        } else {
            Need::READ
        };
        let brought = self
            .mirror
            .range_fault(page, PAGE_SIZE, need, &[], |_, _| ());
        brought.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(address: u64, size: u64, at_a_time: u32, flags: u32) -> [u8; LEN] {
        let mut bytes = [0xaa; LEN];
        let [first, second] = [address, size].map(u64::to_ne_bytes);
        bytes[16..24].copy_from_slice(&first);
        bytes[24..32].copy_from_slice(&second);
        bytes[32..36].copy_from_slice(&at_a_time.to_ne_bytes());
        bytes[36..40].copy_from_slice(&flags.to_ne_bytes());
        bytes
    }

    #[test]
    fn numbers_and_flags_are_those_of_the_kernel() {
        let flags = |write, longterm, fast| PinFlags {
            write,
            longterm,
            fast,
            peer: false,
        };
        for (request, given, take, is) in [
            (0xc050_6701, 0, Take::References, flags(false, false, true)),
            (0xc050_6702, 1, Take::Pins, flags(true, false, true)),
            (0xc050_6702, 0x101, Take::Pins, flags(true, true, true)),
            (0xc050_6703, 1, Take::Pins, flags(true, true, false)),
            (0xc050_6704, 1, Take::References, flags(true, false, false)),
            (0xc050_6705, 0x1_0000, Take::Pins, flags(false, true, false)),
        ] {
            let test = Test {
                take,
                flags: is,
                range: 0x7000..0x9000,
                at_a_time: 3,
            };
            // Pages are those that the bytes begin in, and whole.
            for (address, size) in [(0x7000, 0x2000), (0x7fff, 0x2fff)] {
                let decoded = decode(request, &bytes(address, size, 3, given));
                assert_eq!(decoded, Ok(test.clone()));
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for request in [0, 0xc050_6700, 0xc050_6706, 0xc050_6709, 0xc04c_6704] {
            assert_eq!(
                decode(request, &bytes(0x7000, 0x1000, 1, 0)),
                Err(Errno::Inval)
            );
        }
        let end = END as u64;
        for (address, size) in [(end, 1), (end - 1, 2), (1, u64::MAX), (u64::MAX, 1)] {
            let decoded = decode(0xc050_6704, &bytes(address, size, 1, 0));
            assert_eq!(decoded, Err(Errno::Inval), "{address:#x}, {size:#x}");
        }
        assert!(decode(0xc050_6704, &bytes(end, 0, 1, 0)).is_ok());
    }
}
