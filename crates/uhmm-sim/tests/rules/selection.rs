//! What a migration selects (R6), what it leaves alone because others hold it (R7, R3), and what becomes
//! of its destinations (R1).

use crate::hook::{HookedMmu, Op};
use crate::migrate_vma::*;
use crate::rig::{
    COHERENT, Call as Driver, DEVICE_COHERENT, DEVICE_PRIVATE, PRIVATE, Recorder, SYSTEM, Three,
    Was, args, migrated, number, small,
};
use crate::world::{BASE, World};
use uhmm_core::DevicePages;
use uhmm_core::addr::PageRange;
use uhmm_core::device::Owner;
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_core::hold::{Hold, HoldError};
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::{Destination, From, MigrateVma};
use uhmm_sim::Fault;

#[test]
fn r6_only_the_kinds_that_were_asked_for_are_selected() {
    let three = Three::new(128);
    // A window in each state, and one that is lost.
    for (was, first) in Was::ALL.into_iter().zip((8..).step_by(8)) {
        if was == Was::Limbo {
            continue;
        }
        was.make(&three, first, 4);
    }
    three.write(100);
    assert_eq!(three.to_device(100, 1, DEVICE_PRIVATE), migrated(1, 0));
    three.private.lose(three.on(100).page);
    assert_eq!(three.try_check(100), Err(Fault::Poisoned));
    let kinds = [SYSTEM, PRIVATE, COHERENT];
    for mask in 1..8 {
        let chosen = (0..3).filter(|bit| mask >> bit & 1 == 1);
        let select = chosen.map(|bit| kinds[bit]).reduce(|a, b| a | b).unwrap();
        let migration = three.begin(0, 128, select);
        let pages: Vec<_> = migration.selected().collect();
        drop(migration);
        for page in 0..128 {
            let is_selected = pages.iter().any(|found| found.page == number(page));
            let expected = match three.state(page) {
                State::None | State::System { .. } => select.contains(SYSTEM),
                State::Private(_) => select.contains(PRIVATE),
                State::Coherent(_) => select.contains(COHERENT),
                State::Poisoned => false,
                other => panic!("page {page} is {other:?}"),
            };
            // What may not be written to was read and dropped, and is in RAM from then on.
            let moved = mask & 4 != 0 && Was::ALL[6..].contains(&Was::ReadOnlyCoherent);
            if !(moved && (56..60).contains(&page)) {
                assert_eq!(is_selected, expected, "page {page}, {select:?}");
            }
        }
        assert_eq!(
            pages.iter().any(|page| page.source.from == From::Hole),
            select.contains(SYSTEM)
        );
        three.check_invariants();
    }
}

#[test]
fn r6_pages_of_devices_are_selected_by_owner() {
    let (ours, theirs) = (Owner(1), Owner(2));
    let device = |owner: Option<Owner>, memory| {
        let mut info = small(memory, 1);
        info.owner = owner;
        Recorder::new(info)
    };
    let devices = [
        device(Some(ours), MemoryType::Private),
        device(Some(ours), MemoryType::Coherent),
        device(Some(theirs), MemoryType::Private),
        device(None, MemoryType::Private),
        device(None, MemoryType::Private),
    ];
    let world = World::beside(64, 64, devices.iter().map(Recorder::boxed).collect());
    let space = &world.space;
    world.write_all(0..5);
    for (page, device) in (0..5).zip(1u8..) {
        let mut migration = space.migrate_vma(&args(page, 1, SYSTEM)).unwrap();
        assert_eq!(migration.allocate(device), Ok(1));
        assert_eq!(migration.copy().pages().finalize(), migrated(1, 0));
    }
    let selected = |owner: Option<Owner>| -> Vec<u64> {
        let with_owner = MigrateVma {
            owner,
            ..args(0, 5, PRIVATE | COHERENT)
        };
        let migration = space.migrate_vma(&with_owner).unwrap();
        migration
            .selected()
            .map(|page| page.page.0 - BASE.0)
            .collect()
    };
    assert_eq!(selected(None), [0, 1, 2, 3, 4]);
    assert_eq!(selected(Some(ours)), [0, 1], "two devices of one owner");
    assert_eq!(selected(Some(theirs)), [2]);
    assert_eq!(selected(Some(Owner(3))), []);
    // Who names no owner is an owner apart.
    assert_eq!(selected(space.owner(4)), [3]);
    assert_eq!(selected(space.owner(5)), [4]);
    assert_eq!(space.owner(9), None);
    // What is where the rest is to go is left out.
    let but = MigrateVma {
        owner: Some(ours),
        except: Some(2),
        ..args(0, 5, PRIVATE | COHERENT)
    };
    let migration = space.migrate_vma(&but).unwrap();
    let pages: Vec<_> = migration.selected().map(|page| page.page).collect();
    assert_eq!(pages, [number(0)]);
    drop(migration);
    // RAM has no owner.
    world.write(7);
    let with_owner = MigrateVma {
        owner: Some(theirs),
        ..args(7, 1, SYSTEM)
    };
    let migration = space.migrate_vma(&with_owner).unwrap();
    assert_eq!(migration.selected().count(), 1);
    drop(migration);
    world.check_all();
    world.check_invariants();
}

