//! R3, R8 and R9 for migration by device page: no mapping is given, no page is lost, and none is seen
//! after it is free.

use crate::hook::Op;
use crate::rig::{
    COHERENT, DEVICE_COHERENT, DEVICE_PRIVATE, PRIVATE, Recorder, SYSTEM, Three, WATCHED, Was,
    migrated, number,
};
use crate::world::{BASE, BUDGET, World, or_abort, with_reclaimer};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm_core::addr::{DeviceAddr, DevicePage, PageRange};
use uhmm_core::entry::State;
use uhmm_core::evict::RemoveError;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::hints::Hints;
use uhmm_core::hold::Hold;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::{From, MigrateError, Migrated};
use uhmm_core::mmu::{Mmu, Stop};
use uhmm_sim::{Call, Failure, Fault};
use uhmm_testkit::Rng;

const NO_TIME: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(20);

/// Migrates `len` pages of a device from `first` on to RAM.
fn evict(three: &Three, device: u8, first: u32, len: usize) -> Migrated {
    let first = DevicePage(first);
    let migration = three.space.migrate_device_range(device, first, len);
    let mut migration = migration.unwrap();
    migration.to_system();
    migration.copy().pages().finalize()
}

/// Pages scattered over the space, in no order, on a device from its page 0 on. The fourth has moved
/// since it came there.
fn scattered(device: u8) -> (Three, [usize; 6]) {
    let three = Three::new(2048);
    let mut pages = [900, 3, 1700, 40, 41, 7];
    for page in pages {
        three.write(page);
        assert_eq!(three.to_device(page, 1, device), migrated(1, 0));
    }
    let inside = three.space.inside().unwrap();
    inside
        .relocate(PageRange::new(number(40), 1), number(1200))
        .unwrap();
    drop(inside);
    pages[3] = 1200;
    for (page, i) in pages.into_iter().zip(0..) {
        assert_eq!(three.on(page).page, DevicePage(i));
    }
    (three, pages)
}

/// Compares the pages of [`scattered`], of which one was moved.
fn check(three: &Three, pages: &[usize]) {
    for &page in pages {
        if page != 1200 {
            three.check(page);
            continue;
        }
        let found = crate::world::touch(&three.space, page, Access::Read, |mmu, at| {
            three.oracle.check(40, &mmu.touch_read(at)?);
            Ok(())
        });
        found.unwrap();
    }
}

#[test]
fn r8_a_range_of_a_device_is_found_wherever_it_is_mapped() {
    for device in [DEVICE_PRIVATE, DEVICE_COHERENT] {
        let (three, pages) = scattered(device);
        let migration = three.space.migrate_device_range(device, DevicePage(1), 4);
        let migration = migration.unwrap();
        let found: Vec<_> = migration.selected().collect();
        drop(migration);
        assert_eq!(found.len(), 4);
        for (found, i) in found.iter().zip(1..) {
            assert_eq!(found.page, number(pages[i as usize]));
            let page = DevicePage(i);
            assert_eq!(found.source.from, From::Device(DeviceAddr { device, page }));
        }
        assert!(pages.iter().all(|&page| three.is_on(page, device)));
        assert_eq!(evict(&three, device, 1, 4), migrated(4, 0));
        for (&page, i) in pages.iter().zip(0..) {
            assert_eq!(three.is_on(page, device), !(1..5).contains(&i), "{i}");
        }
        check(&three, &pages);
        three.check_invariants();
        // Of the whole device, what is free is not selected.
        assert_eq!(evict(&three, device, 0, 2048).left, 0);
        assert!(!pages.iter().any(|&page| three.is_on(page, device)));
        check(&three, &pages);
        three.check_invariants();
    }
}

#[test]
fn r8_a_device_gives_its_pages_to_another_with_no_mapping_given() {
    let (three, pages) = scattered(DEVICE_PRIVATE);
    for (from, to) in [
        (DEVICE_PRIVATE, DEVICE_COHERENT),
        (DEVICE_COHERENT, DEVICE_PRIVATE),
        (DEVICE_PRIVATE, WATCHED),
        (WATCHED, DEVICE_COHERENT),
    ] {
        let migration = three.space.migrate_device_range(from, DevicePage(0), 512);
        let mut migration = migration.unwrap();
        assert_eq!(migration.allocate(to), Ok(6));
        assert_eq!(migration.copy().pages().finalize(), migrated(6, 0));
        assert!(pages.iter().all(|&page| three.is_on(page, to)));
        three.check_invariants();
    }
    check(&three, &pages);
    three.check_invariants();
}

