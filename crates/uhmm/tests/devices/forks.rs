//! R16: fork, with pages in every state, and both sides go on.

use crate::child::{End, child, wait};
use crate::device::{FULL, WORKS};
use crate::{BUDGET, DeviceId, FIRST, Mood, SECOND, World, alone, device, wait_until};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use uhmm::Place;
use uhmm::memory::Protection;
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{Coherent, FsDax, Private};

const PAGES: usize = 64;
const THIRD: DeviceId = DeviceId(2);
/// Pages of each state, eight of each, in this order.
const LIMBO: usize = 0;
const PRIVATE: usize = 8;
const COHERENT: usize = 16;
const DUPLICATE: usize = 24;
const SYSTEM: usize = 32;
const READ: usize = 40;
const POISONED: usize = 48;
const NONE: usize = 52;

fn each_state() -> (World, Arc<Mood>) {
    let (first, mood) = device(Private);
    let devices = vec![first, device(Coherent).0, device(FsDax).0];
    let world = World::within(crate::space(BUDGET, devices), PAGES);
    mood.copy_in.store(FULL, SeqCst);
    (LIMBO..PRIVATE).for_each(|page| world.write(page));
    wait_until("they are in limbo", || {
        world.push_out();
        (LIMBO..PRIVATE).all(|page| matches!(world.state(page), State::Limbo(_)))
    });
    mood.copy_in.store(WORKS, SeqCst);
    // From the last to the first, so that nothing is brought in ahead.
    let write = |from, to| (from..to).rev().for_each(|page| world.write(page));
    write(PRIVATE, COHERENT);
    world.migrate(PRIVATE..COHERENT, Place::Device(FIRST));
    write(COHERENT, DUPLICATE);
    world.migrate(COHERENT..DUPLICATE, Place::Device(SECOND));
    write(DUPLICATE, SYSTEM);
    let start = world.at(DUPLICATE) as usize;
    let memory = world.space.memory();
    memory.read_mostly(start, 8 * PAGE_SIZE, true).unwrap();
    world.migrate(DUPLICATE..SYSTEM, Place::Device(FIRST));
    (DUPLICATE..SYSTEM).rev().for_each(|page| world.check(page));
    write(SYSTEM, READ);
    (READ..POISONED).rev().for_each(|page| world.check(page));
    write(POISONED, NONE);
    for page in POISONED..NONE {
        world.state(page);
        world.space.memory_failure(world.at(page) as usize).unwrap();
    }
    for page in 0..PAGES {
        let state = world.state(page);
        let right = match page {
            LIMBO..PRIVATE => matches!(state, State::Limbo(_)),
            PRIVATE..COHERENT => matches!(state, State::Private(_)),
            COHERENT..DUPLICATE => matches!(state, State::Coherent(_)),
            DUPLICATE..SYSTEM => matches!(
                state,
                State::System {
                    duplicate: Some(_),
                    ..
                }
            ),
            SYSTEM..POISONED => matches!(
                state,
                State::System {
                    duplicate: None,
                    ..
                }
            ),
            POISONED..NONE => state == State::Poisoned,
            _ => state == State::None,
        };
        assert!(right, "page {page} is {state:?}");
    }
    (world, mood)
}

fn good() -> impl Iterator<Item = usize> {
    (0..PAGES).filter(|page| !(POISONED..NONE).contains(page))
}

fn check(world: &World) {
    good().for_each(|page| world.check(page));
    assert!((POISONED..NONE).all(|page| world.state(page) == State::Poisoned));
}

/// Everything is as it was, and can be changed and moved, to every device and back.
fn live_on(world: &World) {
    let migrate = |to| world.migrate(0..PAGES, to);
    check(world);
    good().step_by(2).for_each(|page| world.write(page));
    assert_eq!(migrate(Place::Device(FIRST)).left, 0);
    check(world);
    good().step_by(3).for_each(|page| world.write(page));
    assert_eq!(migrate(Place::Device(SECOND)).left, 0);
    check(world);
    good().step_by(5).for_each(|page| world.write(page));
    world.space.evict_device(SECOND, crate::SOON).unwrap();
    check(world);
    world.push_out();
    check(world);
    world.space.evict_device(FIRST, crate::SOON).unwrap();
    check(world);
    world.rest();
    let usage = world.space.usage(world.address, world.len()).unwrap();
    assert_eq!(usage.ram, good().count(), "{usage:?}");
    let ram = world.stats().ram_bytes.get() as usize;
    assert_eq!(ram, good().count() * PAGE_SIZE);
}

#[test]
fn both_sides_have_every_page_whatever_its_state() {
    let _alone = alone();
    for child_first in [false, true] {
        let (world, _mood) = each_state();
        let pid = child(|| {
            live_on(&world);
            0
        });
        let end = if child_first { Some(wait(pid)) } else { None };
        live_on(&world);
        assert_eq!(end.unwrap_or_else(|| wait(pid)), End::Exit(0));
        check(&world);
    }
}

