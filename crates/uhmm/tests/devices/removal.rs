//! Devices are emptied, suspended and removed while programs use their pages.

use crate::{BUDGET, FIRST, SECOND, SHORT, TestDevice, World, alone, device, wait_until};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::DeviceInfo;
use uhmm::migrate::MigrateError;
use uhmm::{AddChunkError, AllocError, DeviceId, Hold, Place, RemoveError, StillInUse};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{self, Coherent, Private};
use uhmm_testkit::Rng;

/// What holds a removal up.
fn in_use(result: Result<(), RemoveError>) -> StillInUse {
    match result {
        Err(RemoveError::StillInUse(found)) => found,
        other => panic!("{other:?}"),
    }
}

/// Four threads count up in pages of a device that goes, comes back as another one, and goes again.
#[test]
fn threads_use_the_pages_of_a_device_that_is_removed() {
    let _alone = alone();
    const PAGES: usize = 1200;
    for memory in [Private, Coherent] {
        let (gone, mood) = device(memory);
        let devices = vec![gone, device(Private).0];
        // Less than fits, so that reclaim is at work too.
        let world = World::within(crate::space(1024, devices), PAGES);
        let counter = |page: usize| {
            // SAFETY: within the mapping, aligned, and only ever used as this.
            unsafe { AtomicU64::from_ptr(world.at(page).cast()) }
        };
        let done = AtomicBool::new(false);
        let counted: Vec<u64> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|thread| {
                    let (done, counter) = (&done, &counter);
                    scope.spawn(move || {
                        let (mut rng, mut counted) = (Rng::new(thread), 0);
                        while !done.load(SeqCst) {
                            counter(rng.below(PAGES as u64) as usize).fetch_add(1, SeqCst);
                            counted += 1;
                        }
                        counted
                    })
                })
                .collect();
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(600) {
                let half = world.len() / 2;
                let _ = world
                    .space
                    .migrate(world.address, half, Place::Device(FIRST));
            }
            world.space.remove_device(FIRST, crate::SOON).unwrap();
            assert_eq!(world.device(FIRST).pages.get(), 0);
            thread::sleep(Duration::from_millis(100));
            done.store(true, SeqCst);
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let found: u64 = (0..PAGES).map(|page| counter(page).load(SeqCst)).sum();
        assert_eq!(found, counted.iter().sum::<u64>(), "{memory:?}");
        assert_eq!(mood.chunks_removed.load(SeqCst), 1);
        if memory == Private {
            let (made, freed) = (mood.copies_in.load(SeqCst), mood.frees.load(SeqCst));
            assert_eq!(made, freed, "every copy is freed once (R4)");
        }
    }
}

#[test]
fn what_holds_a_removal_up_is_reported() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], 64);
        world.write_all();
        world.send(Place::Device(FIRST));
        let at = world.state(9).device_page().unwrap();
        let held = world.space.hold_device_page(at, Hold::default()).unwrap();
        let begin = Instant::now();
        let found = in_use(world.space.remove_device(FIRST, SHORT));
        assert!((SHORT..Duration::from_secs(2)).contains(&begin.elapsed()));
        let expected = StillInUse {
            pages: 1,
            held: 1,
            ..StillInUse::default()
        };
        assert_eq!(found, expected, "{found}");
        assert!(found.to_string().contains("held by somebody"), "{found}");
        (0..64)
            .filter(|&page| page != 9)
            .for_each(|page| world.check(page));
        drop(held);
        world.space.remove_device(FIRST, crate::SOON).unwrap();
        world.check_all();
    }
    let world = World::new(&[Private], 1);
    let in_hand = world.space.alloc_device_pages(FIRST, 3).unwrap();
    let found = in_use(world.space.remove_device(FIRST, SHORT));
    assert_eq!((found.pages, found.held), (8, 8));
    drop(in_hand);
    world.space.remove_device(FIRST, crate::SOON).unwrap();
}

/// A page that somebody holds for a while can be touched: the touch waits.
#[test]
fn a_touch_of_a_held_page_waits() {
    let _alone = alone();
    let world = World::new(&[Private], 8);
    world.write_all();
    world.send(Place::Device(FIRST));
    let at = world.state(3).device_page().unwrap();
    let held = world.space.hold_device_page(at, Hold::default()).unwrap();
    let touched = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            world.check(3);
            touched.store(true, SeqCst);
        });
        thread::sleep(Duration::from_millis(50));
        assert!(!touched.load(SeqCst), "another holder may write to it (R7)");
        drop(held);
    });
    world.check_all();
}