#[test]
fn r6_a_hole_reads_as_zero_wherever_it_went() {
    let three = Three::new(64);
    for device in [DEVICE_PRIVATE, DEVICE_COHERENT] {
        // Old bytes on the device, whose pages are used again.
        three.write_all(0..8);
        assert_eq!(three.to_device(0, 8, device), migrated(8, 0));
        three.discard(0, 8);
        three.space.reclaim(&mut Scratch::default());
        assert_eq!(three.to_device(16, 8, device), migrated(8, 0));
        assert!((16..24).all(|page| three.is_on(page, device)));
        for page in 16..24 {
            three.check(page);
            three.write(page);
        }
        three.discard(16, 8);
        three.check_invariants();
    }
}

#[test]
fn r7_a_pinned_page_stays_with_its_permissions() {
    for was in [Was::System, Was::Coherent] {
        let three = Three::new(64);
        was.make(&three, 8, 8);
        assert!(three.mmu().pin(number(10)));
        let done = three.to_device(8, 8, DEVICE_PRIVATE);
        assert_eq!(done, migrated(7, 1), "{was:?}: it counts as left");
        assert!(was.is(&three, 10));
        assert!(three.space.stats().busy_pages.get() > 0);
        assert_eq!(three.try_write(10), Ok(0), "{was:?}: writable at once");
        three.check_invariants();
        three.mmu().unpin(number(10));
        assert_eq!(three.to_device(10, 1, DEVICE_PRIVATE), migrated(1, 0));
        use_pages(&three, 8, 8, true);
        three.check_invariants();
    }
}

#[test]
fn r7_a_page_shared_after_a_fork_migrates_once_the_sharing_is_broken() {
    for was in [Was::System, Was::Coherent] {
        for to in [DEVICE_PRIVATE, DEVICE_COHERENT] {
            let three = Three::new(64);
            was.make(&three, 8, 8);
            three.mmu().share(PageRange::new(number(8), 8));
            assert_eq!(three.to_device(8, 8, to), migrated(8, 0), "{was:?}");
            three.check_invariants();
            use_pages(&three, 8, 8, true);
        }
    }
}

#[test]
fn r7_a_page_that_cannot_be_unshared_stays() {
    for was in [Was::System, Was::Coherent] {
        let three = Three::new(64);
        was.make(&three, 8, 4);
        three.mmu().share(PageRange::new(number(8), 4));
        // The sharing is not broken: another fork comes at once.
        let space = three.space.clone();
        for page in 8..12 {
            let space = space.clone();
            three.mmu().before(Op::Take, || ());
            three.mmu().before(Op::Take, move || {
                space.mmu().share(PageRange::new(number(page), 4));
            });
        }
        let done = three.to_device(8, 4, DEVICE_PRIVATE);
        assert!(done.migrated < 4, "{was:?}: {done:?}");
        for page in 8..12 {
            assert!(was.is(&three, page) || three.is_on(page, DEVICE_PRIVATE));
        }
        assert!(was.is(&three, 8), "{was:?}");
        three.check_invariants();
        assert_eq!(three.try_write(8), Ok(0), "{was:?}: writable at once");
        use_pages(&three, 8, 4, true);
        while three.mmu().steps_left() > 0 {
            three.to_device(8, 4, DEVICE_PRIVATE);
        }
    }
}