#[test]
fn the_first_thing_after_a_fork_may_be_a_write_or_a_migration() {
    let _alone = alone();
    let writes = |world: &World| {
        good().for_each(|page| world.write(page));
        check(world);
        live_on(world);
    };
    let migrates = |to| {
        move |world: &World| {
            world.migrate(0..PAGES, to);
            check(world);
            live_on(world);
        }
    };
    let evicts = |world: &World| {
        for device in [SECOND, FIRST] {
            world.space.evict_device(device, crate::SOON).unwrap();
        }
        check(world);
        live_on(world);
    };
    let removes = |world: &World| {
        for device in [FIRST, SECOND] {
            world.space.remove_device(device, crate::SOON).unwrap();
        }
        check(world);
    };
    let pushes = |world: &World| {
        world.push_out();
        check(world);
        live_on(world);
    };
    let first: [&dyn Fn(&World); 7] = [
        &writes,
        &migrates(Place::Ram),
        &migrates(Place::Device(FIRST)),
        &migrates(Place::Device(SECOND)),
        &evicts,
        &removes,
        &pushes,
    ];
    for (i, parent) in first.iter().enumerate() {
        let (world, _mood) = each_state();
        let pids = [i, (i + 3) % first.len()].map(|other| {
            child(|| {
                first[other](&world);
                0
            })
        });
        parent(&world);
        for pid in pids {
            assert_eq!(wait(pid), End::Exit(0), "{i}");
        }
        check(&world);
    }
}

/// What one side writes, drops, moves and unmaps, the other does not see.
#[test]
fn the_sides_do_not_see_each_other() {
    let _alone = alone();
    for parent_changes in [true, false] {
        let (mut world, _mood) = each_state();
        let change = |world: &mut World| {
            good().for_each(|page| world.write(page));
            let (memory, len) = (world.space.memory(), world.len());
            // What is moved has one set of attributes.
            memory.read_mostly(world.address, len, false).unwrap();
            // SAFETY: nothing borrows the range.
            unsafe { memory.discard(world.address, len / 2) }.unwrap();
            (0..PAGES / 2).for_each(|page| world.oracle.discard(page));
            let to = memory.map(len, Protection::empty()).unwrap();
            // SAFETY: nothing borrows the range.
            let moved = unsafe { memory.remap(world.address, len, len, true, Some(to), false) };
            world.address = moved.unwrap();
            check(world);
            live_on(world);
        };
        if parent_changes {
            let (reader, writer) = std::io::pipe().unwrap();
            let pid = child(|| {
                let mut go = [0];
                std::io::Read::read_exact(&mut &reader, &mut go).unwrap();
                live_on(&world);
                0
            });
            change(&mut world);
            std::io::Write::write_all(&mut &writer, &[1]).unwrap();
            assert_eq!(wait(pid), End::Exit(0));
        } else {
            let pid = child(|| {
                change(&mut world);
                0
            });
            assert_eq!(wait(pid), End::Exit(0));
            live_on(&world);
        }
    }
}

#[test]
fn a_lost_page_is_lost_on_both_sides() {
    let _alone = alone();
    let (world, _mood) = each_state();
    let touch = || i32::from(world.peek(POISONED));
    let pid = child(|| {
        live_on(&world);
        match wait(child(touch)) {
            End::Signal(libc::SIGBUS) => 0,
            _ => 1,
        }
    });
    assert_eq!(wait(pid), End::Exit(0));
    assert_eq!(wait(child(touch)), End::Signal(libc::SIGBUS));
    live_on(&world);
}

/// Pages of a file in device memory: each side has its own from then on, as with all memory.
#[test]
fn pages_mapped_as_they_are_survive_a_fork() {
    let _alone = alone();
    let (world, _mood) = each_state();
    let block = world.space.alloc_device_pages(THIRD, 2).unwrap();
    world
        .space
        .map_device_pages(block, world.at(NONE) as usize)
        .unwrap();
    (NONE..NONE + 4).for_each(|page| world.write(page));
    let go_on = || {
        check(&world);
        (NONE..NONE + 4).for_each(|page| world.write(page));
        check(&world);
        let memory = world.space.memory();
        // SAFETY: nothing borrows the range.
        unsafe { memory.discard(world.at(NONE) as usize, 4 * PAGE_SIZE) }.unwrap();
        (NONE..NONE + 4).for_each(|page| world.oracle.discard(page));
        world.space.remove_device(THIRD, crate::SOON).unwrap();
        live_on(&world);
    };
    let pid = child(|| {
        go_on();
        0
    });
    go_on();
    assert_eq!(wait(pid), End::Exit(0));
}
