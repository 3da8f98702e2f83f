//! The mirror device obeys the rules of devices, with memory of every type.

use uhmm_core::device::Device;
use uhmm_core::memory_type::MemoryType;
use uhmm_mirror::MirrorDevice;
use uhmm_testkit::conformance;

#[test]
fn conforms() {
    conformance(|| MirrorDevice::new(16 << 20));
}

#[test]
fn conforms_when_it_has_few_pages() {
    for pages in [1, 2, 3, 65] {
        conformance(|| MirrorDevice::new(pages * 4096));
    }
}

#[test]
fn conforms_with_coherent_memory() {
    for pages in [1, 3, 65, 4096] {
        conformance(|| MirrorDevice::with_memory(pages * 4096, MemoryType::Coherent));
    }
}

#[test]
fn conforms_with_memory_that_does_not_migrate() {
    for memory in [
        MemoryType::Generic,
        MemoryType::FsDax,
        MemoryType::PeerToPeer,
    ] {
        for pages in [1, 65, 4096] {
            conformance(|| MirrorDevice::with_memory(pages * 4096, memory));
        }
    }
}

#[test]
fn is_made_without_the_memory_that_it_may_take() {
    let device = MirrorDevice::new(1 << 36);
    assert_eq!(device.info().capacity_pages, 1 << 24);
    assert_eq!(device.stored_bytes(), 0);
}
