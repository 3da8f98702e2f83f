//! R17: a page that a device has alone is nobody else's, and its device is off it before anybody else
//! sees it.

use crate::duplicates::{duplicate, read_again};
use crate::hook::Op;
use crate::rig::{DEVICE_COHERENT, DEVICE_PRIVATE, Three, Was, number};
use crate::types::range;
use crate::watcher::{Device, Listener, READ, WRITE, alone, device, pin, populate};
use crate::world::{BUDGET, SimSpace, World, or_abort, touch, with_reclaimer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::entry::State;
use uhmm_core::failure::Failure;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::mirror::{Event, MirrorError, Need, NotifierError};
use uhmm_core::mmu::{Mmu, Stop, Tracking};
use uhmm_sim::{Call, Failure as Fails, Fault};
use uhmm_testkit::Rng;

const BOUNDED: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(800);

/// A world with four pages written, and a device that has them alone.
fn taken(world: &World) -> (Listener, Device<'_>) {
    world.write_all(0..4);
    let (listener, device) = device(&world.space, 0, 8);
    assert_eq!(alone(&device, 0, 4), Ok(vec![true; 4]));
    assert_eq!(listener.take(), [(0, 4, Event::Exclusive)]);
    (listener, device)
}

/// Has the device write the next content of a page.
fn write(world: &World, device: &Device<'_>, page: usize) -> Result<(), MirrorError> {
    device.with_exclusive(number(page), |_, data| world.oracle.write(page, data))
}

#[test]
fn r17_a_device_gets_what_can_be_alone_and_the_rest_stays() {
    for was in Was::ALL {
        let three = Three::new(4 * BUDGET);
        was.make(&three, 8, 2);
        let (_, device) = device(&three.space, 0, 64);
        let stays = matches!(was, Was::Coherent | Was::ReadOnlyCoherent | Was::ReadOnly);
        assert_eq!(alone(&device, 8, 2), Ok(vec![!stays; 2]), "{was:?}");
        for page in 8..10 {
            assert_eq!(device.has_alone(number(page)), !stays, "{was:?}");
            if stays {
                assert!(was.is(&three, page), "{was:?}");
                continue;
            }
            assert!(!three.mmu().is_present(number(page)), "{was:?}");
            if was == Was::Hole {
                let zero = |_: &mut _, data: &mut uhmm_core::addr::PageData| data.0 == [0; 4096];
                assert_eq!(device.with_exclusive(number(page), zero), Ok(true));
            } else {
                let check = |_: &mut _, data: &mut _| three.oracle.check(page, data);
                assert_eq!(device.with_exclusive(number(page), check), Ok(()));
            }
        }
        let ram = if stays && was != Was::ReadOnly { 0 } else { 2 };
        assert_eq!(three.space.usage(range(8, 2)).ram, ram, "{was:?}");
        three.check_invariants();
        drop(device);
        assert!(
            (8..10)
                .all(|page| was.is(&three, page)
                    || matches!(three.state(page), State::System { .. }))
        );
        three.check_all();
        three.check_invariants();
        assert_eq!(
            three.space.stats().exclusive_pages.get(),
            three.space.stats().exclusive_ends.get()
        );
    }
}

#[test]
fn r17_what_is_tracked_shared_or_pinned_is_taken_or_left_whole() {
    let world = read_again(8);
    world.mmu().share(range(2, 2));
    let pinned = pin(&world.space, 4, 1, READ).unwrap();
    let (_, device) = device(&world.space, 0, 8);
    let taken = alone(&device, 0, 8).unwrap();
    assert_eq!(taken, [true, true, true, true, false, true, true, true]);
    assert!(
        duplicate(&world, 4).is_some(),
        "what is left is what it was"
    );
    assert_eq!(world.space.stats().duplicate_pages.get(), 1);
    assert_eq!(alone(&device, 0, 8).unwrap(), taken, "it has them already");
    assert_eq!(world.space.stats().exclusive_pages.get(), 7);
    drop(pinned);
    assert_eq!(alone(&device, 4, 1), Ok(vec![true]));
    world.check_invariants();
    // What is lost is an error.
    world.space.memory_failure(number(5)).unwrap();
    let error = MirrorError::Poisoned(number(5));
    assert_eq!(alone(&device, 0, 8), Err(error));
}

#[test]
fn r17_a_device_does_not_get_at_what_another_has_alone() {
    let world = World::new(4 * BUDGET);
    let (heard, first) = taken(&world);
    let (_, second) = device(&world.space, 0, 8);
    assert!((0..4).all(|page| !second.has_alone(number(page))));
    let not_its = MirrorError::NotInTable(number(1));
    assert_eq!(write(&world, &second, 1), Err(not_its));
    assert_eq!(heard.take(), [], "to ask is not to take");
    assert_eq!(alone(&second, 1, 1), Ok(vec![true]));
    assert_eq!(
        heard.take(),
        [(1, 1, Event::EndExclusive), (1, 1, Event::Exclusive)]
    );
    write(&world, &second, 1).unwrap();
    assert_eq!(write(&world, &first, 1), Err(not_its));
    // The end of one is nothing to the other.
    drop(first);
    assert!(second.has_alone(number(1)));
    drop(second);
    world.check_all();
    world.check_invariants();
}

/// Everything that shows a page to somebody else, and how often the device hears of it.
type End = fn(&World);
const ENDS: &[(&str, Event, usize, End)] = &[
    ("a touch to read", Event::EndExclusive, 1, |world| {
        assert_eq!(world.try_check(2), Ok(1));
    }),
    ("a touch to write", Event::EndExclusive, 1, |world| {
        assert_eq!(world.try_write(2), Ok(1));
    }),
    ("a pin", Event::EndExclusive, 1, |world| {
        let pinned = pin(&world.space, 2, 1, READ).unwrap();
        assert_eq!(world.try_check(2), Ok(0), "it is there");
        drop(pinned);
    }),
    ("a pin to write", Event::EndExclusive, 1, |world| {
        drop(pin(&world.space, 2, 1, WRITE).unwrap());
    }),
    (
        "another device that reads it",
        Event::EndExclusive,
        1,
        |world| {
            let (_, other) = device(&world.space, 2, 1);
            assert!(populate(&other, 2, 1, Need::READ).is_ok());
        },
    ),
    (
        "another device that wants it alone",
        Event::EndExclusive,
        1,
        |world| {
            let (_, other) = device(&world.space, 2, 1);
            // Given back to the first, in between: it had the page.
            assert_eq!(alone(&other, 2, 1), Ok(vec![true]));
        },
    ),
    ("a remap", Event::EndExclusive, 1, |world| {
        let inside = world.space.inside().unwrap();
        inside.relocate(range(2, 1), number(100)).unwrap();
        drop(inside);
        let moved = |mmu: &crate::hook::HookedMmu, at| {
            world.oracle.check(2, &mmu.touch_read(at)?);
            Ok(())
        };
        touch(&world.space, 100, Access::Read, moved).unwrap();
        world.oracle.discard(2);
    }),
    ("a discard", Event::Clear, 2, |world| world.discard(2, 1)),
    ("a failure of its memory", Event::Clear, 1, |world| {
        assert_eq!(world.space.memory_failure(number(2)), Ok(Failure::Poisoned));
        assert_eq!(world.try_check(2), Err(Fault::Poisoned));
    }),
];

#[test]
fn r17_its_device_is_off_a_page_before_anybody_sees_it() {
    for (what, event, times, end) in ENDS {
        let world = World::new(4 * BUDGET);
        let (listener, device) = taken(&world);
        (0..4).for_each(|page| write(&world, &device, page).unwrap());
        let State::Exclusive { frame, .. } = world.state(2) else {
            panic!("{:?}", world.state(2));
        };
        // When it is told, the page is where it was: not mapped, its frame untouched.
        let (space, whole) = (world.space.clone(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..*times {
            let (space, whole) = (space.clone(), whole.clone());
            listener.in_next(move || {
                let mmu = space.mmu();
                let is_whole = mmu.holds_frame(frame) && !mmu.is_present(number(2));
                whole.fetch_add(usize::from(is_whole), SeqCst);
            });
        }
        end(&world);
        assert_eq!(whole.load(SeqCst), *times, "{what}");
        let heard: Vec<_> = listener
            .take()
            .into_iter()
            .filter(|heard| heard.2 == *event)
            .collect();
        assert_eq!(heard, vec![(2, 1, *event); *times], "{what}");
        assert!(!device.has_alone(number(2)), "{what}");
        let error = MirrorError::NotInTable(number(2));
        assert_eq!(write(&world, &device, 2), Err(error), "{what}");
        assert!(
            [0, 1, 3].iter().all(|page| device.has_alone(number(*page))),
            "{what}: no other"
        );
        drop(device);
        world.discard(2, 1);
        world.check_all();
        world.check_invariants();
        assert_eq!(
            world.space.stats().exclusive_pages.get(),
            world.space.stats().exclusive_ends.get()
        );
    }
}

#[test]
fn r17_a_fork_ends_it_first_and_nothing_becomes_so_until_it_is_over() {
    let world = World::new(4 * BUDGET);
    let (listener, device) = taken(&world);
    (0..4).for_each(|page| write(&world, &device, page).unwrap());
    let forking = world.space.begin_fork();
    let heard = listener.take();
    assert_eq!(heard[0], (0, 8, Event::Fork));
    assert_eq!(heard.len(), 5);
    assert!(
        heard[1..]
            .iter()
            .all(|heard| heard.2 == Event::EndExclusive)
    );
    assert!((0..4).all(|page| matches!(world.state(page), State::System { .. })));
    let start = Instant::now();
    let busy = MirrorError::Notifier(NotifierError::Busy);
    assert_eq!(alone(&device, 0, 1), Err(busy));
    assert_eq!(populate(&device, 0, 1, Need::READ), Err(busy));
    assert!(start.elapsed() < BOUNDED);
    world.space.close_for_fork();
    assert_eq!(alone(&device, 0, 1), Err(busy));
    world.space.open_in_parent();
    drop(forking);
    assert_eq!(alone(&device, 0, 4), Ok(vec![true; 4]));
    world.check_all();
    world.check_invariants();
}

/// A fork that comes when the device has looked already, and one that comes when it is about to take.
#[test]
fn r17_a_fork_at_any_point_of_the_taking_finds_nothing_exclusive() {
    for late in [false, true] {
        let world = World::new(4 * BUDGET);
        world.write_all(0..4);
        let space = world.space.clone();
        let (other, _other) = Listener::on(&space, 0, 8);
        let (_, device) = device(&world.space, 0, 8);
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let forked = world.space.clone();
        let step = move || {
            // The fork's first step is done when the others have been told of it.
            let begun = thread::spawn(move || {
                let forking = forked.begin_fork();
                let exclusive = || {
                    let is_alone = |page: &usize| {
                        matches!(forked.state(number(*page)), State::Exclusive { .. })
                    };
                    (0..4).filter(is_alone).count()
                };
                assert_eq!(exclusive(), 0, "the fork goes on");
                gone.recv().unwrap();
                assert_eq!(exclusive(), 0, "nor does it become so meanwhile");
                drop(forking);
            });
            tell.send(begun).unwrap();
        };
        let heard = other.clone();
        let wait = move || {
            while !heard.take().iter().any(|heard| heard.2 == Event::Fork) {
                thread::yield_now();
            }
        };
        if late {
            world.mmu().before(Op::Take, move || {
                step();
                wait();
            });
        } else {
            // Its other mirrors are told after the sequence was read and before a slot is reserved.
            other.in_next(move || {
                step();
                thread::sleep(Duration::from_millis(30));
            });
        }
        thread::scope(|scope| {
            let taking = scope.spawn(|| alone(&device, 0, 4));
            let fork = told.recv().unwrap();
            thread::sleep(Duration::from_millis(50));
            go.send(()).unwrap();
            fork.join().unwrap();
            taking.join().unwrap().unwrap();
        });
        drop(device);
        world.check_all();
        world.check_invariants();
    }
}

/// A discard has told the device of the range, and comes to the page when the device is back on it.
#[test]
fn r17_a_discard_waits_for_the_device_that_has_gone_back_to_a_page() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..80);
    let (_, device) = device(&world.space, 0, 80);
    assert_eq!(alone(&device, 70, 1), Ok(vec![true]));
    let (tell, told) = mpsc::channel();
    let (back, is_back) = mpsc::channel::<()>();
    // The device was told; the first batch is dropped.
    world.mmu().before(Op::Discard, move || {
        tell.send(()).unwrap();
        is_back.recv().unwrap();
    });
    thread::scope(|scope| {
        let discard = scope.spawn(|| world.discard(0, 80));
        told.recv().unwrap();
        let done = device.with_exclusive(number(70), |_, data| {
            back.send(()).unwrap();
            while matches!(world.state(70), State::Exclusive { .. }) {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(50));
            assert_eq!(
                world.state(70),
                State::Migrating,
                "it is not dropped under the device"
            );
            data.0.fill(7);
        });
        assert_eq!(done, Ok(()));
        discard.join().unwrap();
    });
    assert!(!device.has_alone(number(70)));
    world.check_all();
    world.check_invariants();
}

/// Words that the program and a device add to, atomically: none is lost.
#[test]
fn r17_atomic_operations_of_both_sides_add_up() {
    const WORDS: usize = 64;
    const ROUNDS: usize = 3_000;
    let three = Three::new(4 * BUDGET);
    let (space, done) = (&three.space, AtomicBool::new(false));
    let word = |n: usize| (n % 4 * 4096 / 8 + n) % 512 * 8;
    let add = |data: &mut uhmm_core::addr::PageData, n: usize| {
        let at = word(n);
        let bytes = &mut data.0[at..at + 8];
        let sum = u64::from_le_bytes(bytes.try_into().unwrap()) + 1;
        bytes.copy_from_slice(&sum.to_le_bytes());
    };
    with_reclaimer(space, || {
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for cpu in 0..2 {
                threads.push(scope.spawn(move || {
                    let mut rng = Rng::new(cpu);
                    or_abort(|| {
                        for _ in 0..ROUNDS {
                            let n = rng.below(WORDS as u64) as usize;
                            let write = |mmu: &crate::hook::HookedMmu, at| {
                                mmu.touch_write(at, |data| add(data, n))
                            };
                            touch(space, n % 4, Access::Write, write).unwrap();
                            thread::yield_now();
                        }
                    });
                }));
            }
            for gpu in 0..2 {
                threads.push(scope.spawn(move || {
                    let mut rng = Rng::new(gpu + 10);
                    let (_, device) = device(space, 0, 4);
                    or_abort(|| {
                        let mut left = ROUNDS;
                        while left > 0 {
                            let n = rng.below(WORDS as u64) as usize;
                            match device.with_exclusive(number(n % 4), |_, data| add(data, n)) {
                                Ok(()) => {
                                    left -= 1;
                                    thread::yield_now();
                                }
                                // Others have it, or a fork goes on.
                                Err(_) => drop(alone(&device, n % 4, 1)),
                            }
                        }
                    });
                }));
            }
            scope.spawn(|| or_abort(|| disturb(&three, &done)));
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
            done.store(true, SeqCst);
        });
    });
    let mut sums = 0;
    for page in 0..4 {
        touch(space, page, Access::Read, |mmu, at| {
            let data = mmu.touch_read(at)?;
            sums += data
                .0
                .chunks(8)
                .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
                .sum::<u64>();
            Ok(())
        })
        .unwrap();
    }
    assert_eq!(sums, 4 * ROUNDS as u64);
    assert!(space.stats().exclusive_pages.get() > 10);
    three.check_invariants();
}

