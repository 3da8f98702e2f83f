//! Notifiers, and the sequence that shows that pages have changed, for a device with a lock of its own;
//! and notifiers that fail.

use crate::in_the_way;
use crate::world::device::{PLANNED, expect_panics};
use crate::world::{ALL, FIRST, World, alone, wait_until};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use uhmm::Place;
use uhmm::device::PAGE_SIZE;
use uhmm::memory::Protection;
use uhmm::mirror::{DeviceTable, Event, Invalidation, Notifier, NotifierError};
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_core::mirror;

const PAGES: usize = 16;

/// Writes down what it is told.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Invalidation>>>);

impl Notifier for Log {
    fn invalidate(&self, what: &Invalidation) {
        self.0.lock().unwrap().push(*what);
    }
}

impl Log {
    /// What it was told since it was last asked, as pages of the world.
    fn take(&self, world: &World) -> Vec<(Event, std::ops::Range<usize>)> {
        let told = std::mem::take(&mut *self.0.lock().unwrap());
        let pages = |what: &Invalidation| {
            let first = (what.address - world.address) / PAGE_SIZE;
            (what.event, first..first + what.len / PAGE_SIZE)
        };
        told.iter().map(pages).collect()
    }
}

/// Each change is told with its pages and its reason, and nothing is told of other pages.
#[test]
fn each_change_is_told_with_its_reason() {
    let _alone = alone();
    let world = World::new(&[Private, Coherent], PAGES);
    world.write_all();
    let log = Log::default();
    let of_some = Box::new(log.clone());
    let (address, len) = (world.at(4), 8 * PAGE_SIZE);
    let notifier = world.space.add_notifier(address, len, of_some).unwrap();
    let told = |what: &str, wanted: &[(Event, std::ops::Range<usize>)]| {
        let found = log.take(&world);
        assert!(
            wanted.iter().all(|one| found.contains(one)),
            "{what}: {found:?}"
        );
        let inside =
            |(_, pages): &(Event, std::ops::Range<usize>)| pages.start >= 4 && pages.end <= 12;
        assert!(found.iter().all(inside), "{what}: {found:?}");
        let only = wanted
            .iter()
            .all(|(event, _)| found.iter().all(|(told, _)| told == event));
        assert!(only, "{what}: {found:?}");
    };
    world.migrate(0..4, Place::Device(FIRST));
    told("another range", &[]);
    world.migrate(0..PAGES, Place::Device(FIRST));
    told("to a device", &[(Event::Migrate, 4..12)]);
    assert_eq!(world.peek(5), world.peek(5));
    let back = log.take(&world);
    assert!(!back.is_empty() && back.iter().all(|(event, _)| *event == Event::Migrate));
    world.send(Place::Ram);
    log.take(&world);
    world.protect(2..6, Protection::READ).unwrap();
    told("protect", &[(Event::Protect, 4..6)]);
    world.protect(2..6, ALL).unwrap();
    log.take(&world);
    world.discard(10..PAGES).unwrap();
    told("discard", &[(Event::Clear, 10..12)]);
    world.unmap(10..PAGES).unwrap();
    assert!(log.take(&world).contains(&(Event::Unmap, 10..12)));
    world.map_again(10..PAGES);
    log.take(&world);
    world.space.memory_failure(world.at(7)).unwrap();
    told("failure", &[(Event::Clear, 7..8)]);
    assert_eq!(
        crate::world::child::wait(crate::world::child::child(|| 0)),
        crate::world::child::End::Exit(0)
    );
    told("fork", &[(Event::Fork, 4..12)]);
    drop(notifier);
    world.discard(0..PAGES).unwrap();
    assert!(log.take(&world).is_empty(), "it was removed");
}

/// R14: the sequence moves with every change, and with nothing else.
#[test]
fn the_sequence_moves_when_pages_change() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let (address, len) = (world.at(4), 8 * PAGE_SIZE);
    let notifier = world
        .space
        .add_notifier(address, len, Box::new(Log::default()));
    let notifier = notifier.unwrap();
    let moves = |change: &dyn Fn()| {
        let sequence = notifier.read_begin().unwrap();
        assert!(!notifier.read_retry(sequence));
        change();
        notifier.read_retry(sequence)
    };
    assert!(!moves(&|| world.write_all()), "pages that are there");
    assert!(!moves(&|| _ = world.migrate(0..4, Place::Device(FIRST))));
    assert!(moves(&|| _ = world.migrate(4..5, Place::Device(FIRST))));
    assert!(moves(&|| world.check(4)), "the touch of a page on a device");
    assert!(moves(&|| world.protect(4..5, ALL).unwrap()));
    assert!(moves(&|| world.discard(11..12).unwrap()));
    assert!(!moves(&|| world.discard(12..13).unwrap()));
    world.check_all();
}

