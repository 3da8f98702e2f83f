//! R11 and R12: nothing moves, drops or unmaps what is pinned, and every pin is given back.

use crate::duplicates::{duplicate, read_again};
use crate::hook::Op;
use crate::pins::{AT_ONCE, LONG_WRITE, nothing_is_pinned};
use crate::rig::{
    COHERENT, DEVICE_COHERENT, DEVICE_PRIVATE, PRIVATE, SYSTEM, Three, WATCHED, number,
};
use crate::types::{self, on, range};
use crate::watcher::{LONG, Listener, READ, WRITE, alone, device, pin};
use crate::world::{BUDGET, SimSpace, World, or_abort, share, with_reclaimer};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::entry::State;
use uhmm_core::error::RangeError;
use uhmm_core::evict::{RemoveError, StillInUse};
use uhmm_core::failure::Failure;
use uhmm_core::fault::Scratch;
use uhmm_core::memory_type::MemoryType::Private;
use uhmm_core::pin::{PinError, PinFlags};
use uhmm_sim::Fault;
use uhmm_testkit::Rng;

const NOW: Duration = Duration::from_millis(5);

/// Nothing moves, drops or unmaps a pinned page, nor takes it from the program.
#[test]
fn r11_a_pinned_page_stays_under_everything() {
    let three = Three::new(4 * BUDGET);
    let space = three.space.clone();
    let mut scratch = Scratch::default();
    three.write_all(0..32);
    three.to_device(16, 8, DEVICE_COHERENT);
    // Pages 4 to 8 in RAM, and 20 to 24 on a device that the CPU maps.
    let guards = [pin(&space, 4, 4, LONG_WRITE), pin(&space, 20, 4, READ)];
    let guards = guards.map(Result::unwrap);
    let pinned = [4, 5, 6, 7, 20, 21, 22, 23];
    let was = pinned.map(|page| three.state(page).device_page());
    let stay = |what: &str| {
        let now = pinned.map(|page| three.state(page).device_page());
        assert_eq!(now, was, "{what}");
        for page in pinned {
            assert!(three.mmu().is_present(number(page)), "{what}: page {page}");
            assert_eq!(
                three.try_write(page),
                Ok(0),
                "{what}: page {page} is touched without a fault"
            );
        }
    };
    stay("nothing");
    assert_eq!(three.push_out(), 4);
    stay("reclaim");
    for device in [DEVICE_PRIVATE, DEVICE_COHERENT] {
        three.to_device(0, 32, device);
        stay("a migration to a device");
    }
    three.to_system(0, 32);
    stay("a migration to RAM");
    let mut migration = space
        .migrate_device_range(DEVICE_COHERENT, on(0).page, 64)
        .unwrap();
    migration.to_system();
    migration.copy().pages().finalize();
    stay("a migration by device pages");
    let held = |result: Result<(), RemoveError>| match result {
        Err(RemoveError::StillInUse(StillInUse {
            held,
            in_space,
            mapped,
            ..
        })) => (held, in_space, mapped),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        held(space.evict_device(DEVICE_COHERENT, NOW, &mut scratch)),
        (4, 0, 0)
    );
    assert_eq!(
        held(space.evict_chunk(DEVICE_COHERENT, 0, NOW, &mut scratch)),
        (4, 0, 0)
    );
    assert_eq!(
        held(space.suspend_device(DEVICE_COHERENT, NOW, &mut scratch)),
        (4, 0, 0)
    );
    stay("a suspension");
    space.resume_device(DEVICE_COHERENT);
    {
        let inside = space.inside().unwrap();
        for (first, len) in [(4, 1), (0, 8), (7, 20), (20, 1), (23, 1), (0, 32)] {
            assert_eq!(inside.discard(range(first, len)), Err(RangeError::Pinned));
            assert_eq!(
                inside.check_unpinned(range(first, len)),
                Err(RangeError::Pinned)
            );
            let moved = inside.relocate(range(first, len), number(100));
            assert_eq!(moved, Err(RangeError::Pinned));
        }
        assert_eq!(inside.check_unpinned(range(8, 12)), Ok(()));
    }
    stay("a discard and a remap");
    let mut walked = Vec::new();
    space
        .walk_ordinary(range(0, 32), 512, |run| walked.extend(run.iter()))
        .unwrap();
    assert!(pinned.iter().all(|page| !walked.contains(&number(*page))));
    let (_, mirror) = device(&space, 0, 32);
    let exclusive = alone(&mirror, 0, 32).unwrap();
    assert!(pinned.iter().all(|page| !exclusive[*page]));
    stay("a device that wants it alone");
    drop(mirror);
    for side in 0..3 {
        drop(space.begin_fork());
        space.close_for_fork();
        share(&space, range(0, 32));
        space.open_in_parent();
        stay(&format!("fork {side}"));
    }
    three.protect(0, 32, false);
    assert_eq!(three.push_out(), 4);
    three.to_device(0, 32, DEVICE_PRIVATE);
    three.protect(0, 32, true);
    stay("a change of protection");
    with_reclaimer(&space, || {
        (32..3 * BUDGET).for_each(|page| three.write(page));
        stay("pressure");
    });
    let removed = space.remove_device(DEVICE_COHERENT, NOW, &mut scratch);
    assert_eq!(held(removed), (4, 0, 0));
    stay("a removal");
    let [mut first, second] = guards;
    assert_eq!(first.release(), Ok(()));
    drop((first, second));
    let soon = Duration::from_secs(9);
    assert_eq!(
        space.remove_device(DEVICE_COHERENT, soon, &mut scratch),
        Ok(())
    );
    nothing_is_pinned(&space);
    three.check_invariants();
    three.check_all();
}

