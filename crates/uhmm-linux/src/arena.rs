//! The arena of a device whose memory the CPU can map: one slot for each device page.
//!
//! A slot that holds a frame *is* that device page. The frame may go into the space and come back;
//! it always comes back to its own slot. An arena is bound to the device's NUMA node before it is
//! used, so its frames are made of the device's memory; without a node ordinary memory stands in.
//!
//! Its range is registered with the userfaultfd, as the destination of a move must be. So a touch of
//! an empty slot would wait for a handler, and a thread of our own would wait for itself: **nobody
//! touches an empty slot**. A slot's bit says whether it holds a frame. It is set after the frame is
//! there, and cleared once the frame has gone; who has the device page alone may rely on it.

use crate::abi::numa;
use crate::mapping::{Mapping, Table};
use std::ops::Range;
use std::sync::atomic::Ordering::*;
use uhmm_core::addr::{DevicePage, PAGE_SIZE, PageData};

/// See the module's head.
#[derive(Debug)]
pub struct Arena {
    slots: Mapping,
    filled: Table,
    bound: bool,
}

impl Arena {
    /// An arena of `pages` empty slots, whose frames come from NUMA node `node` if one is named.
    /// `None`: there is no room in the address space, or no such node for this process.
    pub fn new(pages: u32, node: Option<u32>) -> Option<Self> {
        let slots = Mapping::anonymous(pages.max(1) as usize * PAGE_SIZE, c"uhmm-arena").ok()?;
        slots.allow_all().ok()?;
        slots.leave_out_of_dumps();
        slots.refuse_huge_pages(0, slots.len());
        let arena = Self {
            slots,
            filled: Table::new((pages as usize).div_ceil(64))?,
            bound: node.is_some(),
        };
        if let Some(node) = node {
            numa::bind(arena.range(), node).ok()?;
        }
        Some(arena)
    }

    /// The bytes of all slots.
    pub fn range(&self) -> Range<usize> {
        self.slots.address()..self.slots.address() + self.slots.len()
    }

    /// Whether the frames come from one NUMA node.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// Where `len` slots from `first` on lie.
    ///
    /// # Panics
    /// The arena ends before them.
    fn offsets(&self, first: DevicePage, len: usize) -> Range<usize> {
        let start = first.0 as usize * PAGE_SIZE;
        let end = start + len * PAGE_SIZE;
        assert!(
            end <= self.slots.len(),
            "{len} slots from {first:?} on are not in the arena"
        );
        start..end
    }

    /// The address of the first of `len` slots from `first` on, all of which are in the arena.
    pub fn address(&self, first: DevicePage, len: usize) -> usize {
        self.slots.address() + self.offsets(first, len).start
    }

    /// The bytes of a slot. Whether they may be touched is up to the caller.
    pub fn bytes(&self, page: DevicePage) -> *mut PageData {
        self.slots.at(self.offsets(page, 1).start).cast()
    }

    /// Whether the slot holds a frame.
    pub fn is_filled(&self, page: DevicePage) -> bool {
        let (word, bit) = place(page);
        self.filled[word].load(Acquire) & bit != 0
    }

    /// `len` slots from `first` on hold frames from now on.
    pub fn set_filled(&self, first: DevicePage, len: usize) {
        for (word, bit) in (0..len).map(|i| place(first.plus(i))) {
            self.filled[word].fetch_or(bit, AcqRel);
        }
    }

    /// `len` slots from `first` on are empty from now on.
    pub fn set_empty(&self, first: DevicePage, len: usize) {
        for (word, bit) in (0..len).map(|i| place(first.plus(i))) {
            self.filled[word].fetch_and(!bit, AcqRel);
        }
    }

    /// Gives the memory of `len` slots from `first` on back to the machine.
    pub fn discard(&self, first: DevicePage, len: usize) {
        let offsets = self.offsets(first, len);
        self.set_empty(first, len);
        self.slots.discard(offsets.start, offsets.len());
    }
}

fn place(page: DevicePage) -> (usize, u64) {
    (page.0 as usize / 64, 1 << (page.0 % 64))
}
