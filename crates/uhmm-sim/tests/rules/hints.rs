//! Hints: what each of them changes, what it does not, and that none of them costs a byte or keeps anybody
//! waiting.

use crate::allocations::counted;
use crate::duplicates::{duplicates, is_private};
use crate::rig::{DEVICE_COHERENT, DEVICE_PRIVATE, Three, WATCHED, migrated};
use crate::types::range;
use crate::world::{BASE, BUDGET, World, with_reclaimer};
use std::ops::Range;
use std::time::Duration;
use uhmm_core::addr::PageNo;
use uhmm_core::device::CopyInError;
use uhmm_core::entry::State;
use uhmm_core::error::RangeError;
use uhmm_core::evict::RemoveError;
use uhmm_core::fault::Scratch;
use uhmm_core::hints::{Hints, Preferred};
use uhmm_core::hold::Hold;
use uhmm_core::migrate::Migrated;
use uhmm_core::reclaim::Step;
use uhmm_testkit::Rng;

const RAM: Hints = prefers(Preferred::Ram);

const fn prefers(place: Preferred) -> Hints {
    Hints {
        preferred: Some(place),
        ..Hints::NONE
    }
}

const fn prefers_device(device: u8) -> Hints {
    prefers(Preferred::Device(device))
}

fn hint(world: &World, pages: Range<usize>, hints: Hints) {
    let inside = world.space.inside().unwrap();
    let pages = range(pages.start, pages.len());
    inside.set_hints(pages, hints).unwrap();
}

fn will_need(world: &World, pages: Range<usize>) -> Migrated {
    let pages = range(pages.start, pages.len());
    let done = world.space.will_need(pages, &mut Scratch::default());
    done.unwrap()
}

fn do_not_need(world: &World, pages: Range<usize>) -> Migrated {
    let pages = range(pages.start, pages.len());
    let done = world.space.do_not_need(pages, &mut Scratch::default());
    done.unwrap()
}

fn is_mapped(world: &World, page: usize) -> bool {
    matches!(world.state(page), State::System { .. })
}

fn is_on(world: &World, page: usize, device: u8) -> bool {
    matches!(world.state(page), State::Private(at) if at.device == device)
}

/// Lets so much time pass that no page has just come (R20).
fn age(world: &World) {
    world.mmu().advance(Duration::from_millis(10));
}

/// Reclaims until there is enough RAM.
fn reclaim(world: &World) {
    age(world);
    let mut scratch = Scratch::default();
    let mut steps = (0..10_000).map(|_| world.space.reclaim(&mut scratch));
    assert!(steps.any(|step| step == Step::Idle), "it does not end");
}

/// Pages that leave reclaim at rest.
const ROOMY: usize = BUDGET - 128;
/// Pages that leave only a few of RAM.
const CROWD: usize = BUDGET - 12;

#[test]
fn a_cold_page_goes_to_the_device_that_it_prefers() {
    for batch in [1, 16] {
        let three = Three::with_batch(4 * BUDGET, batch);
        three.write_all(0..96);
        hint(&three, 10..30, prefers_device(DEVICE_PRIVATE));
        hint(&three, 60..61, prefers_device(DEVICE_PRIVATE));
        hint(&three, 61..70, prefers_device(WATCHED));
        assert_eq!(three.push_out(), 0);
        for page in 0..96 {
            let preferred = (10..30).contains(&page) || page == 60;
            let device = if preferred { DEVICE_PRIVATE } else { WATCHED };
            assert!(
                three.is_on(page, device),
                "page {page} is {:?}",
                three.state(page)
            );
        }
        three.check_all();
        // And again, once it has been taken back.
        hint(&three, 0..96, Hints::NONE);
        assert_eq!(three.push_out(), 0);
        assert!((0..96).all(|page| three.is_on(page, WATCHED)));
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn a_page_that_cannot_be_written_goes_where_it_prefers_to_be() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..8);
    hint(&three, 2..5, prefers_device(DEVICE_PRIVATE));
    three.protect(0, 8, false);
    assert_eq!(three.push_out(), 0);
    for page in 0..8 {
        let device = [WATCHED, DEVICE_PRIVATE][usize::from((2..5).contains(&page))];
        assert!(
            three.is_on(page, device),
            "page {page} is {:?}",
            three.state(page)
        );
    }
    three.check_all();
}

