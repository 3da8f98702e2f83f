//! Memory that was there before it was managed: adopted, and handed back with every byte.

use crate::duplicates::hint;
use crate::hook::Op;
use crate::rig::{DEVICE_COHERENT, DEVICE_PRIVATE, Three, number};
use crate::world::{BASE, World, or_abort, with_reclaimer};
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use uhmm_core::addr::{PageData, PageRange};
use uhmm_core::device::CopyInError;
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_core::hold::Hold;
use uhmm_core::mmu::{Mmu, Stop, Tracking};
use uhmm_core::pin::PinFlags;
use uhmm_sim::{Call, Failure, Fault};

fn pages(range: Range<usize>) -> PageRange {
    PageRange::new(BASE.plus(range.start), range.len())
}

/// Makes pages present that no entry knows of, as they are before they are adopted.
fn make_present(world: &World, range: Range<usize>) {
    for page in range {
        let mut data = [PageData::ZERO];
        world.oracle.write(page, &mut data[0]);
        let copied = world.mmu().copy(&data, BASE.plus(page), Tracking::Off);
        assert_eq!(copied.pages, 1);
    }
}

fn adopt(world: &World, range: Range<usize>) {
    world.space.inside().unwrap().adopt(pages(range));
}

/// One step of handing back, to a program that takes what it is given, if `takes`. What it is given is
/// claimed, and there.
fn step(world: &World, range: Range<usize>, takes: bool) -> usize {
    let mut asked = 0;
    let mut let_go = |gone: PageRange| {
        asked += 1;
        assert_eq!(gone.start, BASE.plus(range.start), "from the front");
        assert!(gone.len > 0 && gone.len <= range.len());
        for page in gone.iter() {
            assert_eq!(world.space.state(page), State::Migrating, "{page:?}");
        }
        takes
    };
    let all = pages(range.clone());
    let mut scratch = Scratch::default();
    let done = world.space.hand_back(all, &mut scratch, &mut let_go);
    let done = done.unwrap();
    assert!(asked <= 1);
    done
}

/// All of it, however often it takes.
fn hand_back(world: &World, range: Range<usize>) {
    let (mut next, start) = (range.start, std::time::Instant::now());
    loop {
        let late = start.elapsed() > std::time::Duration::from_secs(60);
        assert!(!late, "page {next} does not come");
        next += step(world, next..range.end, true);
        if next == range.end {
            return;
        }
    }
}

/// What the program has at `page` now, without a fault.
fn check_there(world: &World, page: usize) {
    world
        .oracle
        .check(page, &world.mmu().touch_read(BASE.plus(page)).unwrap());
}

/// Nothing of the pages is the space's, and what the program had is there.
fn check_handed_back(world: &World, range: Range<usize>, untouched: &[usize]) {
    for page in range {
        assert_eq!(world.state(page), State::None, "page {page}");
        if untouched.contains(&page) {
            assert!(!world.mmu().is_present(BASE.plus(page)), "page {page}");
        } else {
            check_there(world, page);
        }
        assert!(!world.mmu().is_tracked(BASE.plus(page)), "page {page}");
    }
    world.space.check_invariants();
}

#[test]
fn adopted_pages_are_in_ram_and_charged() {
    let world = World::new(64);
    make_present(&world, 8..24);
    // Touched since their faults are served.
    world.write(30);
    adopt(&world, 0..64);
    for page in 0..64 {
        let there = (8..24).contains(&page) || page == 30;
        let state = world.state(page);
        assert_eq!(matches!(state, State::System { .. }), there, "page {page}");
        assert_eq!(state == State::None, !there, "page {page}");
    }
    world.check_invariants();
    world.push_out();
    (8..24).for_each(|page| world.check(page));
    world.check(30);
    world.write_all(0..64);
    world.check_all();
    world.check_invariants();
}