/// A table that panics when it is told to.
struct Fragile(Arc<AtomicBool>);

impl DeviceTable for Fragile {
    fn invalidate(&mut self, _what: &Invalidation) {
        if self.0.load(SeqCst) {
            std::panic::panic_any(PLANNED);
        }
    }
}

/// A notifier that panics has failed: its device gets no answers, and nobody else notices.
#[test]
fn a_notifier_that_panics_fails_its_mirror_and_nothing_else() {
    let _alone = alone();
    expect_panics();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let panics = Arc::new(AtomicBool::new(false));
    // SAFETY: no device works there.
    let fragile = unsafe {
        let table = Fragile(Arc::clone(&panics));
        world.space.mirror(world.address, world.len(), None, table)
    };
    let (fragile, other) = (fragile.unwrap(), world.mirror());
    drop(fragile.lock().unwrap());
    panics.store(true, SeqCst);
    world.send(Place::Device(FIRST));
    world.check_all();
    let failed = mirror::MirrorError::Notifier(NotifierError::Failed);
    assert_eq!(in_the_way(fragile.lock().map(drop)), failed);
    assert_eq!(
        in_the_way(fragile.snapshot(world.address, PAGE_SIZE)),
        failed
    );
    let alone = fragile.make_exclusive(world.address, PAGE_SIZE, |_, _| ());
    assert_eq!(in_the_way(alone), failed);
    let mut found = [0; 8];
    other.read(world.at(3), &mut found).unwrap();
    world.write_all();
    world.discard(0..4).unwrap();
    drop(fragile);
    world.check_all();
    world.send(Place::Device(FIRST));
    world.check_all();
}

/// So has a device that panics with its table locked: nobody knows what is in it.
#[test]
fn a_device_that_panics_with_its_table_locked_fails_its_mirror() {
    let _alone = alone();
    expect_panics();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let mirror = world.mirror();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        mirror.range_fault(
            world.address,
            PAGE_SIZE,
            uhmm::mirror::Need::READ,
            &[],
            |_, _| {
                std::panic::panic_any(PLANNED);
            },
        )
    }));
    assert!(panicked.is_err());
    let failed = mirror::MirrorError::Notifier(NotifierError::Failed);
    assert_eq!(in_the_way(mirror.read(world.at(0), &mut [0])), failed);
    // This thread may call the space again, and everybody else too.
    world.send(Place::Device(FIRST));
    world.check_all();
    drop(mirror);
    let mirror = world.mirror();
    mirror.read(world.at(0), &mut [0]).unwrap();
}

/// A table whose notifier stays until it is let go.
struct Slow {
    entered: Arc<AtomicBool>,
    leave: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

impl DeviceTable for Slow {
    fn invalidate(&mut self, _what: &Invalidation) {
        self.calls.fetch_add(1, SeqCst);
        self.entered.store(true, SeqCst);
        while !self.leave.load(SeqCst) {
            thread::yield_now();
        }
    }
}

/// Who drops a mirror waits for its notifier, which is not called afterwards.
#[test]
fn a_mirror_ends_after_its_notifier() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let [entered, leave, dropped] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
    let calls = Arc::new(AtomicUsize::new(0));
    let slow = Slow {
        entered: Arc::clone(&entered),
        leave: Arc::clone(&leave),
        calls: Arc::clone(&calls),
    };
    // SAFETY: no device works there.
    let mirror = unsafe { world.space.mirror(world.address, world.len(), None, slow) };
    let mirror = mirror.unwrap();
    thread::scope(|scope| {
        scope.spawn(|| world.protect(0..4, ALL).unwrap());
        wait_until("the notifier is called", || entered.load(SeqCst));
        scope.spawn(|| {
            drop(mirror);
            dropped.store(true, SeqCst);
        });
        thread::sleep(Duration::from_millis(30));
        assert!(!dropped.load(SeqCst), "its notifier is running");
        leave.store(true, SeqCst);
        wait_until("it ends", || dropped.load(SeqCst));
    });
    let before = calls.load(SeqCst);
    world.discard(0..PAGES).unwrap();
    world.check_all();
    assert_eq!(calls.load(SeqCst), before);
}

/// Mirrors come and go while devices read by others, and the program changes the pages.
#[test]
fn mirrors_come_and_go_while_others_are_used() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut found = uhmm::device::PageData::ZERO;
                while !done.load(SeqCst) {
                    let mirror = world.mirror();
                    for page in 0..PAGES {
                        mirror.read(world.at(page), &mut found.0).unwrap();
                        world.oracle.check(page, &found);
                    }
                }
            });
        }
        for _ in 0..300 {
            world.migrate(0..PAGES, Place::Device(FIRST));
            world.check_all();
        }
        done.store(true, SeqCst);
    });
}
