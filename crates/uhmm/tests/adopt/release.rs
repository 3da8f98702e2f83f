//! The way back, against what stands in it: devices that fail, go, or have lost pages; holders and pins.

use crate::child::{End, child, wait};
use crate::device::expect_panics;
use crate::pin::pin;
use crate::{BUDGET, FIRST, SHORT, SOON, World, alone, device, space, wait_until};
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};
use uhmm::devices::MirrorDevice;
use uhmm::pin::PinFlags;
use uhmm::{Hold, Place, ReleaseError};
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_testkit::{FlakyDevice, Shared};

const PAGES: usize = 300;

#[test]
fn a_device_that_fails_for_a_while_is_waited_for() {
    let _alone = alone();
    let flaky = Shared::new(FlakyDevice::new(MirrorDevice::new(64 << 20)));
    let mut world = World::new(space(BUDGET, vec![Box::new(flaky.clone())]), PAGES);
    world.adopt();
    world.send(Place::Device(FIRST));
    flaky.0.retry_copy_out_after(0, u64::MAX);
    let mut adopted = world.adopted.take().unwrap();
    let error = adopted.release(SHORT).unwrap_err();
    assert_eq!(error, ReleaseError::StillAdopted(world.own.len()));
    assert_eq!(error.to_string().lines().count(), 1);
    world.adopted = Some(adopted);
    assert_eq!(world.handle().usage().unwrap().devices[0], PAGES);
    // Now and then, from here on.
    flaky.0.retry_copy_out_after(100, 200);
    drop(world.adopted.take());
    assert_eq!((world.charged(), world.on_device()), (0, 0));
    world.check_released();
    // And all the time, for a while: it does not return before it is done.
    world.adopt();
    world.send(Place::Device(FIRST));
    flaky.0.retry_copy_out_after(0, u64::MAX);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            flaky.0.heal();
        });
        drop(world.adopted.take());
    });
    world.check_released();
}

#[test]
fn a_driver_that_panics_now_and_then_loses_nothing() {
    let _alone = alone();
    expect_panics();
    let (mut world, mood) = World::adopted(Private, PAGES);
    world.send(Place::Device(FIRST));
    mood.bad_copies_out.store(3, SeqCst);
    world.release();
    assert_eq!(mood.bad_copies_out.load(SeqCst), 0);
    world.check_released();
}

#[test]
fn a_release_that_ends_in_the_middle_goes_on_later() {
    let _alone = alone();
    let (mut world, _) = World::adopted(Private, PAGES);
    world.send(Place::Device(FIRST));
    let State::Private(at) = world.state(200) else {
        panic!("on the device");
    };
    let space = world.space.clone();
    let held = space.hold_device_page(at, Hold::default()).unwrap();
    let mut adopted = world.adopted.take().unwrap();
    let error = adopted.release(SHORT);
    assert_eq!(error, Err(ReleaseError::StillAdopted(100 * 4096)));
    // The first part is the program's, the second is managed.
    assert_eq!(space.page_at(world.at(199) as usize), None);
    assert!(space.page_at(world.at(200) as usize).is_some());
    world.adopted = Some(adopted);
    assert_eq!(world.handle().usage().unwrap().devices[0], 100);
    (0..200)
        .chain(201..PAGES)
        .for_each(|page| world.check(page));
    (0..200)
        .chain(201..PAGES)
        .for_each(|page| world.write(page));
    world.push_out();
    drop(held);
    world.check_all();
    world.release();
    world.check_released();
}

/// R9: what is lost is a SIGBUS afterwards, too, and nothing else is.
#[test]
fn r9_a_page_that_is_lost_stays_so() {
    let _alone = alone();
    let (mut world, mood) = World::adopted(Private, PAGES);
    world.send(Place::Device(FIRST));
    let lost = [17, 250];
    let State::Private(at) = world.state(lost[0]) else {
        panic!("on the device");
    };
    // One is known to be lost before, and one is found to be.
    let address = world.at(lost[1]) as usize;
    world.space.memory_failure(address).unwrap();
    mood.lost.store(at.page.0 + 1, SeqCst);
    world.release();
    assert_eq!((world.charged(), world.on_device()), (0, 0));
    for page in 0..PAGES {
        if lost.contains(&page) {
            // SAFETY: within the mapping; the touch ends the process.
            let touch = || i32::from(unsafe { world.own.at(page).read_volatile() });
            assert_eq!(wait(child(touch)), End::Signal(libc::SIGBUS), "page {page}");
        } else {
            world.check(page);
        }
    }
}

#[test]
fn its_device_is_removed_meanwhile() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let (mut world, _) = World::adopted(memory, PAGES);
        world.send(Place::Device(FIRST));
        world.space.remove_device(FIRST, SOON).unwrap();
        assert_eq!(world.handle().usage().unwrap().ram, PAGES);
        world.check_all();
        world.release();
        world.check_released();
        // And at the same time.
        let (mut world, _) = World::adopted(memory, PAGES);
        world.send(Place::Device(FIRST));
        let space = world.space.clone();
        thread::scope(|scope| {
            scope.spawn(|| space.remove_device(FIRST, SOON).unwrap());
            world.release();
        });
        world.check_released();
    }
}

/// A frame that is pinned for I/O keeps the pinned memory, and the program's.
#[test]
fn pages_pinned_behind_our_back_keep_their_frames() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let (mut world, _) = World::adopted(memory, 64);
        if memory == Coherent {
            world.send(Place::Device(FIRST));
        }
        let bytes = world.at(10) as usize..world.at(20) as usize;
        let Some(ring) = pin(bytes.clone()) else {
            return;
        };
        world.push_out();
        world.release();
        world.check_released();
        drop(ring);
        world.check_all();
    }
}

#[test]
fn a_page_that_we_have_pinned_is_waited_for() {
    let _alone = alone();
    let (mut world, _) = World::adopted(Private, PAGES);
    let space = world.space.clone();
    let how = PinFlags {
        write: true,
        longterm: true,
        ..PinFlags::default()
    };
    world.send(Place::Device(FIRST));
    let address = world.at(100) as usize;
    let fast = PinFlags { fast: true, ..how };
    let error = space.pin_pages(address, 3 * 4096, fast).unwrap_err();
    assert!(
        error.to_string().contains(&format!("{address:#x}")),
        "{error}"
    );
    let pinned = space.pin_pages(address, 3 * 4096, how).unwrap();
    let mut adopted = world.adopted.take().unwrap();
    let error = adopted.release(SHORT);
    assert_eq!(error, Err(ReleaseError::StillAdopted(200 * 4096)));
    world.check_all();
    drop(pinned);
    adopted.release(SOON).unwrap();
    drop(adopted);
    world.check_released();
}

/// Whatever the budget says, and with every device full: nothing is needed but what is given back.
#[test]
fn it_needs_no_room_in_the_budget() {
    let _alone = alone();
    let (device, mood) = device(Private);
    let mut world = World::new(space(512, vec![device]), 4096);
    world.adopt();
    world.check_all();
    mood.copy_in.store(crate::device::FULL, SeqCst);
    // The rest of the budget is used up.
    wait_until("the budget is full", || {
        world.check_all_but_wait();
        world.charged() >= 400
    });
    let begin = Instant::now();
    world.release();
    assert!(begin.elapsed() < Duration::from_secs(5));
    world.check_released();
}

impl World {
    /// Touches some, as long as there is RAM.
    fn check_all_but_wait(&self) {
        let mut page = 0;
        while self.charged() < 450 && page < self.pages() {
            self.check(page);
            page += 37;
        }
    }
}
