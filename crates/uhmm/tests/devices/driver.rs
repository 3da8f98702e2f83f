//! A driver takes a migration through its phases itself.

use crate::child::{End, child, wait};
use crate::{FIRST, SECOND, World, alone};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm::memory::Protection;
use uhmm::migrate::MigrateError;
use uhmm::migrate::{Destination, MigrateVma, Select, Source};
use uhmm::{Migrated, Place};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::device::Owner;
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{self, Coherent, Private};
use uhmm_core::migrate::From as Origin;

const PAGES: usize = 24;

/// All pages of a world, whatever they are and whose.
pub fn everything(world: &World) -> MigrateVma {
    part(world, 0..world.pages())
}

fn part(world: &World, pages: Range<usize>) -> MigrateVma {
    world.rest();
    part_now(world, pages)
}

/// All pages of a world, some of which are in other hands.
fn everything_now(world: &World) -> MigrateVma {
    part_now(world, 0..world.pages())
}

fn part_now(world: &World, pages: Range<usize>) -> MigrateVma {
    MigrateVma {
        address: world.at(pages.start) as usize,
        len: pages.len() * PAGE_SIZE,
        select: Select::SYSTEM | Select::DEVICE_PRIVATE | Select::DEVICE_COHERENT,
        owner: None,
        except: None,
        fault_page: None,
    }
}

/// Pages 0 to 8 were never touched, 8 to 16 are in RAM, the rest on the first device.
fn each_kind(memory: MemoryType) -> World {
    let world = World::within(crate::space_with(&[memory, Private, Coherent]), PAGES);
    (8..PAGES).rev().for_each(|page| world.write(page));
    let done = world.migrate(16..PAGES, Place::Device(FIRST));
    assert_eq!(done.migrated, 8);
    world
}

fn states(world: &World) -> Vec<State> {
    (0..PAGES)
        .map(|page| match world.state(page) {
            State::System { duplicate, .. } => State::System {
                referenced: false,
                duplicate,
            },
            state => state,
        })
        .collect()
}

#[test]
fn pages_go_to_the_destinations_that_the_driver_has_chosen() {
    let _alone = alone();
    for to in [SECOND, uhmm::DeviceId(2)] {
        let world = each_kind(Private);
        let mut migration = world.space.migrate_vma(&everything(&world)).unwrap();
        assert_eq!(migration.selected().count(), PAGES);
        let mut chosen = Vec::new();
        for page in (0..PAGES).rev() {
            let given = world.space.alloc_device_pages(to, 0).unwrap();
            chosen.insert(0, given.first());
            assert!(migration.set_destination(world.number(page), given));
        }
        for (i, page) in migration.selected().enumerate() {
            let from = match i {
                0..8 => Origin::Hole,
                8..16 => Origin::System,
                _ => page.source.from,
            };
            assert_eq!(page.page, world.number(i));
            let (migrate, write) = (true, true);
            let source = Source {
                from,
                migrate,
                write,
            };
            assert_eq!(page.source, source);
            assert_eq!(page.destination, Some(Destination::Device(chosen[i])));
        }
        // It has one already, or is not in this migration.
        let spare = world.space.alloc_device_pages(to, 0).unwrap();
        assert!(!migration.set_destination(world.number(0), spare));
        let spare = world.space.alloc_device_pages(to, 0).unwrap();
        assert!(!migration.set_destination(world.number(0).plus(PAGES), spare));
        let done = migration.copy().pages().finalize();
        let all = Migrated {
            migrated: PAGES,
            left: 0,
        };
        assert_eq!(done, all);
        for (page, &at) in chosen.iter().enumerate() {
            assert_eq!(world.state(page).device_page(), Some(at));
        }
        crate::wait_until("what was not needed is free", || {
            world.device(to).pages.get() == PAGES as u64
        });
        assert_eq!(world.device(FIRST).pages.get(), 0);
        world.check_all();
        world.send(Place::Ram);
        world.check_all();
        world.wait_empty(to);
    }
}

