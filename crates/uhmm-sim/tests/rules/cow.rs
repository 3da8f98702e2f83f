//! R16 for coherent pages: after a fork the first write of a side copies to RAM, and the device keeps its
//! memory. Whatever else comes first finds a page that it can use, with every byte.

use crate::hook::Op;
use crate::rig::{DEVICE_COHERENT, DEVICE_PRIVATE, Three, Was, migrated, number};
use crate::types::range;
use crate::watcher::{FAST, LONG, Listener, READ, WRITE, device, pin, populate};
use crate::world::{World, share, touch};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uhmm_core::addr::PageRange;
use uhmm_core::entry::State;
use uhmm_core::failure::Failure;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::hold::Hold;
use uhmm_core::mirror::{Event, Mapped, Need};
use uhmm_core::mmu::{Mmu, Stop};
use uhmm_core::pin::PinError;
use uhmm_sim::{Call, Failure as Fails, Fault};

const PAGES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Parent,
    Child,
}

const SIDES: [Side; 2] = [Side::Parent, Side::Child];

/// Forks; `meanwhile` is what threads do while the gate is closed. Of the two sides the test goes on as
/// one.
fn fork(three: &Three, side: Side, meanwhile: impl FnOnce()) {
    let space = &three.space;
    let devices = space.begin_fork();
    space.close_for_fork();
    meanwhile();
    space.seal_for_fork();
    match side {
        Side::Parent => {
            share(space, space.range());
            space.open_in_parent();
        }
        Side::Child => {
            three.mmu().become_child();
            space.begin_in_child();
            space.open_in_child(&[space.range()]);
        }
    }
    drop(devices);
}

/// Coherent pages that a fork has shared.
fn shared(side: Side) -> Three {
    let three = Three::new(64);
    Was::Coherent.make(&three, 0, PAGES);
    fork(&three, side, || ());
    (0..PAGES).for_each(|page| assert!(is_shared(&three, page)));
    three.check_invariants();
    three
}

fn is_shared(three: &Three, page: usize) -> bool {
    let shared = three.space.is_shared(number(page));
    assert!(!shared || three.is_on(page, DEVICE_COHERENT));
    assert!(!shared || three.mmu().is_tracked(number(page)));
    shared
}

/// Whether a page is on the coherent device, the next write is no fault, and no copy that nobody sees.
fn is_own(three: &Three, page: usize) -> bool {
    let at = number(page);
    three.is_on(page, DEVICE_COHERENT)
        && !is_shared(three, page)
        && !three.mmu().is_tracked(at)
        && !three.mmu().is_shared(at)
}

/// Writes as a program does that finds there what it expects.
fn write_over(three: &Three, page: usize) -> Result<usize, Fault> {
    touch(&three.space, page, Access::Write, |mmu, at| {
        mmu.touch_write(at, |data| {
            three.oracle.check(page, data);
            three.oracle.write(page, data);
        })
    })
}

fn in_use(three: &Three) -> usize {
    let stats = &three.space.stats().devices[usize::from(DEVICE_COHERENT)];
    stats.pages.get() as usize
}

fn free_buried(three: &Three) {
    three.space.reclaim(&mut Scratch::default());
}

#[test]
fn r16_a_write_after_a_fork_copies_to_ram_and_a_read_does_not() {
    for side in SIDES {
        let three = shared(side);
        let on: Vec<_> = (0..PAGES).map(|page| three.on(page)).collect();
        for page in 0..PAGES {
            assert_eq!(three.try_check(page), Ok(0), "{side:?}: a read is no fault");
            assert!(is_shared(&three, page));
        }
        let first_touches = three.space.stats().first_touch_faults.get();
        for page in (0..PAGES).step_by(2) {
            assert_eq!(write_over(&three, page), Ok(1), "{side:?}: one fault");
            assert!(Was::System.is(&three, page), "{side:?}: page {page}");
            assert_eq!(write_over(&three, page), Ok(0));
            assert!(is_shared(&three, page + 1), "its neighbour stays");
        }
        assert_eq!(three.space.stats().first_touch_faults.get(), first_touches);
        free_buried(&three);
        assert_eq!(in_use(&three), PAGES / 2, "{side:?}");
        for page in (1..PAGES).step_by(2) {
            assert_eq!(three.on(page), on[page]);
        }
        three.check_all();
        // Charged, and no more than what is there.
        three.check_invariants();
        assert_eq!(three.space.stats().ram_bytes.get(), 4096 * PAGES as u64 / 2);
    }
}

