//! R10, R13, R15, R16 and R18 for device memory that the CPU maps, and for all the ways between it and
//! private memory.

use crate::allocations::counted;
use crate::hook::Op;
use crate::rig::{
    COHERENT, Call as Driver, DEVICE_COHERENT, DEVICE_PRIVATE, SYSTEM, Three, Was, args, migrated,
    number, small,
};
use crate::world::{BASE, BUDGET, World, or_abort, touch, with_reclaimer};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::addr::{PageData, PageNo, PageRange};
use uhmm_core::device::{CopyInError, Device};
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::memory_type::MemoryType;
use uhmm_core::mmu::{Mmu, Stop};
use uhmm_core::reclaim::PATIENCE;
use uhmm_mirror::MirrorDevice;
use uhmm_sim::{Call, Failure};
use uhmm_testkit::Rng;

pub(crate) fn in_use(three: &Three, device: u8) -> u64 {
    three.space.reclaim(&mut Scratch::default());
    three.space.stats().devices[usize::from(device)].pages.get()
}

/// Makes pages that are coherent wait on their device, unmapped: their migration has been undone, and
/// the mapping did not take them back.
fn unmapped(three: &Three, first: usize, len: usize) {
    let migration = three.begin(first, len, COHERENT);
    for _ in 0..len {
        three.mmu().fail(Call::Put, Failure::next(Stop::Changing));
    }
    drop(migration);
    three.mmu().heal();
    for page in first..first + len {
        let state = three.state(page);
        assert!(
            matches!(state, State::Private(at) if at.device == DEVICE_COHERENT),
            "{state:?}"
        );
    }
}

/// Drops what is mapped, as a raw `madvise` does.
fn drop_raw(three: &Three, first: usize, len: usize) {
    three.mmu().discard(PageRange::new(number(first), len));
    (first..first + len).for_each(|page| three.oracle.discard(page));
}

fn relocate(three: &Three, from: usize, len: usize, to: usize) {
    let inside = three.space.inside().unwrap();
    let pages = PageRange::new(number(from), len);
    inside.relocate(pages, number(to)).unwrap();
}

