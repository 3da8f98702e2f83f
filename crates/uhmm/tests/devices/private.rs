//! Memory that the CPU does not map: a touch brings the page home, whoever touches it and whenever.

use crate::calls::{read_missing, write_missing};
use crate::child::{End, child, wait};
use crate::file::memory_file;
use crate::pin::pin;
use crate::{FIRST, World, alone};
use std::io::{Read, Seek, Write};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::{Migrated, Place};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_testkit::Rng;

const PAGES: usize = 600;
const ALL: Migrated = Migrated {
    migrated: PAGES,
    left: 0,
};

#[test]
fn a_range_goes_to_the_device_and_comes_back_as_it_is_touched() {
    let _alone = alone();
    let (world, mood) = World::moody(Private, PAGES);
    world.write_all();
    assert_eq!(world.migrate(0..PAGES, Place::Device(FIRST)), ALL);
    assert_eq!(world.device(FIRST).pages.get(), PAGES as u64);
    assert!((0..PAGES).all(|page| matches!(world.state(page), State::Private(_))));
    // There already: nothing to do, and nothing left undone.
    let again = world.migrate(0..PAGES, Place::Device(FIRST));
    assert_eq!(again, Migrated::default());
    assert_eq!(mood.copies_in.load(SeqCst), PAGES as u64);
    let faults = world.stats().device_faults.get();
    (0..PAGES).step_by(2).for_each(|page| world.check(page));
    (1..PAGES).step_by(2).for_each(|page| world.write(page));
    assert!(world.stats().device_faults.get() > faults);
    world.check_all();
    world.wait_empty(FIRST);
    assert_eq!(mood.frees.load(SeqCst), PAGES as u64, "each page once (R4)");
    // And by request, with pages among them that were never touched.
    assert_eq!(world.migrate(0..PAGES, Place::Device(FIRST)), ALL);
    let faults = world.stats().device_faults.get();
    assert_eq!(world.migrate(0..PAGES, Place::Ram), ALL);
    world.check_all();
    assert_eq!(world.stats().device_faults.get(), faults, "no fault");
}

#[test]
fn pages_that_were_never_touched_go_and_read_as_zeros() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], PAGES);
        (0..PAGES).step_by(3).for_each(|page| world.write(page));
        world.send(Place::Device(FIRST));
        assert_eq!(world.device(FIRST).pages.get(), PAGES as u64);
        world.check_all();
    }
}

/// Two threads write and check, each its own pages, while a third migrates all to the device and back.
#[test]
fn threads_touch_what_another_migrates() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], PAGES);
        let touches = AtomicU64::new(0);
        let begin = Instant::now();
        let going_on = || begin.elapsed() < Duration::from_secs(2);
        let mut moved = 0;
        thread::scope(|scope| {
            for thread in 0..2 {
                let (world, touches) = (&world, &touches);
                scope.spawn(move || {
                    let mut rng = Rng::new(thread);
                    while going_on() {
                        let page = rng.below(PAGES as u64 / 2) as usize * 2 + thread as usize;
                        world.check(page);
                        if rng.one_in(2) {
                            world.write(page);
                        }
                        touches.fetch_add(1, SeqCst);
                    }
                });
            }
            while going_on() {
                for to in [Place::Device(FIRST), Place::Ram] {
                    let done = world.space.migrate(world.address, world.len(), to);
                    moved += done.unwrap().migrated;
                }
            }
        });
        world.check_all();
        assert!(touches.load(SeqCst) > 1000, "{touches:?} touches");
        assert!(moved > PAGES, "{moved} pages moved");
        world.send(Place::Ram);
        world.wait_empty(FIRST);
    }
}

#[test]
fn system_calls_read_and_write_pages_on_devices() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let (from, to) = (World::new(&[memory], PAGES), World::new(&[memory], PAGES));
        from.write_all();
        from.send(Place::Device(FIRST));
        to.write_all();
        to.send(Place::Device(FIRST));
        let mut file = memory_file();
        // SAFETY: mapped, and used by nobody else.
        let source = unsafe { slice::from_raw_parts(from.address as *const u8, from.len()) };
        // SAFETY: as above.
        let sink = unsafe { slice::from_raw_parts_mut(to.address as *mut u8, to.len()) };
        if memory == Private {
            write_missing(&from.space, &file, source);
        } else {
            // The kernel finds mapped what the CPU can map.
            file.write_all(source).unwrap();
        }
        file.rewind().unwrap();
        if memory == Private {
            read_missing(&to.space, &file, sink);
        } else {
            file.read_exact(sink).unwrap();
        }
        from.check_all();
        assert!(source == sink);
    }
}

/// R7: what the kernel has pinned stays where it is; everything around it goes.
#[test]
fn a_pinned_page_stays() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], 16);
        world.write_all();
        let page = world.at(5) as usize;
        let Some(pinned) = pin(page..page + PAGE_SIZE) else {
            return;
        };
        let done = world.migrate(0..16, Place::Device(FIRST));
        assert_eq!(done.migrated, 15);
        assert!(matches!(world.state(5), State::System { .. }));
        world.push_out();
        assert!(matches!(world.state(5), State::System { .. }));
        assert!(world.stats().busy_pages.get() >= 2);
        world.write(5);
        world.check_all();
        drop(pinned);
        // The kernel lets go of it a moment later.
        crate::wait_until("the pin ends", || {
            world.migrate(5..6, Place::Device(FIRST)).migrated == 1
        });
        world.check_all();
    }
}

/// One thread migrates, one writes, and this one forks: each child sees this thread's pages as they
/// were, and goes on with all of them.
#[test]
fn forks_in_the_middle_of_migrations() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], PAGES);
        world.write_all();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    for to in [Place::Device(FIRST), Place::Ram] {
                        let _ = world.space.migrate(world.address, world.len(), to);
                    }
                }
            });
            scope.spawn(|| {
                let mut rng = Rng::new(7);
                while !done.load(SeqCst) {
                    world.write(1 + 2 * rng.below(PAGES as u64 / 2) as usize);
                }
            });
            let mut rng = Rng::new(8);
            let mine = || (0..PAGES).step_by(2);
            for _ in 0..8 {
                for _ in 0..50 {
                    world.write(2 * rng.below(PAGES as u64 / 2) as usize);
                }
                let pid = child(|| {
                    mine().for_each(|page| world.check(page));
                    world.send(Place::Ram);
                    mine().for_each(|page| world.write(page));
                    world.send(Place::Device(FIRST));
                    mine().for_each(|page| world.check(page));
                    0
                });
                mine().for_each(|page| world.check(page));
                let end = wait(pid);
                if end != End::Exit(0) {
                    done.store(true, SeqCst);
                    panic!("{memory:?}: {end:?}");
                }
            }
            done.store(true, SeqCst);
        });
        world.check_all();
    }
}
