//! Which pages a device gets alone, and which not.

use crate::world::device::TestDevice;
use crate::world::{ALL, BUDGET, DEVICE, FIRST, SECOND, World, alone, space};
use crate::{Told, add};
use std::sync::atomic::Ordering::SeqCst;
use uhmm::device::{DeviceInfo, PAGE_SIZE};
use uhmm::memory::Protection;
use uhmm::mirror::MirrorError;
use uhmm::{PinFlags, Place, RangeError};
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_core::mirror;

const PAGES: usize = 32;

/// Best effort, page by page: what is pinned, or a device's that the CPU maps, stays what it is.
#[test]
fn it_gets_what_can_be_had() {
    let _alone = alone();
    let memory = |memory| DeviceInfo::new("test", DEVICE).memory(memory);
    let devices = [Private, Coherent].map(|kind| TestDevice::boxed(memory(kind)).0);
    let world = World::within(space(BUDGET, devices.into()), PAGES);
    // Never touched, in RAM, on a device, in memory that is mapped, pinned, tracked.
    (4..PAGES).for_each(|page| world.write(page));
    world.migrate(8..12, Place::Device(FIRST));
    world.migrate(12..16, Place::Device(SECOND));
    let flags = PinFlags::default();
    let pin = world.space.pin_pages(world.at(18), 2 * PAGE_SIZE, flags);
    let tell = |on| {
        world
            .space
            .memory()
            .read_mostly(world.at(24), 4 * PAGE_SIZE, on)
    };
    tell(true).unwrap();
    world.migrate(24..28, Place::Device(FIRST));
    (24..28).for_each(|page| world.check(page));
    assert!((24..28).all(|page| world.state(page).is_tracked()));
    let told = Told::default();
    let mirror = world.mirror(&told);
    let alone = world.take(&mirror);
    for (page, alone) in alone.iter().enumerate() {
        let stays = matches!(page, 12..16 | 18..20);
        assert_eq!(*alone, !stays, "page {page}");
        assert_eq!(world.is_exclusive(page), !stays);
        assert_eq!(mirror.has_alone(world.at(page)), !stays);
    }
    assert!((12..16).all(|page| matches!(world.state(page), State::Coherent(_))));
    let others = (0..PAGES).filter(|page| alone[*page]);
    others.clone().for_each(|page| world.fill(&mirror, page));
    world.push_out();
    assert!(
        others.clone().all(|page| world.is_exclusive(page)),
        "it stays"
    );
    world.check_all();
    assert!(
        told.ended(&world).into_iter().eq(others),
        "in order of the touches"
    );
    drop((pin, mirror));
    world.is_at_rest();
    world.write_all();
    world.send(Place::Device(FIRST));
    world.check_all();
}

/// One page of the range is enough to be told of, and nothing of it has changed.
#[test]
fn what_the_program_may_not_write_to_no_device_has_alone() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let mirror = world.mirror(&Told::default());
    let take = || mirror.make_exclusive(world.address, world.len(), |_, _| ());
    world.protect(5..6, Protection::READ).unwrap();
    assert_eq!(take(), Err(MirrorError::NotWritable));
    let one = mirror.exclusively(world.at(5), |_, _| ());
    assert_eq!(one, Err(MirrorError::NotWritable));
    world.protect(5..6, Protection::empty()).unwrap();
    assert_eq!(take(), Err(MirrorError::Range(RangeError::NoAccess)));
    world.protect(5..6, ALL).unwrap();
    world.unmap(5..6).unwrap();
    assert_eq!(take(), Err(MirrorError::Range(RangeError::Hole)));
    world.map_again(5..6);
    assert!((0..PAGES).all(|page| !world.is_exclusive(page)));
    let outside = mirror.make_exclusive(world.address, world.len() + PAGE_SIZE, |_, _| ());
    assert_eq!(outside, Err(MirrorError::Range(RangeError::Hole)));
    assert!(!mirror.has_alone(world.at(PAGES)) && !mirror.has_alone(8));
    let other = World::within(world.space.clone(), 1);
    let outside = mirror.exclusively(other.at(0), |_, _| ());
    let wanted = mirror::MirrorError::NotMirrored;
    assert_eq!(outside, Err(MirrorError::Mirror(wanted)));
    take().unwrap();
    world.check_all();
}

