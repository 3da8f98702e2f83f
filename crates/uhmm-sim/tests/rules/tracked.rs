//! Writes to pages of which a device has a copy: whenever they come, the copy is out of date from then on,
//! and no byte that was ever written is lost to it.

use crate::duplicates::*;
use crate::hook::Op;
use crate::world::{BASE, BUDGET, World, or_abort, with_reclaimer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm_core::addr::PageRange;
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::hints::Hints;
use uhmm_core::mmu::Mmu;
use uhmm_sim::Fault;
use uhmm_testkit::Rng;

/// Somebody writes to page 3 at the step `op` of `act`.
fn write_at(op: Op, world: World, act: impl FnOnce(&World)) {
    let world = Arc::new(world);
    let other = world.clone();
    world.mmu().before(op, move || {
        let write = other.mmu().touch_write(BASE.plus(3), |_| ());
        let met = match write {
            Err(Fault::Tracked) => Access::Tracked,
            Err(Fault::Missing) => Access::Write,
            other => panic!("{other:?}"),
        };
        // It asks to be woken, and that is all it can do now.
        other
            .space
            .fault(BASE.plus(3), met, &mut Scratch::default());
    });
    world.mmu().take_wakes();
    act(&world);
    assert_eq!(world.mmu().steps_left(), 0, "{op:?}");
    let woken = world.mmu().take_wakes();
    assert!(
        woken.iter().any(|range| range.contains(BASE.plus(3))),
        "{op:?}: the writer is woken"
    );
    world.check_invariants();
    world.write(3);
    world.check_invariants();
    world.push_out();
    world.check_invariants();
    world.check_all();
}

#[test]
fn a_write_while_a_clean_page_is_taken_out_is_not_lost() {
    write_at(Op::Take, read_again(8), |world| _ = world.push_out());
}

#[test]
fn a_write_while_a_page_comes_in_to_be_kept_is_not_lost() {
    let world = World::pushed_out(8);
    hint(&world, 0..8, true);
    write_at(Op::Copy, world, |world| world.check(3));
}

#[test]
fn a_write_while_a_duplicate_is_given_up_is_not_lost() {
    let world = read_again(8);
    assert!(world.mmu().pin(BASE.plus(3)));
    write_at(Op::Untrack, world, |world| _ = world.push_out());
    write_at(Op::Untrack, read_again(8), |world| world.write(3));
}

#[test]
fn a_page_is_not_pushed_out_between_a_write_and_the_end_of_its_tracking() {
    let world = Arc::new(read_again(8));
    let other = world.clone();
    world.mmu().before(Op::Untrack, move || {
        other.push_out();
        assert!(other.mmu().is_present(BASE.plus(3)));
    });
    world.write(3);
    assert_eq!(world.mmu().steps_left(), 0);
    world.check_invariants();
    world.push_out();
    world.check_all();
    world.check_invariants();
}

/// A write that was stopped before the page left: what it finds then is no page to untrack.
#[test]
fn a_tracked_write_that_comes_late_changes_nothing() {
    let world = read_again(8);
    let late = |page: usize| {
        world.mmu().take_wakes();
        world
            .space
            .fault(BASE.plus(page), Access::Tracked, &mut Scratch::default());
        let woken = world.mmu().take_wakes();
        assert!(woken.iter().any(|range| range.contains(BASE.plus(page))));
    };
    world.push_out();
    late(3);
    assert!(is_private(&world, 3));
    late(200);
    assert_eq!(world.state(200), State::None);
    world.check(3);
    late(3);
    late(3);
    world.check_invariants();
    world.check_all();
}

/// Page 3 was dropped behind our back, as by a raw `madvise`: it reads as zero from then on.
#[test]
fn a_duplicate_does_not_come_back_after_its_page_was_dropped_behind_our_back() {
    for touched in [false, true] {
        let world = read_again(8);
        world.mmu().discard(PageRange::new(BASE.plus(3), 1));
        world.oracle.discard(3);
        if touched {
            world.check(3);
        }
        world.push_out();
        world.check_all();
        world.check_invariants();
    }
}

// Fork (R16).

#[test]
fn r16_the_parent_keeps_its_duplicates() {
    let world = read_again(16);
    let copies = world.device.copies_in();
    world.space.close_for_fork();
    world.space.open_in_parent();
    assert_eq!(duplicates(&world, 0..16), 16);
    world.check_invariants();
    assert_eq!(world.push_out(), 0);
    assert_eq!(world.device.copies_in(), copies);
    world.check_all();
}

#[test]
fn r16_the_child_forgets_its_duplicates() {
    let world = read_again(16);
    world.space.close_for_fork();
    // In the child nobody was told of writes until its memory is managed again.
    for page in [2, 9] {
        world.mmu().untrack(BASE.plus(page));
        assert_eq!(world.try_write(page), Ok(0));
    }
    world.space.begin_in_child();
    world.space.open_in_child(&[world.space.range()]);
    assert_eq!(duplicates(&world, 0..16), 0);
    assert_eq!(world.space.stats().duplicate_pages.get(), 0);
    world.check_invariants();
    world.space.reclaim(&mut Scratch::default());
    assert_eq!(world.device.stored(), []);
    assert_eq!(world.try_write(4), Ok(0), "nothing is tracked any more");
    push_out_and_check(&world);
}

#[test]
fn r16_a_tracked_write_during_a_fork_is_logged() {
    for parent in [true, false] {
        let world = read_again(16);
        let copies = world.device.copies_in();
        world.space.close_for_fork();
        let before: Vec<_> = (0..16).map(|page| world.state(page)).collect();
        for page in [3, 8, 3] {
            world.write(page);
        }
        let during: Vec<_> = (0..16).map(|page| world.state(page)).collect();
        assert_eq!(before, during, "nothing changes that the child copies");
        assert_eq!(world.device.frees(), 0);
        if parent {
            world.space.open_in_parent();
            assert_eq!(duplicates(&world, 0..16), 14);
        } else {
            world.space.begin_in_child();
            world.space.open_in_child(&[world.space.range()]);
            assert_eq!(duplicates(&world, 0..16), 0);
        }
        world.check_invariants();
        world.check_all();
        assert_eq!(world.push_out(), 0);
        let stored = world.device.copies_in() - copies;
        assert_eq!(stored, if parent { 2 } else { 16 });
        world.check_all();
        world.check_invariants();
    }
}

/// A write was stopped, then the page went, then the gate closed: the late fault must not be taken for a
/// page that is there.
#[test]
fn r16_a_tracked_write_that_comes_late_during_a_fork_loses_nothing() {
    for parent in [true, false] {
        let world = read_again(16);
        world.push_out();
        world.space.close_for_fork();
        for page in [3, 200] {
            let at = BASE.plus(page);
            world.mmu().take_wakes();
            world
                .space
                .fault(at, Access::Tracked, &mut Scratch::default());
            let woken = world.mmu().take_wakes();
            assert!(
                woken.iter().any(|range| range.contains(at)),
                "it looks again"
            );
        }
        if parent {
            world.space.open_in_parent();
        } else {
            world.space.begin_in_child();
            world.space.open_in_child(&[world.space.range()]);
        }
        world.check_all();
        world.check_invariants();
        push_out_and_check(&world);
    }
}

/// Everything at once: threads that read and write, hints that come and go, pages pushed out, shared and
/// pinned, a fork now and then, and failures.
#[test]
fn r5_no_written_byte_is_lost_whatever_happens_at_once() {
    const PAGES: usize = BUDGET + 200;
    for (seed, one_in) in [(0, 0), (1, 40), (2, 8), (3, 0)] {
        let world = World::new(4 * BUDGET);
        hint(&world, 0..PAGES, true);
        if one_in > 0 {
            world.mmu().fail_at_random(seed, one_in);
        }
        let done = AtomicBool::new(false);
        with_reclaimer(&world.space, || {
            thread::scope(|scope| {
                let threads = [0, 1].map(|thread| {
                    let world = &world;
                    scope.spawn(move || {
                        or_abort(|| program(world, Rng::new(seed * 2 + thread), thread as usize));
                    })
                });
                scope.spawn(|| or_abort(|| disturb(&world, PAGES, Rng::new(seed ^ 0xd), &done)));
                threads
                    .into_iter()
                    .for_each(|thread| thread.join().unwrap());
                done.store(true, SeqCst);
            });
        });
        world.mmu().heal();
        world.check_all();
        world.check_invariants();
        let stats = world.space.stats();
        assert!(stats.clean_evictions.get() > 100, "seed {seed}: {stats:?}");
        let found = duplicates(&world, 0..PAGES) as u64;
        assert_eq!(stats.duplicate_pages.get(), found, "the gauge is right");
    }

    fn program(world: &World, mut rng: Rng, thread: usize) {
        for _ in 0..6_000 {
            let page = rng.below(PAGES as u64 / 2) as usize * 2 + thread;
            match rng.below(16) {
                0..3 => world.write(page),
                3 => {
                    if let Ok(inside) = world.space.inside() {
                        inside.discard(PageRange::new(BASE.plus(page), 1)).unwrap();
                        world.oracle.discard(page);
                    }
                }
                _ => world.check(page),
            }
        }
    }

    fn disturb(world: &World, pages: usize, mut rng: Rng, done: &AtomicBool) {
        while !done.load(SeqCst) {
            let first = rng.below(pages as u64 - 64) as usize;
            let some = PageRange::new(BASE.plus(first), 64);
            match rng.below(8) {
                0 => drop(world.push_out()),
                1 => {
                    if let Ok(inside) = world.space.inside() {
                        let read_mostly = rng.one_in(4);
                        let hints = Hints {
                            read_mostly,
                            ..Hints::NONE
                        };
                        inside.set_hints(some, hints).unwrap();
                        let all = PageRange::new(BASE, pages);
                        inside.set_hints(all, Hints::READ_MOSTLY).unwrap();
                    }
                }
                2 => world.mmu().share(some),
                3 => {
                    if world.mmu().pin(some.start) {
                        thread::yield_now();
                        world.mmu().unpin(some.start);
                    }
                }
                4 => {
                    world.space.close_for_fork();
                    thread::yield_now();
                    world.space.open_in_parent();
                }
                _ => thread::sleep(Duration::from_micros(rng.below(1_000))),
            }
        }
    }
}
