//! Bad use, and too much of it: an error of its own each, and nothing has changed.

use crate::world::device::TestDevice;
use crate::world::{ALL, FIRST, SOON, World, alone, space, space_with, wait_until};
use crate::{LONGTERM, READ, WRITE, bytes, in_the_way};
use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::{DeviceInfo, PAGE_SIZE};
use uhmm::memory::Protection;
use uhmm::migrate::{MigrateVma, Select};
use uhmm::{PinError, Place, RangeError};
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_core::pin;

const PAGES: usize = 16;

#[test]
fn a_range_that_cannot_be_pinned_is_refused() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let refused = |address: usize, len: usize| match world.space.pin_pages(address, len, READ) {
        Err(PinError::Range(error)) => error,
        other => panic!("{other:?}"),
    };
    let here = 0u64;
    assert_eq!(refused(world.address, 0), RangeError::Empty);
    assert_eq!(refused(usize::MAX - 5, 10), RangeError::Overflow);
    assert_eq!(refused(usize::MAX - 5, 3), RangeError::Overflow);
    assert_eq!(refused(&raw const here as usize, 8), RangeError::Foreign);
    let last = world.at(PAGES - 1);
    assert_eq!(refused(last, 2 * PAGE_SIZE), RangeError::Hole);
    world.protect(3..4, Protection::empty()).unwrap();
    assert_eq!(refused(world.address, world.len()), RangeError::NoAccess);
    world.protect(3..4, ALL).unwrap();
    assert_eq!(world.stats().pins_acquired.get(), 0);
    world.check_all();
}

#[test]
fn a_removed_region_is_not_pinned() {
    let _alone = alone();
    let space = space_with(&[Private]);
    let region = space.region(PAGES * PAGE_SIZE).unwrap();
    let (address, len) = (region.as_ptr() as usize, region.len());
    drop(space.pin_pages(address, len, READ).unwrap());
    drop(region);
    let hole = Some(PinError::Range(RangeError::Hole));
    assert_eq!(space.pin_pages(address, len, READ).err(), hole);
    assert_eq!(space.get_pages(address, len, READ).err(), hole);
}

/// What the program may only read is pinned to be read, and no pin makes it writable.
#[test]
fn a_read_only_range_is_pinned_to_be_read_only() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], PAGES);
        world.write_all();
        world.send(Place::Device(FIRST));
        world.protect(0..PAGES, Protection::READ).unwrap();
        let refused = || world.try_pin(0..PAGES, WRITE).err();
        assert_eq!(refused(), Some(PinError::NotWritable));
        assert_eq!(world.stats().pins_acquired.get(), 0);
        for flags in [READ, LONGTERM] {
            let pin = world.pin(0..PAGES, flags);
            let done = world.migrate(0..PAGES, Place::Device(FIRST));
            assert_eq!(done.migrated, 0);
            world.push_out();
            world.check_all();
            drop(pin);
        }
        // To be writable in part is not enough.
        world.protect(0..PAGES - 1, ALL).unwrap();
        assert_eq!(refused(), Some(PinError::NotWritable));
        let pin = world.pin(0..PAGES - 1, WRITE);
        // The protection may change while it is pinned, and the pages stay.
        world.protect(0..PAGES - 1, Protection::READ).unwrap();
        let states = || (0..PAGES - 1).map(|page| world.state(page).device_page());
        let before: Vec<_> = states().collect();
        assert_eq!(world.migrate(0..PAGES - 1, Place::Ram).migrated, 0);
        world.push_out();
        assert!(states().eq(before));
        world.check_all();
        world.protect(0..PAGES, ALL).unwrap();
        world.write_all();
        drop(pin);
        world.check_all();
        world.is_at_rest();
    }
}

#[test]
fn a_pin_is_released_once() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let mut pin = world.pin(0..PAGES, WRITE);
    assert!(!pin.is_released());
    pin.release().unwrap();
    assert!(pin.is_released());
    for _ in 0..2 {
        let again = pin.release();
        assert_eq!(again, Err(PinError::Page(pin::PinError::Released)));
    }
    assert_eq!(world.stats().pins_released.get(), PAGES as u64);
    drop(pin);
    assert_eq!(world.stats().pins_released.get(), PAGES as u64);
    world.is_at_rest();
}

/// R11: what is pinned is not unmapped, dropped or moved; the refusal says so, and nothing has changed.
#[test]
fn a_pinned_range_is_not_unmapped_dropped_or_moved() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], PAGES);
        world.write_all();
        world.send(Place::Device(FIRST));
        let pin = world.pin(5..7, READ);
        let to = world.space.memory().map(world.len(), ALL).unwrap();
        let refusals = [
            world.unmap(0..PAGES),
            world.unmap(6..7),
            world.discard(0..PAGES),
            world.discard(5..6),
            world.remap(to).map(drop),
            world.map_over(0..PAGES),
            world.map_foreign(0..PAGES),
        ];
        for refused in refusals {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ResourceBusy);
            assert!(error.to_string().contains("pinned"), "{error}");
        }
        world.check_all();
        // What lies around it may go.
        world.discard(0..5).unwrap();
        world.unmap(8..PAGES).unwrap();
        (0..8).for_each(|page| world.check(page));
        drop(pin);
        world.discard(0..8).unwrap();
        world.map_again(8..PAGES);
        world.check_all();
        world.is_at_rest();
    }
}

