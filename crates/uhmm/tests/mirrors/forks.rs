//! Mirrors and forks: the parent's device goes on, and the child's memory is its own.

use crate::gpu::{Gpu, Memory};
use crate::world::child::{End, child, wait};
use crate::world::{BUDGET, FIRST, World, alone, space};
use std::io::{Read, Write, pipe};
use uhmm::Place;
use uhmm::mirror::{MirrorError, NotifierError};
use uhmm_core::mirror;

const PAGES: usize = 32;

/// R16.
#[test]
fn the_device_writes_to_the_parent_and_not_to_the_child() {
    let _alone = alone();
    let own = Memory::new(64);
    let world = World::within(space(BUDGET, vec![own.device()]), PAGES);
    world.write_all();
    world.migrate(0..PAGES / 2, Place::Device(FIRST));
    let gpu = Gpu::new(&world, FIRST, &own);
    (0..PAGES).for_each(|page| gpu.check(&world, page));
    let (mut go, mut tell) = pipe().unwrap();
    let pid = child(|| {
        go.read_exact(&mut [0]).unwrap();
        // The bytes of the fork, whatever the parent's device has written since.
        world.check_all();
        let error = gpu.0.read(world.at(0), &mut [0]).unwrap_err();
        let removed = mirror::MirrorError::Notifier(NotifierError::Removed);
        assert_eq!(error, MirrorError::Mirror(removed));
        // A new one works.
        let gpu = Gpu::new(&world, FIRST, &own);
        (0..PAGES).for_each(|page| gpu.check(&world, page));
        (0..PAGES).for_each(|page| gpu.fill(&world, page));
        world.check_all();
        world.send(Place::Device(FIRST));
        (0..PAGES).for_each(|page| gpu.check(&world, page));
        drop(gpu);
        0
    });
    (0..PAGES).for_each(|page| gpu.fill(&world, page));
    (0..PAGES).for_each(|page| gpu.check(&world, page));
    tell.write_all(&[1]).unwrap();
    assert_eq!(wait(pid), End::Exit(0));
    (0..PAGES).for_each(|page| gpu.check(&world, page));
    world.check_all();
}

/// A mirror that was copied with the parent's memory is dropped in the child.
#[test]
fn a_copied_mirror_ends_in_the_child_as_it_does_in_the_parent() {
    let _alone = alone();
    let world = World::new(&[uhmm::device::MemoryType::Private], PAGES);
    world.write_all();
    let mirror = world.mirror();
    let mut found = [0];
    mirror.read(world.at(0), &mut found).unwrap();
    let pid = child(|| {
        drop(mirror);
        world.send(Place::Device(FIRST));
        world.check_all();
        drop(world.mirror());
        0
    });
    assert_eq!(wait(pid), End::Exit(0));
    world.send(Place::Device(FIRST));
    world.check_all();
}
