//! Bad ranges: an error of its own each, and nothing has changed.

use crate::{FIRST, World, alone};
use std::io;
use uhmm::memory::Protection;
use uhmm::migrate::{MigrateError, MigrateVma};
use uhmm::{DeviceId, Place, RangeError};
use uhmm_core::memory_type::MemoryType::Private;

const PAGE: usize = 4096;

#[test]
fn bad_ranges_are_refused_and_nothing_changes() {
    let _alone = alone();
    let world = World::new(&[Private], 64);
    world.write_all();
    let (space, start) = (&world.space, world.address);
    let memory = space.memory();
    world.protect(8..10, Protection::empty());
    // SAFETY: nothing borrows the range.
    unsafe { memory.unmap(start + 20 * PAGE, PAGE) }.unwrap();
    let foreign = start + 30 * PAGE;
    let map = || {
        let (fixed, access) = (
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            libc::PROT_READ | libc::PROT_WRITE,
        );
        // SAFETY: over pages of the test's own, by the call that is meant for it.
        let at = unsafe { libc::mmap(foreign as *mut _, PAGE, access, fixed, -1, 0) };
        if at as usize == foreign {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: nothing borrows the range.
    unsafe { memory.map_foreign(foreign, PAGE, map) }.unwrap();
    let last = usize::MAX - PAGE + 1;
    let end = space.internals().reserved().end().address();
    for (address, len, error) in [
        (start, 0, RangeError::Empty),
        (start + 1, PAGE, RangeError::Unaligned),
        (start, PAGE + 1, RangeError::Unaligned),
        (last, PAGE, RangeError::Overflow),
        (last, 2 * PAGE, RangeError::Overflow),
        (start, last, RangeError::Overflow),
        (0, PAGE, RangeError::Foreign),
        (1 << 46, PAGE, RangeError::Foreign),
        (end - PAGE, 2 * PAGE, RangeError::Foreign),
        (foreign, PAGE, RangeError::Foreign),
        (foreign - PAGE, 2 * PAGE, RangeError::Foreign),
        (start + 20 * PAGE, PAGE, RangeError::Hole),
        (start + 19 * PAGE, 3 * PAGE, RangeError::Hole),
        (start + 40 * PAGE, 1 << 30, RangeError::Hole),
        (start + 9 * PAGE, PAGE, RangeError::NoAccess),
        (start + 7 * PAGE, 2 * PAGE, RangeError::NoAccess),
    ] {
        let refused = Err(MigrateError::Range(error));
        let what = format!("{address:#x}, {len:#x} bytes");
        for to in [Place::Device(FIRST), Place::Ram, Place::Device(DeviceId(5))] {
            assert_eq!(space.migrate(address, len, to), refused, "{what}");
        }
        let args = MigrateVma {
            address,
            len,
            ..crate::driver::everything(&world)
        };
        let begun = space.migrate_vma(&args).map(drop);
        assert_eq!(begun, Err(MigrateError::Range(error)), "{what}");
        match (error, space.usage(address, len)) {
            (RangeError::NoAccess, usage) => assert!(usage.is_ok()),
            (_, usage) => assert_eq!(usage, Err(error), "{what}"),
        }
        assert_eq!(error.to_string().lines().count(), 1);
    }
    let devices = [FIRST.0 + 1, 7, 8, 255].map(|device| {
        let to = Place::Device(DeviceId(device));
        space.migrate(start, PAGE, to)
    });
    assert_eq!(devices, [Err(MigrateError::NoSuchDevice); 4]);
    assert_eq!(world.device(FIRST).pages.get(), 0);
    assert_eq!(world.stats().pages_to_device.get(), 0);
    world.protect(8..10, Protection::READ | Protection::WRITE);
    let kept = (0..64).filter(|page| ![20, 30].contains(page));
    kept.for_each(|page| world.check(page));
}
