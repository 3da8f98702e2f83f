//! A program whose system calls on its mappings somebody has taken over, and makes by way of the space.

use crate::World;
use std::io;
use std::ops::Range;
use uhmm::memory::Protection;
use uhmm::{AdoptError, Migrated, Place};
use uhmm_core::addr::PAGE_SIZE;

pub const NONE: Protection = Protection::empty();
pub const READ: Protection = Protection::READ;
pub const ALL: Protection = Protection::READ.union(Protection::WRITE);

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A fresh mapping at exactly `at`, of a file if `fd` is one.
pub fn map_over(at: usize, len: usize, fd: libc::c_int) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
    let flags = flags | if fd == -1 { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: the caller gives up what is there.
    let mapped = unsafe { libc::mmap(at as *mut _, len, ALL.bits() as i32, flags, fd, 0) };
    match mapped {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Each call is on pages of the world's own mapping, by place; what the test does not use meanwhile.
impl World {
    pub fn bytes(&self, pages: &Range<usize>) -> (usize, usize) {
        (self.at(pages.start) as usize, pages.len() * PAGE_SIZE)
    }

    /// Has the space manage them; returns which pages are.
    pub fn manage(&self, pages: Range<usize>) -> Result<Vec<Range<usize>>, AdoptError> {
        let (at, len) = self.bytes(&pages);
        // SAFETY: the mapping is changed by the calls below alone.
        let managed = unsafe { self.space.manage(at, len) }?;
        let page = |address: usize| (address - self.at(0) as usize) / PAGE_SIZE;
        let pages = managed.into_iter().map(|of| page(of.start)..page(of.end));
        Ok(pages.collect())
    }

    pub fn migrate(&self, pages: Range<usize>, to: Place) -> Migrated {
        let (at, len) = self.bytes(&pages);
        pages.for_each(|page| _ = self.state(page));
        self.space.migrate(at, len, to).unwrap()
    }

    pub fn munmap(&self, pages: Range<usize>) -> io::Result<()> {
        let (at, len) = self.bytes(&pages);
        // SAFETY: a call on the test's own memory.
        let call = || done(unsafe { libc::munmap(at as *mut _, len) });
        // SAFETY: nothing of it is borrowed.
        unsafe { self.space.memory().around_unmap(at, len, call) }
    }

    /// Maps fresh memory in their place.
    pub fn map_again(&self, pages: Range<usize>) -> io::Result<()> {
        let (at, len) = self.bytes(&pages);
        let call = || map_over(at, len, -1);
        // SAFETY: nothing of it is borrowed.
        unsafe { self.space.memory().around_unmap(at, len, call) }?;
        pages.for_each(|page| self.oracle.discard(page));
        Ok(())
    }

    pub fn mprotect(&self, pages: Range<usize>, protection: Protection) -> io::Result<()> {
        let (at, len) = self.bytes(&pages);
        let bits = protection.bits() as i32;
        // SAFETY: as above.
        let call = || done(unsafe { libc::mprotect(at as *mut _, len, bits) });
        let memory = self.space.memory();
        // SAFETY: as above.
        unsafe { memory.around_protect(at, len, protection, call) }
    }

    pub fn dontneed(&self, pages: Range<usize>) -> io::Result<()> {
        let (at, len) = self.bytes(&pages);
        // SAFETY: as above.
        let call = || done(unsafe { libc::madvise(at as *mut _, len, libc::MADV_DONTNEED) });
        // SAFETY: as above.
        unsafe { self.space.memory().around_discard(at, len, call) }?;
        pages.for_each(|page| self.oracle.discard(page));
        Ok(())
    }

    /// Moves the mapping of pages over other pages of the world, which are as many.
    pub fn mremap(&self, from: Range<usize>, to: usize) -> io::Result<()> {
        let (at, len) = self.bytes(&from);
        let new = self.at(to) as usize;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let call = || {
            // SAFETY: as above.
            let moved = unsafe { libc::mremap(at as *mut _, len, len, flags, new) };
            match moved {
                libc::MAP_FAILED => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        };
        let memory = self.space.memory();
        // SAFETY: as above.
        unsafe { memory.around_move(at..at + len, Some(new..new + len), call) }
    }

    /// Whether the kernel reads, or writes, a byte there for the program, which needs no fault to be served.
    pub fn may(&self, page: usize, protection: Protection) -> bool {
        let mut ends = [0; 2];
        // SAFETY: two numbers.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        let at = self.at(page);
        // SAFETY: a byte of the page, which stays what it is; and both ends, which are ours.
        unsafe {
            let read = libc::write(ends[1], at.cast(), 1) == 1;
            let write = protection.contains(Protection::WRITE);
            let written = !write || read && libc::read(ends[0], at.cast(), 1) == 1;
            ends.into_iter().for_each(|end| _ = libc::close(end));
            read && written
        }
    }
}
