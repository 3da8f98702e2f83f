//! Memory that the program has mapped itself, managed for a while: adopted, and released.
//!
//! Adopted memory stays at its address. Its pages go to devices and come back like those of a
//! [`Region`](crate::Region), and everything that takes an address takes its addresses. When it is
//! released, every page is in RAM again where the program had it, and the space knows nothing of it.
//!
//! The steps of the way in, in this order:
//!
//! 1. What the kernel knows of the range is looked at; what does not fit is refused, and nothing has
//!    been done.
//! 2. The range is taken in, and is registered. From now on a touch of a missing page is served.
//! 3. What is present becomes the space's, as pages in RAM, above the budget if need be.
//! 4. The range is noted with the regions, with the protection that it has, and so open to requests: nobody
//!    takes a page for a hole that is not known yet.
//!
//! All of it with the regions locked, inside the gate: no fork comes between, nor a call of the program's
//! that changes the mapping.
//!
//! The way out goes from the front, some pages at a time, each step with the lock and the gate on its own
//! (`uhmm_core::adopt`). A fork between two steps finds the rest managed, in the child too. Threads of
//! the program may touch any of it at any time, and find what they have written.
//!
//! It ends when all pages are home: one that its device does not give, that is held by a driver, or that
//! is pinned is waited for.

use crate::build::Space;
use crate::device_memory::{DeviceId, Usage};
use crate::hint::{Hint, HintError};
use crate::memory::{adopted_attributes, pages_around};
use crate::migrate::{MigrateError, Migrated, Place};
use crate::range::{RangeError, refused, whole_pages};
use crate::view::{View, ViewError};
use std::fmt;
use std::iter;
use std::ops::Range;
use std::time::Duration;
use uhmm_core::addr::{PageNo, PageRange};
use uhmm_core::error;
pub use uhmm_linux::adopt::Unfit;
use uhmm_linux::vmas::Vma;
use uhmm_linux::{own, stack};

/// Why memory is not adopted. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdoptError {
    /// Something is wrong with the range.
    Range(RangeError),
    /// It is the calling thread's stack, or a part of that.
    OwnStack,
    /// It is not memory that can be adopted.
    Unfit(Unfit),
    /// It does not fit into what is left of the budget and the devices.
    NoRoom {
        /// Pages that are there.
        pages: usize,
        /// Pages that there is room for.
        room: usize,
    },
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(error) => error.fmt(f),
            Self::OwnStack => f.write_str(
                "the memory is this thread's stack: a thread cannot wait for its own stack",
            ),
            Self::Unfit(error) => error.fmt(f),
            Self::NoRoom { pages, room } => write!(
                f,
                "{} KiB are there, and there is room for {} KiB: give a larger budget, or a device",
                pages * 4,
                room * 4
            ),
        }
    }
}

impl std::error::Error for AdoptError {}

impl From<RangeError> for AdoptError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl From<Unfit> for AdoptError {
    fn from(error: Unfit) -> Self {
        Self::Unfit(error)
    }
}

/// Why [`Adopted::release`] has not released all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseError {
    /// The time was over first: this many bytes are still adopted. Their devices do not give them, or
    /// they are held or pinned.
    StillAdopted(usize),
    /// Called from a notifier, which must not call the space.
    InNotifier,
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StillAdopted(bytes) => write!(
                f,
                "{} KiB are still adopted: a device does not give a page, or it is held or pinned; try \
                 again with more time",
                bytes / 1024
            ),
            Self::InNotifier => error::RangeError::InNotifier.fmt(f),
        }
    }
}

impl std::error::Error for ReleaseError {}

/// Why a call that changes mappings is refused on adopted memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsAdopted;

impl fmt::Display for IsAdopted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "some of the range is adopted: its mappings are the program's, release it first",
        )
    }
}

impl std::error::Error for IsAdopted {}

/// Memory of the program's own that a space manages. See [`Space::adopt`].
///
/// Dropping it gives the memory back, and waits for that as long as it takes.
pub struct Adopted {
    space: Space,
    address: usize,
    len: usize,
    /// The pages that have not been given back.
    pages: PageRange,
}

