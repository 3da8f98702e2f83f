//! Address ranges of a space, with the meaning of the operating system's calls: map, unmap,
//! protect, discard, remap.
//!
//! For application threads. Signals are blocked and the gate is passed for the length of each call;
//! the lock on the regions is taken inside, so that a fork finds it free.

use crate::build::CoreSpace;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uhmm_core::addr::{PAGE_SIZE, PageNo, PageRange};
use uhmm_core::error::RangeError;
use uhmm_core::ranges::Inside;
use uhmm_core::regions::{Attributes, Regions};
use uhmm_linux::engine::thread::bell;
use uhmm_linux::mmu::{LinuxMmu, SetupError};
use uhmm_linux::protection::MprotectFlags;
use uhmm_linux::signals::Blocked;

/// What a program may do with a range: read, write, execute.
pub use uhmm_linux::protection::MprotectFlags as Protection;

/// Ranges of this many bytes or more start at a multiple of it, as page tables like it.
const BIG: usize = 2 << 20;

/// The address ranges of a space. See the module's head.
pub struct Memory {
    core: Arc<CoreSpace>,
    regions: Mutex<Regions>,
}

/// Everything that a call holds while it works. Dropped in this order.
struct Call<'a> {
    regions: MutexGuard<'a, Regions>,
    inside: Inside<'a, LinuxMmu>,
    _signals: Blocked,
}

impl Memory {
    pub(crate) fn new(core: Arc<CoreSpace>) -> Self {
        let range = core.range();
        let ours = PageRange::new(range.start, (bell(range).0 - range.start.0) as usize);
        Self {
            core,
            regions: Mutex::new(Regions::new(ours)),
        }
    }

