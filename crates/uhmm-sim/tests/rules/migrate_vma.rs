//! R3, R5 to R7 for migration by request: every phase can be the last, every call can fail, and each
//! page is then what it was.

use crate::hook::{HookedMmu, Op};
use crate::rig::{
    COHERENT, Call as Driver, DEVICE_COHERENT, DEVICE_PRIVATE, PRIVATE, Recorder, SYSTEM, Three,
    WATCHED, Was, args, migrated, number,
};
use crate::world::{BASE, BUDGET, World};
use uhmm_core::AllocError;
use uhmm_core::addr::{PageNo, PageRange};
use uhmm_core::fault::Scratch;
use uhmm_core::hints::Hints;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::{From, MigrateError, MigrateVma, Migration, Select, Unmapped};
use uhmm_core::mmu::Stop;
use uhmm_sim::{Call, Failure, Fault};

pub fn any() -> Select {
    SYSTEM | PRIVATE | COHERENT
}

/// Where a migration may be told to go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum To {
    Private,
    Coherent,
    System,
}

pub const EVERYWHERE: [To; 3] = [To::Private, To::Coherent, To::System];

impl To {
    fn choose(self, migration: &mut Migration<'_, HookedMmu, Unmapped>) {
        match self {
            Self::Private => drop(migration.allocate(DEVICE_PRIVATE)),
            Self::Coherent => drop(migration.allocate(DEVICE_COHERENT)),
            Self::System => migration.to_system(),
        }
    }
}

/// The phase after which a migration is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum After {
    Collect,
    Allocate,
    Copy,
    Pages,
}

pub const PHASES: [After; 4] = [After::Collect, After::Allocate, After::Copy, After::Pages];

pub fn drop_after(mut migration: Migration<'_, HookedMmu, Unmapped>, to: To, after: After) {
    if after == After::Collect {
        return;
    }
    to.choose(&mut migration);
    if after == After::Allocate {
        return;
    }
    let copied = migration.copy();
    if after == After::Pages {
        drop(copied.pages());
    }
}

/// Compares `len` pages from `first` on, and writes to those that the program may write to.
pub fn use_pages(three: &Three, first: usize, len: usize, writable: bool) {
    for page in first..first + len {
        three.check(page);
        match writable {
            true => three.write(page),
            false => assert_eq!(
                three.mmu().touch_write(number(page), |_| ()),
                Err(Fault::Protected),
                "page {page}"
            ),
        }
        three.check(page);
    }
}

pub fn woken(three: &Three, page: usize) -> bool {
    let wakes = three.mmu().take_wakes();
    wakes.iter().any(|range| range.contains(number(page)))
}

#[test]
fn r5_a_whole_migration_goes_where_it_was_told_from_anywhere() {
    for was in Was::ALL {
        for to in EVERYWHERE {
            let three = Three::new(64);
            was.make(&three, 8, 6);
            let mut migration = three.begin(8, 6, any());
            assert_eq!(migration.selected().count(), 6, "{was:?}");
            for (page, i) in migration.selected().zip(8..) {
                assert_eq!(page.page, number(i));
                assert!(page.source.migrate);
                assert_eq!(page.destination, None);
                assert!(!three.mmu().is_present(number(i)), "{was:?} is unmapped");
                assert_eq!(page.source.write, was.is_writable());
                match was {
                    Was::Hole => assert_eq!(page.source.from, From::Hole),
                    Was::Private | Was::Coherent | Was::ReadOnlyCoherent => {
                        assert!(matches!(page.source.from, From::Device(_)));
                    }
                    _ => assert_eq!(page.source.from, From::System),
                }
            }
            to.choose(&mut migration);
            let done = migration.copy().pages().finalize();
            // Memory that the CPU maps cannot be put where the program may not write.
            let stays = match to {
                To::Coherent => !was.is_writable(),
                To::Private => false,
                To::System => !matches!(was, Was::Private | Was::Coherent | Was::ReadOnlyCoherent),
            };
            let expected = if stays {
                migrated(0, 6)
            } else {
                migrated(6, 0)
            };
            assert_eq!(done, expected, "{was:?} to {to:?}");
            for page in 8..14 {
                match (stays, to) {
                    (true, _) => assert!(was.is_again(&three, page), "{was:?} to {to:?}"),
                    (_, To::Private) => assert!(three.is_on(page, DEVICE_PRIVATE)),
                    (_, To::Coherent) => assert!(three.is_on(page, DEVICE_COHERENT)),
                    (_, To::System) => assert!(Was::System.is(&three, page)),
                }
            }
            three.check_invariants();
            use_pages(&three, 8, 6, was.is_writable());
            three.check_invariants();
        }
    }
}

