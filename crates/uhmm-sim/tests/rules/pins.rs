//! R11: what is pinned stays where it is, or comes to RAM first; what cannot be pinned is an error of
//! its own, with nothing pinned.

use crate::duplicates::{duplicate, read_again};
use crate::rig::{DEVICE_COHERENT, DEVICE_PRIVATE, SYSTEM, Three, Was, args, number};
use crate::types::{self, on, range};
use crate::watcher::{FAST, LONG, READ, WRITE, alone, device, pin};
use crate::world::{BASE, BUDGET, SimSpace, World, or_abort, with_reclaimer};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::device::CopyInError;
use uhmm_core::entry::State;
use uhmm_core::failure::Failure;
use uhmm_core::fault::Scratch;
use uhmm_core::memory_type::MemoryType::{self, *};
use uhmm_core::mmu::Stop;
use uhmm_core::pin::{PinError, PinFlags};
use uhmm_sim::{Call, Failure as Fails, Fault};

/// Past this, a call has waited for something. Calls that wait do so for a second.
pub const AT_ONCE: Duration = Duration::from_millis(800);
const PEER: PinFlags = PinFlags { peer: true, ..READ };
const PEER_LONG: PinFlags = PinFlags { peer: true, ..LONG };
pub const LONG_WRITE: PinFlags = PinFlags {
    write: true,
    ..LONG
};

fn fast(flags: PinFlags) -> PinFlags {
    PinFlags {
        fast: true,
        ..flags
    }
}

/// Pins acquired, of them released, pages pinned now.
pub fn counts(space: &SimSpace) -> (u64, u64, u64) {
    let stats = space.stats();
    let (acquired, released) = (stats.pins_acquired.get(), stats.pins_released.get());
    (acquired, released, stats.pinned_pages.get())
}

/// Nothing is pinned, and as much was released as was pinned.
pub fn nothing_is_pinned(space: &SimSpace) {
    let (acquired, released, now) = counts(space);
    assert_eq!((acquired, now), (released, 0), "R12");
    (0..64).for_each(|page| assert!(!space.is_pinned(number(page)), "page {page}"));
}

/// A page in each state, from page 0 on, 8 pages apart.
fn in_each_state() -> Three {
    let three = Three::new(4 * BUDGET);
    for (i, was) in Was::ALL.into_iter().enumerate() {
        if was != Was::Limbo {
            was.make(&three, 8 * i, 1);
        }
    }
    three
}

#[test]
fn r11_an_ordinary_pin_leaves_a_page_where_it_is() {
    let three = in_each_state();
    let space = three.space.clone();
    for (i, was) in Was::ALL.into_iter().enumerate() {
        let page = 8 * i;
        let before = three.state(page);
        let pinned = pin(&space, page, 1, READ).unwrap();
        match was {
            Was::Coherent | Was::ReadOnlyCoherent => assert_eq!(three.state(page), before),
            _ => assert!(matches!(three.state(page), State::System { .. }), "{was:?}"),
        }
        assert!(space.is_pinned(number(page)) && three.mmu().is_present(number(page)));
        assert_eq!(space.stats().pinned_pages.get(), 1, "{was:?}: no neighbour");
        drop(pinned);
        nothing_is_pinned(&space);
    }
    three.check_invariants();
    three.check_all();
}

#[test]
fn r11_a_long_term_pin_takes_the_page_off_its_device_first() {
    for flags in [LONG, LONG_WRITE] {
        let three = Three::new(4 * BUDGET);
        three.write_all(0..32);
        three.to_device(0, 8, DEVICE_PRIVATE);
        three.to_device(8, 8, DEVICE_COHERENT);
        let pinned = pin(&three.space, 0, 32, flags).unwrap();
        for page in 0..32 {
            assert!(matches!(three.state(page), State::System { .. }), "{page}");
        }
        assert_eq!(three.private.stored(), 0);
        let coherent = &three.space.stats().devices[usize::from(DEVICE_COHERENT)];
        assert_eq!(coherent.pages.get(), 0);
        assert_eq!(counts(&three.space), (32, 0, 32));
        drop(pinned);
        three.check_invariants();
        three.check_all();
    }
}

