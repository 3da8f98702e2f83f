//! Pins: pages that stay where they are, mapped, until they are released, so that the kernel or a
//! device may do I/O there without a fault (`get_user_pages` and `pin_user_pages` in Linux).
//!
//! A pin is a count in the page's entry ([`crate::entry`]). A pinned page is not reclaimed, migrated,
//! dropped, moved or unmapped (R7, R11). What leaves it where it is goes on: the first write to a page
//! with a duplicate, a fork, a failure of its memory.
//!
//! | the page is | an ordinary pin | a long-term pin |
//! | --- | --- | --- |
//! | System | stays | stays |
//! | Coherent | stays on the device, if its type lets anybody hold it | is migrated to RAM first, where its type migrates |
//! | None, Limbo, Private | is brought to RAM first | the same |
//! | Exclusive | is given back by its device first (R17) | the same |
//! | Migrating | is waited for | the same |
//! | Poisoned | an error | an error |
//!
//! With [`PinFlags::fast`] nothing is brought, migrated or waited for, and what would have to be is an
//! error; the rules are the same. It is all of a range or nothing: where one page cannot be pinned,
//! those before it are released.
//!
//! A pin *for writing* also ends what makes the next write a fault: write tracking, and sharing with a
//! child of a fork. Of a coherent page any pin ends that (`cow.rs`).
//!
//! References taken by `get_pages` do the same for a moment; they are not for long, and are counted
//! apart. No more than seven eighths of the budget can be pinned: what is left has to turn over for the
//! rest of the program.
//!
//! In the child of a fork nothing is pinned. Guards that were copied with the parent's memory release
//! nothing there.
//!
//! For threads that touch no managed memory, as migrations are.

use crate::addr::{DeviceAddr, PageNo, PageRange};
use crate::claims::Single;
use crate::entry::{MAX_PINS, State};
use crate::fault::{Access, Outcome, Scratch};
use crate::gate::{Refused, takes_refusals};
use crate::lock::generation;
use crate::memory_type::Holding;
use crate::migrate::MigrateError;
use crate::mirror::{Event, in_notifier};
use crate::mmu::Mmu;
use crate::space::Space;
use std::fmt;
use std::sync::atomic::Ordering::Release;
use std::time::{Duration, Instant};

/// How long a page that is in flight, or held by others, is waited for; and RAM, where there is none.
const PATIENCE: Duration = Duration::from_secs(1);

/// How pages are to be pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinFlags {
    /// They will be written to (`FOLL_WRITE`).
    pub write: bool,
    /// For as long as the holder likes, not for the length of an operation (`FOLL_LONGTERM`).
    pub longterm: bool,
    /// Only if it takes no fault, no migration and no waiting (`FOLL_FAST_ONLY`).
    pub fast: bool,
    /// By a device that can reach pages of peers (`FOLL_PCI_P2PDMA`).
    pub peer: bool,
}