/// A region that is dropped while somebody has pinned some of it by address stays mapped until they let
/// go, and no longer.
#[test]
fn a_region_dropped_while_it_is_pinned_goes_with_its_last_pin() {
    let _alone = alone();
    let space = space_with(&[Private]);
    let mut region = space.region(PAGES * PAGE_SIZE).unwrap();
    region.as_mut_slice().fill(5);
    let (address, len) = (region.as_ptr() as usize, region.len());
    let first = space.pin_pages(address, PAGE_SIZE, WRITE).unwrap();
    let mut second = space.pin_pages(address + PAGE_SIZE, 1, WRITE).unwrap();
    drop(region);
    let usage = || space.usage(address, len).map(|usage| usage.ram);
    // The last fault's handler may still have its page in hand.
    wait_until("all is in RAM", || usage() == Ok(PAGES));
    assert_eq!((usage(), &bytes(&second)[..]), (Ok(PAGES), &[5][..]));
    // Nobody else gets the range.
    let other = space.region(PAGES * PAGE_SIZE).unwrap();
    let others = other.as_ptr() as usize;
    assert!(others >= address + len || others + len <= address);
    drop(first);
    assert_eq!((usage(), &bytes(&second)[..]), (Ok(PAGES), &[5][..]));
    second.release().unwrap();
    assert_eq!(usage(), Err(RangeError::Hole));
}

/// An unmapping while somebody is just pinning the range: one of the two is refused, or both.
#[test]
fn what_is_just_unmapped_is_not_pinned() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let (mut unmapped, mut pinned) = (0, 0);
    let begin = Instant::now();
    for round in 0.. {
        if round >= 400 && unmapped > 0 && pinned > 0 {
            break;
        }
        assert!(begin.elapsed() < 2 * SOON, "{unmapped}, {pinned}");
        thread::scope(|scope| {
            let pinning = scope.spawn(|| world.try_pin(0..PAGES, WRITE));
            thread::sleep(Duration::from_micros(round % 80));
            let done = world.unmap(0..PAGES);
            let pin = pinning.join().unwrap();
            match (&done, &pin) {
                (Err(error), _) => assert_eq!(error.kind(), ErrorKind::ResourceBusy),
                (Ok(()), Err(PinError::Range(RangeError::Hole | RangeError::Forking))) => {}
                (Ok(()), other) => panic!("{other:?}"),
            }
            if let Ok(pin) = &pin {
                // What is pinned is mapped, and good for writing.
                bytes(pin).fill(3);
                pinned += 1;
            }
            drop(pin);
            if done.is_ok() {
                unmapped += 1;
                world.map_again(0..PAGES);
            }
        });
    }
    world.is_at_rest();
}

/// R19: so much is pinned at most that the rest of the program goes on, however small the budget.
#[test]
fn pins_leave_the_program_some_of_a_small_budget() {
    const BUDGET: usize = 512;
    const LIMIT: usize = BUDGET / 8 * 7;
    const MANY: usize = 4 * BUDGET;
    let _alone = alone();
    let info = DeviceInfo::new("test", 16384);
    let world = World::within(space(BUDGET, vec![TestDevice::boxed(info).0]), MANY);
    world.write_all();
    let too_much = |pages| match in_the_way(world.try_pin(pages, LONGTERM)) {
        pin::PinError::TooMuch { limit } => assert_eq!(limit, LIMIT),
        other => panic!("{other}"),
    };
    too_much(0..LIMIT + 1);
    assert_eq!(world.stats().pins_acquired.get(), 0, "said at once");
    let pin = world.pin(0..LIMIT, LONGTERM);
    too_much(LIMIT..LIMIT + 1);
    // What is pinned already may be pinned again.
    drop(world.pin(5..15, LONGTERM));
    for _ in 0..3 {
        (LIMIT..MANY).for_each(|page| world.write(page));
        (LIMIT..MANY).for_each(|page| world.check(page));
        assert!((0..LIMIT).all(|page| world.is_in_ram(page)));
    }
    (0..LIMIT).for_each(|page| world.check(page));
    drop(pin);
    let half = world.pin(1000..1000 + LIMIT / 2, LONGTERM);
    too_much(0..LIMIT);
    assert_eq!(world.stats().pinned_pages.get(), (LIMIT / 2) as u64);
    drop(half);
    drop(world.pin(600..600 + LIMIT, LONGTERM));
    world.check_all();
    world.is_at_rest();
}

/// A pin waits for a migration of its pages that is under way, and pins what has come of it. One that
/// does not end is an error.
#[test]
fn a_pin_waits_for_pages_in_flight() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let args = MigrateVma {
        address: world.address,
        len: world.len(),
        select: Select::SYSTEM,
        owner: None,
        except: None,
        fault_page: None,
    };
    (0..PAGES).for_each(|page| _ = world.state(page));
    let mut migration = world.space.migrate_vma(&args).unwrap();
    thread::scope(|scope| {
        let pinning = scope.spawn(|| world.pin(0..PAGES, READ));
        thread::sleep(Duration::from_millis(30));
        assert_eq!(world.stats().pins_acquired.get(), 0);
        migration.allocate(FIRST.0).unwrap();
        assert_eq!(migration.copy().pages().finalize().migrated, PAGES);
        let pin = pinning.join().unwrap();
        assert!((0..PAGES).all(|page| world.is_in_ram(page)));
        drop(pin);
    });
    let migration = world.space.migrate_vma(&args).unwrap();
    let error = in_the_way(world.try_pin(0..PAGES, READ));
    assert!(matches!(error, pin::PinError::Busy(_)), "{error}");
    drop(migration);
    world.wait_empty(FIRST);
    world.check_all();
    world.is_at_rest();
}