/// How pages of a type may be pinned where they are.
fn allowed(memory: MemoryType, flags: PinFlags, page: usize) -> Result<(), PinError> {
    match (memory, flags.longterm) {
        (Coherent, true) if flags.fast => Err(PinError::MigrateFirst(number(page))),
        (FsDax | PeerToPeer, true) => Err(PinError::NeverLongterm(number(page))),
        (PeerToPeer, false) if !flags.peer => Err(PinError::PeersOnly(number(page))),
        _ => Ok(()),
    }
}

#[test]
fn r11_each_type_of_memory_is_pinned_as_its_table_says() {
    for memory in [Coherent, Generic, FsDax, PeerToPeer] {
        let space = types::with(memory);
        if memory == Coherent {
            types::write(&space, 0, 7);
            let mut migration = space.migrate_vma(&args(0, 1, SYSTEM)).unwrap();
            migration.allocate(0).unwrap();
            assert_eq!(migration.copy().pages().finalize().migrated, 1);
        } else {
            types::map(&space, 0, 0);
            types::write(&space, 0, 7);
        }
        let there = State::Coherent(on(0));
        assert_eq!(space.state(BASE), there);
        for flags in [READ, WRITE, PEER, LONG, PEER_LONG] {
            for flags in [fast(flags), flags] {
                let pinned = pin(&space, 0, 1, flags);
                let pins = pinned.as_ref().map(|_| ()).map_err(|error| *error);
                assert_eq!(pins, allowed(memory, flags, 0), "{memory:?} {flags:?}");
                let stays = memory != Coherent || !flags.longterm || flags.fast;
                assert_eq!(space.state(BASE) == there, stays, "{memory:?} {flags:?}");
                assert_eq!(space.is_pinned(BASE), pins.is_ok());
                drop(pinned);
                if !stays {
                    let mut migration = space.migrate_vma(&args(0, 1, SYSTEM)).unwrap();
                    migration.allocate(0).unwrap();
                    assert_eq!(migration.copy().pages().finalize().migrated, 1);
                }
            }
        }
        assert_eq!(types::read(&space, 0), 7);
        types::check(&space);
    }
}

#[test]
fn r11_what_can_never_be_is_said_first_and_nothing_is_pinned() {
    let three = Three::new(4 * BUDGET);
    let space = three.space.clone();
    let dax = space.add_device(types::device(FsDax)).unwrap();
    let block = space.alloc_device_pages(dax, 0).unwrap();
    space.map_device_pages(block, number(20)).unwrap();
    three.write_all(0..8);
    three.to_device(0, 4, DEVICE_COHERENT);
    three.to_device(4, 4, DEVICE_PRIVATE);
    let before: Vec<_> = (0..24).map(|page| three.state(page)).collect();
    let copies = three.device.copies_out();
    let mixed = [
        (LONG, PinError::NeverLongterm(number(20))),
        (LONG_WRITE, PinError::NeverLongterm(number(20))),
        (fast(LONG), PinError::MigrateFirst(number(0))),
        (FAST, PinError::WouldFault(number(4))),
    ];
    for (flags, error) in mixed {
        let start = Instant::now();
        assert_eq!(pin(&space, 0, 24, flags).unwrap_err(), error, "{flags:?}");
        assert!(start.elapsed() < AT_ONCE);
        let now: Vec<_> = (0..24).map(|page| three.state(page)).collect();
        assert_eq!(now, before, "{flags:?}: nothing was migrated for it");
    }
    assert_eq!(three.device.copies_out(), copies);
    assert_eq!(space.memory_failure(number(3)), Ok(Failure::Poisoned));
    let poisoned = PinError::Poisoned(number(3));
    assert_eq!(pin(&space, 0, 8, READ).unwrap_err(), poisoned);
    assert_eq!(pin(&space, 0, 8, LONG).unwrap_err(), poisoned);
    assert_eq!(pin(&space, 0, 8, FAST).unwrap_err(), poisoned);
    nothing_is_pinned(&space);
    three.check_invariants();
}

