//! The mirror device obeys the rules of devices.

use uhmm_core::device::Device;
use uhmm_mirror::MirrorDevice;
use uhmm_testkit::conformance;

#[test]
fn conforms() {
    conformance(&MirrorDevice::new(4 << 20));
}

#[test]
fn conforms_when_it_has_few_pages() {
    for pages in [1, 2, 3, 65] {
        conformance(&MirrorDevice::new(pages * 4096));
    }
}

#[test]
fn is_made_without_the_memory_that_it_may_take() {
    let device = MirrorDevice::new(1 << 36);
    assert_eq!(device.info().capacity_pages, 1 << 24);
    assert_eq!(device.stored_bytes(), 0);
}
