//! Accounting follows the page.

use crate::{FIRST, SECOND, World, alone, wait_until};
use uhmm::{Place, Usage};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};

const PAGES: usize = 100;

#[test]
fn a_regions_charge_follows_its_pages() {
    let _alone = alone();
    let space = crate::space_with(&[Private, Coherent]);
    let mut one = space.region(PAGES * PAGE_SIZE).unwrap();
    let two = space.region(PAGES * PAGE_SIZE).unwrap();
    let of = |ram: usize, first: usize, second: usize| {
        let mut usage = Usage {
            ram,
            ..Usage::default()
        };
        usage.devices[0] = first;
        usage.devices[1] = second;
        usage
    };
    let at_rest = |region: &uhmm::Region, expected: Usage| {
        wait_until("all is at rest", || region.usage().unwrap().migrating == 0);
        assert_eq!(region.usage(), Ok(expected));
    };
    at_rest(&one, of(0, 0, 0));
    // From the last to the first, so that nothing is brought in ahead: the regions are neighbours.
    let fill = |region: &uhmm::Region, pages: usize| {
        let page = |page| region.as_ptr().wrapping_add(page * PAGE_SIZE);
        // SAFETY: within the region.
        (0..pages)
            .rev()
            .for_each(|i| unsafe { page(i).write_volatile(1) });
    };
    fill(&one, PAGES);
    at_rest(&one, of(PAGES, 0, 0));
    at_rest(&two, of(0, 0, 0));
    fill(&two, PAGES / 2);
    at_rest(&two, of(PAGES / 2, 0, 0));
    one.migrate(Place::Device(FIRST)).unwrap();
    at_rest(&one, of(0, PAGES, 0));
    two.migrate(Place::Device(SECOND)).unwrap();
    at_rest(&two, of(0, 0, PAGES));
    one.migrate(Place::Device(SECOND)).unwrap();
    at_rest(&one, of(0, 0, PAGES));
    let stats = space.internals().stats();
    assert_eq!(stats.ram_bytes.get(), 0);
    assert_eq!(stats.devices[0].pages.get(), 0);
    assert_eq!(stats.devices[1].pages.get(), 2 * PAGES as u64);
    // Part of a region.
    let quarter = one.len() / 4;
    let start = one.as_ptr() as usize;
    space.migrate(start, quarter, Place::Ram).unwrap();
    at_rest(&one, of(PAGES / 4, 0, PAGES - PAGES / 4));
    assert_eq!(space.usage(start, quarter), Ok(of(PAGES / 4, 0, 0)));
    one.clear().unwrap();
    at_rest(&one, of(0, 0, 0));
    at_rest(&two, of(0, 0, PAGES));
    drop(two);
    wait_until("all device pages come back", || {
        stats.devices[1].pages.get() == 0
    });
}

#[test]
fn duplicates_and_lost_pages_are_told_apart() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let memory = world.space.memory();
    memory
        .read_mostly(world.address, world.len(), true)
        .unwrap();
    world.write_all();
    world.send(Place::Device(FIRST));
    (0..40).for_each(|page| world.check(page));
    (0..PAGES).for_each(|page| _ = world.state(page));
    let usage = || world.space.usage(world.address, world.len()).unwrap();
    let found = usage();
    assert_eq!(found.ram, found.duplicates);
    assert!(found.ram >= 40, "{found:?}");
    assert_eq!(found.ram + found.devices[0], PAGES);
    world.write(3);
    world.state(3);
    assert_eq!(usage().duplicates, found.duplicates - 1);
    world.space.memory_failure(world.at(3) as usize).unwrap();
    let after = usage();
    assert_eq!((after.poisoned, after.ram), (1, found.ram - 1));
}
