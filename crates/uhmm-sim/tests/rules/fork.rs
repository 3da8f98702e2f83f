//! R16 on the simulated MMU: what happens to pages while a fork closes the gate, on either side of
//! it. `crates/uhmm/tests/fork.rs` does it with real processes.

use crate::world::{BASE, World, or_abort, with_reclaimer};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;
use uhmm_core::device::CopyInError;
use uhmm_core::entry::State;
use uhmm_core::error::RangeError;
use uhmm_core::fault::Scratch;
use uhmm_core::mmu::Tracking;

/// Pages 0 to 8 on the device, 8 to 16 in limbo, 16 to 24 mapped, 24 to 32 never touched.
fn in_each_state() -> World {
    let world = World::pushed_out(8);
    world.device.fail_copy_in_after(0, CopyInError::Full);
    world.write_all(8..16);
    world.push_out();
    world.device.heal();
    world.write_all(16..24);
    assert!(matches!(world.state(8), State::Limbo(_)));
    world
}

const PAGES: [usize; 8] = [1, 5, 8, 11, 17, 20, 25, 31];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Parent,
    Child,
}

fn open(world: &World, side: Side) {
    match side {
        Side::Parent => world.space.open_in_parent(),
        Side::Child => {
            world.space.begin_in_child();
            world.space.open_in_child(&[world.space.range()]);
        }
    }
}

#[test]
fn r16_faults_during_a_fork_show_that_moment_and_last() {
    for side in [Side::Parent, Side::Child] {
        let world = in_each_state();
        world.space.close_for_fork();
        for page in PAGES {
            world.check(page);
            // Written while the gate is closed: before the fork, as far as the child can tell.
            world.write(page);
        }
        let copies = (world.device.copies_in(), world.device.frees());
        open(&world, side);
        for page in PAGES {
            assert!(
                matches!(world.state(page), State::System { .. }),
                "{side:?}: page {page} is {:?}",
                world.state(page)
            );
        }
        assert_eq!(copies.0, world.device.copies_in());
        world.check_all();
        world.push_out();
        world.check_invariants();
        world.check_all();
    }
}

#[test]
fn r16_a_closed_gate_changes_nothing_that_the_child_copies() {
    let world = in_each_state();
    let before: Vec<_> = (0..32).map(|page| world.state(page)).collect();
    world.space.close_for_fork();
    PAGES.iter().for_each(|&page| world.write(page));
    let stored = world.device.stored();
    let during: Vec<_> = (0..32).map(|page| world.state(page)).collect();
    assert_eq!(before, during);
    assert!(stored.len() >= 8 && world.device.frees() == 0);
    let refused = world.space.inside().err();
    assert_eq!(
        refused,
        Some(RangeError::Forking),
        "nothing comes in between"
    );
    open(&world, Side::Parent);
    world.check_all();
    world.check_invariants();
}

/// What the child touched before its memory was managed again shadows what is elsewhere.
#[test]
fn r16_pages_that_the_kernel_filled_in_the_child_are_dropped() {
    use uhmm_core::addr::PageData;
    use uhmm_core::mmu::Mmu;
    let world = in_each_state();
    world.space.close_for_fork();
    for page in [0, 9, 24] {
        let progress = world
            .mmu()
            .copy(&[PageData::ZERO], BASE.plus(page), Tracking::Off);
        assert_eq!(progress.pages, 1);
    }
    open(&world, Side::Child);
    world.check_all();
    world.check_invariants();
}

/// A fork waits for whoever is inside. Faults are served all the while, and are not forgotten.
#[test]
fn r16_a_fault_while_the_gate_is_closing_is_kept() {
    for side in [Side::Parent, Side::Child] {
        let world = in_each_state();
        let space = &world.space;
        let inside = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Holds the fork up.
                let pass = space.inside().unwrap();
                inside.wait();
                while space.inside().is_ok() {
                    thread::yield_now();
                }
                // The gate is closing now. Another thread faults, and writes.
                for page in PAGES {
                    world.write(page);
                }
                drop(pass);
            });
            inside.wait();
            space.close_for_fork();
        });
        open(&world, side);
        for page in PAGES {
            assert!(
                matches!(world.state(page), State::System { .. }),
                "{side:?}: page {page} is mapped, and is {:?}",
                world.state(page)
            );
        }
        world.check_all();
        world.push_out();
        world.check_all();
        world.check_invariants();
    }
}

#[test]
fn r16_many_forks_while_threads_fault() {
    let world = World::new(2048);
    let space = &world.space;
    with_reclaimer(space, || {
        thread::scope(|scope| {
            for thread in 0..2 {
                let world = &world;
                scope.spawn(move || {
                    let mut rng = uhmm_testkit::Rng::new(thread);
                    or_abort(|| {
                        for _ in 0..8_000 {
                            let page = rng.below(1024) as usize * 2 + thread as usize;
                            if rng.one_in(2) {
                                world.write(page);
                            } else {
                                world.check(page);
                            }
                        }
                    });
                });
            }
            for _ in 0..60 {
                space.close_for_fork();
                thread::sleep(Duration::from_micros(300));
                space.open_in_parent();
                thread::sleep(Duration::from_micros(700));
            }
        });
    });
    world.check_all();
    world.space.reclaim(&mut Scratch::default());
    world.check_invariants();
}
