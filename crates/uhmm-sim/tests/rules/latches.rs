//! Small latches that other tests go past: each was taken out once, and no test failed.

use crate::allocations::counted;
use crate::duplicates::{duplicate, hint, read_again};
use crate::rig::{
    CHUNK, COHERENT, Call as Driver, DEVICE_COHERENT, DEVICE_PRIVATE, PRIVATE, Recorder, SYSTEM,
    Three, WATCHED, Was, args, migrated, number, small,
};
use crate::world::{BASE, BUDGET, SimSpace, World, space, touch, with_reclaimer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm_core::addr::{DeviceAddr, DevicePage, PageData, PageRange};
use uhmm_core::device::{
    CopyFailed, CopyInError, CopyOut, CopyOutError, Device, DeviceInfo, Fence,
};
use uhmm_core::entry::State;
use uhmm_core::failure::Failure;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::map::MapError;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::{Destination, MigrateError};
use uhmm_core::mmu::{Mmu, Stop, Tracking};
use uhmm_core::reclaim::PATIENCE;
use uhmm_sim::{Call, Failure as Failing};

/// A device of one chunk, all of whose pages are in use but one: that one is a page of the program that
/// was dropped, and its driver does not know yet. `step` runs while the driver is told.
fn while_the_last_page_is_freed(
    step: impl FnOnce(&SimSpace) + Send + 'static,
    then: impl FnOnce(&SimSpace, DeviceAddr),
) {
    const DEVICE: u8 = 1;
    let driver = Recorder::new(small(MemoryType::Private, 1));
    let world = World::beside(64, 64, vec![driver.boxed()]);
    world.write(0);
    let mut migration = world.space.migrate_vma(&args(0, 1, SYSTEM)).unwrap();
    assert_eq!(migration.allocate(DEVICE), Ok(1));
    assert_eq!(migration.copy().pages().finalize().migrated, 1);
    let Some(at) = world.state(0).device_page() else {
        panic!("page 0 is {:?}", world.state(0));
    };
    let alloc = || world.space.alloc_device_pages(DEVICE, 0).ok();
    let others: Vec<_> = std::iter::from_fn(alloc).collect();
    world.discard(0, 1);
    let space = world.space.clone();
    driver.before(Driver::Free, move || step(&space));
    then(&world.space, at);
    assert_eq!(driver.steps_left(), 0);
    world.space.check_invariants_but(others.len());
}

#[test]
fn r2_a_chunk_that_was_killed_meanwhile_hands_nothing_out() {
    for by_number in [false, true] {
        let kill = |space: &SimSpace| {
            let removed = space.remove_chunk(1, 0, Duration::ZERO, &mut Scratch::default());
            removed.expect_err("its other pages are in use");
        };
        while_the_last_page_is_freed(kill, |space, at| {
            let given = match by_number {
                false => space.alloc_device_pages(1, 0),
                true => space.alloc_device_page_at(at),
            };
            assert!(given.is_err(), "a page of a chunk that is to end");
        });
    }
}

#[test]
fn r4_a_page_is_free_only_once_its_driver_knows() {
    let given = Arc::new(AtomicUsize::new(0));
    let count = given.clone();
    let alloc = move |space: &SimSpace| {
        count.fetch_add(space.alloc_device_pages(1, 0).iter().count(), SeqCst);
    };
    while_the_last_page_is_freed(alloc, |space, at| {
        let own = space.alloc_device_pages(1, 0).unwrap();
        assert_eq!(own.first(), at);
        assert_eq!(given.load(SeqCst), 0, "given out while it is being freed");
    });
}

#[test]
fn r5_a_destination_is_not_given_up_while_a_copy_to_it_is_under_way() {
    let three = Three::with_batch(64, 8);
    three.private.set_fences(true);
    three.write_all(0..8);
    let mut migration = three.begin(0, 8, SYSTEM);
    assert_eq!(migration.allocate(DEVICE_PRIVATE), Ok(8));
    let to = migration
        .selected()
        .nth(3)
        .and_then(|page| page.destination);
    let Some(Destination::Device(to)) = to else {
        panic!("page 3 goes to {to:?}");
    };
    let migration = migration.copy();
    assert_eq!(three.private.started(), 8);
    let failed = three.space.device_memory_failure(to);
    assert_eq!(failed, Ok(Failure::Retired), "page 3 stays");
    let migration = migration.pages();
    assert_eq!(three.private.started(), 0, "the copies have ended");
    assert_eq!(migration.finalize().left, 1);
    three.check_all();
    three.check_invariants();
}

#[test]
fn r5_reclaim_stores_nothing_whose_fence_fails() {
    let three = Three::with_batch(64, 8);
    three.device.fail_copy_in_after(0, CopyInError::Full);
    three.private.set_fences(true);
    three.private.fail_fences(2);
    three.write_all(0..32);
    three.push_out();
    let on_device = || (0..32).filter(|&page| three.is_on(page, DEVICE_PRIVATE));
    assert_eq!(on_device().count(), three.private.stored());
    three.check_invariants();
    three.check_all();
    while three.push_out() > 0 {}
    assert_eq!(on_device().count(), 32);
    three.check_invariants();
    three.check_all();
}

#[test]
fn r5_the_blocks_of_migrations_are_used_again() {
    let three = Three::new(64);
    three.write(0);
    // More often than there are blocks.
    for round in 0..600 {
        let migration = three.begin(0, 1, SYSTEM);
        assert_eq!(migration.selected().count(), 1, "round {round}");
    }
    three.check_all();
    three.check_invariants();
}

/// The mapping is asked for what is there, and never for what is not.
#[test]
fn r6_a_hole_beside_a_page_is_not_taken_with_it() {
    let three = Three::new(64);
    [5, 3, 2].iter().for_each(|&page| three.write(page));
    let asked = || three.mmu().asked_to_take.swap(0, SeqCst);
    asked();
    let migration = three.begin(0, 8, SYSTEM);
    assert_eq!((asked(), migration.selected().count()), (3, 8));
    drop(migration);
    three.push_out();
    assert_eq!(asked(), 3);
    assert_eq!(three.state(4), State::None);
    three.check_invariants();
    three.check_all();
}

#[test]
fn r8_a_page_that_moves_is_found_at_its_new_place() {
    for was in [Was::Private, Was::Coherent] {
        let three = Three::new(64);
        was.make(&three, 0, 4);
        let first = three.on(0);
        let inside = three.space.inside().unwrap();
        inside
            .relocate(PageRange::new(BASE, 4), number(32))
            .unwrap();
        drop(inside);
        let migration = three
            .space
            .migrate_device_range(first.device, first.page, 4);
        let found: Vec<_> = migration
            .unwrap()
            .selected()
            .map(|page| page.page)
            .collect();
        assert_eq!(found, [32, 33, 34, 35].map(number));
        three.check_invariants();
    }
}

#[test]
fn r9_a_page_does_not_go_to_memory_that_fails_just_before_the_end() {
    for device in [DEVICE_PRIVATE, DEVICE_COHERENT] {
        let three = Three::new(64);
        three.write_all(0..4);
        let mut migration = three.begin(0, 4, SYSTEM);
        assert_eq!(migration.allocate(device), Ok(4));
        let to = migration
            .selected()
            .nth(2)
            .and_then(|page| page.destination);
        let Some(Destination::Device(to)) = to else {
            panic!("page 2 goes to {to:?}");
        };
        let migration = migration.copy().pages();
        let failed = three.space.device_memory_failure(to);
        assert_eq!(failed, Ok(Failure::Retired));
        assert_eq!(migration.finalize(), migrated(3, 1));
        assert!(Was::System.is(&three, 2));
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn r9_a_machine_without_memory_for_a_page_does_not_lose_it() {
    let world = World::pushed_out(8);
    let failing = Failing::next(Stop::NoMemory);
    world.mmu().fail(Call::Copy, failing);
    world.fault(3);
    assert!(matches!(world.state(3), State::System { .. }));
    world.check_all();
    world.check_invariants();
}

#[test]
fn r10_a_first_touch_reads_zeros_whatever_its_handler_copied_before() {
    let world = World::pushed_out(8);
    let mut scratch = Scratch::default();
    // Not all pages hold zeros themselves.
    for page in (0..8).rev() {
        for (fresh, access) in [(100, Access::Read), (200, Access::Write)] {
            world.space.fault(number(page), Access::Read, &mut scratch);
            assert_eq!(world.try_check(page), Ok(0));
            let fresh = fresh + 2 * page;
            world.space.fault(number(fresh), access, &mut scratch);
            assert_eq!(world.try_check(fresh), Ok(0), "{access:?}");
            world.push_out();
        }
    }
    world.check_invariants();
}

/// A copy engine that is believed too soon: what is there before its fence has said so is not the page.
struct Hasty(Arc<Recorder>);

struct Broken;

impl Fence for Broken {
    fn wait(&mut self) -> Result<(), CopyFailed> {
        Err(CopyFailed)
    }
}

impl Device for Hasty {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        self.0.copy_in(page, from)
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        self.0.copy_out(page, to)
    }

    fn free(&self, page: DevicePage) {
        self.0.free(page);
    }

    fn stored_bytes(&self) -> u64 {
        self.0.stored_bytes()
    }

    fn copy_out_batch(&self, copies: &mut [CopyOut<'_>]) -> Option<Box<dyn Fence>> {
        for copy in copies {
            copy.to.0.fill(0xee);
            copy.result = Ok(());
        }
        Some(Box::new(Broken))
    }

    fn add_chunk(&self, first: DevicePage, pages: u32) -> bool {
        self.0.add_chunk(first, pages)
    }
}

#[test]
fn r5_copies_out_are_not_believed_before_their_fence() {
    let info = small(MemoryType::Private, 1).batch_pages(8);
    let world = World::beside(64, 64, vec![Box::new(Hasty(Recorder::new(info)))]);
    world.write_all(0..8);
    let mut migration = world.space.migrate_vma(&args(0, 8, SYSTEM)).unwrap();
    assert_eq!(migration.allocate(DEVICE_PRIVATE), Ok(8));
    assert_eq!(migration.copy().pages().finalize().migrated, 8);
    let mut migration = world.space.migrate_vma(&args(0, 4, PRIVATE)).unwrap();
    migration.to_system();
    assert_eq!(migration.copy().pages().finalize().migrated, 4);
    world.check_all();
    world.check_invariants();
}

#[test]
fn r5_a_page_whose_mark_is_cleared_late_stays_too() {
    for was in Was::ALL {
        let three = Three::new(64);
        was.make(&three, 0, 4);
        let mut migration = three.begin(0, 4, SYSTEM | PRIVATE | COHERENT);
        let to = migration.allocate(DEVICE_PRIVATE);
        assert_eq!(to, Ok(4));
        migration.skip(number(1));
        let done = migration.copy().pages().finalize();
        assert_eq!((done.migrated, done.left), (3, 1), "{was:?}");
        assert!(was.is_again(&three, 1), "{was:?}");
        three.check_invariants();
        three.check_all();
    }
}

#[test]
fn r5_a_page_that_was_mapped_behind_our_back_is_charged() {
    for (was, by_touch) in [
        (Was::Hole, true),
        (Was::Private, true),
        (Was::Private, false),
    ] {
        let three = Three::new(64);
        was.make(&three, 0, 4);
        let zeros = &[PageData::ZERO];
        assert_eq!(three.mmu().copy(zeros, number(1), Tracking::Off).pages, 1);
        three.oracle.discard(1);
        match by_touch {
            true => three.fault(1),
            false => _ = three.to_system(0, 4),
        }
        assert!(matches!(three.state(1), State::System { .. }), "{was:?}");
        three.check_invariants();
        three.check_all();
    }
}

#[test]
fn r6_a_page_in_limbo_is_one_of_the_system() {
    let three = Three::new(64);
    Was::Limbo.make(&three, 0, 4);
    let selected = |select| three.begin(0, 4, select).selected().count();
    assert_eq!(selected(PRIVATE | COHERENT), 0);
    assert!((0..4).all(|page| Was::Limbo.is(&three, page)));
    assert_eq!(selected(SYSTEM), 4);
    three.check_all();
    three.check_invariants();
}

#[test]
fn no_more_of_a_device_is_migrated_than_there_is() {
    let three = Three::new(64);
    Was::Private.make(&three, 0, 4);
    let capacity = 4 * CHUNK;
    for (first, len) in [
        (0, capacity + 1),
        (capacity as u32, 1),
        (u32::MAX, 1),
        (1, usize::MAX),
    ] {
        let first = DevicePage(first);
        let migration = three.space.migrate_device_range(DEVICE_PRIVATE, first, len);
        assert_eq!(migration.err(), Some(MigrateError::NoSuchPage));
    }
    let migration = three
        .space
        .migrate_device_range(DEVICE_PRIVATE, DevicePage(0), capacity);
    assert_eq!(migration.unwrap().selected().count(), 4);
    three.check_all();
    three.check_invariants();
}

#[test]
fn what_is_not_in_the_mapping_is_in_the_way_of_one_too() {
    for was in [Was::Private, Was::Limbo] {
        let generic = Recorder::new(small(MemoryType::Generic, 1));
        let private = Recorder::new(small(MemoryType::Private, 1));
        let devices = vec![private.boxed(), generic.boxed()];
        let world = World::beside(64, 64, devices);
        world.write_all(0..2);
        if was == Was::Limbo {
            world.device.fail_copy_in_after(0, CopyInError::Full);
            private.set_full(true);
        }
        world.push_out();
        let before = [world.state(0), world.state(1)];
        let block = world.space.alloc_device_pages(2, 1).unwrap();
        let mapped = world.space.map_device_pages(block, BASE);
        assert_eq!(mapped, Err(MapError::InTheWay), "{was:?}");
        assert_eq!([world.state(0), world.state(1)], before);
        world.check_all();
        world.check_invariants();
    }
}

#[test]
fn r9_the_frame_of_a_page_that_failed_is_used_by_nobody() {
    let three = Three::new(64);
    Was::Limbo.make(&three, 0, 4);
    let State::Limbo(slot) = three.state(1) else {
        panic!("page 1 is {:?}", three.state(1));
    };
    assert_eq!(three.space.memory_failure(number(1)), Ok(Failure::Poisoned));
    assert!(!three.mmu().holds_frame(slot));
    // Taken home, and not mapped again: the frame lies in the arena.
    Was::Coherent.make(&three, 8, 4);
    let migration = three.begin(9, 1, COHERENT);
    three.mmu().fail(Call::Put, Failing::next(Stop::Changing));
    drop(migration);
    let State::Private(at) = three.state(9) else {
        panic!("page 9 is {:?}", three.state(9));
    };
    assert!(three.mmu().arena_holds_frame(at));
    assert_eq!(three.space.memory_failure(number(9)), Ok(Failure::Poisoned));
    assert!(!three.mmu().arena_holds_frame(at));
    three.check_invariants();
}

/// What comes from another device waits in a buffer meanwhile.
#[test]
fn r10_a_hole_goes_to_a_device_as_zeros() {
    for (from, to) in [
        (Was::Private, DEVICE_COHERENT),
        (Was::Coherent, DEVICE_PRIVATE),
    ] {
        let three = Three::new(64);
        from.make(&three, 0, 4);
        assert_eq!(three.to_device(0, 8, to).migrated, 8);
        assert!((0..8).all(|page| three.is_on(page, to)));
        (0..8).for_each(|page| three.check(page));
        three.check_invariants();
    }
}

#[test]
fn r13_what_a_walk_finds_stays_in_ram_meanwhile() {
    let three = Three::new(64);
    three.write_all(0..8);
    let mut runs = Vec::new();
    let walked = three.space.walk_ordinary(three.space.range(), 512, |run| {
        let migration = three.begin(0, 8, SYSTEM);
        runs.push((run, migration.selected().count()));
    });
    assert_eq!(walked, Ok(0));
    assert_eq!(runs, [(PageRange::new(BASE, 8), 0)]);
    three.check_invariants();
}

/// Nothing is mapped at the end, which would wake it too.
#[test]
fn r15_who_met_a_page_in_flight_is_woken_at_its_end() {
    let three = Three::new(64);
    Was::Private.make(&three, 0, 1);
    for page in [0, 32] {
        let migration = three.begin(page, 1, SYSTEM | PRIVATE);
        assert_eq!(three.state(page), State::Migrating);
        three.fault(page);
        three.mmu().take_wakes();
        drop(migration);
        let woken = three.mmu().take_wakes();
        let woken = woken.iter().any(|range| range.contains(number(page)));
        assert!(woken, "page {page}");
    }
}

#[test]
fn a_duplicate_does_not_come_back_whatever_its_bytes_were() {
    let world = read_again(16);
    for page in 0..16 {
        world.mmu().discard(PageRange::new(number(page), 1));
        world.oracle.discard(page);
        world.check(page);
    }
    world.push_out();
    world.check_all();
    world.check_invariants();
}

#[test]
fn r18_a_fault_that_unmaps_clean_pages_allocates_nothing() {
    const PART: usize = 400;
    let world = World::new(4 * BUDGET);
    for part in 0..3 {
        world.write_all(part * PART..(part + 1) * PART);
        world.push_out();
    }
    hint(&world, 0..3 * PART, true);
    let mut scratch = Scratch::default();
    let clean_evictions = || world.space.stats().clean_evictions.get();
    let (mut allocations, mut by_faults) = (0, 0);
    for page in 0..3 * PART {
        let before = clean_evictions();
        let fault = || world.space.fault(number(page), Access::Read, &mut scratch);
        allocations += counted(fault);
        by_faults += clean_evictions() - before;
        // The next fault would wait for the reclaimer: only that gives blocks back.
        if world.space.stats().ram_bytes.get() as usize / 4096 == BUDGET {
            world.space.reclaim(&mut scratch);
        }
    }
    assert!(by_faults > 100, "{by_faults}");
    assert_eq!(allocations, 0);
    world.check_invariants();
}

/// RAM is full of free frames, which would be moved in: the writes to such a page are not tracked.
#[test]
fn a_warm_frame_is_not_moved_in_where_writes_are_to_be_tracked() {
    let world = World::new(4 * BUDGET);
    world.write(0);
    world.push_out();
    hint(&world, 0..1, true);
    assert!(world.leave_only_warm_frames(1000) > 100);
    world.check(0);
    assert!(duplicate(&world, 0).is_some_and(|at| at.device == WATCHED));
    assert!(world.mmu().is_tracked(BASE));
    assert_eq!(world.try_write(0), Ok(1));
    assert_eq!(duplicate(&world, 0), None);
    world.device.heal();
    world.push_out();
    world.check_all();
    world.check_invariants();
}

#[test]
fn r16_a_mapped_device_page_that_is_dropped_and_touched_during_a_fork_is_free() {
    let three = Three::new(64);
    Was::Coherent.make(&three, 0, 4);
    three.space.close_for_fork();
    // A raw `madvise`, which the core is not told of.
    three.mmu().discard(PageRange::new(BASE.plus(1), 1));
    three.oracle.discard(1);
    three.fault(1);
    assert_eq!(three.try_check(1), Ok(0));
    three.space.open_in_parent();
    assert!(matches!(three.state(1), State::System { .. }));
    three.check_all();
    three.check_invariants();
}

/// The reclaimer wants RAM and finds none, but no fault does.
#[test]
fn r19_nobody_is_told_of_no_room_who_does_not_wait_for_any() {
    let space = space(2 * BUDGET, vec![]);
    for page in 0..BUDGET {
        let write = touch(&space, page, Access::Write, |mmu, at| {
            mmu.touch_write(at, |data| data.0[0] = 1)
        });
        write.expect("there is RAM for it");
    }
    with_reclaimer(&space, || {
        // Its patience is counted in tries, with a pause of a millisecond after each.
        let tries = 2 * PATIENCE.as_millis() as u64;
        while space.mmu().waits.load(SeqCst) < tries {
            thread::sleep(Duration::from_millis(10));
        }
    });
    assert_eq!(space.mmu().out_of_memory_count(), 0);
    space.check_invariants();
}