fn disturb(three: &Three, done: &AtomicBool) {
    let mut rng = Rng::new(5);
    while !done.load(SeqCst) {
        match rng.below(6) {
            0 => drop(pin(&three.space, 0, 4, READ)),
            1 => _ = three.push_out(),
            2 => _ = three.to_device(0, 4, DEVICE_PRIVATE),
            3 => _ = three.to_device(0, 4, DEVICE_COHERENT),
            4 => {
                let forking = three.space.begin_fork();
                three.space.close_for_fork();
                three.mmu().share(range(0, 4));
                three.space.open_in_parent();
                drop(forking);
            }
            _ => thread::sleep(Duration::from_micros(300)),
        }
    }
}

#[test]
fn r17_as_much_is_exclusive_as_leaves_room_for_the_rest() {
    let world = World::new(4 * BUDGET);
    let limit = BUDGET / 8 * 7;
    with_reclaimer(&world.space, || {
        world.write_all(0..BUDGET);
        let (_, device) = device(&world.space, 0, 4 * BUDGET);
        assert_eq!(alone(&device, 0, limit).unwrap(), vec![true; limit]);
        let too_much = MirrorError::TooMuch { limit };
        assert_eq!(alone(&device, limit, 1), Err(too_much));
        assert!(pin(&world.space, limit, 1, READ).is_err());
        // The rest turns over.
        (limit..3 * BUDGET).for_each(|page| world.write(page));
        assert!((0..limit).all(|page| device.has_alone(number(page))));
        world.check(7);
        assert_eq!(alone(&device, limit, 1), Ok(vec![true]));
        drop(device);
        world.check_all();
    });
    world.check_invariants();
}

