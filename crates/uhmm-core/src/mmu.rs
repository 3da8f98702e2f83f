//! What HMM needs of the CPU's page tables.
//!
//! `uhmm-linux` implements it with userfaultfd on a real address space; `uhmm-sim` in plain memory,
//! so that the whole core runs where failures can be injected and schedules replayed.
//!
//! Three kinds of mapping are behind the trait: the *space*, whose pages the program touches and
//! whose missing pages fault; the *frame pool*, which no program knows; and for each device whose
//! memory the CPU can map an *arena*, one slot for each of its pages. Moving a page between them
//! moves the physical page; no byte is copied.

use crate::addr::{DeviceAddr, FrameNo, Home, PageData, PageNo, PageRange};
use crate::foreign::ForeignMemory;
use crate::frames::Frame;
use crate::stats::Stats;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// How far a call over several pages came: the first `pages` are done, and unless all were, `stop`
/// says what the next one met. Nothing past it was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Progress {
    /// Pages done, counted from the first.
    pub pages: usize,
    /// Why the call ended before the last page; `None` when it did not.
    pub stop: Option<Stop>,
}

impl Progress {
    /// All `pages` were done.
    pub const fn all(pages: usize) -> Self {
        Self { pages, stop: None }
    }

    /// `pages` were done, and the next met `stop`.
    pub const fn stopped(pages: usize, stop: Stop) -> Self {
        Self {
            pages,
            stop: Some(stop),
        }
    }
}

/// What ended a call over several pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The page is pinned for I/O or shared after a fork ([`Mmu::unshare`] ends the latter).
    Busy,
    /// The destination holds a page already.
    Present,
    /// There is no page at the source.
    Absent,
    /// The mapping is changing under the call (a race, a fork, an unread event). Nothing is
    /// wrong; try again later. It is never progress.
    Changing,
    /// The mapping does not allow it: pages of a range that is not writable cannot be moved.
    Protected,
    /// The destination is no longer mapped, or no longer managed.
    Unmapped,
    /// The machine is out of memory.
    NoMemory,
}

/// What the program may do with pages that are filled, within what its mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Whatever the mapping allows; nobody is told.
    Off,
    /// Read; a write is a fault ([`crate::fault::Access::Tracked`]) until [`Mmu::untrack`]. As for pages
    /// that [`Mmu::track`] was called for.
    Writes,
}

/// The CPU's page tables, the frame pool's memory, and waiting; what is about memory that the space does
/// not manage is in [`ForeignMemory`].
///
/// Calls on distinct pages may run at the same time. The core never makes two calls that change
/// the same page at once: the entry's Migrating state excludes that.
pub trait Mmu: ForeignMemory + Send + Sync {
    /// A table of zeroed words that costs memory only where it is used.
    type Table: Deref<Target = [AtomicU64]> + Send + Sync;

    /// Makes a table of `len` words, or `None` when the address space has no room for it.
    fn table(&self, len: usize) -> Option<Self::Table>;

    /// Where the space's counters live.
    fn stats(&self) -> &Stats;

    /// Makes an arena for the `pages` pages of `device`, once. Its memory is that of NUMA node
    /// `node`, if one is named and the machine has it, else ordinary memory that stands in for it;
    /// it costs nothing where it is not used. `false`: there is no room in the address space, or the
    /// machine has no such node.
    fn add_arena(&self, device: u8, pages: u32, node: Option<u32>) -> bool;

    /// Takes `pages` out of the space: their frames become the slots from `into` on, which are
    /// empty. A later touch of the pages is a missing fault. Write tracking ends.
    fn take(&self, pages: PageRange, into: Home) -> Progress;

    /// Puts the frames in the slots from `from` on into the space as `pages`, which are missing.
    /// The slots are empty afterwards. Wakes whoever waits for the pages. A slot of an arena
    /// holds a frame once [`Mmu::with_arena`] was called for it.
    fn put(&self, from: Home, pages: PageRange) -> Progress;

    /// Moves present pages `from` to the missing pages from `to` on, within the space. Write
    /// tracking ends.
    fn relocate(&self, from: PageRange, to: PageNo) -> Progress;

