//! Adopted memory that may not be written, or not be touched: its pages go to devices and come back like
//! others, and its protection is the kernel's at any time.

use crate::child::{End, child, wait};
use crate::program::{ALL, NONE, READ};
use crate::{DEVICE, FIRST, World, alone, devices, space};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::Device;
use uhmm::{MigrateError, PinError, PinFlags, Place, RangeError};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::entry::State;

const TO: Place = Place::Device(FIRST);
const PAGES: usize = 96;

/// Written, read only from 32 to 64, not accessible from there on, and adopted.
fn three_kinds(device: Box<dyn Device>) -> World {
    let mut world = World::new(space(2048, vec![device]), PAGES);
    world.own.protect(32..64, READ.bits() as i32);
    world.own.protect(64..96, NONE.bits() as i32);
    world.adopt();
    world
}

/// Whether a device takes pages that are not writable: not one whose frames have to be mapped there.
fn takes_all(name: &str) -> bool {
    name != "coherent"
}

fn is_away(world: &World, page: usize) -> bool {
    matches!(world.state(page), State::Private(_) | State::Coherent(_))
}

#[test]
fn pages_that_are_not_writable_go_to_devices_and_come_back() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = three_kinds(device);
        for _ in 0..3 {
            let most = if takes_all(name) { 64 } else { 32 };
            assert_eq!(world.migrate(0..64, TO).left, 64 - most, "{name}");
            assert!((0..most).all(|page| is_away(&world, page)), "{name}");
            (0..64).step_by(2).for_each(|page| world.check(page));
            assert_eq!(world.migrate(0..64, Place::Ram).left, 0, "{name}");
            (0..64).for_each(|page| world.check(page));
            (0..32).for_each(|page| world.write(page));
        }
        let (at, len) = world.bytes(&(64..96));
        let refused = world.space.migrate(at, len, TO);
        let wanted = MigrateError::Range(RangeError::NoAccess);
        assert_eq!(refused, Err(wanted), "{name}");
        world.migrate(0..64, TO);
        world.release();
        (0..64).for_each(|page| world.check(page));
        assert!(world.may(40, READ) && !world.may(40, ALL), "{name}");
        world.own.protect(0..96, ALL.bits() as i32);
        world.check_released();
    }
}

#[test]
fn cold_pages_that_are_not_writable_leave_ram() {
    let _alone = alone();
    let (device, _) = crate::device(uhmm_core::memory_type::MemoryType::Private);
    let mut world = three_kinds(device);
    world.push_out();
    let out = (0..PAGES).filter(|&page| is_away(&world, page)).count();
    assert_eq!(out, PAGES);
    (0..64).for_each(|page| world.check(page));
    world.mprotect(64..96, READ).unwrap();
    (64..96).for_each(|page| world.check(page));
    world.release();
    world.own.protect(0..96, ALL.bits() as i32);
    world.check_released();
}

#[test]
fn protection_changes_while_pages_are_on_a_device() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = World::new(space(2048, vec![device]), PAGES);
        world.adopt();
        for _ in 0..3 {
            world.migrate(0..96, TO);
            world.mprotect(20..70, READ).unwrap();
            assert!((0..96).all(|page| is_away(&world, page)), "{name}");
            (10..50).for_each(|page| world.check(page));
            assert!(!world.may(30, ALL), "{name}");
            world.mprotect(40..70, NONE).unwrap();
            assert!(!world.may(45, READ), "{name}");
            assert!(is_away(&world, 69), "{name}");
            world.mprotect(30..80, ALL).unwrap();
            world.mprotect(0..30, ALL).unwrap();
            world.check_all();
            world.write_all();
        }
        // Not longer than the kernel has it.
        world.mprotect(7..8, READ).unwrap();
        let (at, len) = world.bytes(&(0..16));
        let write = PinFlags {
            write: true,
            ..PinFlags::default()
        };
        let pin = world.space.pin_pages(at, len, write).map(drop);
        assert_eq!(pin, Err(PinError::NotWritable), "{name}");
        drop(world.space.pin_pages(at, len, PinFlags::default()).unwrap());
        world.mprotect(7..8, ALL).unwrap();
        drop(world.space.pin_pages(at, len, write).unwrap());
        world.release();
        world.check_released();
    }
}