/// A pin that comes in the middle of a discard.
#[test]
fn r11_a_page_that_is_pinned_meanwhile_is_not_dropped() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..128);
    let space = world.space.clone();
    // While the first batch is dropped.
    world.mmu().before(Op::Discard, move || {
        std::mem::forget(pin(&space, 100, 1, READ).unwrap());
    });
    let inside = world.space.inside().unwrap();
    assert_eq!(inside.discard(range(0, 128)), Err(RangeError::Pinned));
    drop(inside);
    assert_eq!(world.mmu().steps_left(), 0);
    world.check(100);
    world.check_invariants();
}

/// A read pin leaves a duplicate where it is, and the duplicate does not keep its device.
#[test]
fn r11_a_device_goes_although_duplicates_of_it_are_pinned() {
    let world = read_again(8);
    world.space.add_device(types::device(Private)).unwrap();
    let pinned = pin(&world.space, 0, 8, READ).unwrap();
    let (soon, mut scratch) = (Duration::from_secs(3), Scratch::default());
    assert_eq!(
        world.space.remove_device(WATCHED, soon, &mut scratch),
        Ok(())
    );
    assert!(
        (0..8)
            .all(|page| duplicate(&world, page).is_none() && world.mmu().is_present(number(page)))
    );
    assert_eq!(world.try_write(3), Ok(0));
    drop(pinned);
    world.check_all();
    world.space.check_invariants();
}

/// Pages that the kernel has pinned behind our back stay, and are counted; our pins go beside them.
#[test]
fn r11_what_the_kernel_has_pinned_is_left_alone_and_reported() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..8);
    assert!(three.mmu().pin(number(3)));
    let pinned = pin(&three.space, 2, 2, WRITE).unwrap();
    three.to_device(0, 8, DEVICE_PRIVATE);
    drop(pinned);
    let busy = three.space.stats().busy_pages.get();
    let mut migration = three.begin(0, 8, SYSTEM);
    migration.allocate(DEVICE_PRIVATE).unwrap();
    assert_eq!(migration.copy().pages().finalize().migrated, 1);
    assert_eq!(three.space.stats().busy_pages.get(), busy + 1);
    assert!(matches!(three.state(3), State::System { .. }));
    let (_, mirror) = device(&three.space, 3, 1);
    assert_eq!(alone(&mirror, 3, 1), Ok(vec![false]));
    assert_eq!(three.push_out(), 1);
    three.mmu().unpin(number(3));
    assert_eq!(three.push_out(), 0);
    three.check_all();
    three.check_invariants();
}

#[test]
fn r11_a_pinned_page_whose_memory_fails_stays_if_a_duplicate_has_its_bytes() {
    let world = read_again(8);
    let mut guard = pin(&world.space, 0, 8, READ).unwrap();
    assert_eq!(
        world.space.memory_failure(number(3)),
        Ok(Failure::Recovered)
    );
    assert_eq!(world.state(3), State::system(true));
    assert!(world.mmu().is_present(number(3)) && world.space.is_pinned(number(3)));
    // The device has lost its copy of this one, or does not find it at once.
    let lost = duplicate(&world, 4).unwrap();
    world.device.lose(lost.page);
    assert_eq!(world.space.memory_failure(number(4)), Ok(Failure::Poisoned));
    world.device.retry_copy_out_after(0, 20);
    assert_eq!(
        world.space.memory_failure(number(5)),
        Ok(Failure::Recovered)
    );
    // And this one has none.
    world.write(6);
    assert_eq!(world.space.memory_failure(number(6)), Ok(Failure::Poisoned));
    for page in [4, 6] {
        assert_eq!(world.try_check(page), Err(Fault::Poisoned));
        assert!(world.space.is_pinned(number(page)), "until it is released");
    }
    world.space.check_invariants();
    assert_eq!(guard.release(), Ok(()));
    nothing_is_pinned(&world.space);
    [0, 1, 2, 3, 5, 7]
        .into_iter()
        .for_each(|page| world.check(page));
    world.check_invariants();
}

