//! Memory that fails: a good copy is used where there is one, else a touch of that page is a SIGBUS,
//! and of no other.

use crate::child::{End, child, wait};
use crate::device::{FULL, WORKS};
use crate::{DEVICE, FIRST, World, alone, wait_until};
use std::sync::atomic::Ordering::SeqCst;
use uhmm::{Failure, FailureError, Place};
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};

const PAGES: usize = 16;
const BAD: usize = 5;

/// Page [`BAD`] is lost, here and in children, whether it is read or written, and no other is.
fn only_one_is_lost(world: &World) {
    assert_eq!(world.state(BAD), State::Poisoned);
    let touches: [&dyn Fn(); 2] = [&|| _ = world.peek(BAD), &|| world.write(BAD)];
    for touch in touches {
        let pid = child(|| {
            touch();
            0
        });
        assert_eq!(wait(pid), End::Signal(libc::SIGBUS));
    }
    // By the kernel, for the program: an error, not zeros.
    let (_reader, writer) = std::io::pipe().unwrap();
    // SAFETY: a page of the mapping; nobody reads it here.
    let lost = unsafe { std::slice::from_raw_parts(world.at(BAD).cast::<u8>(), 4096) };
    let error = std::io::Write::write(&mut &writer, lost).unwrap_err();
    assert!(
        [Some(libc::EFAULT), Some(libc::EHWPOISON)].contains(&error.raw_os_error()),
        "{error}"
    );
    let others = || (0..PAGES).filter(|&page| page != BAD);
    others().for_each(|page| world.check(page));
    others().for_each(|page| world.write(page));
    others().for_each(|page| world.check(page));
    assert_eq!(world.stats().poisoned_pages.get(), 1);
    let usage = world.space.usage(world.address, world.len()).unwrap();
    assert_eq!(usage.poisoned, 1);
    // It does not go anywhere, and nothing else is held up by it.
    let done = world.migrate(0..PAGES, Place::Device(FIRST));
    assert_eq!(done.left, 0, "{done:?}");
    world.space.evict_device(FIRST, crate::SOON).unwrap();
    assert_eq!(world.state(BAD), State::Poisoned);
    // Once the contents are dropped, it is a page like others.
    // SAFETY: nothing borrows the range.
    unsafe { world.space.memory().discard(world.address, world.len()) }.unwrap();
    (0..PAGES).for_each(|page| world.oracle.discard(page));
    world.check_all();
    world.write_all();
    world.check_all();
    world.send(Place::Device(FIRST));
    world.send(Place::Ram);
    world.check_all();
    world.wait_empty(FIRST);
}

fn written(memory: uhmm_core::memory_type::MemoryType) -> World {
    let world = World::new(&[memory], PAGES);
    world.write_all();
    world
}

fn address(world: &World) -> usize {
    world.at(BAD) as usize + 77
}

#[test]
fn a_page_in_ram_is_lost() {
    let _alone = alone();
    let world = written(Private);
    world.rest();
    let failed = world.space.memory_failure(address(&world));
    assert_eq!(failed, Ok(Failure::Poisoned));
    assert_eq!(
        world.stats().ram_bytes.get() as usize,
        (PAGES - 1) * 4096,
        "its RAM is given back"
    );
    let again = world.space.memory_failure(address(&world));
    assert_eq!(again, Ok(Failure::Poisoned));
    only_one_is_lost(&world);
}

#[test]
fn a_page_in_limbo_is_lost() {
    let _alone = alone();
    let (world, mood) = World::moody(Private, PAGES);
    world.write_all();
    mood.copy_in.store(FULL, SeqCst);
    wait_until("all are in limbo", || {
        world.push_out();
        (0..PAGES).all(|page| matches!(world.state(page), State::Limbo(_)))
    });
    let failed = world.space.memory_failure(address(&world));
    assert_eq!(failed, Ok(Failure::Poisoned));
    mood.copy_in.store(WORKS, SeqCst);
    only_one_is_lost(&world);
}