#[test]
fn a_preferred_device_that_takes_nothing_is_no_obstacle() {
    const SHORT: Duration = Duration::from_secs(5);
    let trouble: [fn(&Three); 3] = [
        |three| three.private.set_full(true),
        |three| {
            let mut scratch = Scratch::default();
            let done = three
                .space
                .suspend_device(DEVICE_PRIVATE, SHORT, &mut scratch);
            done.unwrap();
        },
        |three| {
            let mut scratch = Scratch::default();
            let remove =
                |scratch: &mut _| three.space.remove_device(DEVICE_PRIVATE, SHORT, scratch);
            remove(&mut scratch).unwrap();
            assert!(three.space.is_removed(DEVICE_PRIVATE));
            assert_eq!(remove(&mut scratch), Err(RemoveError::AlreadyRemoved));
        },
    ];
    for trouble in trouble {
        let three = Three::new(4 * BUDGET);
        assert!(!three.space.is_removed(DEVICE_PRIVATE));
        three.write_all(0..80);
        hint(&three, 0..40, prefers_device(DEVICE_PRIVATE));
        // A device that there never was.
        hint(&three, 40..50, prefers_device(7));
        trouble(&three);
        assert_eq!(three.push_out(), 0);
        assert!((0..80).all(|page| three.is_on(page, WATCHED)));
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn r13_a_preference_for_coherent_memory_does_not_let_pressure_spill_into_it() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..CROWD);
    hint(&three, 0..CROWD, prefers_device(DEVICE_COHERENT));
    reclaim(&three);
    assert_eq!(do_not_need(&three, 200..300).left, 0);
    assert_eq!(three.push_out(), 0);
    assert!((0..CROWD).all(|page| three.is_on(page, WATCHED)));
    assert_eq!(three.mmu().arena_resident(), 0);
    three.check_all();
}

#[test]
fn a_device_that_is_being_emptied_is_not_preferred() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..40);
    hint(&three, 0..40, prefers_device(DEVICE_PRIVATE));
    assert_eq!(three.push_out(), 0);
    let mut scratch = Scratch::default();
    three.write_all(40..CROWD);
    // There is RAM for some of them at a time: the others make room, and do not come back here.
    let done = three
        .space
        .evict_device(DEVICE_PRIVATE, Duration::from_secs(10), &mut scratch);
    done.unwrap();
    assert!((0..40).all(|page| !three.is_on(page, DEVICE_PRIVATE)));
    three.check_all();
}

/// The hand begins at the first page, which it would take first.
#[test]
fn pages_that_prefer_ram_leave_it_after_all_others() {
    // Few of them, whole chunks of the table, and with a part of it in between.
    for stay in [0..64, 0..300, 100..164] {
        let world = World::new(4 * BUDGET);
        hint(&world, stay.clone(), RAM);
        for turn in 0..8 {
            // All of them again each time: cold pages come in for others.
            world.write_all(stay.clone());
            let next = 600 + turn * 150;
            with_reclaimer(&world.space, || world.write_all(next..next + 150));
            reclaim(&world);
            for page in stay.clone() {
                assert!(
                    is_mapped(&world, page),
                    "page {page} in turn {turn} of {stay:?}"
                );
            }
        }
        assert!(world.device.copies_in() > 500, "others have left");
        world.check_all();
        world.check_invariants();
    }
}

