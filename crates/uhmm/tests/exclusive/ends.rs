//! Who ends exclusive access, and that nothing is lost with it.

use crate::world::child::{End, child, wait};
use crate::world::device::{PLANNED, expect_panics};
use crate::world::{ALL, FIRST, World, alone, wait_until};
use crate::{Told, add};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm::device::PAGE_SIZE;
use uhmm::memory::Protection;
use uhmm::mirror::{MirrorError, NotifierError};
use uhmm::{Failure, PinFlags, Place};
use uhmm_core::memory_type::MemoryType::Private;
use uhmm_core::mirror;

const PAGES: usize = 16;

#[test]
fn a_touch_gives_the_page_back_with_what_the_device_wrote() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let told = Told::default();
    let mirror = world.mirror(&told);
    assert_eq!(world.take(&mirror), [true; PAGES]);
    (0..PAGES).for_each(|page| world.fill(&mirror, page));
    assert!(told.ended(&world).is_empty());
    world.check(3);
    assert_eq!(told.ended(&world), [3], "that page, once");
    assert!(!mirror.has_alone(world.at(3)));
    world.write(3);
    assert!(told.ended(&world).is_empty());
    world.check_all();
    assert_eq!(told.ended(&world).len(), PAGES - 1);
    let stats = world.stats();
    assert_eq!(stats.exclusive_pages.get(), PAGES as u64);
    world.is_at_rest();
}

/// Pins end it first, and then keep the device out.
#[test]
fn a_pin_ends_it_and_keeps_the_device_out() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let told = Told::default();
    let mirror = world.mirror(&told);
    world.take(&mirror);
    (0..PAGES).for_each(|page| world.fill(&mirror, page));
    let fast = PinFlags {
        fast: true,
        ..PinFlags::default()
    };
    let refused = world.space.pin_pages(world.at(4), PAGE_SIZE, fast);
    assert!(refused.is_err(), "it would take a fault");
    let pin = world
        .space
        .pin_pages(world.at(4), 4 * PAGE_SIZE, PinFlags::default());
    assert_eq!(told.ended(&world), [4, 5, 6, 7]);
    assert!((4..8).all(|page| world.is_in_ram(page)));
    let alone = world.take(&mirror);
    assert!((0..PAGES).all(|page| alone[page] != (4..8).contains(&page)));
    let one = mirror.exclusively(world.at(5), |_, _| ());
    assert_eq!(one, Err(MirrorError::NotAlone));
    world.check(5);
    drop(pin.unwrap());
    world.fill(&mirror, 5);
    world.check_all();
    world.is_at_rest();
}

/// R16, R17: a fork ends it; both sides have what the device wrote.
#[test]
fn a_fork_ends_it_and_both_sides_have_the_bytes() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let told = Told::default();
    let mirror = world.mirror(&told);
    world.take(&mirror);
    (0..PAGES).for_each(|page| world.fill(&mirror, page));
    let pid = child(|| {
        world.is_at_rest();
        world.check_all();
        let removed = mirror.exclusively(world.at(0), |_, _| ()).unwrap_err();
        let wanted = mirror::MirrorError::Notifier(NotifierError::Removed);
        assert_eq!(removed, MirrorError::Mirror(wanted));
        let own = world.mirror(&Told::default());
        assert_eq!(world.take(&own), [true; PAGES]);
        (0..PAGES).for_each(|page| world.fill(&own, page));
        drop(own);
        world.send(Place::Device(FIRST));
        world.check_all();
        0
    });
    assert_eq!(told.ended(&world).len(), PAGES);
    assert!((0..PAGES).all(|page| !world.is_exclusive(page)));
    // The device goes on here while the child looks.
    (0..PAGES).for_each(|page| world.fill(&mirror, page));
    assert_eq!(wait(pid), End::Exit(0));
    world.check_all();
    drop(mirror);
    world.is_at_rest();
}

/// What changes the range ends it there, and leaves the rest.
#[test]
fn changes_of_the_range_end_it() {
    let _alone = alone();
    let mut world = World::new(&[Private], PAGES);
    world.write_all();
    let told = Told::default();
    let space = world.space.clone();
    let (address, len) = (world.address, world.len());
    // SAFETY: pages of this test, touched by pointers alone while a device is at them.
    let mirror = unsafe { space.mirror(address, len, None, told.clone()) }.unwrap();
    let take = |world: &World| {
        assert_eq!(world.take(&mirror), [true; PAGES]);
        (0..PAGES).for_each(|page| world.fill(&mirror, page));
    };
    take(&world);
    world.protect(4..8, Protection::READ).unwrap();
    assert!((0..PAGES).all(|page| world.is_exclusive(page) != (4..8).contains(&page)));
    world.check_all();
    world.protect(4..8, ALL).unwrap();
    take(&world);
    world.protect(4..8, Protection::empty()).unwrap();
    assert!((0..PAGES).all(|page| world.is_exclusive(page) != (4..8).contains(&page)));
    world.protect(4..8, ALL).unwrap();
    world.check_all();
    take(&world);
    world.discard(4..8).unwrap();
    let alone = |page: usize| mirror.has_alone(address + page * PAGE_SIZE);
    assert!((0..PAGES).all(|page| alone(page) != (4..8).contains(&page)));
    world.check_all();
    take(&world);
    world.unmap(4..8).unwrap();
    assert!((0..PAGES).all(|page| alone(page) != (4..8).contains(&page)));
    world.map_again(4..8);
    world.check_all();
    take(&world);
    let to = world.space.memory().map(len, ALL).unwrap();
    world.remap(to).unwrap();
    world.address = to;
    assert!(!(0..PAGES).any(alone));
    world.check_all();
    drop(mirror);
    world.is_at_rest();
}