#[test]
fn r8_of_a_page_in_ram_only_the_duplicate_leaves() {
    let three = Three::new(256);
    three.write_all(0..8);
    three.push_out();
    let pages = PageRange::new(BASE, 8);
    let inside = three.space.inside().unwrap();
    inside.set_hints(pages, Hints::READ_MOSTLY).unwrap();
    drop(inside);
    (0..8).for_each(|page| three.check(page));
    assert_eq!(three.space.stats().duplicate_pages.get(), 8);
    assert_eq!(evict(&three, WATCHED, 0, 64), migrated(8, 0));
    assert_eq!(three.device.stored(), []);
    assert_eq!(three.space.stats().duplicate_pages.get(), 0);
    assert_eq!(three.try_write(3), Ok(0), "writes are not tracked");
    three.check_all();
    three.check_invariants();
}

#[test]
fn r8_what_a_driver_has_is_not_selected() {
    let three = Three::new(64);
    let block = three.space.alloc_device_pages(DEVICE_COHERENT, 2).unwrap();
    Was::Coherent.make(&three, 8, 2);
    assert_eq!(evict(&three, DEVICE_COHERENT, 0, 16), migrated(2, 0));
    three.space.check_invariants_but(4);
    drop(block);
    three.check_invariants();
    three.check_all();
}

/// Every point at which others can come in between, in one migration of a device page.
#[test]
fn r3_a_fault_at_any_point_of_an_eviction_never_sees_a_freed_page() {
    for was in [Was::Private, Was::Coherent, Was::ReadOnlyCoherent] {
        for op in [Op::Take, Op::WithArena, Op::Copy, Op::Discard] {
            let three = Three::new(64);
            was.make(&three, 8, 4);
            let device = three.on(8).device;
            let space = three.space.clone();
            three.mmu().before(op, move || {
                let mut scratch = Scratch::default();
                (8..12).for_each(|page| space.fault(number(page), Access::Read, &mut scratch));
            });
            assert_eq!(evict(&three, device, 0, 16), migrated(4, 0), "{was:?}");
            (8..12).for_each(|page| three.check(page));
            three.check_invariants();
        }
    }
}

/// The other way round: the device is emptied, and goes, at any point of a fault.
#[test]
fn r3_an_eviction_at_any_point_of_a_fault_never_frees_what_it_reads() {
    for remove in [false, true] {
        for in_copy in [false, true] {
            let three = Three::new(64);
            Was::Private.make(&three, 8, 4);
            let space = three.space.clone();
            let step = move || {
                let migration = space.migrate_device_range(DEVICE_PRIVATE, DevicePage(0), 16);
                let mut migration = migration.unwrap();
                migration.to_system();
                // The page of the fault is in flight, and not selected.
                assert_eq!(migration.selected().count(), 3);
                assert_eq!(migration.missed(), [number(8)]);
                assert_eq!(migration.copy().pages().finalize(), migrated(3, 1));
                if remove {
                    let mut scratch = Scratch::default();
                    let removed = space.remove_device(DEVICE_PRIVATE, NO_TIME, &mut scratch);
                    assert!(matches!(removed, Err(RemoveError::StillInUse(still))
                        if still.pages == 1 && still.held + still.in_space == 1));
                }
            };
            match in_copy {
                true => three.mmu().before(Op::Copy, step),
                false => three.private.before(crate::rig::Call::CopyOut, step),
            }
            three.check(8);
            assert_eq!(three.private.steps_left() + three.mmu().steps_left(), 0);
            assert_eq!(three.private.freed().len(), 4, "each page once");
            if remove {
                let mut scratch = Scratch::default();
                let removed = three
                    .space
                    .remove_device(DEVICE_PRIVATE, LONG, &mut scratch);
                assert_eq!(removed, Ok(()));
                assert_eq!(three.private.removed(), [0]);
            }
            three.check_all();
            three.check_invariants();
        }
    }
}