/// A page that is lost is an error, and nobody's alone.
#[test]
fn a_lost_page_is_nobodys() {
    let _alone = alone();
    let (world, mood) = World::moody(Private, PAGES);
    world.write_all();
    world.send(Place::Device(FIRST));
    let at = world.state(7).device_page().unwrap();
    mood.lost.store(at.page.0 + 1, SeqCst);
    let mirror = world.mirror(&Told::default());
    let error = mirror.exclusively(world.at(7), |_, _| ()).unwrap_err();
    let poisoned = |error| matches!(error, MirrorError::Mirror(mirror::MirrorError::Poisoned(_)));
    assert!(poisoned(error), "{error}");
    let all = mirror.make_exclusive(world.address, world.len(), |_, _| ());
    assert!(all.is_err_and(poisoned));
    let others = (0..PAGES).filter(|page| *page != 7);
    others.clone().for_each(|page| world.fill(&mirror, page));
    others.for_each(|page| world.check(page));
    drop(mirror);
    world.is_at_rest();
}

/// Two devices: who wants the page has it, with what the other one wrote.
#[test]
fn two_devices_take_pages_from_each_other() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let (first, second) = (Told::default(), Told::default());
    let mirrors = [world.mirror(&first), world.mirror(&second)];
    for round in 0..10u64 {
        for (i, mirror) in mirrors.iter().enumerate() {
            let was = mirror.exclusively(world.at(3), |_, data| add(data, 5, 1));
            assert_eq!(was, Ok(2 * round + i as u64));
            assert!(mirror.has_alone(world.at(3)));
            assert!(!mirrors[1 - i].has_alone(world.at(3)));
        }
    }
    assert_eq!(
        (first.ended(&world), second.ended(&world)),
        (vec![3; 10], vec![3; 9])
    );
    assert_eq!(world.word(3, 5).load(SeqCst), 20);
    drop(mirrors);
    world.is_at_rest();
}

/// R19: devices leave the program some of a small budget.
#[test]
fn devices_leave_the_program_some_of_a_small_budget() {
    const BUDGET: usize = 512;
    const LIMIT: usize = BUDGET / 8 * 7;
    const MANY: usize = 4 * BUDGET;
    let _alone = alone();
    let info = DeviceInfo::new("test", 16384);
    let world = World::within(space(BUDGET, vec![TestDevice::boxed(info).0]), MANY);
    world.write_all();
    let mirror = world.mirror(&Told::default());
    let take = |pages: std::ops::Range<usize>| {
        let (at, len) = (world.at(pages.start), pages.len() * PAGE_SIZE);
        let count = |alone: &[bool]| alone.iter().filter(|alone| **alone).count();
        mirror.make_exclusive(at, len, |_, alone| count(alone))
    };
    let too_much = mirror::MirrorError::TooMuch { limit: LIMIT };
    assert_eq!(take(0..LIMIT + 1), Err(MirrorError::Mirror(too_much)));
    // What it has got is its own, until somebody wants it.
    assert_eq!(take(0..LIMIT), Ok(LIMIT));
    (0..LIMIT).for_each(|page| world.fill(&mirror, page));
    let flags = PinFlags::default();
    let pin = world
        .space
        .pin_pages(world.at(LIMIT), 1, flags)
        .unwrap_err();
    assert!(pin.to_string().contains("pinned at a time"), "{pin}");
    for _ in 0..2 {
        (LIMIT..MANY).for_each(|page| world.write(page));
        (LIMIT..MANY).for_each(|page| world.check(page));
        assert!((0..LIMIT).all(|page| world.is_exclusive(page)));
    }
    world.check_all();
    assert_eq!(take(1000..1000 + LIMIT), Ok(LIMIT));
    drop(mirror);
    world.check_all();
    world.is_at_rest();
}
