//! R8 to R10: eviction, lost pages, and what the next owner of a device page sees.

use crate::world::{BASE, BUDGET, World, touch, with_reclaimer};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::addr::PageRange;
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_sim::Fault;

const LONG: Duration = Duration::from_secs(20);

fn remove(world: &World) {
    let removed = world.space.remove_device(0, LONG, &mut Scratch::default());
    removed.expect("every page can leave");
}

#[test]
fn r8_eviction_finds_every_page_by_its_device_page_alone() {
    let world = World::pushed_out(64);
    // The pages move in the address space without leaving the device.
    let inside = world.space.inside().unwrap();
    inside
        .relocate(PageRange::new(BASE, 64), BASE.plus(700))
        .unwrap();
    drop(inside);
    assert!(matches!(world.state(700), State::Private(_)));
    assert_eq!(world.state(0), State::None);
    remove(&world);
    assert_eq!(world.device.stored(), []);
    for page in 0..64 {
        assert!(matches!(world.state(700 + page), State::System { .. }));
        let found = world.mmu().touch_read(BASE.plus(700 + page)).unwrap();
        world.oracle.check(page, &found);
    }
    world.check_invariants();
}

#[test]
fn r9_a_lost_page_is_poisoned_and_never_reads_as_anything() {
    let world = World::pushed_out(40);
    let State::Private(at) = world.state(20) else {
        unreachable!()
    };
    world.device.lose(at.page);
    // By itself, and in the middle of what is brought in ahead.
    (0..40).for_each(|page| {
        if page != 20 {
            world.check(page);
        }
    });
    assert_eq!(world.try_check(20), Err(Fault::Poisoned));
    assert_eq!(world.try_write(20), Err(Fault::Poisoned));
    assert_eq!(world.state(20), State::Poisoned);
    assert_eq!(world.space.stats().poisoned_pages.get(), 1);
    // Pressure, healing and another fault change nothing: it is lost.
    world.push_out();
    world.device.heal();
    world.fault(20);
    assert_eq!(world.try_check(20), Err(Fault::Poisoned));
    world.check_invariants();
    // Only who gives it up gets zeros.
    world.discard(20, 1);
    world.check(20);
}

#[test]
fn r9_removal_poisons_just_what_the_device_has_lost() {
    let world = World::pushed_out(40);
    for page in [0, 21, 39] {
        let State::Private(at) = world.state(page) else {
            unreachable!()
        };
        world.device.lose(at.page);
    }
    remove(&world);
    for page in 0..40 {
        match page {
            0 | 21 | 39 => assert_eq!(world.try_check(page), Err(Fault::Poisoned)),
            _ => assert_eq!(world.try_check(page), Ok(0)),
        }
    }
    assert_eq!(world.space.stats().poisoned_pages.get(), 3);
    world.check_invariants();
}

#[test]
fn r9_a_device_that_says_retry_is_asked_again() {
    for times in [1, 3, 4, 5, 40] {
        let world = World::pushed_out(40);
        for page in [0, 1, 3, 20, 21, 39] {
            world.device.retry_copy_out_after(1, times);
            world.check(page);
        }
        world.check_all();
        assert_eq!(world.space.stats().poisoned_pages.get(), 0);
        world.check_invariants();
    }
}

/// The same when there is no new RAM and each page comes to a warm frame.
#[test]
fn r9_a_device_that_says_retry_is_asked_again_under_pressure() {
    let world = World::new(2 * BUDGET);
    with_reclaimer(&world.space, || {
        (0..2 * BUDGET).for_each(|page| world.write(page));
        for page in 0..2 * BUDGET {
            if page % 8 == 0 {
                world.device.retry_copy_out_after(page as u64 % 3, 9);
            }
            world.check(page);
        }
    });
    world.check_invariants();
}

#[test]
fn r9_removal_waits_for_memory() {
    let world = World::pushed_out(BUDGET / 2);
    world.mmu().limit_memory(100);
    let (space, begin) = (&world.space, Instant::now());
    thread::scope(|scope| {
        let remover = scope.spawn(|| remove(&world));
        while space.mmu().resident() < 100 {
            assert!(begin.elapsed() < LONG / 2, "it takes less than there is");
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(50));
        assert!(!remover.is_finished(), "it gave up");
        assert_eq!(space.mmu().resident(), 100, "it took what there was");
        space.mmu().limit_memory(BUDGET);
    });
    assert!(begin.elapsed() < LONG);
    assert_eq!(world.device.stored(), []);
    world.check_all();
    assert_eq!(world.space.stats().poisoned_pages.get(), 0);
    world.check_invariants();
}

#[test]
fn r9_removal_pushes_what_does_not_fit_on_to_the_next_device() {
    use crate::world::{Shared, space, watched};
    let devices = [watched(4 * BUDGET), watched(4 * BUDGET)];
    let space = space(
        4 * BUDGET,
        devices
            .iter()
            .map(|device| Box::new(Shared(device.clone())) as _)
            .collect(),
    );
    let write = |page: usize| {
        touch(&space, page, Access::Write, |mmu, at| {
            mmu.touch_write(at, |data| data.0.fill(page as u8 | 1))
        })
    };
    with_reclaimer(&space, || {
        for page in 0..3 * BUDGET {
            write(page).unwrap();
        }
        assert!(devices[0].stored().len() > BUDGET, "more than fits in RAM");
        space
            .remove_device(0, LONG, &mut Scratch::default())
            .expect("the second has room");
        assert_eq!(devices[0].stored(), []);
        assert!(devices[1].stored().len() > BUDGET);
        for page in 0..3 * BUDGET {
            touch(&space, page, Access::Read, |mmu, at| {
                assert!(mmu.touch_read(at)?.0 == [page as u8 | 1; 4096], "{page}");
                Ok(())
            })
            .unwrap();
        }
    });
    space.check_invariants();
}

/// Old bytes are everywhere: on the device, in frames, in the handler's buffers. A new owner of any
/// of them reads zeros until it writes.
#[test]
fn r10_the_next_owner_of_memory_sees_nothing_of_the_last() {
    let world = World::new(4 * BUDGET);
    with_reclaimer(&world.space, || {
        for round in 0..3 {
            // Full of secrets, in RAM and on the device.
            (0..2 * BUDGET).for_each(|page| world.write(page));
            world.discard(0, 2 * BUDGET);
            // Frames and device pages of the old contents serve these.
            for page in 2 * BUDGET..4 * BUDGET {
                assert_eq!(world.try_check(page).map(drop), Ok(()), "round {round}");
            }
            (0..2 * BUDGET).for_each(|page| world.check(page));
            world.discard(0, 4 * BUDGET);
        }
    });
    world.check_invariants();
}

/// The same where no new memory is to be had, so that a first touch is served from a warm frame.
#[test]
fn r10_a_warm_frame_is_cleared_before_it_is_given_out() {
    let world = World::new(4 * BUDGET);
    let frames = world.leave_only_warm_frames(0);
    assert!(frames > 100);
    for page in (BUDGET..BUDGET + frames).rev() {
        // Zeros before the first write, whatever the frame held before.
        world.check(page);
        world.write(page);
    }
    world.device.heal();
    world.check_all();
    world.check_invariants();
}
