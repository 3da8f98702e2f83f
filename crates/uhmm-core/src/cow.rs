//! Copy-on-write of coherent pages after a fork (R16): the first side that writes gets a page in RAM, and
//! the device keeps its memory.
//!
//! Left alone, the kernel would do it unseen: the writer's page would be ordinary memory that nobody has
//! charged, while its entry goes on naming a device page whose frame the other side has. So both sides
//! track the writes to such pages. An entry says that its page is *shared* ([`Space::is_shared`]); it is
//! mapped, and a read is no fault. Only pages of a type that migrates are shared so.
//!
//! # Protocol
//!
//! | when | who | what |
//! | --- | --- | --- |
//! | the gate is closed for a fork | the forking thread | marks all coherent pages that are not pinned as shared, then tracks them |
//! | until the fork is over | a handler | a write: log, bytes home, discard, copy to RAM (`fork.rs`) |
//! | in the child, before the gate opens | the forking thread | marks and tracks again: the kernel has dropped the tracking there |
//! | afterwards, on each side | who has claimed the page | ends it, in one of the ways below |
//!
//! | what ends it | nobody else maps it (any more) | another process does |
//! | --- | --- | --- |
//! | a write of the program | stays Coherent, and so do those beside it | Private for a moment, then System by the same fault; Coherent, with a frame of its own, if somebody holds the device page |
//! | a pin, a mirror that is to write, `mremap` | stays Coherent | Coherent, with a frame of its own |
//! | a migration, or its way home | stays Coherent, and is collected | its bytes are at home, and it is collected |
//! | a discard, a failure of its memory | dropped | dropped |
//!
//! "Bytes home" is [`Space::copy_home`]: the page is read where it is mapped, to a new frame in its own slot
//! of the arena, and then dropped. It is not moved, since the kernel does not move what is shared; nor made
//! private where it is, since that takes memory of the wrong node and, of a tracked page, would wait for
//! the caller. It loses no write, because the page is claimed *and tracked*: a writer waits for the claim.
//!
//! What is mapped by one process alone cannot become shared again without a fork, which finds nothing
//! claimed. What is shared may become one side's alone at any moment; then a copy was made that nobody
//! needed.

use crate::addr::{DeviceAddr, PageNo, PageRange};
use crate::claims::{Run, Single};
use crate::entry::State;
use crate::fault::{Access, Outcome, Scratch};
use crate::frames::BLOCK;
use crate::memory_type::MemoryType;
use crate::mirror::Event;
use crate::mmu::Mmu;
use crate::space::Space;
use arrayvec::ArrayVec;

impl<M: Mmu> Space<M> {
    /// Whether `page` is a coherent page that is shared since a fork, so that the next write is a fault.
    pub fn is_shared(&self, page: PageNo) -> bool {
        self.range().contains(page) && self.entries.load(page).is_shared()
    }

    /// Marks coherent pages as shared, and tracks them. While the gate is closed.
    pub(crate) fn share_coherent(&self) {
        let has_some = |memory: MemoryType, in_use| memory == MemoryType::Coherent && in_use > 0;
        let mut devices = self.devices();
        if !devices.any(|(_, device)| has_some(device.memory_type(), device.in_use())) {
            return;
        }
        let mut run = PageRange::EMPTY;
        self.entries.for_each_used(self.range(), |page, word| {
            let State::Coherent(at) = word.state() else {
                return;
            };
            let memory = self.device(at.device).memory_type();
            if memory == MemoryType::Coherent && self.entries.share(page) {
                if run.len == 0 || run.end() != page {
                    self.track_shared(run);
                    run = PageRange::new(page, 0);
                }
                run.len += 1;
            }
        });
        self.track_shared(run);
    }

    fn track_shared(&self, pages: PageRange) {
        if pages.len > 0 && !self.mmu.track(pages) {
            // Left to the kernel, then. Some may be tracked all the same: a write ends that.
            pages
                .iter()
                .for_each(|page| self.entries.share_no_more(page));
        }
    }

    /// A write of the program to a page that is shared.
    pub(crate) fn copy_on_write(&self, page: PageNo, scratch: &mut Scratch) -> Outcome {
        let mut run = Run::collect_if(self, page, BLOCK, |_, seen| seen.is_shared());
        // The child that shared them has ended by now, or runs another program.
        let alone = self.mmu.mapped_here_alone(run.pages());
        if alone > 0 {
            run.truncate(alone);
            let was: ArrayVec<State, BLOCK> = (0..alone).map(|i| run.was(i)).collect();
            run.pages().iter().for_each(|page| self.mmu.untrack(page));
            run.settle(alone, |i| was[i]);
            return Outcome::Served;
        }
        let Some(claimed) = run.pop() else {
            return Outcome::Again;
        };
        drop(run);
        let State::Coherent(at) = claimed.was() else {
            return Outcome::Again;
        };
        if !self.is_present(page) {
            // Dropped behind our back: the touch repeats, and finds it missing.
            claimed.settle(State::Coherent(at));
            return self.served(page);
        }
        self.notify(PageRange::new(page, 1), Event::Migrate);
        if !self.copy_home(page, at) {
            // The machine has no memory now.
            return Outcome::NoRam;
        }
        if self.is_held_too(at) {
            self.map_home(claimed, at);
            return self.served(page);
        }
        claimed.settle(State::Private(at));
        self.bring_in(page, Access::Write, scratch)
    }

    /// Makes a claimed page that is shared this process's own, on its device. `false`: it cannot be read,
    /// or the machine has no memory now; it is what it was. Who maps it in a table of its own has been told.
    pub(crate) fn own_in_place(&self, claimed: Single<'_, M>) -> bool {
        let (page, State::Coherent(at)) = (claimed.page(), claimed.was()) else {
            return false;
        };
        if self.is_ours_alone(page) {
            self.mmu.untrack(page);
            claimed.settle(State::Coherent(at));
        } else if self.copy_home(page, at) {
            self.map_home(claimed, at);
        } else {
            return false;
        }
        true
    }

    /// Whether somebody holds a device page besides the entry that names it. Who comes to hold it later looks
    /// at the entry, and is refused while it is claimed.
    pub(crate) fn is_held_too(&self, at: DeviceAddr) -> bool {
        self.device(at.device).count(at.page) > 1
    }

    /// Whether nobody else maps a claimed page that is shared; or nothing is mapped there.
    pub(crate) fn is_ours_alone(&self, page: PageNo) -> bool {
        self.mmu.mapped_here_alone(PageRange::new(page, 1)) == 1 || !self.is_present(page)
    }

    /// Copies the bytes of a claimed page that is shared to its own slot of the arena, and drops the page:
    /// as if its frame had been taken home. `false`: it is what it was.
    pub(crate) fn copy_home(&self, page: PageNo, at: DeviceAddr) -> bool {
        let mut read = false;
        let mut copy = |home: &mut _| read = self.mmu.peek(page, home);
        let there = self.mmu.with_arena(at, &mut copy);
        if read {
            self.mmu.discard(PageRange::new(page, 1));
        } else if there {
            self.mmu.drop_arena(at, 1);
        }
        read
    }
}