/// Why pages are not pinned. None of the range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinError {
    /// Some of the range is not managed by this space, or it is empty.
    NotManaged,
    /// A reference that is not a pin is never long-term: pin the pages instead.
    NotForLong,
    /// This page is lost.
    Poisoned(PageNo),
    /// This page is of a type of device memory that is never pinned for long: its owner may take it
    /// back at any time.
    NeverLongterm(PageNo),
    /// This page is of a peer-to-peer window, and is pinned only by who says that it can reach peers.
    PeersOnly(PageNo),
    /// A fast pin would have to migrate this page to RAM first.
    MigrateFirst(PageNo),
    /// A fast pin would have to bring this page first, or to end its tracking.
    WouldFault(PageNo),
    /// This page is in flight, or others hold it where it is, and that does not end; try again.
    Busy(PageNo),
    /// There is no RAM for this page.
    NoRam(PageNo),
    /// This page has as many pins as it can.
    TooMany(PageNo),
    /// So much of the budget would be pinned that the rest of the program could not go on.
    TooMuch {
        /// The most pages that can be pinned at a time.
        limit: usize,
    },
    /// The process is forking, and the fork does not end; try again.
    Forking,
    /// Called from a notifier, which must not call the space.
    InNotifier,
    /// It was released before.
    Released,
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |page: &PageNo| page.address();
        match self {
            Self::NotManaged => f.write_str("some of the range is not managed by this space"),
            Self::NotForLong => f.write_str(
                "a reference is not held for long: pin the pages instead of getting them",
            ),
            Self::Poisoned(page) => write!(f, "the page at {:#x} is lost", at(page)),
            Self::NeverLongterm(page) => write!(
                f,
                "the page at {:#x} is of device memory that is never pinned for long",
                at(page)
            ),
            Self::PeersOnly(page) => write!(
                f,
                "the page at {:#x} is of a peer-to-peer window: pin it as a peer",
                at(page)
            ),
            Self::MigrateFirst(page) => write!(
                f,
                "the page at {:#x} is on a device: migrate it to RAM, or pin without `fast`",
                at(page)
            ),
            Self::WouldFault(page) => write!(
                f,
                "the page at {:#x} is not there: touch it, or pin without `fast`",
                at(page)
            ),
            Self::Busy(page) => write!(
                f,
                "the page at {:#x} is in flight, or held by others; try again",
                at(page)
            ),
            Self::NoRam(page) => write!(f, "there is no RAM for the page at {:#x}", at(page)),
            Self::TooMany(page) => write!(
                f,
                "the page at {:#x} has as many pins as it can: release some",
                at(page)
            ),
            Self::TooMuch { limit } => write!(
                f,
                "no more than {} KiB can be pinned at a time: give a larger budget, or release some",
                limit * 4
            ),
            Self::Forking => f.write_str(Refused::FORKING),
            Self::InNotifier => f.write_str(Refused::IN_NOTIFIER),
            Self::Released => f.write_str("the pages were released before"),
        }
    }
}

impl std::error::Error for PinError {}

takes_refusals!(PinError);

/// What a guard has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// By `get_pages`.
    References,
    /// By `pin_pages`.
    Pins,
}

/// Pages that stay where they are until this is released or dropped.
pub struct PinnedPages<'a, M: Mmu> {
    space: &'a Space<M>,
    /// Those that are pinned.
    pages: PageRange,
    taken: Taken,
    /// Of the process that pinned them.
    generation: u32,
}

impl<M: Mmu> PinnedPages<'_, M> {
    /// The pages; none once they are released.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Releases the pages.
    ///
    /// # Errors
    /// [`PinError::Released`]: that was done before.
    pub fn release(&mut self) -> Result<(), PinError> {
        if self.pages.len == 0 {
            return Err(PinError::Released);
        }
        self.end();
        Ok(())
    }

    fn end(&mut self) {
        let pages = self.pages;
        self.pages.len = 0;
        if self.generation != generation() {
            // The child of a fork has no pins.
            return;
        }
        let space = self.space;
        for page in pages.iter() {
            if space.entries.unpin(page) {
                space.stats().pinned_pages.sub(1);
                space.keep_no_more(1);
            }
        }
        let stats = space.stats();
        let counter = match self.taken {
            Taken::References => &stats.page_puts,
            Taken::Pins => &stats.pins_released,
        };
        counter.add(pages.len as u64);
    }
}

impl<M: Mmu> Drop for PinnedPages<'_, M> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<M: Mmu> fmt::Debug for PinnedPages<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", self.taken, self.pages)
    }
}

