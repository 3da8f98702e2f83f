//! R18: a fault uses no heap, on the thread that serves itself as little as on one of ours.

use crate::heap_calls::heap_calls;
use crate::{BUDGET, alone};
use uhmm::device::Device;
use uhmm::devices::{Lz4Device, MirrorDevice};
use uhmm::{Builder, Engine};
use uhmm_core::addr::PAGE_SIZE;

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
        let calls = heap_calls(|| {
            // New pages, then pages of the device, in no order; RAM is short nearly all the time.
            for round in 0..3 {
                for page in 0..pages {
                    let at = (page * 7919 + round) % pages * PAGE_SIZE;
                    let word = region.as_ptr().wrapping_add(at).cast::<u64>();
                    // SAFETY: within the region, which this thread uses alone.
                    unsafe { word.write_volatile(word.read_volatile() + at as u64) };
                }
            }
        });
        assert_eq!(calls, 0);
        let stats = space.internals().stats();
        assert!(stats.device_faults.get() > pages as u64 / 2);
    }
}