/// It cannot be moved back to where the program may not write, but its bytes can be read there.
#[test]
fn r17_an_exclusive_page_comes_back_to_where_it_may_only_be_read() {
    let world = World::new(4 * BUDGET);
    let (_, device) = taken(&world);
    // Behind our back, or what devices have would have ended first.
    world.mmu().protect(range(0, 4), false);
    assert_eq!(world.try_check(1), Ok(1));
    assert_eq!(world.try_write(1), Err(Fault::Protected));
    world.mmu().fail(Call::Copy, Fails::next(Stop::NoMemory));
    world.check(2);
    drop(device);
    world.check_all();
    world.check_invariants();
}

#[test]
fn r17_a_way_back_that_fails_loses_nothing() {
    for stop in [Stop::Changing, Stop::NoMemory, Stop::Unmapped] {
        let world = World::new(4 * BUDGET);
        let (_, device) = taken(&world);
        for _ in 0..3 {
            world.mmu().fail(Call::Put, Fails::next(stop));
        }
        world.check(2);
        for _ in 0..3 {
            world.mmu().fail(Call::Put, Fails::next(stop));
        }
        drop(device);
        assert!(
            (0..4).all(|page| matches!(world.state(page), State::System { .. })),
            "{stop:?}"
        );
        world.check_all();
        world.check_invariants();
    }
}

