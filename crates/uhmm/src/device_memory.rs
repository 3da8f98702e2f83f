//! The devices of a space: added, emptied, suspended and removed while programs run; where the pages
//! of a range are; memory that fails.

use crate::build::{BuildError, Space};
use crate::migrate::MigrateError;
use crate::range::RangeError;
use std::fmt;
use std::time::Duration;
pub use uhmm_core::addr::{DeviceAddr, DeviceId, DevicePage};
use uhmm_core::device::Device;
use uhmm_core::evict;
use uhmm_core::fault::Scratch;
use uhmm_core::mirror::in_notifier;
use uhmm_linux::mmu::LinuxMmu;
use uhmm_linux::signals::Blocked;

pub use uhmm_core::evict::StillInUse;
pub use uhmm_core::failure::{Failure, FailureError};
pub use uhmm_core::hold::{Hold, HoldError};
pub use uhmm_core::map::MapError;
pub use uhmm_core::usage::Usage;
pub use uhmm_core::walk::NotOrdinary;
pub use uhmm_core::{AddChunkError, AllocError};

/// Pages of a device in its driver's hands, on this machine.
pub type DevicePages<'a> = uhmm_core::DevicePages<'a, LinuxMmu>;
/// A reference on a device page, on this machine.
pub type PageRef<'a> = uhmm_core::PageRef<'a, LinuxMmu>;

/// Why device memory was not emptied or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveError {
    /// The space has no such device, or the device no such chunk.
    NoSuchDevice,
    /// It was removed before.
    AlreadyRemoved,
    /// The time was over first. Nothing is lost, and another call goes on where this one ended.
    StillInUse(StillInUse),
    /// Called from a notifier, which must not call the space.
    InNotifier,
    /// The calling thread's stack is managed memory, which might itself be on the device.
    ManagedStack,
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchDevice => evict::RemoveError::NoSuchDevice.fmt(f),
            Self::AlreadyRemoved => evict::RemoveError::AlreadyRemoved.fmt(f),
            Self::StillInUse(error) => error.fmt(f),
            Self::InNotifier => evict::RemoveError::InNotifier.fmt(f),
            Self::ManagedStack => MigrateError::ManagedStack.fmt(f),
        }
    }
}

impl std::error::Error for RemoveError {}

impl From<evict::RemoveError> for RemoveError {
    fn from(error: evict::RemoveError) -> Self {
        match error {
            evict::RemoveError::NoSuchDevice => Self::NoSuchDevice,
            evict::RemoveError::AlreadyRemoved => Self::AlreadyRemoved,
            evict::RemoveError::InNotifier => Self::InNotifier,
            evict::RemoveError::StillInUse(error) => Self::StillInUse(error),
        }
    }
}

/// Its calls that take a `patience` work for that long at most, and longer only to end a step that has
/// begun.
impl Space {
    /// Adds a device while the space is in use. Devices are filled in the order in which they were
    /// added.
    ///
    /// # Errors
    /// [`BuildError::Core`].
    pub fn add_device(&self, device: Box<dyn Device>) -> Result<DeviceId, BuildError> {
        let added = self.off_managed_stack(|| self.core().add_device(device));
        added.map(DeviceId).map_err(BuildError::Core)
    }

