//! Pages in a device's own memory, which the device reaches where they are.

use crate::gpu::{Gpu, Memory};
use crate::world::{BUDGET, FIRST, SOON, World, alone, space};
use uhmm::Place;
use uhmm_core::entry::State;

const PAGES: usize = 32;

fn on_the_device() -> (World, Memory) {
    let own = Memory::new(64);
    let world = World::within(space(BUDGET, vec![own.device()]), PAGES);
    world.write_all();
    world.send(Place::Device(FIRST));
    (world, own)
}

#[test]
fn a_device_works_on_its_own_pages_where_they_are() {
    let _alone = alone();
    let (world, own) = on_the_device();
    let gpu = Gpu::new(&world, FIRST, &own);
    let before = world.stats().device_faults.get();
    (0..PAGES).for_each(|page| gpu.check(&world, page));
    (0..PAGES).for_each(|page| gpu.fill(&world, page));
    (0..PAGES).for_each(|page| gpu.check(&world, page));
    assert!((0..PAGES).all(|page| matches!(world.state(page), State::Private(_))));
    assert_eq!(world.stats().device_faults.get(), before, "no fault");
    // A touch of the program's finds what the device has written.
    world.check_all();
    assert!((0..PAGES).all(|page| world.is_in_ram(page)));
    // And what it had for its own it has not any more.
    world.write_all();
    (0..PAGES).for_each(|page| gpu.check(&world, page));
    world.wait_empty(FIRST);
}

/// Another device reads them from RAM.
#[test]
fn a_device_does_not_reach_the_memory_of_another() {
    let _alone = alone();
    let (world, own) = on_the_device();
    let gpu = Gpu::new(&world, FIRST, &own);
    gpu.fill(&world, 3);
    let other = world.mirror();
    let mut found = uhmm::device::PageData::ZERO;
    for page in 0..PAGES {
        other.read(world.at(page), &mut found.0).unwrap();
        world.oracle.check(page, &found);
        assert!(world.is_in_ram(page));
    }
    gpu.fill(&world, 5);
    other.read(world.at(5), &mut found.0).unwrap();
    world.oracle.check(5, &found);
    world.check_all();
}

/// What is taken from the device while it works there is taken with its last write.
#[test]
fn an_eviction_waits_for_a_write_of_the_device() {
    let _alone = alone();
    let (world, own) = on_the_device();
    let gpu = Gpu::new(&world, FIRST, &own);
    for _ in 0..20 {
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                for _ in 0..20 {
                    (0..PAGES).for_each(|page| gpu.fill(&world, page));
                    (0..PAGES).for_each(|page| gpu.check(&world, page));
                }
            });
            while !writing.is_finished() {
                let _ = world.space.evict_device(FIRST, SOON);
                let _ = world
                    .space
                    .migrate(world.address, world.len(), Place::Device(FIRST));
            }
            writing.join().unwrap();
        });
        (0..PAGES).for_each(|page| world.check(page));
        world.send(Place::Device(FIRST));
    }
    world.space.remove_device(FIRST, SOON).unwrap();
    (0..PAGES).for_each(|page| gpu.check(&world, page));
    world.check_all();
}
