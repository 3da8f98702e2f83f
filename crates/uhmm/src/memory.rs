//! Address ranges of a space, with the meaning of the operating system's calls: map, unmap,
//! protect, discard, remap.
//!
//! For application threads. Signals are blocked and the gate is passed for the length of each call;
//! the lock on the regions is taken inside, so that a fork finds it free.
//!
//! Calls that change what a range holds, or whether it may be touched, are `unsafe`: they take an
//! address, and whoever lives there (a [`Region`](crate::Region), say) is not asked. Memory that Rust
//! references point to must not change under them, so **who calls answers for that nothing in the
//! range is borrowed**, as with `munmap` and `mmap` themselves. Safe code can neither unmap memory nor
//! reach the core, which could:
//!
//! ```compile_fail,E0133
//! fn unmap(space: &uhmm::Space, region: &uhmm::Region) {
//!     let _ = space.memory().unmap(region.as_ptr() as usize, region.len());
//! }
//! ```
//!
//! ```compile_fail,E0624
//! fn inside(space: &uhmm::Space) {
//!     let _ = space.core();
//! }
//! ```

mod adopted;
mod around;
mod fork;

use crate::adopt::IsAdopted;
use crate::build::CoreSpace;
use crate::wanted::hint;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use uhmm_core::addr::{PAGE_SIZE, PageNo, PageRange};
use uhmm_core::error::RangeError;
use uhmm_core::events;
use uhmm_core::hints::Hints;
use uhmm_core::mirror::Event;
use uhmm_core::ranges::Inside;
use uhmm_core::regions::{Adoption, Attributes, Regions};
use uhmm_linux::engine::bell;
use uhmm_linux::mmu::{LinuxMmu, SetupError};
use uhmm_linux::protection::MprotectFlags;
use uhmm_linux::signals::Blocked;
use uhmm_linux::vmas::Vma;

pub(crate) use adopted::pages_around;

/// What a program may do with a range: read, write, execute.
pub use uhmm_linux::protection::MprotectFlags as Protection;

/// What a range of the space is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Pages of the space, perhaps beside foreign ones.
    Managed,
    /// Something else that was mapped over the space.
    Foreign,
    /// Not all of it is mapped.
    Holes,
}

/// Ranges of this many bytes or more start at a multiple of it, as page tables like it.
const BIG: usize = 2 << 20;

/// How long the lock on the regions is waited for where its holder may wait for us.
const PATIENCE: Duration = Duration::from_secs(1);

/// The address ranges of a space. See the module's head.
pub struct Memory {
    core: Arc<CoreSpace>,
    regions: Mutex<Regions>,
    /// Ranges that nobody has any more and that were pinned then. Locked inside the gate, so that a
    /// fork finds it free.
    orphans: Mutex<Vec<PageRange>>,
    has_orphans: AtomicBool,
}

/// Everything that a call holds while it works. Dropped in this order.
pub(crate) struct Call<'a> {
    pub(crate) regions: MutexGuard<'a, Regions>,
    pub(crate) inside: Inside<'a, LinuxMmu>,
    _signals: Blocked,
}

impl Memory {
    pub(crate) fn new(core: Arc<CoreSpace>) -> Self {
        let range = core.mmu().space_range();
        let ours = PageRange::new(range.start, (bell(range).0 - range.start.0) as usize);
        Self {
            core,
            regions: Mutex::new(Regions::new(ours)),
            orphans: Mutex::default(),
            has_orphans: AtomicBool::new(false),
        }
    }