#[test]
fn a_chunk_that_prefers_ram_is_passed_by_as_a_whole() {
    let world = World::new(4 * BUDGET);
    hint(&world, 0..512, RAM);
    world.write_all(0..300);
    world.write_all(600..600 + ROOMY + 1 - 300);
    assert!(is_mapped(&world, 600));
    age(&world);
    // A handler looks at only 256 entries, and yet finds the others behind the 300.
    world.fault(3 * BUDGET);
    assert!(matches!(world.state(600), State::Limbo(_)));
    assert!((0..300).all(|page| is_mapped(&world, page)));
}

#[test]
fn r19_pages_that_prefer_ram_are_taken_when_there_are_no_others() {
    let world = World::new(4 * BUDGET);
    hint(&world, 0..4 * BUDGET, RAM);
    // By the page too.
    (0..4 * BUDGET).step_by(97).for_each(|page| {
        hint(&world, page..page + 1, prefers_device(WATCHED));
        hint(&world, page..page + 1, RAM);
    });
    with_reclaimer(&world.space, || {
        for page in 0..4 * BUDGET {
            world.write(page);
        }
        let mut rng = Rng::new(5);
        for _ in 0..4 * BUDGET {
            world.check(rng.below(4 * BUDGET as u64) as usize);
        }
    });
    assert_eq!(world.mmu().out_of_memory_count(), 0);
    world.check_all();
    assert_eq!(world.push_out(), 0);
    world.check_invariants();
}

#[test]
fn r19_what_cannot_leave_does_not_keep_those_that_can() {
    let world = World::new(4 * BUDGET);
    hint(&world, 0..CROWD, RAM);
    // Others, none of which can be taken.
    hint(&world, 100..140, Hints::NONE);
    world.write_all(100..140);
    (100..140).for_each(|page| assert!(world.mmu().pin(BASE.plus(page))));
    world.write_all(140..CROWD);
    world.write_all(0..100);
    let mut scratch = Scratch::default();
    // The first steps may find that nothing else is there, and no more than that.
    let steps = (0..20).map(|_| world.space.reclaim(&mut scratch));
    assert!(steps.filter(|step| *step == Step::Stuck).count() <= 2);
    reclaim(&world);
    (100..140).for_each(|page| {
        assert!(is_mapped(&world, page), "page {page} is pinned");
        world.mmu().unpin(BASE.plus(page));
    });
    world.check_all();
    world.check_invariants();
}

#[test]
fn what_is_not_needed_soon_goes_now_and_nothing_else() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..300);
    // Hot ones, what prefers RAM, and what prefers another device.
    will_need(&three, 0..300);
    hint(&three, 50..60, RAM);
    hint(&three, 60..70, prefers_device(DEVICE_PRIVATE));
    assert_eq!(do_not_need(&three, 20..220), migrated(200, 0));
    for page in 0..300 {
        let gone = (20..220).contains(&page);
        let device = [WATCHED, DEVICE_PRIVATE][usize::from((60..70).contains(&page))];
        let right = if gone {
            is_on(&three, page, device)
        } else {
            is_mapped(&three, page)
        };
        assert!(right, "page {page} is {:?}", three.state(page));
    }
    three.check_invariants();
    // There is nothing more to do.
    let copies = three.device.copies_in();
    assert_eq!(do_not_need(&three, 20..220), migrated(0, 0));
    assert_eq!(three.device.copies_in(), copies);
    three.check_all();
    three.check_invariants();
}

