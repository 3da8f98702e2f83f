//! Pages that their device has lost, and devices that go.

use crate::in_the_way;
use crate::world::{FIRST, SOON, World, alone};
use std::sync::atomic::Ordering::SeqCst;
use uhmm::Place;
use uhmm::device::PageData;
use uhmm::mirror::{Mapped, Need};
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_core::mirror::MirrorError;

const PAGES: usize = 32;

/// R9: a fault of the device on a page that is lost is an error of its own, and nothing else is lost.
#[test]
fn a_lost_page_is_an_error_and_the_others_are_not() {
    let _alone = alone();
    let (world, mood) = World::moody(Private, PAGES);
    let mirror = world.mirror();
    world.write_all();
    world.send(Place::Device(FIRST));
    let at = world.state(5).device_page().unwrap();
    mood.lost.store(at.page.0 + 1, SeqCst);
    let mut found = PageData::ZERO;
    for _ in 0..2 {
        for page in 0..PAGES {
            let read = mirror.read(world.at(page), &mut found.0);
            if page == 5 {
                assert_eq!(in_the_way(read), MirrorError::Poisoned(world.number(5)));
            } else {
                read.unwrap();
                world.oracle.check(page, &found);
            }
        }
        let write = mirror.write(world.at(5), &[1]);
        assert_eq!(in_the_way(write), MirrorError::Poisoned(world.number(5)));
    }
    let all = mirror.range_fault(world.address, world.len(), Need::READ, &[], |_, _| ());
    assert_eq!(in_the_way(all), MirrorError::Poisoned(world.number(5)));
    let snapshot = mirror.snapshot(world.address, world.len()).unwrap();
    for (page, found) in snapshot.into_iter().enumerate() {
        assert_eq!(found == Mapped::Error, page == 5);
    }
    assert_eq!(world.stats().poisoned_pages.get(), 1);
    let others = (0..PAGES).filter(|page| *page != 5);
    others.for_each(|page| world.check(page));
    // Dropped, it is a new page.
    world.discard(5..6).unwrap();
    mirror.write(world.at(5), &[1]).unwrap();
    assert_eq!(world.peek(5), 1);
}

/// Memory that fails under the device's table.
#[test]
fn a_page_whose_memory_fails_leaves_the_table() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], PAGES);
        world.write_all();
        if memory == Coherent {
            world.send(Place::Device(FIRST));
        }
        let mirror = world.mirror();
        let mut found = PageData::ZERO;
        let mut read = |page| mirror.read(world.at(page), &mut found.0);
        (0..PAGES).for_each(|page| _ = read(page).unwrap());
        assert_ne!(mirror.lock().unwrap().at(world.at(9)), Mapped::Nothing);
        world.space.memory_failure(world.at(9)).unwrap();
        assert_eq!(mirror.lock().unwrap().at(world.at(9)), Mapped::Nothing);
        assert_eq!(in_the_way(read(9)), MirrorError::Poisoned(world.number(9)));
        assert_eq!(read(8), Ok(0));
        let others = (0..PAGES).filter(|page| *page != 9);
        others.for_each(|page| world.check(page));
    }
}

/// A device goes while another one reads its pages.
#[test]
fn a_device_is_removed_under_the_mirror_of_another() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], PAGES);
        world.write_all();
        world.send(Place::Device(FIRST));
        let mirror = world.mirror();
        let mut found = PageData::ZERO;
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| world.space.remove_device(FIRST, SOON));
            while !removing.is_finished() {
                for page in 0..PAGES {
                    mirror.read(world.at(page), &mut found.0).unwrap();
                    world.oracle.check(page, &found);
                }
            }
            removing.join().unwrap().unwrap();
        });
        world.check_all();
    }
}
