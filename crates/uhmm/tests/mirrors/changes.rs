//! What the program does to its ranges is respected by the device at once.

use crate::gpu::pages;
use crate::world::{ALL, FIRST, SOON, World, alone, space_with};
use crate::{in_the_way, until_done};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::Place;
use uhmm::device::{PAGE_SIZE, PageData};
use uhmm::memory::Protection;
use uhmm::mirror::{Mapped, MirrorError, PageTable};
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_core::mirror;

const PAGES: usize = 64;

/// Whatever happens to a page, the table has forgotten it when the call returns.
#[test]
fn the_table_forgets_what_has_changed() {
    let _alone = alone();
    let world = World::new(&[Private, Coherent], PAGES);
    let mirror = world.mirror();
    let fill = || {
        (0..PAGES).for_each(|page| _ = mirror.write(world.at(page), &[1]).unwrap());
    };
    let has = |page| mirror.lock().unwrap().at(world.at(page)) != Mapped::Nothing;
    let changes: [(&str, &dyn Fn()); 7] = [
        ("migrate", &|| {
            world.migrate(10..20, Place::Device(FIRST));
        }),
        ("migrate to memory that is mapped", &|| {
            world.migrate(10..20, Place::Device(crate::world::SECOND));
        }),
        ("migrate back", &|| {
            world.migrate(10..20, Place::Ram);
        }),
        ("protect", &|| {
            world.protect(10..20, Protection::READ).unwrap();
            world.protect(10..20, ALL).unwrap();
        }),
        ("discard", &|| world.discard(10..20).unwrap()),
        ("map over", &|| world.map_over(10..20).unwrap()),
        ("unmap", &|| {
            world.unmap(10..20).unwrap();
            world.map_again(10..20);
        }),
    ];
    for (what, change) in changes {
        fill();
        if what == "migrate back" {
            world.migrate(10..20, Place::Device(crate::world::SECOND));
            fill();
        }
        assert!((0..PAGES).all(has), "{what}");
        change();
        for page in 0..PAGES {
            assert_eq!(has(page), !(10..20).contains(&page), "{what}, page {page}");
        }
    }
    fill();
    world.push_out();
    assert!(!(0..PAGES).any(has), "pushed out");
}

/// A device that writes while the program takes the right away, and gives it back: once the call has
/// returned, no write succeeds.
#[test]
fn a_change_of_protection_is_respected_at_once() {
    let _alone = alone();
    let world = World::new(&[Private, Coherent], PAGES);
    world.write_all();
    world.migrate(0..PAGES / 2, Place::Device(crate::world::SECOND));
    let mirror = world.mirror();
    // Odd while it is read-only.
    let (phase, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let (written, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for part in 0..2 {
            let (world, mirror, phase, done) = (&world, &mirror, &phase, &done);
            let (written, refused) = (&written, &refused);
            scope.spawn(move || {
                for page in (part..PAGES).step_by(2).cycle() {
                    if done.load(SeqCst) {
                        break;
                    }
                    let before = phase.load(SeqCst);
                    let write = until_done(|| mirror.write(world.at(page), &[part as u8]));
                    let after = phase.load(SeqCst);
                    if write.is_ok() {
                        let stale = before == after && before % 2 == 1;
                        assert!(!stale, "written while read-only");
                        written.fetch_add(1, SeqCst);
                    } else {
                        let wanted = mirror::MirrorError::NotWritable(world.number(page));
                        assert_eq!(in_the_way(write), wanted);
                        refused.fetch_add(1, SeqCst);
                    }
                }
            });
        }
        let seen = || written.load(SeqCst) > 0 && refused.load(SeqCst) > 0;
        until_seen(200, seen, |_| {
            world.protect(0..PAGES, Protection::READ).unwrap();
            phase.fetch_add(1, SeqCst);
            let first = |page| world.peek(page);
            let before: Vec<_> = (0..PAGES).map(first).collect();
            thread::yield_now();
            assert!((0..PAGES).map(first).eq(before), "it has changed");
            phase.fetch_add(1, SeqCst);
            world.protect(0..PAGES, ALL).unwrap();
        });
        done.store(true, SeqCst);
    });
}

/// Does it so often, and then on until all of it has been seen: machines may be slow.
fn until_seen(least: u64, seen: impl Fn() -> bool, mut round: impl FnMut(u64)) {
    let begin = Instant::now();
    for number in 1.. {
        round(number);
        if number >= least && seen() {
            return;
        }
        assert!(begin.elapsed() < SOON, "not all of it happens");
    }
}

