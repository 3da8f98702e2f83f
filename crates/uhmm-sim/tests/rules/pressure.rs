//! R19 and reclaim: with no room anywhere the program is told, and with room it never waits long.

use crate::world::{BASE, BUDGET, World, or_abort, with_reclaimer};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::MIN_STAY;
use uhmm_core::device::CopyInError;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::reclaim::{PATIENCE, Step};
use uhmm_testkit::Rng;

#[test]
fn r19_no_ram_and_a_full_device_is_reported_and_loses_nothing() {
    const PAGES: usize = BUDGET + 300;
    let world = World::new(2 * BUDGET);
    // Room for 100 pages beside the budget.
    world.device.fail_copy_in_after(100, CopyInError::Full);
    let written = AtomicUsize::new(0);
    with_reclaimer(&world.space, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                for page in 0..PAGES {
                    world.write(page);
                    written.store(page + 1, SeqCst);
                }
            });
            or_abort(|| {
                let told = |times| {
                    let begin = Instant::now();
                    while world.mmu().out_of_memory_count() < times {
                        assert!(begin.elapsed() < 20 * PATIENCE, "nobody is told: it hangs");
                        thread::sleep(Duration::from_millis(5));
                    }
                };
                told(1);
                let done = written.load(SeqCst);
                assert!((BUDGET..PAGES).contains(&done), "{done} pages have room");
                // Neither busy nor hung: the report comes again, and each time after as long.
                let begin = Instant::now();
                told(world.mmu().out_of_memory_count() + 2);
                let took = begin.elapsed();
                assert!(took > PATIENCE / 2, "twice in {took:?}");
                // As soon as something is freed, it goes on.
                world.discard(0, 200);
                world.device.heal();
            });
            // The writer ends with the scope.
        });
    });
    assert_eq!(written.load(SeqCst), PAGES);
    world.check_all();
    world.check_invariants();
}

#[test]
fn r19_with_no_device_at_all_it_is_the_same() {
    let space = crate::world::space(2 * BUDGET, vec![]);
    let begin = Instant::now();
    with_reclaimer(&space, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                for page in 0..BUDGET + 20 {
                    crate::world::touch(&space, page, Access::Write, |mmu, at| {
                        mmu.touch_write(at, |data| data.0[0] = 1)
                    })
                    .unwrap();
                }
            });
            or_abort(|| {
                while space.mmu().out_of_memory_count() == 0 {
                    assert!(begin.elapsed() < 20 * PATIENCE, "nobody is told: it hangs");
                    thread::sleep(Duration::from_millis(5));
                }
                let pages = uhmm_core::addr::PageRange::new(BASE, 100);
                space.inside().unwrap().discard(pages).unwrap();
            });
        });
    });
    space.check_invariants();
}

#[test]
fn r19_reclaim_says_that_it_is_stuck() {
    let world = World::new(2 * BUDGET);
    world.device.fail_copy_in_after(0, CopyInError::Full);
    (0..BUDGET).for_each(|page| world.write(page));
    let mut scratch = Scratch::default();
    let steps = (0..1_000).map(|_| world.space.reclaim(&mut scratch));
    assert_eq!(steps.last(), Some(Step::Stuck));
    world.check_all();
    world.check_invariants();
}

/// Runs `program`, which must not run out of memory: it would wait for ever.
fn never_out_of_memory(world: &World, program: impl FnOnce()) {
    let done = AtomicBool::new(false);
    with_reclaimer(&world.space, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    or_abort(|| assert_eq!(world.mmu().out_of_memory_count(), 0, "no room"));
                    thread::sleep(Duration::from_millis(20));
                }
            });
            program();
            done.store(true, SeqCst);
        });
    });
}

/// A block whose pages were all touched while its batch waited in the queue was filled again, and
/// then neither batch could ever end: the reclaimer was stuck, with room on the device.
#[test]
fn a_program_that_fits_its_device_hardly_waits_for_reclaim() {
    const TOUCHES: u64 = 40_000;
    for seed in 0..3 {
        let world = World::new(4 * BUDGET);
        let begin = Instant::now();
        never_out_of_memory(&world, || {
            let mut rng = Rng::new(seed);
            for _ in 0..TOUCHES {
                // Most touches are on a part that almost fits, so that limbo often comes back.
                let most = if rng.one_in(3) { 4 * BUDGET } else { BUDGET };
                let page = rng.below(most as u64) as usize;
                if rng.one_in(2) {
                    world.write(page);
                } else {
                    world.check(page);
                }
            }
        });
        let (stats, took) = (world.space.stats(), begin.elapsed());
        assert!(stats.limbo_faults.get() > 1_000, "{stats:?}");
        let waits = stats.reclaim_waits.get();
        let faults = stats.device_faults.get() + stats.first_touch_faults.get();
        assert!(
            waits <= faults / 4,
            "seed {seed}: {waits} waits in {faults} faults, {took:?}"
        );
        world.check_invariants();
        // With all of the program gone, all of the RAM can be had again.
        world.discard(0, 4 * BUDGET);
        let step = || world.space.reclaim(&mut Scratch::default());
        assert!(
            (0..10_000).any(|_| step() == Step::Idle),
            "RAM is there again"
        );
        (0..BUDGET - 64).for_each(|page| world.write(page));
        world.check_invariants();
    }
}

#[test]
fn all_of_limbo_touched_again_leaves_nothing_behind() {
    let world = World::new(4 * BUDGET);
    (0..BUDGET - 40).for_each(|page| world.write(page));
    let mut scratch = Scratch::default();
    for round in 0..200 {
        // One step at a time: a batch goes to limbo, and all of it comes back.
        let step = world.space.reclaim(&mut scratch);
        assert_ne!(step, Step::Stuck, "round {round}");
        for page in 0..BUDGET - 40 {
            world.check(page);
        }
        world.check_invariants();
    }
}

/// Pages that have just been brought in, in the way of the hand, and colder ones behind them.
#[test]
fn r20_reclaim_passes_by_what_has_just_come() {
    const YOUNG: usize = 60;
    let world = World::new(4 * BUDGET);
    world.write_all(YOUNG..440);
    world.mmu().advance(2 * MIN_STAY);
    world.write_all(0..YOUNG);
    let mut scratch = Scratch::default();
    while world.space.reclaim(&mut scratch) != Step::Idle {}
    let left = (YOUNG..440).filter(|&page| !world.state(page).is_mapped());
    assert!(left.count() >= 64);
    for page in 0..YOUNG {
        assert!(world.state(page).is_mapped(), "page {page}");
    }
    world.check_all();
    world.check_invariants();
}

/// A second chance is no new arrival, and neither is a page that was put back.
#[test]
fn r20_a_page_grows_old_whatever_is_tried_with_it() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..440);
    world.mmu().advance(2 * MIN_STAY);
    // The newcomers are behind the others.
    world.write_all(440..450);
    drop(
        world
            .space
            .migrate_vma(&crate::rig::args(0, 440, crate::rig::SYSTEM)),
    );
    let mut scratch = Scratch::default();
    while world.space.reclaim(&mut scratch) != Step::Idle {}
    for page in 440..450 {
        assert!(world.state(page).is_mapped(), "page {page}");
    }
    world.check_all();
    world.check_invariants();
}

/// Where all are young, reclaim takes them all the same (R19).
#[test]
fn r20_reclaim_takes_young_pages_where_there_are_no_others() {
    let world = World::new(4 * BUDGET);
    never_out_of_memory(&world, || world.write_all(0..4 * BUDGET - 1));
    world.check_all();
    world.check_invariants();
}