#[test]
fn a_device_that_is_gone_is_gone() {
    let _alone = alone();
    let world = World::new(&[Private, Coherent], 64);
    world.write_all();
    world.send(Place::Device(FIRST));
    let space = &world.space;
    let remove = |device| space.remove_device(device, crate::SOON);
    assert_eq!(remove(DeviceId(2)), Err(RemoveError::NoSuchDevice));
    assert_eq!(remove(DeviceId(200)), Err(RemoveError::NoSuchDevice));
    assert_eq!(remove(FIRST), Ok(()));
    assert_eq!(remove(FIRST), Err(RemoveError::AlreadyRemoved));
    let removed = Some(AllocError::Removed);
    assert_eq!(space.alloc_device_pages(FIRST, 0).err(), removed);
    let none = space.alloc_device_pages(DeviceId(9), 0);
    assert_eq!(none.err(), Some(AllocError::NoSuchDevice));
    let at = space.alloc_device_page_at(FIRST.page(0));
    assert_eq!(at.err(), removed);
    let refused = space.migrate(world.address, world.len(), Place::Device(FIRST));
    assert_eq!(refused, Err(MigrateError::Device(AllocError::Removed)));
    assert_eq!(space.add_chunk(FIRST, 0), Err(AddChunkError::Removed));
    assert!(!space.resume_device(FIRST));
    assert_eq!(space.evict_device(FIRST, crate::SOON), Ok(()));
    world.check_all();
    // Its place is not used again.
    assert_eq!(space.add_device(device(Private).0).unwrap(), DeviceId(2));
    world.send(Place::Device(DeviceId(2)));
    world.check_all();
    world.push_out();
    world.check_all();
    assert_eq!(remove(SECOND), Ok(()));
}

#[test]
fn a_suspended_device_is_empty_until_it_is_resumed() {
    let _alone = alone();
    let world = World::new(&[Private], 4 * BUDGET / 3);
    world.write_all();
    let space = &world.space;
    // There is more than fits: what is on the device has no other place, so it takes its time.
    let found = in_use(space.suspend_device(FIRST, SHORT));
    assert!(found.in_space > 0 && found.no_ram, "{found:?}");
    let (address, third) = (world.address, world.len() / 3 / PAGE_SIZE * PAGE_SIZE);
    // SAFETY: nothing borrows the range.
    unsafe { space.memory().discard(address, third) }.unwrap();
    (0..third / PAGE_SIZE).for_each(|page| world.oracle.discard(page));
    space.suspend_device(FIRST, crate::SOON).unwrap();
    assert_eq!(world.device(FIRST).pages.get(), 0);
    assert!(space.alloc_device_pages(FIRST, 0).err() == Some(AllocError::Suspended));
    world.push_out();
    assert_eq!(world.device(FIRST).pages.get(), 0);
    (third / PAGE_SIZE..world.pages()).for_each(|page| world.check(page));
    assert!(space.resume_device(FIRST));
    assert!(!space.resume_device(FIRST), "it is not suspended");
    wait_until("pages go there again", || {
        world.push_out();
        world.device(FIRST).pages.get() > 0
    });
    world.check_all();
}

/// Whoever removes a device while another does, the driver is told of each chunk once.
#[test]
fn several_threads_remove_the_same_device() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let (world, mood) = chunky(memory);
        world.write_all();
        world.send(Place::Device(FIRST));
        let removed = AtomicU64::new(0);
        thread::scope(|scope| {
            for thread in 0..4 {
                let (world, removed) = (&world, &removed);
                scope.spawn(move || {
                    let result = world.space.remove_device(FIRST, crate::SOON);
                    match result {
                        Ok(()) => _ = removed.fetch_add(1, SeqCst),
                        Err(error) => assert_eq!(error, RemoveError::AlreadyRemoved),
                    }
                    (0..world.pages())
                        .filter(|page| page % 4 == thread)
                        .for_each(|page| world.write(page));
                });
            }
        });
        assert!(removed.load(SeqCst) >= 1);
        assert_eq!(mood.chunks_removed.load(SeqCst), 4);
        world.check_all();
        world.wait_empty(FIRST);
    }
}

/// A device of four chunks.
fn chunky(memory: MemoryType) -> (World, std::sync::Arc<crate::Mood>) {
    let info = DeviceInfo::new("chunky", 2000)
        .memory(memory)
        .chunk_pages(512);
    let (device, mood) = TestDevice::boxed(info);
    let world = World::within(crate::space(BUDGET, vec![device]), 1800);
    (world, mood)
}

