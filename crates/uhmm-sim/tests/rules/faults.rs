//! R15 and R18: what one fault does, and what it does not do.

use crate::allocations::{counted, uncounted};
use crate::world::{BASE, BUDGET, World, space, touch, with_reclaimer};
use uhmm_core::device::{CopyInError, Device};
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_lz4::Lz4Device;
use uhmm_mirror::MirrorDevice;
use uhmm_testkit::{Rng, content};

/// A page in each state that a touch can fault on.
fn with_page_in_each_state() -> (World, [(usize, &'static str); 3]) {
    let world = World::pushed_out(8);
    world.device.fail_copy_in_after(0, CopyInError::Full);
    world.write(100);
    world.push_out();
    world.device.heal();
    assert!(matches!(world.state(100), State::Limbo(_)));
    assert_eq!(world.state(200), State::None);
    (world, [(5, "private"), (100, "limbo"), (200, "none")])
}

#[test]
fn r15_a_write_is_one_fault() {
    let (world, pages) = with_page_in_each_state();
    for (page, state) in pages {
        assert_eq!(world.try_write(page), Ok(1), "{state}");
    }
}

#[test]
fn r15_a_write_after_a_read_is_no_fault() {
    let (world, pages) = with_page_in_each_state();
    for (page, state) in pages {
        assert_eq!(world.try_check(page), Ok(1), "{state}");
        assert_eq!(world.try_write(page), Ok(0), "{state}");
        world.check(page);
    }
}

#[test]
fn r15_whoever_waits_for_a_page_is_woken() {
    let (world, pages) = with_page_in_each_state();
    for (page, state) in pages {
        world.mmu().take_wakes();
        world.fault(page);
        let woken = world.mmu().take_wakes();
        assert!(
            woken.iter().any(|range| range.contains(BASE.plus(page))),
            "{state}: {woken:?}"
        );
        // A second fault on it, as of a second thread.
        world.fault(page);
        let woken = world.mmu().take_wakes();
        assert!(
            woken.iter().any(|range| range.contains(BASE.plus(page))),
            "{state}, again: {woken:?}"
        );
    }
}

fn faults_allocate_nothing(device: Box<dyn Device>) {
    let pages = 4 * BUDGET;
    let space = space(pages, vec![device]);
    let mut scratch = Scratch::default();
    let mut rng = Rng::new(18);
    let mut versions = vec![0; pages];
    let mut allocations = 0;
    with_reclaimer(&space, || {
        for i in 0..6 * pages {
            // Sequential stretches, so that whole windows come in, and random touches.
            let page = if i / 64 % 2 == 0 {
                i % pages
            } else {
                rng.below(pages as u64) as usize
            };
            while space.mmu().touch_read(BASE.plus(page)).is_err() {
                allocations += counted(|| space.fault(BASE.plus(page), Access::Read, &mut scratch));
            }
            versions[page] += 1;
            touch(&space, page, Access::Write, |mmu, at| {
                mmu.touch_write(at, |data| content(18, page as u64, versions[page], data))
            })
            .unwrap();
        }
    });
    let stats = space.stats();
    assert!(stats.device_faults.get() > 1000 && stats.limbo_faults.get() > 100);
    assert_eq!(allocations, 0, "a fault uses the heap: {stats:?}");
}

#[test]
fn r18_faults_allocate_nothing_with_lz4() {
    faults_allocate_nothing(Box::new(Lz4Device::new(64 << 20)));
}

#[test]
fn r18_faults_allocate_nothing_with_mirror() {
    faults_allocate_nothing(Box::new(MirrorDevice::new(64 << 20)));
}

#[test]
fn r18_the_count_of_allocations_counts() {
    assert_eq!(counted(|| drop(std::hint::black_box(Box::new(7)))), 2);
    let hidden = || uncounted(|| drop(std::hint::black_box(Box::new(7))));
    assert_eq!(counted(hidden), 0);
}

/// A fault outside of the space, or with nothing to do, ends.
#[test]
fn r18_a_fault_ends_whatever_the_page_is() {
    let (world, pages) = with_page_in_each_state();
    world
        .space
        .fault(BASE.plus(1 << 30), Access::Read, &mut Scratch::default());
    for (page, _) in pages {
        world.fault(page);
        world.fault(page);
    }
    world
        .mmu()
        .map(uhmm_core::addr::PageRange::new(BASE.plus(300), 8), false);
    world.fault(300);
    assert_eq!(world.state(300), State::None);
    world.check_invariants();
}