/// As after a child that has ended or runs another program, which is what most do.
#[test]
fn r16_what_nobody_else_maps_any_more_stays_on_its_device() {
    for side in SIDES {
        let three = shared(side);
        three.mmu().share_no_more();
        assert_eq!(write_over(&three, 2), Ok(1));
        (2..PAGES).for_each(|page| assert!(is_own(&three, page), "{side:?}: {page}"));
        (2..PAGES).for_each(|page| assert_eq!(write_over(&three, page), Ok(0)));
        assert!(is_shared(&three, 0), "behind the page that was written");
        assert_eq!(in_use(&three), PAGES);
        three.check_all();
        three.check_invariants();
    }
}

/// Only some of the pages that lie side by side are one side's alone by now: the other has written them.
#[test]
fn r16_each_page_is_looked_at_for_itself() {
    let three = shared(Side::Parent);
    three.mmu().share_no_more();
    three.mmu().share(range(3, 2));
    assert_eq!(write_over(&three, 1), Ok(1));
    assert!(is_own(&three, 1) && is_own(&three, 2) && is_shared(&three, 3));
    assert_eq!(write_over(&three, 4), Ok(1));
    assert!(Was::System.is(&three, 4) && is_shared(&three, 5));
    three.check_all();
    three.check_invariants();
}

/// Faults that come while the gate is closed: the page is in RAM on both sides, with what was written.
#[test]
fn r16_what_is_written_while_a_fork_goes_on_is_in_ram_on_both_sides() {
    for side in SIDES {
        let three = Three::new(64);
        Was::Coherent.make(&three, 0, PAGES);
        fork(&three, side, || {
            for page in [1, 2, 6] {
                three.check(page);
                assert_eq!(write_over(&three, page), Ok(1));
                assert_eq!(write_over(&three, page), Ok(0));
                assert!(three.is_on(page, DEVICE_COHERENT), "entries do not change");
            }
            // Another thread's write was stopped by the same protection, and is told of only now. The page
            // is not protected any more, so nothing may be taken from it.
            three.mmu().before(Op::Discard, || ());
            let mut scratch = Scratch::default();
            three.space.fault(number(2), Access::Tracked, &mut scratch);
            assert_eq!(three.mmu().steps_left(), 1);
            three.mmu().discard(range(60, 1));
        });
        for page in 0..PAGES {
            let written = [1, 2, 6].contains(&page);
            assert_eq!(Was::System.is(&three, page), written, "{side:?}: {page}");
            assert_eq!(is_shared(&three, page), !written, "{side:?}: {page}");
        }
        free_buried(&three);
        assert_eq!(in_use(&three), PAGES - 3);
        three.check_all();
        three.check_invariants();
        three.push_out();
        three.check_all();
    }
}

/// The child is made in the middle of serving such a fault, whose thread it has not.
#[test]
fn r16_a_fork_in_the_middle_of_a_copy_loses_nothing() {
    let three = Three::new(64);
    Was::Coherent.make(&three, 0, PAGES);
    let space = three.space.clone();
    // Each later step of the copy; of the last two the page is not there.
    for (page, op) in [(1, Op::WithArena), (2, Op::Discard), (3, Op::Copy)] {
        space.close_for_fork();
        three
            .mmu()
            .before(op, || resume_unwind(Box::new("the process is copied")));
        let unwound = catch_unwind(AssertUnwindSafe(|| write_over(&three, page)));
        assert!(unwound.is_err(), "{op:?}");
        three.mmu().become_child();
        space.begin_in_child();
        space.open_in_child(&[space.range()]);
        three.check(page);
        three.check_all();
        three.write(page);
        three.check_all();
    }
}

