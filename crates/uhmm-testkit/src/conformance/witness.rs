//! What a device does while the core uses it. The core makes the best of a device that fails; the
//! suite wants to know.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{
    CopyFailed, CopyIn, CopyInError, CopyOut, CopyOutError, Device, DeviceInfo, Fence,
};

/// A device, with a note of the first rule that it broke. Clones are the same device.
#[derive(Clone)]
pub(super) struct Witness {
    device: Arc<dyn Device>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    complaint: Option<String>,
    /// The chunks that there are: their first pages, and how many pages they have.
    chunks: BTreeMap<DevicePage, u32>,
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref().copied())
        .unwrap_or("no message")
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(seen: &Mutex<Seen>, complaint: impl Display) {
    lock(seen)
        .complaint
        .get_or_insert_with(|| complaint.to_string());
}

impl Witness {
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self {
            device,
            seen: Arc::default(),
        }
    }

    /// The rule that the device broke first, if it did.
    pub fn complaint(&self) -> Option<String> {
        lock(&self.seen).complaint.clone()
    }

    /// How many chunks the device has.
    pub fn chunks(&self) -> usize {
        lock(&self.seen).chunks.len()
    }

    fn watch<R>(&self, what: &str, call: impl FnOnce(&dyn Device) -> R) -> R {
        catch_unwind(AssertUnwindSafe(|| call(&*self.device))).unwrap_or_else(|panic| {
            let text = text(&*panic);
            note(
                &self.seen,
                format_args!("a device does not panic: {what} did ({text})"),
            );
            resume_unwind(panic)
        })
    }

    fn heard_in(&self, page: DevicePage, result: Result<(), CopyInError>) {
        let page = page.0;
        if result == Err(CopyInError::Dead) {
            note(
                &self.seen,
                format_args!("a device that nothing happened to is not dead: page {page}"),
            );
        }
    }

    fn heard_out(&self, page: DevicePage, result: Result<(), CopyOutError>) {
        let page = page.0;
        if result == Err(CopyOutError::Lost) {
            note(
                &self.seen,
                format_args!("a device that nothing happened to loses nothing: page {page} is"),
            );
        }
    }

    /// No device is to blame for this one: the core uses what it has not added.
    fn expect_chunk_of(&self, page: DevicePage) {
        let mut seen = lock(&self.seen);
        let chunk = seen.chunks.range(..=page).next_back();
        if chunk.is_none_or(|(first, pages)| page.0 - first.0 >= *pages) {
            let page = page.0;
            seen.complaint.get_or_insert_with(|| {
                format!("uhmm-core stores page {page} outside of the chunks that it has added")
            });
        }
    }

    fn watch_fence(&self, fence: Option<Box<dyn Fence>>) -> Option<Box<dyn Fence>> {
        let seen = Arc::clone(&self.seen);
        fence.map(|inner| Box::new(WatchedFence { inner, seen }) as Box<dyn Fence>)
    }
}

impl Device for Witness {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            // The simulated machine has other nodes than the real one.
            node: None,
            ..self.device.info()
        }
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        self.expect_chunk_of(page);
        let result = self.watch("copy_in", |device| device.copy_in(page, from));
        self.heard_in(page, result);
        result
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        let result = self.watch("copy_out", |device| device.copy_out(page, to));
        self.heard_out(page, result);
        result
    }

    fn free(&self, page: DevicePage) {
        self.watch("free", |device| device.free(page));
    }

    fn stored_bytes(&self) -> u64 {
        self.watch("stored_bytes", |device| device.stored_bytes())
    }

    fn copy_in_batch(&self, copies: &mut [CopyIn<'_>]) -> Option<Box<dyn Fence>> {
        copies
            .iter()
            .for_each(|copy| self.expect_chunk_of(copy.page));
        let fence = self.watch("copy_in_batch", |device| device.copy_in_batch(copies));
        copies
            .iter()
            .for_each(|copy| self.heard_in(copy.page, copy.result));
        self.watch_fence(fence)
    }

    fn copy_out_batch(&self, copies: &mut [CopyOut<'_>]) -> Option<Box<dyn Fence>> {
        let fence = self.watch("copy_out_batch", |device| device.copy_out_batch(copies));
        copies
            .iter()
            .for_each(|copy| self.heard_out(copy.page, copy.result));
        self.watch_fence(fence)
    }

    fn address(&self, page: DevicePage) -> Option<u64> {
        self.watch("address", |device| device.address(page))
    }

    fn add_chunk(&self, first: DevicePage, pages: u32) -> bool {
        let added = self.watch("add_chunk", |device| device.add_chunk(first, pages));
        if added && lock(&self.seen).chunks.insert(first, pages).is_some() {
            let first = first.0;
            note(
                &self.seen,
                format_args!("uhmm-core adds the chunk of page {first} twice"),
            );
        }
        added
    }

    fn remove_chunk(&self, first: DevicePage, pages: u32) {
        if lock(&self.seen).chunks.remove(&first) != Some(pages) {
            let first = first.0;
            note(
                &self.seen,
                format_args!("uhmm-core removes the chunk of page {first}, which is not there"),
            );
        }
        self.watch("remove_chunk", |device| device.remove_chunk(first, pages));
    }
}

struct WatchedFence {
    inner: Box<dyn Fence>,
    seen: Arc<Mutex<Seen>>,
}

impl Fence for WatchedFence {
    fn wait(&mut self) -> Result<(), CopyFailed> {
        let ended = self.inner.wait();
        if ended.is_err() {
            note(&self.seen, "the fence of a batch ends without an error");
        }
        ended
    }
}
