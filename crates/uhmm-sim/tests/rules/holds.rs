//! Device pages in the hands of drivers: R1, R2, R4 and R7 from outside, and everything that a driver may
//! ask for wrongly.

use crate::types::{CAPACITY, Pages, check, device, discard, map, on, range, read, with, write};
use crate::world::{BASE, BUDGET, World, space};
use std::thread;
use std::time::Duration;
use uhmm_core::AllocError;
use uhmm_core::addr::{DeviceAddr, DevicePage};
use uhmm_core::entry::State;
use uhmm_core::evict::{RemoveError, StillInUse};
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::hold::{Hold, HoldError};
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::{Destination, MigrateVma, Select};
use uhmm_sim::{Call, Failure};

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(20);

fn private(world: &World, page: usize) -> DeviceAddr {
    match world.state(page) {
        State::Private(at) => at,
        other => panic!("page {page} is {other:?}"),
    }
}

fn system(first: usize, len: usize) -> MigrateVma {
    MigrateVma {
        pages: range(first, len),
        select: Select::SYSTEM,
        owner: None,
        except: None,
        fault_page: None,
    }
}

#[test]
fn r7_a_held_page_neither_migrates_nor_comes_in_by_a_fault() {
    let world = World::pushed_out(16);
    let at = private(&world, 5);
    let held = world.space.hold_device_page(at, Hold::default()).unwrap();
    let twice = world.space.hold_device_page(at, Hold::default()).unwrap();
    assert_eq!((held.at(), twice.at()), (at, at));
    for access in [Access::Read, Access::Write] {
        let mut scratch = Scratch::default();
        world.space.fault(BASE.plus(5), access, &mut scratch);
        assert_eq!(private(&world, 5), at);
    }
    // A fault beside it brings in what it may.
    (0..5).for_each(|page| world.check(page));
    assert_eq!(private(&world, 5), at);
    let mut migration = world.space.migrate_device_range(0, at.page, 1).unwrap();
    migration.to_system();
    assert_eq!(migration.copy().pages().finalize().migrated, 0);
    drop(held);
    world.fault(5);
    assert_eq!(private(&world, 5), at, "one holder is left");
    drop(twice);
    world.check_all();
    world.check_invariants();
}

/// Who comes while the page is being migrated is told so, and the migration goes on.
#[test]
fn r7_a_page_in_flight_is_not_held() {
    let world = World::pushed_out(4);
    let at = private(&world, 2);
    let mut migration = world
        .space
        .migrate_device_range(0, DevicePage(0), 4)
        .unwrap();
    migration.to_system();
    let hold = || world.space.hold_device_page(at, Hold::default()).err();
    assert_eq!(hold(), Some(HoldError::InFlight));
    let migration = migration.copy();
    assert_eq!(hold(), Some(HoldError::InFlight));
    let done = migration.pages().finalize();
    assert_eq!((done.migrated, done.left), (4, 0));
    assert_eq!(hold(), Some(HoldError::Free));
    world.check_all();
    world.check_invariants();
}

#[test]
fn r2_a_pagemap_waits_for_the_last_holder() {
    let world = World::pushed_out(16);
    let at = private(&world, 5);
    let held = world.space.hold_device_page(at, Hold::default()).unwrap();
    let remove = |patience| {
        world
            .space
            .remove_device(0, patience, &mut Scratch::default())
    };
    let expected = StillInUse {
        pages: 1,
        held: 1,
        ..StillInUse::default()
    };
    assert_eq!(remove(NOW), Err(RemoveError::StillInUse(expected)));
    let text = remove(NOW).unwrap_err().to_string();
    assert!(
        text.contains("1 pages are still on the device, 1 of them held"),
        "{text}"
    );
    thread::scope(|scope| {
        let remover = scope.spawn(|| remove(LONG));
        thread::yield_now();
        drop(held);
        assert_eq!(remover.join().unwrap(), Ok(()));
    });
    assert_eq!(world.device.stored(), []);
    world.check_all();
    world.check_invariants();
}

