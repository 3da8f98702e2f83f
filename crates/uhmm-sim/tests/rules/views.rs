//! Device views: a range resident on a device, and held there, all of it or nothing.

use crate::hook::{HookedMmu, Op};
use crate::rig::{CHUNK, Call, FIRST_ADDRESS, Recorder, Three, Was, args, migrated, number, small};
use crate::rig::{DEVICE_COHERENT, DEVICE_PRIVATE, PRIVATE, SYSTEM};
use crate::watcher;
use crate::world::{BUDGET, World, or_abort, touch, with_reclaimer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::addr::{DevicePage, PageRange};
use uhmm_core::device::{Device, DeviceInfo};
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::memory_type::MemoryType::{Coherent, Generic, Private};
use uhmm_core::view::{ViewError, Why};
use uhmm_core::{MIN_STAY, View};
use uhmm_testkit::Rng;

const DEVICES: [u8; 2] = [DEVICE_PRIVATE, DEVICE_COHERENT];
const LONG: Duration = MIN_STAY.saturating_mul(3);

fn range(first: usize, len: usize) -> PageRange {
    PageRange::new(number(first), len)
}

fn view(world: &World, device: u8, first: usize, len: usize) -> View<'_, HookedMmu> {
    world.space.view(device, range(first, len)).unwrap()
}

fn refused(world: &World, device: u8, first: usize, len: usize) -> ViewError {
    match world.space.view(device, range(first, len)) {
        Ok(_) => panic!("there is a view"),
        Err(error) => error,
    }
}

fn in_use(world: &World, device: u8) -> u64 {
    world.space.stats().devices[usize::from(device)].pages.get()
}

/// Whether nobody but entries holds pages of any device.
fn is_released(world: &World, pages: usize) -> bool {
    (0..pages).all(|page| {
        world.state(page).device_page().is_none_or(|at| {
            let held = world.space.migrate_device_range(at.device, at.page, 1);
            held.unwrap().selected().count() == 1
        })
    })
}

#[test]
fn a_view_brings_pages_from_wherever_they_are() {
    for device in DEVICES {
        for was in Was::ALL {
            let three = Three::new(1024);
            was.make(&three, 0, 6);
            if device == DEVICE_COHERENT && was == Was::ReadOnly {
                // A frame of the device cannot be moved in where the program may not write.
                let error = refused(&three, device, 0, 6);
                let why = Why::Refused;
                let first = number(0);
                assert_eq!(
                    error,
                    ViewError::NotResident {
                        missing: 6,
                        first,
                        why
                    }
                );
                continue;
            }
            let view = view(&three, device, 0, 6);
            assert_eq!(view.pages(), range(0, 6));
            let pages = view.device_pages().unwrap();
            for (page, at) in pages.iter().enumerate() {
                assert!(three.is_on(page, device), "{was:?}");
                assert_eq!(three.on(page).page, *at);
            }
            drop(view);
            three.protect(0, 6, true);
            three.check_all();
            three.check_invariants();
        }
    }
}

#[test]
fn a_views_pages_stay_where_they_are() {
    for device in DEVICES {
        let three = Three::new(1024);
        three.write_all(0..8);
        let view = view(&three, device, 0, 8);
        assert_eq!(three.to_system(0, 8), migrated(0, 8));
        let other = DEVICES[usize::from(device == DEVICE_PRIVATE)];
        assert_eq!(three.to_device(0, 8, other), migrated(0, 8));
        let mut scratch = Scratch::default();
        let soon = Duration::from_millis(5);
        assert!(
            three
                .space
                .evict_device(device, soon, &mut scratch)
                .is_err()
        );
        (0..8).for_each(|page| assert!(three.is_on(page, device)));
        assert_eq!(view.check(), Ok(()));
        drop(view);
        assert_eq!(three.to_system(0, 8), migrated(8, 0));
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn what_a_device_writes_is_seen_after_the_view() {
    let three = Three::new(1024);
    three.write_all(0..4);
    let view = view(&three, DEVICE_PRIVATE, 0, 4);
    let pages = view.device_pages().unwrap();
    for (page, at) in pages.into_iter().enumerate() {
        three
            .private
            .compute(at, |data| three.oracle.write(page, data));
    }
    // A touch waits for the end of the view.
    let touched = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            or_abort(|| three.check(2));
            touched.store(true, SeqCst);
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!touched.load(SeqCst));
        drop(view);
    });
    three.check_all();
    three.check_invariants();
}