/// `mprotect` changes what is before a hole, and says that there is one.
#[test]
fn a_change_that_fails_in_the_middle_is_known_as_far_as_it_came() {
    let _alone = alone();
    let (device, _) = crate::device(uhmm_core::memory_type::MemoryType::Private);
    let world = World::new(space(2048, vec![device]), PAGES);
    world.manage(0..PAGES).unwrap();
    world.migrate(0..PAGES, TO);
    world.munmap(50..60).unwrap();
    let error = world.mprotect(40..70, READ).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    let writable = |page: usize| {
        let flags = PinFlags {
            write: true,
            ..PinFlags::default()
        };
        let (at, len) = world.bytes(&(page..page + 1));
        world.space.pin_pages(at, len, flags).map(drop)
    };
    for page in (0..50).chain(60..PAGES) {
        let wanted = match page {
            40..50 => Err(PinError::NotWritable),
            _ => Ok(()),
        };
        assert_eq!(writable(page), wanted, "page {page}");
        assert_eq!(world.may(page, ALL), wanted.is_ok(), "page {page}");
        world.check(page);
    }
}

/// A page that was only ever read is the kernel's one page of zeros, until it is written.
#[test]
fn the_page_of_zeros_migrates() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = World::new(space(2048, vec![device]), PAGES);
        world.own.advise(0..PAGES, libc::MADV_DONTNEED);
        (0..PAGES).for_each(|page| world.oracle.discard(page));
        world.own.protect(0..48, READ.bits() as i32);
        // It is there from now on.
        world.check_all();
        world.adopt();
        assert_eq!(world.charged(), PAGES, "{name}");
        for _ in 0..2 {
            let first = if takes_all(name) { 0 } else { 48 };
            assert_eq!(world.migrate(0..PAGES, TO).left, first, "{name}");
            assert!((first..PAGES).all(|page| is_away(&world, page)), "{name}");
            world.check_all();
        }
        world.migrate(0..PAGES, TO);
        world.mprotect(0..48, ALL).unwrap();
        world.write_all();
        world.migrate(0..PAGES, TO);
        world.check_all();
        world.release();
        world.check_released();
    }
}

#[test]
fn r16_a_child_has_what_is_not_writable() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = three_kinds(device);
        world.migrate(0..64, TO);
        (0..64).step_by(3).for_each(|page| world.check(page));
        world.rest();
        for _ in 0..2 {
            let pid = child(|| {
                (0..64).for_each(|page| world.check(page));
                world.migrate(0..64, TO);
                assert!(!world.may(40, ALL));
                world.mprotect(0..96, ALL).unwrap();
                world.check_all();
                world.write_all();
                world.migrate(0..96, TO);
                world.release();
                world.check_all();
                0
            });
            (0..64).for_each(|page| world.check(page));
            world.migrate(0..64, TO);
            assert_eq!(wait(pid), End::Exit(0), "{name}");
        }
        world.mprotect(0..96, ALL).unwrap();
        world.check_all();
        world.release();
        world.check_released();
    }
}

/// Pages are pushed out and migrated all the time, writable or not, while a thread protects them and
/// writes where it may.
#[test]
fn no_write_is_lost_to_a_change_of_protection() {
    let _alone = alone();
    for (_, device) in devices() {
        let world = World::new(space(2048, vec![device]), PAGES);
        world.manage(0..PAGES).unwrap();
        let stop = AtomicBool::new(false);
        let mut rounds = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    world.push_out();
                }
            });
            scope.spawn(|| {
                let (at, len) = world.bytes(&(0..PAGES));
                while !stop.load(SeqCst) {
                    // Some of it may be in other hands.
                    let _ = world.space.migrate(at, len, TO);
                    let _ = world.space.migrate(at, len, Place::Ram);
                }
            });
            let begin = Instant::now();
            // Machines may be slow.
            while begin.elapsed() < Duration::from_secs(2) || rounds <= 10 {
                let first = rounds * 7 % 60;
                let some = first..first + 36;
                world.mprotect(some.clone(), READ).unwrap();
                some.clone().for_each(|page| world.check(page));
                world.mprotect(some.clone(), ALL).unwrap();
                some.for_each(|page| {
                    world.check(page);
                    world.write(page);
                });
                rounds += 1;
            }
            stop.store(true, SeqCst);
        });
        world.check_all();
        assert!(u32::try_from(world.on_device()).unwrap() <= DEVICE);
        let (at, len) = world.bytes(&(0..PAGES));
        assert_eq!(len, PAGES * PAGE_SIZE);
        world.space.unmanage(at, len, crate::SOON).unwrap();
        world.check_released();
    }
}
