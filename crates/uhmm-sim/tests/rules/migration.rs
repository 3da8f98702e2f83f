//! R5 to R7: migration is best effort page by page, and what it cannot move stays as it was.

use crate::hook::Op;
use crate::world::{BASE, World};
use std::sync::atomic::Ordering::SeqCst;
use uhmm_core::addr::PageRange;
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::mmu::Stop;
use uhmm_sim::{Call, Failure};

/// Pages that one fault brings in at most.
const WINDOW: usize = 16;

fn failure(after_pages: usize, stop: Stop) -> Failure {
    Failure {
        after_calls: 0,
        after_pages,
        stop,
    }
}

fn is_system(world: &World, page: usize) -> bool {
    let system = matches!(world.state(page), State::System { .. });
    assert_eq!(
        system,
        world.mmu().is_present(BASE.plus(page)),
        "page {page} is {:?}",
        world.state(page)
    );
    system
}

/// Faults in sequence until the next one, on the page that is returned, brings in a whole window.
fn run_up(world: &World, mut page: usize) -> usize {
    let mut window = 1;
    while window < WINDOW {
        world.fault(page);
        page += window;
        window *= 2;
    }
    page
}

#[test]
fn r5_an_unmapping_that_fails_at_any_page_leaves_the_rest_as_it_was() {
    const PAGES: usize = 24;
    for k in 0..PAGES {
        for stop in [Stop::Busy, Stop::Changing] {
            let world = World::new(64);
            world.write_all(0..PAGES);
            // Pages fresh from a first touch are not referenced: the next round takes them. `Busy`
            // is asked again, so that it must be said twice to be true.
            world.mmu().fail(Call::Take, failure(k, stop));
            if stop == Stop::Busy {
                world.mmu().fail(Call::Take, failure(0, stop));
            }
            world.mmu().before(Op::Take, || ());
            world.push_out();
            assert_eq!(world.mmu().steps_left(), 0);
            world.check_invariants();
            for page in 0..PAGES {
                // Whatever is in RAM can still be written to without a fault.
                if is_system(&world, page) {
                    assert_eq!(world.try_write(page), Ok(0));
                }
            }
            world.check_all();
        }
    }
}

#[test]
fn r5_an_installation_that_fails_at_any_page_leaves_the_rest_on_the_device() {
    for k in 0..WINDOW {
        for stop in [Stop::Changing, Stop::Unmapped] {
            let world = World::pushed_out(64);
            let first = run_up(&world, 0);
            assert_eq!(world.device.stored().len(), 64 - first);
            let frees = world.device.frees() as usize;
            world.mmu().fail(Call::Copy, failure(k, stop));
            world.fault(first);
            for i in 0..WINDOW {
                assert_eq!(is_system(&world, first + i), i < k, "page {i} of {k}");
            }
            assert_eq!(world.device.frees() as usize, frees + k);
            world.check_invariants();
            world.check_all();
        }
    }
}

#[test]
fn r5_a_copy_that_fails_at_any_page_leaves_the_rest_on_the_device() {
    for k in 0..WINDOW as u64 {
        let world = World::pushed_out(64);
        let first = run_up(&world, 0);
        // The device is asked a few times before that counts as a failure.
        world.device.retry_copy_out_after(k, 4);
        world.fault(first);
        for i in 0..WINDOW {
            assert_eq!(is_system(&world, first + i), (i as u64) < k, "page {i}");
        }
        world.check_invariants();
        world.check_all();
    }
}

#[test]
fn r5_a_return_from_limbo_that_fails_at_any_page_leaves_the_rest_in_limbo() {
    for k in 0..WINDOW {
        let world = World::new(128);
        world.write_all(0..64);
        // With a device that takes nothing, all of it stays in limbo.
        world
            .device
            .fail_copy_in_after(0, uhmm_core::device::CopyInError::Full);
        world.push_out();
        assert!(matches!(world.state(63), State::Limbo(_)));
        let first = run_up(&world, 0);
        world.mmu().fail(Call::Put, failure(k, Stop::Changing));
        world.fault(first);
        for i in 0..WINDOW {
            assert_eq!(is_system(&world, first + i), i < k, "page {i} of {k}");
            assert_eq!(
                i >= k,
                matches!(world.state(first + i), State::Limbo(_)),
                "page {i} of {k}"
            );
        }
        world.check_invariants();
        world.check_all();
    }
}