/// A fault on a missing page that looks around claims pages that are there, for a moment.
#[test]
fn a_fault_that_looks_around_keeps_no_page_from_being_adopted() {
    let world = Arc::new(World::new(64));
    make_present(&world, 5..20);
    // In order, so that it looks further each time.
    (0..3).for_each(|page| world.write(page));
    let adopter = Arc::clone(&world);
    let (send, done) = std::sync::mpsc::channel();
    world.mmu().before(Op::Copy, move || {
        let other = thread::spawn(move || or_abort(|| adopt(&adopter, 0..64)));
        // It is at the page that the fault has in its hands.
        thread::sleep(Duration::from_millis(50));
        send.send(other).unwrap();
    });
    world.write(3);
    done.recv().unwrap().join().unwrap();
    for page in 0..20 {
        let state = world.state(page);
        assert!(
            matches!(state, State::System { .. }),
            "page {page}: {state:?}"
        );
    }
    world.check_invariants();
    (0..20).for_each(|page| world.check(page));
}

/// Adopted pages in every state that a page can be in; returns the pages that were never touched, and
/// the one that is lost.
fn each_state(world: &World) -> (Vec<usize>, usize) {
    make_present(world, 0..80);
    adopt(world, 0..100);
    hint(world, 60..70, true);
    world.push_out();
    let State::Private(at) = world.state(33) else {
        panic!("pushed out");
    };
    world.device.lose(at.page);
    assert_eq!(world.try_check(33), Err(Fault::Poisoned));
    world.device.heal();
    // Read, and written again.
    (60..70).for_each(|page| world.check(page));
    (64..66).for_each(|page| world.write(page));
    (10..20).for_each(|page| world.write(page));
    ((80..100).collect(), 33)
}

#[test]
fn pages_in_every_state_are_handed_back() {
    let world = World::new(256);
    let (untouched, lost) = each_state(&world);
    hand_back(&world, 0..lost);
    check_handed_back(&world, 0..lost, &[]);
    assert_eq!(step(&world, lost..lost + 1, true), 1);
    // It is lost for good, and nobody reads anything there.
    let there = world.mmu().touch_read(BASE.plus(lost)).map(drop);
    assert_eq!(there, Err(Fault::Poisoned));
    hand_back(&world, lost + 1..100);
    check_handed_back(&world, lost + 1..100, &untouched);
    assert_eq!(world.device.stored(), [], "the device is told (R4)");
    assert_eq!(world.space.stats().duplicate_pages.get(), 0);
}

#[test]
fn hints_are_gone_with_what_is_handed_back() {
    let world = World::new(256);
    make_present(&world, 0..64);
    adopt(&world, 0..64);
    hint(&world, 0..64, true);
    hand_back(&world, 0..64);
    adopt(&world, 0..64);
    world.push_out();
    (0..64).for_each(|page| world.check(page));
    assert_eq!(world.space.stats().duplicate_pages.get(), 0);
    world.check_invariants();
}

#[test]
fn r9_a_page_that_is_found_to_be_lost_is_handed_back_as_that() {
    let world = World::pushed_out(8);
    let State::Private(at) = world.state(5) else {
        unreachable!("pushed out");
    };
    world.device.lose(at.page);
    hand_back(&world, 0..8);
    let there = world.mmu().touch_read(BASE.plus(5)).map(drop);
    assert_eq!(there, Err(Fault::Poisoned));
    check_handed_back(&world, 0..5, &[]);
    check_handed_back(&world, 6..8, &[]);
    assert_eq!(world.space.stats().poisoned_pages.get(), 1);
    assert_eq!(world.device.stored(), []);
}

/// Also pages that are about to go out, and those that the CPU maps where they are.
#[test]
fn pages_in_limbo_and_on_mapped_devices_are_handed_back() {
    let three = Three::new(64);
    three.write_all(0..48);
    three.to_device(0, 16, DEVICE_COHERENT);
    three.to_device(16, 16, DEVICE_PRIVATE);
    // Put back to limbo, since the mapping does not take them.
    let migration = three.begin(32, 8, crate::rig::SYSTEM);
    (0..8).for_each(|_| three.mmu().fail(Call::Put, Failure::next(Stop::Changing)));
    drop(migration);
    three.mmu().heal();
    assert!(matches!(three.state(35), State::Limbo(_)));
    // One is pinned for I/O where it is: it stays in that frame.
    assert!(three.mmu().pin(number(7)));
    hand_back(&three, 0..48);
    check_handed_back(&three, 0..48, &[]);
    for device in [DEVICE_COHERENT, DEVICE_PRIVATE] {
        let stats = &three.space.stats().devices[usize::from(device)];
        assert_eq!(stats.pages.get(), 0);
    }
    assert_eq!(
        three.mmu().arena_resident(),
        16,
        "15 at home, and the pinned one"
    );
}

