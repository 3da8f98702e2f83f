//! R16: copy-on-write of coherent pages after a fork, on real forks.

use crate::calls::read_missing;
use crate::child::{End, child, wait};
use crate::file::memory_file;
use crate::{FIRST, SECOND, World, alone, wait_until};
use std::io::{Read, Seek, Write, pipe};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use uhmm::memory::Protection;
use uhmm::mirror::{Mapped, Need, PageTable};
use uhmm::pin::PinFlags;
use uhmm::{Place, Usage};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_testkit::Rng;

const PAGES: usize = 256;

/// Pages on a coherent device.
fn coherent() -> World {
    let world = World::new(&[Coherent, Private], PAGES);
    world.write_all();
    world.send(Place::Device(FIRST));
    world
}

fn usage(world: &World) -> Usage {
    let usage = || world.space.usage(world.address, world.len()).unwrap();
    wait_until("all is at rest", || usage().migrating == 0);
    usage()
}

/// How many pages are in RAM and how many on the device, and that no more is charged.
fn where_they_are(world: &World) -> (usize, usize) {
    let usage = usage(world);
    wait_until("what has left the device is free", || {
        world.device(FIRST).pages.get() as usize == usage.devices[0]
    });
    let charged = world.stats().ram_bytes.get() as usize / PAGE_SIZE;
    assert_eq!(charged, usage.ram);
    (usage.ram, usage.devices[0])
}

/// A child that waits to be let go on, and then does `work`; and what lets it go on.
fn waiting_child(work: impl FnOnce()) -> (libc::pid_t, Box<dyn FnOnce()>) {
    let (mut reader, writer) = pipe().unwrap();
    let pid = child(|| {
        // Its own end of what lets it go on: where the parent fails, it ends.
        // SAFETY: this copy of the process uses it no more, and drops nothing.
        unsafe { libc::close(writer.as_raw_fd()) };
        reader.read_exact(&mut [0]).unwrap();
        work();
        0
    });
    (pid, Box::new(move || (&writer).write_all(&[1]).unwrap()))
}

/// Writes some of each page, finds there what was there before, and writes all of it.
fn write(world: &World, pages: Range<usize>) {
    for page in pages {
        world.poke(page);
        world.check(page);
        world.write(page);
    }
}

/// As the kernel's own test of it: the parent writes while its child is there.
#[test]
fn what_one_side_writes_goes_to_ram_and_the_other_keeps_the_device() {
    let _alone = alone();
    for parent_writes in [true, false] {
        let world = coherent();
        let writes = || {
            write(&world, 0..PAGES / 2);
            assert_eq!(where_they_are(&world), (PAGES / 2, PAGES / 2));
            world.check_all();
        };
        let reads = || {
            world.check_all();
            assert_eq!(where_they_are(&world), (0, PAGES));
        };
        let (pid, go_on) = waiting_child(|| {
            if parent_writes {
                reads();
            } else {
                writes();
            }
        });
        if parent_writes {
            writes();
            go_on();
            assert_eq!(wait(pid), End::Exit(0));
        } else {
            go_on();
            assert_eq!(wait(pid), End::Exit(0));
            reads();
        }
        write(&world, 0..PAGES);
        world.check_all();
    }
}

#[test]
fn both_sides_write_and_neither_sees_the_other() {
    let _alone = alone();
    let world = coherent();
    let (pid, go_on) = waiting_child(|| {
        world.check_all();
        write(&world, 0..PAGES);
        // Of the pages that the parent has written, the device's memory is this side's alone by now.
        assert_eq!(where_they_are(&world), (PAGES / 2, PAGES / 2));
        world.send(Place::Device(FIRST));
        assert_eq!(where_they_are(&world), (0, PAGES));
        write(&world, 0..PAGES);
        world.check_all();
    });
    // Some before and some after the child has come by.
    write(&world, 0..PAGES / 2);
    go_on();
    assert_eq!(wait(pid), End::Exit(0));
    world.check_all();
    assert_eq!(where_they_are(&world), (PAGES / 2, PAGES / 2));
    world.send(Place::Device(FIRST));
    world.check_all();
    assert_eq!(where_they_are(&world), (0, PAGES));
}

#[test]
fn both_sides_read_and_all_stays_on_the_device() {
    let _alone = alone();
    let world = coherent();
    let faults = || world.stats().device_faults.get();
    let reads = || {
        let before = faults();
        world.check_all();
        assert_eq!(faults(), before);
        assert_eq!(where_they_are(&world), (0, PAGES));
    };
    let (pid, go_on) = waiting_child(reads);
    reads();
    go_on();
    assert_eq!(wait(pid), End::Exit(0));
    reads();
}

/// A child that has ended, or become another program, shares nothing: nothing is copied for it.
#[test]
fn after_the_other_side_has_ended_writes_stay_on_the_device() {
    let _alone = alone();
    let world = coherent();
    for _ in 0..3 {
        assert_eq!(wait(child(|| 0)), End::Exit(0));
        write(&world, 0..PAGES);
        assert_eq!(where_they_are(&world), (0, PAGES));
        world.check_all();
    }
    // The parent's pages go first.
    let (pid, go_on) = waiting_child(|| {
        write(&world, 0..PAGES);
        assert_eq!(where_they_are(&world), (0, PAGES));
        world.check_all();
    });
    // SAFETY: nothing borrows the range.
    unsafe { world.space.memory().discard(world.address, world.len()) }.unwrap();
    go_on();
    assert_eq!(wait(pid), End::Exit(0));
}