impl<M: Mmu> Space<M> {
    /// Pins `pages`: they stay where they are, mapped, until the guard is released.
    ///
    /// The core knows pages, not mappings: whoever calls it sees to it that the program has access to
    /// all of the range, for writing if that is asked for.
    ///
    /// # Errors
    /// [`PinError`], with nothing pinned.
    pub fn pin_pages(
        &self,
        pages: PageRange,
        flags: PinFlags,
        scratch: &mut Scratch,
    ) -> Result<PinnedPages<'_, M>, PinError> {
        self.take(pages, flags, Taken::Pins, scratch)
    }

    /// Takes references on `pages`, to look at them for a moment.
    ///
    /// # Errors
    /// [`PinError`], with none taken.
    pub fn get_pages(
        &self,
        pages: PageRange,
        flags: PinFlags,
        scratch: &mut Scratch,
    ) -> Result<PinnedPages<'_, M>, PinError> {
        if flags.longterm {
            return Err(PinError::NotForLong);
        }
        self.take(pages, flags, Taken::References, scratch)
    }

    /// Whether `page` is pinned now.
    pub fn is_pinned(&self, page: PageNo) -> bool {
        self.range().contains(page) && self.entries.load(page).pins() > 0
    }

    /// Whether some of `pages` is pinned now.
    pub(crate) fn has_pins(&self, pages: PageRange) -> bool {
        let mut pinned = false;
        if self.kept() > 0 {
            self.entries
                .for_each_used(pages, |_, word| pinned |= word.pins() > 0);
        }
        pinned
    }

    fn take(
        &self,
        pages: PageRange,
        flags: PinFlags,
        taken: Taken,
        scratch: &mut Scratch,
    ) -> Result<PinnedPages<'_, M>, PinError> {
        if in_notifier() {
            return Err(PinError::InNotifier);
        }
        if pages.len == 0 || !self.range().covers(pages) {
            return Err(PinError::NotManaged);
        }
        // What can never be is said first, whatever else would have to be done.
        for page in pages.iter() {
            if let Some(error) = self.never(page, self.entries.state(page), flags) {
                return Err(error);
            }
        }
        let limit = self.keep_limit();
        if pages.len > limit {
            return Err(PinError::TooMuch { limit });
        }
        // From now on an error releases what has been pinned.
        let mut pinned = PinnedPages {
            space: self,
            pages: PageRange::new(pages.start, 0),
            taken,
            generation: generation(),
        };
        for page in pages.iter() {
            if self.take_one(page, flags, scratch)? {
                self.stats().pinned_pages.add(1);
            }
            pinned.pages.len += 1;
            let counter = match taken {
                Taken::References => &self.stats().page_gets,
                Taken::Pins => &self.stats().pins_acquired,
            };
            counter.add(1);
        }
        if flags.write {
            self.mmu.unshare(pages);
        }
        Ok(pinned)
    }

    /// Why a page that is so is never pinned as `flags` say.
    fn never(&self, page: PageNo, state: State, flags: PinFlags) -> Option<PinError> {
        match state {
            State::Poisoned => Some(PinError::Poisoned(page)),
            State::Coherent(at) => match self.holding(at, flags) {
                Holding::Nobody => Some(PinError::NeverLongterm(page)),
                Holding::Peers if !flags.peer => Some(PinError::PeersOnly(page)),
                Holding::AfterMigrating if flags.fast => Some(PinError::MigrateFirst(page)),
                _ => None,
            },
            State::Private(_) if flags.fast && flags.longterm => Some(PinError::MigrateFirst(page)),
            _ => None,
        }
    }

    fn holding(&self, at: DeviceAddr, flags: PinFlags) -> Holding {
        let memory = self.device(at.device).memory_type();
        memory.holding(flags.longterm)
    }

    /// Pins one page; returns whether it was not pinned before.
    fn take_one(
        &self,
        page: PageNo,
        flags: PinFlags,
        scratch: &mut Scratch,
    ) -> Result<bool, PinError> {
        let start = Instant::now();
        loop {
            let seen = self.entries.load(page);
            let state = seen.state();
            if let Some(error) = self.never(page, state, flags) {
                return Err(error);
            }
            let late = start.elapsed() > PATIENCE;
            match state {
                State::System {
                    duplicate: Some(_), ..
                } if flags.write => {
                    // The next write would be a fault.
                    if flags.fast {
                        return Err(PinError::WouldFault(page));
                    }
                    self.end_tracking(page)?;
                }
                State::Coherent(at) if self.holding(at, flags) == Holding::AfterMigrating => {
                    match self.migrate_device_coherent_page(at) {
                        Err(MigrateError::Forking) => return Err(PinError::Forking),
                        Err(_) if late => return Err(PinError::Busy(page)),
                        Err(_) => self.nap(),
                        Ok(()) => {}
                    }
                }
                // The next write would be a fault, and what it leaves is not what was pinned.
                State::Coherent(_) if seen.is_shared() => {
                    if flags.fast {
                        return Err(PinError::WouldFault(page));
                    }
                    if late {
                        return Err(PinError::Busy(page));
                    }
                    self.end_tracking(page)?;
                }
                State::System { .. } | State::Coherent(_) => {
                    if seen.pins() == MAX_PINS {
                        return Err(PinError::TooMany(page));
                    }
                    // Counted first: a pin that can be seen is never missing from the count.
                    let first = seen.pins() == 0;
                    if first && !self.keep_some(1) {
                        let limit = self.keep_limit();
                        return Err(PinError::TooMuch { limit });
                    }
                    if self.entries.pin(page, seen) {
                        return Ok(first);
                    }
                    if first {
                        self.keep_no_more(1);
                    }
                }
                _ if flags.fast => return Err(PinError::WouldFault(page)),
                _ if late => {
                    return Err(match state {
                        state if self.lacks_ram(state) => PinError::NoRam(page),
                        _ => PinError::Busy(page),
                    });
                }
                State::Migrating => self.entries.wait(page, &self.mmu),
                _ => self.bring(page, flags.write, scratch)?,
            }
        }
    }

    /// Whether a page that is so is not brought because there is no RAM for it. (In limbo it has some.)
    pub(crate) fn lacks_ram(&self, state: State) -> bool {
        matches!(state, State::None | State::Private(_)) && self.pool.available() == 0
    }

    /// Brings a page to RAM, as a touch would, but does not wait for ever where there is none.
    pub(crate) fn bring(
        &self,
        page: PageNo,
        write: bool,
        scratch: &mut Scratch,
    ) -> Result<(), Refused> {
        let access = if write { Access::Write } else { Access::Read };
        let pass = self.gate.enter_soon(&self.mmu)?;
        let outcome = self.fault_once(page, access, scratch);
        drop(pass);
        match outcome {
            Outcome::Served | Outcome::Again | Outcome::Foreign => {}
            Outcome::NoRam => {
                self.reclaim(scratch);
                self.nap();
            }
            Outcome::Held => self.nap(),
        }
        self.relieve();
        Ok(())
    }

    /// Ends the tracking of a page, if there is any and nobody else has the page: of one in RAM that has a
    /// duplicate, and of a coherent one that is shared, which gets a frame of its own.
    pub(crate) fn end_tracking(&self, page: PageNo) -> Result<(), Refused> {
        let _pass = self.gate.enter_soon(&self.mmu)?;
        if let Some(claimed) = Single::claim_in_place(self, page, State::is_tracked) {
            self.give_duplicate_up(claimed);
        } else if let Some(claimed) = Single::claim_shared(self, page) {
            self.notify(PageRange::new(page, 1), Event::Migrate);
            if !self.own_in_place(claimed) {
                self.nap();
            }
        }
        Ok(())
    }

    /// In the child of a fork nothing is pinned.
    pub(crate) fn forget_pins(&self) {
        if self.kept() > 0 {
            self.entries
                .for_each_used(self.range(), |page, _| self.entries.forget_pins(page));
        }
        self.kept.store(0, Release);
    }
}
