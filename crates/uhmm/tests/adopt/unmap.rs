//! What the program does to its own mappings while their pages are managed: unmaps a part, maps something
//! else over it, drops what is in it, moves it.
#![allow(clippy::single_range_in_vec_init, reason = "a list of one range")]

use crate::child::{End, child, wait};
use crate::program::{ALL, map_over};
use crate::{FIRST, World, alone, device, devices, space};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use uhmm::mirror::{Event, Invalidation, Notifier};
use uhmm::{Adopted, IsAdopted, PinFlags, Place, RangeError};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType::Private;
use uhmm_testkit::Rng;

const TO: Place = Place::Device(FIRST);
const PAGES: usize = 512;

/// Written, and managed without a handle.
fn managed(device: Box<dyn uhmm::device::Device>) -> World {
    let world = World::new(space(2048, vec![device]), PAGES);
    assert_eq!(world.manage(0..PAGES), Ok(vec![0..PAGES]));
    world
}

/// Pages of the device, RAM and both kinds of neither.
fn mixed(device: Box<dyn uhmm::device::Device>) -> World {
    let world = managed(device);
    world.migrate(0..PAGES, TO);
    (0..PAGES).step_by(3).for_each(|page| world.check(page));
    (0..PAGES).step_by(4).for_each(|page| world.write(page));
    world.rest();
    world
}

fn is_managed(world: &World, page: usize) -> bool {
    let at = world.at(page) as usize;
    let usage = world.space.usage(at, PAGE_SIZE);
    assert_eq!(usage.is_ok(), world.space.page_at(at).is_some());
    assert!(matches!(usage, Ok(_) | Err(RangeError::Foreign)));
    usage.is_ok()
}

/// Nothing of the space's is left behind.
fn check_gone(world: &World, name: &str) {
    world.space.unmanage(0, usize::MAX, crate::SOON).unwrap();
    crate::wait_until("device pages are freed", || world.on_device() == 0);
    world.push_out();
    assert!(world.charged() <= 64, "{name}: {} pages", world.charged());
    world.space.internals().check_invariants();
}

#[test]
fn what_is_unmapped_is_gone_and_the_rest_is_as_it_was() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = mixed(device);
        for gone in [100..180, 0..7, 500..PAGES, 90..110, 179..200] {
            world.munmap(gone).unwrap();
        }
        let is_gone = |page: &usize| {
            [0..7, 90..200, 500..PAGES]
                .iter()
                .any(|of| of.contains(page))
        };
        for page in 0..PAGES {
            assert_eq!(is_managed(&world, page), !is_gone(&page), "{name}: {page}");
        }
        (0..PAGES).filter(|page| !is_gone(page)).for_each(|page| {
            world.check(page);
            world.write(page);
        });
        world.migrate(7..90, TO);
        (7..90).for_each(|page| world.check(page));
        // What comes there later is another's, and can be managed.
        world.map_again(100..150).unwrap();
        assert!((100..150).all(|page| !is_managed(&world, page)));
        (100..150).for_each(|page| world.check(page));
        assert_eq!(world.manage(90 + 10..150), Ok(vec![100..150]));
        (100..150).for_each(|page| world.write(page));
        world.migrate(100..150, TO);
        (100..150).for_each(|page| world.check(page));
        check_gone(&world, name);
        (100..150).for_each(|page| world.check(page));
    }
}