/// A driver lets go of a page when it is told that its memory has failed.
#[test]
fn r12_a_pin_can_be_released_by_the_notifier_of_what_happens_to_its_page() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..4);
    let space = world.space.clone();
    let (listener, _notifier) = Listener::on(&space, 0, 4);
    thread::scope(|scope| {
        let pinned = pin(&world.space, 0, 4, LONG).unwrap();
        // The step has to be of the whole program's life; the guard is released in its place.
        let released = std::sync::Arc::new(AtomicBool::new(false));
        let seen = released.clone();
        let (tell, told) = std::sync::mpsc::channel();
        listener.in_next(move || {
            tell.send(()).unwrap();
            while !seen.load(SeqCst) {
                thread::yield_now();
            }
        });
        let failing = scope.spawn(|| world.space.memory_failure(number(2)));
        told.recv().unwrap();
        assert_eq!(world.state(2), State::Migrating, "somebody has the page");
        let start = Instant::now();
        drop(pinned);
        assert!(start.elapsed() < AT_ONCE, "a release does not wait for it");
        released.store(true, SeqCst);
        assert_eq!(failing.join().unwrap(), Ok(Failure::Poisoned));
    });
    nothing_is_pinned(&world.space);
    world.check_invariants();
}

/// In the child of a fork, nothing is pinned.
#[test]
fn r16_the_child_of_a_fork_has_no_pins() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..8);
    three.to_device(4, 2, DEVICE_COHERENT);
    // Its guard is the parent's.
    std::mem::forget(pin(&three.space, 2, 4, READ).unwrap());
    drop(three.space.begin_fork());
    three.space.close_for_fork();
    three.space.begin_in_child();
    three.space.open_in_child(&[three.space.range()]);
    nothing_is_pinned(&three.space);
    three.check_invariants();
    assert_eq!(three.to_device(0, 8, DEVICE_PRIVATE).migrated, 8);
    three.check_all();
    three.check_invariants();
}

/// Pins of all kinds at random, on threads, with everything beside.
#[test]
fn r12_whatever_was_pinned_is_released() {
    for seed in 0..3 {
        let three = Three::new(4 * BUDGET);
        let space = &three.space;
        with_reclaimer(space, || {
            three.write_all(0..256);
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                let pinners: Vec<_> = (0..2)
                    .map(|thread| {
                        scope.spawn(move || or_abort(|| pin_at_random(space, seed * 2 + thread)))
                    })
                    .collect();
                scope.spawn(|| or_abort(|| disturb(&three, seed, &done)));
                pinners
                    .into_iter()
                    .for_each(|pinner| pinner.join().unwrap());
                done.store(true, SeqCst);
            });
        });
        nothing_is_pinned(space);
        let stats = space.stats();
        assert_eq!(stats.page_gets.get(), stats.page_puts.get());
        assert!(stats.pins_acquired.get() > 1_000 && stats.page_gets.get() > 100);
        three.check_invariants();
        three.check_all();
    }
}

fn pin_at_random(space: &SimSpace, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut scratch = Scratch::default();
    let mut guards = Vec::new();
    for _ in 0..1_500 {
        let (first, len) = (rng.below(240) as usize, 1 + rng.below(16) as usize);
        let flags = PinFlags {
            write: rng.one_in(2),
            longterm: rng.one_in(3),
            fast: rng.one_in(3),
            peer: false,
        };
        let pinned = match rng.one_in(4) {
            true => space.get_pages(range(first, len), flags, &mut scratch),
            false => space.pin_pages(range(first, len), flags, &mut scratch),
        };
        match pinned {
            Ok(pinned) => {
                assert_eq!(pinned.pages(), range(first, len));
                for page in pinned.pages().iter() {
                    assert!(space.mmu().is_present(page), "{page:?} is pinned");
                }
                guards.push(pinned);
            }
            Err(
                PinError::WouldFault(_)
                | PinError::MigrateFirst(_)
                | PinError::Busy(_)
                | PinError::NotForLong,
            ) => {}
            Err(error) => panic!("{error:?}"),
        }
        if rng.one_in(8) {
            guards.clear();
        } else if guards.len() > 4 {
            guards.remove(0);
        }
    }
}

fn disturb(three: &Three, seed: u64, done: &AtomicBool) {
    let mut rng = Rng::new(seed ^ 0x9142);
    let select = SYSTEM | PRIVATE | COHERENT;
    while !done.load(SeqCst) {
        let (first, len) = (rng.below(240) as usize, 1 + rng.below(16) as usize);
        match rng.below(12) {
            0 => _ = three.push_out(),
            1 => drop(three.begin(first, len, select)),
            2 => {
                drop(three.space.begin_fork());
                three.space.close_for_fork();
                share(&three.space, range(first, len));
                three.space.open_in_parent();
            }
            3 => _ = three.to_system(first, len),
            4 => three.check(first),
            5 => three.write(first),
            6 => three
                .space
                .walk_ordinary(range(0, 256), 64, |_| ())
                .map_or((), drop),
            _ => {
                let device = rng.pick(&[DEVICE_PRIVATE, DEVICE_COHERENT]);
                three.to_device(first, len, device);
            }
        }
    }
}
