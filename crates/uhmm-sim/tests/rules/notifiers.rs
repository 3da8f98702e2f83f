//! R14, the pieces: who has a device's page table is told before its pages change, once, and of nothing
//! else; its sequence moves; and what a notifier does wrong is its own loss.

use crate::allocations::counted;
use crate::duplicates::hint;
use crate::rig::{DEVICE_COHERENT, DEVICE_PRIVATE, Three, Was, number};
use crate::types::{self, range};
use crate::watcher::{Listener, READ, device, pin};
use crate::world::{BUDGET, World, space, touch};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::memory_type::MemoryType;
use uhmm_core::mirror::{Event, Invalidation, Notifier, NotifierError};

const LONG: Duration = Duration::from_secs(9);

/// How pages 8 to 16 come to be what they are, before they change.
type Prepare = fn(&Three);
type Change = fn(&Three);

fn system(three: &Three) {
    Was::System.make(three, 8, 8);
}

fn read_only(three: &Three) {
    Was::ReadOnly.make(three, 8, 8);
}

fn limbo(three: &Three) {
    Was::Limbo.make(three, 8, 8);
}

fn private(three: &Three) {
    Was::Private.make(three, 8, 8);
}

fn coherent(three: &Three) {
    Was::Coherent.make(three, 8, 8);
}

fn duplicates(three: &Three) {
    system(three);
    three.push_out();
    hint(three, 8..16, true);
    (8..16).rev().for_each(|page| three.check(page));
}

fn discard(three: &Three) {
    three.discard(8, 8);
}

fn fail(three: &Three) {
    for page in 8..16 {
        three.space.memory_failure(number(page)).unwrap();
    }
}

fn push_out(three: &Three) {
    three.push_out();
}

fn to_private(three: &Three) {
    three.to_device(8, 8, DEVICE_PRIVATE);
}

fn to_coherent(three: &Three) {
    three.to_device(8, 8, DEVICE_COHERENT);
}

fn to_system(three: &Three) {
    three.to_system(8, 8);
}

fn check(three: &Three) {
    (8..16).for_each(|page| three.check(page));
}

fn write(three: &Three) {
    (8..16).rev().for_each(|page| three.write(page));
}

fn relocate(three: &Three) {
    let inside = three.space.inside().unwrap();
    inside.relocate(range(8, 8), number(1000)).unwrap();
}

