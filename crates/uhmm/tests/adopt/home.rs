//! Adopted pages go to devices and come back; other pages of the same space do, too.

use crate::{BUDGET, FIRST, SOON, World, alone, device, devices, space, wait_until};
use std::time::Duration;
use uhmm::device::PageData;
use uhmm::mirror::PageTable;
use uhmm::{Event, Hint, Place};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_linux::abi::pagemap;

const PAGES: usize = 600;

#[test]
fn pages_go_to_every_kind_of_device_and_come_back() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = World::new(space(BUDGET, vec![device]), PAGES);
        world.adopt();
        assert_eq!(world.charged(), PAGES, "{name}: what is there is charged");
        assert_eq!(world.handle().usage().unwrap().ram, PAGES);
        world.check_all();
        for _ in 0..3 {
            world.send(Place::Device(FIRST));
            assert_eq!(world.handle().usage().unwrap().devices[0], PAGES, "{name}");
            // By touch, and by request.
            (0..PAGES).step_by(3).for_each(|page| world.check(page));
            (0..PAGES).step_by(5).for_each(|page| world.write(page));
            world.send(Place::Ram);
            assert_eq!(world.handle().usage().unwrap().ram, PAGES, "{name}");
            world.check_all();
            world.push_out();
            world.check_all();
        }
        world.release();
        assert_eq!((world.charged(), world.on_device()), (0, 0), "{name}");
        world.check_released();
    }
}

#[test]
fn it_is_released_wherever_its_pages_are() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = World::new(space(BUDGET, vec![device]), PAGES);
        for round in 0..4 {
            world.adopt();
            world.send(Place::Device(FIRST));
            // Some in RAM, some on their way out, some never touched again.
            (0..PAGES)
                .skip(round)
                .step_by(7)
                .for_each(|page| world.write(page));
            world.rest();
            if round % 2 == 1 {
                world.push_out();
                (0..PAGES).step_by(11).for_each(|page| world.check(page));
            }
            world.release();
            assert_eq!((world.charged(), world.on_device()), (0, 0), "{name}");
            world.check_released();
        }
    }
}

#[test]
fn what_was_never_touched_stays_so_and_reads_as_zero() {
    let _alone = alone();
    let (device, _) = device(Private);
    let mut world = World::new(space(BUDGET, vec![device]), 64);
    world.own.advise(10..50, libc::MADV_DONTNEED);
    (10..50).for_each(|page| world.oracle.discard(page));
    // A page of the kernel's zeros.
    world.check(20);
    world.adopt();
    assert_eq!(world.charged(), 25);
    assert_eq!(world.state(11), State::None);
    world.check(12);
    world.write(40);
    assert_eq!(world.charged(), 27);
    world.push_out();
    world.check_all();
    world.write(20);
    world.check(20);
    world.release();
    world.check_released();
    assert_eq!(world.charged(), 0);
}

#[test]
fn untouched_pages_are_not_there_after_the_release_either() {
    let _alone = alone();
    let (device, _) = device(Private);
    let mut world = World::new(space(BUDGET, vec![device]), 64);
    world.own.advise(0..64, libc::MADV_DONTNEED);
    (0..64).for_each(|page| world.oracle.discard(page));
    world.adopt();
    world.write(33);
    world.release();
    let mut bytes = 0;
    pagemap::scan(world.own.range(), pagemap::PRESENT, |found, _| {
        bytes += found.len();
    })
    .unwrap();
    assert_eq!(bytes, PAGE_SIZE);
    world.check_all();
}

#[test]
fn regions_and_several_adopted_ranges_live_side_by_side() {
    let _alone = alone();
    let (first, _) = device(Private);
    let (second, _) = device(Coherent);
    let space = space(BUDGET, vec![first, second]);
    let mut region = space.region(PAGES * PAGE_SIZE).unwrap();
    region.as_mut_slice().fill(0xab);
    let mut worlds: Vec<_> = (0..8)
        .map(|i| World::new(space.clone(), 100 + 37 * i))
        .collect();
    worlds.iter_mut().for_each(World::adopt);
    for round in 0..6 {
        let to = Place::Device(uhmm::DeviceId(round % 2));
        worlds.iter().for_each(|world| world.send(to));
        region.migrate(to).unwrap();
        // One goes and another one comes, in whose place.
        let one = usize::from(round) % 8;
        worlds[one].release();
        worlds[one].check_released_alone();
        worlds.iter().for_each(World::check_all);
        worlds[one].adopt();
        worlds.iter().for_each(World::write_all);
        assert!(region.as_slice().iter().all(|&byte| byte == 0xab));
    }
    worlds.iter_mut().for_each(World::release);
    drop(region);
    worlds.iter().for_each(World::check_all);
}

