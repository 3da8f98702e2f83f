//! Calls into a driver, which may fail in any way: a panic is the failure of the device, and goes no
//! further.

use crate::addr::{DevicePage, PageData};
use crate::device::{
    CopyFailed, CopyIn, CopyInError, CopyOut, CopyOutError, Device, DeviceInfo, Fence,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// How often a device is asked again before a page counts as lost after panics, or the fault itself
/// is tried again.
const COPY_TRIES: usize = 4;

/// A device, at arm's length.
pub(crate) struct Driver {
    device: Box<dyn Device>,
    info: DeviceInfo,
    panicked: AtomicBool,
    /// What the device answered last, for when it cannot be asked any more.
    stored_bytes: AtomicU64,
}

impl Driver {
    pub(crate) fn new(device: Box<dyn Device>) -> Self {
        Self {
            info: device.info(),
            device,
            panicked: AtomicBool::new(false),
            stored_bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Whether a call has panicked.
    pub(crate) fn has_panicked(&self) -> bool {
        self.panicked.load(Relaxed)
    }

    fn guarded<R>(&self, call: impl FnOnce(&dyn Device) -> R) -> Option<R> {
        // What a driver leaves behind half done is its own: the core does not look at it.
        let result = catch_unwind(AssertUnwindSafe(|| call(&*self.device)));
        if result.is_err() {
            self.panicked.store(true, Relaxed);
        }
        result.ok()
    }

    pub(crate) fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        self.guarded(|device| device.copy_in(page, from))
            .unwrap_or(Err(CopyInError::Dead))
    }

    pub(crate) fn copy_in_batch(&self, copies: &mut [CopyIn<'_>]) -> Option<Started> {
        let fence = self.guarded(|device| device.copy_in_batch(copies));
        if fence.is_none() {
            for copy in copies {
                copy.result = Err(CopyInError::Dead);
            }
        }
        fence.flatten().map(Started)
    }

    /// Copies out, and asks again a few times.
    pub(crate) fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        let mut last = CopyOutError::Retry;
        for _ in 0..COPY_TRIES {
            last = match self.guarded(|device| device.copy_out(page, to)) {
                Some(Ok(())) => return Ok(()),
                Some(Err(CopyOutError::Lost)) | None => CopyOutError::Lost,
                Some(Err(CopyOutError::Retry)) => CopyOutError::Retry,
            };
            if last == CopyOutError::Lost && !self.has_panicked() {
                break;
            }
        }
        Err(last)
    }

    pub(crate) fn copy_out_batch(&self, copies: &mut [CopyOut<'_>]) -> Option<Started> {
        let fence = self.guarded(|device| device.copy_out_batch(copies));
        if fence.is_none() {
            for copy in copies {
                // Each page has its own tries.
                copy.result = Err(CopyOutError::Retry);
            }
        }
        fence.flatten().map(Started)
    }

    pub(crate) fn free(&self, page: DevicePage) {
        self.guarded(|device| device.free(page));
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        if let Some(bytes) = self.guarded(|device| device.stored_bytes()) {
            self.stored_bytes.store(bytes, Relaxed);
        }
        self.stored_bytes.load(Relaxed)
    }

    pub(crate) fn address(&self, page: DevicePage) -> Option<u64> {
        self.guarded(|device| device.address(page)).flatten()
    }

    pub(crate) fn add_chunk(&self, first: DevicePage, pages: u32) -> bool {
        self.guarded(|device| device.add_chunk(first, pages))
            .unwrap_or(false)
    }

    pub(crate) fn remove_chunk(&self, first: DevicePage, pages: u32) {
        self.guarded(|device| device.remove_chunk(first, pages));
    }
}

/// Copies that a device has started.
pub(crate) struct Started(Box<dyn Fence>);

impl Started {
    /// Waits for their end; a panic is a failure.
    pub(crate) fn wait(mut self) -> Result<(), CopyFailed> {
        catch_unwind(AssertUnwindSafe(|| self.0.wait())).unwrap_or(Err(CopyFailed))
    }
}