/// Compares what is at `page` with what was written to `written`.
fn check_moved(three: &Three, page: usize, written: usize) {
    touch(&three.space, page, Access::Read, |mmu, at| {
        three.oracle.check(written, &mmu.touch_read(at)?);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_coherent_page_is_read_and_written_with_no_fault_and_uses_no_ram() {
    let three = Three::new(64);
    three.write_all(8..24);
    let resident = three.mmu().resident();
    assert_eq!(three.to_device(8, 16, DEVICE_COHERENT), migrated(16, 0));
    for page in 8..24 {
        assert_eq!(three.try_check(page), Ok(0));
        assert_eq!(three.try_write(page), Ok(0));
        assert_eq!(three.try_check(page), Ok(0));
        assert!(three.is_on(page, DEVICE_COHERENT));
    }
    assert_eq!(three.mmu().arena_resident(), 16);
    assert_eq!(three.mmu().resident(), resident - 16);
    let stats = three.space.stats();
    assert_eq!(stats.ram_bytes.get(), 4096 * (resident as u64 - 16));
    assert_eq!(stats.devices[2].stored_bytes.get(), 16 * 4096);
    three.check_invariants();
    assert_eq!(three.to_system(8, 16), migrated(16, 0));
    three.check_all();
    three.check_invariants();
}

/// What is mapped is the device page itself: the driver sees what the program writes.
#[test]
fn the_frame_that_the_program_writes_to_is_the_device_page() {
    let three = Three::new(64);
    Was::Coherent.make(&three, 8, 1);
    let at = three.on(8);
    assert!(!three.mmu().arena_holds_frame(at), "it is in the mapping");
    three.write(8);
    let migration = three.begin(8, 1, COHERENT);
    assert!(three.mmu().arena_holds_frame(at), "it has gone home");
    let mut found = PageData::ZERO;
    three
        .mmu()
        .with_arena(at, &mut |data| found.0.copy_from_slice(&data.0));
    three.oracle.check(8, &found);
    drop(migration);
    assert_eq!(three.on(8), at);
    three.check_all();
    three.check_invariants();
}

#[test]
fn a_discarded_coherent_page_is_free_and_its_frame_at_home() {
    let three = Three::new(64);
    Was::Coherent.make(&three, 8, 4);
    let at = three.on(9);
    assert!(three.mmu().pin(number(10)), "its frame cannot go home");
    three.discard(8, 4);
    assert!((8..12).all(|page| Was::Hole.is(&three, page)));
    assert_eq!(in_use(&three, DEVICE_COHERENT), 0);
    assert!(three.mmu().arena_holds_frame(at));
    assert_eq!(three.mmu().arena_resident(), 3);
    three.check_invariants();
    three.check_all();
    // All of them can be used again.
    assert_eq!(three.to_device(20, 8, DEVICE_COHERENT), migrated(8, 0));
    three.check_all();
    three.check_invariants();
}

#[test]
fn a_coherent_page_dropped_behind_our_back_reads_zeros_and_is_free() {
    for read_only in [false, true] {
        let three = Three::new(64);
        let was = match read_only {
            true => Was::ReadOnlyCoherent,
            false => Was::Coherent,
        };
        was.make(&three, 8, 8);
        drop_raw(&three, 8, 8);
        // By a touch, by a migration, by a move, by a discard, and by another touch.
        assert_eq!(three.try_check(8), Ok(1));
        three.to_device(9, 1, DEVICE_PRIVATE);
        three.to_system(10, 1);
        three.discard(12, 1);
        (8..14).for_each(|page| three.check(page));
        three.protect(8, 8, true);
        (8..16).for_each(|page| three.write(page));
        (8..16).for_each(|page| three.check(page));
        assert_eq!(in_use(&three, DEVICE_COHERENT), 0);
        assert_eq!(three.mmu().arena_resident(), 0);
        three.check_invariants();
    }
}

/// Which takes the page's own end for what it is, and does not look for it for ever.
#[test]
fn what_was_dropped_behind_our_back_moves_as_a_hole() {
    for was in [Was::System, Was::Coherent] {
        let three = Three::new(64);
        was.make(&three, 8, 4);
        drop_raw(&three, 9, 2);
        relocate(&three, 8, 4, 40);
        for page in 0..4 {
            check_moved(&three, 40 + page, 8 + page);
            assert!(Was::Hole.is(&three, 8 + page));
        }
        three.check_invariants();
    }
}

#[test]
fn a_moved_coherent_page_is_the_same_device_page() {
    let three = Three::new(128);
    Was::Coherent.make(&three, 8, 8);
    let at = three.on(8);
    relocate(&three, 8, 8, 64);
    for page in 0..8 {
        assert_eq!(three.on(64 + page), at.plus(page));
        check_moved(&three, 64 + page, 8 + page);
        assert!(Was::Hole.is(&three, 8 + page));
    }
    three.check_invariants();
    // And it is found there by its device page.
    let migration = three
        .space
        .migrate_device_range(DEVICE_COHERENT, at.page, 8);
    let mut migration = migration.unwrap();
    migration.to_system();
    assert_eq!(migration.copy().pages().finalize(), migrated(8, 0));
    (0..8).for_each(|page| check_moved(&three, 64 + page, 8 + page));
    three.check_invariants();
}

#[test]
fn a_coherent_page_that_cannot_be_moved_goes_on_in_ram() {
    for shared in [false, true] {
        let three = Three::new(128);
        Was::Coherent.make(&three, 8, 4);
        match shared {
            true => three.mmu().share(PageRange::new(number(8), 4)),
            false => assert!(three.mmu().pin(number(9))),
        }
        relocate(&three, 8, 4, 64);
        for page in 0..4 {
            check_moved(&three, 64 + page, 8 + page);
            let in_ram = matches!(three.state(64 + page), State::System { .. });
            assert_eq!(in_ram, page == 1 && !shared, "page {page}");
        }
        assert_eq!(in_use(&three, DEVICE_COHERENT), 3 + u64::from(shared));
        three.check_invariants();
    }
}

#[test]
fn r5_moving_coherent_pages_survives_failures() {
    for seed in 0..40 {
        let three = Three::new(128);
        Was::Coherent.make(&three, 8, 12);
        Was::Private.make(&three, 20, 4);
        unmapped(&three, 14, 2);
        three.mmu().fail_at_random(seed, 2);
        relocate(&three, 8, 16, 64);
        three.mmu().heal();
        three.check_invariants();
        (0..16).for_each(|page| check_moved(&three, 64 + page, 8 + page));
        three.check_invariants();
    }
}

#[test]
fn pages_go_from_device_to_device_and_back() {
    for batch in [1, 8] {
        let three = Three::with_batch(64, batch);
        three.private.set_fences(batch > 1);
        three.write_all(8..40);
        let mut rng = Rng::new(1);
        for device in [
            DEVICE_PRIVATE,
            DEVICE_COHERENT,
            DEVICE_PRIVATE,
            DEVICE_COHERENT,
            DEVICE_COHERENT,
            DEVICE_PRIVATE,
            DEVICE_PRIVATE,
        ] {
            let faults = three.space.stats().device_faults.get();
            assert_eq!(three.to_device(8, 32, device), migrated(32, 0));
            assert!((8..40).all(|page| three.is_on(page, device)));
            assert_eq!(three.space.stats().device_faults.get(), faults);
            three.check_invariants();
            assert_eq!(in_use(&three, device), 32, "the ones before are free");
            // Some are touched in between.
            (0..4).for_each(|_| three.write(8 + rng.below(32) as usize));
        }
        assert!(three.to_system(8, 32).migrated >= 28);
        assert_eq!(three.private.stored(), 0);
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn r10_the_next_owner_of_a_device_page_sees_nothing_of_the_last() {
    let three = Three::new(4 * BUDGET);
    for device in [DEVICE_COHERENT, DEVICE_PRIVATE] {
        // Secrets, given up in all the ways there are.
        three.write_all(0..40);
        assert_eq!(three.to_device(0, 40, device), migrated(40, 0));
        three.discard(0, 10);
        three.to_system(10, 10);
        if device == DEVICE_COHERENT {
            drop_raw(&three, 20, 5);
            three.check(20);
        }
        assert_eq!(three.to_device(30, 10, DEVICE_PRIVATE), migrated(10, 0));
        three.space.reclaim(&mut Scratch::default());
        // Their device pages are a driver's now.
        let mut blocks = Vec::new();
        for order in (0..6).rev() {
            blocks.push(three.space.alloc_device_pages(device, order).unwrap());
        }
        for block in &mut blocks {
            for i in 0..1 << block.order() {
                let zeros = &mut |data: &mut PageData| {
                    assert!(data.0 == [0; 4096], "the last owner's");
                    data.0.fill(7);
                };
                assert_eq!(block.with_bytes(i, zeros), device == DEVICE_COHERENT);
            }
        }
        drop(blocks);
        // And then holes of the program, which sees nothing of the driver's.
        let holes = 600..680;
        assert_eq!(three.to_device(600, 80, device), migrated(80, 0));
        for page in holes {
            three.check(page);
        }
        // One that failed half way has left nothing either.
        three.write_all(0..40);
        let mut migration = three.begin(0, 40, SYSTEM);
        let _ = migration.allocate(device);
        drop(migration.copy());
        assert_eq!(three.to_device(700, 80, device), migrated(80, 0));
        (700..780).for_each(|page| three.check(page));
        three.discard(0, 4 * BUDGET);
        three.space.reclaim(&mut Scratch::default());
        three.check_invariants();
    }
}

#[test]
fn r13_reclaim_never_takes_a_coherent_page_nor_stores_to_coherent_memory() {
    let three = Three::new(4 * BUDGET);
    Was::Coherent.make(&three, 0, 64);
    let asked = three.mmu().asked_to_take.load(SeqCst);
    three.push_out();
    assert_eq!(
        three.mmu().asked_to_take.load(SeqCst),
        asked,
        "no candidate"
    );
    with_reclaimer(&three.space, || {
        let mut rng = Rng::new(13);
        for _ in 0..20_000 {
            let page = rng.below(4 * BUDGET as u64) as usize;
            match rng.one_in(2) {
                true => three.write(page),
                false => three.check(page),
            }
        }
    });
    assert!((0..64).all(|page| three.is_on(page, DEVICE_COHERENT)));
    assert_eq!(in_use(&three, DEVICE_COHERENT), 64, "and none has come");
    three.check_all();
    three.check_invariants();
}

#[test]
fn r13_pressure_does_not_spill_into_coherent_memory() {
    const PAGES: usize = BUDGET + 100;
    let three = Three::new(2 * BUDGET);
    // No private device takes anything; the coherent one is empty.
    three.device.fail_copy_in_after(0, CopyInError::Full);
    three.private.set_full(true);
    let written = AtomicUsize::new(0);
    with_reclaimer(&three.space, || {
        thread::scope(|scope| {
            let (three, written) = (&three, &written);
            scope.spawn(move || {
                for page in 0..PAGES {
                    three.write(page);
                    written.store(page + 1, SeqCst);
                }
            });
            or_abort(|| {
                let begin = Instant::now();
                while three.mmu().out_of_memory_count() == 0 {
                    assert!(begin.elapsed() < 20 * PATIENCE, "nobody is told: it hangs");
                    thread::sleep(Duration::from_millis(5));
                }
                assert_eq!(three.mmu().arena_resident(), 0, "it spilt");
                assert!(written.load(SeqCst) <= BUDGET);
                // Its driver may take pages there, and then it goes on.
                assert!(three.to_device(0, 200, DEVICE_COHERENT).migrated > 100);
            });
        });
        three.device.heal();
        three.private.set_full(false);
        (0..PAGES).for_each(|page| three.check(page));
    });
    three.check_invariants();
}

#[test]
fn r15_a_write_is_one_fault_wherever_the_page_comes_back_from() {
    let three = Three::new(64);
    Was::Private.make(&three, 8, 1);
    assert_eq!(three.try_write(8), Ok(1), "private");
    Was::Coherent.make(&three, 16, 1);
    unmapped(&three, 16, 1);
    assert_eq!(three.try_write(16), Ok(1), "coherent, not mapped");
    for was in [Was::Private, Was::Coherent] {
        let page = 24 + 8 * usize::from(was == Was::Coherent);
        was.make(&three, page, 2);
        assert_eq!(three.to_system(page, 2), migrated(2, 0));
        assert_eq!(three.try_write(page), Ok(0), "{was:?}, brought back");
        assert_eq!(three.try_check(page + 1), Ok(0));
        assert_eq!(three.try_write(page + 1), Ok(0));
    }
    Was::Coherent.make(&three, 40, 1);
    drop_raw(&three, 40, 1);
    assert_eq!(three.try_write(40), Ok(1), "dropped behind our back");
    three.check_all();
    three.check_invariants();
}

/// 0..4 coherent, 4..6 on the coherent device but not mapped, 8..12 private, 12..14 coherent and
/// dropped behind our back, 16..18 coherent and read-only, 20..22 in RAM, 24 on none.
fn in_each_state() -> Three {
    let three = Three::new(64);
    Was::Coherent.make(&three, 0, 6);
    unmapped(&three, 4, 2);
    Was::Private.make(&three, 8, 4);
    Was::Coherent.make(&three, 12, 2);
    drop_raw(&three, 12, 2);
    Was::ReadOnlyCoherent.make(&three, 16, 2);
    three.write_all(20..22);
    three
}

const STATES: [usize; 8] = [0, 2, 5, 9, 13, 17, 20, 24];

#[test]
fn r16_both_sides_of_a_fork_see_that_moment_and_go_on_migrating() {
    for child in [false, true] {
        for touched in [false, true] {
            let three = in_each_state();
            let space = &three.space;
            space.close_for_fork();
            if touched {
                for page in STATES {
                    three.check(page);
                    if page != 17 {
                        three.write(page);
                    }
                }
            }
            space.seal_for_fork();
            // The kernel copies what is mapped, and what is in the arena.
            if child {
                three.mmu().become_child();
                space.begin_in_child();
                space.open_in_child(&[space.range()]);
            } else {
                three.mmu().share(PageRange::new(BASE, 64));
                space.open_in_parent();
            }
            for page in 0..4 {
                let written = touched && STATES.contains(&page);
                let stays = three.is_on(page, DEVICE_COHERENT);
                assert_eq!(stays, !written, "child {child}: page {page}");
            }
            three.check_all();
            for page in 0..4 {
                let faults = usize::from(three.is_on(page, DEVICE_COHERENT));
                assert_eq!(three.try_write(page), Ok(faults), "page {page}");
                assert!(Was::System.is(&three, page));
            }
            for device in [DEVICE_PRIVATE, DEVICE_COHERENT, DEVICE_PRIVATE] {
                let done = three.to_device(0, 32, device);
                assert!(done.migrated >= 30, "child {child}: {done:?}");
                three.check_invariants();
            }
            three.check_all();
            let mut scratch = Scratch::default();
            for device in [DEVICE_COHERENT, DEVICE_PRIVATE] {
                let removed = space.remove_device(device, Duration::from_secs(20), &mut scratch);
                assert_eq!(removed, Ok(()));
            }
            three.check_all();
            three.check_invariants();
        }
    }
}

/// What the kernel filled in the child, before its memory was registered, shadows what is elsewhere.
#[test]
fn r16_zero_pages_of_the_child_do_not_shadow_device_pages() {
    let three = in_each_state();
    three.space.close_for_fork();
    for page in [5, 9, 24] {
        let tracking = uhmm_core::mmu::Tracking::Off;
        let progress = three.mmu().copy(&[PageData::ZERO], number(page), tracking);
        assert_eq!(progress.pages, 1);
    }
    three.space.begin_in_child();
    three.space.open_in_child(&[three.space.range()]);
    three.check_all();
    three.check_invariants();
}

/// Threads migrate while forks come and go.
#[test]
fn r16_a_fork_waits_for_migrations_and_they_for_it() {
    let three = Three::new(256);
    let done = AtomicBool::new(false);
    three.write_all(0..128);
    with_reclaimer(&three.space, || {
        thread::scope(|scope| {
            let (three, done) = (&three, &done);
            scope.spawn(move || {
                or_abort(|| {
                    let mut rng = Rng::new(16);
                    while !done.load(SeqCst) {
                        let first = rng.below(100) as usize;
                        let device = rng.pick(&[DEVICE_PRIVATE, DEVICE_COHERENT]);
                        match rng.below(3) {
                            0 => three.to_system(first, 28),
                            _ => three.to_device(first, 28, device),
                        };
                    }
                });
            });
            scope.spawn(move || {
                or_abort(|| {
                    let mut rng = Rng::new(17);
                    while !done.load(SeqCst) {
                        three.write(rng.below(128) as usize);
                    }
                });
            });
            for _ in 0..100 {
                three.space.close_for_fork();
                assert!((0..128).all(|page| three.state(page) != State::Migrating));
                three.mmu().share(PageRange::new(BASE, 128));
                three.space.open_in_parent();
                thread::sleep(Duration::from_micros(300));
            }
            done.store(true, SeqCst);
        });
    });
    three.space.reclaim(&mut Scratch::default());
    three.check_all();
    three.check_invariants();
}

#[test]
fn r18_faults_on_pages_of_devices_allocate_nothing() {
    let mirror =
        |memory| -> Box<dyn Device> { Box::new(MirrorDevice::with_memory(1 << 20, memory)) };
    let devices = vec![mirror(MemoryType::Private), mirror(MemoryType::Coherent)];
    let world = World::beside(256, 256, devices);
    let (space, mut scratch) = (&world.space, Scratch::default());
    let migrate = |first, len, device| {
        let select = SYSTEM | COHERENT;
        let mut migration = space.migrate_vma(&args(first, len, select)).unwrap();
        assert_eq!(migration.allocate(device), Ok(len));
        migration.copy().pages().finalize()
    };
    world.write_all(0..128);
    assert_eq!(migrate(0, 64, 1), migrated(64, 0));
    assert_eq!(migrate(64, 64, 2), migrated(64, 0));
    // 64 on: mapped. 80 on: dropped behind our back. 96 on: on the device, not mapped.
    world.mmu().discard(PageRange::new(number(80), 8));
    (80..88).for_each(|page| world.oracle.discard(page));
    let migration = space.migrate_vma(&args(96, 8, COHERENT)).unwrap();
    (0..8).for_each(|_| world.mmu().fail(Call::Put, Failure::next(Stop::Changing)));
    drop(migration);
    assert!(matches!(world.state(100), State::Private(_)));
    let in_flight = space.migrate_vma(&args(112, 8, COHERENT)).unwrap();
    for access in [Access::Read, Access::Write] {
        for page in (0..64).chain([64, 65, 80, 81, 96, 97, 98, 112, 113, 200, 201]) {
            let mut fault = || space.fault(number(page), access, &mut scratch);
            assert_eq!(counted(&mut fault), 0, "page {page}, {access:?}");
        }
    }
    drop(in_flight);
    space.close_for_fork();
    for page in [82, 99, 100, 210] {
        let mut fault = || space.fault(number(page), Access::Write, &mut scratch);
        assert_eq!(counted(&mut fault), 0, "page {page}, while forking");
    }
    space.open_in_parent();
    world.check_all();
    space.reclaim(&mut scratch);
    world.check_invariants();
}

/// A fault, or an application thread, at each point at which a coherent page is on its way.
#[test]
fn r5_a_discard_of_a_coherent_page_and_a_fault_leave_one_of_them() {
    for op in [Op::Take, Op::Discard] {
        let three = Three::new(64);
        Was::Coherent.make(&three, 8, 1);
        if op == Op::Discard {
            // The frame cannot go home, and is dropped.
            assert!(three.mmu().pin(number(8)));
        }
        let space = three.space.clone();
        three.mmu().before(op, move || {
            space.fault(number(8), Access::Write, &mut Scratch::default());
        });
        three.discard(8, 1);
        assert_eq!(three.mmu().steps_left(), 0, "{op:?}");
        assert_eq!(in_use(&three, DEVICE_COHERENT), 0);
        three.write(8);
        three.check(8);
        three.check_invariants();
    }
}

/// Who discards or moves a page that is migrating waits for its end, and drops or moves what it has
/// become.
#[test]
fn r5_a_discard_in_the_middle_of_a_migration_comes_after_it() {
    for moves in [false, true] {
        for was in [Was::System, Was::Coherent, Was::Private] {
            let three = Three::new(64);
            was.make(&three, 8, 4);
            let mut migration = three.begin(8, 4, crate::coherent_protected::every_kind());
            migration.allocate(DEVICE_COHERENT).unwrap();
            thread::scope(|scope| {
                let three = &three;
                let other = scope.spawn(move || {
                    or_abort(|| match moves {
                        true => relocate(three, 8, 4, 40),
                        false => three.discard(8, 4),
                    });
                });
                let copied = migration.copy();
                (0..50).for_each(|_| thread::yield_now());
                assert!(!other.is_finished(), "{was:?}: it does not wait");
                assert_eq!(copied.pages().finalize(), migrated(4, 0));
                other.join().unwrap();
            });
            let left = in_use(&three, DEVICE_COHERENT);
            assert_eq!(left, if moves { 4 } else { 0 }, "{was:?}");
            for page in 0..4 {
                check_moved(&three, if moves { 40 } else { 8 } + page, 8 + page);
            }
            three.check_invariants();
        }
    }
}

/// No room in the arena for another frame: the pages that it is for stay where they are.
#[test]
fn a_machine_without_memory_for_the_arena_moves_what_it_can() {
    let three = Three::new(64);
    three.write_all(0..8);
    three.mmu().limit_memory(three.mmu().resident() + 3);
    let done = three.to_device(0, 8, DEVICE_COHERENT);
    assert_eq!(done, migrated(3, 5));
    three.check_invariants();
    three.mmu().limit_memory(usize::MAX);
    three.check_all();
    assert_eq!(three.to_device(0, 8, DEVICE_COHERENT), migrated(8, 0));
    three.check_all();
    three.check_invariants();
}

/// A device as CXL memory is: on a node of its own, which the machine has or has not.
#[test]
fn a_node_that_the_machine_has_not_is_an_error() {
    use uhmm_core::error::BuildError;
    let world = World::new(64);
    let device = |node| {
        let info = small(MemoryType::Coherent, 1).node(node);
        crate::rig::Recorder::new(info).boxed()
    };
    let refused = world.space.add_device(device(9));
    assert_eq!(refused, Err(BuildError::NoNode { node: 9 }));
    assert_eq!(world.space.add_device(device(1)), Ok(1));
    let mut migration = world.space.migrate_vma(&args(0, 4, SYSTEM)).unwrap();
    assert_eq!(migration.allocate(1), Ok(4));
    assert_eq!(migration.copy().pages().finalize(), migrated(4, 0));
    world.check_all();
    world.check_invariants();
}

/// The driver of memory that the CPU maps is asked for no copy, ever (its device would say).
#[test]
fn the_driver_of_coherent_memory_is_asked_for_no_copy() {
    let three = Three::new(64);
    three.coherent.panic_in(Driver::CopyIn);
    three.coherent.panic_in(Driver::CopyOut);
    Was::Coherent.make(&three, 0, 8);
    assert_eq!(three.to_system(0, 4), migrated(4, 0));
    unmapped(&three, 4, 2);
    three.check_all();
    assert_eq!(three.coherent.steps_left(), 2);
    assert!(three.space.range().contains(PageNo(BASE.0)));
    three.check_invariants();
}
