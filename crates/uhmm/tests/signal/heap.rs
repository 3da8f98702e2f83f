//! R18: a fault uses no heap, on the thread that serves itself as little as on one of ours.

use crate::{BUDGET, alone};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use uhmm::device::Device;
use uhmm::devices::{Lz4Device, MirrorDevice};
use uhmm::{Builder, Engine};
use uhmm_core::addr::PAGE_SIZE;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Counts what each thread asks of the heap.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn r18_a_thread_that_serves_its_own_faults_does_not_use_the_heap() {
    let _alone = alone();
    let devices: [Box<dyn Device>; 2] = [
        Box::new(Lz4Device::new(64 << 20)),
        Box::new(MirrorDevice::new(64 << 20)),
    ];
    for device in devices {
        let builder = Builder::new(BUDGET as u64).device(device);
        let space = builder.engine(Engine::Signal).build().unwrap();
        let region = space.region(4 * BUDGET).unwrap();
        let pages = region.len() / PAGE_SIZE;
        let before = CALLS.get();
        // New pages, then pages of the device, in no order; RAM is short nearly all the time.
        for round in 0..3 {
            for page in 0..pages {
                let at = (page * 7919 + round) % pages * PAGE_SIZE;
                let word = region.as_ptr().wrapping_add(at).cast::<u64>();
                // SAFETY: within the region, which this thread uses alone.
                unsafe { word.write_volatile(word.read_volatile() + at as u64) };
            }
        }
        assert_eq!(CALLS.get(), before);
        let stats = space.internals().stats();
        assert!(stats.device_faults.get() > pages as u64 / 2);
    }
}