#[test]
fn a_page_on_a_device_is_lost_by_either_name() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        for by_device_page in [false, true] {
            let world = written(memory);
            world.send(Place::Device(FIRST));
            let at = world.state(BAD).device_page().unwrap();
            let failed = if by_device_page {
                world.space.device_memory_failure(at)
            } else {
                world.space.memory_failure(address(&world))
            };
            assert_eq!(failed, Ok(Failure::Poisoned));
            crate::wait_until("the page is gone", || {
                world.device(FIRST).pages.get() as usize == PAGES - 1
            });
            only_one_is_lost(&world);
            // The memory that has failed is not used again.
            let again = world.space.alloc_device_page_at(at);
            assert!(again.is_err());
        }
    }
}

/// What the device itself reports as lost (R9).
#[test]
fn a_page_that_its_device_has_lost() {
    let _alone = alone();
    for by_touch in [false, true] {
        let (world, mood) = World::moody(Private, PAGES);
        world.write_all();
        world.send(Place::Device(FIRST));
        let at = world.state(BAD).device_page().unwrap();
        mood.lost.store(at.page.0 + 1, SeqCst);
        if by_touch {
            let pid = child(|| i32::from(world.peek(BAD)));
            assert_eq!(wait(pid), End::Signal(libc::SIGBUS));
            let page = world.number(BAD);
            let mut scratch = uhmm_core::fault::Scratch::default();
            let read = uhmm_core::fault::Access::Read;
            world.space.internals().fault(page, read, &mut scratch);
        } else {
            let done = world.migrate(0..PAGES, Place::Ram);
            assert_eq!((done.migrated, done.left), (PAGES - 1, 1));
        }
        mood.lost.store(0, SeqCst);
        only_one_is_lost(&world);
    }
}

#[test]
fn a_duplicate_saves_the_page() {
    let _alone = alone();
    for ram_fails in [true, false] {
        let world = World::new(&[Private], PAGES);
        let memory = world.space.memory();
        memory
            .read_mostly(world.address, world.len(), true)
            .unwrap();
        world.write_all();
        world.send(Place::Device(FIRST));
        world.check_all();
        let at = world.state(BAD).device_page().unwrap();
        let failed = if ram_fails {
            world.space.memory_failure(address(&world))
        } else {
            world.space.device_memory_failure(at)
        };
        assert_eq!(failed, Ok(Failure::Recovered));
        let on_device = world.state(BAD) == State::Private(at);
        assert_eq!(on_device, ram_fails, "{:?}", world.state(BAD));
        world.check_all();
        world.write_all();
        world.check_all();
        world.push_out();
        world.check_all();
        assert_eq!(world.stats().poisoned_pages.get(), 0);
        let reuse = world.space.alloc_device_page_at(at);
        assert!(ram_fails || reuse.is_err(), "bad memory is not used again");
    }
}

#[test]
fn memory_that_nobody_uses_is_retired() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let (space, at) = (&world.space, FIRST.page(3));
    assert_eq!(space.device_memory_failure(at), Ok(Failure::Retired));
    assert_eq!(space.device_memory_failure(at), Ok(Failure::Retired));
    assert!(space.alloc_device_page_at(at).is_err());
    let held = space.alloc_device_pages(FIRST, 0).unwrap();
    let second = held.first();
    assert_eq!(space.device_memory_failure(second), Ok(Failure::Retired));
    drop(held);
    world.wait_empty(FIRST);
    let all: Vec<_> = (2..DEVICE)
        .map(|_| space.alloc_device_pages(FIRST, 0).unwrap())
        .collect();
    let bad = |first| first == at || first == second;
    assert!(!all.iter().any(|block| bad(block.first())));
    assert!(space.alloc_device_pages(FIRST, 0).is_err());
}

#[test]
fn there_must_be_memory_that_can_fail() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let space = &world.space;
    let nothing = Err(FailureError::NothingThere);
    assert_eq!(space.memory_failure(address(&world)), nothing);
    let unknown = Err(FailureError::NoSuchPage);
    assert_eq!(space.memory_failure(4096), unknown);
    assert_eq!(space.memory_failure(usize::MAX), unknown);
    for at in [FIRST.page(DEVICE), crate::SECOND.page(0)] {
        assert_eq!(space.device_memory_failure(at), unknown);
    }
    space.remove_device(FIRST, crate::SOON).unwrap();
    assert_eq!(space.device_memory_failure(FIRST.page(0)), nothing);
    world.check_all();
}
