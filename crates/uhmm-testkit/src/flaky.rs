//! A device that fails on command, and watches its caller.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{CopyInError, CopyOutError, Device, DeviceInfo};

/// A device around another one. It fails when told to, counts calls, and panics when the core
/// breaks a promise to devices: a page stored twice, read or freed when not stored, or used by two
/// calls at once. The core takes a panic for the device's failure, so the panic comes again when this
/// is dropped.
#[derive(Debug)]
pub struct FlakyDevice<D> {
    inner: D,
    plan: Mutex<Plan>,
    pages: Mutex<HashMap<DevicePage, Use>>,
    copies_in: AtomicU64,
    copies_out: AtomicU64,
    frees: AtomicU64,
    broken: Mutex<Option<String>>,
}

/// What is to fail.
#[derive(Debug, Default)]
struct Plan {
    /// `copy_in` fails so, after so many more that do not.
    copy_in: Option<(u64, CopyInError)>,
    /// `copy_out` answers `Retry`: first not so many times, then so many times.
    retry: (u64, u64),
    lost: HashSet<DevicePage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Stored,
    InCall(&'static str),
}

impl<D: Device> FlakyDevice<D> {
    /// A device that does as `inner` does until told otherwise.
    pub fn new(inner: D) -> Self {
        Self {
            inner,
            plan: Mutex::default(),
            pages: Mutex::default(),
            copies_in: AtomicU64::new(0),
            copies_out: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            broken: Mutex::default(),
        }
    }

    /// The device inside.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// After `n` more copies in, every other one fails with `error`, until [`FlakyDevice::heal`].
    pub fn fail_copy_in_after(&self, n: u64, error: CopyInError) {
        self.plan().copy_in = Some((n, error));
    }

    /// After `n` more copies out, the next `times` answer [`CopyOutError::Retry`].
    pub fn retry_copy_out_after(&self, n: u64, times: u64) {
        self.plan().retry = (n, times);
    }

    /// What is stored as `page`, now or later, is [`CopyOutError::Lost`].
    pub fn lose(&self, page: DevicePage) {
        self.plan().lost.insert(page);
    }

    /// Ends all failures. What was lost can be read again.
    pub fn heal(&self) {
        *self.plan() = Plan::default();
    }

    /// The pages that are stored, in ascending order.
    pub fn stored(&self) -> Vec<DevicePage> {
        let mut pages: Vec<_> = self.pages().keys().copied().collect();
        pages.sort_unstable();
        pages
    }

    /// Copies in that succeeded.
    pub fn copies_in(&self) -> u64 {
        self.copies_in.load(Relaxed)
    }

    /// Copies out that succeeded.
    pub fn copies_out(&self) -> u64 {
        self.copies_out.load(Relaxed)
    }

    /// Pages freed.
    pub fn frees(&self) -> u64 {
        self.frees.load(Relaxed)
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages(&self) -> MutexGuard<'_, HashMap<DevicePage, Use>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `call` begins on a page that must be as `before`.
    fn begin(&self, call: &'static str, page: DevicePage, before: Option<Use>) {
        let found = {
            let mut pages = self.pages();
            let found = pages.get(&page).copied();
            if found == before {
                pages.insert(page, Use::InCall(call));
            }
            found
        };
        if found != before {
            let broken = format!(
                "broken promise to a device: {call} of page {} which is {found:?}, not {before:?}",
                page.0
            );
            let mut first = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| broken.clone());
            drop(first);
            panic!("{broken}");
        }
    }

    /// Notes that the call on `page` has ended.
    fn end(&self, page: DevicePage, after: Option<Use>) {
        match after {
            Some(after) => self.pages().insert(page, after),
            None => self.pages().remove(&page),
        };
    }

    fn refuse_copy_in(&self) -> Result<(), CopyInError> {
        match &mut self.plan().copy_in {
            Some((0, error)) => Err(*error),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn refuse_copy_out(&self, page: DevicePage) -> Result<(), CopyOutError> {
        let mut plan = self.plan();
        if plan.lost.contains(&page) {
            return Err(CopyOutError::Lost);
        }
        match &mut plan.retry {
            (0, 0) => Ok(()),
            (0, times) => {
                *times -= 1;
                Err(CopyOutError::Retry)
            }
            (left, _) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

impl<D: Device> Device for FlakyDevice<D> {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        self.begin("copy_in", page, None);
        let result = self
            .refuse_copy_in()
            .and_then(|()| self.inner.copy_in(page, from));
        self.copies_in.fetch_add(result.is_ok().into(), Relaxed);
        self.end(page, result.is_ok().then_some(Use::Stored));
        result
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        self.begin("copy_out", page, Some(Use::Stored));
        let result = self
            .refuse_copy_out(page)
            .and_then(|()| self.inner.copy_out(page, to));
        self.copies_out.fetch_add(result.is_ok().into(), Relaxed);
        self.end(page, Some(Use::Stored));
        result
    }

    fn free(&self, page: DevicePage) {
        self.begin("free", page, Some(Use::Stored));
        self.inner.free(page);
        self.frees.fetch_add(1, Relaxed);
        self.end(page, None);
    }

    fn stored_bytes(&self) -> u64 {
        self.inner.stored_bytes()
    }

    fn address(&self, page: DevicePage) -> Option<u64> {
        self.inner.address(page)
    }

    fn add_chunk(&self, first: DevicePage, pages: u32) -> bool {
        self.inner.add_chunk(first, pages)
    }

    fn remove_chunk(&self, first: DevicePage, pages: u32) {
        self.inner.remove_chunk(first, pages);
    }
}

impl<D> Drop for FlakyDevice<D> {
    fn drop(&mut self) {
        let broken = self.broken.get_mut();
        let broken = broken.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(broken) = broken
            && !std::thread::panicking()
        {
            panic!("{broken}");
        }
    }
}