#[test]
fn r11_bad_use_is_an_error_of_its_own() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..8);
    let space = &world.space;
    let error = |first, len| pin(space, first, len, READ).unwrap_err();
    assert_eq!(error(0, 0), PinError::NotManaged);
    assert_eq!(error(4 * BUDGET - 1, 2), PinError::NotManaged);
    assert_eq!(error(usize::MAX >> 20, 1), PinError::NotManaged);
    let got = |flags| space.get_pages(range(0, 4), flags, &mut Scratch::default());
    assert_eq!(got(LONG).unwrap_err(), PinError::NotForLong);
    let mut pages = got(FAST).unwrap();
    assert_eq!(pages.pages(), range(0, 4));
    assert_eq!(pages.release(), Ok(()));
    assert_eq!(pages.release(), Err(PinError::Released));
    assert_eq!(pages.pages().len, 0);
    let stats = space.stats();
    assert_eq!((stats.page_gets.get(), stats.page_puts.get()), (4, 4));
    assert_eq!(counts(space), (0, 0, 0), "references are no pins");
    drop(pages);
    world.check_invariants();
}

#[test]
fn r11_a_fast_pin_neither_faults_nor_migrates_nor_waits() {
    let three = in_each_state();
    let space = three.space.clone();
    for flags in [FAST, fast(LONG), fast(WRITE)] {
        for (i, was) in Was::ALL.into_iter().enumerate() {
            let page = 8 * i;
            let (before, faults) = (three.state(page), faults(&space));
            let start = Instant::now();
            let pinned = pin(&space, page, 1, flags).map(drop);
            let expected = match was {
                Was::Coherent | Was::ReadOnlyCoherent | Was::Private if flags.longterm => {
                    Err(PinError::MigrateFirst(number(page)))
                }
                Was::Coherent | Was::ReadOnlyCoherent | Was::System | Was::ReadOnly => Ok(()),
                _ => Err(PinError::WouldFault(number(page))),
            };
            assert_eq!(pinned, expected, "{was:?} {flags:?}");
            assert_eq!((three.state(page), self::faults(&space)), (before, faults));
            assert!(start.elapsed() < AT_ONCE);
        }
    }
    // In flight, exclusive, in limbo; and while the gate is closed.
    let migration = three.begin(8, 1, SYSTEM);
    let would = |page| PinError::WouldFault(number(page));
    let start = Instant::now();
    assert_eq!(pin(&space, 8, 1, FAST).unwrap_err(), would(8));
    drop(migration);
    let (_, mirror) = device(&space, 200, 8);
    assert_eq!(alone(&mirror, 200, 1), Ok(vec![true]));
    assert_eq!(pin(&space, 200, 1, FAST).unwrap_err(), would(200));
    assert!(mirror.has_alone(number(200)));
    Was::Limbo.make(&three, 300, 1);
    three.write(310);
    space.close_for_fork();
    assert_eq!(pin(&space, 300, 1, FAST).unwrap_err(), would(300));
    // Coherent, and shared from now on.
    assert_eq!(pin(&space, 40, 1, FAST).unwrap_err(), would(40));
    let mut mapped = pin(&space, 310, 1, FAST).unwrap();
    assert_eq!(mapped.release(), Ok(()));
    assert!(start.elapsed() < AT_ONCE);
    space.open_in_parent();
    three.check_invariants();
}

fn faults(space: &SimSpace) -> u64 {
    let stats = space.stats();
    let all = [
        &stats.first_touch_faults,
        &stats.device_faults,
        &stats.limbo_faults,
        &stats.stale_faults,
    ];
    all.into_iter().map(|counter| counter.get()).sum()
}

#[test]
fn r11_a_fast_pin_to_write_does_not_end_tracking() {
    let world = read_again(8);
    let would = PinError::WouldFault(number(3));
    assert_eq!(pin(&world.space, 3, 1, fast(WRITE)).unwrap_err(), would);
    assert!(duplicate(&world, 3).is_some());
    drop(pin(&world.space, 3, 1, FAST).unwrap());
    assert!(duplicate(&world, 3).is_some(), "to read, it stays tracked");
    world.check_invariants();
}

