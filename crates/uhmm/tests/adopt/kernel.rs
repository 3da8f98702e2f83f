//! What the kernel does by itself: huge pages, system calls, and what the program has asked of it.

use crate::calls::{read_missing, write_missing};
use crate::file::memory_file;
use crate::own::Own;
use crate::{FIRST, World, alone, device, devices, space};
use uhmm::Place;
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_linux::abi::pagemap;

fn has(own: &Own, flag: &str) -> bool {
    let flags = own.flags();
    flags
        .iter()
        .all(|flags| flags.split(' ').any(|f| f == flag))
}

fn huge_bytes(own: &Own) -> usize {
    let mut bytes = 0;
    pagemap::scan(own.range(), pagemap::HUGE, |found, _| bytes += found.len()).unwrap();
    bytes
}

#[test]
fn memory_of_huge_pages_is_adopted() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = World::new(space(2048, vec![device]), 1024);
        world.own.advise(0..1024, libc::MADV_DONTNEED);
        world.own.advise(0..1024, libc::MADV_HUGEPAGE);
        world.write_all();
        if huge_bytes(&world.own) == 0 {
            eprintln!("NOT CHECKED: huge pages, since the machine gives none");
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"));
        }
        world.adopt();
        assert_eq!(world.charged(), 1024);
        world.check_all();
        for page in (0..1024).step_by(100) {
            let address = world.at(page) as usize;
            let to = Place::Device(FIRST);
            world.space.migrate(address, PAGE_SIZE, to).unwrap();
        }
        world.check_all();
        world.send(Place::Device(FIRST));
        world.write_all();
        world.check_all();
        world.release();
        assert!(
            has(&world.own, "hg"),
            "{name}: as the program has asked for"
        );
        world.check_released();
    }
}

/// Without a device whose frames the CPU maps there is nothing to keep the kernel away from.
#[test]
fn what_the_program_has_asked_of_the_kernel_stays() {
    let _alone = alone();
    for (memory, wanted) in [
        (Private, None),
        (Private, Some((libc::MADV_HUGEPAGE, "hg"))),
        (Private, Some((libc::MADV_NOHUGEPAGE, "nh"))),
        (Coherent, Some((libc::MADV_HUGEPAGE, "hg"))),
        (Coherent, Some((libc::MADV_NOHUGEPAGE, "nh"))),
    ] {
        let mut world = World::new(space(2048, vec![device(memory).0]), 512);
        if let Some((advice, _)) = wanted {
            world.own.advise(0..512, advice);
        }
        let before = world.own.flags();
        world.adopt();
        if memory == Coherent {
            assert!(has(&world.own, "nh"), "no page of a device is collapsed");
        }
        world.send(Place::Device(FIRST));
        world.release();
        assert_eq!(world.own.flags(), before);
        world.check_released();
    }
}

/// A device whose frames the CPU maps comes later.
#[test]
fn the_kernel_is_kept_away_once_there_is_a_reason() {
    let _alone = alone();
    let mut world = World::new(space(2048, vec![device(Private).0]), 512);
    world.own.advise(0..512, libc::MADV_HUGEPAGE);
    world.adopt();
    assert!(has(&world.own, "hg"));
    let second = world.space.add_device(device(Coherent).0).unwrap();
    assert!(has(&world.own, "nh"));
    world.send(Place::Device(second));
    world.check_all();
    world.release();
    assert!(has(&world.own, "hg"));
    world.check_released();
}

#[test]
fn huge_pages_are_made_of_adopted_pages_by_request() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let mut world = World::new(space(2048, vec![device(memory).0]), 1024);
        world.adopt();
        let (address, len) = (world.at(0) as usize, world.own.len());
        let applied = world.space.collapse(address, len).unwrap();
        assert_eq!(applied.pages, huge_bytes(&world.own) / PAGE_SIZE);
        assert_eq!(applied.pages, 1024);
        world.check_all();
        world.send(Place::Device(FIRST));
        world.check_all();
        world.release();
        world.check_released();
    }
}

/// Taken by the kernel, in the middle of a system call (which is told of them in the signal engine).
#[test]
fn system_calls_find_adopted_pages() {
    use std::io::Seek;
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = World::new(space(512, vec![device]), 2048);
        let mut file = memory_file();
        if name == "coherent" {
            // RAM alone does not do, and reclaim puts nothing there.
            world.space.add_device(crate::device(Private).0).unwrap();
        }
        world.adopt();
        world.push_out();
        // SAFETY: the test's own mapping, and nobody else's just now.
        let bytes = unsafe { std::slice::from_raw_parts_mut(world.own.at(0), world.own.len()) };
        write_missing(&world.space, &file, bytes);
        world.push_out();
        file.rewind().unwrap();
        read_missing(&world.space, &file, bytes);
        world.check_all();
        world.release();
        world.check_released();
    }
}
