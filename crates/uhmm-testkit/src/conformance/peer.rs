//! Another device, for pages that go from one to the other.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{CopyInError, CopyOutError, Device, DeviceInfo};

/// A device with private memory that is right.
#[derive(Default)]
pub(super) struct Peer(Mutex<HashMap<DevicePage, PageData>>);

impl Peer {
    fn with<R>(&self, with: impl FnOnce(&mut HashMap<DevicePage, PageData>) -> R) -> R {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Device for Peer {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("peer", 1024)
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        self.with(|pages| pages.insert(page, from.clone()));
        Ok(())
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        self.with(|pages| {
            to.0 = pages.get(&page).ok_or(CopyOutError::Lost)?.0;
            Ok(())
        })
    }

    fn free(&self, page: DevicePage) {
        self.with(|pages| pages.remove(&page));
    }

    fn stored_bytes(&self) -> u64 {
        self.with(|pages| pages.len() as u64 * 4096)
    }
}