/// What fails for a moment is tried again; what fails often enough is an error, with nothing pinned.
#[test]
fn r11_a_pin_that_fails_at_any_point_pins_all_or_nothing() {
    let mixed = || {
        let three = Three::new(4 * BUDGET);
        three.write_all(0..12);
        three.to_device(0, 4, DEVICE_PRIVATE);
        three.to_device(6, 4, DEVICE_COHERENT);
        three
    };
    let failures = [
        (Call::Copy, Stop::NoMemory),
        (Call::Copy, Stop::Changing),
        (Call::Take, Stop::Changing),
        (Call::Take, Stop::Busy),
    ];
    for (call, stop) in failures {
        for after_calls in 0..8 {
            let three = mixed();
            let after_pages = 0;
            three.mmu().fail(
                call,
                Fails {
                    after_calls,
                    after_pages,
                    stop,
                },
            );
            let pinned = pin(&three.space, 0, 12, LONG).unwrap();
            assert_eq!(counts(&three.space), (12, 0, 12), "{call:?} {after_calls}");
            drop(pinned);
            nothing_is_pinned(&three.space);
            three.check_invariants();
            three.check_all();
        }
    }
    for seed in 0..8 {
        let three = mixed();
        three.mmu().fail_at_random(seed, 1);
        match pin(&three.space, 0, 12, LONG) {
            Err(PinError::Busy(_) | PinError::NoRam(_)) => {}
            other => panic!("{other:?}"),
        }
        three.mmu().heal();
        nothing_is_pinned(&three.space);
        three.check_invariants();
        three.check_all();
    }
}

#[test]
fn r11_a_page_that_does_not_come_gives_the_others_back() {
    // At every place of the range.
    for place in [0, 1, 5, 7] {
        let three = Three::new(4 * BUDGET);
        three.write_all(0..8);
        three.to_device(place, 1, DEVICE_PRIVATE);
        three.private.retry(usize::MAX);
        let start = Instant::now();
        let error = pin(&three.space, 0, 8, LONG).unwrap_err();
        assert_eq!(error, PinError::Busy(number(place)));
        assert!(start.elapsed() < Duration::from_secs(3), "it is bounded");
        assert_eq!(counts(&three.space), (place as u64, place as u64, 0));
        nothing_is_pinned(&three.space);
        three.private.retry(0);
        // And what the device has lost is said to be.
        let State::Private(at) = three.state(place) else {
            panic!("it is where it was");
        };
        three.private.lose(at.page);
        let error = pin(&three.space, 0, 8, LONG).unwrap_err();
        assert_eq!(error, PinError::Poisoned(number(place)));
        nothing_is_pinned(&three.space);
        assert_eq!(three.try_check(place), Err(Fault::Poisoned));
        three.check_invariants();
    }
}

#[test]
fn r11_where_there_is_no_ram_a_pin_says_so() {
    let world = World::new(4 * BUDGET);
    world.device.fail_copy_in_after(0, CopyInError::Full);
    // The whole budget is mapped, and nothing takes it.
    world.write_all(0..BUDGET);
    let start = Instant::now();
    let error = pin(&world.space, BUDGET, 2, READ).unwrap_err();
    assert_eq!(error, PinError::NoRam(number(BUDGET)));
    assert!(start.elapsed() < Duration::from_secs(3));
    nothing_is_pinned(&world.space);
    world.device.heal();
    with_reclaimer(&world.space, || {
        drop(pin(&world.space, BUDGET, 2, READ).unwrap());
        world.check_all();
    });
}

#[test]
fn r11_a_pin_waits_for_what_is_in_flight() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..4);
    let (going, space) = (AtomicBool::new(false), &three.space);
    thread::scope(|scope| {
        let migration = three.begin(0, 4, SYSTEM);
        let pinner = scope.spawn(|| {
            going.store(true, SeqCst);
            pin(space, 0, 4, WRITE)
        });
        while !going.load(SeqCst) {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(30));
        assert!(!pinner.is_finished() && !space.is_pinned(number(0)));
        drop(migration);
        let pinned = pinner.join().unwrap().unwrap();
        assert_eq!(pinned.pages(), range(0, 4));
        assert_eq!(counts(space).2, 4);
    });
    three.check_all();
    three.check_invariants();
}