/// The program gives the page up, and the holder does not: it is the holder's alone then.
#[test]
fn r1_a_page_outlives_its_entry_while_it_is_held() {
    let world = World::pushed_out(4);
    let at = private(&world, 1);
    let held = world.space.hold_device_page(at, Hold::default()).unwrap();
    world.discard(1, 1);
    world.space.reclaim(&mut Scratch::default());
    assert!(world.device.stored().contains(&at.page), "still stored");
    world.space.check_invariants_but(1);
    // It belongs to no page of the program, whatever comes there next.
    world.write(1);
    world.push_out();
    assert_ne!(private(&world, 1), at);
    let again = world.space.hold_device_page(at, Hold::default());
    assert_eq!(again.err(), Some(HoldError::Free), "to who had it only");
    let migration = world.space.migrate_device_range(0, at.page, 1).unwrap();
    assert_eq!(migration.selected().count(), 0);
    drop(migration);
    let mut scratch = Scratch::default();
    let expected = StillInUse {
        pages: 1,
        held: 1,
        ..StillInUse::default()
    };
    let evicted = world.space.evict_device(0, NOW, &mut scratch);
    assert_eq!(evicted, Err(RemoveError::StillInUse(expected)));
    drop(held);
    assert_eq!(
        world.space.hold_device_page(at, Hold::default()).err(),
        Some(HoldError::Free)
    );
    world.space.reclaim(&mut scratch);
    assert!(!world.device.stored().contains(&at.page));
    world.check_all();
    world.check_invariants();
}

#[test]
fn what_is_not_there_is_not_held() {
    let space = with(MemoryType::Generic);
    let hold = |device, page| {
        let page = DevicePage(page);
        let held = space.hold_device_page(DeviceAddr { device, page }, Hold::default());
        held.map(drop)
    };
    let end = CAPACITY as u32;
    assert_eq!(hold(0, 0), Err(HoldError::Free));
    assert_eq!(hold(0, end - 1), Err(HoldError::Free));
    for page in [end, end + 1, u32::MAX] {
        assert_eq!(hold(0, page), Err(HoldError::NoSuchPage));
    }
    for device in [1, 7, 8, 255] {
        assert_eq!(hold(device, 0), Err(HoldError::NoSuchPage));
    }
    check(&space);
}

#[test]
fn r4_pages_that_a_driver_drops_are_free_again() {
    for memory in [MemoryType::Private, MemoryType::Coherent, MemoryType::FsDax] {
        let space = with(memory);
        let mut blocks: Vec<Pages<'_>> = Vec::new();
        for order in [0, 9, 3, 0, 5] {
            let block = space.alloc_device_pages(0, order).unwrap();
            assert_eq!(block.order(), order);
            assert_eq!(block.first().page.0 % (1 << order), 0, "aligned");
            blocks.push(block);
        }
        let pages: usize = blocks.iter().map(|block| 1 << block.order()).sum();
        space.check_invariants_but(pages);
        assert_eq!(space.stats().devices[0].pages.get() as usize, pages);
        drop(blocks);
        check(&space);
        let all: Vec<_> = (0..CAPACITY / 512)
            .map(|_| space.alloc_device_pages(0, 9).expect("as large as before"))
            .collect();
        assert_eq!(space.alloc_device_pages(0, 0).err(), Some(AllocError::Full));
        drop(all);
        // At once, though nobody has reclaimed since.
        assert!(space.alloc_device_pages(0, 9).is_ok());
        check(&space);
    }
}

#[test]
fn a_page_is_handed_out_by_its_number_once() {
    let space = with(MemoryType::FsDax);
    let page = space.alloc_device_page_at(on(700)).unwrap();
    assert_eq!((page.first(), page.order()), (on(700), 0));
    let again = space.alloc_device_page_at(on(700)).err();
    assert_eq!(again, Some(AllocError::Full));
    // Whoever asks for any page gets another.
    let all: Vec<_> = std::iter::from_fn(|| space.alloc_device_pages(0, 0).ok()).collect();
    assert_eq!(all.len(), CAPACITY - 1);
    assert!(all.iter().all(|other| other.first() != on(700)));
    drop((page, all));
    // Free again at once.
    assert!(space.alloc_device_page_at(on(700)).is_ok());
    check(&space);
}