/// Every way in which pages that a device may have in its table change, and what it is told.
const CHANGES: &[(&str, Prepare, Change, Event)] = &[
    ("reclaim", system, push_out, Event::Migrate),
    ("a clean eviction", duplicates, push_out, Event::Migrate),
    (
        "a migration to private memory",
        system,
        to_private,
        Event::Migrate,
    ),
    (
        "a migration to coherent memory",
        system,
        to_coherent,
        Event::Migrate,
    ),
    (
        "a migration of what may only be read",
        read_only,
        to_private,
        Event::Migrate,
    ),
    ("private to coherent", private, to_coherent, Event::Migrate),
    ("coherent to private", coherent, to_private, Event::Migrate),
    ("private to RAM", private, to_system, Event::Migrate),
    ("coherent to RAM", coherent, to_system, Event::Migrate),
    (
        "a touch to read of a private page",
        private,
        check,
        Event::Migrate,
    ),
    (
        "a touch to write of a private page",
        private,
        write,
        Event::Migrate,
    ),
    (
        "a touch of a private page whose bytes are lost",
        private,
        |three| {
            for page in (8..16).rev() {
                three.private.lose(three.on(page).page);
                assert!(three.try_check(page).is_err());
            }
        },
        Event::Migrate,
    ),
    (
        "a migration by device pages",
        coherent,
        |three| {
            let first = three.on(8).page;
            let migration = three.space.migrate_device_range(DEVICE_COHERENT, first, 8);
            let mut migration = migration.unwrap();
            migration.to_system();
            assert_eq!(migration.copy().pages().finalize().migrated, 8);
        },
        Event::Migrate,
    ),
    (
        "an eviction",
        private,
        |three| {
            let evicted = three
                .space
                .evict_device(DEVICE_PRIVATE, LONG, &mut Scratch::default());
            evicted.unwrap();
        },
        Event::Migrate,
    ),
    ("a discard of RAM", system, discard, Event::Clear),
    (
        "a discard of a device's pages",
        private,
        discard,
        Event::Clear,
    ),
    (
        "a discard of mapped pages of a device",
        coherent,
        discard,
        Event::Clear,
    ),
    ("a failure of RAM", system, fail, Event::Clear),
    ("a failure of RAM on its way out", limbo, fail, Event::Clear),
    ("a failure of private memory", private, fail, Event::Clear),
    ("a failure of coherent memory", coherent, fail, Event::Clear),
    (
        "a failure of a device's page",
        coherent,
        |three| {
            for page in 8..16 {
                three.space.device_memory_failure(three.on(page)).unwrap();
            }
        },
        Event::Clear,
    ),
    (
        "device pages sent home",
        coherent,
        |three| {
            let inside = three.space.inside().unwrap();
            inside.release_device_pages(range(8, 8)).unwrap();
        },
        Event::Clear,
    ),
    (
        "mapped pages of a device dropped behind our back",
        coherent,
        |three| {
            use uhmm_core::mmu::Mmu;
            three.mmu().discard(range(8, 8));
            for page in 8..16 {
                let read = |mmu: &crate::hook::HookedMmu, at| mmu.touch_read(at).map(drop);
                assert_eq!(touch(&three.space, page, Access::Read, read), Ok(1));
            }
        },
        Event::Clear,
    ),
    ("a remap", system, relocate, Event::Unmap),
    (
        "a remap of a device's pages",
        private,
        relocate,
        Event::Unmap,
    ),
    (
        "an unmapping",
        system,
        |three| {
            let inside = three.space.inside().unwrap();
            drop(inside.invalidating(range(8, 8), Event::Unmap));
        },
        Event::Unmap,
    ),
    (
        "a change of protection",
        system,
        |three| three.protect(8, 8, false),
        Event::Protect,
    ),
    (
        "another device that wants them alone",
        system,
        |three| {
            let (_, mirror) = device(&three.space, 8, 8);
            let alone = crate::watcher::alone(&mirror, 8, 8).unwrap();
            assert_eq!(alone, [true; 8]);
            // They are given back when it ends, which is nobody else's business.
        },
        Event::Exclusive,
    ),
    (
        "a fork",
        system,
        |three| drop(three.space.begin_fork()),
        Event::Fork,
    ),
];

#[test]
fn r14_who_mirrors_pages_is_told_before_they_change_and_once() {
    for (what, prepare, change, event) in CHANGES {
        let three = Three::new(4 * BUDGET);
        prepare(&three);
        let space = three.space.clone();
        let (exact, _exact) = Listener::on(&space, 8, 8);
        let (around, _around) = Listener::on(&space, 0, 64);
        let (part, _part) = Listener::on(&space, 12, 1);
        let (beside, _beside) = Listener::on(&space, 16, 64);
        let (before, _before) = Listener::on(&space, 0, 8);
        // Nothing has changed when it is told first.
        let present = || (8..16).map(|page| three.mmu().is_present(number(page)));
        let was: Vec<_> = present().collect();
        let at_first = Arc::new(AtomicUsize::new(usize::MAX));
        let (seen, watched) = (at_first.clone(), space.clone());
        exact.in_next(move || {
            let present = (8..16).filter(|page| watched.mmu().is_present(number(*page)));
            seen.store(present.count(), SeqCst);
        });
        let invalidations = space.stats().invalidations.get();
        change(&three);
        let dropped_before = *what == "mapped pages of a device dropped behind our back";
        let mapped = was.iter().filter(|present| **present).count();
        if !dropped_before {
            assert_eq!(at_first.load(SeqCst), mapped, "{what}: it came first");
        }
        for (listener, pages) in [(&exact, 8..16), (&around, 8..16), (&part, 12..13)] {
            let heard = listener.take();
            let mut told: Vec<_> = heard
                .iter()
                .flat_map(|(first, len, _)| *first..first + len)
                .filter(|page| (8..16).contains(page))
                .collect();
            told.sort_unstable();
            assert_eq!(told, pages.collect::<Vec<_>>(), "{what}: {heard:?}");
            assert!(
                heard.iter().all(|heard| heard.2 == *event),
                "{what}: {heard:?}"
            );
        }
        let fork = *event == Event::Fork;
        assert_eq!(
            (before.take().len(), beside.take().len()),
            (fork.into(), fork.into()),
            "{what}"
        );
        assert!(
            space.stats().invalidations.get() >= invalidations + 3,
            "{what}"
        );
        space.check_invariants();
    }
}