/// While the device is at work there, the program unmaps and discards: nothing of it comes back.
#[test]
fn a_device_at_work_does_not_bring_back_what_is_dropped() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let mirror = world.mirror(&Told::default());
    let (round, done) = (std::sync::atomic::AtomicU64::new(1), AtomicBool::new(false));
    thread::scope(|scope| {
        let device = scope.spawn(|| {
            let (mut worked, mut refused) = (0, 0);
            while !done.load(SeqCst) {
                for page in 0..PAGES {
                    let write = mirror.exclusively(world.at(page), |_, data| {
                        let word = round.load(SeqCst).to_ne_bytes();
                        data.0.as_chunks_mut().0.fill(word);
                    });
                    worked += usize::from(write.is_ok());
                    refused += usize::from(write.is_err());
                }
            }
            (worked, refused)
        });
        for next in 2..300 {
            thread::sleep(Duration::from_micros(200));
            round.store(next, SeqCst);
            match next % 3 {
                0 => world.discard(0..PAGES).unwrap(),
                _ => {
                    world.unmap(0..PAGES).unwrap();
                    world.map_again(0..PAGES);
                }
            }
            for page in 0..PAGES {
                let word = world.word(page, 100).load(SeqCst);
                assert!(word == 0 || word == next, "{word} in round {next}");
            }
        }
        done.store(true, SeqCst);
        let (worked, refused) = device.join().unwrap();
        assert!(worked > 100, "{worked}, {refused}");
    });
    drop(mirror);
    world.is_at_rest();
}

/// Who ends a mirror gives back what it had; who only looks at a page ends it too.
#[test]
fn it_ends_with_the_mirror_and_with_a_look_of_another_device() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let told = Told::default();
    let mirror = world.mirror(&told);
    world.take(&mirror);
    (0..PAGES).for_each(|page| world.fill(&mirror, page));
    let table = uhmm::mirror::PageTable::new(world.address, world.len());
    // SAFETY: pages of a test, touched by pointers alone.
    let other = unsafe { world.space.mirror(world.address, world.len(), None, table) }.unwrap();
    let mut found = uhmm::device::PageData::ZERO;
    other.read(world.at(2), &mut found.0).unwrap();
    world.oracle.check(2, &found);
    assert_eq!(told.ended(&world), [2]);
    let snapshot = other.snapshot(world.address, world.len()).unwrap();
    let seen = |mapped: &uhmm::mirror::Mapped| *mapped != uhmm::mirror::Mapped::Nothing;
    assert_eq!(snapshot.iter().filter(|mapped| seen(mapped)).count(), 1);
    drop(mirror);
    assert!((0..PAGES).all(|page| world.is_in_ram(page)));
    world.check_all();
    world.is_at_rest();
}

/// Memory that fails under the device takes its page, and no other.
#[test]
fn memory_that_fails_takes_the_page_from_the_device() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let mirror = world.mirror(&Told::default());
    world.take(&mirror);
    assert_eq!(
        world.space.memory_failure(world.at(6)),
        Ok(Failure::Poisoned)
    );
    assert!(!mirror.has_alone(world.at(6)));
    let error = mirror.exclusively(world.at(6), |_, _| ()).unwrap_err();
    let is_lost = matches!(error, MirrorError::Mirror(mirror::MirrorError::Poisoned(_)));
    assert!(is_lost, "{error}");
    let others = (0..PAGES).filter(|page| *page != 6);
    others.for_each(|page| world.check(page));
    drop(mirror);
    world.is_at_rest();
}

/// The program waits for a device that works on a page, and the device for nobody.
#[test]
fn a_touch_waits_for_the_device_to_be_done() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let mirror = world.mirror(&Told::default());
    let [begun, touched] = [(); 2].map(|()| AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let slow = mirror.exclusively(world.at(0), |_, data| {
                add(data, 0, 1);
                begun.store(true, SeqCst);
                thread::sleep(Duration::from_millis(30));
                assert!(!touched.load(SeqCst), "seen half done");
                add(data, 0, 1);
            });
            slow.unwrap();
        });
        wait_until("the device begins", || begun.load(SeqCst));
        let word = world.word(0, 0).fetch_add(10, SeqCst);
        touched.store(true, SeqCst);
        assert_eq!(word, 2);
    });
    assert_eq!(world.word(0, 0).load(SeqCst), 12);
}

/// A device that panics in the middle has failed; the page is the program's, as it was left.
#[test]
fn a_device_that_panics_gives_the_page_back() {
    let _alone = alone();
    expect_panics();
    let world = World::new(&[Private], PAGES);
    let mirror = world.mirror(&Told::default());
    world.take(&mirror);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        mirror.exclusively(world.at(2), |_, data| {
            add(data, 0, 7);
            std::panic::panic_any(PLANNED);
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(world.word(2, 0).load(SeqCst), 7);
    let failed = mirror.exclusively(world.at(3), |_, _| ()).unwrap_err();
    let wanted = mirror::MirrorError::Notifier(NotifierError::Failed);
    assert_eq!(failed, MirrorError::Mirror(wanted));
    drop(mirror);
    assert!((0..PAGES).all(|page| world.is_in_ram(page)));
    world.is_at_rest();
}