    fn call(&self) -> io::Result<Call<'_>> {
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
        let range = self.core.range();
        address < range.end().address() && address.saturating_add(len) > range.start.address()
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
        if let Err(errno) = self.core.mmu().protect(pages, protection) {
            call.regions.give(pages);
            return Err(errno.into());
        }
        Ok(pages.start.address())
    }

    /// Maps zeros at exactly this range, in place of what was there. With `keep`, only if nothing
    /// is there.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not of pages of the space, `AlreadyExists`.
    pub fn map_at(
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
    pub fn map_foreign(
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

    /// Unmaps whatever is mapped in the range.
    ///
    /// # Errors
    /// `InvalidInput` for a range that is not of pages of the space.
    pub fn unmap(&self, address: usize, len: usize) -> io::Result<()> {
        let mut call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        self.clear(&mut call, pages)
    }

    /// Makes `pages` free, without access and without contents.
    fn clear(&self, call: &mut Call<'_>, pages: PageRange) -> io::Result<()> {
        let pieces: Vec<_> = call.regions.pieces(pages).collect();
        for (piece, was) in pieces {
            if was.foreign {
                self.reclaim_foreign(piece)?;
            } else {
                self.core.mmu().protect(piece, Protection::empty())?;
                call.inside.discard(piece).map_err(to_io)?;
            }
            call.regions.give(piece);
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
    pub fn protect(&self, address: usize, len: usize, protection: Protection) -> io::Result<()> {
        let mut call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        if !call.regions.covers(pages) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.core
            .change_protection(|| self.core.mmu().protect(pages, protection))?;
        call.regions.change(pages, |attributes| {
            attributes.protection = protection.bits()
        });
        Ok(())
    }

    /// Drops the contents of a range, all of which must be mapped.
    ///
    /// # Errors
    /// As [`Memory::protect`].
    pub fn discard(&self, address: usize, len: usize) -> io::Result<()> {
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
    /// As [`Memory::protect`].
    pub fn wipe_on_fork(&self, address: usize, len: usize, wipe: bool) -> io::Result<()> {
        let mut call = self.call()?;
        let pages = self.pages(address, len, &call.regions)?;
        if !call.regions.covers(pages) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        call.regions
            .change(pages, |attributes| attributes.wipe_on_fork = wipe);
        Ok(())
    }

    /// Whether every page of a range is mapped and managed.
    pub fn is_managed(&self, address: usize, len: usize) -> bool {
        let Ok(call) = self.call() else { return false };
        self.pages(address, len, &call.regions).is_ok_and(|pages| {
            call.regions.covers(pages) && call.regions.pieces(pages).all(|(_, a)| !a.foreign)
        })
    }

    /// Changes the size of a mapped range; moves it where `to` says, or, if `may_move`, anywhere
    /// when it cannot grow in place. With `keep`, the old range stays mapped, without contents.
    /// Returns the new address.
    ///
    /// # Errors
    /// `InvalidInput` for bad ranges, `NotFound` (a bad address) where the old range is not mapped
    /// with one set of attributes, `OutOfMemory` where there is no room.
    pub fn remap(
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
        let mut pieces = call.regions.pieces(old);
        let like = match (pieces.next(), pieces.next()) {
            (Some((piece, like)), None) if piece == old && !like.foreign => like,
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        drop(pieces);
        let protection = Protection::from_bits_retain(like.protection);
        if to.is_none() && !keep {
            if new_pages <= old.len {
                let tail = PageRange::new(old.start.plus(new_pages), old.len - new_pages);
                self.clear(&mut call, tail)?;
                return Ok(address);
            }
            let more = PageRange::new(old.end(), new_pages - old.len);
            if more.end() <= call.regions.range().end() && call.regions.take_at(more, like) {
                self.grant(&mut call, more, protection)?;
                return Ok(address);
            }
        }
        if !may_move {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let new = match to {
            Some(to) => {
                let new = self.pages(to, new_pages * PAGE_SIZE, &call.regions)?;
                if new.start < old.end() && old.start < new.end() {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                self.clear(&mut call, new)?;
                call.regions.take_at(new, like).then_some(new)
            }
            None => call.regions.take(new_pages, 1, like),
        };
        let new = new.ok_or(io::ErrorKind::OutOfMemory)?;
        self.grant(&mut call, new, protection)?;
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
    fn pages(&self, address: usize, len: usize, regions: &Regions) -> io::Result<PageRange> {
        let pages = PageRange::new(PageNo::containing(address), len.div_ceil(PAGE_SIZE));
        let all = regions.range();
        let inside = pages.start >= all.start && pages.end() <= all.end();
        if address.is_multiple_of(PAGE_SIZE) && inside && len <= all.bytes() {
            Ok(pages)
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }

    /// Registers all that is ours with the MMU again, in the child of a fork.
    pub(crate) fn register_all(&self) -> Result<(), SetupError> {
        let regions = self
            .regions
            .try_lock()
            .unwrap_or_else(|_| unreachable!("the gate is closed"));
        let all = self.core.range();
        let mut next = all.start;
        let foreign = regions
            .pieces(regions.range())
            .filter(|(_, attributes)| attributes.foreign);
        for (hole, _) in foreign {
            self.register(next, hole.start)?;
            next = hole.end();
        }
        self.register(next, all.end())
    }

    fn register(&self, start: PageNo, end: PageNo) -> Result<(), SetupError> {
        let len = (end.0 - start.0) as usize;
        if len == 0 {
            Ok(())
        } else {
            self.core.mmu().register(PageRange::new(start, len))
        }
    }

    /// Empties what a child is to find empty.
    pub(crate) fn wipe_in_child(&self) -> io::Result<()> {
        let call = self.call()?;
        for (piece, attributes) in call.regions.pieces(call.regions.range()) {
            if attributes.wipe_on_fork && !attributes.foreign {
                call.inside.discard(piece).map_err(to_io)?;
            }
        }
        Ok(())
    }

    /// Makes sure that the next calls of this thread do not fault on its own stack, if that is
    /// managed: in the child of a fork nobody would serve the fault.
    pub(crate) fn hold_stack(&self) {
        const DEPTH: usize = 16;
        let here = 0u8;
        let address = std::ptr::from_ref(&here) as usize;
        if self.touches(address, 1) {
            let top = PageNo::containing(address).0 as usize;
            for page in top - DEPTH..=top {
                self.core.mmu().touch(PageNo(page as u64));
            }
        }
    }
}

fn attributes(protection: Protection) -> Attributes {
    Attributes {
        protection: MprotectFlags::bits(&protection),
        wipe_on_fork: false,
        foreign: false,
    }
}

fn to_io(error: RangeError) -> io::Error {
    match error {
        RangeError::NotManaged => io::ErrorKind::InvalidInput.into(),
        RangeError::Forking => io::ErrorKind::WouldBlock.into(),
    }
}

fn to_setup_io(error: SetupError) -> io::Error {
    io::Error::other(error)
}
