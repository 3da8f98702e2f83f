//! Device views: for the length of a kernel launch, a range is on a device and stays there.
//!
//! ```no_run
//! # use uhmm::{Builder, DeviceId};
//! # fn launch(_: &[uhmm::device::DevicePage]) {}
//! # let space = Builder::new(64 << 20).build()?;
//! let mut region = space.region(16 << 20)?;
//! region.as_mut_slice().fill(1);
//! let view = region.view(.., DeviceId(0))?;
//! launch(&view.pages()?);
//! drop(view);
//! let sum: u64 = region.as_slice().iter().map(|&byte| u64::from(byte)).sum();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::build::Space;
use crate::device_memory::DeviceId;
use crate::range::RangeError;
use crate::region::Region;
use crate::span::{BoundsError, Span};
use crate::typed::{Pod, Slice};
use std::fmt;
use std::ops::RangeBounds;
use uhmm_core::addr::DevicePage;
use uhmm_core::view;
use uhmm_linux::mmu::LinuxMmu;

pub use uhmm_core::view::Why;

/// Why there is no view, or none any more. Nothing is held, and nothing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewError {
    /// Something is wrong with the range.
    Range(RangeError),
    /// The range names no part of the region or the slice.
    Bounds(BoundsError),
    /// The space has no such device.
    NoSuchDevice,
    /// The device's memory is of a type that does not migrate.
    DoesNotMigrate,
    /// The device never has so many pages: view a part at a time.
    TooLarge {
        /// Pages of the view.
        pages: usize,
        /// Pages of the device.
        capacity: usize,
    },
    /// The device was removed, or has failed.
    Removed,
    /// The device is suspended.
    Suspended,
    /// Not all pages could be made resident.
    NotResident {
        /// How many are missing.
        missing: usize,
        /// The address of the first of them.
        first: usize,
        /// Why that one is.
        why: Why,
    },
    /// The view was kept past its range: the program has unmapped, discarded or moved pages of it.
    Gone {
        /// How many.
        pages: usize,
    },
    /// The device gives no addresses, only numbers of pages.
    NoAddresses,
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match *self {
            Self::Range(error) => return error.fmt(f),
            Self::Bounds(error) => return error.fmt(f),
            Self::NoSuchDevice => view::ViewError::NoSuchDevice,
            Self::DoesNotMigrate => view::ViewError::DoesNotMigrate,
            Self::TooLarge { pages, capacity } => view::ViewError::TooLarge { pages, capacity },
            Self::Removed => view::ViewError::Removed,
            Self::Suspended => view::ViewError::Suspended,
            Self::NotResident {
                missing,
                first,
                why,
            } => view::ViewError::NotResident {
                missing,
                first: uhmm_core::addr::PageNo::containing(first),
                why,
            },
            Self::Gone { pages } => view::ViewError::Gone { pages },
            Self::NoAddresses => view::ViewError::NoAddresses,
        };
        core.fmt(f)
    }
}

impl std::error::Error for ViewError {}

impl From<RangeError> for ViewError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl From<BoundsError> for ViewError {
    fn from(error: BoundsError) -> Self {
        Self::Bounds(error)
    }
}

impl From<view::ViewError> for ViewError {
    fn from(error: view::ViewError) -> Self {
        match error {
            view::ViewError::NotManaged => Self::Range(RangeError::Foreign),
            view::ViewError::Forking => Self::Range(RangeError::Forking),
            view::ViewError::InNotifier => Self::Range(RangeError::InNotifier),
            view::ViewError::NoSuchDevice => Self::NoSuchDevice,
            view::ViewError::DoesNotMigrate => Self::DoesNotMigrate,
            view::ViewError::TooLarge { pages, capacity } => Self::TooLarge { pages, capacity },
            view::ViewError::Removed => Self::Removed,
            view::ViewError::Suspended => Self::Suspended,
            view::ViewError::NotResident {
                missing,
                first,
                why,
            } => Self::NotResident {
                missing,
                first: first.address(),
                why,
            },
            view::ViewError::Gone { pages } => Self::Gone { pages },
            view::ViewError::NoAddresses => Self::NoAddresses,
        }
    }
}