#[test]
fn r5_a_store_that_fails_at_any_page_leaves_the_rest_in_limbo() {
    for k in 0..20 {
        for error in [
            uhmm_core::device::CopyInError::Full,
            uhmm_core::device::CopyInError::Dead,
        ] {
            let world = World::new(64);
            world.write_all(0..20);
            world.device.fail_copy_in_after(k, error);
            world.push_out();
            let states: Vec<_> = (0..20).map(|page| world.state(page)).collect();
            let count = |of: fn(&State) -> bool| states.iter().filter(|&state| of(state)).count();
            assert_eq!(
                count(|state| matches!(state, State::Private(_))),
                k as usize
            );
            assert_eq!(
                count(|state| matches!(state, State::Limbo(_))),
                20 - k as usize
            );
            world.check_invariants();
            world.check_all();
        }
    }
}

#[test]
fn r5_a_page_touched_between_two_parts_of_a_batch_is_in_one_place() {
    let world = World::new(64);
    world.write_all(0..8);
    // The second half is shared, as after a fork: the batch is taken in two parts.
    world.mmu().share(PageRange::new(BASE.plus(4), 4));
    let space = world.space.clone();
    world.mmu().before(Op::Unshare, move || {
        for page in 0..4 {
            space.fault(BASE.plus(page), Access::Write, &mut Scratch::default());
        }
    });
    world.push_out();
    assert_eq!(world.mmu().steps_left(), 0);
    world.check_invariants();
    world.check_all();
    world.push_out();
    world.check_invariants();
    assert_eq!(world.device.stored().len(), 8, "nothing is stuck in limbo");
}

#[test]
fn r6_holes_and_lost_pages_are_not_selected() {
    let world = World::new(256);
    // The last first, so that nothing is brought in ahead.
    let written = [200, 90, 4, 3];
    written.iter().for_each(|&page| world.write(page));
    world.push_out();
    assert_eq!(world.device.copies_in(), 4, "a hole has been stored");
    let State::Private(at) = world.state(4) else {
        unreachable!()
    };
    world.device.lose(at.page);
    world.fault(4);
    assert_eq!(world.state(4), State::Poisoned);
    world.check(3);
    let asked = || world.mmu().asked_to_take.load(SeqCst);
    let before = asked();
    world.push_out();
    // Page 3 is all that is mapped: what is lost, missing or on a device already is no candidate.
    assert_eq!((asked() - before, world.device.copies_in()), (1, 5));
    assert_eq!(world.state(4), State::Poisoned);
    assert_eq!(world.state(5), State::None);
}

#[test]
fn r7_a_pinned_page_stays_and_can_still_be_written() {
    const PINNED: usize = 10;
    let world = World::new(64);
    world.write_all(0..32);
    assert!(world.mmu().pin(BASE.plus(PINNED)));
    assert_eq!(world.push_out(), 1, "all but the pinned page leave");
    assert!(is_system(&world, PINNED));
    assert!(world.space.stats().busy_pages.get() > 0);
    assert_eq!(
        world.try_write(PINNED),
        Ok(0),
        "its mapping is as it was, writable"
    );
    world.check_invariants();
    world.mmu().unpin(BASE.plus(PINNED));
    assert_eq!(world.push_out(), 0);
    world.check_all();
}

#[test]
fn r7_a_page_shared_after_a_fork_moves_once_the_sharing_is_broken() {
    let world = World::new(64);
    world.write_all(0..32);
    world.mmu().share(PageRange::new(BASE, 32));
    assert!(world.mmu().pin(BASE.plus(5)));
    assert_eq!(world.push_out(), 1);
    assert!(is_system(&world, 5));
    world.check_invariants();
    world.check_all();
}

#[test]
fn r7_a_page_that_may_not_be_written_leaves_and_comes_back_as_it_was() {
    let world = World::new(64);
    world.write_all(0..32);
    let pages = PageRange::new(BASE.plus(8), 8);
    let space = world.space.clone();
    space.change_protection(pages, || space.mmu().protect(pages, false));
    assert_eq!(world.push_out(), 0);
    world.check_invariants();
    world.check_all();
    assert!(world.try_write(9).is_err(), "it is still read-only");
    space.change_protection(pages, || space.mmu().protect(pages, true));
    assert_eq!(
        world.try_write(9),
        Ok(0),
        "it is in RAM, and writable again"
    );
    world.check_all();
}