impl World {
    /// As `check_released`, where others are adopted still.
    fn check_released_alone(&self) {
        let page = self.space.page_at(self.at(0) as usize);
        assert_eq!(page, None);
        self.check_all();
    }
}

#[test]
fn a_part_of_a_mapping_is_adopted_and_the_rest_is_not() {
    let _alone = alone();
    let (device, _) = device(Private);
    let world = World::new(space(BUDGET, vec![device]), 64);
    let (first, len) = (world.own.at(16), 16 * PAGE_SIZE);
    // SAFETY: a part of the test's own mapping.
    let mut adopted = unsafe { world.space.adopt(first, len) }.unwrap();
    assert_eq!(adopted.migrate(Place::Device(FIRST)).unwrap().migrated, 16);
    assert_eq!((adopted.as_ptr(), adopted.len()), (first, len));
    assert!(!adopted.is_empty());
    world.write_all();
    world.check_all();
    adopted.release(SOON).unwrap();
    drop(adopted);
    assert_eq!(world.own.flags().len(), 1, "the mapping is one again");
    world.check_released();
}

/// A large block of the C library's allocator: whole pages within.
#[test]
fn a_block_of_malloc() {
    let _alone = alone();
    let (device, _) = device(Private);
    let space = space(512, vec![device]);
    let mut block = vec![0u64; 4 << 20];
    block.iter_mut().zip(0..).for_each(|(word, i)| *word = i);
    let start = (block.as_mut_ptr() as usize).next_multiple_of(PAGE_SIZE);
    let end = (block.as_ptr_range().end as usize) / PAGE_SIZE * PAGE_SIZE;
    // SAFETY: whole pages of a block of its own, which lives longer.
    let adopted = unsafe { space.adopt(start as *mut u8, end - start) }.unwrap();
    let sum = |block: &[u64]| block.iter().zip(0..).all(|(&word, i)| word == i);
    assert!(sum(&block));
    block.iter_mut().for_each(|word| *word = !*word);
    block.iter_mut().for_each(|word| *word = !*word);
    assert!(sum(&block));
    // What was there when it was adopted leaves in its own time.
    let device = &space.internals().stats().devices[0];
    wait_until("what does not fit goes out", || device.pages.get() > 4096);
    assert!(sum(&block));
    drop(adopted);
    assert!(sum(&block));
}

#[test]
fn the_handle_keeps_the_space() {
    let _alone = alone();
    let (device, _) = device(Private);
    let mut world = World::new(space(BUDGET, vec![device]), PAGES);
    world.adopt();
    world.send(Place::Device(FIRST));
    let other = space(BUDGET, Vec::new());
    // The last clone but that of the handle.
    drop(std::mem::replace(&mut world.space, other));
    world.check_all();
    world.write_all();
    let mut adopted = world.adopted.take().unwrap();
    adopted.release(SOON).unwrap();
    // Once more is nothing to do, and nothing wrong.
    adopted.release(Duration::ZERO).unwrap();
    drop(adopted);
    world.check_all();
}

#[test]
fn pages_with_a_duplicate_come_home() {
    let _alone = alone();
    let (mut world, _) = World::adopted(Private, 64);
    world.handle().advise(uhmm::Hint::ReadMostly).unwrap();
    world.send(Place::Device(FIRST));
    world.check_all();
    world.rest();
    assert!(world.handle().usage().unwrap().duplicates > 0);
    (0..64).step_by(3).for_each(|page| world.write(page));
    world.release();
    assert_eq!((world.charged(), world.on_device()), (0, 0));
    world.check_released();
}