/// Threads use some pages, while the pages between them are unmapped, mapped again and managed, on the
/// device or not.
#[test]
fn threads_use_the_pages_beside_what_is_unmapped() {
    const PART: usize = 16;
    let _alone = alone();
    for (name, device) in devices() {
        let world = managed(device);
        let (stop, looks) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            for me in 0..3 {
                let (world, stop, looks) = (&world, &stop, &looks);
                scope.spawn(move || {
                    let mut rng = Rng::new(me);
                    while !stop.load(SeqCst) {
                        // Every other part is the threads'.
                        let part = 2 * rng.below((PAGES / PART / 2) as u64) as usize;
                        let page = part * PART + rng.below(5) as usize * 3 + me as usize;
                        world.check(page);
                        world.write(page);
                        looks.fetch_add(1, SeqCst);
                    }
                });
            }
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    let (at, len) = world.bytes(&(0..PAGES));
                    // Parts of it may not be there.
                    let _ = world.space.migrate(at, len / 2, TO);
                    for part in (0..PAGES / PART).step_by(2) {
                        let (at, len) = world.bytes(&(part * PART..(part + 1) * PART));
                        let _ = world.space.migrate(at, len, TO);
                    }
                }
            });
            let mut rng = Rng::new(77);
            for _ in 0..300 {
                let part = 1 + 2 * rng.below((PAGES / PART / 2) as u64) as usize;
                let pages = part * PART..(part + 1) * PART;
                world.migrate(pages.clone(), [TO, Place::Ram][rng.below(2) as usize]);
                if rng.below(2) == 0 {
                    world.munmap(pages.clone()).unwrap();
                }
                world.map_again(pages.clone()).unwrap();
                pages.clone().for_each(|page| {
                    world.check(page);
                    world.write(page);
                });
                assert_eq!(world.manage(pages.clone()), Ok(vec![pages.clone()]));
                pages.for_each(|page| world.check(page));
            }
            stop.store(true, SeqCst);
        });
        assert!(looks.load(SeqCst) > 300, "{name}");
        world.check_all();
        check_gone(&world, name);
        world.check_all();
    }
}

#[test]
fn a_call_that_fails_has_changed_nothing() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = mixed(device);
        let before = world
            .space
            .usage(world.bytes(&(0..PAGES)).0, PAGES * PAGE_SIZE);
        let (at, len) = world.bytes(&(100..300));
        let memory = world.space.memory();
        let fails = || map_over(at, len, 9999);
        // SAFETY: nothing of it is borrowed.
        let error = unsafe { memory.around_unmap(at, len, fails) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{name}");
        let fails = || Err::<(), _>(io::Error::from_raw_os_error(libc::EINVAL));
        // SAFETY: as above.
        let error = unsafe { memory.around_discard(at, len, fails) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{name}");
        // SAFETY: as above.
        unsafe { memory.around_protect(at, len, ALL, fails) }.unwrap_err();
        let after = world
            .space
            .usage(world.bytes(&(0..PAGES)).0, PAGES * PAGE_SIZE);
        assert_eq!(before, after, "{name}");
        // Pages that were to be moved are given back, and are what they were.
        // SAFETY: as above.
        unsafe { memory.around_move(at..at + len, None, fails) }.unwrap_err();
        assert!((0..PAGES).all(|page| is_managed(&world, page) != (100..300).contains(&page)));
        world.check_all();
        // Calls that the kernel refuses for their arguments get as far as to the kernel.
        for (at, len) in [(at + 1, len), (at, 0), (at, usize::MAX)] {
            let asked = AtomicBool::new(false);
            let call = || {
                asked.store(true, SeqCst);
                fails()
            };
            // SAFETY: nothing is done.
            let error = unsafe { memory.around_unmap(at, len, call) }.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            assert!(asked.load(SeqCst));
        }
        check_gone(&world, name);
        world.check_all();
    }
}

