//! Where pages are pinned: what stays, what leaves its device first, and what is refused at once.

use crate::world::device::TestDevice;
use crate::world::{BUDGET, DEVICE, FIRST, SECOND, SHORT, SOON, World, alone, space, space_with};
use crate::{FAST, LONGTERM, READ, WRITE, in_the_way};
use std::sync::atomic::Ordering::SeqCst;
use uhmm::device::{DeviceInfo, MemoryType, PAGE_SIZE};
use uhmm::{PinError, PinFlags, Place, RemoveError};
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{Coherent, FsDax, Generic, PeerToPeer, Private};
use uhmm_core::pin;

const PAGES: usize = 32;

/// R11: an ordinary pin leaves pages of memory that the CPU maps where they are, and brings the others.
#[test]
fn an_ordinary_pin_stays_on_a_coherent_device_and_leaves_a_private_one() {
    let _alone = alone();
    let world = World::new(&[Coherent], PAGES);
    world.write_all();
    world.send(Place::Device(FIRST));
    let pin = world.pin(0..PAGES, WRITE);
    assert!((0..PAGES).all(|page| matches!(world.state(page), State::Coherent(_))));
    assert_eq!(world.migrate(0..PAGES, Place::Ram).migrated, 0, "it stays");
    world.write_all();
    drop(pin);
    world.send(Place::Ram);
    world.check_all();
    world.wait_empty(FIRST);

    let world = World::new(&[Private], PAGES);
    world.write_all();
    world.send(Place::Device(FIRST));
    let pin = world.pin(0..PAGES, READ);
    assert!((0..PAGES).all(|page| world.is_in_ram(page)));
    world.wait_empty(FIRST);
    let done = world.migrate(0..PAGES, Place::Device(FIRST));
    assert_eq!(done.migrated, 0, "it stays");
    world.push_out();
    assert!((0..PAGES).all(|page| world.is_in_ram(page)));
    world.check_all();
    drop(pin);
    world.is_at_rest();
}

/// R11.
#[test]
fn a_long_term_pin_leaves_every_device_first() {
    let _alone = alone();
    for memory in [Coherent, Private] {
        let world = World::new(&[memory, Private], PAGES);
        // Each kind at once: never touched, in RAM, on two devices.
        (8..PAGES).for_each(|page| world.write(page));
        world.migrate(16..24, Place::Device(FIRST));
        world.migrate(24..32, Place::Device(SECOND));
        let pin = world.pin(0..PAGES, LONGTERM);
        assert!((0..PAGES).all(|page| world.is_in_ram(page)));
        world.wait_empty(FIRST);
        world.wait_empty(SECOND);
        assert_eq!(world.stats().pinned_pages.get(), PAGES as u64);
        // A device goes meanwhile: nothing of it is pinned.
        world.space.remove_device(FIRST, SOON).unwrap();
        world.check_all();
        drop(pin);
        world.is_at_rest();
    }
}

/// The fast form pins what is there, and says at once what is in its way otherwise.
#[test]
fn a_fast_pin_does_nothing_but_pin() {
    let _alone = alone();
    let world = World::new(&[Coherent, Private], PAGES);
    let first = || world.try_pin(0..1, FAST);
    assert!(matches!(in_the_way(first()), pin::PinError::WouldFault(_)));
    world.write_all();
    drop(world.fast_pin(0..1));
    world.migrate(0..8, Place::Device(FIRST));
    world.migrate(8..16, Place::Device(SECOND));
    drop(world.fast_pin(0..1));
    let fast_longterm = PinFlags {
        fast: true,
        ..LONGTERM
    };
    // The right error, the first time, wherever in the range it is; and not half a range.
    for _ in 0..2 {
        for pages in [0..PAGES, 8..PAGES] {
            let error = in_the_way(world.try_pin(pages, fast_longterm));
            assert!(matches!(error, pin::PinError::MigrateFirst(_)), "{error}");
        }
        let error = in_the_way(world.try_pin(0..PAGES, FAST));
        assert!(matches!(error, pin::PinError::WouldFault(_)), "{error}");
        assert_eq!(world.stats().pinned_pages.get(), 0);
    }
    assert_eq!(world.device(FIRST).pages.get(), 8, "nothing has moved");
    assert_eq!(world.device(SECOND).pages.get(), 8, "nothing has moved");
    drop(world.fast_pin(16..PAGES));
    world.check_all();
    world.is_at_rest();
}

/// References are for a moment, and counted apart.
#[test]
fn references_are_counted_apart_and_are_never_long() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    world.send(Place::Device(FIRST));
    let get = |flags| world.space.get_pages(world.at(0), 5 * PAGE_SIZE, flags);
    assert_eq!(in_the_way(get(LONGTERM)), pin::PinError::NotForLong);
    let held = get(READ).unwrap();
    let stats = world.stats();
    assert_eq!((stats.page_gets.get(), stats.page_puts.get()), (5, 0));
    assert_eq!(
        (stats.pins_acquired.get(), stats.pinned_pages.get()),
        (0, 5)
    );
    assert_eq!(world.migrate(0..5, Place::Device(FIRST)).migrated, 0);
    drop(held);
    world.check_all();
    world.is_at_rest();
}

