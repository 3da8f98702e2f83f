//! A device that refuses and loses pages on command, without a lock: it is used across forks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use uhmm::device::{CopyInError, CopyOutError, Device, DeviceInfo, DevicePage, PageData};

/// What a [`Moody`] device does just now.
pub struct Mood {
    pub full: AtomicBool,
    /// The page that is lost; `u32::MAX` for none.
    pub lost: AtomicU32,
}

pub struct Moody {
    inner: Box<dyn Device>,
    mood: Arc<Mood>,
}

impl Moody {
    pub fn new(inner: Box<dyn Device>) -> (Self, Arc<Mood>) {
        let mood = Arc::new(Mood {
            full: AtomicBool::new(false),
            lost: AtomicU32::new(u32::MAX),
        });
        let device = Self {
            inner,
            mood: mood.clone(),
        };
        (device, mood)
    }
}

impl Device for Moody {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        if self.mood.full.load(SeqCst) {
            return Err(CopyInError::Full);
        }
        self.inner.copy_in(page, from)
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        if self.mood.lost.load(SeqCst) == page.0 {
            return Err(CopyOutError::Lost);
        }
        self.inner.copy_out(page, to)
    }

    fn free(&self, page: DevicePage) {
        self.inner.free(page);
    }

    fn stored_bytes(&self) -> u64 {
        self.inner.stored_bytes()
    }
}