#[test]
fn chunks_come_and_go() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let (world, mood) = chunky(memory);
        let space = &world.space;
        assert_eq!(mood.chunks_added.load(SeqCst), 1, "one to begin with");
        world.write_all();
        world.send(Place::Device(FIRST));
        assert_eq!(mood.chunks_added.load(SeqCst), 4);
        let in_chunk = |chunk: u32| {
            let at = |page| world.state(page).device_page();
            let pages = (0..world.pages()).filter_map(at);
            pages.filter(|at| at.page.0 / 512 == chunk).count()
        };
        assert_eq!(in_chunk(1), 512);
        assert_eq!(space.evict_chunk(FIRST, 1, crate::SOON), Ok(()));
        assert_eq!((in_chunk(1), in_chunk(0)), (0, 512));
        assert_eq!(space.add_chunk(FIRST, 1), Err(AddChunkError::AlreadyThere));
        world.send(Place::Device(FIRST));
        assert_eq!(in_chunk(1), 512);
        let held = world.state(600).device_page().unwrap();
        let chunk = held.page.0 / 512;
        let held = space.hold_device_page(held, Hold::default()).unwrap();
        let remove = |patience| space.remove_chunk(FIRST, chunk as usize, patience);
        let found = in_use(remove(SHORT));
        assert_eq!((found.pages, found.held), (1, 1));
        let dying = space.add_chunk(FIRST, chunk as usize);
        assert_eq!(dying, Err(AddChunkError::AlreadyThere));
        drop(held);
        assert_eq!(remove(crate::SOON), Ok(()));
        assert_eq!(remove(crate::SOON), Err(RemoveError::AlreadyRemoved));
        assert_eq!(mood.chunks_removed.load(SeqCst), 1);
        assert_eq!(in_chunk(chunk), 0);
        world.check_all();
        // What is left of the device is full, and the chunk stays away.
        let done = world.migrate(0..world.pages(), Place::Device(FIRST));
        assert!(done.left > 0, "{done:?}");
        assert_eq!(world.device(FIRST).pages.get(), 2000 - 512);
        assert_eq!(in_chunk(chunk), 0);
        let missing = space.remove_chunk(FIRST, 4, crate::SOON);
        assert_eq!(missing, Err(RemoveError::NoSuchDevice));
        let missing = space.evict_chunk(FIRST, 99, crate::SOON);
        assert_eq!(missing, Err(RemoveError::NoSuchDevice));
        assert_eq!(space.add_chunk(FIRST, 4), Err(AddChunkError::NoSuchChunk));
        assert_eq!(space.add_chunk(SECOND, 0), Err(AddChunkError::NoSuchChunk));
        assert_eq!(space.add_chunk(FIRST, chunk as usize), Ok(()));
        assert_eq!(mood.chunks_added.load(SeqCst), 5);
        world.write_all();
        world.send(Place::Device(FIRST));
        assert!(in_chunk(chunk) > 0);
        world.check_all();
        world.space.remove_device(FIRST, crate::SOON).unwrap();
        assert_eq!(mood.chunks_removed.load(SeqCst), 5);
        world.check_all();
    }
}

/// Bytes of RAM behind the arenas of this process.
fn arena_bytes() -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut ours = false;
    let mut bytes = 0;
    for line in maps.lines() {
        if line.contains("uhmm-arena") {
            ours = true;
        } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| ours) {
            let kib = rss.trim().trim_end_matches(" kB").trim();
            bytes += kib.parse::<usize>().unwrap() << 10;
            ours = false;
        }
    }
    bytes
}

/// What stood in for a device's memory goes back to the machine with the chunk.
#[test]
fn the_memory_of_a_chunk_that_is_gone_goes_back_to_the_machine() {
    let _alone = alone();
    let (world, _mood) = chunky(Coherent);
    world.write_all();
    world.send(Place::Device(FIRST));
    // Memory whose pages are free is kept for the next.
    world.send(Place::Ram);
    if std::fs::read_to_string("/proc/self/maps").is_ok_and(|maps| !maps.contains("uhmm-arena")) {
        eprintln!("NOT CHECKED: this kernel does not name anonymous mappings");
        return;
    }
    assert!(arena_bytes() <= 2000 * PAGE_SIZE);
    world.space.remove_chunk(FIRST, 1, crate::SOON).unwrap();
    let left = arena_bytes();
    assert!(left <= (2000 - 512) * PAGE_SIZE, "{left} bytes");
    world.space.remove_device(FIRST, crate::SOON).unwrap();
    assert_eq!(arena_bytes(), 0);
    world.check_all();
    assert!(matches!(world.state(0), State::System { .. }));
}