#[test]
fn r16_a_pin_makes_a_shared_page_this_sides_own() {
    for (flags, long) in [(READ, false), (WRITE, false), (LONG, true)] {
        for ended in [false, true] {
            let three = shared(Side::Parent);
            if ended {
                three.mmu().share_no_more();
            }
            let at = three.on(3);
            let fast = pin(&three.space, 3, 1, FAST).map(drop);
            assert_eq!(fast, Err(PinError::WouldFault(number(3))));
            let pinned = pin(&three.space, 3, 2, flags).unwrap();
            for page in 3..5 {
                assert_eq!(is_own(&three, page), !long, "{flags:?}: page {page}");
                assert_eq!(
                    write_over(&three, page),
                    Ok(0),
                    "{flags:?}: what is pinned stays"
                );
            }
            assert!(long || three.on(3) == at);
            drop(pinned);
            assert!(is_shared(&three, 2) && is_shared(&three, 5));
            three.check_all();
            free_buried(&three);
            three.check_invariants();
        }
    }
}

#[test]
fn r16_a_device_that_is_to_write_gets_this_sides_own_page() {
    for ended in [false, true] {
        let three = shared(Side::Child);
        if ended {
            three.mmu().share_no_more();
        }
        let (listener, mirror) = device(&three.space, 0, PAGES);
        let on = |page| three.on(page);
        let mapped = |write| move |at| Mapped::Device { at, write };
        let look = |need| populate(&mirror, 3, 1, need).unwrap()[0];
        for need in [Need::SNAPSHOT, Need::READ] {
            assert_eq!(look(need), mapped(false)(on(3)), "not to be written to");
            assert!(is_shared(&three, 3));
        }
        listener.take();
        let at = on(3);
        assert_eq!(look(Need::WRITE), mapped(true)(at));
        assert!(is_own(&three, 3) && is_shared(&three, 4));
        assert!(
            !listener.take().is_empty(),
            "told, since it had mapped what is gone now"
        );
        let mut table = mirror.lock().unwrap();
        assert_eq!(table.write(number(3), 0, &[0xee]), Ok(()));
        drop(table);
        assert_eq!(three.mmu().touch_read(number(3)).unwrap().0[0], 0xee);
        drop(mirror);
        three.discard(3, 1);
        three.check_all();
        three.check_invariants();
    }
}

/// Who mirrors a page that is copied is told before that.
#[test]
fn r14_a_copy_on_write_tells_who_has_the_page_mapped() {
    let three = shared(Side::Parent);
    let (listener, _notifier) = Listener::on(&three.space, 0, PAGES);
    let (space, then) = (three.space.clone(), Arc::new(Mutex::new(None)));
    let seen = then.clone();
    listener.in_next(move || {
        let page = number(2);
        *seen.lock().unwrap() = Some((space.state(page), space.mmu().is_present(page)));
    });
    assert_eq!(write_over(&three, 2), Ok(1));
    let then = *then.lock().unwrap();
    assert_eq!(
        then,
        Some((State::Migrating, true)),
        "nothing has changed yet"
    );
    let heard = listener.take();
    assert!(heard.iter().all(|heard| *heard == (2, 1, Event::Migrate)));
    three.check_all();
}

/// What a driver holds stays on the device, under its number, and is written there.
#[test]
fn r16_a_held_page_stays_on_its_device() {
    for before in [false, true] {
        let three = Three::new(64);
        Was::Coherent.make(&three, 0, PAGES);
        let at = three.on(2);
        let hold = || three.space.hold_device_page(at, Hold::default()).unwrap();
        let early = before.then(hold);
        fork(&three, Side::Parent, || ());
        let held = early.unwrap_or_else(hold);
        assert_eq!(write_over(&three, 2), Ok(1));
        assert!(is_own(&three, 2));
        assert_eq!(three.on(2), at);
        drop(held);
        free_buried(&three);
        three.check_all();
        three.check_invariants();
    }
}