#[test]
fn r17_it_ends_before_the_program_may_do_something_else_there() {
    let world = World::new(4 * BUDGET);
    let (listener, device) = taken(&world);
    (0..4).for_each(|page| write(&world, &device, page).unwrap());
    let change = || {
        assert!(
            (1..4).all(|page| world.mmu().is_present(number(page))),
            "they are back"
        );
        assert!(device.has_alone(number(0)), "no other");
        world.mmu().protect(range(1, 3), false);
    };
    world.space.change_protection(range(1, 3), change);
    let heard = listener.take();
    assert_eq!(heard[0], (1, 3, Event::Protect));
    assert!(
        heard[1..]
            .iter()
            .all(|heard| heard.2 == Event::EndExclusive)
    );
    assert_eq!(heard.len(), 4);
    assert_eq!(
        alone(&device, 1, 3),
        Ok(vec![false; 3]),
        "it may not be written"
    );
    world.check_all();
    world.check_invariants();
}

/// What the program has there by now is what counts: a raw `mmap` over it, filled since.
#[test]
fn r17_a_page_that_was_mapped_behind_our_back_is_the_programs() {
    let world = World::new(4 * BUDGET);
    let (_, device) = taken(&world);
    let mut data = uhmm_core::addr::PageData::ZERO;
    world.oracle.write(2, &mut data);
    assert_eq!(world.mmu().copy(&[data], number(2), Tracking::Off).pages, 1);
    drop(device);
    world.check_all();
    world.check_invariants();
}

