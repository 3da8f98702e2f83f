//! R9 for memory that fails: what is lost is a SIGBUS at that page and at no other, what a device still
//! has is not lost, and bad memory is not used again.

use crate::types::{CAPACITY, MAPPED, check, discard, map, on, range, read, with, write};
use crate::world::{BASE, BUDGET, World, or_abort};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::AllocError;
use uhmm_core::addr::{DeviceAddr, DevicePage, PageNo};
use uhmm_core::device::CopyInError;
use uhmm_core::entry::State;
use uhmm_core::failure::{Failure, FailureError};
use uhmm_core::fault::Scratch;
use uhmm_core::hints::Hints;
use uhmm_core::hold::Hold;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::{MigrateVma, Select};
use uhmm_sim::Fault;

fn fail(world: &World, page: usize) -> Result<Failure, FailureError> {
    world.space.memory_failure(BASE.plus(page))
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

/// Pages 0 to 4 on the device, 4 to 8 in limbo, 8 to 12 mapped, 12 to 16 in RAM and on the device.
fn in_each_state() -> World {
    let world = World::pushed_out(16);
    world.write_all(4..8);
    world.device.fail_copy_in_after(0, CopyInError::Full);
    world.push_out();
    world.write_all(8..12);
    let inside = world.space.inside().unwrap();
    inside.set_hints(range(12, 4), Hints::READ_MOSTLY).unwrap();
    drop(inside);
    (12..16).rev().for_each(|page| world.check(page));
    world.device.heal();
    for page in 0..16 {
        let state = world.state(page);
        let right = match page / 4 {
            0 => matches!(state, State::Private(_)),
            1 => matches!(state, State::Limbo(_)),
            2 => matches!(
                state,
                State::System {
                    duplicate: None,
                    ..
                }
            ),
            _ => matches!(
                state,
                State::System {
                    duplicate: Some(_),
                    ..
                }
            ),
        };
        assert!(right, "page {page} is {state:?}");
    }
    world
}

/// All pages but `page` are as they were, and it is lost until it is given up.
fn is_lost(world: &World, page: usize) {
    for _ in 0..2 {
        assert_eq!(world.state(page), State::Poisoned);
        assert_eq!(world.try_check(page), Err(Fault::Poisoned));
        assert_eq!(world.try_write(page), Err(Fault::Poisoned));
        for other in (0..16).filter(|&other| other != page) {
            world.check(other);
        }
        world.check_invariants();
        // Whatever reclaim does.
        world.push_out();
    }
    assert_eq!(world.space.stats().poisoned_pages.get(), 1);
    assert_eq!(fail(world, page), Ok(Failure::Poisoned), "it still is");
    assert_eq!(world.space.stats().poisoned_pages.get(), 1);
    world.discard(page, 1);
    world.check(page);
    world.write(page);
    world.check_all();
    world.push_out();
    world.check_invariants();
}

#[test]
fn r9_a_page_whose_memory_fails_is_lost_and_no_other() {
    for page in [1, 5, 9] {
        let world = in_each_state();
        assert_eq!(fail(&world, page), Ok(Failure::Poisoned), "page {page}");
        world.check_invariants();
        is_lost(&world, page);
    }
}

#[test]
fn r9_a_page_with_a_duplicate_is_not_lost() {
    let world = in_each_state();
    for page in 12..16 {
        assert_eq!(fail(&world, page), Ok(Failure::Recovered));
        assert!(matches!(world.state(page), State::Private(_)));
        world.check_invariants();
    }
    assert_eq!(world.space.stats().poisoned_pages.get(), 0);
    assert_eq!(world.space.stats().duplicate_pages.get(), 0);
    world.check_all();
    world.check_invariants();
}

#[test]
fn a_failure_of_what_is_not_there_is_an_error() {
    let world = World::new(BUDGET);
    assert_eq!(fail(&world, 3), Err(FailureError::NothingThere));
    assert_eq!(fail(&world, BUDGET), Err(FailureError::NoSuchPage));
    let before = world.space.memory_failure(PageNo(BASE.0 - 1));
    assert_eq!(before, Err(FailureError::NoSuchPage));
    assert_eq!(world.state(3), State::None);
    world.check_invariants();
}

/// Pinned or shared with a child, lost is lost.
#[test]
fn r9_a_pinned_or_shared_page_that_fails_is_lost_too() {
    for pinned in [true, false] {
        let world = in_each_state();
        if pinned {
            assert!(world.mmu().pin(BASE.plus(9)));
        } else {
            world.mmu().share(range(8, 4));
        }
        assert_eq!(fail(&world, 9), Ok(Failure::Poisoned));
        is_lost(&world, 9);
    }
}

#[test]
fn r9_a_page_in_flight_fails_when_it_has_come_to_rest() {
    let world = in_each_state();
    let migration = world.space.migrate_vma(&system(9, 1)).unwrap();
    let begin = Instant::now();
    assert_eq!(fail(&world, 9), Err(FailureError::InFlight));
    assert!(begin.elapsed() < Duration::from_secs(5), "bounded");
    thread::scope(|scope| {
        let failing = scope.spawn(|| fail(&world, 9));
        thread::yield_now();
        drop(migration);
        assert_eq!(failing.join().unwrap(), Ok(Failure::Poisoned));
    });
    is_lost(&world, 9);
}

/// A reader sees what was written, or the failure: never zeros.
#[test]
fn r9_nobody_reads_anything_else_while_a_page_fails() {
    for round in 0..40 {
        let world = in_each_state();
        let page = [1, 5, 9][round % 3];
        let started = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                or_abort(|| {
                    // Every read compares all bytes.
                    while world.try_check(page).is_ok() {
                        started.store(true, SeqCst);
                    }
                });
            });
            while !started.load(SeqCst) {
                thread::yield_now();
            }
            assert_eq!(fail(&world, page), Ok(Failure::Poisoned));
            reader.join().unwrap();
        });
        assert_eq!(world.try_check(page), Err(Fault::Poisoned));
        world.check_invariants();
    }
}

