//! Everything at once: threads that do at random to their own ranges whatever can be done to a range,
//! while devices are emptied, suspended, resumed and grown, and memory is short. Against the oracle; and
//! at the end nothing is left over.

use crate::{FIRST, SECOND, SHORT, TestDevice, World, alone, wait_until};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::DeviceInfo;
use uhmm::memory::Protection;
use uhmm::{DeviceId, Hint, Place, Space};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_testkit::Rng;

const PAGES: usize = 700;
const ALL: Protection = Protection::READ.union(Protection::WRITE);

fn part(rng: &mut Rng) -> std::ops::Range<usize> {
    let start = rng.below(PAGES as u64) as usize;
    let len = 1 + rng.below((PAGES - start).min(200) as u64) as usize;
    start..start + len
}

/// One thing done to a range.
fn step(world: &mut World, rng: &mut Rng) {
    let pages = part(rng);
    let (address, len) = (world.at(pages.start) as usize, pages.len() * PAGE_SIZE);
    let space = world.space.clone();
    let memory = space.memory();
    let place = |rng: &mut Rng| match rng.below(3) {
        0 => Place::Ram,
        device => Place::Device(DeviceId(device as u8 - 1)),
    };
    match rng.below(12) {
        0 | 1 => pages.take(50).for_each(|page| world.write(page)),
        2 => pages.for_each(|page| world.check(page)),
        // A device that is suspended or full takes nothing.
        3 | 4 => _ = space.migrate(address, len, place(rng)),
        5 => {
            // SAFETY: nothing borrows the range.
            unsafe { memory.discard(address, len) }.unwrap();
            pages.for_each(|page| world.oracle.discard(page));
        }
        6 => {
            let protection = [Protection::READ, Protection::empty()][rng.below(2) as usize];
            world.protect(pages.clone(), protection);
            if protection == Protection::READ {
                let _ = space.migrate(address, len, place(rng));
                pages.clone().take(20).for_each(|page| world.check(page));
            }
            if rng.one_in(3) {
                thread::sleep(Duration::from_millis(2));
            }
            world.protect(pages.clone(), ALL);
            pages.take(20).for_each(|page| world.check(page));
        }
        7 => {
            let (all, whole) = (world.len(), world.address);
            memory.read_mostly(whole, all, false).unwrap();
            let to = memory.map(all, Protection::empty()).unwrap();
            // SAFETY: nothing borrows the range.
            let moved = unsafe { memory.remap(whole, all, all, true, Some(to), false) };
            world.address = moved.unwrap();
        }
        8 => memory.read_mostly(address, len, rng.one_in(2)).unwrap(),
        9 => {
            let hint = [Hint::Prefer(place(rng)), Hint::NoPreference][rng.below(2) as usize];
            space.advise(address, len, hint).unwrap();
        }
        10 => {
            let hints = [
                Hint::WillNeed,
                Hint::DoNotNeed,
                Hint::Prefetch(None),
                Hint::Prefetch(Some(place(rng))),
            ];
            space
                .advise(address, len, hints[rng.below(4) as usize])
                .unwrap();
        }
        _ => {
            // SAFETY: nothing borrows the range.
            unsafe { memory.unmap(address, len) }.unwrap();
            // SAFETY: nothing borrows the range.
            unsafe { memory.map_at(address, len, ALL, true) }.unwrap();
            pages.for_each(|page| world.oracle.discard(page));
        }
    }
}

/// What drivers and machines do to devices.
fn trouble(space: &Space, rng: &mut Rng) {
    let device = [FIRST, SECOND][rng.below(2) as usize];
    match rng.below(5) {
        0 => _ = space.evict_device(device, SHORT),
        1 => {
            let _ = space.suspend_device(device, SHORT);
            assert!(space.resume_device(device));
        }
        2 => {
            let chunk = rng.below(3) as usize;
            if space.remove_chunk(device, chunk, SHORT).is_ok() {
                space.add_chunk(device, chunk).unwrap();
            }
        }
        3 => {
            let mut scratch = uhmm_core::fault::Scratch::default();
            space.internals().push_out(&mut scratch);
        }
        _ => {
            let page = uhmm::device::DevicePage(rng.below(1500) as u32);
            if let Ok(mut migration) = space.migrate_device_range(device, page, 60) {
                match rng.below(3) {
                    0 => {}
                    1 => migration.to_system(),
                    _ => _ = migration.allocate(device.0 ^ 1),
                }
                let migration = migration.copy();
                if rng.one_in(2) {
                    migration.pages().finalize();
                }
            }
        }
    }
    thread::sleep(Duration::from_micros(rng.below(3000)));
}

#[test]
fn everything_at_once() {
    let _alone = alone();
    let seed = std::env::var("UHMM_CHAOS_SEED").map_or(1, |seed| seed.parse().unwrap());
    let seconds = std::env::var("UHMM_CHAOS_SECONDS").map_or(4.0, |s| s.parse().unwrap());
    let chunky = |memory| {
        let info = DeviceInfo::new("chunky", 3000).memory(memory);
        TestDevice::boxed(info.chunk_pages(512).batch_pages(8)).0
    };
    let devices = vec![chunky(Private), chunky(Coherent), chunky(Private)];
    let space = crate::space(1024, devices);
    let begin = Instant::now();
    let going_on = || begin.elapsed() < Duration::from_secs_f64(seconds);
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..3 {
            let (space, failed) = (&space, &failed);
            scope.spawn(move || {
                let mut world = World::within(space.clone(), PAGES);
                let mut rng = Rng::new(seed * 64 + thread);
                while going_on() && !failed.load(SeqCst) {
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        step(&mut world, &mut rng);
                    }));
                    if let Err(panic) = done {
                        failed.store(true, SeqCst);
                        eprintln!("failed with UHMM_CHAOS_SEED={seed}");
                        std::panic::resume_unwind(panic);
                    }
                }
                world.check_all();
            });
        }
        scope.spawn(|| {
            let mut rng = Rng::new(seed * 64 + 63);
            while going_on() && !failed.load(SeqCst) {
                trouble(&space, &mut rng);
            }
        });
    });
    let stats = space.internals().stats();
    assert!(stats.pages_to_device.get() > 10_000, "{stats:?}");
    assert_eq!(stats.poisoned_pages.get(), 0);
    // Every range is unmapped: all memory comes back, of RAM and of devices.
    wait_until("nothing is left over", || {
        let mut pages = stats.devices.iter().map(|device| device.pages.get());
        pages.all(|pages| pages == 0) && stats.duplicate_pages.get() == 0
    });
    space
        .internals()
        .push_out(&mut uhmm_core::fault::Scratch::default());
    wait_until("no RAM is left over", || stats.ram_bytes.get() == 0);
}