#[test]
fn r5_a_migration_dropped_after_any_phase_puts_everything_back() {
    for was in Was::ALL {
        for to in EVERYWHERE {
            for after in PHASES {
                let three = Three::new(64);
                was.make(&three, 8, 6);
                let context = format!("{was:?} to {to:?}, dropped after {after:?}");
                drop_after(three.begin(8, 6, any()), to, after);
                for page in 8..14 {
                    assert!(was.is_again(&three, page), "{context}: page {page}");
                }
                three.check_invariants();
                if matches!(was, Was::System | Was::Coherent | Was::Limbo) {
                    assert_eq!(three.try_write(9), Ok(0), "{context}: writable at once");
                }
                use_pages(&three, 8, 6, was.is_writable());
                three.check_invariants();
            }
        }
    }
}

#[test]
fn r5_whoever_waits_for_a_page_is_woken_when_the_migration_is_dropped_or_done() {
    for was in Was::ALL {
        for to in EVERYWHERE {
            for after in PHASES.into_iter().map(Some).chain([None]) {
                let three = Three::new(64);
                was.make(&three, 8, 2);
                let mut migration = three.begin(8, 2, any());
                // The fault does not wait: it is served by the end of the migration.
                three.fault(8);
                three.mmu().take_wakes();
                match after {
                    Some(after) => drop_after(migration, to, after),
                    None => {
                        to.choose(&mut migration);
                        migration.copy().pages().finalize();
                    }
                }
                assert!(woken(&three, 8), "{was:?} to {to:?}, {after:?}");
                use_pages(&three, 8, 2, was.is_writable());
            }
        }
    }
}

#[test]
fn r5_a_page_whose_mark_is_cleared_stays() {
    for was in Was::ALL {
        let three = Three::new(64);
        was.make(&three, 8, 4);
        let mut migration = three.begin(8, 4, any());
        migration.skip(number(9));
        migration.skip(number(11));
        let marks: Vec<_> = migration
            .selected()
            .map(|page| page.source.migrate)
            .collect();
        assert_eq!(marks, [true, false, true, false]);
        assert_eq!(migration.allocate(DEVICE_PRIVATE), Ok(2));
        let given: Vec<_> = migration
            .selected()
            .map(|page| page.destination.is_some())
            .collect();
        assert_eq!(given, marks);
        assert_eq!(migration.copy().pages().finalize(), migrated(2, 2));
        for page in 8..12 {
            match page % 2 {
                0 => assert!(three.is_on(page, DEVICE_PRIVATE), "{was:?}"),
                _ => assert!(was.is_again(&three, page), "{was:?}"),
            }
        }
        three.check_invariants();
        use_pages(&three, 8, 4, was.is_writable());
    }
}