#[test]
fn a_view_of_mapped_memory_is_shared_with_the_program() {
    let three = Three::new(1024);
    three.write_all(0..4);
    let view = view(&three, DEVICE_COHERENT, 0, 4);
    assert_eq!(three.try_write(1), Ok(0));
    assert_eq!(three.try_check(1), Ok(0));
    let expected: Vec<u64> = (0..4).map(|page| number(page).address() as u64).collect();
    assert_eq!(view.addresses(), Ok(expected));
    drop(view);
    three.check_all();
}

#[test]
fn addresses_are_the_devices_own() {
    let three = Three::new(1024);
    three.write_all(0..64);
    let view = view(&three, DEVICE_PRIVATE, 0, 64);
    assert_eq!(view.addresses(), Err(ViewError::NoAddresses));
    three.private.give_addresses();
    let first = view.contiguous().unwrap().expect("a block of 64 pages");
    let address = |i: u64| FIRST_ADDRESS + (u64::from(first.0) + i) * 4096;
    assert_eq!(view.addresses(), Ok((0..64).map(address).collect()));
    let pages = (0..64).map(|i| first.plus(i)).collect();
    assert_eq!(view.device_pages(), Ok(pages));
}

#[test]
fn pages_that_do_not_lie_in_line_are_not_contiguous() {
    let three = Three::new(1024);
    three.write_all(0..4);
    for page in [2, 0, 3, 1] {
        three.to_device(page, 1, DEVICE_PRIVATE);
    }
    let scattered = view(&three, DEVICE_PRIVATE, 0, 4);
    assert_eq!(scattered.contiguous(), Ok(None));
    assert_eq!(
        view(&three, DEVICE_PRIVATE, 2, 1).contiguous().unwrap(),
        Some(three.on(2).page)
    );
}

#[test]
fn what_cannot_be_viewed_is_refused_at_once() {
    let generic = Recorder::new(small(Generic, 1));
    let world = World::beside(1024, 64, vec![generic.boxed()]);
    assert_eq!(refused(&world, 7, 0, 1), ViewError::NoSuchDevice);
    assert_eq!(refused(&world, 1, 0, 1), ViewError::DoesNotMigrate);
    assert_eq!(refused(&world, 0, 1020, 8), ViewError::NotManaged);
    let error = refused(&world, 0, 0, 65);
    assert_eq!(
        error,
        ViewError::TooLarge {
            pages: 65,
            capacity: 64
        }
    );
    assert!(error.to_string().contains("view a part at a time"));
    let mut scratch = Scratch::default();
    world.space.suspend_device(0, LONG, &mut scratch).unwrap();
    assert_eq!(refused(&world, 0, 0, 1), ViewError::Suspended);
    world.space.resume_device(0);
    world.space.remove_device(0, LONG, &mut scratch).unwrap();
    assert_eq!(refused(&world, 0, 0, 1), ViewError::Removed);
    world.check_invariants();
}