/// The mapping is gone behind our back: a fork, and the end of the mirror, do not wait for ever for it.
#[test]
fn r17_a_frame_that_fits_nowhere_holds_nobody_up() {
    let world = World::new(4 * BUDGET);
    let (_, device) = taken(&world);
    world.mmu().map(range(2, 1), false);
    let start = Instant::now();
    drop(world.space.begin_fork());
    assert!(start.elapsed() < BOUNDED);
    assert!(
        [0, 1, 3]
            .iter()
            .all(|page| !device.has_alone(number(*page)))
    );
    drop(device);
    assert!(start.elapsed() < 2 * BOUNDED);
    // Its bytes are not lost for it.
    world.mmu().map(range(2, 1), true);
    world.check_all();
    world.check_invariants();
}

/// A mirror that ends in a notifier, whose caller has a page of it in hand.
#[test]
fn r17_a_mirror_that_ends_in_a_notifier_leaves_its_pages_to_the_next_touch() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..4);
    // Mirrors are of the space's life, and a notifier's step is of the program's.
    let space: &'static SimSpace = Box::leak(Box::new(world.space.clone()));
    let (listener, _notifier) = Listener::on(space, 0, 4);
    let (heard, mirror) = device(space, 0, 4);
    assert_eq!(alone(&mirror, 0, 4), Ok(vec![true; 4]));
    assert_eq!(heard.take(), [(0, 4, Event::Exclusive)]);
    listener.take();
    let (tell, told) = mpsc::channel();
    listener.in_next(move || {
        drop(mirror);
        tell.send(()).unwrap();
    });
    let start = Instant::now();
    assert_eq!(world.space.memory_failure(number(1)), Ok(Failure::Poisoned));
    assert_eq!(told.try_recv(), Ok(()));
    assert!(start.elapsed() < AT_ONCE, "it does not wait for the page");
    assert_eq!(heard.take(), [], "it is not called once it has ended");
    world.discard(1, 1);
    world.check_all();
    world.check_invariants();
    // Another one does not take the old one's pages for its own.
    let (_, next) = device(space, 0, 4);
    assert!((0..4).all(|page| !next.has_alone(number(page))));
}

