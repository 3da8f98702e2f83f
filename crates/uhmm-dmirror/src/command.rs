//! The commands as programs send them: one struct of five `u64`, of which a driver believes nothing
//! until it has been looked at.
//!
//! | field | what |
//! | --- | --- |
//! | `addr` | in: the first byte, on a page |
//! | `ptr` | in: where the device's bytes come from or go to |
//! | `npages` | in: how many pages |
//! | `cpages` | out: how many pages were dealt with |
//! | `faults` | out: in how many rounds the device had to fault pages in |

use crate::errno::Errno;
use std::ops::Range;
use uhmm::device::PAGE_SIZE;

/// Bytes of the struct.
pub const LEN: usize = 40;

/// `_IOWR('H', 0, struct)`; the commands count from here.
pub const FIRST: u32 = 0xc028_4800;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The device reads the pages.
    Read,
    /// The device writes the pages.
    Write,
    /// The pages migrate to the device, which then reads them where they are.
    MigrateToDevice,
    /// The device's pages migrate back.
    MigrateToSystem,
    /// What each page is to the device: a byte each.
    Snapshot,
    /// The pages become the device's alone, and it reads them.
    Exclusive,
    /// Whether none of the pages is the device's alone any more.
    CheckExclusive,
    /// All memory of the device goes; its pages come home first.
    Release,
}

/// In the order of their numbers.
const OPS: [Op; 8] = [
    Op::Read,
    Op::Write,
    Op::MigrateToDevice,
    Op::MigrateToSystem,
    Op::Snapshot,
    Op::Exclusive,
    Op::CheckExclusive,
    Op::Release,
];

impl Op {
    /// The request number.
    pub const fn request(self) -> u64 {
        FIRST as u64 + self as u64
    }
}

/// A command that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub(crate) op: Op,
    /// Whole pages, at least one.
    pub(crate) range: Range<usize>,
    /// Where the device's bytes come from or go to. Nothing is known of this one.
    pub(crate) buffer: usize,
}

impl Command {
    /// To do `op` with `pages` pages at `address`; `buffer` is where the device's bytes come from or go to.
    ///
    /// # Errors
    /// [`Errno::Inval`]: the range is empty, does not begin on a page, or goes past the end of the address
    /// space.
    pub fn new(op: Op, address: u64, pages: u64, buffer: u64) -> Result<Self, Errno> {
        let range = whole_pages(address, pages).ok_or(Errno::Inval)?;
        let buffer = buffer as usize;
        Ok(Self { op, range, buffer })
    }
}

/// What a command that went well returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Pages that were dealt with.
    pub pages: u64,
    /// Rounds in which pages were faulted in.
    pub faults: u64,
}

/// Reads a command. Of a request number the low 32 bits count, as in the kernel.
///
/// # Errors
/// [`Errno::Inval`]: there is no such command, or as of [`Command::new`].
pub fn decode(request: u64, bytes: &[u8; LEN]) -> Result<Command, Errno> {
    let number = (request as u32).checked_sub(FIRST).ok_or(Errno::Inval)?;
    let op = *OPS.get(number as usize).ok_or(Errno::Inval)?;
    let [address, buffer, pages] = [0, 1, 2].map(|index| field(bytes, index));
    Command::new(op, address, pages, buffer)
}

impl Reply {
    /// Writes the out fields.
    pub fn encode(self, bytes: &mut [u8; LEN]) {
        bytes[24..32].copy_from_slice(&self.pages.to_ne_bytes());
        bytes[32..].copy_from_slice(&self.faults.to_ne_bytes());
    }
}

/// Where addresses of programs end.
pub(crate) const END: usize = 1 << 47;

fn whole_pages(address: u64, pages: u64) -> Option<Range<usize>> {
    let len = pages.checked_mul(PAGE_SIZE as u64)?;
    let end = address.checked_add(len)?;
    let fine = address.is_multiple_of(PAGE_SIZE as u64) && len > 0 && end <= END as u64;
    fine.then_some(address as usize..end as usize)
}

/// The field with this index of a struct of `u64`.
pub(crate) fn field(bytes: &[u8], index: usize) -> u64 {
    let (words, _) = bytes.as_chunks();
    u64::from_ne_bytes(words[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(address: u64, buffer: u64, pages: u64) -> [u8; LEN] {
        let mut bytes = [0xaa; LEN];
        for (i, field) in [address, buffer, pages].into_iter().enumerate() {
            bytes[8 * i..8 * i + 8].copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn numbers_are_those_of_the_kernel() {
        let given = bytes(0x7000, 0x1234_5678, 3);
        for (n, op) in OPS.into_iter().enumerate() {
            assert_eq!(op.request(), 0xc028_4800 + n as u64);
            let command = Command {
                op,
                range: 0x7000..0xa000,
                buffer: 0x1234_5678,
            };
            assert_eq!(decode(op.request(), &given), Ok(command.clone()));
            // A C library that takes the number as an `int` extends its sign.
            assert_eq!(decode(op.request() | u64::MAX << 32, &given), Ok(command));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let read = Op::Read.request();
        let end = END as u64;
        for (request, given) in [
            (read + 8, bytes(0x7000, 0, 1)),
            (read - 1, bytes(0x7000, 0, 1)),
            (0, bytes(0x7000, 0, 1)),
            (read, bytes(0x7001, 0, 1)),
            (read, bytes(0x7000, 0, 0)),
            (read, bytes(end, 0, 1)),
            (read, bytes(end - 0x1000, 0, 2)),
            (read, bytes(0x7000, 0, u64::MAX)),
            (read, bytes(0x7000, 0, u64::MAX >> 12)),
            (read, bytes(0x7000, 0, (u64::MAX >> 12) + 2)),
            (read, bytes(u64::MAX - 0xfff, 0, 1)),
        ] {
            assert_eq!(decode(request, &given), Err(Errno::Inval), "{given:x?}");
        }
        assert!(decode(read, &bytes(end - 0x1000, u64::MAX, 1)).is_ok());
    }

    #[test]
    fn a_reply_changes_the_out_fields_and_no_other() {
        let mut given = bytes(1, 2, 3);
        let (pages, faults) = (4, 5);
        Reply { pages, faults }.encode(&mut given);
        let fields: Vec<u64> = (0..5).map(|i| field(&given, i)).collect();
        assert_eq!(fields, [1, 2, 3, 4, 5]);
    }

    /// No bytes make it panic, and what it accepts is a range of whole pages.
    #[test]
    fn any_bytes_are_refused_or_make_sense() {
        let mut random = 1_u64;
        let mut next = || {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // Often near an edge.
            (random >> 33).rotate_right((random % 64) as u32)
        };
        let mut accepted = 0;
        for _ in 0..200_000 {
            let request = Op::Read.request().wrapping_add(next() % 10);
            let address = next() & if next() % 2 == 0 { !0xfff } else { !0 };
            let given = bytes(address, next(), next());
            if let Ok(command) = decode(request, &given) {
                accepted += 1;
                assert!(command.range.start < command.range.end && command.range.end <= END);
                assert!(command.range.start.is_multiple_of(PAGE_SIZE));
                assert!(command.range.len().is_multiple_of(PAGE_SIZE));
            }
        }
        assert!(accepted > 100, "{accepted}");
    }
}
