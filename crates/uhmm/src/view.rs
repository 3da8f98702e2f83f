//! Device views: for the length of a kernel launch, a range is on a device and stays there.
//!
//! ```no_run
//! # use uhmm::{Builder, DeviceId};
//! # fn launch(_: &[uhmm::device::DevicePage]) {}
//! # let space = Builder::new(64 << 20).build()?;
//! let mut region = space.region(16 << 20)?;
//! region.as_mut_slice().fill(1);
//! let view = region.view(DeviceId(0))?;
//! launch(&view.pages()?);
//! drop(view);
//! let sum: u64 = region.as_slice().iter().map(|&byte| u64::from(byte)).sum();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::build::Space;
use crate::device_memory::DeviceId;
use crate::range::RangeError;
use crate::region::Region;
use std::fmt;
use std::ops::Range;
use uhmm_core::addr::{DevicePage, PAGE_SIZE};
use uhmm_core::view;
use uhmm_linux::mmu::LinuxMmu;

pub use uhmm_core::view::Why;

/// Why there is no view, or none any more. Nothing is held, and nothing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewError {
    /// Something is wrong with the range.
    Range(RangeError),
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
        self.core.pages().start.address()
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
    /// The range may be unmapped while there is a view: then the view says so ([`ViewError::Gone`]).
    /// [`Region::view`] leaves that to the compiler.
    ///
    /// # Errors
    /// [`ViewError`]; nothing is held then. What has moved has moved.
    pub fn view(
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
    /// All of it, resident on a device: see [`View`].
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn view(&mut self, device: DeviceId) -> Result<View<'_>, ViewError> {
        self.view_part(0..self.len(), device)
    }

    /// A part of it, in bytes from its beginning, that begins and ends on a page.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn view_part(
        &mut self,
        part: Range<usize>,
        device: DeviceId,
    ) -> Result<View<'_>, ViewError> {
        if part.start > part.end || part.end > self.len() {
            return Err(RangeError::Foreign.into());
        }
        if !part.start.is_multiple_of(PAGE_SIZE) {
            return Err(RangeError::Unaligned.into());
        }
        let address = self.as_ptr() as usize + part.start;
        self.space().view(address, part.len(), device)
    }
}
