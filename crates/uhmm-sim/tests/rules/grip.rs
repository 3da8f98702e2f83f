//! Pages in hand while the program changes the mapping itself: nobody else touches one, and each is what
//! the call has made of it.

use crate::duplicates::hint;
use crate::rig::{
    DEVICE_COHERENT, DEVICE_PRIVATE, Recorder, SYSTEM, Three, Was, args, migrated, number,
};
use crate::watcher::{alone, device};
use crate::world::{World, or_abort};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm_core::addr::{PageData, PageRange};
use uhmm_core::entry::State;
use uhmm_core::error::RangeError;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::memory_type::MemoryType;
use uhmm_core::mirror::Permission;
use uhmm_core::pin::PinFlags;
use uhmm_sim::{Fault, Mapping};

fn pages(first: usize, len: usize) -> PageRange {
    PageRange::new(number(first), len)
}

/// The program unmaps pages: the kernel drops what is there.
fn unmap(world: &World, first: usize, len: usize) {
    let inside = world.space.inside().unwrap();
    let grip = inside.grip(pages(first, len)).unwrap();
    assert_eq!(grip.pages(), pages(first, len));
    assert!((first..first + len).all(|page| world.state(page) == State::Migrating));
    world.mmu().map(pages(first, len), false);
    let mut asked = 0;
    grip.forget(|gone| {
        asked += 1;
        assert_eq!(gone, pages(first, len));
        assert_eq!(world.state(first), State::Migrating, "in hand until then");
    });
    assert_eq!(asked, 1);
}

