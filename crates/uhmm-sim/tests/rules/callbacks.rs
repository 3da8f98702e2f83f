//! A notifier must not call the space: whoever calls it may have in its hands what the call would wait
//! for. So every such call is an error of its own, at once, and changes nothing; but what it has, it may
//! give back.

use crate::rig::{COHERENT, DEVICE_COHERENT, DEVICE_PRIVATE, PRIVATE, SYSTEM, Three, args, number};
use crate::types::{self, on, range};
use crate::watcher::{Listener, Locked, READ, alone, device, pin, populate};
use crate::world::{BUDGET, SimSpace, World};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use uhmm_core::error::{BuildError, RangeError};
use uhmm_core::evict::RemoveError;
use uhmm_core::failure::{Failure, FailureError};
use uhmm_core::fault::Scratch;
use uhmm_core::hold::{Hold, HoldError};
use uhmm_core::map::MapError;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::MigrateError;
use uhmm_core::mirror::{Event, Mapped, MirrorError, Need, NotifierError, RangeFault};
use uhmm_core::pin::PinError;
use uhmm_core::{AddChunkError, AllocError};

/// No call waits: whoever has the page waits for the notifier.
const AT_ONCE: Duration = Duration::from_millis(800);
const LONG: Duration = Duration::from_millis(300);

/// A space of the program's life, as a driver has it.
fn for_ever(three: &Three) -> &'static SimSpace {
    Box::leak(Box::new(three.space.clone()))
}