/// Each call of the MMU that a migration makes fails once, for each reason, and whatever is left
/// undone is undone whole.
#[test]
fn r5_a_call_that_fails_at_any_point_loses_nothing() {
    let reasons: [(Call, &[Stop]); 5] = [
        (Call::Take, &[Stop::Busy, Stop::Changing]),
        (Call::Put, &[Stop::Changing, Stop::NoMemory, Stop::Unmapped]),
        (Call::Copy, &[Stop::Changing, Stop::NoMemory]),
        (Call::FillArena, &[Stop::NoMemory]),
        (Call::Peek, &[Stop::Changing]),
    ];
    for was in Was::ALL {
        for to in EVERYWHERE {
            for (call, stops) in reasons {
                for &stop in stops {
                    for after_calls in 0..4 {
                        let three = Three::new(64);
                        was.make(&three, 8, 4);
                        let context = format!("{was:?} to {to:?}, {call:?} {stop:?} {after_calls}");
                        // `Busy` is asked again, so that it must be said twice to be true.
                        for _ in 0..1 + usize::from(stop == Stop::Busy) {
                            three.mmu().fail(
                                call,
                                Failure {
                                    after_calls,
                                    after_pages: 0,
                                    stop,
                                },
                            );
                        }
                        let mut migration = three.begin(8, 4, any());
                        to.choose(&mut migration);
                        let done = migration.copy().pages().finalize();
                        three.mmu().heal();
                        assert!(done.migrated + done.left <= 4, "{context}");
                        three.check_invariants();
                        use_pages(&three, 8, 4, was.is_writable());
                        three.check_invariants();
                    }
                }
            }
        }
    }
}

/// The way back fails too: a frame waits in limbo then, a device's page on its device, and a touch
/// brings either.
#[test]
fn r5_a_way_back_that_fails_loses_nothing() {
    for was in Was::ALL {
        for after in PHASES {
            for stop in [Stop::Changing, Stop::NoMemory] {
                let three = Three::new(64);
                was.make(&three, 8, 4);
                let migration = three.begin(8, 4, any());
                for _ in 0..3 {
                    three.mmu().fail(Call::Put, Failure::next(stop));
                    three.mmu().fail(Call::Copy, Failure::next(stop));
                }
                drop_after(migration, To::Private, after);
                three.mmu().heal();
                three.check_invariants();
                for page in 8..11 {
                    match was {
                        Was::System | Was::Limbo => assert!(Was::Limbo.is(&three, page)),
                        Was::Coherent => assert!(Was::Private.is(&three, page)),
                        _ => assert!(was.is_again(&three, page)),
                    }
                }
                assert!(was.is_again(&three, 11));
                use_pages(&three, 8, 4, was.is_writable());
                three.check_invariants();
                // What waited in limbo can be pushed out like anything else.
                three.push_out();
                three.check_invariants();
                use_pages(&three, 8, 4, was.is_writable());
            }
        }
    }
}