/// A device that reads while the program drops, unmaps and maps: it sees what is there, or nothing, and
/// never anything that was dropped before it asked.
#[test]
fn what_was_dropped_is_not_read() {
    let _alone = alone();
    let world = World::new(&[Private, Coherent], PAGES);
    let mirror = world.mirror();
    // The least number that may be seen, the greatest, and the one that must be, unless that is 0.
    let (least, greatest, only) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let [full, empty, holes] = [(); 3].map(|()| AtomicU64::new(0));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for page in (0..PAGES).cycle() {
                if done.load(SeqCst) {
                    break;
                }
                let mut found = [0; 8];
                let before = (least.load(SeqCst), only.load(SeqCst));
                let read = until_done(|| mirror.read(world.at(page), &mut found));
                let after = (greatest.load(SeqCst), only.load(SeqCst));
                if read.is_err() {
                    let wanted = mirror::MirrorError::NoAccess(world.number(page));
                    assert_eq!(in_the_way(read), wanted);
                    holes.fetch_add(1, SeqCst);
                    continue;
                }
                match u64::from_ne_bytes(found) {
                    0 => empty.fetch_add(1, SeqCst),
                    number => {
                        assert!((before.0..=after.0).contains(&number), "{number} is old");
                        full.fetch_add(1, SeqCst)
                    }
                };
                if before.1 == after.1 && before.1 != 0 {
                    assert_eq!(u64::from_ne_bytes(found), before.1);
                }
            }
        });
        let seen = || [&full, &empty, &holes].iter().all(|n| n.load(SeqCst) > 0);
        until_seen(300, seen, |number| {
            greatest.store(number, SeqCst);
            for page in 0..PAGES {
                let word = world.at(page) as *mut u64;
                // SAFETY: within the mapping; the device only reads.
                unsafe { word.write_volatile(number) };
            }
            only.store(number, SeqCst);
            if number % 3 == 0 {
                world.migrate(0..PAGES, Place::Device(FIRST));
            }
            thread::yield_now();
            only.store(0, SeqCst);
            match number % 4 {
                0 => world.discard(0..PAGES).unwrap(),
                1 => world.map_over(0..PAGES).unwrap(),
                _ => {
                    world.unmap(0..PAGES).unwrap();
                    thread::sleep(Duration::from_micros(100));
                    world.map_again(0..PAGES);
                }
            }
            least.store(number + 1, SeqCst);
            thread::yield_now();
        });
        done.store(true, SeqCst);
    });
}

/// What is moved to another address is read there, and not where it was.
#[test]
fn what_is_moved_is_read_where_it_is() {
    let _alone = alone();
    let mut world = World::new(&[Private, Coherent], PAGES);
    world.write_all();
    world.migrate(0..10, Place::Device(FIRST));
    world.migrate(10..20, Place::Device(crate::world::SECOND));
    let (old, len) = (world.address, world.len());
    let space = world.space.clone();
    let to = space.memory().map(len, ALL).unwrap();
    let table = |address| PageTable::new(address, len);
    // SAFETY: pages of this test, touched by pointers alone while a device is at them.
    let [here, there] =
        [old, to].map(|at| unsafe { space.mirror(at, len, None, table(at)) }.unwrap());
    let mut found = PageData::ZERO;
    for page in 0..PAGES {
        here.read(old + pages(page), &mut found.0).unwrap();
        world.oracle.check(page, &found);
        there.read(to + pages(page), &mut found.0).unwrap();
        assert!(found.0 == [0; PAGE_SIZE]);
    }
    world.remap(to).unwrap();
    world.address = to;
    for page in 0..PAGES {
        let gone = here.read(old + pages(page), &mut found.0);
        let error = in_the_way(gone);
        assert!(matches!(error, mirror::MirrorError::NoAccess(_)), "{error}");
        there.read(to + pages(page), &mut found.0).unwrap();
        world.oracle.check(page, &found);
    }
    world.check_all();
}

/// A region that is dropped under a mirror is a hole for its device; the mirror outlasts it, and finds
/// what is mapped there next.
#[test]
fn a_region_dropped_under_a_mirror_is_a_hole() {
    let _alone = alone();
    let space = space_with(&[Private]);
    let region = space.region(pages(PAGES)).unwrap();
    let (address, len) = (region.as_ptr() as usize, region.len());
    // SAFETY: the region is not borrowed while the device works there.
    let mirror = unsafe { space.mirror(address, len, None, PageTable::new(address, len)) };
    let mirror = mirror.unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                for page in 0..PAGES {
                    match until_done(|| mirror.write(address + pages(page), &[9; 8])) {
                        Ok(_) => {}
                        Err(MirrorError::Mirror(mirror::MirrorError::NoAccess(_))) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        });
        thread::sleep(Duration::from_millis(5));
        drop(region);
        let error = in_the_way(until_done(|| mirror.write(address, &[9])));
        assert!(matches!(error, mirror::MirrorError::NoAccess(_)), "{error}");
        assert_eq!(space.usage(address, len), Err(uhmm::RangeError::Hole));
        thread::sleep(Duration::from_millis(5));
        done.store(true, SeqCst);
    });
    let memory = space.memory();
    map_at(memory, address, len);
    let mut found = [7; 8];
    mirror.read(address, &mut found).unwrap();
    assert_eq!(found, [0; 8], "nothing of it came back");
}

fn map_at(memory: &uhmm::memory::Memory, address: usize, len: usize) {
    // SAFETY: nothing is mapped there.
    unsafe { memory.map_at(address, len, ALL, true) }.unwrap();
}