#[test]
fn r14_every_call_of_a_notifier_is_refused_and_changes_nothing() {
    let three = Three::new(4 * BUDGET);
    let space = for_ever(&three);
    let dax = space.add_device(types::device(MemoryType::FsDax)).unwrap();
    three.write_all(0..32);
    three.to_device(16, 4, DEVICE_COHERENT);
    three.to_device(20, 4, DEVICE_PRIVATE);
    let (listener, notifier) = Listener::on(space, 0, 32);
    let (_, mirror) = device(space, 24, 4);
    assert_eq!(alone(&mirror, 24, 1), Ok(vec![true]));
    let coherent = three.on(16);
    let block = space.alloc_device_pages(dax, 0).unwrap();
    listener.take();
    let (tell, told) = mpsc::channel();
    let calls = move || {
        let scratch = &mut Scratch::default();
        let mut wrong = Vec::new();
        let mut expect = |call: &str, refused: bool| {
            if !refused {
                wrong.push(call.to_string());
            }
        };
        let silent = || Box::new(Listener::default());
        let request = RangeFault::all(range(0, 4), Need::READ);
        let in_notifier = NotifierError::InNotifier;
        let mirrored = Some(MirrorError::Notifier(in_notifier));
        expect(
            "pin",
            pin(space, 0, 1, READ).err() == Some(PinError::InNotifier),
        );
        let got = space.get_pages(range(0, 1), READ, scratch);
        expect("get", got.err() == Some(PinError::InNotifier));
        expect(
            "inside",
            space.inside().err() == Some(RangeError::InNotifier),
        );
        let walked = space.walk_ordinary(range(0, 32), 8, |_| ());
        expect("walk", walked.err() == Some(RangeError::InNotifier));
        let migrated = space.migrate_vma(&args(0, 8, SYSTEM | PRIVATE | COHERENT));
        expect("migrate", migrated.err() == Some(MigrateError::InNotifier));
        let migrated = space.migrate_device_range(DEVICE_COHERENT, on(0).page, 8);
        expect(
            "migrate by device",
            migrated.err() == Some(MigrateError::InNotifier),
        );
        let migrated = space.migrate_device_coherent_page(coherent);
        expect(
            "migrate one",
            migrated.err() == Some(MigrateError::InNotifier),
        );
        let held = space.hold_device_page(coherent, Hold::default());
        expect("hold", held.err() == Some(HoldError::InNotifier));
        let allocated = space.alloc_device_pages(DEVICE_PRIVATE, 0);
        expect("alloc", allocated.err() == Some(AllocError::InNotifier));
        let mut there = on(9);
        there.device = dax;
        let allocated = space.alloc_device_page_at(there);
        expect("alloc at", allocated.err() == Some(AllocError::InNotifier));
        let mapped = space.map_device_pages(block, number(100));
        expect("map", mapped.err() == Some(MapError::InNotifier));
        let added = space.add_device(types::device(MemoryType::Private));
        expect("add device", added.err() == Some(BuildError::InNotifier));
        let added = space.add_chunk(DEVICE_PRIVATE, 1);
        expect("add chunk", added.err() == Some(AddChunkError::InNotifier));
        let refused = Some(RemoveError::InNotifier);
        let removed = space.remove_device(DEVICE_COHERENT, LONG, scratch);
        expect("remove", removed.err() == refused);
        let removed = space.suspend_device(DEVICE_PRIVATE, LONG, scratch);
        expect("suspend", removed.err() == refused);
        let removed = space.evict_device(DEVICE_PRIVATE, LONG, scratch);
        expect("evict", removed.err() == refused);
        let removed = space.evict_chunk(DEVICE_PRIVATE, 0, LONG, scratch);
        expect("evict chunk", removed.err() == refused);
        let removed = space.remove_chunk(DEVICE_PRIVATE, 0, LONG, scratch);
        expect("remove chunk", removed.err() == refused);
        let failed = space.memory_failure(number(3));
        expect("failure", failed.err() == Some(FailureError::InNotifier));
        let failed = space.device_memory_failure(coherent);
        expect(
            "failure of a device",
            failed.err() == Some(FailureError::InNotifier),
        );
        let added = space.add_notifier(range(0, 4), silent());
        expect("add notifier", added.err() == Some(in_notifier));
        expect(
            "read begin",
            notifier.read_begin().err() == Some(in_notifier),
        );
        let found = space.range_fault(&request, &[], None, scratch, &mut Vec::new());
        expect("range fault", found.err() == mirrored);
        let added = space.mirror(range(0, 4), None, crate::watcher::Book::default());
        expect("mirror", added.err() == Some(in_notifier));
        expect("lock", mirror.lock().err() == Some(in_notifier));
        expect(
            "populate",
            populate(&mirror, 24, 4, Need::SNAPSHOT).err() == mirrored,
        );
        expect("alone", alone(&mirror, 24, 4).err() == mirrored);
        let with = mirror.with_exclusive(number(24), |_, _| ());
        expect("with exclusive", with.err() == mirrored);
        tell.send((wrong, notifier, mirror)).unwrap();
    };
    listener.in_next(calls);
    let start = Instant::now();
    // In the hands of a migration.
    assert_eq!(three.to_device(0, 4, DEVICE_PRIVATE).migrated, 4);
    let (wrong, notifier, mirror) = told.try_recv().expect("the calls were made");
    assert_eq!(
        wrong,
        Vec::<String>::new(),
        "not refused, or for another reason"
    );
    assert!(start.elapsed() < AT_ONCE);
    // Nothing has changed: all of it works now.
    assert!(notifier.read_begin().is_ok());
    assert_eq!(mirror.with_exclusive(number(24), |_, _| ()), Ok(()));
    assert_eq!(three.to_device(4, 4, DEVICE_PRIVATE).migrated, 4);
    assert_eq!(three.to_device(8, 4, DEVICE_COHERENT).migrated, 4);
    drop((notifier, mirror));
    three.check_all();
    three.space.check_invariants();
}

/// The same holds for who has a table locked: a notifier would wait for that lock.
#[test]
fn r14_whoever_has_a_table_locked_is_refused() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..8);
    let space = &world.space;
    let (_, mirror) = device(space, 0, 8);
    let (_, other) = device(space, 0, 8);
    let refused = |what: &str| {
        assert_eq!(
            pin(space, 0, 1, READ).err(),
            Some(PinError::InNotifier),
            "{what}"
        );
        let failed = space.memory_failure(number(1));
        assert_eq!(failed, Err(FailureError::InNotifier), "{what}");
        let in_notifier = NotifierError::InNotifier;
        assert_eq!(other.lock().err(), Some(in_notifier), "{what}");
        assert_eq!(
            alone(&other, 0, 1).err(),
            Some(in_notifier.into()),
            "{what}"
        );
    };
    let table = mirror.lock().unwrap();
    refused("a lock");
    drop(table);
    assert_eq!(alone(&mirror, 0, 2), Ok(vec![true; 2]));
    mirror
        .with_exclusive(number(0), |_, _| refused("with exclusive"))
        .unwrap();
    let install = |_: &mut Locked<'_>, _: &[bool]| refused("taking");
    let scratch = &mut Scratch::default();
    mirror
        .make_exclusive(range(0, 2), scratch, install)
        .unwrap();
    let all = |pages| crate::watcher::all(pages);
    let request = RangeFault::all(range(4, 2), Need::READ);
    let install = |_: &mut Locked<'_>, _: &[Mapped]| refused("installing");
    mirror.range_fault(&request, all, scratch, install).unwrap();
    // It is over when the lock is.
    drop(pin(space, 0, 1, READ).unwrap());
    drop((mirror, other));
    world.check_all();
    world.check_invariants();
}