#[test]
fn what_is_pinned_or_has_a_handle_is_not_unmapped() {
    let _alone = alone();
    let mut world = mixed(device(Private).0);
    let (at, len) = world.bytes(&(40..44));
    let pin = world.space.pin_pages(at, len, PinFlags::default()).unwrap();
    for refused in [
        world.munmap(30..50),
        world.dontneed(43..44),
        world.mremap(40..45, 200),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ResourceBusy);
    }
    world.munmap(44..50).unwrap();
    drop(pin);
    world.check(41);
    world.munmap(40..44).unwrap();
    world.map_again(40..50).unwrap();
    world.check_all();
    world.space.unmanage(0, usize::MAX, crate::SOON).unwrap();
    world.adopt();
    let is_adopted = |result: io::Result<()>| {
        let inner = result.unwrap_err().into_inner().expect("a reason");
        assert_eq!(inner.downcast_ref(), Some(&IsAdopted));
    };
    is_adopted(world.munmap(0..1));
    is_adopted(world.mremap(3..5, 100));
    is_adopted(world.map_again(511..512));
    world.migrate(0..PAGES, TO);
    world.dontneed(3..9).unwrap();
    world.check_all();
    world.release();
    world.check_released();
}

#[test]
fn what_is_dropped_reads_as_zero_wherever_it_was() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = mixed(device);
        let frees = world.on_device();
        world.dontneed(50..400).unwrap();
        crate::wait_until("device pages are freed", || world.on_device() < frees - 100);
        world.check_all();
        assert!((0..PAGES).all(|page| is_managed(&world, page)), "{name}");
        world.write_all();
        world.migrate(0..PAGES, TO);
        // Over a hole, too: then the kernel says so.
        world.munmap(200..201).unwrap();
        let error = world.dontneed(199..202).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{name}");
        world.map_again(200..201).unwrap();
        [199, 201]
            .iter()
            .for_each(|&page| world.oracle.discard(page));
        world.check_all();
        check_gone(&world, name);
    }
}

#[test]
fn what_is_moved_has_its_bytes_and_what_was_in_the_way_is_gone() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = mixed(device);
        let mut pages = vec![uhmm::device::PageData::ZERO; 50];
        for (page, data) in (100..150).zip(&mut pages) {
            world.oracle.expected(page, data);
        }
        world.mremap(100..150, 300).unwrap();
        for (page, data) in (300..350).zip(&pages) {
            // SAFETY: within the mapping.
            assert_eq!(unsafe { &(*world.at(page)).0 }, &data.0, "{name}: {page}");
            assert!(!is_managed(&world, page), "{name}: {page}");
            world.write(page);
        }
        assert!((100..150).all(|page| !is_managed(&world, page)), "{name}");
        world.map_again(100..150).unwrap();
        world.manage(0..PAGES).unwrap();
        world.migrate(0..PAGES, TO);
        world.check_all();
        check_gone(&world, name);
        world.check_all();
    }
}

/// What cannot be managed is given back before it becomes so.
#[test]
fn what_is_locked_or_not_for_children_is_the_programs_again() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = mixed(device);
        let memory = world.space.memory();
        let around = |pages: Range<usize>, call: &dyn Fn(*mut libc::c_void, usize) -> i32| {
            let (at, len) = world.bytes(&pages);
            let call = || match call(at as *mut _, len) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            };
            // SAFETY: nothing of it is borrowed.
            unsafe { memory.around_other(at, len, call) }.unwrap();
        };
        // SAFETY: calls on the test's own memory.
        around(10..20, &|at, len| unsafe { libc::mlock(at, len) });
        // SAFETY: as above.
        around(30..40, &|at, len| unsafe {
            libc::madvise(at, len, libc::MADV_DONTFORK)
        });
        let is_left = |page: &usize| ![10..20, 30..40].iter().any(|of| of.contains(page));
        for page in 0..PAGES {
            assert_eq!(is_managed(&world, page), is_left(&page), "{name}: {page}");
        }
        let pid = child(|| {
            (0..PAGES)
                .filter(|page| !(30..40).contains(page))
                .for_each(|page| world.check(page));
            0
        });
        assert_eq!(wait(pid), End::Exit(0), "{name}");
        world.check_all();
        let parts = vec![0..10, 20..30, 40..PAGES];
        assert_eq!(world.manage(0..PAGES), Ok(parts));
        check_gone(&world, name);
        world.check_all();
    }
}

