//! The shortest way through everything: a region larger than the budget, written and read.

use uhmm::Builder;
use uhmm::devices::{Lz4Device, MirrorDevice};

fn round_trip(device: Box<dyn uhmm::device::Device>) {
    let space = Builder::new(8 << 20).device(device).build().unwrap();
    let mut region = space.region(32 << 20).unwrap();
    for round in 1..4u64 {
        for (i, word) in region.as_mut_slice().chunks_exact_mut(512).enumerate() {
            word[..8].copy_from_slice(&(i as u64 * round).to_ne_bytes());
        }
        for (i, word) in region.as_slice().chunks_exact(512).enumerate() {
            assert_eq!(
                word[..8],
                (i as u64 * round).to_ne_bytes(),
                "round {round}, word {i}"
            );
        }
    }
    let stats = space.core().stats();
    assert!(stats.pages_to_device.get() > 6000, "{stats:?}");
    assert!(stats.ram_peak_bytes.get() <= 8 << 20);
    drop(region);
    println!("{stats:?}");
}

#[test]
fn lz4_holds_what_does_not_fit() {
    round_trip(Box::new(Lz4Device::new(64 << 20)));
}

#[test]
fn mirror_holds_what_does_not_fit() {
    round_trip(Box::new(MirrorDevice::new(64 << 20)));
}