/// Also where its pages are still there.
#[test]
fn a_suspended_device_is_not_viewed() {
    for device in DEVICES {
        let three = Three::new(1024);
        three.write_all(0..4);
        let first = view(&three, device, 0, 4);
        let mut scratch = Scratch::default();
        let soon = Duration::from_millis(5);
        assert!(
            three
                .space
                .suspend_device(device, soon, &mut scratch)
                .is_err()
        );
        assert_eq!(refused(&three, device, 0, 4), ViewError::Suspended);
        assert_eq!(first.check(), Ok(()));
        three.space.resume_device(device);
        drop(view(&three, device, 0, 4));
        drop(first);
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn all_or_nothing() {
    for device in DEVICES {
        let three = Three::new(1024);
        three.write_all(0..16);
        assert!(three.mmu().pin(number(9)));
        let begin = Instant::now();
        let error = refused(&three, device, 0, 16);
        assert!(begin.elapsed() < Duration::from_secs(1));
        let ViewError::NotResident {
            missing: 1,
            first,
            why: Why::Held,
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(first, number(9));
        assert!(is_released(&three, 16));
        three.mmu().unpin(number(9));
        drop(view(&three, device, 0, 16));
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn two_devices_do_not_view_the_same_page() {
    let three = Three::new(1024);
    three.write_all(0..8);
    let one = view(&three, DEVICE_PRIVATE, 4, 4);
    let error = refused(&three, DEVICE_COHERENT, 0, 8);
    assert_eq!(
        error,
        ViewError::NotResident {
            missing: 4,
            first: number(4),
            why: Why::Held
        }
    );
    drop(one);
    drop(view(&three, DEVICE_COHERENT, 0, 8));
    // The same device may have several views of it.
    let views = [(); 2].map(|()| view(&three, DEVICE_COHERENT, 0, 8));
    assert_eq!(views[0].device_pages(), views[1].device_pages());
    drop(views);
    three.check_all();
    three.check_invariants();
}

#[test]
fn a_page_in_flight_or_lost_is_named() {
    let three = Three::new(1024);
    three.write_all(0..8);
    let migration = three.begin(3, 1, SYSTEM);
    let error = refused(&three, DEVICE_PRIVATE, 0, 8);
    assert_eq!(
        error,
        ViewError::NotResident {
            missing: 1,
            first: number(3),
            why: Why::InFlight
        }
    );
    drop(migration);
    assert_eq!(three.to_device(5, 1, DEVICE_PRIVATE), migrated(1, 0));
    three.private.lose(three.on(5).page);
    three.to_system(5, 1);
    assert_eq!(three.state(5), State::Poisoned);
    let error = refused(&three, DEVICE_PRIVATE, 0, 8);
    assert_eq!(
        error,
        ViewError::NotResident {
            missing: 1,
            first: number(5),
            why: Why::Lost
        }
    );
    assert!(is_released(&three, 8));
}

#[test]
fn a_page_in_flight_for_a_moment_is_waited_for() {
    let three = Three::new(1024);
    three.write_all(0..8);
    thread::scope(|scope| {
        let migration = three.begin(3, 1, SYSTEM);
        let ((ask, asked), (say, said)) = (channel(), channel());
        scope.spawn(move || {
            asked.recv().unwrap();
            drop(migration);
            say.send(()).unwrap();
        });
        three.mmu().before(Op::Wait, move || {
            ask.send(()).unwrap();
            said.recv().unwrap();
        });
        drop(view(&three, DEVICE_PRIVATE, 0, 8));
    });
    three.check_all();
    three.check_invariants();
}

/// The device of a view is smaller than the range that is worked through.
struct Small {
    world: World,
    device: Arc<Recorder>,
}

const SMALL: u8 = 1;
const PAGES: usize = 1600;

impl Small {
    fn new(memory: uhmm_core::memory_type::MemoryType) -> Self {
        let device = Recorder::new(small(memory, 1));
        let world = World::beside(4096, PAGES, vec![device.boxed()]);
        with_reclaimer(&world.space, || world.write_all(0..PAGES));
        Self { world, device }
    }
}

#[test]
fn a_small_device_works_through_a_large_range() {
    const BLOCK: usize = 160;
    for memory in [Private, Coherent] {
        let small = Small::new(memory);
        let world = &small.world;
        with_reclaimer(&world.space, || {
            for first in (0..PAGES).step_by(BLOCK).chain((0..PAGES).step_by(BLOCK)) {
                world.mmu().advance(LONG);
                let view = view(world, SMALL, first, BLOCK);
                for (i, at) in view.device_pages().unwrap().into_iter().enumerate() {
                    if memory == Private {
                        let work = |data: &mut _| world.oracle.write(first + i, data);
                        small.device.compute(at, work);
                    } else {
                        world.write(first + i);
                    }
                }
                assert!(in_use(world, SMALL) <= CHUNK as u64);
            }
        });
        assert!(world.space.stats().pages_evicted.get() > PAGES as u64);
        world.check_all();
        world.check_invariants();
    }
}

#[test]
fn r19_a_device_full_of_views_refuses_one_more() {
    for memory in [Private, Coherent] {
        let small = Small::new(memory);
        let world = &small.world;
        with_reclaimer(&world.space, || {
            let one = view(world, SMALL, 0, 400);
            let error = refused(world, SMALL, 400, 200);
            let ViewError::NotResident {
                missing,
                why: Why::Full,
                ..
            } = error
            else {
                panic!("{error:?}");
            };
            assert_eq!(missing, 200 - (CHUNK - 400));
            assert!(error.to_string().contains("the device is full"), "{error}");
            world.mmu().advance(LONG);
            drop(one);
            drop(view(world, SMALL, 400, 200));
        });
        world.check_all();
        world.check_invariants();
    }
}

/// What a view has just used is the last to leave.
#[test]
fn a_view_makes_its_pages_hot() {
    let small = Small::new(Private);
    let world = &small.world;
    with_reclaimer(&world.space, || {
        drop(view(world, SMALL, 0, 256));
        let mut all = world
            .space
            .migrate_vma(&args(256, 256, SYSTEM | PRIVATE))
            .unwrap();
        let _ = all.allocate(SMALL);
        all.copy().pages().finalize();
        world.mmu().advance(LONG);
        drop(view(world, SMALL, 512, 128));
    });
    let there = |pages: std::ops::Range<usize>| {
        let on_small = |page: &usize| {
            world
                .state(*page)
                .device_page()
                .is_some_and(|at| at.device == SMALL)
        };
        pages.filter(on_small).count()
    };
    assert_eq!(there(0..256), 256);
    assert_eq!(there(512..640), 128);
    world.check_all();
}

#[test]
fn a_view_kept_past_its_range_says_so() {
    for device in DEVICES {
        let three = Three::new(1024);
        three.private.give_addresses();
        three.write_all(0..8);
        let view = view(&three, device, 0, 8);
        three.discard(2, 3);
        let gone = ViewError::Gone { pages: 3 };
        assert_eq!(view.check(), Err(gone));
        assert_eq!(view.device_pages(), Err(gone));
        assert_eq!(view.contiguous(), Err(gone));
        assert_eq!(view.addresses(), Err(gone));
        // New pages in their place are not the view's.
        three.write_all(2..5);
        assert_eq!(view.check(), Err(gone));
        drop(view);
        three.space.reclaim(&mut Scratch::default());
        assert!(is_released(&three, 8));
        three.check_all();
        three.check_invariants();
    }
}

/// Pages that were moved in the program are still resident and held, but not the view's range.
#[test]
fn a_view_of_pages_that_move_away_says_so() {
    let three = Three::new(1024);
    three.write_all(0..4);
    let view = view(&three, DEVICE_PRIVATE, 0, 4);
    let inside = three.space.inside().unwrap();
    inside.relocate(range(0, 4), number(100)).unwrap();
    drop(inside);
    assert_eq!(view.check(), Err(ViewError::Gone { pages: 4 }));
    drop(view);
    three.check_invariants();
}

#[test]
fn a_view_may_end_on_any_thread_and_while_a_fork_waits() {
    let three = Three::new(1024);
    three.write_all(0..8);
    let view = view(&three, DEVICE_PRIVATE, 0, 8);
    thread::scope(|scope| {
        scope.spawn(move || drop(view)).join().unwrap();
    });
    assert!(is_released(&three, 8));
    let view = self::view(&three, DEVICE_PRIVATE, 0, 8);
    three.space.close_for_fork();
    three.space.open_in_parent();
    assert_eq!(view.check(), Ok(()));
    drop(view);
    three.check_all();
    three.check_invariants();
}

#[test]
fn a_removal_waits_for_views() {
    for device in DEVICES {
        let three = Three::new(1024);
        three.write_all(0..8);
        let view = view(&three, device, 0, 8);
        let mut scratch = Scratch::default();
        let soon = Duration::from_millis(5);
        let removed = three.space.remove_device(device, soon, &mut scratch);
        let Err(uhmm_core::evict::RemoveError::StillInUse(found)) = removed else {
            panic!("{removed:?}");
        };
        assert_eq!(found.held, 8);
        assert_eq!(view.check(), Ok(()));
        drop(view);
        let long = Duration::from_secs(5);
        assert_eq!(
            three.space.remove_device(device, long, &mut scratch),
            Ok(())
        );
        three.check_all();
        three.check_invariants();
    }
}

/// What another device has for itself alone comes back before the view sees it (R17).
#[test]
fn r17_a_view_ends_exclusive_access() {
    let three = Three::new(1024);
    three.write_all(0..8);
    let (_, other) = watcher::device(&three.space, 0, 8);
    assert_eq!(watcher::alone(&other, 2, 3), Ok(vec![true; 3]));
    let view = view(&three, DEVICE_PRIVATE, 0, 8);
    assert!((0..8).all(|page| !other.has_alone(number(page))));
    drop((view, other));
    three.check_all();
    three.check_invariants();
}

/// A device that dies while a view is made.
#[test]
fn a_device_that_dies_meanwhile_is_reported() {
    let three = Three::new(1024);
    three.write_all(0..8);
    three.private.panic_in(Call::CopyIn);
    assert_eq!(refused(&three, DEVICE_PRIVATE, 0, 8), ViewError::Removed);
    assert!(is_released(&three, 8));
    three.check_all();
    three.check_invariants();
}

/// Views, touches, migrations and evictions at once, with failures at any step: what the device has
/// written is there, and nothing is held at the end.
#[test]
fn r7_views_at_random_lose_nothing() {
    const EACH: usize = 300;
    for (seed, one_in) in [(1_u64, 0), (2, 40), (3, 8)] {
        let device = Recorder::new(small(Private, 1));
        let next = Recorder::new(DeviceInfo::new("next", 4 * BUDGET as u32));
        let devices: Vec<Box<dyn Device>> = vec![device.boxed(), next.boxed()];
        let world = World::beside(4096, 4 * BUDGET, devices);
        with_reclaimer(&world.space, || world.write_all(0..4 * EACH));
        if one_in > 0 {
            world.mmu().fail_at_random(seed, one_in);
        }
        let done = AtomicBool::new(false);
        let views = with_reclaimer(&world.space, || {
            thread::scope(|scope| {
                scope.spawn(|| {
                    or_abort(|| {
                        let mut rng = Rng::new(seed ^ 0x77);
                        while !done.load(SeqCst) {
                            world.mmu().advance(Duration::from_millis(rng.below(3)));
                            let first = DevicePage(rng.below(CHUNK as u64 - 16) as u32);
                            let migration = world.space.migrate_device_range(SMALL, first, 16);
                            let mut migration = migration.unwrap();
                            migration.to_system();
                            migration.copy().pages().finalize();
                            thread::sleep(Duration::from_micros(300));
                        }
                    });
                });
                let threads: Vec<_> = (0..4)
                    .map(|thread| {
                        let (world, device) = (&world, &device);
                        scope.spawn(move || random_views(world, device, seed, thread * EACH, EACH))
                    })
                    .collect();
                let views: usize = threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .sum();
                done.store(true, SeqCst);
                views
            })
        });
        world.mmu().heal();
        assert!(views > 20, "{views} views with seed {seed}");
        assert!(is_released(&world, 4 * EACH));
        world.check_all();
        world.check_invariants();
    }
}

/// Works on pages of its own, now by the CPU and now by the device; returns how often by the device.
fn random_views(world: &World, device: &Recorder, seed: u64, mine: usize, each: usize) -> usize {
    let mut rng = Rng::new(seed * 100 + mine as u64);
    let mut views = 0;
    or_abort(|| {
        for _ in 0..60 {
            let len = 1 + rng.below(100) as usize;
            let first = mine + rng.below((each - len) as u64) as usize;
            if rng.one_in(3) {
                (first..first + len).for_each(|page| world.write(page));
                continue;
            }
            let view = match world.space.view(SMALL, range(first, len)) {
                Ok(view) => view,
                Err(ViewError::NotResident { .. }) => continue,
                Err(error) => panic!("{error:?}"),
            };
            views += 1;
            for (i, at) in view.device_pages().unwrap().into_iter().enumerate() {
                device.compute(at, |data| {
                    world.oracle.check(first + i, data);
                    world.oracle.write(first + i, data);
                });
            }
            drop(view);
            touch(&world.space, first, Access::Read, |mmu, at| {
                world.oracle.check(first, &mmu.touch_read(at)?);
                Ok(())
            })
            .unwrap();
        }
    });
    views
}

#[test]
fn a_view_of_nothing_is_a_view() {
    let three = Three::new(1024);
    let view = view(&three, DEVICE_PRIVATE, 5, 0);
    assert_eq!(view.device_pages(), Ok(vec![]));
    assert_eq!(view.contiguous(), Ok(None));
}