/// Threads that fault, threads that migrate to the devices, and one that evicts them by device page.
/// The devices say when a page is read or freed that is not stored.
#[test]
fn r3_faults_and_evictions_race_without_a_freed_page() {
    const PAGES: usize = 64;
    for round in 0..12u64 {
        let three = Three::with_batch(PAGES, if round % 2 == 0 { 1 } else { 8 });
        three.private.set_fences(round % 4 == 3);
        three.write_all(0..PAGES);
        if round % 3 == 0 {
            three.mmu().fail_at_random(round, 6);
        }
        let (start, done) = (Barrier::new(4), AtomicBool::new(false));
        thread::scope(|scope| {
            let (three, start, done) = (&three, &start, &done);
            let mut others = Vec::new();
            for thread in 0..2 {
                others.push(scope.spawn(move || {
                    let mut rng = Rng::new(round * 10 + thread);
                    start.wait();
                    or_abort(|| {
                        for _ in 0..300 {
                            // Each thread has pages of its own, beside those of the other.
                            let page = rng.below(PAGES as u64 / 2) * 2 + thread;
                            match rng.below(3) {
                                0 => three.write(page as usize),
                                _ => three.check(page as usize),
                            }
                        }
                    });
                }));
            }
            scope.spawn(move || {
                let mut rng = Rng::new(round);
                start.wait();
                while !done.load(SeqCst) {
                    let device = rng.pick(&[DEVICE_PRIVATE, DEVICE_COHERENT]);
                    let first = rng.below(PAGES as u64) as usize;
                    or_abort(|| {
                        three.to_device(first, (PAGES - first).min(20), device);
                    });
                }
            });
            start.wait();
            let mut rng = Rng::new(!round);
            while others.iter().any(|thread| !thread.is_finished()) {
                let device = rng.pick(&[DEVICE_PRIVATE, DEVICE_COHERENT]);
                or_abort(|| {
                    evict(three, device, rng.below(64) as u32, 64);
                });
            }
            done.store(true, SeqCst);
        });
        three.mmu().heal();
        three.space.reclaim(&mut Scratch::default());
        three.check_invariants();
        three.check_all();
        for device in [DEVICE_PRIVATE, DEVICE_COHERENT] {
            let mut scratch = Scratch::default();
            let removed = three.space.remove_device(device, LONG, &mut scratch);
            assert_eq!(removed, Ok(()), "round {round}");
        }
        assert_eq!(three.private.stored(), 0);
        three.check_invariants();
        three.check_all();
    }
}

#[test]
fn r5_a_dropped_migration_of_device_pages_puts_them_back() {
    for device in [DEVICE_PRIVATE, DEVICE_COHERENT] {
        let (three, pages) = scattered(device);
        for phase in 0..3 {
            let migration = three.space.migrate_device_range(device, DevicePage(0), 16);
            let mut migration = migration.unwrap();
            assert_eq!(migration.selected().count(), 6);
            migration.to_system();
            match phase {
                0 => drop(migration),
                1 => drop(migration.copy()),
                _ => drop(migration.copy().pages()),
            }
            assert!(pages.iter().all(|&page| three.is_on(page, device)));
            three.check_invariants();
        }
        check(&three, &pages);
    }
}

#[test]
fn r9_a_page_that_its_device_has_lost_is_poisoned_and_no_other() {
    for to_system in [true, false] {
        let three = Three::with_batch(64, 16);
        Was::Private.make(&three, 8, 4);
        let at = three.on(10);
        three.private.lose(at.page);
        let migration = three.space.migrate_device_range(DEVICE_PRIVATE, at.page, 1);
        // Found to be lost, and dropped: still on the device, which may find it yet.
        let mut migration = migration.unwrap();
        migration.to_system();
        drop(migration.copy().pages());
        assert!(three.is_on(10, DEVICE_PRIVATE));
        let mut migration = three.begin(8, 4, PRIVATE);
        match to_system {
            true => migration.to_system(),
            false => assert_eq!(migration.allocate(DEVICE_COHERENT), Ok(4)),
        }
        assert_eq!(migration.copy().pages().finalize(), migrated(3, 1));
        assert_eq!(three.state(10), State::Poisoned);
        assert_eq!(three.try_check(10), Err(Fault::Poisoned));
        assert_eq!(three.space.stats().poisoned_pages.get(), 1);
        [8, 9, 11].into_iter().for_each(|page| three.check(page));
        three.check_invariants();
        three.discard(10, 1);
        three.check_all();
    }
}

