//! Memory that is managed on demand, without a handle.
#![allow(clippy::single_range_in_vec_init, reason = "a list of one range")]

use crate::child::{End, child, wait};
use crate::own::{Own, raw_map, unmap};
use crate::{BUDGET, FIRST, World, alone, device, devices, space};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::{AdoptError, Place, RangeError, ReleaseError, Unfit};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType::Private;
use uhmm_linux::adopted::MAX_RANGES;
use uhmm_testkit::Rng;

const TO: Place = Place::Device(FIRST);
const PAGES: usize = 512;

fn world(device: Box<dyn uhmm::device::Device>) -> World {
    World::new(space(2048, vec![device]), PAGES)
}

#[test]
fn what_is_asked_for_is_managed_once() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = world(device);
        assert_eq!(world.manage(10..20), Ok(vec![10..20]));
        assert_eq!(world.charged(), 10, "{name}: nothing beside it");
        assert_eq!(world.manage(10..20), Ok(vec![10..20]));
        assert_eq!(world.manage(12..15), Ok(vec![12..15]));
        assert_eq!(world.manage(5..25), Ok(vec![5..25]));
        world.migrate(5..25, TO);
        assert_eq!(world.manage(0..PAGES), Ok(vec![0..PAGES]));
        assert_eq!(world.manage(0..PAGES), Ok(vec![0..PAGES]));
        let usage = world.space.usage(world.at(0) as usize, PAGES * PAGE_SIZE);
        assert_eq!(usage.unwrap().devices[0], 20, "{name}");
        assert_eq!(world.charged(), PAGES - 20, "{name}");
        world.check_all();
        world.migrate(0..PAGES, TO);
        world.write_all();
        let (at, len) = world.bytes(&(0..PAGES));
        world.space.unmanage(at, len, crate::SOON).unwrap();
        world.space.unmanage(at, len, crate::SOON).unwrap();
        world.check_released();
    }
}

#[test]
fn what_cannot_be_managed_is_left_out_or_refused() {
    let _alone = alone();
    let world = world(device(Private).0);
    let fixed = |page: usize, flags: libc::c_int, fd: libc::c_int| {
        let (at, len) = world.bytes(&(page..page + 4));
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = flags | libc::MAP_FIXED;
        // SAFETY: over the test's own memory.
        let mapped = unsafe { libc::mmap(at as *mut _, len, access, flags, fd, 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        (page..page + 4).for_each(|page| world.oracle.discard(page));
    };
    fixed(100, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    // SAFETY: a new descriptor of the test's own.
    let fd = unsafe { libc::memfd_create(c"uhmm-test".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::ftruncate(fd, 1 << 20) }, 0);
    fixed(200, libc::MAP_PRIVATE, fd);
    world
        .own
        .protect(300..310, libc::PROT_READ | libc::PROT_EXEC);
    world.own.advise(400..401, libc::MADV_DONTFORK);
    let parts = vec![0..100, 104..200, 204..300, 310..400, 401..PAGES];
    assert_eq!(world.manage(0..PAGES), Ok(parts.clone()));
    assert_eq!(world.manage(100..103), Ok(vec![]));
    assert_eq!(world.manage(0..PAGES), Ok(parts.clone()));
    for part in parts {
        assert_eq!(world.migrate(part, TO).left, 0);
    }
    world.check_all();
    // Nothing of it is managed where a part may not be read, or is not there.
    world.space.unmanage(0, usize::MAX, crate::SOON).unwrap();
    world.own.protect(20..21, libc::PROT_NONE);
    let no_access = Err(AdoptError::Unfit(Unfit::NoAccess));
    assert_eq!(world.manage(0..PAGES), no_access);
    assert_eq!(world.manage(0..20), Ok(vec![0..20]));
    assert_eq!(world.manage(19..22), no_access);
    world.own.protect(20..21, libc::PROT_READ);
    world.munmap(30..31).unwrap();
    let hole = Err(AdoptError::Unfit(Unfit::Hole));
    assert_eq!(world.manage(20..40), hole);
    assert_eq!(world.manage(20..30), Ok(vec![20..30]));
    for (at, len, why) in [
        (world.at(0) as usize + 1, PAGE_SIZE, RangeError::Unaligned),
        (world.at(0) as usize, 0, RangeError::Empty),
        (
            world.at(0) as usize,
            usize::MAX - 4095,
            RangeError::Overflow,
        ),
    ] {
        // SAFETY: refused.
        let refused = unsafe { world.space.manage(at, len) };
        assert_eq!(refused, Err(why.into()));
    }
    // SAFETY: as above.
    unsafe { libc::close(fd) };
}

#[test]
fn memory_of_the_space_is_managed_already() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0]);
    let region = space.region(16 * PAGE_SIZE).unwrap();
    let at = region.as_ptr() as usize;
    // SAFETY: it is the space's.
    let managed = unsafe { space.manage(at, region.len()) }.unwrap();
    assert_eq!(managed.len(), 1);
    assert_eq!(managed[0], at..at + region.len());
    // SAFETY: refused.
    let beyond = unsafe { space.manage(at, 1 << 30) };
    assert!(beyond.is_err(), "what is not mapped");
    let local = 0u8;
    let page = std::ptr::from_ref(&local) as usize / PAGE_SIZE * PAGE_SIZE;
    // SAFETY: left out.
    let stack = unsafe { space.manage(page, PAGE_SIZE) };
    assert_eq!(stack, Ok(vec![]));
}

