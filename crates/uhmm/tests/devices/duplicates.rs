//! Pages that are mostly read: the device keeps its copy, an unmodified page goes again for nothing,
//! and the first write to one is one fault.

use crate::calls::read_missing;
use crate::faults::{counting, faults};
use crate::{BUDGET, FIRST, World, alone, wait_until};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::Place;
use uhmm::memory::Protection;
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::Private;
use uhmm_testkit::Rng;

const PAGES: usize = 300;

fn has_duplicate(state: State) -> bool {
    matches!(
        state,
        State::System {
            duplicate: Some(_),
            ..
        }
    )
}

/// All pages read, and both in RAM and on the device.
fn both_sides() -> World {
    let world = World::new(&[Private], PAGES);
    let memory = world.space.memory();
    memory
        .read_mostly(world.address, world.len(), true)
        .unwrap();
    world.write_all();
    world.send(Place::Device(FIRST));
    read_all(&world);
    world
}

fn read_all(world: &World) {
    world.check_all();
    assert!((0..PAGES).all(|page| has_duplicate(world.state(page))));
    wait_until("all are counted", || {
        world.stats().duplicate_pages.get() == PAGES as u64
    });
}

#[test]
fn unmodified_pages_go_again_without_a_copy() {
    let _alone = alone();
    let world = both_sides();
    for round in 1..4 {
        let copied = world.stats().pages_to_device.get();
        wait_until("all are out", || {
            world.push_out();
            (0..PAGES).all(|page| matches!(world.state(page), State::Private(_)))
        });
        assert_eq!(world.stats().pages_to_device.get(), copied);
        assert_eq!(world.stats().clean_evictions.get(), round * PAGES as u64);
        assert_eq!(world.stats().duplicate_pages.get(), 0);
        assert_eq!(world.device(FIRST).pages.get(), PAGES as u64);
        read_all(&world);
    }
    // Without the hint no copy is kept.
    let memory = world.space.memory();
    memory
        .read_mostly(world.address, world.len(), false)
        .unwrap();
    world.send(Place::Device(FIRST));
    world.check_all();
    world.wait_empty(FIRST);
    assert_eq!(world.stats().duplicate_pages.get(), 0);
}

/// R15.
#[test]
fn the_first_write_is_one_fault_and_the_next_is_none() {
    let _alone = alone();
    let world = both_sides();
    let _counting = counting(&world.space);
    for page in (0..PAGES).rev() {
        let before = faults();
        world.poke(page);
        assert_eq!(faults() - before, 1, "page {page}, {:?}", world.state(page));
        world.poke(page);
        assert_eq!(faults() - before, 1, "page {page}: a second fault");
        assert!(!has_duplicate(world.state(page)));
    }
    world.wait_empty(FIRST);
    world.check_all();
    // A write to a page that is out is one fault too, and keeps nothing on the device.
    world.send(Place::Device(FIRST));
    for page in (0..PAGES).rev() {
        let before = faults();
        // SAFETY: within the mapping.
        unsafe { world.at(page).cast::<u8>().add(100).write_volatile(1) };
        assert_eq!(faults() - before, 1, "page {page}");
    }
    world.wait_empty(FIRST);
}

/// What was written after the read is what comes back, whoever has the page in between.
#[test]
fn writes_are_never_forgotten() {
    let _alone = alone();
    let world = both_sides();
    (0..PAGES).step_by(2).for_each(|page| world.write(page));
    world.push_out();
    world.check_all();
    world.protect(0..PAGES, Protection::READ);
    world.push_out();
    world.check_all();
    world.protect(0..PAGES, Protection::READ | Protection::WRITE);
    (0..PAGES).step_by(3).for_each(|page| world.write(page));
    world.push_out();
    world.check_all();
    // By the kernel, too.
    let mut from = vec![0x77u8; 4096];
    let (reader, writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut &writer, &from).unwrap();
    // SAFETY: a page of the mapping, which nobody else uses.
    let to = unsafe { std::slice::from_raw_parts_mut(world.at(1).cast::<u8>(), 4096) };
    read_missing(&world.space, &reader, to);
    world.push_out();
    from.iter_mut().for_each(|byte| *byte = 0);
    assert!(to.iter().all(|&byte| byte == 0x77));
}

#[test]
fn dropping_and_moving_pages_drops_their_duplicates() {
    let _alone = alone();
    let mut world = both_sides();
    let memory = world.space.memory();
    let to = memory.map(world.len(), Protection::empty()).unwrap();
    let len = world.len();
    // SAFETY: nothing borrows the range.
    let moved = unsafe { memory.remap(world.address, len, len, true, Some(to), false) };
    world.address = moved.unwrap();
    world.check_all();
    world.write_all();
    world.check_all();
    world.wait_empty(FIRST);
    assert_eq!(world.stats().duplicate_pages.get(), 0);
    let world = both_sides();
    let memory = world.space.memory();
    // SAFETY: nothing borrows the range.
    unsafe { memory.discard(world.address, world.len()) }.unwrap();
    (0..PAGES).for_each(|page| world.oracle.discard(page));
    world.wait_empty(FIRST);
    assert_eq!(world.stats().duplicate_pages.get(), 0);
    world.check_all();
}

/// Writers and readers of four times the budget race with reclaim, which takes clean pages for nothing.
#[test]
fn writers_race_with_reclaim() {
    let _alone = alone();
    let world = World::new(&[Private], 4 * BUDGET);
    let memory = world.space.memory();
    memory
        .read_mostly(world.address, world.len(), true)
        .unwrap();
    let begin = Instant::now();
    let going_on = || begin.elapsed() < Duration::from_secs(3);
    let writes = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..2 {
            let (world, writes) = (&world, &writes);
            scope.spawn(move || {
                let mut rng = Rng::new(30 + thread);
                while going_on() {
                    let page = rng.below(2 * BUDGET as u64) as usize * 2 + thread as usize;
                    world.check(page);
                    // Now and then at once, now and then much later.
                    if rng.one_in(3) {
                        world.write(page);
                        world.check(page);
                        writes.fetch_add(1, SeqCst);
                    }
                }
            });
        }
        scope.spawn(|| {
            while going_on() {
                world.push_out();
                thread::sleep(Duration::from_millis(20));
            }
        });
    });
    world.check_all();
    let stats = world.stats();
    assert!(writes.load(SeqCst) > 1000, "{writes:?}");
    assert!(stats.clean_evictions.get() > 1000, "{stats:?}");
    assert!(stats.ram_peak_bytes.get() <= stats.ram_budget_bytes.get());
    let (address, len) = (world.address, world.len());
    // SAFETY: nothing borrows the range.
    unsafe { memory.discard(address, len) }.unwrap();
    world.wait_empty(FIRST);
    assert_eq!(stats.duplicate_pages.get(), 0);
}

/// On a device that is full, copies of what is in RAM make room for what is not.
#[test]
fn duplicates_make_room_on_a_full_device() {
    let _alone = alone();
    let device = uhmm::device::DeviceInfo::new("test", 1200);
    let (device, _) = crate::TestDevice::boxed(device);
    let world = World::within(crate::space(512, vec![device]), 1600);
    let memory = world.space.memory();
    memory
        .read_mostly(world.address, world.len(), true)
        .unwrap();
    for round in 0..4 {
        (0..1600).for_each(|page| world.check(page));
        (0..1600).for_each(|page| {
            if page % 7 == round {
                world.write(page);
            }
        });
    }
    world.check_all();
}