/// Each page that can be read only is evicted by itself, and told of in vain with those before it.
#[test]
fn r14_an_eviction_of_what_may_only_be_read_is_told_of_too() {
    let three = Three::new(4 * BUDGET);
    read_only(&three);
    let (listener, _notifier) = Listener::on(&three.space, 0, 64);
    assert_eq!(three.push_out(), 0);
    let heard = listener.take();
    for page in 8..16 {
        let of_it = |heard: &&(usize, usize, Event)| (heard.0..heard.0 + heard.1).contains(&page);
        assert!(heard.iter().any(|heard| of_it(&heard)), "page {page}");
    }
    assert!(heard.iter().all(|heard| heard.2 == Event::Migrate));
}

#[test]
fn r14_what_changes_nothing_that_a_device_may_have_is_not_told() {
    let quiet: &[(&str, Prepare, Change)] = &[
        ("a first touch", |_| (), write),
        ("a touch of what is on its way out", limbo, check),
        ("a write that is tracked", duplicates, |three| {
            three.write(9)
        }),
        ("a touch of what is there", system, write),
        ("a pin", system, |three| {
            drop(pin(&three.space, 8, 8, READ).unwrap())
        }),
        ("a migration of holes", |_| (), to_private),
        ("a migration of what is on its way out", limbo, to_private),
        ("what is pinned", system, |three| {
            let pinned = pin(&three.space, 8, 8, READ).unwrap();
            assert_eq!(three.push_out(), 8);
            to_private(three);
            drop(pinned);
        }),
        ("the second half of reclaim", limbo, |three| {
            assert_eq!(three.push_out(), 0)
        }),
        ("a walk", system, |three| {
            three.space.walk_ordinary(range(0, 64), 64, |_| ()).unwrap();
        }),
        (
            "a mapping of device pages",
            |_| (),
            |three| {
                let dax = three
                    .space
                    .add_device(types::device(MemoryType::FsDax))
                    .unwrap();
                let block = three.space.alloc_device_pages(dax, 3).unwrap();
                three.space.map_device_pages(block, number(8)).unwrap();
            },
        ),
    ];
    for (what, prepare, change) in quiet {
        let three = Three::new(4 * BUDGET);
        prepare(&three);
        let (listener, notifier) = Listener::on(&three.space, 0, 64);
        let sequence = notifier.read_begin().unwrap();
        change(&three);
        assert_eq!(listener.take(), [], "{what}");
        assert!(!notifier.read_retry(sequence), "{what}");
        assert_eq!(three.space.stats().invalidations.get(), 0, "{what}");
    }
}

/// Pages of zeros may have come there ahead of their use.
#[test]
fn r14_who_mirrors_where_pages_are_moved_to_is_told() {
    let three = Three::new(4 * BUDGET);
    system(&three);
    let (listener, notifier) = Listener::on(&three.space, 1000, 8);
    let sequence = notifier.read_begin().unwrap();
    three.check(1003);
    relocate(&three);
    assert_eq!(listener.take(), [(1000, 8, Event::Unmap)]);
    assert!(notifier.read_retry(sequence));
}