#[test]
fn what_is_not_needed_goes_whatever_state_it_is_in() {
    let three = Three::new(4 * BUDGET);
    let world = &three.world;
    // 0..8 with a duplicate, 8..16 in limbo, 16..24 read-only, 24..32 on coherent memory, 32..40 pinned.
    three.write_all(0..8);
    three.push_out();
    hint(world, 0..8, Hints::READ_MOSTLY);
    (0..8).rev().for_each(|page| three.check(page));
    assert_eq!(duplicates(world, 0..8), 8);
    three.write_all(8..16);
    three.device.fail_copy_in_after(0, CopyInError::Full);
    three.private.set_full(true);
    assert_eq!(do_not_need(world, 8..16), migrated(0, 8));
    assert!((8..16).all(|page| matches!(three.state(page), State::Limbo(_))));
    three.device.heal();
    three.private.set_full(false);
    three.write_all(16..40);
    three.protect(16, 8, false);
    assert_eq!(three.to_device(24, 8, DEVICE_COHERENT), migrated(8, 0));
    (32..40).for_each(|page| assert!(three.mmu().pin(BASE.plus(page))));
    let copies = three.device.copies_in();
    assert_eq!(do_not_need(world, 0..64), migrated(24, 8));
    assert_eq!(
        three.device.copies_in(),
        copies + 16,
        "what has a duplicate is not copied"
    );
    for page in 0..64 {
        let state = three.state(page);
        let right = match page {
            0..24 => is_on(world, page, WATCHED),
            24..32 => three.is_on(page, DEVICE_COHERENT),
            32..40 => is_mapped(world, page),
            _ => state == State::None,
        };
        assert!(right, "page {page} is {state:?}");
    }
    (32..40).for_each(|page| three.mmu().unpin(BASE.plus(page)));
    three.check_all();
    three.check_invariants();
}

#[test]
fn what_is_not_needed_stays_where_no_device_has_room() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..300);
    world.device.fail_copy_in_after(100, CopyInError::Full);
    let done = do_not_need(&world, 0..300);
    assert_eq!(done, migrated(100, 200));
    // It stops there: what stays is mapped, but for what it had in its hands.
    let limbo = (0..300).filter(|&page| matches!(world.state(page), State::Limbo(_)));
    assert!(limbo.count() <= 128);
    assert_eq!(do_not_need(&world, 0..300), migrated(0, 200));
    world.check_all();
    world.device.heal();
    world.check_invariants();
    // No block of the pool is lost with it.
    assert_eq!(do_not_need(&world, 0..300), migrated(300, 0));
    for _ in 0..600 {
        world.write_all(0..4);
        assert_eq!(do_not_need(&world, 0..4), migrated(4, 0));
    }
    world.check_all();
    world.check_invariants();
}

/// With no device at all there is nowhere to go.
#[test]
fn without_a_device_nothing_is_pushed_out() {
    let space = crate::world::space(2 * BUDGET, vec![]);
    crate::types::write(&space, 3, 7);
    let done = space.do_not_need(range(0, 64), &mut Scratch::default());
    assert_eq!(done, Ok(migrated(0, 1)));
    assert_eq!(crate::types::read(&space, 3), 7);
    space.check_invariants();
}

#[test]
fn what_will_be_needed_comes_back_without_a_fault() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..100);
    assert_eq!(world.push_out(), 0);
    world.device.fail_copy_in_after(0, CopyInError::Full);
    world.write_all(100..120);
    world.push_out();
    world.device.heal();
    assert!((100..120).all(|page| matches!(world.state(page), State::Limbo(_))));
    hint(&world, 40..50, Hints::READ_MOSTLY);
    assert_eq!(will_need(&world, 20..140), migrated(100, 0));
    for page in 20..120 {
        assert_eq!(world.try_check(page), Ok(0), "page {page}");
        let spared = matches!(
            world.state(page),
            State::System {
                referenced: true,
                ..
            }
        );
        assert!(spared, "page {page} is {:?}", world.state(page));
    }
    assert_eq!(
        duplicates(&world, 0..140),
        10,
        "copies are kept of what is mostly read"
    );
    assert!((120..140).all(|page| world.state(page) == State::None));
    assert!((0..20).all(|page| is_private(&world, page)));
    assert_eq!(will_need(&world, 20..140), migrated(0, 0));
    world.check_all();
    world.check_invariants();
}

#[test]
fn what_will_be_needed_pushes_nothing_out() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..400);
    assert_eq!(world.push_out(), 0);
    world.write_all(1000..1200);
    let done = will_need(&world, 0..400);
    assert!(done.migrated > 100, "there was room for {done:?}");
    assert_eq!(done.migrated + done.left, 400);
    assert_eq!(world.space.reclaim(&mut Scratch::default()), Step::Idle);
    assert!((1000..1200).all(|page| is_mapped(&world, page)));
    assert!(
        (0..done.migrated).all(|page| is_mapped(&world, page)),
        "in order"
    );
    world.check_all();
    world.check_invariants();
}