/// What lies in part of a page pins all of that page.
#[test]
fn bytes_are_pinned_by_the_page() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let at = world.at(3) + 100;
    let pin = world.space.pin_pages(at, 2 * PAGE_SIZE, READ).unwrap();
    assert_eq!(pin.bytes(), at..at + 2 * PAGE_SIZE);
    assert_eq!(world.stats().pinned_pages.get(), 3);
    let again = world.pin(3..4, READ);
    assert_eq!(world.stats().pinned_pages.get(), 3);
    drop(pin);
    assert_eq!(world.stats().pinned_pages.get(), 1);
    drop(again);
    world.send(Place::Device(FIRST));
    world.check_all();
    world.is_at_rest();
}

#[test]
fn a_pinned_slice_of_a_region_is_its_bytes() {
    let _alone = alone();
    let space = space_with(&[Private]);
    let mut region = space.region(16 * PAGE_SIZE).unwrap();
    region.as_mut_slice().fill(7);
    region.migrate(Place::Device(FIRST)).unwrap();
    let part = PAGE_SIZE..3 * PAGE_SIZE;
    let mut pinned = region.pin_mut(part, LONGTERM).unwrap();
    pinned[5] = 9;
    assert_eq!((pinned.len(), pinned[5], pinned[6]), (2 * PAGE_SIZE, 9, 7));
    drop(pinned);
    let pinned = region.pin(0..region.len(), READ).unwrap();
    let other = region.pin(0..1, READ).unwrap();
    assert_eq!((pinned[PAGE_SIZE + 5], other[0]), (9, 7));
    assert_eq!(pinned.iter().filter(|byte| **byte != 7).count(), 1);
}

/// Nothing is pinned of a range with a page that is lost; the others are what they were.
#[test]
fn a_lost_page_is_not_pinned() {
    let _alone = alone();
    let (world, mood) = World::moody(Private, PAGES);
    world.write_all();
    world.send(Place::Device(FIRST));
    let at = world.state(5).device_page().unwrap();
    mood.lost.store(at.page.0 + 1, SeqCst);
    for _ in 0..2 {
        let error = in_the_way(world.try_pin(0..PAGES, READ));
        assert!(matches!(error, pin::PinError::Poisoned(_)), "{error}");
    }
    assert_eq!(world.stats().poisoned_pages.get(), 1);
    let others = (0..PAGES).filter(|page| *page != 5);
    others.for_each(|page| world.check(page));
    drop(world.pin(6..PAGES, READ));
    world.is_at_rest();
}

/// R2: a device does not go while its pages are pinned, says who holds it up, and goes afterwards.
#[test]
fn a_device_with_pinned_pages_goes_once_they_are_released() {
    let _alone = alone();
    let world = World::new(&[Coherent], PAGES);
    world.write_all();
    world.send(Place::Device(FIRST));
    let pin = world.pin(4..8, READ);
    let Err(RemoveError::StillInUse(left)) = world.space.remove_device(FIRST, SHORT) else {
        panic!("it has gone");
    };
    assert_eq!((left.pages, left.held), (4, 4), "{left}");
    world.check_all();
    drop(pin);
    world.space.remove_device(FIRST, SOON).unwrap();
    assert!((0..PAGES).all(|page| world.is_in_ram(page)));
    world.check_all();
    world.is_at_rest();
}

/// Pages that a program has mapped from a device are pinned as their type says.
#[test]
fn mapped_device_memory_is_pinned_as_its_type_says() {
    let _alone = alone();
    let pin = |memory: MemoryType, flags| {
        let info = DeviceInfo::new("mapped", DEVICE).memory(memory);
        let world = World::within(space(BUDGET, vec![TestDevice::boxed(info).0]), 4);
        let block = world.space.alloc_device_pages(FIRST, 2).unwrap();
        world.space.map_device_pages(block, world.address).unwrap();
        world.write_all();
        let result = world.try_pin(0..4, flags).map(drop);
        world.check_all();
        world.is_at_rest();
        result
    };
    let refused = |memory, flags| match pin(memory, flags) {
        Err(PinError::Page(error)) => error,
        other => panic!("{memory:?}: {other:?}"),
    };
    let peer = |flags| PinFlags {
        peer: true,
        ..flags
    };
    pin(Generic, LONGTERM).unwrap();
    pin(FsDax, READ).unwrap();
    pin(PeerToPeer, peer(READ)).unwrap();
    for memory in [FsDax, PeerToPeer] {
        let error = refused(memory, peer(LONGTERM));
        assert!(matches!(error, pin::PinError::NeverLongterm(_)), "{error}");
    }
    let error = refused(PeerToPeer, READ);
    assert!(matches!(error, pin::PinError::PeersOnly(_)), "{error}");
}