#[test]
fn r14_a_sequence_moves_with_each_change_and_no_other() {
    let three = Three::new(4 * BUDGET);
    system(&three);
    let (_, notifier) = Listener::on(&three.space, 8, 8);
    let (_, beside) = Listener::on(&three.space, 16, 8);
    assert_eq!(
        (notifier.pages(), beside.pages()),
        (range(8, 8), range(16, 8))
    );
    let there = beside.read_begin().unwrap();
    let changes: [Change; 6] = [to_private, to_coherent, to_system, push_out, check, discard];
    for change in changes {
        let sequence = notifier.read_begin().unwrap();
        assert!(!notifier.read_retry(sequence));
        change(&three);
        assert!(notifier.read_retry(sequence));
        assert_ne!(notifier.read_begin(), Ok(sequence));
        assert!(!beside.read_retry(there));
    }
}

#[test]
fn r14_nobody_reads_while_a_range_changes() {
    let three = Three::new(4 * BUDGET);
    system(&three);
    let (listener, notifier) = Listener::on(&three.space, 8, 8);
    let (_, beside) = Listener::on(&three.space, 16, 8);
    let sequence = notifier.read_begin().unwrap();
    let changing = three.space.invalidating(range(0, 10), Event::Unmap);
    let more = three.space.invalidating(range(15, 10), Event::Protect);
    assert_eq!(
        listener.take(),
        [(8, 2, Event::Unmap), (15, 1, Event::Protect)]
    );
    drop(changing);
    // One of the two goes on.
    let start = Instant::now();
    assert_eq!(notifier.read_begin(), Err(NotifierError::Busy));
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(notifier.read_retry(sequence));
    thread::scope(|scope| {
        let reader = scope.spawn(|| notifier.read_begin());
        thread::sleep(Duration::from_millis(20));
        assert!(!reader.is_finished());
        drop(more);
        let now = reader.join().unwrap().unwrap();
        assert!(!notifier.read_retry(now) && notifier.read_retry(sequence));
    });
    assert!(beside.read_begin().is_ok());
}

/// A change that has begun without a notifier ends before the notifier's device reads.
#[test]
fn r14_a_notifier_that_is_added_waits_for_what_is_changing() {
    let world = World::new(4 * BUDGET);
    let space = &world.space;
    let changing = space.invalidating(range(0, 8), Event::Clear);
    thread::scope(|scope| {
        let adder = scope.spawn(|| {
            let (listener, notifier) = Listener::on(space, 0, 8);
            assert!(notifier.read_begin().is_ok());
            listener.take()
        });
        thread::sleep(Duration::from_millis(30));
        assert!(!adder.is_finished(), "its device would read in the middle");
        drop(changing);
        assert_eq!(adder.join().unwrap(), [], "it began before");
    });
}

#[test]
fn r14_nobody_is_called_after_its_removal() {
    let world = World::new(4 * BUDGET);
    let space = &world.space;
    let (listener, notifier) = Listener::on(space, 0, 8);
    let (tell, told) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    listener.in_next(move || {
        tell.send(()).unwrap();
        gone.recv().unwrap();
    });
    thread::scope(|scope| {
        let changer = scope.spawn(|| drop(space.invalidating(range(0, 8), Event::Clear)));
        told.recv().unwrap();
        let remover = scope.spawn(|| drop(notifier));
        thread::sleep(Duration::from_millis(30));
        assert!(!remover.is_finished(), "it is running");
        go.send(()).unwrap();
        remover.join().unwrap();
        changer.join().unwrap();
    });
    assert_eq!(listener.take().len(), 1);
    drop(space.invalidating(range(0, 8), Event::Clear));
    assert_eq!(listener.take(), []);
}

#[test]
fn r14_notifiers_come_and_go_while_pages_change() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..64);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let (first, notifier) = Listener::on(&three.space, 0, 64);
                        let (second, other) = Listener::on(&three.space, 32, 32);
                        drop(notifier);
                        let heard = first.take();
                        assert!(heard.iter().all(|heard| heard.0 + heard.1 <= 64));
                        drop(other);
                        second.take();
                        thread::yield_now();
                        assert_eq!((first.take(), second.take()), (vec![], vec![]));
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(SeqCst) {
                three.to_device(0, 64, DEVICE_PRIVATE);
                three.to_system(0, 64);
                three.push_out();
                (0..64).for_each(|page| three.check(page));
            }
        });
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        done.store(true, SeqCst);
    });
    let invalidations = three.space.stats().invalidations.get();
    three.push_out();
    assert_eq!(
        three.space.stats().invalidations.get(),
        invalidations,
        "none is left"
    );
    three.check_all();
    three.check_invariants();
}