/// Pages go where they are sent from either side, shared as they are.
#[test]
fn shared_pages_go_wherever_they_are_sent() {
    let _alone = alone();
    let evict = |world: &mut World| {
        world.space.evict_device(FIRST, crate::SOON).unwrap();
        assert_eq!(where_they_are(world), (PAGES, 0));
    };
    let ram = |world: &mut World| {
        world.send(Place::Ram);
        assert_eq!(where_they_are(world), (PAGES, 0));
    };
    let other = |world: &mut World| {
        world.send(Place::Device(SECOND));
        assert_eq!(where_they_are(world), (0, 0));
    };
    let remap = |world: &mut World| {
        let (memory, len) = (world.space.memory(), world.len());
        let to = memory.map(len, Protection::empty()).unwrap();
        // SAFETY: nothing borrows the range.
        let moved = unsafe { memory.remap(world.address, len, len, true, Some(to), false) };
        world.address = moved.unwrap();
        assert_eq!(where_they_are(world), (0, PAGES));
    };
    let pin = |world: &mut World| {
        let flags = PinFlags {
            write: true,
            ..PinFlags::default()
        };
        let pins = world.space.pin_pages(world.address, world.len(), flags);
        let pins = pins.unwrap();
        write(world, 0..PAGES);
        assert_eq!(where_they_are(world), (0, PAGES));
        drop(pins);
    };
    let mirror = |world: &mut World| {
        let (address, len) = (world.address, world.len());
        let table = PageTable::new(address, len);
        // SAFETY: nothing borrows the range, and the table is only looked at.
        let mirror = unsafe { world.space.mirror(address, len, None, table) }.unwrap();
        let to_write = |found: &&Mapped| matches!(found, Mapped::Device { write: true, .. });
        let look = |need| {
            let found = mirror.range_fault(address, len, need, &[], |_, found| {
                found.iter().filter(to_write).count()
            });
            found.unwrap().0
        };
        assert_eq!(look(Need::READ), 0);
        assert_eq!(look(Need::WRITE), PAGES);
        assert_eq!(where_they_are(world), (0, PAGES));
    };
    let view = |world: &mut World| {
        // SAFETY: nothing borrows the range.
        let view = unsafe { world.space.view(world.address, world.len(), FIRST) };
        let view = view.unwrap();
        write(world, 0..PAGES);
        assert_eq!(view.check(), Ok(()));
        drop(view);
        assert_eq!(where_they_are(world), (0, PAGES));
    };
    type Way<'a> = (&'a str, &'a dyn Fn(&mut World));
    let ways: [Way<'_>; 7] = [
        ("evicted", &evict),
        ("to RAM", &ram),
        ("to another device", &other),
        ("moved", &remap),
        ("pinned", &pin),
        ("mirrored", &mirror),
        ("viewed", &view),
    ];
    for (what, way) in ways {
        for in_child in [false, true] {
            let mut world = coherent();
            let go = |world: &mut World| {
                way(world);
                world.check_all();
                world.write_all();
                world.check_all();
            };
            let stays = |world: &World| {
                world.check_all();
                assert_eq!(where_they_are(world), (0, PAGES));
            };
            let (pid, go_on) = waiting_child(|| match in_child {
                true => go(&mut world),
                false => stays(&world),
            });
            if !in_child {
                go(&mut world);
            }
            go_on();
            assert_eq!(wait(pid), End::Exit(0), "{what}, in the child: {in_child}");
            if in_child {
                stays(&world);
            }
        }
    }
}

/// The kernel writes for the program.
#[test]
fn a_system_call_that_writes_is_a_write() {
    let _alone = alone();
    let world = coherent();
    let (pid, go_on) = waiting_child(|| world.check_all());
    let bytes: Vec<u8> = (0..PAGE_SIZE).map(|i| (i % 251) as u8).collect();
    let mut file = memory_file();
    file.write_all(&bytes).unwrap();
    file.rewind().unwrap();
    // SAFETY: the page is within the range, and no reference to it is anywhere else.
    let page = unsafe { std::slice::from_raw_parts_mut(world.at(7).cast::<u8>(), PAGE_SIZE) };
    read_missing(&world.space, &file, page);
    assert_eq!(page, bytes);
    assert_eq!(where_they_are(&world), (1, PAGES - 1));
    go_on();
    assert_eq!(wait(pid), End::Exit(0));
}

/// Threads write, by themselves and by migrations, while forks come and go; and each child finds the
/// memory of its moment.
#[test]
fn forks_while_threads_write() {
    let _alone = alone();
    let world = coherent();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..2 {
            let (world, done) = (&world, &done);
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                while !done.load(SeqCst) {
                    let page = 3 * rng.below(PAGES as u64 / 3) as usize + thread as usize;
                    world.write(page);
                    world.check(page);
                }
            });
        }
        let mine = || (2..PAGES).step_by(3);
        for round in 0..30 {
            mine().for_each(|page| world.write(page));
            let pid = child(|| {
                mine().for_each(|page| world.check(page));
                mine().for_each(|page| world.write(page));
                mine().for_each(|page| world.check(page));
                0
            });
            if round % 3 == 0 {
                let _ = world
                    .space
                    .migrate(world.address, world.len(), Place::Device(FIRST));
            }
            mine().step_by(2).for_each(|page| world.write(page));
            mine().for_each(|page| world.check(page));
            let end = wait(pid);
            if end != End::Exit(0) {
                done.store(true, SeqCst);
                panic!("round {round}: {end:?}");
            }
        }
        done.store(true, SeqCst);
    });
    world.check_all();
    world.send(Place::Ram);
    world.check_all();
    assert_eq!(where_they_are(&world), (PAGES, 0));
}
