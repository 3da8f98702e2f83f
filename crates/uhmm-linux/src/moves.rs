//! Moves and copies of pages, by address: calls are repeated until all is done, and what stopped the
//! last one is named.

use crate::abi::uffd::Done;
use crate::mmu::LinuxMmu;
use rustix::io::Errno;
use std::slice;
use uhmm_core::addr::{PAGE_SIZE, PageData};
use uhmm_core::mmu::{Progress, Stop, Tracking};

/// How often a call that met a race is tried again before the caller hears of it.
pub(crate) const RACES: usize = 16;

impl LinuxMmu {
    /// Moves pages, and says why the first that was not moved was not.
    pub(crate) fn move_all(&self, from: usize, to: usize, pages: usize) -> Progress {
        let mut races = 0;
        drive(pages, |done, len| {
            let offset = done * PAGE_SIZE;
            let result = self
                .uffd
                .move_pages(from + offset, to + offset, len * PAGE_SIZE);
            let stop = match result.stopped {
                None => return (result, Verdict::Done),
                // A move meets spurious races with the kernel's own page walks.
                Some(Errno::AGAIN) if races < RACES => {
                    races += 1;
                    return (result, Verdict::Again);
                }
                Some(Errno::INVAL) if len > 1 => return (result, Verdict::Halve),
                Some(Errno::INVAL) => Stop::Protected,
                Some(Errno::BUSY) => Stop::Busy,
                Some(Errno::EXIST) => {
                    let moved = self.moved_all_the_same(from + offset, to + offset, len);
                    if moved > 0 {
                        let bytes = moved * PAGE_SIZE;
                        return (Done { bytes, ..result }, Verdict::Again);
                    }
                    Stop::Present
                }
                Some(Errno::NOENT) => Stop::Absent,
                Some(Errno::NOMEM) => Stop::NoMemory,
                Some(Errno::SRCH) => Stop::Unmapped,
                Some(_) => Stop::Changing,
            };
            (result, Verdict::Stop(stop))
        })
    }

    /// How many pages a move has moved, of which it says that the first met a page in its way.
    ///
    /// A move that meets a race with the kernel's own page migration (seen on Linux 6.18 while
    /// memory was being compacted) is tried again inside the kernel; pages that the first try had
    /// moved are then in its own way, and are not counted. Believing the call would lose them. The
    /// core moves pages only to where there is none, so a page that is at the destination and not
    /// at the source has been moved by this very call.
    fn moved_all_the_same(&self, from: usize, to: usize, pages: usize) -> usize {
        let there = match self.first_present(to, pages) {
            Some(there) if there.start == to => there.len() / PAGE_SIZE,
            _ => 0,
        };
        let moved = match self.first_present(from, there) {
            Some(left) => (left.start - from) / PAGE_SIZE,
            None => there,
        };
        if moved > 0 {
            // The kernel did not get as far as waking who waits for them.
            let _ = self.uffd.wake(to..to + moved * PAGE_SIZE);
        }
        moved
    }

    /// Copies pages to the missing ones from `at` on, all within one mapping.
    pub(crate) fn copy_within(&self, from: &[PageData], at: usize, tracking: Tracking) -> Progress {
        drive(from.len(), |done, len| {
            let pages = &from[done..done + len];
            // SAFETY: pages are plain bytes, one after the other.
            let data =
                unsafe { slice::from_raw_parts(pages.as_ptr().cast::<u8>(), len * PAGE_SIZE) };
            let to = at + done * PAGE_SIZE;
            let result = match tracking {
                Tracking::Off => self.uffd.copy(data, to),
                Tracking::Writes => self.uffd.copy_write_protected(data, to),
            };
            let stop = match result.stopped {
                None => return (result, Verdict::Done),
                Some(Errno::EXIST) => Stop::Present,
                Some(Errno::NOMEM) => Stop::NoMemory,
                Some(Errno::NOENT | Errno::SRCH | Errno::INVAL) => Stop::Unmapped,
                Some(_) => Stop::Changing,
            };
            (result, Verdict::Stop(stop))
        })
    }

    /// Moves frames from the pool or an arena into the space.
    pub(crate) fn put_all(&self, slot: usize, to: usize, pages: usize) -> Progress {
        let progress = self.move_all(slot, to, pages);
        if progress.stop != Some(Stop::Busy) {
            return progress;
        }
        // Frames are pinned by nobody, so these are shared with the other side of a fork.
        let done = progress.pages * PAGE_SIZE;
        self.populate_present(slot + done..slot + pages * PAGE_SIZE);
        let rest = self.move_all(slot + done, to + done, pages - progress.pages);
        Progress {
            pages: progress.pages + rest.pages,
            stop: rest.stop,
        }
    }
}

/// What to do after a call that did not do all.
enum Verdict {
    Done,
    /// Call again for the rest.
    Again,
    /// Call again for half of the rest.
    Halve,
    /// The next page cannot be done, because of this.
    Stop(Stop),
}

/// Calls `step` (pages done, pages to do) until all `pages` are done or one cannot be.
fn drive(pages: usize, mut step: impl FnMut(usize, usize) -> (Done, Verdict)) -> Progress {
    let (mut done, mut most) = (0, pages);
    while done < pages {
        let len = most.min(pages - done);
        let (result, verdict) = step(done, len);
        let moved = result.bytes / PAGE_SIZE;
        done += moved;
        match verdict {
            Verdict::Done => {}
            _ if moved > 0 => {}
            Verdict::Again => {}
            Verdict::Halve => most = len / 2,
            Verdict::Stop(stop) => return Progress::stopped(done, stop),
        }
    }
    Progress::all(pages)
}