/// Pages go wherever they are sent, and are what they were; nothing waits for itself.
#[test]
fn r16_shared_pages_go_wherever_they_are_sent() {
    type Way = fn(&Three) -> bool;
    let ways: [(&str, Way); 7] = [
        ("RAM", |three| {
            three.to_system(0, PAGES) == migrated(PAGES, 0)
                && (0..PAGES).all(|page| Was::System.is(three, page))
        }),
        ("a private device", |three| {
            three.to_device(0, PAGES, DEVICE_PRIVATE) == migrated(PAGES, 0)
                && (0..PAGES).all(|page| three.is_on(page, DEVICE_PRIVATE))
        }),
        ("nowhere, in the end", |three| {
            drop(three.begin(0, PAGES, uhmm_core::migrate::Select::DEVICE_COHERENT));
            (0..PAGES).all(|page| is_own(three, page))
        }),
        ("off the device", |three| {
            let soon = Duration::from_secs(9);
            let mut scratch = Scratch::default();
            let evicted = three
                .space
                .evict_device(DEVICE_COHERENT, soon, &mut scratch);
            evicted == Ok(()) && (0..PAGES).all(|page| Was::System.is(three, page))
        }),
        ("another address", |three| {
            let on: Vec<_> = (0..PAGES).map(|page| three.on(page)).collect();
            let inside = three.space.inside().unwrap();
            inside.relocate(range(0, PAGES), number(32)).unwrap();
            inside.relocate(range(32, PAGES), number(0)).unwrap();
            (0..PAGES).all(|page| is_own(three, page) && three.on(page) == on[page])
        }),
        ("the program", |three| {
            let mut scratch = Scratch::default();
            let mut let_go = |_| true;
            let given = three
                .space
                .hand_back(range(0, PAGES), &mut scratch, &mut let_go);
            given == Ok(PAGES) && (0..PAGES).all(|page| three.mmu().is_present(number(page)))
        }),
        ("a view", |three| {
            let view = three.space.view(DEVICE_COHERENT, range(0, PAGES)).unwrap();
            (0..PAGES).for_each(|page| _ = write_over(three, page).unwrap());
            view.check() == Ok(()) && (0..PAGES).all(|page| is_own(three, page))
        }),
    ];
    for (name, way) in ways {
        for side in SIDES {
            for other in ["shares them", "has ended", "has some of them"] {
                let three = shared(side);
                if other != "shares them" {
                    three.mmu().share_no_more();
                }
                if other == "has some of them" {
                    three.mmu().share(range(2, 3));
                }
                assert!(way(&three), "{side:?}, to {name}; the other side {other}");
                free_buried(&three);
                if name == "the program" {
                    for page in 0..PAGES {
                        let data = three.mmu().touch_read(number(page)).unwrap();
                        three.oracle.check(page, &data);
                    }
                    continue;
                }
                three.check_all();
                three.check_invariants();
                (0..PAGES).for_each(|page| _ = write_over(&three, page).unwrap());
                three.check_all();
                three.check_invariants();
            }
        }
    }
}

/// A range that the program may not write to, and then may.
#[test]
fn r16_read_only_pages_are_shared_and_move_too() {
    for to_device in [false, true] {
        let three = Three::new(64);
        Was::Coherent.make(&three, 0, PAGES);
        three.protect(0, PAGES, false);
        fork(&three, Side::Parent, || ());
        if to_device {
            assert_eq!(three.to_device(0, 4, DEVICE_PRIVATE), migrated(4, 0));
        }
        three.check_all();
        three.protect(0, PAGES, true);
        for page in 0..PAGES {
            let faults = usize::from(is_shared(&three, page));
            assert_eq!(faults == 0, to_device && page < 4, "page {page}");
            assert_eq!(write_over(&three, page), Ok(faults));
            assert!(Was::System.is(&three, page));
        }
        three.check_all();
        free_buried(&three);
        three.check_invariants();
    }
}