#[test]
fn r9_a_mapped_device_page_that_fails_is_lost_and_not_used_again() {
    for memory in MAPPED {
        let space = with(memory);
        let first = map(&space, 0, 2);
        (0..4).for_each(|page| write(&space, page, page as u8 + 1));
        let failed = space.memory_failure(BASE.plus(1));
        assert_eq!(failed, Ok(Failure::Poisoned), "{memory:?}");
        assert_eq!(space.state(BASE.plus(1)), State::Poisoned);
        assert_eq!(
            space.mmu().touch_read(BASE.plus(1)).err(),
            Some(Fault::Poisoned)
        );
        let failed = space.device_memory_failure(first.plus(2));
        assert_eq!(failed, Ok(Failure::Poisoned), "{memory:?}");
        assert_eq!(
            space.mmu().touch_read(BASE.plus(2)).err(),
            Some(Fault::Poisoned)
        );
        assert_eq!((read(&space, 0), read(&space, 3)), (1, 4));
        check(&space);
        discard(&space, 0, 4);
        assert_eq!(read(&space, 1), 0);
        never_again(&space, &[first.plus(1).page, first.plus(2).page]);
    }
}

/// These pages are not handed out, by number or otherwise, and all others are.
fn never_again(space: &crate::world::SimSpace, bad: &[DevicePage]) {
    for &page in bad {
        let at = DeviceAddr { device: 0, page };
        let given = space.alloc_device_page_at(at).err();
        assert_eq!(given, Some(AllocError::Full), "{page:?}");
        // And a second report of it changes nothing, at once.
        let begin = Instant::now();
        assert_eq!(space.device_memory_failure(at), Ok(Failure::Retired));
        assert!(begin.elapsed() < Duration::from_millis(500));
    }
    let pages = || std::iter::from_fn(|| space.alloc_device_pages(0, 0).ok());
    let all: Vec<_> = pages().collect();
    assert!(all.iter().all(|page| !bad.contains(&page.first().page)));
    let in_use = space.stats().devices[0].pages.get() as usize;
    space.check_invariants_but(all.len());
    drop(all);
    check(space);
    let rest: Vec<_> = pages().collect();
    let used = space.stats().devices[0].pages.get() as usize;
    assert_eq!((rest.len() <= CAPACITY - bad.len(), used), (true, in_use));
}