/// Who touches a page that is being unmapped waits, and is told by the kernel that there is none.
#[test]
fn a_touch_of_what_is_being_unmapped_ends() {
    let _alone = alone();
    for state in [TO, Place::Ram] {
        let world = managed(device(Private).0);
        world.migrate(0..PAGES, state);
        let pid = child(|| {
            let (at, len) = world.bytes(&(10..20));
            let unmapped = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let call = || {
                        thread::sleep(Duration::from_millis(200));
                        unmapped.store(true, SeqCst);
                        // SAFETY: a call on the test's own memory.
                        let done = unsafe { libc::munmap(at as *mut _, len) };
                        assert_eq!(done, 0);
                        Ok(())
                    };
                    // SAFETY: nothing of it is borrowed.
                    unsafe { world.space.memory().around_unmap(at, len, call) }.unwrap();
                });
                thread::sleep(Duration::from_millis(50));
                world.check(12);
                // What is in RAM stays mapped until it is unmapped.
                let early = !unmapped.load(SeqCst);
                assert!(early && state == Place::Ram);
                thread::sleep(Duration::from_millis(500));
                world.check(12);
                unreachable!("it is not there");
            });
            0
        });
        assert_eq!(wait(pid), End::Signal(libc::SIGSEGV));
        world.check_all();
    }
}

/// A notifier hears of all that is done to its range, managed or not.
#[test]
fn devices_are_told_whoever_manages_it() {
    type Told = (Event, Range<usize>);

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<Told>>>);

    impl Notifier for Log {
        fn invalidate(&self, what: &Invalidation) {
            let range = what.address..what.address + what.len;
            self.0.lock().unwrap().push((what.event, range));
        }
    }

    let _alone = alone();
    let world = managed(device(Private).0);
    let (at, len) = world.bytes(&(0..PAGES));
    let log = Log::default();
    let notifier = world.space.add_notifier(at, len, Box::new(log.clone()));
    let _notifier = notifier.unwrap();
    for is_managed in [true, false] {
        if !is_managed {
            world.space.unmanage(at, len, crate::SOON).unwrap();
        }
        log.0.lock().unwrap().clear();
        let told = |event: Event, pages: Range<usize>| {
            let (at, len) = world.bytes(&pages);
            let told = std::mem::take(&mut *log.0.lock().unwrap());
            let wanted = (event, at..at + len);
            assert!(told.contains(&wanted), "{is_managed}: {told:x?}");
        };
        world.mprotect(3..7, ALL).unwrap();
        told(Event::Protect, 3..7);
        world.dontneed(5..9).unwrap();
        told(Event::Clear, 5..9);
        world.mremap(20..30, 40).unwrap();
        told(Event::Unmap, 40..50);
        world.map_again(20..50).unwrap();
        told(Event::Unmap, 20..50);
        if is_managed {
            world.manage(0..PAGES).unwrap();
        }
    }
    assert!(!is_managed(&world, 0));
    world.check(0);
}

#[test]
fn a_handle_is_not_needed_for_what_it_has_not() {
    let _alone = alone();
    let world = managed(device(Private).0);
    // A handle beside what is managed without one.
    world
        .space
        .unmanage(world.at(100) as usize, 50 * PAGE_SIZE, crate::SOON)
        .unwrap();
    // SAFETY: a mapping of the test's own, which is not changed while it is adopted.
    let handle: Adopted = unsafe { world.space.adopt(world.own.at(100), 50 * PAGE_SIZE) }.unwrap();
    world.migrate(0..PAGES, TO);
    world.munmap(60..100).unwrap();
    world.munmap(150..160).unwrap();
    assert!(world.munmap(99..151).is_err());
    world.space.unmanage(0, usize::MAX, crate::SOON).unwrap();
    assert!((100..150).all(|page| is_managed(&world, page)));
    assert!(!is_managed(&world, 59) && !is_managed(&world, 160));
    drop(handle);
    assert!(!is_managed(&world, 100));
    world.map_again(60..160).unwrap();
    world.check_all();
}