#[test]
fn what_cannot_be_handed_out_is_an_error_of_its_own() {
    let space = with(MemoryType::Coherent);
    let any = |device, order| space.alloc_device_pages(device, order).err();
    let this = |device, page| {
        let page = DevicePage(page);
        space
            .alloc_device_page_at(DeviceAddr { device, page })
            .err()
    };
    for order in [10, 31, 32, 63, u32::MAX] {
        assert_eq!(any(0, order), Some(AllocError::Full), "order {order}");
    }
    for device in [1, 7, 8, 255] {
        assert_eq!(any(device, 0), Some(AllocError::NoSuchDevice));
        assert_eq!(this(device, 0), Some(AllocError::NoSuchDevice));
    }
    for page in [CAPACITY as u32, 1 << 16, 1 << 29, u32::MAX] {
        assert_eq!(this(0, page), Some(AllocError::NoSuchPage), "page {page}");
    }
    let mut scratch = Scratch::default();
    assert_eq!(space.suspend_device(0, NOW, &mut scratch), Ok(()));
    assert_eq!(any(0, 0), Some(AllocError::Suspended));
    assert_eq!(this(0, 0), Some(AllocError::Suspended));
    assert!(space.resume_device(0));
    assert_eq!((any(0, 0), this(0, 0)), (None, None));
    assert_eq!(space.remove_device(0, NOW, &mut scratch), Ok(()));
    assert_eq!(any(0, 0), Some(AllocError::Removed));
    assert_eq!(this(0, 0), Some(AllocError::Removed));
    check(&space);
}

/// The machine has no memory to stand in for the device's.
#[test]
fn pages_that_have_no_memory_are_not_handed_out() {
    let space = with(MemoryType::Generic);
    space.mmu().limit_memory(3);
    let block = space.alloc_device_pages(0, 2).err();
    assert_eq!(block, Some(AllocError::Full));
    check(&space);
    assert_eq!(space.stats().devices[0].pages.get(), 0);
    space.mmu().limit_memory(4);
    assert!(space.alloc_device_pages(0, 2).is_ok());
    space.mmu().limit_memory(usize::MAX);
    let next = Failure::next(uhmm_core::mmu::Stop::NoMemory);
    space.mmu().fail(Call::FillArena, next);
    let block = space.alloc_device_page_at(on(9)).err();
    assert_eq!(block, Some(AllocError::Full));
    check(&space);
}

#[test]
#[should_panic(expected = "page 4 of a block of order 2")]
fn a_driver_has_no_bytes_past_its_block() {
    let space = with(MemoryType::Generic);
    let mut block = space.alloc_device_pages(0, 2).unwrap();
    block.with_bytes(4, &mut |_| ());
}

#[test]
fn r10_a_driver_is_handed_zeros() {
    let space = with(MemoryType::Coherent);
    for _ in 0..3 {
        let mut block = space.alloc_device_pages(0, 2).unwrap();
        assert_eq!(block.first(), on(0), "the same memory again");
        for i in 0..4 {
            let zeros = &mut |data: &mut uhmm_core::addr::PageData| {
                assert!(data.0 == [0; 4096]);
                data.0.fill(7);
            };
            assert!(block.with_bytes(i, zeros));
        }
        drop(block);
        check(&space);
    }
}

// A driver's own page as a destination.

#[test]
fn a_page_goes_to_the_page_that_its_driver_names() {
    let world = World::new(4 * BUDGET);
    world.write(3);
    let own = world.space.alloc_device_page_at(on(77)).unwrap();
    let mut migration = world.space.migrate_vma(&system(3, 1)).unwrap();
    assert!(migration.set_destination(BASE.plus(3), own));
    let to = migration.selected().next().unwrap().destination;
    assert_eq!(to, Some(Destination::Device(on(77))));
    assert_eq!(migration.copy().pages().finalize().migrated, 1);
    assert_eq!(world.state(3), State::Private(on(77)));
    world.check_invariants();
    world.check_all();
}