#[test]
fn pages_of_every_kind_are_gone_with_their_mapping() {
    for was in Was::ALL {
        let three = Three::new(64);
        was.make(&three, 8, 8);
        unmap(&three, 8, 8);
        for page in 8..16 {
            assert_eq!(three.state(page), State::None, "{was:?}");
            three.oracle.discard(page);
        }
        three.check_invariants();
        for device in [DEVICE_COHERENT, DEVICE_PRIVATE] {
            let stats = &three.space.stats().devices[usize::from(device)];
            assert_eq!(stats.pages.get(), 0, "{was:?}");
        }
        assert_eq!(
            three.mmu().resident(),
            three.space.stats().ram_bytes.get() as usize / 4096
        );
        // What is mapped there next is another's, and then the space's.
        three.mmu().map(pages(8, 8), true);
        three.protect(8, 8, true);
        (8..16).for_each(|page| three.check(page));
        (8..16).for_each(|page| three.write(page));
        three.push_out();
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn pages_of_every_kind_are_what_they_were_after_a_call_that_fails() {
    for was in Was::ALL {
        let three = Three::new(64);
        was.make(&three, 8, 8);
        let inside = three.space.inside().unwrap();
        drop(inside.grip(pages(4, 16)).unwrap());
        drop(inside);
        assert!((8..16).all(|page| was.is(&three, page)), "{was:?}");
        three.check_invariants();
        three.protect(8, 8, true);
        three.check_all();
        three.write_all(0..16);
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn what_has_a_duplicate_or_is_lost_is_gone_too() {
    let world = World::new(64);
    hint(&world, 0..16, true);
    world.write_all(0..16);
    world.push_out();
    let State::Private(at) = world.state(3) else {
        panic!("pushed out");
    };
    world.device.lose(at.page);
    assert_eq!(world.try_check(3), Err(Fault::Poisoned));
    (8..16).for_each(|page| world.check(page));
    assert!(world.space.stats().duplicate_pages.get() > 0);
    unmap(&world, 0, 16);
    world.check_invariants();
    assert_eq!(world.space.stats().duplicate_pages.get(), 0);
    assert_eq!(world.device.stored(), [], "the device is told (R4)");
    world.mmu().map(pages(0, 16), true);
    (0..16).for_each(|page| world.oracle.discard(page));
    (0..16).for_each(|page| world.check(page));
}

#[test]
fn r11_what_is_pinned_is_not_gripped_nor_is_what_is_beside_it() {
    let world = World::new(64);
    world.write_all(0..16);
    let how = PinFlags::default();
    let pinned = world
        .space
        .pin_pages(pages(9, 1), how, &mut Scratch::default());
    let pinned = pinned.unwrap();
    let inside = world.space.inside().unwrap();
    let refused = inside.grip(pages(0, 16)).map(drop);
    assert_eq!(refused, Err(RangeError::Pinned));
    assert!(!inside.are_home(pages(0, 16)));
    assert!((0..16).all(|page| matches!(world.state(page), State::System { .. })));
    drop(inside.grip(pages(0, 9)).unwrap());
    assert!(inside.are_home(pages(0, 9)));
    drop(inside);
    drop(pinned);
    unmap(&world, 0, 16);
    let beyond = world.space.range().len;
    let inside = world.space.inside().unwrap();
    let refused = inside.grip(pages(beyond - 1, 2)).map(drop);
    assert_eq!(refused, Err(RangeError::NotManaged));
}

/// Who has a page in flight is waited for, and who touches one meanwhile waits.
#[test]
fn pages_in_flight_are_waited_for_and_touches_wait() {
    let world = Arc::new(World::new(64));
    world.write_all(0..16);
    let migration = world.space.migrate_vma(&args(4, 2, SYSTEM)).unwrap();
    let gripped = Arc::new(AtomicBool::new(false));
    let (gripper, has) = (Arc::clone(&world), Arc::clone(&gripped));
    let other = thread::spawn(move || {
        or_abort(|| {
            let inside = gripper.space.inside().unwrap();
            let grip = inside.grip(pages(0, 16)).unwrap();
            has.store(true, SeqCst);
            thread::sleep(Duration::from_millis(50));
            // Nobody has brought it in, or taken it out.
            assert!((0..16).all(|page| gripper.state(page) == State::Migrating));
            drop(grip);
        });
    });
    thread::sleep(Duration::from_millis(20));
    assert!(!gripped.load(SeqCst), "a migration has a page in hand");
    drop(migration);
    while !gripped.load(SeqCst) {
        thread::yield_now();
    }
    let mut scratch = Scratch::default();
    world.space.fault(number(5), Access::Write, &mut scratch);
    world.push_out();
    other.join().unwrap();
    world.check_all();
    world.check_invariants();
}

#[test]
fn what_a_device_has_alone_is_the_programs_first() {
    let three = Three::new(64);
    three.write_all(0..16);
    let (_, mirror) = device(&three.space, 0, 16);
    assert_eq!(alone(&mirror, 8, 4), Ok(vec![true; 4]));
    let inside = three.space.inside().unwrap();
    let grip = inside.grip(pages(0, 16)).unwrap();
    drop(grip);
    drop(inside);
    assert!((8..12).all(|page| matches!(three.state(page), State::System { .. })));
    drop(mirror);
    three.check_all();
    three.check_invariants();
}

#[test]
fn only_what_is_at_home_is_handed_over() {
    for was in Was::ALL {
        let three = Three::new(64);
        was.make(&three, 8, 8);
        let at_home = matches!(was, Was::Hole | Was::System | Was::ReadOnly);
        let inside = three.space.inside().unwrap();
        assert_eq!(inside.are_home(pages(0, 16)), at_home, "{was:?}");
        for agrees in [false, true] {
            let grip = inside.grip(pages(0, 16)).unwrap();
            let handed_over = grip.hand_over(|_| agrees);
            assert_eq!(handed_over, at_home && agrees, "{was:?}");
            let gone = |page| three.state(page) == State::None;
            assert!((8..16).all(|page| gone(page) == handed_over || was == Was::Hole));
        }
        drop(inside);
        if at_home {
            // It is there, and nobody's; and would be adopted again.
            assert_eq!(three.space.stats().ram_bytes.get(), 0);
            three.space.check_invariants();
            three.space.inside().unwrap().adopt(pages(0, 16));
        }
        three.check_invariants();
        three.protect(8, 8, true);
        three.check_all();
        three.write_all(8..16);
        three.push_out();
        three.check_all();
        three.check_invariants();
    }
}

/// A page that was let go of after a migration was asked for is none that nobody has touched.
#[test]
fn a_hole_that_is_nobodys_is_not_given_to_a_device() {
    let three = Three::new(64);
    let all = Permission {
        read: true,
        write: true,
    };
    three.mmu().map_foreign(pages(8, 4), Mapping::Private, all);
    let done = three.to_device(4, 12, DEVICE_PRIVATE);
    assert_eq!(done.migrated, 8);
    assert!((8..12).all(|page| three.state(page) == State::None));
    three.mmu().unmap_foreign(pages(8, 4));
    three.check_all();
    three.check_invariants();
}

/// The kernel's call may drop pages of a device that the CPU maps, and the arena gets new memory.
#[test]
fn r10_a_mapped_device_page_that_is_gone_is_empty_for_the_next() {
    let world = World::beside(64, 64, vec![Recorder::of(MemoryType::Coherent, 64).boxed()]);
    world.write_all(0..8);
    let mut migration = world.space.migrate_vma(&args(0, 8, SYSTEM)).unwrap();
    migration.allocate(1).unwrap();
    assert_eq!(migration.copy().pages().finalize(), migrated(8, 0));
    unmap(&world, 0, 8);
    world.check_invariants();
    let mut block = world.space.alloc_device_pages(1, 3).unwrap();
    for i in 0..8 {
        let mut is_empty = |data: &mut PageData| assert!(data.0 == [0; 4096], "page {i}");
        assert!(block.with_bytes(i, &mut is_empty));
    }
}