#[test]
fn r11_a_pin_to_write_ends_tracking_and_sharing() {
    let world = read_again(16);
    world.mmu().share(range(8, 16));
    world.write_all(16..24);
    world.mmu().share(range(16, 8));
    let read = pin(&world.space, 0, 24, READ).unwrap();
    assert!((0..16).all(|page| duplicate(&world, page).is_some()));
    let write = pin(&world.space, 4, 20, WRITE).unwrap();
    assert!((0..4).all(|page| duplicate(&world, page).is_some()));
    assert!((4..16).all(|page| duplicate(&world, page).is_none()));
    assert!((4..24).all(|page| !world.mmu().is_tracked(number(page))));
    assert!((4..24).all(|page| !world.mmu().is_shared(number(page))));
    assert_eq!(world.try_write(8), Ok(0), "no write to it is a fault");
    drop((read, write));
    world.check_all();
    world.check_invariants();
}

#[test]
fn r11_no_more_is_pinned_than_leaves_room_for_the_rest() {
    let world = World::new(4 * BUDGET);
    let limit = BUDGET / 8 * 7;
    let too_much = PinError::TooMuch { limit };
    with_reclaimer(&world.space, || {
        world.write_all(0..2 * BUDGET);
        let space = &world.space;
        assert_eq!(pin(space, 0, limit + 1, READ).unwrap_err(), too_much);
        let all = pin(space, 0, limit, READ).unwrap();
        assert_eq!(pin(space, limit, 1, READ).unwrap_err(), too_much);
        assert_eq!(counts(space).2, limit as u64);
        // What is pinned already takes no more room.
        let again = pin(space, 0, limit, READ).unwrap();
        // The rest goes on.
        (limit..2 * BUDGET).for_each(|page| world.check(page));
        let (_, mirror) = device(space, 2 * BUDGET, 8);
        let error = alone(&mirror, 2 * BUDGET, 8).unwrap_err();
        assert_eq!(error, uhmm_core::mirror::MirrorError::TooMuch { limit });
        drop(all);
        assert_eq!(pin(space, limit, 1, READ).unwrap_err(), too_much);
        drop(again);
        drop(pin(space, limit, 1, READ).unwrap());
    });
    nothing_is_pinned(&world.space);
    world.check_all();
    world.check_invariants();
}

#[test]
fn r11_several_threads_do_not_go_over_the_limit_together() {
    let world = World::new(4 * BUDGET);
    let limit = BUDGET / 8 * 7;
    world.write_all(0..BUDGET);
    thread::scope(|scope| {
        for thread in 0..4 {
            let space = &world.space;
            scope.spawn(move || {
                or_abort(|| {
                    for round in 0..200 {
                        let first = (thread * 113 + round * 7) % 200;
                        let pinned = pin(space, first, 250, FAST);
                        assert!(counts(space).2 <= limit as u64);
                        drop(pinned);
                    }
                });
            });
        }
    });
    nothing_is_pinned(&world.space);
    world.check_invariants();
}

#[test]
fn r11_a_page_takes_only_so_many_pins() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..2);
    let mut guards = Vec::new();
    for _ in 0..u16::MAX {
        guards.push(pin(&world.space, 0, 1, FAST).unwrap());
    }
    let too_many = PinError::TooMany(number(0));
    assert_eq!(pin(&world.space, 0, 1, READ).unwrap_err(), too_many);
    assert_eq!(pin(&world.space, 0, 2, READ).unwrap_err(), too_many);
    assert_eq!(counts(&world.space).2, 1);
    world.push_out();
    assert!(world.mmu().is_present(BASE));
    guards.pop();
    drop(pin(&world.space, 0, 2, READ).unwrap());
    drop(guards);
    nothing_is_pinned(&world.space);
    assert_eq!(world.push_out(), 0);
    world.check_invariants();
}

#[test]
fn r11_a_coherent_page_that_others_hold_is_busy_for_long() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..4);
    three.to_device(0, 4, DEVICE_COHERENT);
    let ordinary = pin(&three.space, 1, 1, READ).unwrap();
    let start = Instant::now();
    let busy = PinError::Busy(number(1));
    assert_eq!(pin(&three.space, 0, 4, LONG).unwrap_err(), busy);
    assert!(start.elapsed() < Duration::from_secs(3));
    drop(ordinary);
    drop(pin(&three.space, 0, 4, LONG).unwrap());
    nothing_is_pinned(&three.space);
    three.check_all();
    three.check_invariants();
}
