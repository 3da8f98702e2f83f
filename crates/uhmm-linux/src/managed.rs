//! Which pages are managed: those of the space, and those that are adopted. Nothing is done to any other.

use crate::mmu::{LinuxMmu, bytes};
use rustix::io::{self, Errno};
use std::ops::Range;
use uhmm_core::addr::{PageNo, PageRange};
use uhmm_core::mmu::{Progress, Stop};

impl LinuxMmu {
    /// The page at `address`, if it is managed: in the space, or adopted. May be called anywhere, in a
    /// signal handler too. A page of adopted memory may be let go at any moment; what is done with it then
    /// comes to nothing.
    pub fn page_at(&self, address: usize) -> Option<PageNo> {
        let page = PageNo::containing(address);
        self.around(page).map(|_| page)
    }

    /// The managed pages that `page` is among.
    pub(crate) fn around(&self, page: PageNo) -> Option<PageRange> {
        let space = self.space_range();
        if space.contains(page) {
            return Some(space);
        }
        self.adopted.find(page)
    }

    /// The first of `pages`, as many as are managed.
    pub(crate) fn managed(&self, pages: PageRange) -> PageRange {
        let mut end = pages.start;
        while end < pages.end()
            && let Some(around) = self.around(end)
        {
            end = around.end().min(pages.end());
        }
        PageRange::new(pages.start, (end.0 - pages.start.0) as usize)
    }

    /// Calls `each` for the parts of `pages` that are managed, with their addresses.
    pub(crate) fn each_managed(&self, pages: PageRange, mut each: impl FnMut(Range<usize>)) {
        let mut rest = pages;
        while rest.len > 0 {
            let managed = self.managed(rest);
            if managed.len > 0 {
                each(bytes(managed));
            }
            let done = managed.len.max(1);
            rest = PageRange::new(rest.start.plus(done), rest.len - done);
        }
    }

    /// Where `pages` are, all of which must be managed.
    pub(crate) fn whole(&self, pages: PageRange) -> io::Result<Range<usize>> {
        let managed = self.managed(pages) == pages;
        managed.then(|| bytes(pages)).ok_or(Errno::AGAIN)
    }

    /// Where `page` is, if it is managed.
    pub(crate) fn place(&self, page: PageNo) -> Option<Range<usize>> {
        let managed = self.managed(PageRange::new(page, 1));
        (managed.len > 0).then(|| bytes(managed))
    }

    /// Does `call` for the first of `pages`, as many as are managed, and is stopped by the next.
    pub(crate) fn in_place(
        &self,
        pages: PageRange,
        call: impl FnOnce(usize, usize) -> Progress,
    ) -> Progress {
        let most = self.managed(pages).len;
        if most == 0 {
            return Progress::stopped(0, Stop::Unmapped);
        }
        match call(pages.start.address(), most) {
            Progress { stop: None, .. } if most < pages.len => {
                Progress::stopped(most, Stop::Unmapped)
            }
            progress => progress,
        }
    }
}