/// The messages say what to do.
#[test]
fn r14_a_refused_call_says_that_it_comes_from_a_notifier() {
    let texts = [
        PinError::InNotifier.to_string(),
        RangeError::InNotifier.to_string(),
        MigrateError::InNotifier.to_string(),
        HoldError::InNotifier.to_string(),
        AllocError::InNotifier.to_string(),
        MapError::InNotifier.to_string(),
        BuildError::InNotifier.to_string(),
        AddChunkError::InNotifier.to_string(),
        RemoveError::InNotifier.to_string(),
        FailureError::InNotifier.to_string(),
        NotifierError::InNotifier.to_string(),
        MirrorError::Notifier(NotifierError::InNotifier).to_string(),
    ];
    for text in texts {
        assert!(text.starts_with("called from a notifier"), "{text}");
        assert!(text.contains("after that"), "{text}: it says what to do");
    }
}

/// What a driver has, it may let go of in a notifier: that waits for nobody.
#[test]
fn r14_what_is_given_back_in_a_notifier_is_given_back() {
    let three = Three::new(4 * BUDGET);
    let space = for_ever(&three);
    three.write_all(0..32);
    three.to_device(16, 4, DEVICE_COHERENT);
    let (listener, notifier) = Listener::on(space, 0, 32);
    let (other, removed) = Listener::on(space, 0, 32);
    let (heard, mirror) = device(space, 24, 4);
    assert_eq!(alone(&mirror, 24, 2), Ok(vec![true; 2]));
    assert_eq!(heard.take(), [(24, 2, Event::Exclusive)]);
    let pinned = [pin(space, 0, 4, READ), pin(space, 8, 4, READ)].map(Result::unwrap);
    let held = space
        .hold_device_page(three.on(17), Hold::default())
        .unwrap();
    let block = space.alloc_device_pages(DEVICE_PRIVATE, 2).unwrap();
    let migration = space.migrate_vma(&args(28, 2, SYSTEM)).unwrap();
    listener.take();
    other.take();
    let (tell, told) = mpsc::channel();
    listener.in_next(move || {
        drop((pinned, held, block, migration));
        drop((notifier, removed, mirror));
        tell.send(()).unwrap();
    });
    let start = Instant::now();
    assert_eq!(three.space.memory_failure(number(2)), Ok(Failure::Poisoned));
    assert!(start.elapsed() < AT_ONCE);
    assert_eq!(told.try_recv(), Ok(()));
    assert_eq!(listener.take(), [(2, 1, Event::Clear)]);
    assert_eq!(other.take(), [], "it was removed before it was told");
    three.space.memory_failure(number(3)).unwrap();
    assert_eq!((listener.take(), heard.take()), (vec![], vec![]));
    let stats = three.space.stats();
    assert_eq!(stats.pins_acquired.get(), stats.pins_released.get());
    three.discard(2, 2);
    three.check_all();
    three.check_invariants();
}

/// It is over when the notifier is: the same thread calls the space again.
#[test]
fn r14_after_a_notifier_the_thread_calls_the_space_again() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..8);
    let (listener, _notifier) = Listener::on(&world.space, 0, 8);
    listener.in_next(|| std::panic::resume_unwind(Box::new("a driver's own")));
    drop(world.space.invalidating(range(0, 8), Event::Clear));
    assert_eq!(listener.steps_left(), 0);
    drop(pin(&world.space, 0, 1, READ).unwrap());
    world.check_invariants();
}
