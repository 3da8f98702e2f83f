//! Drivers that panic or fail in the middle of a copy: nothing is lost, and the process lives.

use crate::device::{FULL, PANICS, WORKS, expect_panics};
use crate::{BUDGET, FIRST, SECOND, World, alone, device, wait_until};
use std::sync::atomic::Ordering::SeqCst;
use uhmm::migrate::MigrateError;
use uhmm::{AllocError, Place};
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::Private;

const PAGES: usize = 64;

#[test]
fn a_panic_in_a_copy_to_the_device() {
    let _alone = alone();
    expect_panics();
    let (first, mood) = device(Private);
    let (second, _) = device(Private);
    let world = World::within(crate::space(BUDGET, vec![first, second]), PAGES);
    world.write_all();
    mood.good.store(20, SeqCst);
    mood.copy_in.store(PANICS, SeqCst);
    let done = world.migrate(0..PAGES, Place::Device(FIRST));
    assert_eq!((done.migrated, done.left), (20, PAGES - 20));
    assert_eq!(world.device(FIRST).pages.get(), 20, "what failed is free");
    world.check_all();
    world.write_all();
    // It counts as dead from then on. What it had is not lost, and another device does.
    mood.copy_in.store(WORKS, SeqCst);
    let refused = world
        .space
        .migrate(world.address, 4096, Place::Device(FIRST));
    assert_eq!(refused, Err(MigrateError::Device(AllocError::Removed)));
    world.send(Place::Device(SECOND));
    world.check_all();
    world.space.remove_device(FIRST, crate::SOON).unwrap();
    world.check_all();
}

#[test]
fn a_panic_in_a_copy_of_reclaim() {
    let _alone = alone();
    expect_panics();
    let (first, mood) = device(Private);
    let (second, _) = device(Private);
    let world = World::within(crate::space(512, vec![first, second]), 2048);
    mood.good.store(300, SeqCst);
    mood.copy_in.store(PANICS, SeqCst);
    world.write_all();
    world.check_all();
    assert!(world.device(SECOND).pages.get() > 0);
    world.write_all();
    world.check_all();
}

/// The same page is asked for again.
#[test]
fn a_panic_in_a_copy_from_the_device() {
    let _alone = alone();
    expect_panics();
    for by_touch in [true, false] {
        let (world, mood) = World::moody(Private, PAGES);
        world.write_all();
        world.send(Place::Device(FIRST));
        mood.bad_copies_out.store(2, SeqCst);
        if !by_touch {
            world.send(Place::Ram);
        }
        world.check_all();
        assert_eq!(mood.bad_copies_out.load(SeqCst), 0);
        assert_eq!(world.stats().poisoned_pages.get(), 0);
        world.write_all();
        world.send(Place::Device(FIRST));
        world.check_all();
    }
}

#[test]
fn a_device_that_is_full_half_way_through() {
    let _alone = alone();
    let (world, mood) = World::moody(Private, PAGES);
    world.write_all();
    mood.good.store(20, SeqCst);
    mood.copy_in.store(FULL, SeqCst);
    let done = world.migrate(0..PAGES, Place::Device(FIRST));
    assert_eq!((done.migrated, done.left), (20, PAGES - 20));
    assert_eq!(world.device(FIRST).pages.get(), 20);
    world.check_all();
    mood.copy_in.store(WORKS, SeqCst);
    world.send(Place::Device(FIRST));
    world.check_all();
    wait_until("every copy is freed once", || {
        mood.frees.load(SeqCst) == mood.copies_in.load(SeqCst)
    });
    assert!((0..PAGES).all(|page| matches!(world.state(page), State::System { .. })));
}

/// A copy made by a driver, in a migration that panics: it puts everything back.
#[test]
fn a_driver_that_panics_between_the_phases() {
    let _alone = alone();
    expect_panics();
    let (world, mood) = World::moody(Private, PAGES);
    world.write_all();
    let args = crate::driver::everything(&world);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut migration = world.space.migrate_vma(&args).unwrap();
        migration.allocate(FIRST.0).unwrap();
        let _migration = migration.copy();
        std::panic::resume_unwind(Box::new("a driver"));
    }));
    assert!(panicked.is_err());
    world.check_all();
    world.write_all();
    assert_eq!(mood.copies_in.load(SeqCst), PAGES as u64);
    assert_eq!(mood.frees.load(SeqCst), PAGES as u64);
    assert_eq!(world.device(FIRST).pages.get(), 0);
}