#[test]
fn r17_the_child_of_a_fork_has_no_devices() {
    let world = World::new(4 * BUDGET);
    let (listener, mirror) = taken(&world);
    drop(world.space.begin_fork());
    world.space.close_for_fork();
    world.space.begin_in_child();
    world.space.open_in_child(&[world.space.range()]);
    listener.take();
    let removed = Some(NotifierError::Removed);
    assert_eq!(mirror.lock().err(), removed);
    assert_eq!(alone(&mirror, 0, 1).err(), removed.map(MirrorError::from));
    assert_eq!(
        populate(&mirror, 0, 1, Need::READ).err(),
        removed.map(MirrorError::from)
    );
    // A new one there is another one, whatever its number.
    let (_, new) = device(&world.space, 0, 8);
    assert_eq!(alone(&new, 0, 2), Ok(vec![true; 2]));
    assert!(!mirror.has_alone(number(0)));
    drop(mirror);
    assert_eq!(listener.take(), []);
    drop(new);
    world.check_all();
    world.check_invariants();
    let mut scratch = Scratch::default();
    assert_eq!(world.space.push_out(&mut scratch), 0);
    world.check_invariants();
}

/// Several devices and the program take turns at random.
#[test]
fn r17_exclusive_pages_at_random_keep_every_byte() {
    for seed in 0..3 {
        let three = Three::new(4 * BUDGET);
        let mut rng = Rng::new(seed);
        if seed > 0 {
            three.mmu().fail_at_random(seed, 20);
        }
        let devices = [device(&three.space, 0, 64), device(&three.space, 32, 64)];
        with_reclaimer(&three.space, || {
            for _ in 0..3_000 {
                let (first, len) = (rng.below(88) as usize, 1 + rng.below(8) as usize);
                let (_, device) = &devices[rng.below(2) as usize];
                match rng.below(16) {
                    0 => three.discard(first, len),
                    1 => _ = three.push_out(),
                    2 => _ = three.to_device(first, len, DEVICE_PRIVATE),
                    3 => _ = three.to_device(first, len, DEVICE_COHERENT),
                    4 => drop(three.space.begin_fork()),
                    5 => drop(pin(&three.space, first, len, READ)),
                    6..8 => three.write(first),
                    8..10 => three.check(first),
                    10..12 => _ = write(&three, device, first),
                    _ => _ = alone(device, first, len),
                }
            }
        });
        three.mmu().heal();
        three.check_invariants();
        drop(devices);
        three.check_all();
        three.check_invariants();
        let stats = three.space.stats();
        assert_eq!(stats.exclusive_pages.get(), stats.exclusive_ends.get());
        assert!(stats.exclusive_pages.get() > 500);
    }
}

/// Another thread of the same device may be at the page, by what its table says: so that is told too.
#[test]
fn r17_what_a_device_has_alone_it_does_not_reach_by_its_table() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..4);
    let (listener, mirror) = device(&world.space, 0, 4);
    assert_eq!(
        populate(&mirror, 0, 4, Need::WRITE).map(|found| found.len()),
        Ok(4)
    );
    assert_eq!(alone(&mirror, 1, 2), Ok(vec![true; 2]));
    assert_eq!(listener.take(), [(1, 2, Event::Exclusive)]);
    let table = mirror.lock().unwrap();
    let has: Vec<_> = (0..4)
        .map(|page| table.entries.contains_key(&number(page)))
        .collect();
    assert_eq!(has, [true, false, false, true]);
    drop(table);
    world.check_all();
    world.check_invariants();
}
