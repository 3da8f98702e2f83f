//! What is present, by address.

use crate::abi::pagemap;
use crate::end::die_plainly;
use crate::mmu::LinuxMmu;
use rustix::io::Errno;
use rustix::mm::{self, Advice};
use std::io::Write;
use std::ops::Range;
use uhmm_core::addr::PAGE_SIZE;

impl LinuxMmu {
    /// Calls `each` with every maximal range of present bytes within `range`, in ascending order.
    pub(crate) fn scan_present(&self, range: Range<usize>, mut each: impl FnMut(Range<usize>)) {
        let any = pagemap::PRESENT | pagemap::SWAPPED;
        let file = self.files.pagemap();
        if let Err(errno) = pagemap::scan_in(file, range, any, |found, _| each(found)) {
            scan_failed(errno);
        }
    }

    /// The first range of present bytes within `pages` pages from `address` on.
    pub(crate) fn first_present(&self, address: usize, pages: usize) -> Option<Range<usize>> {
        let mut first = None;
        self.scan_present(address..address + pages * PAGE_SIZE, |found| {
            first.get_or_insert(found);
        });
        first
    }

    /// Makes the present pages of `range` private to this process again after a fork. Missing ones
    /// are not touched: that would wait for ourselves.
    pub(crate) fn populate_present(&self, range: Range<usize>) {
        self.scan_present(range, |found| {
            // SAFETY: present pages of our own mappings; a private copy changes no bytes.
            let _ = unsafe {
                mm::madvise(
                    found.start as *mut _,
                    found.len(),
                    Advice::LinuxPopulateWrite,
                )
            };
        });
    }
}

/// Ends the process. A page that is taken for absent is taken for zeros next, so there is no going on
/// without an answer. No memory is allocated for the message: the caller may be an allocation.
fn scan_failed(errno: Errno) -> ! {
    let mut line = [0; 160];
    let mut rest = &mut line[..];
    let _ = writeln!(
        rest,
        "uhmm: cannot ask the kernel what is mapped (PAGEMAP_SCAN: errno {}); stopping rather than \
         losing data",
        errno.raw_os_error()
    );
    let left = rest.len();
    let written = &line[..line.len() - left];
    die_plainly(str::from_utf8(written).unwrap_or("uhmm: PAGEMAP_SCAN failed\n"))
}
