//! Memory that the CPU maps: no fault while a page is there, and whatever the program does to the
//! range, the device gets its pages back.

use crate::child::{End, child, wait};
use crate::faults::{counting, faults};
use crate::pin::pin;
use crate::{FIRST, World, alone, wait_until};
use uhmm::Place;
use uhmm::memory::Protection;
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::Coherent;

const PAGES: usize = 200;

/// All pages written, and on the device.
fn there() -> World {
    let world = World::new(&[Coherent], PAGES);
    world.write_all();
    world.send(Place::Device(FIRST));
    assert!(all_coherent(&world));
    world
}

fn all_coherent(world: &World) -> bool {
    (0..PAGES).all(|page| matches!(world.state(page), State::Coherent(_)))
}

/// The counters that a fault moves.
fn counted(world: &World) -> [u64; 4] {
    let stats = world.stats();
    [
        stats.first_touch_faults.get(),
        stats.device_faults.get(),
        stats.limbo_faults.get(),
        stats.stale_faults.get(),
    ]
}

#[test]
fn a_touch_takes_no_fault() {
    let _alone = alone();
    let world = there();
    let _counting = counting(&world.space);
    let (before, mine) = (counted(&world), faults());
    for page in 0..PAGES {
        world.peek(page);
        world.poke(page);
    }
    assert_eq!(faults(), mine, "faults of this thread");
    assert_eq!(counted(&world), before);
    // What is written there is what comes back.
    world.check_all();
    world.write_all();
    assert_eq!(counted(&world), before);
    assert!(all_coherent(&world));
    world.send(Place::Ram);
    world.check_all();
    world.wait_empty(FIRST);
    assert_eq!(counted(&world), before);
}

/// The core keeps the bytes of memory that the CPU maps: its driver is asked for none, and told of none.
#[test]
fn the_driver_has_no_part_in_the_copies() {
    let _alone = alone();
    let (world, mood) = World::moody(Coherent, PAGES);
    world.write_all();
    world.send(Place::Device(FIRST));
    world.check_all();
    world.send(Place::Ram);
    world.wait_empty(FIRST);
    let calls = [&mood.copies_in, &mood.copies_out, &mood.frees];
    assert_eq!(
        calls.map(|calls| calls.load(std::sync::atomic::Ordering::SeqCst)),
        [0; 3]
    );
}

#[test]
fn pages_on_the_device_are_not_charged_to_ram() {
    let _alone = alone();
    let world = World::new(&[Coherent], PAGES);
    let pages = (PAGES * PAGE_SIZE) as u64;
    world.write_all();
    world.rest();
    assert_eq!(world.stats().ram_bytes.get(), pages);
    world.send(Place::Device(FIRST));
    assert_eq!(world.stats().ram_bytes.get(), 0);
    assert_eq!(world.device(FIRST).pages.get(), PAGES as u64);
    assert_eq!(world.device(FIRST).stored_bytes.get(), pages);
    world.send(Place::Ram);
    assert_eq!(world.stats().ram_bytes.get(), pages);
}

/// R13: pressure puts nothing there and takes nothing away, with four times the budget in use.
#[test]
fn reclaim_neither_fills_nor_empties_it() {
    let _alone = alone();
    let space = crate::space_with(&[Coherent, uhmm_core::memory_type::MemoryType::Private]);
    let world = World::within(space, 4 * crate::BUDGET);
    (0..PAGES).for_each(|page| world.write(page));
    world.migrate(0..PAGES, Place::Device(FIRST));
    (PAGES..world.pages()).for_each(|page| world.write(page));
    world.push_out();
    assert!((0..PAGES).all(|page| matches!(world.state(page), State::Coherent(_))));
    assert_eq!(world.device(FIRST).pages.get(), PAGES as u64);
    world.check_all();
}

#[test]
fn protection_changes_leave_the_pages_where_they_are() {
    let _alone = alone();
    let world = there();
    for protection in [Protection::READ, Protection::empty()] {
        world.protect(0..PAGES, protection);
        assert!(all_coherent(&world));
        let touch = || {
            world.peek(3);
            0
        };
        let write = || {
            world.poke(3);
            0
        };
        let allowed = protection == Protection::READ;
        let expected = if allowed {
            End::Exit(0)
        } else {
            End::Signal(libc::SIGSEGV)
        };
        assert_eq!(wait(child(touch)), expected, "{protection:?}");
        assert_eq!(wait(child(write)), End::Signal(libc::SIGSEGV));
        world.protect(0..PAGES, Protection::READ | Protection::WRITE);
        world.check_all();
        world.write_all();
        assert!(all_coherent(&world));
    }
}