#[test]
fn r7_a_held_device_page_stays_where_it_is() {
    for was in [Was::Private, Was::Coherent] {
        let three = Three::new(64);
        was.make(&three, 8, 3);
        let at = three.on(9);
        let held = three.space.hold_device_page(at, Hold::default()).unwrap();
        assert_eq!(three.to_system(8, 3), migrated(2, 1), "{was:?}");
        assert_eq!(three.on(9), at);
        if was == Was::Coherent {
            assert_eq!(three.try_write(9), Ok(0), "writable at once");
        }
        drop(held);
        three.space.reclaim(&mut Scratch::default());
        three.check_invariants();
        assert_eq!(three.to_system(8, 3), migrated(1, 0), "{was:?}");
        use_pages(&three, 8, 3, true);
        three.check_invariants();
    }
}

/// Who comes to hold a page while it is in flight is told so, or keeps it where it is: what he writes
/// there is not lost behind his back.
#[test]
fn r7_a_page_in_flight_cannot_be_held() {
    for was in [Was::Private, Was::Coherent] {
        let three = Three::new(64);
        was.make(&three, 8, 1);
        let at = three.on(8);
        let hold = || three.space.hold_device_page(at, Hold::default()).is_ok();
        assert!(hold(), "{was:?}: it is at rest");
        three.space.reclaim(&mut Scratch::default());
        let mut migration = three.begin(8, 1, any());
        assert!(!hold(), "{was:?}: collected");
        migration.to_system();
        let copied = migration.copy();
        assert!(!hold(), "{was:?}: copied");
        let installed = copied.pages();
        assert!(!hold(), "{was:?}: about to leave");
        assert_eq!(installed.finalize(), migrated(1, 0), "{was:?}");
        assert!(!hold(), "{was:?}: gone");
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn r7_a_page_that_a_fault_brings_back_cannot_be_held() {
    let three = Three::new(64);
    Was::Private.make(&three, 8, 1);
    let (space, at) = (three.space.clone(), three.on(8));
    three.private.before(Driver::CopyOut, move || {
        let held = space.hold_device_page(at, Hold::default());
        assert_eq!(held.err(), Some(HoldError::InFlight));
    });
    three.write(8);
    assert_eq!(three.private.steps_left(), 0);
    three.check(8);
    three.space.reclaim(&mut Scratch::default());
    three.check_invariants();
}

#[test]
fn r7_partial_failure_is_counted_page_by_page() {
    let three = Three::new(64);
    three.write_all(8..16);
    assert!(three.mmu().pin(number(9)));
    let mut migration = three.begin(8, 8, SYSTEM);
    migration.skip(number(12));
    let count = migration.selected().count();
    assert_eq!(count, 7, "the pinned page was never in it");
    assert_eq!(migration.allocate(DEVICE_PRIVATE), Ok(6));
    // One copy fails.
    let private = three.private.clone();
    three
        .private
        .before(Driver::CopyIn, move || private.set_full(true));
    let private = three.private.clone();
    let copied = migration.copy();
    private.set_full(false);
    let done = copied.pages().finalize();
    assert_eq!(done, migrated(0, 8), "a full device takes nothing");
    assert_eq!(three.private.stored(), 0);
    three.check_invariants();
    use_pages(&three, 8, 8, true);
    three.mmu().unpin(number(9));
    assert_eq!(three.to_device(8, 8, DEVICE_PRIVATE), migrated(8, 0));
    three.check_all();
    three.check_invariants();
}

#[test]
fn r3_the_fault_page_migrates_although_it_is_held() {
    for was in [Was::Private, Was::Coherent] {
        let three = Three::new(64);
        was.make(&three, 8, 2);
        let at = three.on(8);
        let held = three.space.hold_device_page(at, Hold::default()).unwrap();
        let begin = |fault_page| {
            let args = MigrateVma {
                except: None,
                fault_page,
                ..args(8, 2, PRIVATE | COHERENT)
            };
            let mut migration = three.space.migrate_vma(&args).unwrap();
            migration.to_system();
            migration.copy().pages().finalize()
        };
        let other = three.on(9);
        // Another page's reference does not help.
        assert_eq!(begin(Some(other)), migrated(1, 1), "{was:?}");
        assert!(was.is(&three, 8));
        // Two references are one too many.
        let second = three.space.hold_device_page(at, Hold::default()).unwrap();
        assert_eq!(begin(Some(at)), migrated(0, 1), "{was:?}");
        drop(second);
        let freed = || {
            three.space.reclaim(&mut Scratch::default());
            three.space.hold_device_page(at, Hold::default()).is_err()
                && three.space.stats().devices[usize::from(at.device)]
                    .pages
                    .get()
                    == 0
        };
        assert_eq!(begin(Some(at)), migrated(1, 0), "{was:?}");
        assert!(Was::System.is(&three, 8));
        // The page goes when its last holder does.
        assert!(!freed());
        three.space.check_invariants_but(1);
        three.check_all();
        drop(held);
        assert!(freed());
        three.check_invariants();
        three.check_all();
    }
}

#[test]
fn r1_destinations_that_were_not_needed_are_free_again() {
    let three = Three::new(64);
    three.write_all(0..8);
    let pages = |device: u8| {
        three.space.reclaim(&mut Scratch::default());
        three.space.stats().devices[usize::from(device)].pages.get()
    };
    let mut migration = three.begin(0, 8, SYSTEM);
    assert_eq!(migration.allocate(DEVICE_COHERENT), Ok(8));
    assert_eq!(pages(DEVICE_COHERENT), 8);
    migration.skip(number(3));
    let installed = migration.copy().pages();
    assert_eq!(pages(DEVICE_COHERENT), 7);
    drop(installed);
    assert_eq!(pages(DEVICE_COHERENT), 0);
    three.check_invariants();
    three.check_all();
}

#[test]
fn r1_a_destination_that_the_caller_brings_is_the_migrations() {
    let three = Three::new(64);
    three.write_all(0..4);
    let pages = |order| three.space.alloc_device_pages(DEVICE_PRIVATE, order);
    let in_use = || {
        three.space.reclaim(&mut Scratch::default());
        three.space.stats().devices[1].pages.get()
    };
    let one = || -> DevicePages<'_, HookedMmu> { pages(0).unwrap() };
    let mut migration = three.begin(0, 4, SYSTEM);
    let at = one();
    let first = at.first();
    assert!(migration.set_destination(number(1), at));
    let page = migration.selected().nth(1).unwrap();
    assert_eq!(page.destination, Some(Destination::Device(first)));
    assert!(!migration.set_destination(number(1), one()), "it has one");
    assert!(!migration.set_destination(number(9), one()), "not selected");
    assert!(!migration.set_destination(number(2), pages(1).unwrap()));
    migration.skip(number(3));
    assert!(!migration.set_destination(number(3), one()), "it stays");
    assert_eq!(in_use(), 1, "those that were not taken are free");
    assert_eq!(migration.copy().pages().finalize(), migrated(1, 3));
    assert_eq!(three.on(1), first);
    three.check_invariants();
    // And when it is dropped.
    let mut migration = three.begin(2, 1, SYSTEM);
    assert!(migration.set_destination(number(2), one()));
    drop(migration);
    assert_eq!(in_use(), 1);
    three.check_all();
    three.check_invariants();
}