/// The program does not take them now: all of it stays managed, wherever it was.
#[test]
fn what_is_not_let_go_of_stays_managed() {
    let world = World::new(256);
    let (_, lost) = each_state(&world);
    for first in (0..100).step_by(10) {
        assert_eq!(step(&world, first..100, false), 0);
        world.check_invariants();
    }
    for page in (0..100).filter(|&page| page != lost) {
        world.check(page);
        world.write(page);
    }
    assert_eq!(world.try_check(lost), Err(Fault::Poisoned));
    world.push_out();
    (0..100)
        .filter(|&page| page != lost)
        .for_each(|page| world.check(page));
    world.check_invariants();
}

/// Held pages, pinned pages, and those that their device does not give end the step before them (R7,
/// R11), and come later.
#[test]
fn r7_what_does_not_come_now_is_what_it_was() {
    let world = World::pushed_out(32);
    let State::Private(at) = world.state(10) else {
        unreachable!("pushed out");
    };
    let held = world.space.hold_device_page(at, Hold::default()).unwrap();
    assert_eq!(step(&world, 0..32, true), 10);
    assert_eq!(step(&world, 10..32, true), 0);
    assert_eq!(world.state(10), State::Private(at));
    drop(held);
    let how = PinFlags::default();
    let pinned = world
        .space
        .pin_pages(pages(20..21), how, &mut Scratch::default());
    let pinned = pinned.unwrap();
    assert_eq!(step(&world, 10..32, true), 10);
    assert_eq!(step(&world, 20..32, true), 0);
    drop(pinned);
    world.device.retry_copy_out_after(5, 1000);
    let came = step(&world, 20..32, true);
    assert_eq!(came, 6, "the pinned one, and five more");
    assert_eq!(step(&world, 26..32, true), 0);
    assert!(matches!(world.state(26), State::Private(_)));
    world.device.heal();
    hand_back(&world, 26..32);
    check_handed_back(&world, 0..32, &[]);
}

/// Every call may fail at any time: it takes longer.
#[test]
fn failures_at_random_lose_nothing_on_the_way_back() {
    for seed in 0..200 {
        let world = World::new(256);
        let (untouched, lost) = each_state(&world);
        world.device.retry_copy_out_after(seed % 7, seed % 50);
        world.mmu().fail_at_random(seed, 3);
        for part in [0..lost, lost + 1..100] {
            hand_back(&world, part.clone());
        }
        world.mmu().heal();
        for part in [0..lost, lost + 1..100] {
            check_handed_back(&world, part, &untouched);
        }
    }
}

/// Reclaim takes out what it can while pages are handed back, and gets none of those.
#[test]
fn reclaim_and_the_way_back_do_not_meet() {
    for _ in 0..20 {
        let world = World::new(4096);
        with_reclaimer(&world.space, || {
            make_present(&world, 0..1000);
            adopt(&world, 0..1000);
            thread::scope(|scope| {
                scope.spawn(|| or_abort(|| world.write_all(2000..2600)));
                hand_back(&world, 0..1000);
            });
        });
        check_handed_back(&world, 0..1000, &[]);
        world.check_all();
    }
}

/// RAM is used for it above the budget, and no device needs room.
#[test]
fn the_way_back_needs_no_room() {
    let world = World::pushed_out(512);
    world.write_all(600..600 + crate::world::BUDGET);
    assert!(world.space.stats().ram_bytes.get() >= (crate::world::BUDGET as u64 - 128) * 4096);
    world.device.fail_copy_in_after(0, CopyInError::Full);
    hand_back(&world, 0..512);
    world.device.heal();
    check_handed_back(&world, 0..512, &[]);
}