#[test]
fn what_will_be_needed_is_spared_by_reclaim() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..CROWD);
    assert_eq!(will_need(&world, 0..64), migrated(0, 0));
    reclaim(&world);
    assert!((0..64).all(|page| is_mapped(&world, page)));
    // Once, and not when it is taken back.
    let inside = world.space.inside().unwrap();
    inside.cool(range(0, 64)).unwrap();
    drop(inside);
    world.write_all(CROWD..CROWD + 100);
    world.push_out();
    assert!((0..64).all(|page| is_private(&world, page)));
    world.check_all();
}

#[test]
fn what_was_cooled_goes_before_what_was_not() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..ROOMY);
    will_need(&world, 0..ROOMY);
    let inside = world.space.inside().unwrap();
    inside.cool(range(200, 150)).unwrap();
    assert_eq!(
        inside.cool(range(4 * BUDGET - 1, 2)),
        Err(RangeError::NotManaged)
    );
    drop(inside);
    // As many others come in, which are as cold, but further on.
    world.write_all(1000..1128);
    reclaim(&world);
    let gone = |pages: Range<usize>| pages.filter(|&page| !is_mapped(&world, page)).count();
    assert_eq!(gone(0..200) + gone(350..ROOMY), 0);
    assert!(gone(200..350) >= 100, "{} have gone", gone(200..350));
    world.check_all();
}

#[test]
fn what_is_held_or_lost_does_not_hold_up_what_will_be_needed() {
    let world = World::pushed_out(10);
    let State::Private(held) = world.state(3) else {
        panic!("page 3 is {:?}", world.state(3));
    };
    let State::Private(lost) = world.state(6) else {
        panic!("page 6 is {:?}", world.state(6));
    };
    let hold = world.space.hold_device_page(held, Hold::default()).unwrap();
    world.device.lose(lost.page);
    assert_eq!(will_need(&world, 0..10), migrated(9, 1));
    assert!(is_private(&world, 3));
    assert_eq!(
        world.state(6),
        State::Poisoned,
        "lost, and known to be lost (R9)"
    );
    drop(hold);
    world.check(3);
    assert_eq!(world.space.stats().poisoned_pages.get(), 1);
}

#[test]
fn hints_follow_at_once_only_within_the_space_and_while_no_fork_lasts() {
    let world = World::pushed_out(10);
    let mut scratch = Scratch::default();
    let far = range(4 * BUDGET - 1, 2);
    let not_managed = Err(RangeError::NotManaged);
    assert_eq!(world.space.will_need(far, &mut scratch), not_managed);
    assert_eq!(world.space.do_not_need(far, &mut scratch), not_managed);
    let inside = world.space.inside().unwrap();
    assert_eq!(inside.set_hints(far, RAM), Err(RangeError::NotManaged));
    drop(inside);
    assert_eq!(world.space.hints(PageNo(BASE.0 - 1)), Hints::NONE);
    world.write_all(10..12);
    world.space.close_for_fork();
    world.space.seal_for_fork();
    let forking = Err(RangeError::Forking);
    assert_eq!(world.space.will_need(range(0, 8), &mut scratch), forking);
    assert_eq!(world.space.do_not_need(range(8, 8), &mut scratch), forking);
    world.space.open_in_parent();
    assert!((0..10).all(|page| is_private(&world, page)));
    world.check_all();
}

