//! A device that is called directly, in the way in which the core does it.

use super::{Make, SLACK};
use crate::content::{PageKind, first_difference};
use crate::{Rng, conformance::direct::MANY};
use std::sync::Arc;
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{CopyInError, Device};

/// See the module's head.
pub(super) struct Calls {
    pub device: Arc<dyn Device>,
    /// Page numbers from zero on that can be used: those of the first chunks.
    pub pages: u32,
    /// The last page number, if the device has memory for its chunk.
    pub last: Option<u32>,
    pub chunks: Vec<(DevicePage, u32)>,
    new_bytes: u64,
}

impl Calls {
    /// A new device with its first chunks, and its last one.
    pub fn new(make: Make<'_>) -> Self {
        let device = make();
        let info = device.info();
        let mut calls = Self {
            new_bytes: device.stored_bytes(),
            device,
            pages: 0,
            last: None,
            chunks: Vec::new(),
        };
        let (capacity, chunk) = (info.capacity_pages, info.chunk_pages);
        while calls.pages < capacity.min(MANY) && calls.add(calls.pages, chunk) {
            calls.pages += calls.chunks.last().map_or(0, |&(_, pages)| pages);
        }
        assert!(
            calls.pages > 0,
            "a new device has memory for its first chunk"
        );
        let last = capacity - 1;
        if last < calls.pages || calls.add(last / chunk * chunk, chunk) {
            calls.last = Some(last);
        }
        calls
    }

    /// Adds the chunk that begins with `first`, if the device has memory for it.
    fn add(&mut self, first: u32, chunk: u32) -> bool {
        let pages = chunk.min(self.device.info().capacity_pages - first);
        let added = self.device.add_chunk(DevicePage(first), pages);
        if added {
            self.chunks.push((DevicePage(first), pages));
        }
        added
    }

    /// Takes the chunks of the device, which is empty, away from it.
    pub fn end(self) {
        for (first, pages) in &self.chunks {
            self.device.remove_chunk(*first, *pages);
        }
        self.assert_empty();
    }

    /// Stores a page; `false` if the device is full.
    pub fn try_store(&self, page: u32, kind: PageKind, seed: u64) -> bool {
        match self.device.copy_in(DevicePage(page), &make(kind, seed)) {
            Ok(()) => true,
            Err(CopyInError::Full) => false,
            Err(CopyInError::Dead) => panic!("a device that nothing happened to is not dead"),
        }
    }

    pub fn store(&self, page: u32, kind: PageKind, seed: u64) {
        let stored = self.try_store(page, kind, seed);
        assert!(
            stored,
            "a device with room is not full: page {page}, {kind:?}, seed {seed}"
        );
    }

    pub fn check(&self, page: u32, kind: PageKind, seed: u64, rule: &str) {
        // What was there before must not shine through.
        let mut found = PageData([0xa5; _]);
        if let Err(error) = self.device.copy_out(DevicePage(page), &mut found) {
            panic!("{rule}: page {page}, {kind:?}, seed {seed}: {error}");
        }
        assert_is(&found, page, kind, seed, rule);
    }

    pub fn free(&self, page: u32) {
        self.device.free(DevicePage(page));
    }

    pub fn assert_empty(&self) {
        let (new, now) = (self.new_bytes, self.device.stored_bytes());
        assert!(
            now <= new + SLACK,
            "an empty device takes nothing: {new} bytes when new, now {now}"
        );
    }
}

pub(super) fn make(kind: PageKind, seed: u64) -> PageData {
    let mut data = PageData::ZERO;
    kind.fill(&mut Rng::new(seed), &mut data);
    data
}

pub(super) fn assert_is(found: &PageData, page: u32, kind: PageKind, seed: u64, rule: &str) {
    if let Some(offset) = first_difference(found, &make(kind, seed)) {
        panic!("{rule}: page {page}, {kind:?}, seed {seed}: byte {offset} is wrong");
    }
}
