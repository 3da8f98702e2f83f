//! R13: what goes over pages sees ordinary memory only; what asks for it is told what is there instead,
//! and nothing faults.

use crate::types::{device, range, write};
use crate::world::{BASE, BUDGET, World};
use std::sync::atomic::Ordering::SeqCst;
use uhmm_core::addr::{PageNo, PageRange};
use uhmm_core::device::CopyInError;
use uhmm_core::entry::State;
use uhmm_core::failure::Failure;
use uhmm_core::fault::Scratch;
use uhmm_core::hints::Hints;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::{MigrateVma, Select};
use uhmm_core::walk::NotOrdinary;

/// Pages 0 to 4 on a device, 4 to 8 in limbo, 8 to 12 in RAM, 12 to 16 never touched, 16 to 20 device
/// pages that are mapped, 20 to 24 in RAM, page 22 of them lost, 24 to 28 in RAM and on the device.
fn mixed() -> World {
    let world = World::pushed_out(4);
    world.write_all(24..28);
    world.push_out();
    let inside = world.space.inside().unwrap();
    inside.set_hints(range(24, 4), Hints::READ_MOSTLY).unwrap();
    drop(inside);
    world.device.fail_copy_in_after(0, CopyInError::Full);
    world.write_all(4..8);
    world.push_out();
    (24..28).rev().for_each(|page| world.check(page));
    world.write_all(8..12);
    world.write_all(20..24);
    world.device.heal();
    world.space.add_device(device(MemoryType::Generic)).unwrap();
    let block = world.space.alloc_device_pages(1, 2).unwrap();
    world.space.map_device_pages(block, BASE.plus(16)).unwrap();
    (16..20).for_each(|page| write(&world.space, page, page as u8));
    let failed = world.space.memory_failure(BASE.plus(22));
    assert_eq!(failed, Ok(Failure::Poisoned));
    world
}

fn walk(world: &World, pages: PageRange) -> (Vec<(usize, usize)>, usize) {
    let mut runs = Vec::new();
    let passed = world.space.walk_ordinary(pages, 512, |run| {
        runs.push(((run.start.0 - BASE.0) as usize, run.len));
    });
    (runs, passed.expect("no fork is going on"))
}

#[test]
fn r13_a_walk_passes_device_pages_by() {
    let world = mixed();
    let before: Vec<_> = (0..32).map(|page| world.state(page)).collect();
    assert_eq!(
        walk(&world, range(0, 32)),
        (vec![(8, 4), (20, 2), (23, 5)], 8)
    );
    assert_eq!(walk(&world, range(9, 2)), (vec![(9, 2)], 0));
    assert_eq!(walk(&world, range(10, 8)), (vec![(10, 2)], 2));
    assert_eq!(walk(&world, range(16, 4)), (vec![], 4));
    assert_eq!(walk(&world, range(12, 4)), (vec![], 0));
    assert_eq!(walk(&world, range(9, 0)), (vec![], 0));
    // However much more than the space is asked for.
    let far = PageRange::new(PageNo(BASE.0 - 1000), 8 * BUDGET);
    assert_eq!(walk(&world, far), walk(&world, range(0, 4 * BUDGET)));
    let outside = PageRange::new(BASE.plus(4 * BUDGET), 100);
    assert_eq!(walk(&world, outside), (vec![], 0));
    assert_eq!(walk(&world, PageRange::new(PageNo(3), 100)), (vec![], 0));
    let after: Vec<_> = (0..32).map(|page| world.state(page)).collect();
    assert_eq!(before, after, "nothing has moved");
}

#[test]
fn r13_a_lookup_says_what_is_there_and_never_faults() {
    let world = mixed();
    let lookup = |page: usize| world.space.lookup_ordinary(BASE.plus(page));
    let faults = || {
        let stats = world.space.stats();
        [
            stats.first_touch_faults.get(),
            stats.device_faults.get(),
            stats.limbo_faults.get(),
            stats.stale_faults.get(),
        ]
    };
    let before = faults();
    for page in 0..28 {
        let expected = match world.state(page) {
            State::Private(at) | State::Coherent(at) => Err(NotOrdinary::DevicePage(at)),
            State::None | State::Limbo(_) => Err(NotOrdinary::Missing),
            State::System { .. } => Ok(()),
            State::Poisoned => Err(NotOrdinary::Poisoned),
            State::Migrating | State::Exclusive { .. } => unreachable!(),
        };
        assert_eq!(lookup(page), expected, "page {page}");
    }
    let kinds = [0, 4, 8, 12, 16, 22, 24].map(|page| lookup(page).is_ok());
    assert_eq!(kinds, [false, false, true, false, false, false, true]);
    assert_eq!(lookup(4 * BUDGET), Err(NotOrdinary::NotManaged));
    let below = world.space.lookup_ordinary(PageNo(BASE.0 - 1));
    assert_eq!(below, Err(NotOrdinary::NotManaged));
    let args = MigrateVma {
        pages: range(8, 1),
        select: Select::SYSTEM,
        owner: None,
        except: None,
        fault_page: None,
    };
    let migration = world.space.migrate_vma(&args).unwrap();
    assert_eq!(lookup(8), Err(NotOrdinary::InFlight));
    drop(migration);
    assert_eq!(lookup(8), Ok(()));
    assert_eq!(faults(), before, "a lookup has faulted");
    world.space.check_invariants();
}

#[test]
fn r13_reclaim_never_looks_at_device_pages() {
    let world = mixed();
    let asked = || world.mmu().asked_to_take.load(SeqCst);
    let before = asked();
    world.push_out();
    // All that was ordinary, and nothing else: 8 to 12, 20 to 24 without 22, 24 to 28.
    assert_eq!(asked() - before, 11);
    for page in 16..20 {
        assert!(matches!(world.state(page), State::Coherent(_)));
    }
    assert_eq!(walk(&world, range(0, 32)), (vec![], 23));
    world.space.check_invariants();
    let mut scratch = Scratch::default();
    world.space.reclaim(&mut scratch);
    assert!(matches!(world.state(16), State::Coherent(_)));
}