#[test]
fn a_part_is_given_back_and_the_rest_stays() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = world(device);
        world.manage(0..PAGES).unwrap();
        world.migrate(0..PAGES, TO);
        let (at, len) = world.bytes(&(100..200));
        world.space.unmanage(at, len, crate::SOON).unwrap();
        assert_eq!(world.space.page_at(at), None);
        assert!(world.on_device() <= PAGES - 100, "{name}");
        let usage = |pages| {
            world
                .space
                .usage(world.bytes(&pages).0, world.bytes(&pages).1)
        };
        assert_eq!(usage(0..PAGES), Err(RangeError::Foreign), "{name}");
        assert_eq!(usage(0..100).unwrap().devices[0], 100, "{name}");
        assert_eq!(usage(200..PAGES).unwrap().devices[0], PAGES - 200, "{name}");
        world.check_all();
        world.manage(150..250).unwrap();
        world.migrate(150..PAGES, TO);
        world.check_all();
        world.space.unmanage(0, usize::MAX, crate::SOON).unwrap();
        world.check_released();
    }
}

#[test]
fn what_cannot_be_given_back_in_time_stays() {
    let _alone = alone();
    let world = world(device(Private).0);
    world.manage(0..PAGES).unwrap();
    world.migrate(0..PAGES, TO);
    let (at, len) = world.bytes(&(70..71));
    let pin = world
        .space
        .pin_pages(at, len, uhmm::PinFlags::default())
        .unwrap();
    let (all, bytes) = world.bytes(&(0..PAGES));
    let error = world.space.unmanage(all, bytes, crate::SHORT).unwrap_err();
    assert_eq!(error, ReleaseError::StillAdopted((PAGES - 70) * PAGE_SIZE));
    assert!(world.space.page_at(world.at(69) as usize).is_none());
    world.migrate(71..PAGES, TO);
    drop(pin);
    world.space.unmanage(all, bytes, crate::SOON).unwrap();
    world.check_released();
}

/// With as many ranges as can be, one that is all in RAM makes room; and none does that is on a device.
#[test]
fn ranges_that_are_in_ram_make_room_for_others() {
    const EACH: usize = 4;
    let _alone = alone();
    let mut world = World::new(space(4096, vec![device(Private).0]), 2048);
    let many = MAX_RANGES + 40;
    assert!(many * (EACH + 1) <= world.pages());
    let range = |i: usize| i * (EACH + 1)..i * (EACH + 1) + EACH;
    for i in 0..many {
        assert_eq!(world.manage(range(i)), Ok(vec![range(i)]), "range {i}");
    }
    let is_there = |world: &World, i: usize| {
        world
            .space
            .page_at(world.at(range(i).start) as usize)
            .is_some()
    };
    let there: Vec<_> = (0..many).filter(|&i| is_there(&world, i)).collect();
    assert_eq!(there.len(), MAX_RANGES);
    world.check_all();
    // All on the device: there is no room, and nothing is lost.
    there.iter().for_each(|&i| _ = world.migrate(range(i), TO));
    let other = (0..many).find(|&i| !is_there(&world, i)).unwrap();
    let too_many = Err(AdoptError::Unfit(Unfit::TooMany));
    assert_eq!(world.manage(range(other)), too_many);
    // Nor can a range be made two.
    let middle = range(there[9]).start + 1..range(there[9]).start + 2;
    let error = world.munmap(middle.clone()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    world.check(middle.start);
    let (at, len) = world.bytes(&middle);
    let patience = crate::SHORT;
    let error = world.space.unmanage(at, len, patience).unwrap_err();
    assert_eq!(error, ReleaseError::StillAdopted(PAGE_SIZE));
    // Until one is in RAM.
    world.migrate(range(there[200]), Place::Ram);
    world.munmap(middle.clone()).unwrap();
    assert!(!is_there(&world, there[200]));
    world.map_again(middle).unwrap();
    world.check_all();
    // Beside another it needs no room.
    let beside = range(there[5]).end..range(there[5]).end + 1;
    assert_eq!(world.manage(beside.clone()), Ok(vec![beside]));
    world.write_all();
    world.space.unmanage(0, usize::MAX, crate::SOON).unwrap();
    world.check_all();
    world.adopt();
    world.release();
    world.check_released();
}

#[test]
fn with_its_space_all_of_it_comes_home() {
    let _alone = alone();
    for (name, device) in devices() {
        let World {
            own, space, oracle, ..
        } = {
            let world = world(device);
            world.manage(0..100).unwrap();
            world.manage(200..PAGES).unwrap();
            world.migrate(200..PAGES, TO);
            world
        };
        drop(space);
        for page in 0..PAGES {
            // SAFETY: within the mapping.
            oracle.check(page, unsafe { &*own.at(page).cast() });
        }
        assert!(
            own.flags().iter().all(|flags| !flags.contains("um")),
            "{name}"
        );
    }
}

#[test]
fn r16_children_have_what_is_managed() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = world(device);
        world.manage(50..400).unwrap();
        world.migrate(50..400, TO);
        let pid = child(|| {
            world.check_all();
            world.munmap(100..120).unwrap();
            world.map_again(100..120).unwrap();
            world.manage(0..PAGES).unwrap();
            world.write_all();
            world.migrate(0..PAGES, TO);
            world.check_all();
            world.space.unmanage(0, usize::MAX, crate::SOON).unwrap();
            world.check_all();
            0
        });
        world.munmap(200..220).unwrap();
        world.map_again(200..220).unwrap();
        world.write_all();
        world.migrate(50..200, TO);
        assert_eq!(wait(pid), End::Exit(0), "{name}");
        world.check_all();
    }
}