/// Its loss is its own: pages go on changing, and others are told.
#[test]
fn r14_a_notifier_that_panics_is_not_called_again() {
    let three = Three::new(4 * BUDGET);
    system(&three);
    let (first, broken) = Listener::on(&three.space, 8, 8);
    let (second, whole) = Listener::on(&three.space, 8, 8);
    let sequence = broken.read_begin().unwrap();
    first.in_next(|| resume_unwind(Box::new("a driver's own")));
    to_private(&three);
    assert_eq!(first.take().len(), 1);
    assert_eq!(second.take().len(), 1, "the next in line is told");
    assert!(matches!(three.state(8), State::Private(_)));
    assert!(broken.read_retry(sequence));
    assert_eq!(broken.read_begin(), Err(NotifierError::Failed));
    to_system(&three);
    assert_eq!((first.take(), second.take().len()), (vec![], 8));
    assert!(whole.read_begin().is_ok());
    // The same for a range, and in a fault.
    let (third, broken) = Listener::on(&three.space, 8, 8);
    third.in_next(|| resume_unwind(Box::new("a driver's own")));
    drop(three.space.invalidating(range(8, 8), Event::Protect));
    assert_eq!(broken.read_begin(), Err(NotifierError::Failed));
    assert!(whole.read_begin().is_ok(), "nothing is left active");
    check(&three);
    drop(broken);
    three.check_invariants();
}

#[test]
fn r14_bad_ranges_are_refused_and_numbers_are_used_again() {
    let space = space(64, vec![]);
    let add = |first, len| space.add_notifier(range(first, len), Box::new(Listener::default()));
    for (first, len) in [(0, 0), (63, 2), (1 << 30, 1)] {
        assert_eq!(add(first, len).err(), Some(NotifierError::NotManaged));
    }
    let mut all: Vec<_> = (0..200).map(|_| add(0, 64).unwrap()).collect();
    all.drain(50..150);
    all.extend((0..100).map(|_| add(1, 1).unwrap()));
    drop(space.invalidating(range(0, 1), Event::Clear));
    assert_eq!(space.stats().invalidations.get(), 100);
}

/// Counts, and allocates nothing.
struct Quiet(Arc<AtomicUsize>);

impl Notifier for Quiet {
    fn invalidate(&self, _: &Invalidation) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn r18_to_tell_devices_in_a_fault_allocates_nothing() {
    let world = World::pushed_out(512);
    let count = Arc::new(AtomicUsize::new(0));
    let notifiers: Vec<_> = (0..5)
        .map(|_| {
            world
                .space
                .add_notifier(range(0, 2048), Box::new(Quiet(count.clone())))
        })
        .collect();
    let mut scratch = Scratch::default();
    let allocated = counted(|| {
        for page in (0..512).rev() {
            world.space.fault(number(page), Access::Write, &mut scratch);
        }
    });
    assert_eq!(allocated, 0);
    // Of each page, and of those that the handlers pushed out ahead.
    assert!(count.load(SeqCst) > 5 * 512);
    drop(notifiers);
}

#[test]
fn r14_a_device_that_fails_is_told_of_as_its_pages_go() {
    let three = Three::new(4 * BUDGET);
    private(&three);
    let (listener, notifier) = Listener::on(&three.space, 8, 8);
    let removed = three
        .space
        .remove_device(DEVICE_PRIVATE, LONG, &mut Scratch::default());
    assert_eq!(removed, Ok(()));
    let each: Vec<_> = (8..16).map(|page| (page, 1, Event::Migrate)).collect();
    assert_eq!(listener.take(), each);
    assert!(notifier.read_begin().is_ok());
    three.check_all();
}
