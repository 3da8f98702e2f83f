//! While a driver is told of a chunk, the chunk is neither there nor gone: no page of it is handed
//! out, and nobody tells the driver a second time.

use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use uhmm_core::addr::{DeviceAddr, DevicePage, PageData, PageNo, PageRange};
use uhmm_core::device::{CopyInError, CopyOutError, Device, DeviceInfo};
use uhmm_core::fault::Scratch;
use uhmm_core::{AddChunkError, AllocError, MIN_BUDGET_PAGES, Space};
use uhmm_sim::SimMmu;
use uhmm_testkit::Shared;

const CHUNK: u32 = 512;

/// Looks at the space from inside of the calls that tell it of chunks.
#[derive(Default)]
struct Watcher {
    space: OnceLock<Weak<Space<SimMmu>>>,
    told: Mutex<Vec<(&'static str, u32)>>,
}

impl Watcher {
    fn told(&self, what: &'static str, first: DevicePage) {
        if let Some(space) = self.space.get().and_then(Weak::upgrade) {
            look(&space, first);
        }
        // Not reached if the look found something wrong: the core takes that for a driver's panic.
        self.told.lock().unwrap().push((what, first.0));
    }
}

/// The chunk of `first` is not there, and cannot be added.
fn look(space: &Space<SimMmu>, first: DevicePage) {
    let page = space.alloc_device_page_at(DeviceAddr {
        device: 0,
        page: first,
    });
    let none = [Some(AllocError::Full), Some(AllocError::Removed)];
    assert!(none.contains(&page.err()));
    let again = space.add_chunk(0, (first.0 / CHUNK) as usize).err();
    let refused = [
        Some(AddChunkError::AlreadyThere),
        Some(AddChunkError::Removed),
    ];
    assert!(refused.contains(&again));
}

impl Device for Watcher {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("watcher", 2 * CHUNK).chunk_pages(CHUNK)
    }

    fn copy_in(&self, _page: DevicePage, _from: &PageData) -> Result<(), CopyInError> {
        Ok(())
    }

    fn copy_out(&self, _page: DevicePage, _to: &mut PageData) -> Result<(), CopyOutError> {
        Err(CopyOutError::Lost)
    }

    fn free(&self, _page: DevicePage) {}

    fn stored_bytes(&self) -> u64 {
        0
    }

    fn add_chunk(&self, first: DevicePage, _pages: u32) -> bool {
        self.told("add", first);
        true
    }

    fn remove_chunk(&self, first: DevicePage, _pages: u32) {
        self.told("remove", first);
    }
}

#[test]
fn no_page_is_handed_out_while_the_driver_is_told_of_its_chunk() {
    let range = PageRange::new(PageNo(1 << 20), 64);
    let device = Shared::new(Watcher::default());
    let mmu = SimMmu::new(range, MIN_BUDGET_PAGES);
    let devices: Vec<Box<dyn Device>> = vec![Box::new(device.clone())];
    let space = Space::new(mmu, range, MIN_BUDGET_PAGES, devices).unwrap();
    let space = Arc::new(space);
    device.0.space.set(Arc::downgrade(&space)).unwrap();
    space.add_chunk(0, 1).unwrap();
    let patience = Duration::from_secs(5);
    let scratch = &mut Scratch::default();
    space.remove_chunk(0, 1, patience, scratch).unwrap();
    space.add_chunk(0, 1).unwrap();
    space.remove_device(0, patience, scratch).unwrap();
    let told = device.0.told.lock().unwrap();
    let expected = [
        ("add", 0),
        ("add", CHUNK),
        ("remove", CHUNK),
        ("add", CHUNK),
        ("remove", 0),
        ("remove", CHUNK),
    ];
    assert_eq!(*told, expected, "and no more, and nothing twice");
    let space = Arc::into_inner(space).unwrap();
    space.check_invariants();
}