    /// Removes a device while programs use its pages: nothing new goes there, and every page comes to
    /// RAM, or by way of RAM to another device.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub fn remove_device(&self, device: DeviceId, patience: Duration) -> Result<(), RemoveError> {
        self.emptying(|core, scratch| core.remove_device(device.0, patience, scratch))
    }

    /// Brings all pages of a device to RAM. Pages may come to it again at once.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub fn evict_device(&self, device: DeviceId, patience: Duration) -> Result<(), RemoveError> {
        self.emptying(|core, scratch| core.evict_device(device.0, patience, scratch))
    }

    /// Brings all pages of a device to RAM, and lets none come until [`Space::resume_device`].
    ///
    /// # Errors
    /// [`RemoveError`]; the device is suspended all the same, with pages left on it.
    pub fn suspend_device(&self, device: DeviceId, patience: Duration) -> Result<(), RemoveError> {
        self.emptying(|core, scratch| core.suspend_device(device.0, patience, scratch))
    }

    /// Ends a suspension. `false`: there was none.
    pub fn resume_device(&self, device: DeviceId) -> bool {
        self.core().resume_device(device.0)
    }

    /// Brings all pages of a chunk of a device to RAM. Chunks are counted from 0.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub fn evict_chunk(
        &self,
        device: DeviceId,
        chunk: usize,
        patience: Duration,
    ) -> Result<(), RemoveError> {
        self.emptying(|core, scratch| core.evict_chunk(device.0, chunk, patience, scratch))
    }

    /// Removes a chunk of a device's memory while programs use its pages.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub fn remove_chunk(
        &self,
        device: DeviceId,
        chunk: usize,
        patience: Duration,
    ) -> Result<(), RemoveError> {
        self.emptying(|core, scratch| core.remove_chunk(device.0, chunk, patience, scratch))
    }

    /// Adds a chunk to a device's memory: the next one, or one that was removed.
    ///
    /// # Errors
    /// [`AddChunkError`].
    pub fn add_chunk(&self, device: DeviceId, chunk: usize) -> Result<(), AddChunkError> {
        self.off_managed_stack(|| self.core().add_chunk(device.0, chunk))
    }

    /// On a thread of its own: a handler of a signal may touch what is in hand for as long as that takes.
    fn emptying(
        &self,
        work: impl FnOnce(&crate::build::CoreSpace, &mut Scratch) -> Result<(), evict::RemoveError>
        + Send,
    ) -> Result<(), RemoveError> {
        self.check_stack().map_err(|_| RemoveError::ManagedStack)?;
        let work = || work(self.core(), &mut Scratch::default());
        // The other thread would not be known to be in a notifier.
        if in_notifier() {
            return Ok(work()?);
        }
        Ok(on_another_thread(work)?)
    }

    /// Hands out a block of `1 << order` pages of a device to its driver.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_device_pages(
        &self,
        device: DeviceId,
        order: u32,
    ) -> Result<DevicePages<'_>, AllocError> {
        self.off_managed_stack(|| self.core().alloc_device_pages(device.0, order))
    }

    /// Hands out one page of a device by its number, if it is free: where the memory is a file's, with
    /// what it held.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_device_page_at(&self, at: DeviceAddr) -> Result<DevicePages<'_>, AllocError> {
        self.off_managed_stack(|| self.core().alloc_device_page_at(at))
    }

    /// Waits until nobody uses `len` pages of a device from `first` on. `false`: `patience` was over
    /// first.
    pub fn wait_idle(
        &self,
        device: DeviceId,
        first: DevicePage,
        len: usize,
        patience: Duration,
    ) -> bool {
        self.core().wait_idle(device.0, first, len, patience)
    }

    /// Whether the page at `address` is ordinary memory now: mapped, and in RAM. Never faults.
    ///
    /// # Errors
    /// [`NotOrdinary`]: what it is instead.
    pub fn lookup_ordinary(&self, address: usize) -> Result<(), NotOrdinary> {
        let page = self.core().mmu().page_at(address);
        self.core()
            .lookup_ordinary(page.ok_or(NotOrdinary::NotManaged)?)
    }

    /// Takes a reference on a device page that is in use.
    ///
    /// # Errors
    /// [`HoldError`].
    pub fn hold_device_page(&self, at: DeviceAddr, hold: Hold) -> Result<PageRef<'_>, HoldError> {
        self.off_managed_stack(|| self.core().hold_device_page(at, hold))
    }

    /// Maps a block of device pages of a type that does not migrate at `address`, where nothing has
    /// been touched yet.
    ///
    /// # Errors
    /// [`MapError`]; then the block is freed.
    pub fn map_device_pages(&self, block: DevicePages<'_>, address: usize) -> Result<(), MapError> {
        let len = uhmm_core::addr::PAGE_SIZE << block.order();
        let pages = self.pages(address, len, true);
        let to = pages.map_err(|_| MapError::NotManaged)?.start;
        if !self.core().mmu().space_range().contains(to) {
            // Adopted memory is given back as RAM, and such pages leave only by being unmapped.
            return Err(MapError::NotManaged);
        }
        self.off_managed_stack(|| self.core().map_device_pages(block, to))
    }

    /// Where the pages of a range are: its charge, which follows each page when it migrates.
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn usage(&self, address: usize, len: usize) -> Result<Usage, RangeError> {
        Ok(self.core().usage(self.pages(address, len, false)?))
    }

    /// The memory of the page at `address` has failed: a good copy is used from now on, or the page is
    /// poisoned and a touch of it is a SIGBUS.
    ///
    /// # Errors
    /// [`FailureError`].
    pub fn memory_failure(&self, address: usize) -> Result<Failure, FailureError> {
        let page = self.core().mmu().page_at(address);
        let page = page.ok_or(FailureError::NoSuchPage)?;
        self.off_managed_stack(|| self.core().memory_failure(page))
    }

    /// The memory of a device page has failed.
    ///
    /// # Errors
    /// [`FailureError`].
    pub fn device_memory_failure(&self, at: DeviceAddr) -> Result<Failure, FailureError> {
        self.off_managed_stack(|| self.core().device_memory_failure(at))
    }

    /// Runs `work` on a thread whose stack is not managed: this one, or another. No signal comes
    /// meanwhile, since its handler may touch what is in hand.
    pub(crate) fn off_managed_stack<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        off_managed_stack(self.core().mmu(), work)
    }
}

/// [`Space::off_managed_stack`], for who has no space.
pub(crate) fn off_managed_stack<R: Send>(mmu: &LinuxMmu, work: impl FnOnce() -> R + Send) -> R {
    // The other thread would not be known to be in a notifier.
    if !is_on_managed_stack(mmu) || in_notifier() {
        let _signals = Blocked::all();
        return work();
    }
    on_another_thread(work)
}

/// Whether a fault of this very thread would be the space's to serve.
pub(crate) fn is_on_managed_stack(mmu: &LinuxMmu) -> bool {
    let here = 0u8;
    let here = std::ptr::from_ref(&here) as usize;
    mmu.page_at(here).is_some()
}

/// Runs `work` on a thread that takes no signals, and waits for it.
fn on_another_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = {
            let _signals = Blocked::all();
            scope.spawn(work)
        };
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