/// R5: whenever it is dropped, everything is what it was.
#[test]
fn dropping_it_in_any_phase_puts_everything_back() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        for target in [Place::Ram, Place::Device(SECOND), Place::Device(FIRST)] {
            for phase in 0..3 {
                let world = each_kind(memory);
                let before = states(&world);
                let mut migration = world.space.migrate_vma(&everything(&world)).unwrap();
                match target {
                    Place::Ram => migration.to_system(),
                    Place::Device(to) => assert_eq!(migration.allocate(to.0), Ok(PAGES)),
                }
                match phase {
                    0 => drop(migration),
                    1 => drop(migration.copy()),
                    _ => drop(migration.copy().pages()),
                }
                assert_eq!(states(&world), before, "{memory:?}, {target:?}, {phase}");
                world.check_all();
                world.write_all();
                world.check_all();
                world.send(Place::Device(SECOND));
                crate::wait_until("no page is left over", || {
                    let pages = |device| world.device(device).pages.get();
                    (pages(FIRST), pages(SECOND)) == (0, PAGES as u64)
                });
                world.check_all();
            }
        }
    }
}

#[test]
fn what_is_skipped_stays() {
    let _alone = alone();
    let world = each_kind(Private);
    let before = states(&world);
    let mut migration = world.space.migrate_vma(&everything(&world)).unwrap();
    assert_eq!(migration.skip_if(|page| page.page.0 % 2 == 0), PAGES / 2);
    migration.skip(world.number(1));
    let odd = world.number(0).0 as usize % 2;
    migration.allocate(SECOND.0).unwrap();
    let done = migration.copy().pages().finalize();
    assert_eq!(done.migrated + done.left, PAGES);
    assert!(done.migrated + 1 >= PAGES / 2);
    for (page, was) in before.iter().enumerate() {
        let skipped = page % 2 == odd || page == 1;
        assert_eq!(world.state(page) == *was || skipped, skipped, "{page}");
    }
    world.check_all();
}

/// R6: by kind, and by owner.
#[test]
fn only_what_is_selected_is_taken() {
    let _alone = alone();
    let world = each_kind(Private);
    let own = world.space.internals().owner(FIRST.0);
    let count = |select, owner| {
        let args = MigrateVma {
            select,
            owner,
            ..everything(&world)
        };
        let migration = world.space.migrate_vma(&args).unwrap();
        migration.selected().count()
    };
    let before = states(&world);
    assert_eq!(count(Select::SYSTEM, None), 16);
    assert_eq!(count(Select::DEVICE_PRIVATE, None), 8);
    assert_eq!(count(Select::DEVICE_PRIVATE, own), 8);
    assert_eq!(count(Select::DEVICE_PRIVATE, Some(Owner(77))), 0);
    assert_eq!(count(Select::DEVICE_COHERENT, None), 0);
    assert_eq!(count(Select::SYSTEM, Some(Owner(77))), 16);
    assert_eq!(states(&world), before);
    world.check_all();
}

#[test]
fn a_touch_waits_for_the_end() {
    let _alone = alone();
    for to in [SECOND, uhmm::DeviceId(2)] {
        let world = each_kind(Private);
        let mut migration = world.space.migrate_vma(&everything(&world)).unwrap();
        let touched = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..PAGES).for_each(|page| world.write(page));
                touched.store(true, SeqCst);
            });
            thread::sleep(Duration::from_millis(30));
            migration.allocate(to.0).unwrap();
            let migration = migration.copy();
            thread::sleep(Duration::from_millis(10));
            let migration = migration.pages();
            assert!(!touched.load(SeqCst));
            assert_eq!(migration.finalize().migrated, PAGES);
        });
        world.check_all();
    }
}

