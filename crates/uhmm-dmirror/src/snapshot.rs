//! What the device sees of a range, in a byte for each page.

use crate::access::batches;
use crate::errno::Errno;
use crate::file::File;
use std::ops::Range;
use uhmm::device::PAGE_SIZE;
use uhmm::mirror::Mapped;

/// Not mapped, no access, or lost.
pub const ERROR: u8 = 0xff;
/// Not there, or where this device does not reach it.
pub const NONE: u8 = 0;
/// It may be read.
pub const READ: u8 = 1;
/// It may be read and written.
pub const WRITE: u8 = 2;
/// In a huge mapping of 2 MiB.
pub const PMD: u8 = 4;
/// In a huge mapping of 1 GiB.
pub const PUD: u8 = 8;
/// The kernel's page of zeros.
pub const ZERO: u8 = 0x10;
/// In private memory of this device.
pub const PRIVATE: u8 = 0x20;
/// In coherent memory of this device.
pub const COHERENT: u8 = 0x40;
/// In coherent memory of another device. (Private memory of another one is not reached: [`NONE`].)
pub const COHERENT_REMOTE: u8 = 0x50;

impl File<'_> {
    /// Writes a byte for each page to `buffer`. Nothing is faulted in.
    pub(crate) fn snapshot(&self, range: Range<usize>, buffer: usize) -> Result<(), Errno> {
        for batch in batches(range.clone()) {
            let found = self.mirror.snapshot(batch.start, batch.len())?;
            let bytes: Vec<u8> = found.iter().map(|&mapped| self.byte(mapped)).collect();
            let before = (batch.start - range.start) / PAGE_SIZE;
            let to = buffer.checked_add(before).ok_or(Errno::Fault)?;
            self.process.write(to, &bytes)?;
        }
        Ok(())
    }

    fn byte(&self, mapped: Mapped) -> u8 {
        let rights = |write| if write { WRITE } else { READ };
        match mapped {
            Mapped::Error => ERROR,
            Mapped::Nothing => NONE,
            Mapped::Ram { write, zero, order } => {
                let size = match order {
                    18.. => PUD,
                    9.. => PMD,
                    _ => 0,
                };
                rights(write) | size | if zero { ZERO } else { 0 }
            }
            Mapped::Device { write, .. } => {
                let place = match (self.is_local(mapped), self.unit.device.is_private()) {
                    (true, true) => PRIVATE,
                    (true, false) => COHERENT,
                    (false, _) => COHERENT_REMOTE,
                };
                place | rights(write)
            }
        }
    }
}
