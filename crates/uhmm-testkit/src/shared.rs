//! A device that a test keeps a hand on while a space has it.

use std::sync::Arc;
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{CopyIn, CopyInError, CopyOut, CopyOutError, Device, DeviceInfo, Fence};

/// See the module's head. Clones are the same device.
#[derive(Debug)]
pub struct Shared<D>(pub Arc<D>);

impl<D> Shared<D> {
    /// `device`, to be shared.
    pub fn new(device: D) -> Self {
        Self(Arc::new(device))
    }
}

impl<D> Clone for Shared<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<D: Device> Device for Shared<D> {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        self.0.copy_in(page, from)
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        self.0.copy_out(page, to)
    }

    fn free(&self, page: DevicePage) {
        self.0.free(page);
    }

    fn stored_bytes(&self) -> u64 {
        self.0.stored_bytes()
    }

    fn copy_in_batch(&self, copies: &mut [CopyIn<'_>]) -> Option<Box<dyn Fence>> {
        self.0.copy_in_batch(copies)
    }

    fn copy_out_batch(&self, copies: &mut [CopyOut<'_>]) -> Option<Box<dyn Fence>> {
        self.0.copy_out_batch(copies)
    }

    fn address(&self, page: DevicePage) -> Option<u64> {
        self.0.address(page)
    }

    fn add_chunk(&self, first: DevicePage, pages: u32) -> bool {
        self.0.add_chunk(first, pages)
    }

    fn remove_chunk(&self, first: DevicePage, pages: u32) {
        self.0.remove_chunk(first, pages);
    }
}