#[test]
fn what_is_wanted_of_a_page_can_be_asked_for() {
    let world = World::new(4 * BUDGET);
    let both = Hints {
        accessed_by: 0b101,
        ..prefers_device(1)
    };
    hint(&world, 10..20, both);
    hint(&world, 15..16, RAM);
    for page in 0..40 {
        let expected = match page {
            15 => RAM,
            10..20 => both,
            _ => Hints::NONE,
        };
        assert_eq!(world.space.hints(BASE.plus(page)), expected, "page {page}");
    }
    // Where many pages have the same, and some are changed.
    hint(&world, 512..1500, both);
    hint(&world, 600..601, Hints::NONE);
    for page in 512..1500 {
        let expected = if page == 600 { Hints::NONE } else { both };
        assert_eq!(world.space.hints(BASE.plus(page)), expected, "page {page}");
    }
}

/// Hints stay with the address, wherever the page goes.
#[test]
fn hints_survive_what_happens_to_the_page() {
    let three = Three::new(4 * BUDGET);
    let hints = Hints {
        read_mostly: true,
        preferred: Some(Preferred::Device(DEVICE_PRIVATE)),
        accessed_by: 2,
    };
    three.write_all(0..8);
    hint(&three, 0..8, hints);
    let still = || {
        (0..8).all(|page| three.space.hints(BASE.plus(page)) == hints)
            && three.space.hints(BASE.plus(8)) == Hints::NONE
    };
    three.push_out();
    assert!(still());
    three.to_device(0, 8, DEVICE_COHERENT);
    assert!(still());
    three.to_system(0, 8);
    three.discard(0, 4);
    let mut scratch = Scratch::default();
    let evicted = three
        .space
        .evict_device(DEVICE_PRIVATE, Duration::from_secs(5), &mut scratch);
    evicted.unwrap();
    assert!(still());
    three.check_all();
}

#[test]
fn r18_hints_allocate_nothing_where_faults_are_served() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..CROWD);
    three.push_out();
    three.write_all(600..600 + CROWD);
    let allocations = counted(|| {
        hint(&three, 5..200, prefers_device(DEVICE_PRIVATE));
        hint(&three, 600..800, RAM);
        hint(&three, 0..100, Hints::READ_MOSTLY);
    });
    assert_eq!(allocations, 0);
    let mut scratch = Scratch::default();
    for page in 0..11 {
        let allocations = counted(|| {
            let read = uhmm_core::fault::Access::Read;
            three.space.fault(BASE.plus(page * 7), read, &mut scratch);
        });
        assert_eq!(allocations, 0, "page {page}");
    }
    three.check_invariants();
}

/// Threads that touch, with hints that come and go, and pages that are asked for and sent away.
#[test]
fn hints_at_random_lose_nothing() {
    for seed in 0..4 {
        let three = Three::with_batch(4 * BUDGET, 8);
        let part = |rng: &mut Rng| {
            let start = rng.below(4 * BUDGET as u64) as usize;
            start..start + 1 + rng.below((4 * BUDGET - start).min(700) as u64) as usize
        };
        with_reclaimer(&three.space, || {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut rng = Rng::new(seed);
                    for _ in 0..300 {
                        let pages = part(&mut rng);
                        match rng.below(4) {
                            0 => _ = will_need(&three, pages),
                            1 => _ = do_not_need(&three, pages),
                            2 => hint(&three, pages, Hints::NONE),
                            _ => {
                                let places = [
                                    Preferred::Ram,
                                    Preferred::Device(WATCHED),
                                    Preferred::Device(DEVICE_PRIVATE),
                                    Preferred::Device(DEVICE_COHERENT),
                                ];
                                let place = places[rng.below(4) as usize];
                                let read_mostly = rng.one_in(2);
                                let hints = Hints {
                                    read_mostly,
                                    ..prefers(place)
                                };
                                hint(&three, pages, hints);
                            }
                        }
                    }
                });
                let mut rng = Rng::new(seed + 100);
                for _ in 0..6000 {
                    let page = rng.below(4 * BUDGET as u64) as usize;
                    if rng.one_in(2) {
                        three.write(page);
                    } else {
                        three.check(page);
                    }
                }
            });
        });
        assert_eq!(three.mmu().out_of_memory_count(), 0, "seed {seed}");
        three.check_all();
        three.check_invariants();
    }
}