#[test]
fn r4_a_destination_that_is_not_needed_is_free() {
    for way in 0..7 {
        let world = World::new(4 * BUDGET);
        world.write(3);
        world.write(4);
        let order = u32::from(way == 0);
        let own = world.space.alloc_device_pages(0, order).unwrap();
        let mut migration = world.space.migrate_vma(&system(3, 2)).unwrap();
        let page = BASE.plus(3);
        match way {
            0 => assert!(!migration.set_destination(page, own), "a block"),
            1 => assert!(!migration.set_destination(BASE.plus(5), own), "of no page"),
            2 => {
                migration.skip(page);
                assert!(!migration.set_destination(page, own), "of one that stays");
            }
            3 => {
                let other = world.space.alloc_device_pages(0, 0).unwrap();
                assert!(migration.set_destination(page, other));
                assert!(!migration.set_destination(page, own), "it has one");
                migration.skip(page);
            }
            4 => {
                assert!(migration.set_destination(page, own));
                migration.skip(page);
            }
            5 => {
                assert!(migration.set_destination(page, own));
                let error = uhmm_core::device::CopyInError::Full;
                world.device.fail_copy_in_after(0, error);
            }
            _ => assert!(migration.set_destination(page, own)),
        }
        if way == 6 {
            // Dropped with the copy made.
            drop(migration.copy());
        } else {
            assert_eq!(migration.copy().pages().finalize().migrated, 0, "way {way}");
        }
        world.check_invariants();
        assert_eq!(world.space.stats().devices[0].pages.get(), 0, "way {way}");
        assert_eq!(world.device.stored(), [], "way {way}");
        world.check_all();
    }
}

#[test]
fn a_page_of_another_space_is_no_destination() {
    let (mine, other) = (World::new(BUDGET), World::new(BUDGET));
    mine.write(3);
    let foreign = other.space.alloc_device_pages(0, 0).unwrap();
    let mut migration = mine.space.migrate_vma(&system(3, 1)).unwrap();
    assert!(!migration.set_destination(BASE.plus(3), foreign));
    assert_eq!(migration.copy().pages().finalize().left, 1);
    mine.check_all();
    mine.check_invariants();
    other.check_invariants();
}

#[test]
fn a_migration_to_no_device_is_an_error() {
    let world = World::new(BUDGET);
    world.write(3);
    let mut migration = world.space.migrate_vma(&system(3, 1)).unwrap();
    for device in [1, 7, 8, 255] {
        assert_eq!(migration.allocate(device), Err(AllocError::NoSuchDevice));
    }
    assert_eq!(migration.allocate(0), Ok(1), "another device may do");
    assert_eq!(migration.copy().pages().finalize().migrated, 1);
    world.check_all();
    world.check_invariants();
}

/// What a program has mapped is held by a driver too, and unmapped: nobody is handed the page before the
/// driver lets go.
#[test]
fn r1_a_mapped_page_that_is_held_is_not_handed_out_again() {
    let space = with(MemoryType::Generic);
    let first = map(&space, 0, 0);
    write(&space, 0, 5);
    let held = space.hold_device_page(
        first,
        Hold {
            longterm: true,
            peer: false,
        },
    );
    discard(&space, 0, 1);
    assert_eq!(read(&space, 0), 0);
    let again = space.alloc_device_page_at(first).err();
    assert_eq!(again, Some(AllocError::Full));
    space.check_invariants_but(1);
    drop(held);
    assert!(space.alloc_device_page_at(first).is_ok());
    check(&space);
}

/// Everybody at once: drivers that take, hold and drop, and a program that comes and goes.
#[test]
fn r4_drivers_and_a_program_at_once_use_no_page_twice() {
    let space = space(4 * BUDGET, vec![device(MemoryType::Generic)]);
    thread::scope(|scope| {
        for thread in 0..3usize {
            let space = &space;
            scope.spawn(move || {
                crate::world::or_abort(|| {
                    let mut rng = uhmm_testkit::Rng::new(thread as u64);
                    let place = thread * 64;
                    for round in 0..600 {
                        let order = rng.below(5) as u32;
                        let Ok(block) = space.alloc_device_pages(0, order) else {
                            continue;
                        };
                        let first = block.first();
                        let held = space.hold_device_page(first, Hold::default()).unwrap();
                        if rng.one_in(3) {
                            drop(block);
                            continue;
                        }
                        space.map_device_pages(block, BASE.plus(place)).unwrap();
                        for i in 0..1 << order {
                            let byte = (thread * 80 + round % 80) as u8;
                            assert_eq!(read(space, place + i), 0);
                            write(space, place + i, byte);
                        }
                        for i in 0..1 << order {
                            let byte = (thread * 80 + round % 80) as u8;
                            assert_eq!(read(space, place + i), byte);
                        }
                        discard(space, place, 1 << order);
                        drop(held);
                    }
                });
            });
        }
    });
    check(&space);
    assert_eq!(space.stats().devices[0].pages.get(), 0);
}
