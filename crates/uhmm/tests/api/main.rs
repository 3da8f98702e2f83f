//! What programs are given: regions, typed slices, statistics, events, on real page faults.

mod device;
mod events;
#[cfg(feature = "tracing")]
mod tracing;
mod typed;

use std::thread;
use std::time::{Duration, Instant};
use uhmm::devices::{Lz4Device, MirrorDevice};
use uhmm::{Builder, DeviceId, Region, Space};

const MIB: usize = 1 << 20;
const PAGE: usize = uhmm::device::PAGE_SIZE;
const RAM: usize = 4 * MIB;
const SOON: Duration = Duration::from_secs(20);
const FIRST: DeviceId = DeviceId(0);
const SECOND: DeviceId = DeviceId(1);

/// A space with little RAM, and two devices with room.
fn space() -> Space {
    Builder::new(RAM as u64)
        .device(Box::new(MirrorDevice::new(64 << 20)))
        .device(Box::new(Lz4Device::new(64 << 20)))
        .build()
        .expect("a space")
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "not in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until no page of the region is in flight: a fault handler may still be at the last one.
fn at_rest(region: &Region) {
    wait_until("all is at rest", || {
        region.usage().expect("its pages").migrating == 0
    });
}