/// Pages leave the device although the program may not write to them, or not even read them.
#[test]
fn protected_pages_come_home() {
    let _alone = alone();
    for protection in [Protection::READ, Protection::empty()] {
        let world = there();
        world.protect(0..PAGES, protection);
        world.space.evict_device(FIRST, crate::SOON).unwrap();
        assert_eq!(world.device(FIRST).pages.get(), 0);
        if protection == Protection::READ {
            world.check_all();
        }
        let write = || {
            world.poke(3);
            0
        };
        let end = wait(child(write));
        assert_eq!(end, End::Signal(libc::SIGSEGV), "{protection:?}");
        world.protect(0..PAGES, Protection::READ | Protection::WRITE);
        world.check_all();
        world.write_all();
        world.check_all();
        world.rest();
        assert_eq!(world.stats().ram_bytes.get(), (PAGES * PAGE_SIZE) as u64);
    }
}

#[test]
fn dropped_contents_free_the_device() {
    let _alone = alone();
    let world = there();
    let memory = world.space.memory();
    // SAFETY: nothing borrows the range.
    unsafe { memory.discard(world.address, world.len() / PAGE_SIZE / 2 * PAGE_SIZE) }.unwrap();
    (0..PAGES / 2).for_each(|page| world.oracle.discard(page));
    wait_until("half of it comes back", || {
        world.device(FIRST).pages.get() == (PAGES - PAGES / 2) as u64
    });
    world.check_all();
    // SAFETY: nothing borrows the range.
    unsafe { memory.discard(world.address, world.len()) }.unwrap();
    (0..PAGES).for_each(|page| world.oracle.discard(page));
    world.wait_empty(FIRST);
    world.check_all();
    world.write_all();
    world.send(Place::Device(FIRST));
    world.check_all();
}

#[test]
fn unmapping_frees_the_device_whatever_the_protection() {
    let _alone = alone();
    for protection in [
        Protection::READ | Protection::WRITE,
        Protection::READ,
        Protection::empty(),
    ] {
        let world = there();
        world.protect(0..PAGES, protection);
        let memory = world.space.memory();
        // SAFETY: nothing borrows the range.
        unsafe { memory.unmap(world.address, world.len()) }.unwrap();
        world.wait_empty(FIRST);
        assert_eq!(wait(child(|| i32::from(world.peek(0)))), End::Signal(11));
        // The next owner of the range, and of the device's pages, sees nothing of it (R10).
        let all = Protection::READ | Protection::WRITE;
        // SAFETY: nothing borrows the range.
        unsafe { memory.map_at(world.address, world.len(), all, true) }.unwrap();
        (0..PAGES).for_each(|page| world.oracle.discard(page));
        world.check_all();
        let mut block = world.space.alloc_device_pages(FIRST, 6).unwrap();
        for i in 0..64 {
            assert!(block.with_bytes(i, &mut |data| assert!(data.0.iter().all(|&b| b == 0))));
        }
        drop(block);
        world.send(Place::Device(FIRST));
        world.check_all();
    }
}

#[test]
fn a_moved_mapping_takes_its_pages_along() {
    let _alone = alone();
    for protection in [
        Protection::READ | Protection::WRITE,
        Protection::READ,
        Protection::empty(),
    ] {
        let mut world = there();
        world.protect(0..PAGES, protection);
        let memory = world.space.memory();
        let to = memory.map(world.len(), Protection::empty()).unwrap();
        let len = world.len();
        // SAFETY: nothing borrows the range.
        world.address =
            unsafe { memory.remap(world.address, len, len, true, Some(to), false) }.unwrap();
        assert_eq!(world.address, to);
        if protection == Protection::READ | Protection::WRITE {
            assert!(all_coherent(&world));
        }
        world.protect(0..PAGES, Protection::READ | Protection::WRITE);
        world.check_all();
        world.write_all();
        world.send(Place::Device(FIRST));
        world.check_all();
        wait_until("what was left behind is free", || {
            world.device(FIRST).pages.get() == PAGES as u64
        });
        world.send(Place::Ram);
        world.check_all();
        world.wait_empty(FIRST);
    }
}

/// R7, R11: a pin made while a page is on the device stays there, and the page with it.
#[test]
fn a_page_pinned_on_the_device_stays_until_it_is_let_go() {
    let _alone = alone();
    let world = there();
    let page = world.at(7) as usize;
    let Some(pinned) = pin(page..page + PAGE_SIZE) else {
        return;
    };
    let done = world.migrate(0..PAGES, Place::Ram);
    // It is not in the migration's hands for long enough to be selected.
    assert_eq!(done.migrated, PAGES - 1);
    assert!(matches!(world.state(7), State::Coherent(_)));
    world.check_all();
    world.write(7);
    let error = world
        .space
        .evict_device(FIRST, std::time::Duration::from_millis(50));
    let uhmm::RemoveError::StillInUse(found) = error.unwrap_err() else {
        panic!("{error:?}");
    };
    assert_eq!((found.pages, found.no_ram), (1, false), "{found}");
    drop(pinned);
    world.space.evict_device(FIRST, crate::SOON).unwrap();
    world.check_all();
}
