//! Arenas: which slots hold a frame, and which frame.

use crate::pages::Physical;
use std::collections::HashMap;
use uhmm_core::addr::{DeviceAddr, PageData};
use uhmm_core::stats::MAX_DEVICES;

/// NUMA nodes of the simulated machine.
const NODES: u32 = 2;

/// A slot that is not empty.
enum Slot {
    Frame(Physical),
    /// Somebody has the frame's bytes, and so the device page alone.
    Borrowed,
}

#[derive(Default)]
pub(crate) struct Arenas {
    /// The slots of each device's arena, if it has one.
    sizes: [Option<u32>; MAX_DEVICES],
    slots: HashMap<DeviceAddr, Slot>,
}

impl Arenas {
    pub fn add(&mut self, device: u8, pages: u32, node: Option<u32>) -> bool {
        let Some(size @ None) = self.sizes.get_mut(usize::from(device)) else {
            return false;
        };
        if node.is_some_and(|node| node >= NODES) {
            return false;
        }
        *size = Some(pages);
        true
    }

    /// # Panics
    /// The device has no arena, or a smaller one.
    fn check(&self, at: DeviceAddr) {
        let size = self.sizes[usize::from(at.device)];
        let size = size.unwrap_or_else(|| panic!("{at:?}: the device has no arena"));
        assert!(at.page.0 < size, "{at:?} is outside of the arena of {size}");
    }

    pub fn is_filled(&self, at: DeviceAddr) -> bool {
        self.check(at);
        self.slots.contains_key(&at)
    }

    pub fn fill(&mut self, at: DeviceAddr, frame: Physical) {
        self.check(at);
        let before = self.slots.insert(at, Slot::Frame(frame));
        assert!(before.is_none(), "{at:?} is filled twice");
    }

    pub fn empty(&mut self, at: DeviceAddr) -> Option<Physical> {
        self.check(at);
        match self.slots.remove(&at)? {
            Slot::Frame(frame) => Some(frame),
            Slot::Borrowed => panic!("{at:?} is emptied while somebody has its bytes"),
        }
    }

    /// The frame of a slot that is not empty, to be given back.
    pub fn borrow(&mut self, at: DeviceAddr) -> Physical {
        match self.slots.insert(at, Slot::Borrowed) {
            Some(Slot::Frame(frame)) => frame,
            _ => panic!("the bytes of {at:?} are asked for by two, or of no frame"),
        }
    }

    /// The bytes of a slot that is not empty, to be read.
    pub fn peek(&self, at: DeviceAddr) -> &PageData {
        match self.slots.get(&at) {
            Some(Slot::Frame(frame)) => &frame.bytes,
            _ => {
                panic!("the bytes of {at:?} are read, which somebody has, or which holds no frame")
            }
        }
    }

    pub fn give_back(&mut self, at: DeviceAddr, frame: Physical) {
        let before = self.slots.insert(at, Slot::Frame(frame));
        assert!(matches!(before, Some(Slot::Borrowed)));
    }
}
