//! What the kernel tells a signal handler about the access that faulted.

use std::ffi::c_void;
use uhmm_core::fault::Access;

/// What a fault's error says, on any CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Error {
    /// It was a write.
    write: bool,
    /// The page was there, and the access not allowed.
    present: bool,
}

impl Error {
    fn access(self) -> Access {
        match (self.write, self.present) {
            (true, true) => Access::Tracked,
            (true, false) => Access::Write,
            (false, _) => Access::Read,
        }
    }
}

/// What the interrupted thread did.
///
/// It may be out of date: the CPU says what it met, and by the time the kernel looked the page may have
/// come or gone. The core goes by the page's entry, and a touch that was taken for another one repeats.
///
/// # Safety
/// `context` must be the third argument of a handler of a SIGBUS that the CPU's fault has caused.
pub(super) unsafe fn access(context: *const c_void) -> Access {
    // SAFETY: as the caller promises.
    let error = unsafe { error(context.cast()) };
    error.access()
}

#[cfg(target_arch = "x86_64")]
unsafe fn error(context: *const libc::ucontext_t) -> Error {
    // SAFETY: the kernel has filled the registers.
    let code = unsafe { (*context).uc_mcontext.gregs[libc::REG_ERR as usize] };
    page_fault_error(code as u64)
}

/// Bits of the page-fault error code: "Page-Fault Exceptions" in volume 3 of Intel's manual.
#[cfg(any(target_arch = "x86_64", test))]
fn page_fault_error(code: u64) -> Error {
    Error {
        write: code & 1 << 1 != 0,
        present: code & 1 != 0,
    }
}

#[cfg(target_arch = "aarch64")]
unsafe fn error(context: *const libc::ucontext_t) -> Error {
    /// Bytes of the records at the end of the machine's context.
    const RECORDS: usize = 4096;
    const MAGIC: u32 = 0x4553_5201;
    let start = size_of::<libc::mcontext_t>() - RECORDS;
    // SAFETY: the records lie at the end of the context, and the kernel has filled them: each begins with
    // a magic number and its size, and one of size zero is the last.
    unsafe {
        let mut record = (&raw const (*context).uc_mcontext).cast::<u8>().add(start);
        let end = record.add(RECORDS);
        while record.add(16) <= end {
            let (magic, size) = (
                record.cast::<u32>().read_unaligned(),
                record.cast::<u32>().add(1).read_unaligned(),
            );
            if magic == MAGIC {
                return syndrome(record.add(8).cast::<u64>().read_unaligned());
            }
            if size == 0 {
                break;
            }
            record = record.add(size as usize);
        }
    }
    // The kernel leaves the record out where there is nothing to tell: no data abort.
    Error {
        write: false,
        present: false,
    }
}

/// The exception syndrome of a data abort: "ESR_EL1" in the Arm architecture's manual.
#[cfg(any(target_arch = "aarch64", test))]
fn syndrome(esr: u64) -> Error {
    const DATA_ABORT: u64 = 0x24;
    const WRITE: u64 = 1 << 6;
    const CACHE_MAINTENANCE: u64 = 1 << 8;
    /// Permission faults of each level.
    const PERMISSION: std::ops::RangeInclusive<u64> = 0x0c..=0x0f;
    let is_data = esr >> 26 & 0x3f == DATA_ABORT;
    Error {
        write: is_data && esr & WRITE != 0 && esr & CACHE_MAINTENANCE == 0,
        present: is_data && PERMISSION.contains(&(esr & 0x3f)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x86_64_tells_reads_writes_and_protected_writes_apart() {
        // User mode is bit 2, an instruction fetch bit 4.
        assert_eq!(page_fault_error(0b0_0100).access(), Access::Read);
        assert_eq!(page_fault_error(0b0_0110).access(), Access::Write);
        assert_eq!(page_fault_error(0b0_0111).access(), Access::Tracked);
        assert_eq!(page_fault_error(0b1_0100).access(), Access::Read);
    }

    #[test]
    fn arm64_tells_reads_writes_and_protected_writes_apart() {
        const DATA: u64 = 0x24 << 26;
        const FETCH: u64 = 0x20 << 26;
        assert_eq!(syndrome(DATA | 0x07).access(), Access::Read);
        assert_eq!(syndrome(DATA | 1 << 6 | 0x07).access(), Access::Write);
        assert_eq!(syndrome(DATA | 1 << 6 | 0x0f).access(), Access::Tracked);
        assert_eq!(syndrome(FETCH | 0x07).access(), Access::Read);
        // A cache line that is cleaned says "write" and is none.
        let clean = DATA | 1 << 8 | 1 << 6 | 0x07;
        assert_eq!(syndrome(clean).access(), Access::Read);
    }
}
