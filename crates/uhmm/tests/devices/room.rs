//! R9, R19: eviction where RAM is short, or where there is none at all.

use crate::device::{FULL, WORKS};
use crate::{FIRST, SECOND, TestDevice, World, alone, device, wait_until};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::DeviceInfo;
use uhmm::{Place, RemoveError};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};

/// The least there is, in pages.
const TINY: usize = 512;

/// Eight times the budget moves from one device to another, through what RAM there is.
#[test]
fn pages_go_by_way_of_ram_to_another_device() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let (first, mood) = device(memory);
        let world = World::within(crate::space(TINY, vec![first]), 8 * TINY);
        if memory == Private {
            world.write_all();
        } else {
            // Nothing but its driver fills it (R13): a part at a time.
            for start in (0..world.pages()).step_by(TINY / 2) {
                let part = start..start + TINY / 2;
                part.clone().for_each(|page| world.write(page));
                world.migrate(part, Place::Device(FIRST));
            }
        }
        let second = world.space.add_device(device(Private).0).unwrap();
        assert_eq!(second, SECOND);
        let before = world.device(FIRST).pages.get();
        assert!(before > 6 * TINY as u64, "{before}");
        world.space.remove_device(FIRST, crate::SOON).unwrap();
        assert_eq!(world.device(FIRST).pages.get(), 0);
        assert!(world.device(SECOND).pages.get() > 6 * TINY as u64);
        assert_eq!(mood.chunks_removed.load(SeqCst), 1);
        world.check_all();
        let stats = world.stats();
        assert!(stats.ram_peak_bytes.get() <= stats.ram_budget_bytes.get());
    }
}

/// There is no room anywhere, and a thread of the program waits for RAM as well: the removal ends with
/// its patience, says why, and has lost nothing. With room, both go on.
#[test]
fn a_removal_without_any_ram_ends_with_its_patience() {
    let _alone = alone();
    const PAGES: usize = 1400;
    let patience = Duration::from_millis(60);
    for memory in [Private, Coherent] {
        let info = DeviceInfo::new("small", 1024).memory(memory);
        let (small, _mood) = TestDevice::boxed(info);
        let world = World::within(crate::space(TINY, vec![small]), PAGES);
        for start in (0..1000).step_by(250) {
            let part = start..start + 250;
            part.clone().for_each(|page| world.write(page));
            world.migrate(part, Place::Device(FIRST));
        }
        let on_device = world.device(FIRST).pages.get() as usize;
        assert_eq!(on_device, 1000);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            // Makes room when it is time, before the process counts as out of memory; and whatever
            // else happens.
            scope.spawn(|| {
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_millis(250) && !done.load(SeqCst) {
                    thread::sleep(Duration::from_millis(5));
                }
                let memory = world.space.memory();
                // SAFETY: nothing borrows the range.
                unsafe { memory.discard(world.address, 900 * PAGE_SIZE) }.unwrap();
                (0..900).for_each(|page| world.oracle.discard(page));
            });
            let blocked = scope.spawn(|| {
                thread::sleep(Duration::from_millis(10));
                (1000..PAGES).for_each(|page| world.write(page));
            });
            let begin = Instant::now();
            let result = world.space.remove_device(FIRST, patience);
            let took = begin.elapsed();
            assert!(took < Duration::from_millis(240), "{took:?}");
            assert!(!blocked.is_finished());
            let Err(RemoveError::StillInUse(found)) = result else {
                panic!("{result:?}");
            };
            assert!(found.no_ram && found.in_space > 0, "{found:?}");
            assert!(found.to_string().contains("there is no RAM"), "{found}");
            done.store(true, SeqCst);
        });
        world.space.remove_device(FIRST, crate::SOON).unwrap();
        assert_eq!(world.device(FIRST).pages.get(), 0);
        (900..PAGES).for_each(|page| world.check(page));
    }
}

/// With no room, a migration to RAM moves what it can, and leaves the rest where it is.
#[test]
fn a_migration_without_ram_leaves_pages_on_the_device() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let (first, mood) = device(memory);
        let world = World::within(crate::space(TINY, vec![first]), 2 * TINY);
        for start in [0, TINY] {
            let part = start..start + TINY;
            part.clone().for_each(|page| world.write(page));
            world.migrate(part, Place::Device(FIRST));
        }
        mood.copy_in.store(FULL, SeqCst);
        let done = world.migrate(0..2 * TINY, Place::Ram);
        assert_eq!(done.migrated + done.left, 2 * TINY, "{done:?}");
        assert!(done.left >= TINY, "{done:?}");
        mood.copy_in.store(WORKS, SeqCst);
        let usage = world.space.usage(world.address, world.len()).unwrap();
        assert_eq!(usage.devices[0], done.left, "{usage:?}");
        if memory == Coherent {
            // It is mapped there: no RAM is needed to use it.
            world.check_all();
            world.write_all();
        }
        wait_until("all can be touched", || {
            world.push_out();
            world.stats().ram_bytes.get() < (TINY * PAGE_SIZE / 2) as u64 || memory == Coherent
        });
        world.check_all();
    }
}
