//! `PAGEMAP_SCAN` (Linux 6.7): what is really mapped, in bulk; and the words of the file itself, which say
//! whether anybody else maps a page.

use linux_raw_sys::general::{page_region, pm_scan_arg};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{self, Errno};
use rustix::ioctl::{Updater, ioctl, opcode};
use std::ffi::CStr;
use std::ops::Range;

/// The file to scan, of the process that opens it.
pub const PATH: &CStr = c"/proc/self/pagemap";

const PAGEMAP_SCAN: rustix::ioctl::Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);

/// The page is a file's, or of memory that is shared.
pub const FILE: u64 = 1 << 2;
/// The page is in memory.
pub const PRESENT: u64 = 1 << 3;
/// The page is in the kernel's swap.
pub const SWAPPED: u64 = 1 << 4;
/// The page is the kernel's shared page of zeros.
pub const ZERO_PAGE: u64 = 1 << 5;
/// The page is part of a huge mapping.
pub const HUGE: u64 = 1 << 6;

/// As [`scan_in`], in a file opened for this call. For probes and tests: a space keeps its file open
/// ([`ProcFiles`](crate::proc_files::ProcFiles)).
///
/// # Errors
/// What opening [`PATH`] returns, and as [`scan_in`].
pub fn scan(range: Range<usize>, any: u64, each: impl FnMut(Range<usize>, u64)) -> io::Result<()> {
    let pagemap = open(PATH, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    scan_in(pagemap.as_fd(), range, any, each)
}

/// Calls `each` with every maximal range of bytes in `range` whose pages are in any of the
/// categories `any`, and the categories that they share, in ascending order. `pagemap` is [`PATH`],
/// opened by this process itself: after a fork, one that was opened before is about the parent.
///
/// # Errors
/// What the scan returns, `EINTR` excepted; `ENOTTY` before Linux 6.7. `each` has then been called
/// for a part of the range, and what it was not called for is unknown.
pub fn scan_in(
    pagemap: BorrowedFd<'_>,
    range: Range<usize>,
    any: u64,
    each: impl FnMut(Range<usize>, u64),
) -> io::Result<()> {
    scan_telling(pagemap, range, any, any, each)
}

/// As [`scan_in`], and tells those of the categories `tell` that the pages of a range have.
///
/// # Errors
/// As [`scan_in`].
pub fn scan_telling(
    pagemap: BorrowedFd<'_>,
    range: Range<usize>,
    any: u64,
    tell: u64,
    mut each: impl FnMut(Range<usize>, u64),
) -> io::Result<()> {
    let mut regions = [page_region {
        start: 0,
        end: 0,
        categories: 0,
    }; 256];
    let mut start = range.start;
    while start < range.end {
        let mut arg = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: 0,
            start: start as u64,
            end: range.end as u64,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: 0,
            category_anyof_mask: any,
            return_mask: tell,
        };
        // SAFETY: the argument is the structure of this request; the kernel writes to it and to
        // `regions`, which outlives the call.
        let found = match unsafe { ioctl(pagemap, ScanUpdater::new(&mut arg)) } {
            Ok(count) => count as usize,
            // Nothing was told of this part: it is scanned again.
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        for region in &regions[..found] {
            each(
                region.start as usize..region.end as usize,
                region.categories,
            );
        }
        start = arg.walk_end as usize;
    }
    Ok(())
}

/// Like rustix's `Updater`, but keeps the number that the call returns.
struct ScanUpdater<'a>(Updater<'a, PAGEMAP_SCAN, pm_scan_arg>);

impl<'a> ScanUpdater<'a> {
    fn new(arg: &'a mut pm_scan_arg) -> Self {
        // SAFETY: the number is that of a request which takes this structure.
        Self(unsafe { Updater::new(arg) })
    }
}

// SAFETY: opcode and pointer are those of the wrapped updater; only the output differs.
unsafe impl rustix::ioctl::Ioctl for ScanUpdater<'_> {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        self.0.as_ptr()
    }

    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> io::Result<i32> {
        Ok(out)
    }
}

/// Bit of a word: the page is in memory.
const WORD_PRESENT: u64 = 1 << 63;
/// Bit of a word: it is mapped here and nowhere else (Linux 4.2).
const WORD_EXCLUSIVE: u64 = 1 << 56;

/// Pages whose words are read at once.
const WORDS: usize = 64;

/// How many pages from `address` on, at most `pages`, are in memory and mapped by this process alone: not
/// by a child or a parent too, since a fork. `pagemap` is as for [`scan_in`].
///
/// # Errors
/// What reading the file returns, `EINTR` excepted.
pub fn mapped_here_alone(
    pagemap: BorrowedFd<'_>,
    address: usize,
    pages: usize,
) -> io::Result<usize> {
    let mut words = [0; WORDS * 8];
    let wanted = pages.min(WORDS) * 8;
    let offset = (address / 4096 * 8) as u64;
    let read = loop {
        match io::pread(pagemap, &mut words[..wanted], offset) {
            Err(Errno::INTR) => {}
            read => break read?,
        }
    };
    let words = words[..read].as_chunks::<8>().0.iter();
    let both = WORD_PRESENT | WORD_EXCLUSIVE;
    Ok(words
        .take_while(|word| u64::from_ne_bytes(**word) & both == both)
        .count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;

    #[test]
    fn finds_exactly_the_touched_pages() {
        let map = Mapping::anonymous(64 * 4096, c"uhmm-test").unwrap();
        map.allow_all().unwrap();
        for page in [3, 4, 5, 40] {
            // SAFETY: within the mapping, which nobody else uses.
            unsafe { map.at(page * 4096).write(1) };
        }
        let mut found = Vec::new();
        let base = map.address();
        scan(base..base + map.len(), PRESENT, |range, _| {
            found.push(((range.start - base) / 4096)..((range.end - base) / 4096));
        })
        .unwrap();
        assert_eq!(found, [3..6, 40..41]);
    }
}
