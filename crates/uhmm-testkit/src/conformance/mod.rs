//! The rules that every device obeys, checked in one call.
//!
//! Two parts, behind one line of a device's test:
//!
//! | part | what runs | for memory that is |
//! | --- | --- | --- |
//! | [direct] calls, [batches](batch), [chunks] | the methods of the trait, as the core calls them | private (chunks: any) |
//! | in a [space] and under [threads] | the core itself on the simulated MMU: migrate, fault, evict, remove | private, coherent |
//! | [mapped] | the core itself: map, unmap, remove | of a type that does not migrate |
//!
//! A device with memory that the CPU maps is never asked to copy: the core keeps its frames and
//! copies them itself. Direct copies would mean nothing for it.

mod batch;
mod calls;
mod chunks;
mod direct;
mod mapped;
mod peer;
mod space;
mod threads;
mod witness;
mod world;

use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use uhmm_core::device::{Device, DeviceInfo};

/// Makes a device, which is empty.
type Make<'a> = &'a dyn Fn() -> Arc<dyn Device>;

/// Bytes that an empty device may say it takes more than when it was new.
const SLACK: u64 = 64 << 10;

/// Checks that the devices that `make` makes, each of them empty, obey the rules of devices.
///
/// # Panics
///
/// One breaks a rule; the message says which.
pub fn conformance<D: Device + 'static>(make: impl Fn() -> D) {
    let make: Make<'_> = &|| Arc::new(make());
    let info = make().info();
    check_info(&info);
    if !info.memory.is_mapped() {
        direct::check(make);
        batch::check(make);
    }
    chunks::check(make);
    if info.memory.migrates() {
        space::check(make);
        threads::check(make);
    } else {
        mapped::check(make);
    }
}

fn check_info(info: &DeviceInfo) {
    let capacity = info.capacity_pages;
    assert!(
        capacity > 0,
        "a device holds a page at least: its capacity is 0"
    );
    assert!(!info.kind.is_empty(), "a device says of what kind it is");
    let chunk = info.chunk_pages;
    assert!(
        chunk >= 512 && chunk.is_power_of_two(),
        "a chunk is a power of two of pages, at least 512: this one has {chunk}"
    );
}

/// Waits for threads. The first panic goes on as it is: it says which rule is broken.
fn join(threads: Vec<ScopedJoinHandle<'_, ()>>) {
    for thread in threads {
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