#[test]
fn r5_random_failures_lose_nothing() {
    for seed in 0..60 {
        let three = Three::new(256);
        let mut rng = uhmm_testkit::Rng::new(seed);
        three.write_all(0..128);
        three.mmu().fail_at_random(seed, 3);
        for _ in 0..40 {
            let first = rng.below(150) as usize;
            let len = 1 + rng.below(40) as usize;
            match rng.below(8) {
                0..3 => {
                    three.to_device(first, len, DEVICE_COHERENT);
                }
                3..5 => {
                    three.to_device(first, len, DEVICE_PRIVATE);
                }
                5 => {
                    three.to_system(first, len);
                }
                6 => {
                    three.push_out();
                }
                _ => drop_after(
                    three.begin(first, len, any()),
                    rng.pick(&EVERYWHERE),
                    rng.pick(&PHASES),
                ),
            }
            if rng.one_in(4) {
                three.write(first);
            }
        }
        three.mmu().heal();
        three.check_invariants();
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn r5_a_fault_in_the_middle_waits_and_finds_the_page_where_it_went() {
    for op in [Op::Take, Op::WithArena, Op::Put] {
        let three = Three::new(64);
        three.write_all(8..12);
        let space = three.space.clone();
        three.mmu().before(op, move || {
            // Whatever the migration is at, the touch neither hangs nor brings the page in twice.
            let mut scratch = Scratch::default();
            for page in 8..12 {
                space.fault(number(page), uhmm_core::fault::Access::Write, &mut scratch);
            }
        });
        assert_eq!(three.to_device(8, 4, DEVICE_COHERENT), migrated(4, 0));
        assert_eq!(three.mmu().steps_left(), 0, "{op:?}");
        three.check_invariants();
        use_pages(&three, 8, 4, true);
    }
}

#[test]
fn bad_use_is_an_error_of_its_own_and_changes_nothing() {
    let three = Three::new(64);
    three.write_all(0..8);
    let refused = |pages: PageRange| {
        let args = MigrateVma {
            pages,
            ..args(0, 0, SYSTEM)
        };
        three.space.migrate_vma(&args).err()
    };
    let not_managed = Some(MigrateError::NotManaged);
    assert_eq!(refused(PageRange::new(PageNo(BASE.0 - 1), 2)), not_managed);
    assert_eq!(refused(PageRange::new(BASE.plus(63), 2)), not_managed);
    assert_eq!(refused(PageRange::new(PageNo(u64::MAX), 2)), not_managed);
    assert_eq!(refused(PageRange::new(BASE, usize::MAX)), not_managed);
    assert_eq!(refused(PageRange::new(BASE.plus(64), 0)), None);
    assert_eq!(three.to_device(0, 0, DEVICE_PRIVATE), migrated(0, 0));
    let mut migration = three.begin(0, 8, SYSTEM);
    assert_eq!(migration.allocate(7), Err(AllocError::NoSuchDevice));
    assert_eq!(migration.allocate(200), Err(AllocError::NoSuchDevice));
    // Without a destination nothing goes.
    assert_eq!(migration.copy().pages().finalize(), migrated(0, 8));
    three.check_invariants();
    three.check_all();
}

/// The core's other ranges are checked in the same way.
#[test]
fn bad_ranges_are_refused_everywhere() {
    let world = World::new(64);
    world.write_all(0..8);
    let inside = world.space.inside().unwrap();
    for pages in [
        PageRange::new(PageNo(u64::MAX), 2),
        PageRange::new(BASE, usize::MAX),
        PageRange::new(PageNo(BASE.0 - 1), 2),
        PageRange::new(BASE.plus(63), 2),
    ] {
        assert!(inside.discard(pages).is_err());
        assert!(inside.relocate(pages, BASE).is_err());
        assert!(inside.set_hints(pages, Hints::READ_MOSTLY).is_err());
    }
    assert!(
        inside
            .relocate(PageRange::new(BASE, 8), PageNo(u64::MAX))
            .is_err()
    );
    drop(inside);
    world.check_all();
    world.check_invariants();
}

#[test]
fn only_memory_that_migrates_is_a_destination() {
    let generic = Recorder::of(MemoryType::Generic, 64);
    let world = World::beside(64, 64, vec![generic.boxed()]);
    world.write_all(0..4);
    let space = &world.space;
    let mut migration = space.migrate_vma(&args(0, 4, SYSTEM)).unwrap();
    assert!(migration.allocate(1).is_err());
    let page = space.alloc_device_pages(1, 0).unwrap();
    assert!(!migration.set_destination(number(0), page));
    assert_eq!(migration.copy().pages().finalize(), migrated(0, 4));
    world.check_all();
    space.reclaim(&mut Scratch::default());
    world.check_invariants();
}

/// From RAM to RAM, nothing is to be done.
#[test]
fn to_ram_only_what_is_not_there_migrates() {
    for was in [Was::Hole, Was::System, Was::Limbo, Was::ReadOnly] {
        let three = Three::new(64);
        was.make(&three, 0, 4);
        let mut migration = three.begin(0, 4, any());
        migration.to_system();
        let done = migration.copy().pages().finalize();
        assert_eq!(done, migrated(0, 4), "{was:?}");
        assert!((0..4).all(|page| was.is_again(&three, page)));
        three.check_all();
        three.check_invariants();
    }
}

/// A device that answers some pages of a batch at once and the others not: each has its own result.
#[test]
fn r5_each_page_of_a_batch_has_its_own_result() {
    let three = Three::with_batch(64, 16);
    three.write_all(0..8);
    for _ in 0..4 {
        three.private.before(Driver::CopyIn, || ());
    }
    let private = three.private.clone();
    three
        .private
        .before(Driver::CopyIn, move || private.set_full(true));
    assert_eq!(three.to_device(0, 8, DEVICE_PRIVATE), migrated(4, 4));
    three.private.set_full(false);
    for page in 0..8 {
        let (device, ram) = (
            three.is_on(page, DEVICE_PRIVATE),
            Was::System.is(&three, page),
        );
        assert_eq!((device, ram), (page < 4, page >= 4), "page {page}");
    }
    three.check_invariants();
    three.check_all();
}

/// Where blocks as large as the run are to be had, the run gets one.
#[test]
fn a_run_of_2_mib_gets_one_block() {
    let three = Three::new(4 * BUDGET);
    // Holes, so that the budget does not matter. The space's base is a multiple of 512.
    assert_eq!(three.to_device(512, 512, DEVICE_COHERENT), migrated(512, 0));
    let first = three.on(512);
    assert_eq!(first.page.0 % 512, 0);
    for page in 0..512 {
        assert_eq!(three.on(512 + page), first.plus(page));
    }
    // A run that is not aligned gets parts as large as fit.
    assert_eq!(three.to_device(100, 60, DEVICE_COHERENT), migrated(60, 0));
    let part = three.on(128);
    for page in 0..32 {
        assert_eq!(three.on(128 + page), part.plus(page));
    }
    three.check_all();
    three.check_invariants();
}

#[test]
fn a_migration_takes_what_room_there_is() {
    let three = Three::new(8 * BUDGET);
    let chunks = 4 * 512;
    // More holes than the device has pages.
    let mut migration = three.begin(0, chunks + 100, SYSTEM);
    assert_eq!(migration.allocate(DEVICE_COHERENT), Ok(chunks));
    assert_eq!(migration.allocate(DEVICE_COHERENT), Err(AllocError::Full));
    // The rest goes elsewhere.
    assert_eq!(migration.allocate(DEVICE_PRIVATE), Ok(100));
    let done = migration.copy().pages().finalize();
    assert_eq!(done, migrated(chunks + 100, 0));
    assert!(three.is_on(0, DEVICE_COHERENT) && three.is_on(chunks, DEVICE_PRIVATE));
    three.check_invariants();
    assert_eq!(three.to_system(0, 300), migrated(300, 0));
    three.check_all();
    three.check_invariants();
}

/// The devices of reclaim are no different.
#[test]
fn what_reclaim_pushed_out_migrates_like_anything_else() {
    let three = Three::new(256);
    three.write_all(0..64);
    three.push_out();
    assert!((0..64).all(|page| three.is_on(page, WATCHED)));
    assert_eq!(three.to_device(0, 32, DEVICE_COHERENT), migrated(32, 0));
    assert_eq!(three.to_device(32, 16, DEVICE_PRIVATE), migrated(16, 0));
    assert_eq!(three.to_system(48, 8), migrated(8, 0));
    assert_eq!(three.device.stored().len(), 8);
    three.check_invariants();
    three.check_all();
    three.check_invariants();
}

/// A page in RAM of which a device has the same bytes has but one home after it migrates.
#[test]
fn a_duplicate_is_given_up_by_a_migration_of_its_page() {
    let three = Three::new(256);
    three.write_all(0..8);
    three.push_out();
    let pages = PageRange::new(BASE, 8);
    three
        .space
        .inside()
        .unwrap()
        .set_hints(pages, Hints::READ_MOSTLY)
        .unwrap();
    (0..8).for_each(|page| three.check(page));
    assert_eq!(three.space.stats().duplicate_pages.get(), 8);
    assert_eq!(three.to_device(0, 8, DEVICE_COHERENT), migrated(8, 0));
    assert_eq!(three.space.stats().duplicate_pages.get(), 0);
    assert_eq!(three.device.stored(), []);
    assert_eq!(three.try_write(3), Ok(0), "writes are not tracked");
    three.check_invariants();
    three.check_all();
}