/// Pages that another has in hand are missed by a driver, who is told so; a request waits for them.
#[test]
fn pages_in_other_hands_are_counted_and_a_request_waits_for_them() {
    let _alone = alone();
    let world = each_kind(Private);
    let other = world.space.migrate_vma(&part(&world, 10..20)).unwrap();
    let migration = world.space.migrate_vma(&everything_now(&world)).unwrap();
    let missed: Vec<_> = (10..20).map(|page| world.number(page)).collect();
    assert_eq!(migration.missed(), missed);
    let done = migration.copy().pages().finalize();
    assert_eq!((done.migrated, done.left), (0, PAGES));
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            drop(other);
        });
        let MigrateVma { address, len, .. } = everything_now(&world);
        let done = world.space.migrate(address, len, Place::Device(SECOND));
        assert_eq!(done.unwrap().migrated, PAGES);
    });
    assert_eq!(world.device(SECOND).pages.get(), PAGES as u64);
    world.check_all();
}

/// So does a driver that says so, and is called again for them.
#[test]
fn a_driver_is_called_again_for_pages_that_were_in_other_hands() {
    let _alone = alone();
    let world = each_kind(Private);
    let other = world.space.migrate_vma(&part(&world, 10..20)).unwrap();
    let mut collected = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            drop(other);
        });
        let args = everything_now(&world);
        let done = world.space.migrate_vma_with(&args, |mut migration| {
            collected.push(migration.selected().count());
            migration.allocate(SECOND.0).unwrap();
            migration.copy().pages().finalize()
        });
        assert_eq!(
            done,
            Ok(Migrated {
                migrated: PAGES,
                left: 0
            })
        );
    });
    assert_eq!(collected, [PAGES - 10, 10]);
    assert_eq!(world.device(SECOND).pages.get(), PAGES as u64);
    world.check_all();
    let hole = MigrateVma {
        len: world.pages() * PAGE_SIZE + PAGE_SIZE,
        ..everything(&world)
    };
    let refused = world
        .space
        .migrate_vma_with(&hole, |_| panic!("nothing is to be done"));
    assert!(
        matches!(refused, Err(MigrateError::Range(_))),
        "{refused:?}"
    );
}

/// A full device takes what it has room for; nothing is lost.
#[test]
fn a_device_with_little_room_takes_a_part() {
    let _alone = alone();
    let small = uhmm::device::DeviceInfo::new("small", 10);
    for info in [small.clone(), small.memory(Coherent)] {
        let device = crate::TestDevice::boxed(info).0;
        let world = World::within(crate::space(crate::BUDGET, vec![device]), 1500);
        (0..PAGES).for_each(|page| world.write(page));
        let done = world.migrate(0..PAGES, Place::Device(FIRST));
        assert_eq!((done.migrated, done.left), (10, PAGES - 10));
        assert_eq!(world.device(FIRST).pages.get(), 10);
        // Its pages are of that very request, which pushes none of its own out; another one may.
        let other = world.migrate(600..601, Place::Device(FIRST));
        assert_eq!((other.migrated, other.left), (1, 0));
        assert_eq!(world.device(FIRST).pages.get(), 10);
        (0..PAGES).for_each(|page| world.check(page));
        world.migrate(0..1500, Place::Ram);
        // In batches, of which the last finds no room.
        let done = world.migrate(0..1500, Place::Device(FIRST));
        assert_eq!(done.migrated, 10);
        world.check_all();
    }
}

/// A driver that chooses itself what leaves a full device takes only what is free.
#[test]
fn what_is_free_is_taken_and_nothing_leaves_for_more() {
    let _alone = alone();
    let small = uhmm::device::DeviceInfo::new("small", 10);
    for info in [small.clone(), small.memory(Coherent)] {
        let device = crate::TestDevice::boxed(info).0;
        let world = World::within(crate::space(crate::BUDGET, vec![device]), PAGES);
        (0..PAGES).for_each(|page| world.write(page));
        let send = |pages| {
            let mut given = Ok(0);
            let done = world
                .space
                .migrate_vma_with(&part(&world, pages), |mut migration| {
                    given = migration.allocate_free(FIRST.0);
                    migration.copy().pages().finalize()
                });
            (given, done.unwrap().migrated)
        };
        assert_eq!(send(0..6), (Ok(6), 6));
        assert_eq!(send(6..PAGES), (Ok(4), 4));
        // Another request would push these out.
        thread::sleep(Duration::from_millis(50));
        assert_eq!(send(10..PAGES), (Err(uhmm::AllocError::Full), 0));
        assert_eq!(world.device(FIRST).pages.get(), 10);
        (0..PAGES).for_each(|page| world.check(page));
    }
}

