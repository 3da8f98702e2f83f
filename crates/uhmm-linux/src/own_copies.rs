//! Pages of a private mapping of a file that the program has written to: they are its own, and no file's,
//! but they lie in a mapping that userfaultfd does not serve.
//!
//! To be managed they have to lie in anonymous memory. So a mapping of that kind takes the place of the old
//! one there, with the same bytes and the same protection. Pages that are the file's still stay where they
//! are: migration is for what is the program's own, in the kernel too.
//!
//! What a thread writes between the copy and the exchange would be lost, and nothing in user space holds it
//! up. So it is done only where there is no such thread: where the caller is the program's only one. Its
//! signals are blocked, devices are kept away by their notifiers, and the threads of an engine write to no
//! memory that is not managed. I/O of the kernel's into these pages that is under way meanwhile (io_uring,
//! AIO) is not seen: as with a fork, it goes to the old page.

use crate::abi::{pagemap, process_vm};
use crate::end::die_plainly;
use crate::engine::is_only_thread;
use crate::mmu::LinuxMmu;
use crate::vmas::Vma;
use rustix::mm::{self, MapFlags, ProtFlags};
use std::ops::Range;

impl Vma {
    /// Whether it is a private mapping of a file that the program may write to, and is like memory that can
    /// be adopted in all else.
    pub fn may_have_own_copies(&self) -> bool {
        let special = ["ht", "io", "pf", "mm", "lo", "gd", "dc", "wf", "uw", "ui"];
        let may = |all: &[char]| all.iter().all(|&is| self.may(is));
        self.is_file()
            && may(&['r', 'w', 'p'])
            && !self.may('x')
            && !special.iter().any(|flag| self.has(flag))
    }
}

impl LinuxMmu {
    /// Has the program's own copies of pages of `vma`, a private mapping of a file, lie in anonymous memory,
    /// and returns where they are: nowhere if the program has other threads, or the kernel no room. From
    /// inside the gate, with signals blocked, and devices kept away from the pages.
    pub fn own_copies(&self, vma: &Vma) -> Vec<Range<usize>> {
        let mut copies = Vec::new();
        if !vma.may_have_own_copies() || !is_only_thread() {
            return copies;
        }
        let (there, kinds) = (
            pagemap::PRESENT | pagemap::SWAPPED,
            pagemap::FILE | pagemap::ZERO_PAGE,
        );
        let file = self.files.pagemap();
        let scanned = pagemap::scan_telling(file, vma.range.clone(), there, kinds, |found, is| {
            if is == 0 {
                copies.push(found);
            }
        });
        if scanned.is_err() {
            return Vec::new();
        }
        copies.retain(exchange);
        copies
    }
}

/// Puts anonymous memory with the same bytes in the place of `range`, which may be read and written.
/// `false`: nothing has changed.
fn exchange(range: &Range<usize>) -> bool {
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(range.len()).is_err() {
        return false;
    }
    bytes.resize(range.len(), 0);
    if process_vm::read(range.start, &mut bytes) < range.len() {
        return false;
    }
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: the program's own mapping, which nobody else touches meanwhile (see the module's head), is
    // what it was when this is done.
    let mapped = unsafe {
        mm::mmap_anonymous(
            range.start as *mut _,
            range.len(),
            protection,
            flags | MapFlags::FIXED,
        )
    };
    match mapped {
        Ok(_) => {
            // SAFETY: as above.
            if unsafe { process_vm::write(range.start, &bytes) } < range.len() {
                die_plainly("uhmm: out of memory: the program's memory cannot be put back\n");
            }
            true
        }
        // The kernel takes the old mapping away first, and may then have no memory for the new one.
        Err(_) if process_vm::read(range.start, &mut bytes[..1]) == 0 => {
            die_plainly("uhmm: out of memory: the program's memory cannot be put back\n")
        }
        Err(_) => false,
    }
}
