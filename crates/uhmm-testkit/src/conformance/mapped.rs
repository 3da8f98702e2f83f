//! A device whose memory programs map as it is: it never migrates, and ends when it is unmapped.

use super::Make;
use super::world::{DEVICE, PAGES, PATIENCE, World, range};
use std::time::Duration;
use uhmm_core::addr::DevicePage;
use uhmm_core::device::Device;
use uhmm_core::evict::RemoveError;
use uhmm_core::fault::Scratch;
use uhmm_core::migrate::MigrateError;

pub(super) fn check(make: Make<'_>) {
    let rule = "what is mapped as it is stays there until it is unmapped";
    let world = World::new(make, rule);
    let pages = PAGES.min(world.device.info().capacity_pages as usize);
    for round in 0..3 {
        for page in 0..pages {
            let block = world.space.alloc_device_pages(DEVICE, 0);
            let block = world.expect("a free page is handed out", block);
            let mapped = world.space.map_device_pages(block, range(page, 1).start);
            world.expect("an untouched page can be mapped", mapped);
            // A page of a file holds what it held; any other is cleared (R10).
            if !world.device.info().memory.keeps_bytes() {
                world.check(page);
            }
            world.write(page);
        }
        let migration = world.space.migrate_device_range(DEVICE, DevicePage(0), 1);
        world.assert(
            migration.err() == Some(MigrateError::DoesNotMigrate),
            "it migrates",
        );
        world.assert(world.push(0, PAGES) == 0, "pages come to it by migration");
        world.assert(world.pull(0, PAGES, None) == 0, "its pages go by migration");
        world.space.push_out(&mut Scratch::default());
        world.assert(world.on_device() == pages, "its pages go under pressure");
        world.check_all();
        if round == 2 {
            still_in_use(&world, pages);
        }
        world.discard(0, PAGES);
        world.space.reclaim(&mut Scratch::default());
        world.assert_empty();
    }
    let removed = world
        .space
        .remove_device(DEVICE, PATIENCE, &mut Scratch::default());
    world.expect("nothing holds the device any more", removed);
    world.assert(
        world.device.chunks() == 0,
        "a device that was removed has no chunk",
    );
    world.end_empty();
}

/// Removal says what holds it up, and takes nothing from the program.
fn still_in_use(world: &World, pages: usize) {
    let patience = Duration::from_millis(5);
    let removed = world
        .space
        .remove_device(DEVICE, patience, &mut Scratch::default());
    match removed {
        Err(RemoveError::StillInUse(by)) if by.mapped == pages => world.check_all(),
        other => world.fail(format_args!("removal with {pages} mapped pages: {other:?}")),
    }
}
