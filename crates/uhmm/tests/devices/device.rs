//! A device that is what a test wants it to be, and fails when told to.

use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use uhmm::device::{CopyInError, CopyOutError, Device, DeviceInfo, DevicePage, PageData};
use uhmm::devices::MirrorDevice;

/// What a copy does.
pub const WORKS: u8 = 0;
pub const FULL: u8 = 1;
pub const PANICS: u8 = 2;

pub const PLANNED: &str = "a planned panic of a device";

/// How a [`TestDevice`] is just now, and what it has done.
#[derive(Default)]
pub struct Mood {
    /// [`WORKS`], [`FULL`] or [`PANICS`], once `good` more copies in were made.
    pub copy_in: AtomicU8,
    pub good: AtomicI64,
    /// So many copies out panic.
    pub bad_copies_out: AtomicU32,
    /// The page that is lost, plus one.
    pub lost: AtomicU32,
    pub copies_in: AtomicU64,
    pub copies_out: AtomicU64,
    pub frees: AtomicU64,
    pub chunks_added: AtomicU64,
    pub chunks_removed: AtomicU64,
}

/// Plain copies of pages, with any [`DeviceInfo`].
pub struct TestDevice {
    inner: MirrorDevice,
    info: DeviceInfo,
    mood: Arc<Mood>,
}

impl TestDevice {
    pub fn boxed(info: DeviceInfo) -> (Box<dyn Device>, Arc<Mood>) {
        let mood = Arc::<Mood>::default();
        let device = Self {
            inner: MirrorDevice::new(u64::from(info.capacity_pages) << 12),
            info,
            mood: mood.clone(),
        };
        (Box::new(device), mood)
    }
}

/// Keeps planned panics out of the tests' output.
pub fn expect_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload().downcast_ref() != Some(&PLANNED) {
                before(info);
            }
        }));
    });
}

impl Device for TestDevice {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        let mood = self.mood.copy_in.load(SeqCst);
        if mood != WORKS && self.mood.good.fetch_sub(1, SeqCst) <= 0 {
            if mood == PANICS {
                std::panic::panic_any(PLANNED);
            }
            return Err(CopyInError::Full);
        }
        self.mood.copies_in.fetch_add(1, SeqCst);
        self.inner.copy_in(page, from)
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        let bad = &self.mood.bad_copies_out;
        if bad.try_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            std::panic::panic_any(PLANNED);
        }
        if self.mood.lost.load(SeqCst) == page.0 + 1 {
            return Err(CopyOutError::Lost);
        }
        self.mood.copies_out.fetch_add(1, SeqCst);
        self.inner.copy_out(page, to)
    }

    fn free(&self, page: DevicePage) {
        self.mood.frees.fetch_add(1, SeqCst);
        self.inner.free(page);
    }

    fn stored_bytes(&self) -> u64 {
        self.inner.stored_bytes()
    }

    fn add_chunk(&self, _first: DevicePage, _pages: u32) -> bool {
        self.mood.chunks_added.fetch_add(1, SeqCst);
        true
    }

    fn remove_chunk(&self, _first: DevicePage, _pages: u32) {
        self.mood.chunks_removed.fetch_add(1, SeqCst);
    }
}