#[test]
fn r9_a_device_that_says_retry_keeps_its_page_until_it_can_be_read() {
    let three = Three::new(64);
    Was::Private.make(&three, 8, 2);
    // More often than it is asked in one migration.
    three.private.retry(6);
    let done = evict(&three, DEVICE_PRIVATE, 0, 16);
    assert_eq!(done, migrated(1, 1), "the second page is asked for less");
    assert!(three.is_on(8, DEVICE_PRIVATE));
    three.private.retry(2);
    assert_eq!(evict(&three, DEVICE_PRIVATE, 0, 16), migrated(1, 0));
    assert_eq!(three.space.stats().poisoned_pages.get(), 0);
    three.check_all();
    three.check_invariants();
}

/// The program has used up its budget, and the machine has no more: eviction waits, from wherever.
#[test]
fn r9_eviction_waits_for_ram_and_drops_nothing() {
    for was in [Was::Private, Was::Coherent] {
        let three = Three::new(4 * BUDGET);
        was.make(&three, 0, 100);
        let device = three.on(0).device;
        // No device takes anything, so that RAM stays full.
        let full = uhmm_core::device::CopyInError::Full;
        three.device.fail_copy_in_after(0, full);
        three.private.set_full(true);
        (1000..1000 + BUDGET).for_each(|page| three.write(page));
        let mut scratch = Scratch::default();
        let removed = three.space.remove_device(device, NO_TIME, &mut scratch);
        let Err(RemoveError::StillInUse(still)) = removed else {
            panic!("{was:?}: {removed:?}");
        };
        assert_eq!((still.pages, still.in_space, still.held), (100, 100, 0));
        assert!(still.no_ram, "{was:?}: it says so: {still}");
        assert!((0..100).all(|page| three.is_on(page, device)));
        thread::scope(|scope| {
            let space = &three.space;
            let remover = scope.spawn(|| {
                let mut scratch = Scratch::default();
                space.remove_device(device, LONG, &mut scratch)
            });
            thread::sleep(Duration::from_millis(20));
            assert!(!remover.is_finished(), "{was:?}: it gave up");
            three.discard(1000, 60);
            while (0..60).any(|page| three.is_on(page, device)) {
                thread::yield_now();
            }
            assert!(!remover.is_finished(), "{was:?}: it dropped the rest");
            three.discard(1060, 60);
            assert_eq!(remover.join().unwrap(), Ok(()), "{was:?}");
        });
        three.device.heal();
        three.check_all();
        assert_eq!(three.space.stats().poisoned_pages.get(), 0);
        three.check_invariants();
    }
}