/// What is told of adopted pages is told by their addresses.
#[test]
fn views_events_and_numbers_have_the_programs_addresses() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let (mut world, _) = World::adopted(memory, 64);
        let mut events = world.space.events();
        let address = world.at(0) as usize;
        // SAFETY: the device writes nothing.
        let view = unsafe { world.handle().view(FIRST) }.unwrap();
        assert_eq!((view.address(), view.len()), (address, world.own.len()));
        if memory == Coherent {
            let pages = (0..64).map(|page| world.at(page) as u64);
            assert!(view.addresses().unwrap().into_iter().eq(pages));
        }
        assert_eq!(view.pages().unwrap().len(), 64);
        drop(view);
        world.space.memory_failure(address + 7 * PAGE_SIZE).unwrap();
        let told = std::iter::from_fn(|| events.try_next());
        let told: Vec<_> = told.map(|told| told.event).collect();
        let lost = address + 7 * PAGE_SIZE;
        assert!(
            told.contains(&Event::PagePoisoned { address: lost }),
            "{told:?}"
        );
        let moved = |event: &Event| matches!(event, Event::Migrated { address: first, .. } if *first == address);
        assert!(told.iter().any(moved), "{told:?}");
        for page in 0..64 {
            assert_eq!(world.number(page).address(), world.at(page) as usize);
        }
        world.release();
        assert_eq!(world.space.page_at(address), None);
    }
}

/// A device has a page table over adopted memory, until that is released.
#[test]
fn devices_mirror_adopted_memory() {
    let _alone = alone();
    let (mut world, _) = World::adopted(Private, 64);
    let space = world.space.clone();
    let (address, len) = (world.at(0) as usize, world.own.len());
    let table = PageTable::new(address, len);
    // SAFETY: what is written here is the device's alone meanwhile, and read by nobody else.
    let mirror = unsafe { space.mirror(address, len, None, table) }.unwrap();
    let mut bytes = vec![0; len];
    for round in 0..3 {
        mirror.read(address, &mut bytes).unwrap();
        for (page, bytes) in bytes.chunks(PAGE_SIZE).enumerate() {
            let mut data = PageData::ZERO;
            data.0.copy_from_slice(bytes);
            world.oracle.check(page, &data);
        }
        world.send(Place::Device(FIRST));
        (0..64)
            .skip(round)
            .step_by(3)
            .for_each(|page| world.write(page));
    }
    mirror.write(address + 5000, b"by a device").unwrap();
    // SAFETY: within the mapping.
    let written = unsafe { std::slice::from_raw_parts(world.own.at(1).add(5000 - 4096), 11) };
    assert_eq!(written, b"by a device");
    world.write(1);
    mirror
        .exclusively(address, |_, data| data.0[0] ^= 1)
        .unwrap();
    mirror
        .exclusively(address, |_, data| data.0[0] ^= 1)
        .unwrap();
    assert!(matches!(world.state(0), State::Exclusive { .. }));
    world.release();
    world.check_released();
    // It is over addresses: it sees what is there when nobody manages it, and what is adopted later.
    mirror.read(address, &mut bytes).unwrap();
    for (page, bytes) in bytes.chunks(PAGE_SIZE).enumerate() {
        let mut data = PageData::ZERO;
        data.0.copy_from_slice(bytes);
        world.oracle.check(page, &data);
    }
    world.write_all();
    world.adopt();
    world.send(Place::Device(FIRST));
    mirror.read(address, &mut bytes).unwrap();
    for (page, bytes) in bytes.chunks(PAGE_SIZE).enumerate() {
        let mut data = PageData::ZERO;
        data.0.copy_from_slice(bytes);
        world.oracle.check(page, &data);
    }
    world.release();
    world.check_released();
}

#[test]
fn hints_are_followed_in_adopted_memory() {
    let _alone = alone();
    let (mut world, _) = World::adopted(Private, 64);
    let advise = |hint| world.handle().advise(hint).unwrap();
    world.rest();
    assert_eq!(advise(Hint::DoNotNeed).migrated, 64);
    assert_eq!(world.handle().usage().unwrap().ram, 0);
    assert_eq!(advise(Hint::WillNeed).migrated, 64);
    assert_eq!(
        advise(Hint::Prefetch(Some(Place::Device(FIRST)))).migrated,
        64
    );
    world.check_all();
    world.rest();
    // SAFETY: nobody has any of it borrowed.
    unsafe {
        world
            .space
            .free_eagerly(world.at(8) as usize, 8 * PAGE_SIZE)
    }
    .unwrap();
    (8..16).for_each(|page| world.oracle.discard(page));
    assert_eq!(world.state(9), State::None);
    world.check_all();
    world.release();
    world.check_released();
}