    /// Fills missing pages from `at` on with copies of `from`, in new memory. Wakes whoever waits.
    fn copy(&self, from: &[PageData], at: PageNo, tracking: Tracking) -> Progress;

    /// Begins write tracking of what is present of `pages`. `false`: not of all of it.
    fn track(&self, pages: PageRange) -> bool;

    /// How many of the first of `pages` are present, and mapped by this process alone: by no other that
    /// was forked, or that forked it.
    fn mapped_here_alone(&self, pages: PageRange) -> usize;

    /// Ends write tracking of the present `page`, and wakes whoever waits to write to it.
    fn untrack(&self, page: PageNo);

    /// Reads a present page of the space, whatever its protection; `false` if it cannot.
    fn peek(&self, page: PageNo, to: &mut PageData) -> bool;

    /// Reads bytes of a present page of the space that the program may read, while the program may be
    /// writing to them. `offset` and `to` lie within the page.
    fn read_mapped(&self, page: PageNo, offset: usize, to: &mut [u8]);

    /// Writes bytes to a present page of the space that the program may write to, and whose writes are
    /// not tracked.
    fn write_mapped(&self, page: PageNo, offset: usize, from: &[u8]);

    /// Whether a page is the space's: all that are in the space are, unless the MMU also has pages that come
    /// and go. That is so for as long as a page is claimed that no entry knows of, and for as long as a
    /// mirror's table is locked, since whoever takes pages in or lets them go tells mirrors first.
    fn manages(&self, _page: PageNo) -> bool {
        true
    }

    /// Whether the program may write to the present `page`.
    fn is_writable(&self, page: PageNo) -> bool;

    /// Makes threads that wait for a fault in `pages` touch them again.
    fn wake(&self, pages: PageRange);

    /// Drops what is present in `pages`: they are missing afterwards, their memory is given back.
    fn discard(&self, pages: PageRange);

    /// Makes every later touch of the missing `page` a SIGBUS.
    fn poison(&self, page: PageNo);

    /// Ends the sharing of present `pages` with other processes after a fork: a private copy is
    /// made where it must be. A page that is still [`Stop::Busy`] afterwards is pinned.
    fn unshare(&self, pages: PageRange);

    /// Calls `each` with every maximal range of present pages within `pages`, in ascending order.
    fn present(&self, pages: PageRange, each: &mut dyn FnMut(PageRange));

    /// Gives the bytes of a frame to `with`.
    fn with_frame(&self, frame: &Frame, with: &mut dyn FnMut(&mut PageData));

    /// Gives the bytes of up to [`BLOCK`](crate::frames::BLOCK) frames to `with`, to read. They
    /// stay where they are, and as they are, for as long as the caller keeps the frames.
    fn with_frames(&self, frames: &[&Frame], with: &mut dyn FnMut(&[&PageData]));

    /// Gives the bytes of a device page whose frame is in its arena to `with`; an empty slot gets a
    /// frame of zeros first. The caller has the page alone. `false`: the machine has no memory for
    /// the frame, and `with` was not called.
    fn with_arena(&self, at: DeviceAddr, with: &mut dyn FnMut(&mut PageData)) -> bool;

    /// Reads bytes of a device page whose frame is in its arena, and which nobody writes meanwhile.
    fn read_arena(&self, at: DeviceAddr, offset: usize, to: &mut [u8]);

    /// Gives the memory of `len` slots of an arena, filled or not, back to the machine.
    fn drop_arena(&self, first: DeviceAddr, len: usize);

    /// Gives the memory of `len` frames from slot `first` on back to the machine; the slots are
    /// empty afterwards.
    fn drop_frames(&self, first: FrameNo, len: usize);

    /// Sleeps while the low 32 bits of `word` are those of `seen`, at most for `at_most`. May
    /// return early, without reason.
    fn wait(&self, word: &AtomicU64, seen: u64, at_most: Duration);

    /// The time since some moment before the first call. It never goes back.
    fn now(&self) -> Duration;

    /// Wakes every thread in [`Mmu::wait`] on `word`.
    fn wake_waiters(&self, word: &AtomicU64);

    /// Called when a fault cannot be served because RAM and every device are full and stay full
    /// (R19). A real process says so plainly and ends here; what returns makes the fault retry.
    fn out_of_memory(&self);
}
