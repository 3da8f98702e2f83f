//! A device that is full, or dies, when it is told to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use uhmm::device::{CopyInError, CopyOutError, Device, DeviceInfo, DevicePage, PageData};

pub const WORKS: u8 = 0;
pub const FULL: u8 = 1;
pub const DEAD: u8 = 2;

pub struct Moody {
    mood: Arc<AtomicU8>,
    pages: Mutex<HashMap<u32, Box<PageData>>>,
}

/// A device of 64 MiB, and its mood.
pub fn moody(mood: u8) -> (Box<dyn Device>, Arc<AtomicU8>) {
    let mood = Arc::new(AtomicU8::new(mood));
    let device = Moody {
        mood: Arc::clone(&mood),
        pages: Mutex::default(),
    };
    (Box::new(device), mood)
}

impl Device for Moody {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("moody", 1 << 14)
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        match self.mood.load(SeqCst) {
            FULL => return Err(CopyInError::Full),
            DEAD => return Err(CopyInError::Dead),
            _ => {}
        }
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.insert(page.0, Box::new(from.clone()));
        Ok(())
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let data = pages.get(&page.0).ok_or(CopyOutError::Lost)?;
        to.0.copy_from_slice(&data.0);
        Ok(())
    }

    fn free(&self, page: DevicePage) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.remove(&page.0);
    }

    fn stored_bytes(&self) -> u64 {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        (pages.len() * size_of::<PageData>()) as u64
    }
}
