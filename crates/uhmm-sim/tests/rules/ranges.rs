//! R5 for what programs do to ranges: discarding and moving lose nothing, whatever happens between.

use crate::hook::Op;
use crate::world::{BASE, BUDGET, World};
use uhmm_core::addr::PageRange;
use uhmm_core::device::CopyInError;
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_sim::Fault;

/// Moves `len` pages from `from` to `to`, and compares them there.
fn relocate(world: &World, from: usize, len: usize, to: usize) {
    let mut bytes: Vec<_> = (from..from + len)
        .map(|page| {
            let mut data = uhmm_core::addr::PageData::ZERO;
            world.oracle.expected(page, &mut data);
            data
        })
        .collect();
    let inside = world.space.inside().unwrap();
    inside
        .relocate(PageRange::new(BASE.plus(from), len), BASE.plus(to))
        .unwrap();
    drop(inside);
    for (i, expected) in bytes.drain(..).enumerate() {
        let mut found = None;
        crate::world::touch(&world.space, to + i, Access::Read, |mmu, at| {
            found = Some(mmu.touch_read(at)?);
            Ok(())
        })
        .unwrap();
        assert!(found.unwrap().0 == expected.0, "page {i} of the range");
        world.oracle.discard(from + i);
        world.check(from + i);
    }
    world.check_invariants();
}

/// Pages 0 to 32 in a mix of all states: mapped, on the device, lost to nobody, never touched.
fn mixed() -> World {
    let world = World::new(BUDGET);
    world.write_all(0..24);
    world.push_out();
    (0..6).for_each(|page| world.write(page * 2));
    world.device.fail_copy_in_after(0, CopyInError::Full);
    world.write_all(16..20);
    world.push_out();
    world.write_all(17..19);
    world.device.heal();
    world
}

#[test]
fn r5_moving_a_range_keeps_its_contents_in_every_state() {
    relocate(&mixed(), 0, 32, 64);
}

#[test]
fn r5_moving_a_range_survives_failures() {
    for seed in 0..50 {
        let world = mixed();
        world.mmu().fail_at_random(seed, 3);
        relocate(&world, 0, 32, 64);
    }
}

#[test]
fn r5_moving_a_range_keeps_what_cannot_be_moved() {
    let world = mixed();
    world.mmu().share(PageRange::new(BASE, 32));
    relocate(&world, 0, 32, 64);
}

/// A fault just below the new range brings in zero pages ahead of it, in the new range: nobody has
/// touched them, but they are there.
#[test]
fn r5_moving_a_range_to_where_pages_were_brought_in_ahead() {
    for from in [0, 17, 18, 1, 20] {
        let world = mixed();
        world.write_all(64..128);
        for page in 112..128 {
            world.discard(page, 1);
        }
        world.discard(64, 1);
        // 65 to 111 are used, 112 on are fresh. Sequential faults up to 127 look further ahead.
        (112..128).for_each(|page| world.fault(page));
        world.discard(128, 16);
        (0..16).for_each(|page| world.fault(128 + page));
        relocate(&world, from, 4, 128 + 12);
    }
}

/// Who faults while the page is being discarded finds it there, or finds zeros; nothing is counted
/// twice or not at all.
#[test]
fn r5_a_fault_in_the_middle_of_a_discard() {
    let world = World::new(64);
    world.write(3);
    let space = world.space.clone();
    world.mmu().before(Op::Discard, move || {
        // A fault that waited in the queue since before the page came in.
        space.fault(BASE.plus(3), Access::Write, &mut Scratch::default());
    });
    world.discard(3, 1);
    assert_eq!(world.mmu().steps_left(), 0);
    world.check(3);
    world.check_invariants();
    world.write(3);
    world.push_out();
    world.check_invariants();
    world.check(3);
}

#[test]
fn r5_discarded_pages_read_as_zero_whatever_they_were() {
    let world = mixed();
    world.discard(0, 32);
    world.check_invariants();
    assert!((0..32).all(|page| world.state(page) == State::None));
    world.check_all();
    world.space.reclaim(&mut Scratch::default());
    assert_eq!(world.device.stored(), [], "their device pages are free");
    world.check_invariants();
}

#[test]
fn a_lost_page_that_is_moved_leaves_nothing_behind() {
    let world = World::pushed_out(4);
    let State::Private(at) = world.state(1) else {
        panic!("pushed out");
    };
    world.device.lose(at.page);
    assert_eq!(world.try_check(1), Err(Fault::Poisoned));
    let moved = PageRange::new(BASE.plus(1), 1);
    let to = BASE.plus(200);
    world.space.inside().unwrap().relocate(moved, to).unwrap();
    assert_eq!(world.try_check(200), Err(Fault::Poisoned));
    world.oracle.discard(1);
    world.check(1);
    world.check_invariants();
}