#[test]
fn a_free_device_page_that_fails_is_retired() {
    let space = with(MemoryType::Private);
    let first = space.alloc_device_pages(0, 0).unwrap().first();
    // Never used, used and freed, and freed but still on its way.
    for page in [first.page.0, 5, 700, CAPACITY as u32 - 1] {
        let failed = space.device_memory_failure(on(page));
        assert_eq!(failed, Ok(Failure::Retired), "page {page}");
    }
    check(&space);
    let bad = [first.page.0, 5, 700, CAPACITY as u32 - 1].map(DevicePage);
    never_again(&space, &bad);
    let all = std::iter::from_fn(|| space.alloc_device_pages(0, 0).ok());
    assert_eq!(all.collect::<Vec<_>>().len(), CAPACITY - bad.len());
}

#[test]
fn a_page_that_a_driver_has_is_retired_once_it_lets_go() {
    let space = with(MemoryType::Coherent);
    let block = space.alloc_device_pages(0, 1).unwrap();
    let bad = block.first().plus(1);
    assert_eq!(space.device_memory_failure(bad), Ok(Failure::Retired));
    space.check_invariants_but(2);
    drop(block);
    check(&space);
    never_again(&space, &[bad.page]);
}

/// The program has let go of the page, and a driver has not.
#[test]
fn a_page_that_only_a_holder_has_is_retired_too() {
    let world = World::pushed_out(4);
    let State::Private(at) = world.state(2) else {
        unreachable!()
    };
    let held = world.space.hold_device_page(at, Hold::default()).unwrap();
    world.discard(2, 1);
    world.write(2);
    let begin = Instant::now();
    let failed = world.space.device_memory_failure(at);
    assert_eq!(failed, Ok(Failure::Retired));
    assert!(begin.elapsed() < Duration::from_millis(500));
    drop(held);
    world.check_all();
    world.check_invariants();
    let given = world.space.alloc_device_page_at(at).err();
    assert_eq!(given, Some(AllocError::Full));
}

#[test]
fn r9_a_private_page_that_fails_on_its_device_is_lost() {
    let world = in_each_state();
    let State::Private(at) = world.state(1) else {
        unreachable!()
    };
    let failed = world.space.device_memory_failure(at);
    assert_eq!(failed, Ok(Failure::Poisoned));
    assert!(
        !world.device.stored().contains(&at.page),
        "its driver knows"
    );
    is_lost(&world, 1);
    let given = world.space.alloc_device_page_at(at).err();
    assert_eq!(given, Some(AllocError::Full));
}

/// The same for one that is held: the holder keeps the reference, and nothing else.
#[test]
fn r9_a_held_page_that_fails_is_lost_and_stays_until_it_is_let_go() {
    let world = in_each_state();
    let State::Private(at) = world.state(1) else {
        unreachable!()
    };
    let held = world.space.hold_device_page(at, Hold::default()).unwrap();
    assert_eq!(fail(&world, 1), Ok(Failure::Poisoned));
    world.space.check_invariants_but(1);
    assert!(world.device.stored().contains(&at.page));
    drop(held);
    world.space.reclaim(&mut Scratch::default());
    assert!(!world.device.stored().contains(&at.page));
    is_lost(&world, 1);
    let given = world.space.alloc_device_page_at(at).err();
    assert_eq!(given, Some(AllocError::Full));
}

#[test]
fn r9_a_duplicate_that_fails_loses_nothing() {
    let world = in_each_state();
    let State::System {
        duplicate: Some(at),
        ..
    } = world.state(13)
    else {
        unreachable!()
    };
    let failed = world.space.device_memory_failure(at);
    assert_eq!(failed, Ok(Failure::Recovered));
    assert!(matches!(
        world.state(13),
        State::System {
            duplicate: None,
            ..
        }
    ));
    assert_eq!(world.try_write(13), Ok(0), "nobody tracks it any more");
    world.check_all();
    world.push_out();
    assert_ne!(world.state(13), State::Private(at));
    world.check_all();
    world.check_invariants();
}

