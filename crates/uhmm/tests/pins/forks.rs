//! Pins and forks (R16): the parent's pins go on, and the child has none.

use crate::world::child::{End, child, wait};
use crate::world::{FIRST, World, alone, faults};
use crate::{LONGTERM, READ, WRITE, bytes};
use std::fs::File;
use std::io::{Read, Write, pipe};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use uhmm::device::PAGE_SIZE;
use uhmm::{PinError, Place};
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_core::pin;

const PAGES: usize = 32;

#[test]
fn the_parents_pins_go_on_and_the_child_has_none() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], PAGES);
        world.write_all();
        world.migrate(0..16, Place::Device(FIRST));
        let mut pin = world.pin(4..28, WRITE);
        let pid = child(|| {
            world.is_at_rest();
            world.check_all();
            world.send(Place::Device(FIRST));
            world.write_all();
            world.check_all();
            world.discard(0..PAGES).unwrap();
            let own = world.pin(2..30, LONGTERM);
            assert_eq!(world.stats().pinned_pages.get(), 28);
            assert_eq!(world.migrate(2..30, Place::Device(FIRST)).migrated, 0);
            // The guard of the parent's releases nothing here.
            pin.release().unwrap();
            let again = pin.release();
            assert_eq!(again, Err(PinError::Page(pin::PinError::Released)));
            assert_eq!(world.stats().pinned_pages.get(), 28);
            drop(own);
            world.is_at_rest();
            world.unmap(0..PAGES).unwrap();
            0
        });
        assert_eq!(wait(pid), End::Exit(0));
        assert_eq!(world.stats().pinned_pages.get(), 24);
        let done = world.migrate(4..28, Place::Device(FIRST));
        assert_eq!(done.migrated, 0, "it is pinned here still");
        world.check_all();
        pin.release().unwrap();
        world.send(Place::Ram);
        world.check_all();
        world.is_at_rest();
    }
}

/// A fork between the pin and the I/O: what the kernel writes is seen on the side that asked for it.
#[test]
fn io_after_a_fork_is_seen_by_the_side_that_does_it() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let pin = world.pin(0..PAGES, WRITE);
    let (mut go, mut tell) = pipe().unwrap();
    let pid = child(|| {
        go.read_exact(&mut [0]).unwrap();
        world.check_all();
        0
    });
    let mut zeros = File::open("/dev/zero").unwrap();
    zeros.read_exact(bytes(&pin)).unwrap();
    tell.write_all(&[1]).unwrap();
    assert_eq!(wait(pid), End::Exit(0), "the bytes of the fork");
    assert!(bytes(&pin).iter().all(|byte| *byte == 0));
    // Written to while it is shared with a child, then read by the kernel.
    let pid = child(|| 0);
    world.write_all();
    let sent = &bytes(&pin)[..2 * PAGE_SIZE];
    let (mut reader, mut writer) = pipe().unwrap();
    writer.write_all(sent).unwrap();
    let mut found = vec![0; 2 * PAGE_SIZE];
    reader.read_exact(&mut found).unwrap();
    assert!(found == sent);
    assert_eq!(wait(pid), End::Exit(0));
    world.check_all();
    drop(pin);
    world.is_at_rest();
}

/// A pin for writing has pages of its own to write to, without a fault.
#[test]
fn a_write_pin_ends_the_sharing_with_a_child() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let (mut go, mut tell) = pipe().unwrap();
    let pid = child(|| {
        go.read_exact(&mut [0]).unwrap();
        world.check_all();
        0
    });
    let pin = world.pin(0..PAGES, WRITE);
    let before = faults();
    let firsts = bytes(&pin).iter_mut().step_by(PAGE_SIZE);
    firsts.for_each(|byte| *byte = 9);
    assert_eq!(faults() - before, 0);
    tell.write_all(&[1]).unwrap();
    assert_eq!(wait(pid), End::Exit(0));
    drop(pin);
    world.is_at_rest();
}

/// Every child starts with nothing pinned, whatever its parent's threads were about.
#[test]
fn forks_while_threads_pin_and_release() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    world.write_all();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (first, flags) in [(0, READ), (16, LONGTERM)] {
            let (world, done) = (&world, &done);
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    // Refused while a fork does not end.
                    let _ = world.try_pin(first..first + 16, flags);
                    let (address, len) = (world.at(first), 8 * PAGE_SIZE);
                    let _ = world.space.migrate(address, len, Place::Device(FIRST));
                }
            });
        }
        for _ in 0..40 {
            let pid = child(|| {
                world.is_at_rest();
                world.check_all();
                world.send(Place::Ram);
                world.unmap(0..PAGES).unwrap();
                0
            });
            let end = wait(pid);
            if end != End::Exit(0) {
                done.store(true, SeqCst);
                panic!("{end:?}");
            }
        }
        done.store(true, SeqCst);
    });
    world.check_all();
    world.is_at_rest();
}
