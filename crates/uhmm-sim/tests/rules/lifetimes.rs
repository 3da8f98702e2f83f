//! R1 to R4: device pages and pagemaps live exactly as long as somebody needs them.

use crate::world::{BASE, BUDGET, Shared, World, or_abort, space, touch, watched, with_reclaimer};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm_core::entry::State;
use uhmm_core::evict::RemoveError;
use uhmm_core::fault::{Access, Scratch};
use uhmm_testkit::Rng;

const NO_TIME: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(20);

/// Pages whose entry says that they are on the device.
fn private(world: &World) -> usize {
    let pages = 0..world.oracle.pages();
    pages
        .filter(|&page| matches!(world.state(page), State::Private(_)))
        .count()
}

fn churn(world: &World, seed: u64, touches: usize) {
    let mut rng = Rng::new(seed);
    let pages = world.oracle.pages() as u64;
    for _ in 0..touches {
        let page = rng.below(pages) as usize;
        match rng.below(8) {
            0 => world.discard(page, 1 + rng.below(8.min(pages - page as u64)) as usize),
            1..4 => world.write(page),
            _ => world.check(page),
        }
    }
}

#[test]
fn r1_device_pages_in_use_are_those_that_entries_name() {
    let world = World::new(4 * BUDGET);
    for seed in 0..4 {
        with_reclaimer(&world.space, || churn(&world, seed, 3_000));
        // Frees what was discarded.
        world.space.reclaim(&mut Scratch::default());
        world.check_invariants();
        let held = private(&world);
        assert!(held > BUDGET, "the device is used: {held}");
        assert_eq!(world.device.stored().len(), held, "seed {seed}");
        let stats = &world.space.stats().devices[0];
        assert_eq!(stats.pages.get() as usize, held);
    }
    world.check_all();
    world.check_invariants();
}

#[test]
fn r2_a_device_ends_only_after_its_last_page() {
    let world = World::pushed_out(300);
    // The device answers, but not now.
    world.device.retry_copy_out_after(0, u64::MAX);
    assert_eq!(
        remove(&world, NO_TIME),
        Err(300),
        "it ends while pages are on it"
    );
    assert_eq!(world.device.stored().len(), 300);
    // All but some pages leave it, until it stops answering again.
    world.device.retry_copy_out_after(200, u64::MAX);
    assert_eq!(remove(&world, Duration::from_millis(300)), Err(100));
    assert_eq!(world.device.frees(), 200);
    world.device.heal();
    assert_eq!(remove(&world, LONG), Ok(()));
    assert_eq!(world.device.stored(), []);
    world.check_all();
    let copies = world.device.copies_in();
    world.push_out();
    assert_eq!(world.device.copies_in(), copies, "a removed device is used");
    world.check_all();
    world.check_invariants();
}

fn remove(world: &World, patience: Duration) -> Result<(), usize> {
    let removed = world
        .space
        .remove_device(0, patience, &mut Scratch::default());
    removed.map_err(|error| match error {
        RemoveError::StillInUse(still) => still.pages,
        other => panic!("{other}"),
    })
}

#[test]
fn r2_nothing_comes_to_a_device_after_its_end() {
    for round in 0..40 {
        let world = World::new(2 * BUDGET);
        (0..BUDGET / 2).for_each(|page| world.write(page));
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                world.push_out();
            });
            start.wait();
            // At another point of the pushing out each time.
            (0..round * 100).for_each(|_| std::hint::spin_loop());
            assert_eq!(remove(&world, LONG), Ok(()), "round {round}");
            assert_eq!(world.device.stored(), [], "round {round}");
        });
        assert_eq!(world.device.stored(), [], "round {round}: after its end");
        world.check_all();
        world.check_invariants();
    }
}

#[test]
fn r3_a_fault_never_sees_a_freed_page() {
    const PAGES: usize = 64;
    for round in 0..60u64 {
        let world = World::pushed_out(PAGES);
        if round % 3 == 0 {
            world.mmu().fail_at_random(round, 4);
        }
        let start = Barrier::new(4);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                let (world, start) = (&world, &start);
                // Both threads touch the same pages at the same time. FlakyDevice panics when a page
                // is read that is not stored, or read and freed at once.
                scope.spawn(move || {
                    let mut rng = Rng::new(round);
                    start.wait();
                    or_abort(|| {
                        for _ in 0..4 * PAGES {
                            world.check(rng.below(PAGES as u64) as usize);
                        }
                    });
                });
            }
            scope.spawn(|| {
                start.wait();
                while !done.load(SeqCst) {
                    or_abort(|| {
                        world.push_out();
                    });
                }
            });
            start.wait();
            or_abort(|| assert_eq!(remove(&world, LONG), Ok(()), "round {round}"));
            done.store(true, SeqCst);
        });
        world.mmu().heal();
        assert_eq!(world.device.stored(), [], "round {round}");
        (0..PAGES).for_each(|page| world.check(page));
        world.check_invariants();
    }
}

#[test]
fn r3_a_page_stays_on_the_device_until_it_is_installed() {
    use uhmm_core::mmu::Stop;
    use uhmm_sim::{Call, Failure};
    let world = World::pushed_out(8);
    for stop in [Stop::Changing, Stop::NoMemory, Stop::Unmapped] {
        world.mmu().fail(Call::Copy, Failure::next(stop));
        // Whether the fault is served in the end or not, no page has been freed without cause.
        world.fault(3);
        let on_device = matches!(world.state(3), State::Private(_));
        assert_ne!(on_device, world.mmu().is_present(BASE.plus(3)), "{stop:?}");
        world.check_invariants();
        world.check(3);
        world.push_out();
    }
}

#[test]
fn r4_each_page_is_given_back_to_its_driver_once() {
    // Two devices, so that pages also leave one for the other.
    let (first, second) = (watched(256), watched(4 * BUDGET));
    let space = space(
        4 * BUDGET,
        vec![
            Box::new(Shared(first.clone())),
            Box::new(Shared(second.clone())),
        ],
    );
    with_reclaimer(&space, || {
        for seed in 0..4 {
            let mut rng = Rng::new(seed);
            for _ in 0..4_000 {
                let page = rng.below(4 * BUDGET as u64) as usize;
                // FlakyDevice panics when a page is freed that is not stored.
                touch(&space, page, Access::Write, |mmu, at| {
                    mmu.touch_write(at, |data| data.0[0] = page as u8)
                })
                .unwrap();
            }
        }
    });
    with_reclaimer(&space, || {
        space
            .remove_device(0, LONG, &mut Scratch::default())
            .expect("the second has room");
    });
    space.check_invariants();
    for device in [&first, &second] {
        assert_eq!(
            device.copies_in() - device.frees(),
            device.stored().len() as u64
        );
    }
    assert_eq!(first.stored(), []);
    let pages = uhmm_core::addr::PageRange::new(BASE, 4 * BUDGET);
    space.inside().unwrap().discard(pages).unwrap();
    space.reclaim(&mut Scratch::default());
    assert_eq!(second.stored(), []);
    assert_eq!(second.copies_in(), second.frees());
}