/// Threads manage, migrate, give back and fork, while others use the memory.
#[test]
fn all_of_it_at_the_same_time() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = world(device);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for me in 0..2 {
                let (world, stop) = (&world, &stop);
                scope.spawn(move || {
                    let mut rng = Rng::new(me);
                    while !stop.load(SeqCst) {
                        let page = 2 * rng.below(PAGES as u64 / 2) + me;
                        world.check(page as usize);
                        world.write(page as usize);
                    }
                });
            }
            for me in 10..12 {
                let (world, stop) = (&world, &stop);
                scope.spawn(move || {
                    let mut rng = Rng::new(me);
                    while !stop.load(SeqCst) {
                        let start = rng.below(PAGES as u64 - 1) as usize;
                        let len = 1 + rng.below((PAGES - start) as u64) as usize;
                        let (at, len) = world.bytes(&(start..start + len.min(100)));
                        let soon = Duration::from_secs(5);
                        // Others may have given it back, or a fork may take its time.
                        // SAFETY: the mapping outlives the space's use of it.
                        let _ = unsafe { world.space.manage(at, len) };
                        let _ = world.space.migrate(at, len, TO);
                        match rng.below(4) {
                            0 => world.space.unmanage(at, len, soon).unwrap(),
                            1 => _ = world.space.migrate(at, len, Place::Ram),
                            _ => {}
                        }
                    }
                });
            }
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(3) {
                thread::sleep(Duration::from_millis(100));
                let pid = child(|| {
                    // Writers may be in the middle of a page.
                    world.space.unmanage(0, usize::MAX, crate::SOON).unwrap();
                    assert_eq!(
                        world.space.usage(world.at(0) as usize, PAGE_SIZE),
                        Err(RangeError::Foreign)
                    );
                    0
                });
                assert_eq!(wait(pid), End::Exit(0), "{name}");
            }
            stop.store(true, SeqCst);
        });
        world.check_all();
        world.space.unmanage(0, usize::MAX, crate::SOON).unwrap();
        world.check_released();
        assert_eq!(world.on_device(), 0, "{name}");
    }
}

/// Where something else is mapped, there is no mapping of the test's to be mistaken for it.
#[test]
fn a_mapping_that_comes_later_is_not_mistaken_for_one_before() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0]);
    let own = Own::map(8);
    let at = own.at(0) as usize;
    // SAFETY: a mapping of the test's own.
    unsafe { own.at(0).write(7) };
    // SAFETY: as above.
    unsafe { space.manage(at, own.len()) }.unwrap();
    space.migrate(at, own.len(), TO).unwrap();
    let call = || {
        unmap(at..at + own.len());
        Ok(())
    };
    // SAFETY: nothing of it is borrowed.
    unsafe { space.memory().around_unmap(at, own.len(), call) }.unwrap();
    // By a call that nobody has taken over.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: nothing is there.
    let again = unsafe { libc::mmap(at as *mut _, own.len(), libc::PROT_READ, flags, -1, 0) };
    assert_eq!(again as usize, at);
    // SAFETY: a fresh mapping.
    assert_eq!(unsafe { own.at(0).read_volatile() }, 0);
    // SAFETY: as above.
    assert_eq!(unsafe { space.manage(at, own.len()) }.unwrap().len(), 1);
    space.migrate(at, own.len(), TO).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { own.at(0).read_volatile() }, 0);
    let elsewhere = raw_map(PAGE_SIZE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    unmap(elsewhere..elsewhere + PAGE_SIZE);
}