/// Pages of another space are nobody's destination here.
#[test]
fn pages_of_another_space_are_refused() {
    let _alone = alone();
    let (world, other) = (each_kind(Private), each_kind(Private));
    let mut migration = world.space.migrate_vma(&everything(&world)).unwrap();
    let foreign = other.space.alloc_device_pages(SECOND, 0).unwrap();
    assert!(!migration.set_destination(world.number(0), foreign));
    drop(migration);
    other.wait_empty(SECOND);
    world.wait_empty(SECOND);
    world.check_all();
}

/// Pages that the program may only read go, and come back so.
#[test]
fn read_only_pages_go_and_come_back_read_only() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], PAGES);
        (4..PAGES).for_each(|page| world.write(page));
        world.protect(0..PAGES, Protection::READ);
        let migration = world.space.migrate_vma(&everything(&world)).unwrap();
        let written: Vec<_> = migration.selected().skip(4).collect();
        assert!(written.iter().all(|page| !page.source.write));
        drop(migration);
        world.check_all();
        let write = || {
            world.poke(9);
            0
        };
        for _ in 0..2 {
            let to = Place::Device(FIRST);
            let done = world.migrate(0..PAGES, to);
            if memory == Private {
                assert_eq!(done.migrated, PAGES);
            }
            assert_eq!(wait(child(write)), End::Signal(libc::SIGSEGV));
            world.check_all();
            assert_eq!(wait(child(write)), End::Signal(libc::SIGSEGV));
            world.send(Place::Ram);
        }
        world.protect(0..PAGES, Protection::READ | Protection::WRITE);
        world.check_all();
        world.write_all();
        world.check_all();
        world.wait_empty(FIRST);
    }
}

/// R8: by device page, with no mapping given; R3: the fault page.
#[test]
fn a_device_range_comes_home() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], PAGES);
        world.write_all();
        world.send(Place::Device(FIRST));
        let at = |page: usize| world.state(page).device_page().unwrap();
        let first = (0..PAGES).map(|page| at(page).page).min().unwrap();
        let migrate = |len| world.space.migrate_device_range(FIRST, first, len);
        let mut migration = migrate(8).unwrap();
        assert_eq!(migration.selected().count(), 8);
        migration.to_system();
        assert_eq!(migration.copy().pages().finalize().migrated, 8);
        assert_eq!(world.device(FIRST).pages.get() as usize, PAGES - 8);
        assert!(matches!(migrate(1 << 20), Err(MigrateError::NoSuchDevice)));
        let none = world.space.migrate_device_range(SECOND, first, 1);
        assert!(matches!(none, Err(MigrateError::NoSuchDevice)));
        // A page on which the driver serves a fault: it holds it, and says so.
        let held = world
            .space
            .hold_device_page(at(PAGES - 1), uhmm::Hold::default());
        let held = held.unwrap();
        let page = PAGES - 1;
        let mut args = part(&world, page..page + 1);
        let mut run = || {
            let mut migration = world.space.migrate_vma(&args).unwrap();
            migration.to_system();
            let done = migration.copy().pages().finalize().migrated;
            args.fault_page = Some((FIRST, held.at().page));
            done
        };
        assert_eq!(run(), 0, "held by somebody");
        assert_eq!(run(), 1, "held by the fault that is served");
        drop(held);
        world.check_all();
    }
}