#[test]
fn r16_memory_that_fails_is_lost_on_one_side_alone() {
    for by_device in [false, true] {
        let three = shared(Side::Parent);
        let failed = match by_device {
            true => three.space.device_memory_failure(three.on(2)),
            false => three.space.memory_failure(number(2)),
        };
        assert_eq!(failed, Ok(Failure::Poisoned));
        assert_eq!(three.state(2), State::Poisoned);
        assert!(!three.mmu().is_tracked(number(2)));
        three.discard(2, 1);
        three.write(2);
        three.check_all();
        free_buried(&three);
        three.check_invariants();
    }
}

#[test]
fn r16_what_is_dropped_is_dropped() {
    let three = shared(Side::Child);
    three.discard(0, 3);
    // Behind our back.
    three.mmu().discard(range(4, 1));
    three.oracle.discard(4);
    free_buried(&three);
    three.check(4);
    (0..PAGES).for_each(|page| _ = write_over(&three, page).unwrap());
    three.check_all();
    free_buried(&three);
    three.check_invariants();
    assert_eq!(in_use(&three), 0);
}

/// Where there is no memory for the copy, the write waits, and nothing is lost.
#[test]
fn r16_a_machine_without_memory_makes_the_write_wait() {
    let three = shared(Side::Parent);
    for call in [Call::FillArena, Call::Copy, Call::Put, Call::Peek] {
        three.mmu().fail(call, Fails::next(Stop::NoMemory));
        three.mmu().fail(call, Fails::next(Stop::NoMemory));
    }
    (0..PAGES).for_each(|page| _ = write_over(&three, page).unwrap());
    three.check_all();
    three.mmu().heal();
    free_buried(&three);
    three.check_invariants();
}

#[test]
fn r16_a_copy_that_fails_leaves_nothing_at_home() {
    let three = shared(Side::Parent);
    let at = three.on(2);
    three.mmu().fail(Call::Peek, Fails::next(Stop::NoMemory));
    assert_eq!(three.to_system(2, 1), migrated(0, 1));
    assert!(is_shared(&three, 2) && !three.mmu().arena_holds_frame(at));
    // Its frame is where it was, and goes home now.
    three.mmu().share_no_more();
    assert_eq!(three.to_system(2, 1), migrated(1, 0));
    three.check_all();
    three.check_invariants();
}

/// A kernel that does not track leaves pages as they would be without all this.
#[test]
fn r16_pages_that_cannot_be_tracked_are_left_to_the_kernel() {
    let three = Three::new(64);
    Was::Coherent.make(&three, 0, PAGES);
    three.mmu().fail(Call::Track, Fails::next(Stop::Changing));
    fork(&three, Side::Parent, || ());
    (0..PAGES).for_each(|page| assert!(!is_shared(&three, page)));
    three.check_all();
}

/// Forks of forks: each one shares anew what is on the device by then.
#[test]
fn r16_a_fork_shares_again_what_has_become_one_sides_own() {
    let three = shared(Side::Parent);
    three.write(1);
    three.mmu().share_no_more();
    three.write(4);
    assert!(is_own(&three, 4) && Was::System.is(&three, 1));
    for side in [Side::Child, Side::Parent, Side::Child] {
        fork(&three, side, || ());
        for page in (0..PAGES).filter(|page| *page != 1) {
            assert!(is_shared(&three, page), "{side:?}: {page}");
        }
        three.check_all();
        three.check_invariants();
    }
    (0..PAGES).for_each(|page| assert!(write_over(&three, page).unwrap() < 2));
    assert!((0..PAGES).all(|page| Was::System.is(&three, page)));
    three.check_all();
    free_buried(&three);
    three.check_invariants();
}

/// Nothing is marked, and no page is looked at, where no device has memory that the CPU maps.
#[test]
fn r16_a_fork_without_coherent_memory_tracks_nothing() {
    let world = World::new(64);
    world.write_all(0..8);
    world.space.close_for_fork();
    world.space.open_in_parent();
    let all = PageRange::new(number(0), 64);
    assert!(all.iter().all(|page| !world.mmu().is_tracked(page)));
    world.check_all();
}