    pub(crate) fn call(&self) -> io::Result<Call<'_>> {
        let signals = Blocked::all();
        let inside = self.core.inside().map_err(to_io)?;
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Call {
            regions,
            inside,
            _signals: signals,
        })
    }

    /// Whether any byte of the range lies in the space.
    pub fn touches(&self, address: usize, len: usize) -> bool {
        let range = self.core.mmu().space_range();
        address < range.end().address() && address.saturating_add(len) > range.start.address()
    }

    /// Whether any byte of the range is adopted.
    pub fn has_adopted(&self, address: usize, len: usize) -> bool {
        let range = address..address.saturating_add(len);
        self.core.mmu().is_adopted(&range)
    }

    /// Maps `len` bytes of zeros somewhere.
    ///
    /// # Errors
    /// `InvalidInput` for no bytes, `OutOfMemory` when there is no room.
    pub fn map(&self, len: usize, protection: Protection) -> io::Result<usize> {
        let pages = len.div_ceil(PAGE_SIZE);
        if pages == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.unmap_orphans();
        let mut call = self.call()?;
        let align = if len >= BIG { BIG / PAGE_SIZE } else { 1 };
        let range = call.regions.take(pages, align, attributes(protection));
        let range = range.ok_or(io::ErrorKind::OutOfMemory)?;
        self.grant(&mut call, range, protection)
    }

    fn grant(
        &self,
        call: &mut Call<'_>,
        pages: PageRange,
        protection: Protection,
    ) -> io::Result<usize> {
        // A page may be there although the range was free: a fault that was served late.
        let protect = || self.core.mmu().protect(pages, protection);
        if let Err(errno) = self.core.change_protection(pages, protect) {
            call.regions.give(pages);
            return Err(errno.into());
        }
        self.core.events().tell(events::Event::mapped(pages));
        Ok(pages.start.address())
    }

    /// Maps zeros at exactly this range, in place of what was there. With `keep`, only if nothing
    /// is there.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not of pages of the space, `AlreadyExists`.
    ///
    /// # Safety
    /// Nothing in the range is borrowed, as a reference or a slice.
    pub unsafe fn map_at(
        &self,
        address: usize,
        len: usize,
        protection: Protection,
        keep: bool,
    ) -> io::Result<()> {
        let mut call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        if keep && call.regions.pieces(pages).next().is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.clear(&mut call, pages)?;
        let taken = call.regions.take_at(pages, attributes(protection));
        debug_assert!(taken);
        self.grant(&mut call, pages, protection).map(drop)
    }

    /// Lets `map` put something of its own over a range of the space, which is not managed from
    /// then on, until it is unmapped or mapped again.
    ///
    /// # Errors
    /// As [`Memory::map_at`], and what `map` returns.
    ///
    /// # Safety
    /// Nothing in the range is borrowed, as a reference or a slice, and `map` maps nothing outside of it.
    pub unsafe fn map_foreign(
        &self,
        address: usize,
        len: usize,
        map: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        self.clear(&mut call, pages)?;
        map()?;
        let foreign = Attributes {
            foreign: true,
            ..attributes(Protection::empty())
        };
        let taken = call.regions.take_at(pages, foreign);
        debug_assert!(taken);
        Ok(())
    }

    /// Unmaps whatever is mapped in the range. A later touch is a SIGSEGV, with the code of memory
    /// that may not be touched (`SEGV_ACCERR`), not of memory that is not there (`SEGV_MAPERR`):
    /// the address range stays the space's.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not of pages of the space.
    ///
    /// # Safety
    /// Nothing in the range is borrowed, as a reference or a slice.
    pub unsafe fn unmap(&self, address: usize, len: usize) -> io::Result<()> {
        let mut call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        self.clear(&mut call, pages)
    }

    /// Unmaps a range that nobody has any more: now, or, where it is pinned, once it is not.
    ///
    /// # Safety
    /// As of [`Memory::unmap`], from now on.
    pub(crate) unsafe fn abandon(&self, address: usize, len: usize) -> io::Result<()> {
        let mut call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        match self.clear(&mut call, pages) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                // What has been unmapped by then may be another's by the next time.
                let left = call.regions.pieces(pages).map(|(piece, _)| piece);
                self.orphans().extend(left);
                self.has_orphans.store(true, Release);
                Ok(())
            }
            done => done,
        }
    }

    /// Unmaps what was abandoned while it was pinned, and is not any more.
    pub(crate) fn unmap_orphans(&self) {
        if !self.has_orphans.load(Acquire) {
            return;
        }
        // While a fork does not end they stay for the next call.
        if let Ok(mut call) = self.call() {
            let mut orphans = self.orphans();
            // Each is of one kind, so it is unmapped whole or not at all.
            orphans.retain(|&piece| self.clear(&mut call, piece).is_err());
            self.has_orphans.store(!orphans.is_empty(), Release);
        }
    }

    fn orphans(&self) -> MutexGuard<'_, Vec<PageRange>> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `pages` free, without access and without contents. Where they are pinned, nothing changes.
    fn clear(&self, call: &mut Call<'_>, pages: PageRange) -> io::Result<()> {
        call.inside.check_unpinned(pages).map_err(to_io)?;
        let _changing = call.inside.invalidating(pages, Event::Unmap);
        let pieces: Vec<_> = call.regions.pieces(pages).collect();
        for (piece, was) in pieces {
            if was.foreign {
                self.reclaim_foreign(piece)?;
            } else {
                if was.hints != Hints::NONE {
                    call.inside.set_hints(piece, Hints::NONE).map_err(to_io)?;
                }
                call.inside.release_device_pages(piece).map_err(to_io)?;
                self.core.mmu().protect(piece, Protection::empty())?;
                discard_soon(call, piece)?;
            }
            call.regions.give(piece);
            self.core.events().tell(events::Event::unmapped(piece));
        }
        Ok(())
    }

    fn reclaim_foreign(&self, pages: PageRange) -> io::Result<()> {
        self.core.mmu().reserve_again(pages).map_err(to_setup_io)
    }

    /// Changes what the program may do with a range, all of which must be mapped.
    ///
    /// # Errors
    /// `InvalidInput`; `OutOfMemory` where part of the range is not mapped.
    ///
    /// # Safety
    /// Nothing in the range is borrowed, as a reference or a slice.
    pub unsafe fn protect(
        &self,
        address: usize,
        len: usize,
        protection: Protection,
    ) -> io::Result<()> {
        let mut call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        if !call.regions.covers(pages) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.core
            .change_protection(pages, || self.core.mmu().protect(pages, protection))?;
        call.regions.change(pages, |attributes| {
            attributes.protection = protection.bits()
        });
        Ok(())
    }

    /// Drops the contents of a range, all of which must be mapped.
    ///
    /// # Errors
    /// As [`Memory::protect`].
    ///
    /// # Safety
    /// Nothing in the range is borrowed, as a reference or a slice.
    pub unsafe fn discard(&self, address: usize, len: usize) -> io::Result<()> {
        let call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        let whole = call.regions.covers(pages);
        for (piece, attributes) in call.regions.pieces(pages) {
            if attributes.foreign {
                self.core.mmu().discard_foreign(piece);
            } else {
                call.inside.discard(piece).map_err(to_io)?;
            }
        }
        if whole {
            Ok(())
        } else {
            Err(io::ErrorKind::OutOfMemory.into())
        }
    }

    /// Whether a child of a fork finds a range empty.
    ///
    /// # Errors
    /// As [`Memory::protect`], but what is mapped is changed.
    ///
    /// # Safety
    /// Nothing in the range is borrowed in a child of a fork, where its contents are gone.
    pub unsafe fn wipe_on_fork(&self, address: usize, len: usize, wipe: bool) -> io::Result<()> {
        self.change(address, len, |attributes| attributes.wipe_on_fork = wipe)
    }

    /// Whether a child of a fork does not have a range at all.
    ///
    /// # Errors
    /// As [`Memory::wipe_on_fork`].
    ///
    /// # Safety
    /// Nothing in the range is borrowed in a child of a fork, where it is not mapped.
    pub unsafe fn leave_out_of_fork(
        &self,
        address: usize,
        len: usize,
        leave: bool,
    ) -> io::Result<()> {
        self.change(address, len, |attributes| attributes.not_in_child = leave)
    }

    /// The regions within `pages`, with their attributes. As a driver's thread waits: see
    /// [`Memory::call_soon`].
    pub(crate) fn pieces(&self, pages: PageRange) -> io::Result<Vec<(PageRange, Attributes)>> {
        Ok(self.call_soon()?.regions.pieces(pages).collect())
    }

    /// Waits a bounded time for other threads that are at the regions, since they may wait for a
    /// migration that the caller has in its hands.
    pub(crate) fn call_soon(&self) -> io::Result<Call<'_>> {
        let start = Instant::now();
        loop {
            let signals = Blocked::all();
            // The lock is taken inside the gate, as by `call`.
            let inside = self.core.inside().map_err(to_io)?;
            let regions = match self.regions.try_lock() {
                Ok(regions) => regions,
                Err(TryLockError::Poisoned(regions)) => regions.into_inner(),
                Err(TryLockError::WouldBlock) if start.elapsed() > PATIENCE => {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Err(TryLockError::WouldBlock) => {
                    drop((inside, signals));
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
            };
            return Ok(Call {
                regions,
                inside,
                _signals: signals,
            });
        }
    }

    fn change(
        &self,
        address: usize,
        len: usize,
        change: impl Fn(&mut Attributes),
    ) -> io::Result<()> {
        let mut call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        call.regions.change(pages, change);
        if call.regions.covers(pages) {
            Ok(())
        } else {
            Err(io::ErrorKind::OutOfMemory.into())
        }
    }

    /// What a range is made of.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not of pages of the space.
    pub fn contents(&self, address: usize, len: usize) -> io::Result<Contents> {
        let call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        if !call.regions.covers(pages) {
            return Ok(Contents::Holes);
        }
        let mut foreign = call.regions.pieces(pages).map(|(_, a)| a.foreign);
        Ok(match (foreign.next(), foreign.next()) {
            (Some(true), None) => Contents::Foreign,
            _ => Contents::Managed,
        })
    }

    /// Changes the size of a mapped range; moves it where `to` says, or, if `may_move`, anywhere
    /// when it cannot grow in place. With `keep`, the old range stays mapped, without contents.
    /// Returns the new address.
    ///
    /// # Errors
    /// `InvalidInput` for bad ranges, `NotFound` (a bad address) where the old range is not mapped
    /// with one set of attributes, `OutOfMemory` where there is no room.
    ///
    /// # Safety
    /// Nothing in the old range is borrowed, nor in the range at `to`.
    pub unsafe fn remap(
        &self,
        address: usize,
        old_len: usize,
        new_len: usize,
        may_move: bool,
        to: Option<usize>,
        keep: bool,
    ) -> io::Result<usize> {
        let mut call = self.call()?;
        let old = self.pages(address, old_len, &call.regions)?;
        let new_pages = new_len.div_ceil(PAGE_SIZE);
        if new_pages == 0 || old.len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let pieces: Vec<_> = call.regions.pieces(old).collect();
        let like = one_kind(&pieces, old).ok_or(io::ErrorKind::NotFound)?;
        // What is new has no hints until it is there.
        let plain = Attributes {
            hints: Hints::NONE,
            ..like
        };
        let protection = Protection::from_bits_retain(like.protection);
        if to.is_none() && !keep {
            if new_pages <= old.len {
                let tail = PageRange::new(old.start.plus(new_pages), old.len - new_pages);
                self.clear(&mut call, tail)?;
                return Ok(address);
            }
            let more = PageRange::new(old.end(), new_pages - old.len);
            if more.end() <= call.regions.range().end() && call.regions.take_at(more, plain) {
                self.grant(&mut call, more, protection)?;
                hint(&mut call, more, |_| like.hints).map_err(io::Error::other)?;
                return Ok(address);
            }
        }
        if !may_move {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // Before anything is taken or cleared for it.
        call.inside.check_unpinned(old).map_err(to_io)?;
        let _changing = call.inside.invalidating(old, Event::Unmap);
        let new = match to {
            Some(to) => {
                let new_len = new_pages.checked_mul(PAGE_SIZE);
                let new_len = new_len.ok_or(io::ErrorKind::InvalidInput)?;
                let new = self.pages(to, new_len, &call.regions)?;
                if new.start < old.end() && old.start < new.end() {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                self.clear(&mut call, new)?;
                call.regions.take_at(new, plain).then_some(new)
            }
            None => call.regions.take(new_pages, 1, plain),
        };
        let new = new.ok_or(io::ErrorKind::OutOfMemory)?;
        self.grant(&mut call, new, protection)?;
        hint(&mut call, new, |_| like.hints).map_err(io::Error::other)?;
        for (piece, was) in pieces {
            let at = (piece.start.0 - old.start.0) as usize;
            let len = piece.len.min(new.len.saturating_sub(at));
            let there = PageRange::new(new.start.plus(at), len);
            hint(&mut call, there, |_| was.hints).map_err(io::Error::other)?;
        }
        let moved = PageRange::new(old.start, old.len.min(new.len));
        call.inside.relocate(moved, new.start).map_err(to_io)?;
        if keep {
            call.inside.discard(old).map_err(to_io)?;
        } else {
            self.clear(&mut call, old)?;
        }
        Ok(new.start.address())
    }

    /// The pages of a range that begins on a page and lies within the space.
    pub(crate) fn pages(
        &self,
        address: usize,
        len: usize,
        regions: &Regions,
    ) -> io::Result<PageRange> {
        let pages = PageRange::new(PageNo::containing(address), len.div_ceil(PAGE_SIZE));
        let all = regions.range();
        let inside = pages.start >= all.start && pages.end() <= all.end();
        if address.is_multiple_of(PAGE_SIZE) && inside && len <= all.bytes() {
            return Ok(pages);
        }
        let bytes = address..address.saturating_add(len);
        if self.core.mmu().is_adopted(&bytes) {
            Err(io::Error::new(io::ErrorKind::InvalidInput, IsAdopted))
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

/// Drops pages that were not pinned when the regions were locked. Who has pinned some since then looks
/// at the regions afterwards, does not get to, and lets go of them.
fn discard_soon(call: &Call<'_>, pages: PageRange) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match call.inside.discard(pages) {
            Err(RangeError::Pinned) if start.elapsed() < 2 * PATIENCE => {
                std::thread::sleep(Duration::from_micros(100));
            }
            done => return done.map_err(to_io),
        }
    }
}

fn attributes(protection: Protection) -> Attributes {
    Attributes {
        protection: MprotectFlags::bits(&protection),
        wipe_on_fork: false,
        not_in_child: false,
        foreign: false,
        hints: Hints::NONE,
        adopted: None,
    }
}

/// Those of memory that is adopted, with a handle or without.
pub(crate) fn adopted_attributes(vma: &Vma, guarded: bool) -> Attributes {
    Attributes {
        adopted: Some(Adoption {
            guarded,
            huge: vma.wants_huge(),
        }),
        ..attributes(vma.protection())
    }
}

/// What all of `pages` have in common, if they are ours, all there, and differ in their hints alone: with
/// the hints of the last.
fn one_kind(pieces: &[(PageRange, Attributes)], pages: PageRange) -> Option<Attributes> {
    let like = pieces.last()?.1;
    let same = |(_, is): &(PageRange, Attributes)| {
        Attributes {
            hints: like.hints,
            ..*is
        } == like
    };
    let len: usize = pieces.iter().map(|(piece, _)| piece.len).sum();
    (len == pages.len && !like.foreign && pieces.iter().all(same)).then_some(like)
}

pub(crate) fn to_io(error: RangeError) -> io::Error {
    match error {
        RangeError::NotManaged => io::ErrorKind::InvalidInput.into(),
        RangeError::Forking => io::ErrorKind::WouldBlock.into(),
        RangeError::InNotifier => io::Error::new(io::ErrorKind::Deadlock, error),
        RangeError::Pinned => io::Error::new(io::ErrorKind::ResourceBusy, error),
    }
}

fn to_setup_io(error: SetupError) -> io::Error {
    io::Error::other(error)
}
