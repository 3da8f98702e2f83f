//! The device in a space, one phase of the core after the other: every byte against the oracle.

use super::Make;
use super::peer::Peer;
use super::world::{DEVICE, PAGES, PATIENCE, World, range};
use uhmm_core::AllocError;
use uhmm_core::addr::DevicePage;
use uhmm_core::device::{Device, Owner};
use uhmm_core::fault::Scratch;
use uhmm_core::hints::Hints;
use uhmm_core::migrate::Select;

pub(super) fn check(make: Make<'_>) {
    what_is_pushed_out_comes_back_when_it_is_touched(make);
    what_migrates_there_and_back_keeps_its_bytes(make);
    what_was_never_touched_reads_as_zeros_there(make);
    a_migration_that_is_given_up_leaves_nothing(make);
    pages_leave_by_their_numbers(make);
    eviction_empties_the_device(make);
    a_suspended_device_is_empty_until_it_is_resumed(make);
    a_chunk_that_comes_again_is_as_good_as_new(make);
    removal_loses_nothing(make);
    pages_go_to_another_device_and_back(make);
    what_is_discarded_leaves_the_device(make);
    a_clean_duplicate_is_as_good_as_the_page(make);
}

/// Memory pressure. It fills private memory only (R13).
fn what_is_pushed_out_comes_back_when_it_is_touched(make: Make<'_>) {
    let world = World::written(make, "what is pushed out comes back when it is touched");
    let private = !world.device.info().memory.is_mapped();
    for _ in 0..3 {
        world.space.push_out(&mut Scratch::default());
        world.assert(
            (world.on_device() > 0) == private,
            "pressure fills private memory, and no other",
        );
        // Backwards, so that no page is brought in ahead of its touch, and forwards.
        (0..PAGES / 2).rev().for_each(|page| world.check(page));
        world.check_all();
        world.write_some();
    }
    world.end();
}

fn what_migrates_there_and_back_keeps_its_bytes(make: Make<'_>) {
    let world = World::written(make, "what migrates to the device and back keeps its bytes");
    let owner = world.space.owner(DEVICE);
    let another = owner.map(|owner| Owner(!owner.0));
    for _ in 0..3 {
        let went = world.push_all();
        world.assert(
            world.pull(0, PAGES, another) == 0,
            "its pages are not another's",
        );
        // A touch brings private pages back, and finds coherent ones where they are.
        (0..PAGES / 4).for_each(|page| world.check(page));
        world.write_some();
        let left = world.on_device();
        world.assert(left <= went, "pages go there by request only");
        let came = world.pull(0, PAGES, owner);
        world.assert(
            came == left,
            format_args!("{came} of {left} pages came back"),
        );
        world.check_all();
        world.assert_empty();
    }
    world.end();
}

fn what_was_never_touched_reads_as_zeros_there(make: Make<'_>) {
    let world = World::new(make, "what was never touched reads as zeros on the device");
    // Old bytes everywhere, which nobody may see (R10).
    for _ in 0..2 {
        (0..PAGES).for_each(|page| world.write(page));
        world.push_all();
        world.discard(0, PAGES);
        world.evict();
        world.push_all();
        world.check_all();
        world.discard(0, PAGES);
        world.space.reclaim(&mut Scratch::default());
    }
    world.end();
}

/// After each phase in turn.
fn a_migration_that_is_given_up_leaves_nothing(make: Make<'_>) {
    let rule = "a migration that is given up leaves nothing on the device";
    let world = World::written(make, rule);
    for phases in 0..3 {
        let migration = world
            .space
            .migrate_vma(&world.args(0, PAGES, Select::SYSTEM));
        let mut migration = world.expect("the range can be migrated", migration);
        world.expect("an empty device has pages", migration.allocate(DEVICE));
        match phases {
            0 => drop(migration),
            1 => drop(migration.copy()),
            _ => drop(migration.copy().pages()),
        }
        world.assert_empty();
        world.check_all();
    }
    world.end();
}

fn pages_leave_by_their_numbers(make: Make<'_>) {
    let world = World::written(make, "pages leave by their device numbers");
    let went = world.push_all();
    let pages = (0..PAGES).filter_map(|page| Some(world.state(page).device_page()?.page));
    let end = pages.map(|page| page.0 + 1).max().unwrap_or(0) as usize;
    let mut came = 0;
    for first in (0..end).step_by(48) {
        let len = 48.min(end - first);
        let migration = world
            .space
            .migrate_device_range(DEVICE, DevicePage(first as u32), len);
        let mut migration = world.expect("pages of the device", migration);
        migration.to_system();
        came += migration.copy().pages().finalize().migrated;
    }
    world.assert(came == went, format_args!("{came} of {went} pages came"));
    world.assert_empty();
    world.end();
}