/// All of the RAM is charged, but some of it is free frames, of pages discarded in limbo.
#[test]
fn r9_eviction_uses_frames_that_are_free() {
    for was in [Was::Private, Was::Coherent] {
        let three = Three::new(4 * BUDGET);
        was.make(&three, 0, 100);
        let device = three.on(0).device;
        three.private.set_full(true);
        assert!(three.leave_only_warm_frames(1000) > 100);
        let mut scratch = Scratch::default();
        let removed = three.space.remove_device(device, LONG / 10, &mut scratch);
        assert_eq!(removed, Ok(()), "{was:?}");
        three.device.heal();
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn r9_eviction_of_pages_that_may_not_be_written_ends() {
    let three = Three::new(64);
    Was::ReadOnlyCoherent.make(&three, 8, 8);
    // Two of them were dropped behind our back, so that they read as zero.
    three.mmu().discard(PageRange::new(number(9), 2));
    [9, 10]
        .into_iter()
        .for_each(|page| three.oracle.discard(page));
    let mut scratch = Scratch::default();
    let removed = three
        .space
        .remove_device(DEVICE_COHERENT, LONG / 10, &mut scratch);
    assert_eq!(removed, Ok(()));
    three.check_all();
    three.check_invariants();
}

#[test]
fn the_one_page_form_brings_a_coherent_page_to_ram() {
    for was in [Was::Coherent, Was::ReadOnlyCoherent] {
        let three = Three::new(64);
        was.make(&three, 8, 2);
        let at = three.on(8);
        assert_eq!(three.space.migrate_device_coherent_page(at), Ok(()));
        assert!(Was::System.is(&three, 8));
        assert!(was.is(&three, 9), "and no other");
        if was.is_writable() {
            assert_eq!(three.try_write(8), Ok(0));
        }
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn the_one_page_form_says_why_it_does_not() {
    let generic = Recorder::of(MemoryType::Generic, 64);
    let world = World::beside(64, 64, vec![generic.boxed()]);
    let at = |device, page| DeviceAddr {
        device,
        page: DevicePage(page),
    };
    let one = |world: &World, at| world.space.migrate_device_coherent_page(at);
    assert_eq!(one(&world, at(1, 0)), Err(MigrateError::DoesNotMigrate));
    assert_eq!(
        one(&world, at(WATCHED, 0)),
        Err(MigrateError::DoesNotMigrate)
    );
    assert_eq!(one(&world, at(7, 0)), Err(MigrateError::NoSuchPage));
    let range = world.space.migrate_device_range(1, DevicePage(0), 1);
    assert_eq!(range.err(), Some(MigrateError::DoesNotMigrate));

    let three = Three::new(64);
    Was::Coherent.make(&three, 8, 2);
    let on = three.on(8);
    let one = |at| one(&three, at);
    assert_eq!(
        one(at(DEVICE_COHERENT, 1 << 20)),
        Err(MigrateError::NoSuchPage)
    );
    for (first, len) in [(2048, 1), (0, 2049), (u32::MAX, usize::MAX)] {
        let page = DevicePage(first);
        let range = three.space.migrate_device_range(DEVICE_COHERENT, page, len);
        assert_eq!(range.err(), Some(MigrateError::NoSuchPage));
    }
    assert_eq!(
        one(at(DEVICE_COHERENT, 99)),
        Err(MigrateError::Busy),
        "free"
    );
    assert!(three.mmu().pin(number(8)));
    assert_eq!(one(on), Err(MigrateError::Busy));
    assert_eq!(three.try_write(8), Ok(0), "it stays as it was");
    three.mmu().unpin(number(8));
    let held = three.space.hold_device_page(on, Hold::default()).unwrap();
    assert_eq!(one(on), Err(MigrateError::Busy));
    drop(held);
    three.space.reclaim(&mut Scratch::default());
    three.mmu().fail(Call::Copy, Failure::next(Stop::NoMemory));
    assert_eq!(one(on), Err(MigrateError::Busy));
    assert_eq!(three.try_write(8), Ok(0), "it stays as it was");
    assert_eq!(one(on), Ok(()));
    assert_eq!(one(on), Err(MigrateError::Busy), "free by now");
    three.check_all();
    three.check_invariants();
}

/// Everything in the devices goes on to RAM and out again to the watched device, under pressure.
#[test]
fn r9_eviction_under_pressure_goes_by_way_of_ram() {
    for device in [DEVICE_PRIVATE, DEVICE_COHERENT] {
        let three = Three::new(8 * BUDGET);
        with_reclaimer(&three.space, || {
            for first in (0..3 * BUDGET).step_by(128) {
                three.write_all(first..first + 128);
                let done = three.to_device(first, 128, device);
                assert_eq!(done.migrated + done.left, 128);
            }
            let on = (0..3 * BUDGET).filter(|&page| three.is_on(page, device));
            assert!(on.count() > 2 * BUDGET);
            let mut scratch = Scratch::default();
            let removed = three.space.remove_device(device, LONG, &mut scratch);
            assert_eq!(removed, Ok(()));
        });
        three.check_all();
        assert!(three.mmu().resident_peak() <= BUDGET + 64);
        three.space.reclaim(&mut Scratch::default());
        three.check_invariants();
    }
}

#[test]
fn r6_a_range_without_the_kind_selects_nothing() {
    let three = Three::new(64);
    Was::Private.make(&three, 8, 4);
    Was::Coherent.make(&three, 16, 4);
    assert_eq!(three.begin(8, 4, SYSTEM | COHERENT).selected().count(), 0);
    assert_eq!(three.begin(16, 4, SYSTEM | PRIVATE).selected().count(), 0);
    three.check_all();
    three.check_invariants();
}