impl Space {
    /// Manages `len` bytes that the program has mapped itself, at their address: private anonymous
    /// memory (a large block of `malloc`, a mapping, an arena), on whole pages, whatever its protection.
    /// What is in it stays. Other threads may use it meanwhile.
    ///
    /// It counts towards the budget with all that is in RAM, and reclaim pushes out what is too much.
    ///
    /// # Errors
    /// [`AdoptError`].
    ///
    /// # Safety
    /// As long as it is adopted,
    ///
    /// - the memory stays mapped, as it is: nobody unmaps, remaps or locks it, or keeps it out of children,
    ///   and a block is not given back to its allocator. Its protection is changed, and its contents are
    ///   dropped, by way of [`Memory::around_protect`] and [`Memory::around_discard`] alone;
    /// - uhmm itself uses none of it: no device of the space, no notifier and no fault handler has its
    ///   data there, and it is not the heap that they allocate from. (A block of its own is fine, the
    ///   heap as a whole is not.)
    ///
    /// Nobody passes parts of it to a system call that takes no faults of user space in the kernel,
    /// unless it is pinned.
    ///
    /// [`Memory::around_protect`]: crate::memory::Memory::around_protect
    /// [`Memory::around_discard`]: crate::memory::Memory::around_discard
    pub unsafe fn adopt(&self, address: *mut u8, len: usize) -> Result<Adopted, AdoptError> {
        let range = whole_pages(address as usize, len)?;
        let mmu = self.core().mmu();
        let own = stack::range();
        if own.is_some_and(|own| range.start < own.end && own.start < range.end) {
            return Err(AdoptError::OwnStack);
        }
        let mut call = self.memory().call_soon().map_err(refused)?;
        if own::overlaps(&range) {
            return Err(Unfit::Ours.into());
        }
        if mmu.is_adopted(&range) {
            return Err(Unfit::Adopted.into());
        }
        let vmas = mmu.mappings(&range)?;
        if let Some(unfit) = vmas.iter().find_map(Vma::unfit) {
            return Err(unfit.into());
        }
        if !mmu.stacks_in(&vmas)?.is_empty() {
            return Err(Unfit::Stack.into());
        }
        self.check_room(iter::once(&range))?;
        let piece = |vma: &Vma| (pages_around(&vma.range), adopted_attributes(vma, true));
        let pieces = vmas.iter().map(piece).collect();
        self.memory().take_in(&mut call, &range, pieces)?;
        Ok(Adopted {
            space: self.clone(),
            address: range.start,
            len,
            pages: pages_around(&range),
        })
    }
}

impl Space {
    /// The page at `address`, if this space manages it: in the space, or adopted.
    pub fn page_at(&self, address: usize) -> Option<PageNo> {
        self.core().mmu().page_at(address)
    }
}

impl Adopted {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes; no adopted memory is so.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.address as *mut u8
    }

    /// The space that manages it.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// What has not been given back.
    fn rest(&self) -> Range<usize> {
        let end = self.address + self.len;
        end - self.pages.bytes()..end
    }

    /// Migrates all of it, best effort page by page.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn migrate(&self, to: Place) -> Result<Migrated, MigrateError> {
        let rest = self.rest();
        self.space.migrate(rest.start, rest.len(), to)
    }

    /// Where its pages are.
    ///
    /// # Errors
    /// [`RangeError::Forking`].
    pub fn usage(&self) -> Result<Usage, RangeError> {
        let rest = self.rest();
        self.space.usage(rest.start, rest.len())
    }

    /// Gives all of it a hint: see [`Space::advise`].
    ///
    /// # Errors
    /// [`HintError`].
    pub fn advise(&self, hint: Hint) -> Result<Migrated, HintError> {
        let rest = self.rest();
        self.space.advise(rest.start, rest.len(), hint)
    }

    /// All of it, resident on a device: see [`View`].
    ///
    /// # Errors
    /// [`ViewError`].
    ///
    /// # Safety
    /// As of [`Space::view`].
    pub unsafe fn view(&self, device: DeviceId) -> Result<View<'_>, ViewError> {
        let rest = self.rest();
        // SAFETY: the caller's promise.
        unsafe { self.space.view(rest.start, rest.len(), device) }
    }

    /// Gives the memory back as it was: every page in RAM, at its address, whatever the budget says. A
    /// page that its device has lost stays one whose touch is a SIGBUS. A call that fails has given a part
    /// back, from the front, and another one goes on from there.
    ///
    /// # Errors
    /// [`ReleaseError`], when `patience` is over first.
    pub fn release(&mut self, patience: Duration) -> Result<(), ReleaseError> {
        self.hand_back(Some(patience))
    }

    /// Gives back all that is left.
    fn hand_back(&mut self, patience: Option<Duration>) -> Result<(), ReleaseError> {
        let (space, pages) = (&self.space, &mut self.pages);
        space.off_managed_stack(|| space.memory().give_back(pages, true, patience))?;
        self.pages.len = 0;
        Ok(())
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        let done = self.hand_back(None);
        assert!(
            done.is_ok() || std::thread::panicking(),
            "adopted memory is dropped in a notifier, where it cannot be given back"
        );
    }
}