fn eviction_empties_the_device(make: Make<'_>) {
    let world = World::written(make, "eviction empties the device");
    for _ in 0..3 {
        world.push_all();
        world.evict();
        world.assert_empty();
        world.check_all();
        world.write_some();
    }
    world.end();
}

fn a_suspended_device_is_empty_until_it_is_resumed(make: Make<'_>) {
    let world = World::written(make, "a suspended device is empty until it is resumed");
    for _ in 0..2 {
        world.push_all();
        let suspended = world
            .space
            .suspend_device(DEVICE, PATIENCE, &mut Scratch::default());
        world.expect("every page leaves the device", suspended);
        world.assert_empty();
        world.assert(world.push(0, PAGES) == 0, "a suspended device takes pages");
        world.check_all();
        world.assert(world.space.resume_device(DEVICE), "it was suspended");
    }
    world.push_all();
    world.end();
}

fn a_chunk_that_comes_again_is_as_good_as_new(make: Make<'_>) {
    let world = World::written(make, "a chunk that comes again is as good as new");
    for _ in 0..2 {
        world.push_all();
        let chunks = world.device.chunks();
        let removed = world
            .space
            .remove_chunk(DEVICE, 0, PATIENCE, &mut Scratch::default());
        world.expect("every page leaves the chunk", removed);
        world.assert(
            world.device.chunks() == chunks - 1,
            "the device is told of the end of a chunk",
        );
        world.check_all();
        world.expect(
            "the device has memory for what it has just given back",
            world.space.add_chunk(DEVICE, 0),
        );
        world.write_some();
    }
    world.push_all();
    world.end();
}

fn removal_loses_nothing(make: Make<'_>) {
    let world = World::written(make, "removal loses nothing");
    world.push_all();
    let removed = world
        .space
        .remove_device(DEVICE, PATIENCE, &mut Scratch::default());
    world.expect("every page leaves the device", removed);
    world.assert(
        world.device.chunks() == 0,
        "a device that was removed has no chunk",
    );
    let allocated = world.space.alloc_device_pages(DEVICE, 0).err();
    world.assert(
        allocated == Some(AllocError::Removed),
        "a device that was removed takes pages",
    );
    world.end_empty();
}

fn pages_go_to_another_device_and_back(make: Make<'_>) {
    let world = World::written(make, "pages go to another device and back");
    let added = world.space.add_device(Box::<Peer>::default());
    let peer = world.expect("a space takes another device", added);
    let on_devices = world.args(0, PAGES, Select::DEVICE_PRIVATE | Select::DEVICE_COHERENT);
    for _ in 0..2 {
        let went = world.push_all();
        let there = world.migrate(&on_devices, peer);
        world.assert(
            there == went,
            format_args!("{there} of {went} pages went on to the other device"),
        );
        world.assert_empty();
        let back = world.migrate(&on_devices, DEVICE);
        world.assert(back > 0, "an empty device takes a page at least");
        world.write_some();
        world.check_all();
        world.pull(0, PAGES, None);
    }
    world.end();
}

fn what_is_discarded_leaves_the_device(make: Make<'_>) {
    let world = World::written(make, "what is discarded leaves the device");
    world.push_all();
    // The end of a program's memory: freed by its threads, and told to the device by the reclaimer.
    world.discard(PAGES / 2, PAGES / 2);
    world.check_all();
    world.push(0, PAGES);
    world.discard(0, PAGES);
    world.space.reclaim(&mut Scratch::default());
    world.assert_empty();
    world.end();
}

/// A page that is read keeps its copy on the device, and is not copied again.
fn a_clean_duplicate_is_as_good_as_the_page(make: Make<'_>) {
    let world = World::written(make, "a clean duplicate is as good as the page");
    let inside = world.expect("the space is open", world.space.inside());
    let hinted = inside.set_hints(range(0, PAGES), Hints::READ_MOSTLY);
    world.expect("a hint is taken", hinted);
    drop(inside);
    for _ in 0..3 {
        world.push(0, PAGES);
        world.check_all();
        world.space.push_out(&mut Scratch::default());
        world.check_all();
        world.write_some();
    }
    world.end();
}