/// A range that is on a device, all of it, and stays there until this is dropped, on any thread.
///
/// The device may read and write its pages meanwhile. Of memory that the CPU does not map, a touch by the
/// program waits until the view is dropped, and then sees what the device has written. Of memory that it
/// maps, program and device see the same bytes at once, and must not race.
///
/// What the program does to the range's mapping is not stopped: pages that are unmapped, discarded or
/// moved while there is a view leave it their device pages, which belong to nothing any more. Asking the
/// view is [`ViewError::Gone`] then.
pub struct View<'a> {
    core: uhmm_core::View<'a, LinuxMmu>,
}

impl View<'_> {
    /// The address of the first byte.
    pub fn address(&self) -> usize {
        self.core.address()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.core.pages().bytes()
    }

    /// Whether it has no bytes; no view is so.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device.
    pub fn device(&self) -> DeviceId {
        DeviceId(self.core.device())
    }

    /// The device's pages, one for each 4096 bytes of the range, in order.
    ///
    /// # Errors
    /// [`ViewError::Gone`].
    pub fn pages(&self) -> Result<Vec<DevicePage>, ViewError> {
        Ok(self.core.device_pages()?)
    }

    /// The first of the device's pages, if all of them lie in one block, in order.
    ///
    /// # Errors
    /// [`ViewError::Gone`].
    pub fn contiguous(&self) -> Result<Option<DevicePage>, ViewError> {
        Ok(self.core.contiguous()?)
    }

    /// The device's own address of each page, for kernels that take pointers; of memory that the CPU maps,
    /// the address in the program.
    ///
    /// # Errors
    /// [`ViewError::Gone`], [`ViewError::NoAddresses`].
    pub fn addresses(&self) -> Result<Vec<u64>, ViewError> {
        Ok(self.core.addresses()?)
    }

    /// Whether the device's pages still are the range.
    ///
    /// # Errors
    /// [`ViewError::Gone`].
    pub fn check(&self) -> Result<(), ViewError> {
        Ok(self.core.check()?)
    }
}

impl Space {
    /// Makes a range resident on a device, all of it, and holds it there. A device that is full makes
    /// room of what is coldest on it.
    ///
    /// The program may go on using the range, and unmap it: then the view says so ([`ViewError::Gone`]).
    /// What the device writes is seen by whoever reads there, as with any memory that hardware writes to.
    /// [`Region::view`] leaves both to the compiler.
    ///
    /// # Errors
    /// [`ViewError`]; nothing is held then. What has moved has moved.
    ///
    /// # Safety
    /// What the device writes must not be borrowed until the view has ended, as a reference or a slice.
    pub unsafe fn view(
        &self,
        address: usize,
        len: usize,
        device: DeviceId,
    ) -> Result<View<'_>, ViewError> {
        let pages = self.pages(address, len, true)?;
        let core = self.off_managed_stack(|| self.core().view(device.0, pages))?;
        Ok(View { core })
    }
}

impl Region {
    /// The pages of a part of it, in bytes, resident on a device: see [`View`].
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn view(
        &mut self,
        bytes: impl RangeBounds<usize>,
        device: DeviceId,
    ) -> Result<View<'_>, ViewError> {
        let span = self.range(bytes)?.pages();
        // SAFETY: the region is borrowed mutably for as long as the view lives.
        unsafe { self.space().view(span.address(), span.len(), device) }
    }
}

impl<T: Pod> Slice<T> {
    /// The pages of some elements, resident on a device: see [`View`]. A page may have other elements
    /// beside them.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn view(
        &mut self,
        elements: impl RangeBounds<usize>,
        device: DeviceId,
    ) -> Result<View<'_>, ViewError> {
        let span = self.range(elements)?.pages();
        let space = self.region().space();
        // SAFETY: the slice is borrowed mutably for as long as the view lives.
        unsafe { space.view(span.address(), span.len(), device) }
    }
}

impl Span {
    /// Its pages, resident on a device, while the program may go on using the memory: see
    /// [`Space::view`].
    ///
    /// # Errors
    /// [`ViewError`].
    ///
    /// # Safety
    /// As of [`Space::view`].
    pub unsafe fn view(&self, device: DeviceId) -> Result<View<'_>, ViewError> {
        let pages = self.pages();
        // SAFETY: the caller's promise.
        unsafe { self.space().view(pages.address(), pages.len(), device) }
    }
}