#[test]
fn a_failure_of_no_device_page_is_an_error() {
    use uhmm_core::device::DeviceInfo;
    let space = with(MemoryType::Private);
    let fail = |device, page| {
        let page = DevicePage(page);
        space.device_memory_failure(DeviceAddr { device, page })
    };
    for device in [1, 7, 8, 255] {
        assert_eq!(fail(device, 0), Err(FailureError::NoSuchPage));
    }
    for page in [CAPACITY as u32, u32::MAX] {
        assert_eq!(fail(0, page), Err(FailureError::NoSuchPage));
    }
    // A chunk that there is not has no memory.
    struct Large;
    impl uhmm_core::device::Device for Large {
        fn info(&self) -> DeviceInfo {
            DeviceInfo::new("large", 4096).chunk_pages(512)
        }
        fn copy_in(&self, _: DevicePage, _: &uhmm_core::addr::PageData) -> Result<(), CopyInError> {
            Ok(())
        }
        fn copy_out(
            &self,
            _: DevicePage,
            _: &mut uhmm_core::addr::PageData,
        ) -> Result<(), uhmm_core::device::CopyOutError> {
            Ok(())
        }
        fn free(&self, _: DevicePage) {}
        fn stored_bytes(&self) -> u64 {
            0
        }
    }
    assert_eq!(space.add_device(Box::new(Large)), Ok(1));
    let begin = Instant::now();
    assert_eq!(fail(1, 3000), Err(FailureError::NothingThere));
    assert_eq!(fail(1, 30), Ok(Failure::Retired));
    let mut scratch = Scratch::default();
    let removed = space.remove_chunk(1, 0, Duration::from_secs(9), &mut scratch);
    assert_eq!(removed, Ok(()));
    assert_eq!(fail(1, 31), Err(FailureError::NothingThere));
    assert!(begin.elapsed() < Duration::from_millis(500));
    check(&space);
}

/// The destination fails while the page is on its way there: the page stays where it was.
#[test]
fn r9_a_page_does_not_go_to_memory_that_has_failed() {
    let world = World::new(BUDGET);
    world.write(3);
    let own = world.space.alloc_device_page_at(on(9)).unwrap();
    let mut migration = world.space.migrate_vma(&system(3, 1)).unwrap();
    assert!(migration.set_destination(BASE.plus(3), own));
    let migration = migration.copy();
    let failed = world.space.device_memory_failure(on(9));
    assert_eq!(failed, Ok(Failure::Retired));
    let done = migration.pages().finalize();
    assert_eq!((done.migrated, done.left), (0, 1));
    assert!(matches!(world.state(3), State::System { .. }));
    assert_eq!(world.device.stored(), []);
    world.check_all();
    world.check_invariants();
    let given = world.space.alloc_device_page_at(on(9)).err();
    assert_eq!(given, Some(AllocError::Full));
}

/// At once, with everything else that happens to pages.
#[test]
fn r9_failures_at_random_lose_just_what_failed() {
    use uhmm_testkit::Rng;
    for seed in 0..3 {
        let world = World::new(4 * BUDGET);
        let inside = world.space.inside().unwrap();
        inside
            .set_hints(range(0, BUDGET), Hints::READ_MOSTLY)
            .unwrap();
        drop(inside);
        crate::world::with_reclaimer(&world.space, || {
            let mut rng = Rng::new(seed);
            let mut lost = vec![false; 2 * BUDGET];
            for _ in 0..8_000 {
                let page = rng.below(2 * BUDGET as u64) as usize;
                if rng.one_in(64) {
                    match fail(&world, page) {
                        Ok(Failure::Poisoned) => lost[page] = true,
                        Ok(Failure::Recovered) => {}
                        Err(FailureError::NothingThere) => {}
                        other => panic!("{other:?}"),
                    }
                }
                let touched = if rng.one_in(4) {
                    world.try_write(page)
                } else {
                    world.try_check(page)
                };
                let expected = lost[page].then_some(Fault::Poisoned);
                assert_eq!(touched.err(), expected, "seed {seed}, page {page}");
                if lost[page] && rng.one_in(2) {
                    world.discard(page, 1);
                    lost[page] = false;
                }
            }
            let left = lost.iter().filter(|&&lost| lost).count();
            let usage = world.space.usage(range(0, 2 * BUDGET));
            assert_eq!(usage.poisoned, left);
            (0..2 * BUDGET)
                .filter(|&page| lost[page])
                .for_each(|page| world.discard(page, 1));
        });
        world.check_all();
        world.check_invariants();
    }
}
