//! Memory that the space does not manage, as the kernel tells of it.
//!
//! | question | asked of |
//! | --- | --- |
//! | what is mapped, and what the program may do there | `PROCMAP_QUERY`, or `/proc/self/maps` before Linux 6.11 |
//! | what is there now | `PAGEMAP_SCAN`, once for each mapping |
//! | have it there | `MADV_POPULATE_READ`, `MADV_POPULATE_WRITE` |
//! | its bytes | `process_vm_readv`, `process_vm_writev` of this process itself |
//!
//! A page in the kernel's swap is not there. A page of a private mapping that a fork has made two processes
//! share is told as one that is written in place: the kernel does not say, and who writes there by the
//! program's address gets the copy that the program would.

use crate::abi::{pagemap, process_vm};
use crate::mmu::LinuxMmu;
use crate::outlines::{self, Outline, outlines};
use rustix::io::Errno;
use rustix::mm::{self, Advice};
use std::ops::Range;
use uhmm_core::addr::{PAGE_SHIFT, PAGE_SIZE, PageNo, PageRange};
use uhmm_core::foreign::{Foreign, ForeignMemory, ForeignPage, Refusal};
use uhmm_core::mirror::Permission;

/// Of the huge pages that the kernel makes of ordinary ones.
const HUGE_ORDER: u8 = 9;

fn pages(bytes: &Range<usize>) -> PageRange {
    PageRange::new(PageNo::containing(bytes.start), bytes.len() / PAGE_SIZE)
}

fn order(page_size: usize) -> u8 {
    (page_size.trailing_zeros() - PAGE_SHIFT) as u8
}

/// The order of the mapping that the huge page at `address` is part of.
fn huge_order(mapping: &Outline, address: usize) -> u8 {
    let size = match mapping.page_size {
        Some(size) => size,
        None => outlines::page_size(address).unwrap_or(PAGE_SIZE),
    };
    match order(size) {
        0 => HUGE_ORDER,
        reserved => reserved,
    }
}

/// What is there, by the categories that the kernel has it in.
fn page(mapping: &Outline, address: usize, categories: u64) -> ForeignPage {
    let is = |category| categories & category != 0;
    let zero = is(pagemap::ZERO_PAGE);
    ForeignPage {
        copied_on_write: zero || is(pagemap::FILE) && !mapping.shared,
        zero,
        order: if is(pagemap::HUGE) {
            huge_order(mapping, address)
        } else {
            0
        },
    }
}

impl LinuxMmu {
    /// Whether the memory is of the frame pool or of an arena: what is in it is somebody's page, on its way
    /// or on a device, and nothing is to be read or brought there by address.
    fn holds_frames(&self, range: &Range<usize>) -> bool {
        self.is_own(range) && !self.space_range().overlaps(pages(range))
    }

    /// Tells of the part of a mapping that is asked for.
    fn look_at(
        &self,
        mapping: &Outline,
        each: &mut dyn FnMut(PageRange, Foreign),
    ) -> Result<(), Errno> {
        let frames = self.holds_frames(&mapping.range);
        let allowed = Permission {
            read: mapping.read && !frames,
            write: mapping.write && !frames,
        };
        let mut tell = |bytes: Range<usize>, page| {
            if !bytes.is_empty() {
                each(pages(&bytes), Foreign { allowed, page });
            }
        };
        let (mut next, all) = (mapping.range.start, mapping.range.clone());
        if allowed.read {
            let kinds = pagemap::PRESENT | pagemap::FILE | pagemap::ZERO_PAGE | pagemap::HUGE;
            let (file, present) = (self.files.pagemap(), pagemap::PRESENT);
            pagemap::scan_telling(file, all.clone(), present, kinds, |found, categories| {
                tell(next..found.start, None);
                next = found.end;
                let is = page(mapping, found.start, categories);
                tell(found, Some(is));
            })?;
        }
        tell(next..all.end, None);
        Ok(())
    }
}

impl ForeignMemory for LinuxMmu {
    fn look(&self, pages: PageRange, each: &mut dyn FnMut(PageRange, Foreign)) -> bool {
        let range = pages.start.address()..pages.end().address();
        let mut told = Ok(());
        let mapped = outlines(self.files.maps(), &range, |mapping| {
            if told.is_ok() {
                told = self.look_at(&mapping, each);
            }
        });
        mapped.is_ok() && told.is_ok()
    }

    fn populate(&self, pages: PageRange, write: bool) -> Result<(), Refusal> {
        let advice = match write {
            true => Advice::LinuxPopulateWrite,
            false => Advice::LinuxPopulateRead,
        };
        let start = pages.start.address() as *mut _;
        loop {
            // SAFETY: as the program's own touch: of what is there no byte changes.
            return match unsafe { mm::madvise(start, pages.bytes(), advice) } {
                Ok(()) => Ok(()),
                Err(Errno::INTR) => continue,
                // Beyond the end of a file, or a mapping whose pages are no memory. (Or it may not be
                // done any more: then a look says so first.)
                Err(Errno::FAULT | Errno::INVAL) => Err(Refusal::Deadly),
                Err(Errno::HWPOISON) => Err(Refusal::Poisoned),
                Err(_) => Err(Refusal::Later),
            };
        }
    }

    fn huge(&self, range: PageRange, each: &mut dyn FnMut(PageRange)) {
        let huge = pagemap::HUGE | pagemap::PRESENT;
        self.each_managed(range, |place| {
            // Only a word more about pages that are known: without an answer it is not said.
            let file = self.files.pagemap();
            let _ = pagemap::scan_telling(file, place, pagemap::HUGE, huge, |found, is| {
                if is == huge {
                    each(pages(&found));
                }
            });
        });
    }

    fn try_read(&self, page: PageNo, offset: usize, to: &mut [u8]) -> usize {
        process_vm::read(page.address() + offset, to)
    }

    fn try_write(&self, page: PageNo, offset: usize, from: &[u8]) -> usize {
        // SAFETY: who asks for this has been given the memory by the program: the device of a mirror, or
        // whoever calls for these bytes to be written.
        unsafe { process_vm::write(page.address() + offset, from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(shared: bool, page_size: usize) -> Outline {
        Outline {
            range: 0..1 << 30,
            read: true,
            write: true,
            shared,
            page_size: Some(page_size),
        }
    }

    #[test]
    fn what_is_there_is_told_by_its_categories() {
        let own = mapping(false, PAGE_SIZE);
        let there = |categories| page(&own, 0, pagemap::PRESENT | categories);
        assert_eq!(there(0), ForeignPage::ORDINARY);
        let copied = ForeignPage {
            copied_on_write: true,
            ..ForeignPage::ORDINARY
        };
        assert_eq!(there(pagemap::FILE), copied);
        let zero = ForeignPage {
            zero: true,
            ..copied
        };
        assert_eq!(there(pagemap::ZERO_PAGE), zero);
        assert_eq!(there(pagemap::HUGE).order, 9, "of the kernel's own making");
        let shared = mapping(true, PAGE_SIZE);
        let there = page(&shared, 0, pagemap::PRESENT | pagemap::FILE);
        assert_eq!(there, ForeignPage::ORDINARY);
    }

    #[test]
    fn reserved_huge_pages_have_the_order_of_their_size() {
        for (size, order) in [(2 << 20, 9), (1 << 30, 18)] {
            let reserved = mapping(true, size);
            let there = page(
                &reserved,
                0,
                pagemap::PRESENT | pagemap::HUGE | pagemap::FILE,
            );
            assert_eq!((there.order, there.copied_on_write), (order, false));
        }
    }
}
