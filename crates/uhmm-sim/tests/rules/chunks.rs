//! R1, R2 and R4 for device memory that comes and goes: chunks that are added, emptied and removed, and
//! pages that are handed out meanwhile.

use crate::rig::{
    CHUNK, Call, DEVICE_COHERENT, DEVICE_PRIVATE, Recorder, SYSTEM, Three, WATCHED, Was, args,
    migrated, number, small,
};
use crate::world::{BUDGET, SimSpace, World, or_abort, with_reclaimer};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;
use uhmm_core::addr::{DeviceAddr, DevicePage};
use uhmm_core::evict::{RemoveError, StillInUse};
use uhmm_core::fault::Scratch;
use uhmm_core::hold::{Hold, HoldError};
use uhmm_core::memory_type::MemoryType;
use uhmm_core::{AddChunkError, AllocError};
use uhmm_testkit::Rng;

const NO_TIME: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(20);

const BOTH: [MemoryType; 2] = [MemoryType::Private, MemoryType::Coherent];

/// A world with one device of so many chunks of 512 pages, as device 1.
fn with_chunks(memory: MemoryType, chunks: usize) -> (World, Arc<Recorder>) {
    let device = Recorder::new(small(memory, chunks));
    let world = World::beside(8 * BUDGET, 8 * BUDGET, vec![device.boxed()]);
    (world, device)
}

/// Migrates `len` pages from `first` on to device 1.
fn to_device(world: &World, first: usize, len: usize) -> usize {
    let mut migration = world.space.migrate_vma(&args(first, len, SYSTEM)).unwrap();
    let _ = migration.allocate(1);
    migration.copy().pages().finalize().migrated
}

fn remove_chunk(space: &SimSpace, chunk: usize, patience: Duration) -> Result<(), RemoveError> {
    space.remove_chunk(1, chunk, patience, &mut Scratch::default())
}

fn remove_device(space: &SimSpace, patience: Duration) -> Result<(), RemoveError> {
    space.remove_device(1, patience, &mut Scratch::default())
}

fn in_use(space: &SimSpace) -> usize {
    space.reclaim(&mut Scratch::default());
    space.stats().devices[1].pages.get() as usize
}

fn at(page: u32) -> DeviceAddr {
    DeviceAddr {
        device: 1,
        page: DevicePage(page),
    }
}

#[test]
fn r1_a_page_is_in_use_from_its_allocation_to_its_last_reference() {
    for memory in BOTH {
        let (world, _device) = with_chunks(memory, 2);
        let space = &world.space;
        let hold = |at| space.hold_device_page(at, Hold::default());
        assert_eq!(hold(at(0)).err(), Some(HoldError::Free));
        let block = space.alloc_device_pages(1, 3).unwrap();
        assert_eq!((block.order(), block.first()), (3, at(0)));
        assert_eq!(in_use(space), 8);
        space.check_invariants_but(8);
        let held = hold(at(5)).unwrap();
        assert_eq!(held.at(), at(5));
        drop(block);
        // All but the one that is held are free.
        assert_eq!(in_use(space), 1);
        space.check_invariants_but(1);
        assert_eq!(hold(at(4)).err(), Some(HoldError::Free));
        let again = space.alloc_device_pages(1, 2).unwrap();
        assert_eq!(again.first(), at(0), "around the page that is held");
        drop(hold(at(5)).unwrap());
        drop((held, again));
        assert_eq!(in_use(space), 0);
        assert_eq!(hold(at(5)).err(), Some(HoldError::Free));
        world.check_invariants();
    }
}

#[test]
fn r1_blocks_of_every_order_are_aligned_and_end_page_by_page() {
    let (world, _device) = with_chunks(MemoryType::Coherent, 4);
    let space = &world.space;
    let mut held = Vec::new();
    for order in 0..=9 {
        let block = space.alloc_device_pages(1, order).unwrap();
        assert_eq!(block.first().page.0 % (1 << order), 0);
        held.push(block);
    }
    assert_eq!(in_use(space), 1023);
    assert_eq!(
        space.alloc_device_pages(1, 10).err(),
        Some(AllocError::Full)
    );
    space.check_invariants_but(1023);
    drop(held);
    assert_eq!(in_use(space), 0);
    // Nothing is left in pieces.
    let whole: Vec<_> = (0..4)
        .map(|_| space.alloc_device_pages(1, 9).unwrap())
        .collect();
    assert_eq!(space.alloc_device_pages(1, 0).err(), Some(AllocError::Full));
    drop(whole);
    world.check_invariants();
}

#[test]
fn r1_2_mib_that_are_freed_page_by_page_can_be_had_again() {
    for memory in BOTH {
        let (world, _device) = with_chunks(memory, 1);
        let space = &world.space;
        assert_eq!(to_device(&world, 512, 512), 512);
        assert_eq!(space.alloc_device_pages(1, 0).err(), Some(AllocError::Full));
        // In no order; some by a touch, some by being dropped.
        for i in 0..512 {
            let page = 512 + i * 77 % 512;
            match i % 2 {
                0 => world.discard(page, 1),
                _ => drop(
                    space
                        .migrate_device_range(1, DevicePage((i * 77 % 512) as u32), 1)
                        .map(|mut migration| {
                            migration.to_system();
                            assert_eq!(migration.copy().pages().finalize(), migrated(1, 0));
                        }),
                ),
            }
            if i == 510 {
                assert_eq!(in_use(space), 1);
                assert_eq!(space.alloc_device_pages(1, 9).err(), Some(AllocError::Full));
            }
        }
        assert_eq!(in_use(space), 0);
        assert!(space.alloc_device_pages(1, 9).is_ok());
        world.check_all();
        world.check_invariants();
    }
}

#[test]
fn r2_device_memory_grows_chunk_by_chunk() {
    for memory in BOTH {
        let (world, device) = with_chunks(memory, 3);
        assert_eq!(device.chunks(), [0], "before it is needed, there is one");
        let mut all = Vec::new();
        for (pages, chunks) in [(512, 1), (1, 2), (511, 2), (1, 3), (511, 3)] {
            for _ in 0..pages {
                all.push(world.space.alloc_device_pages(1, 0).unwrap());
            }
            assert_eq!(device.chunks().len(), chunks, "{} pages", all.len());
        }
        assert_eq!(
            world.space.alloc_device_pages(1, 0).err(),
            Some(AllocError::Full)
        );
        world.space.check_invariants_but(3 * CHUNK);
        drop(all);
        world.check_invariants();
        assert_eq!(device.removed(), [], "they stay");
        // A chunk that ends short of its size ends with the device's capacity.
        let odd = small(memory, 1);
        let odd = Recorder::new(uhmm_core::device::DeviceInfo {
            capacity_pages: 700,
            ..odd
        });
        let world = World::beside(64, 64, vec![odd.boxed()]);
        let all: Vec<_> = (0..)
            .map_while(|_| world.space.alloc_device_pages(1, 0).ok())
            .collect();
        assert_eq!(all.len(), 700);
    }
}

#[test]
fn r2_a_chunk_is_removed_while_its_pages_are_in_use() {
    for memory in BOTH {
        let (world, device) = with_chunks(memory, 2);
        let space = &world.space;
        // Holes go to the second chunk, what was written is in both.
        world.write_all(1000..1100);
        assert_eq!(to_device(&world, 0, 480), 480);
        assert_eq!(to_device(&world, 1000, 100), 100);
        assert_eq!(device.chunks(), [0, 512]);
        assert_eq!(remove_chunk(space, 0, LONG), Ok(()));
        assert_eq!((device.chunks(), device.removed()), (vec![512], vec![0]));
        assert!(in_use(space) < 100, "those of the other chunk stay");
        assert!(in_use(space) > 0);
        world.check_invariants();
        world.check_all();
        assert_eq!(
            remove_chunk(space, 0, LONG),
            Err(RemoveError::AlreadyRemoved)
        );
        assert_eq!(device.removed(), [0], "the driver is told once");
        // Nothing comes to it: there is room for one chunk's pages.
        let rest: Vec<_> = (0..)
            .map_while(|_| space.alloc_device_pages(1, 0).ok())
            .collect();
        assert!(rest.iter().all(|block| block.first().page.0 >= 512));
        let error = space.alloc_device_page_at(at(3)).err();
        assert_eq!(error, Some(AllocError::Full));
        drop(rest);
        // Until it is added again.
        assert_eq!(space.add_chunk(1, 1), Err(AddChunkError::AlreadyThere));
        assert_eq!(space.add_chunk(1, 0), Ok(()));
        assert_eq!(space.add_chunk(1, 0), Err(AddChunkError::AlreadyThere));
        assert_eq!(device.chunks(), [0, 512]);
        assert!(space.alloc_device_page_at(at(3)).is_ok());
        assert_eq!(to_device(&world, 2000, 600), 600);
        world.check_invariants();
        assert_eq!(remove_device(space, LONG), Ok(()));
        assert_eq!(device.chunks(), []);
        assert_eq!(device.removed().len(), 3);
        world.check_all();
        world.check_invariants();
    }
}

#[test]
fn r2_what_is_removed_is_no_more() {
    let (world, device) = with_chunks(MemoryType::Private, 2);
    let space = &world.space;
    world.write_all(0..8);
    assert_eq!(remove_device(space, LONG), Ok(()));
    assert_eq!(device.removed(), [0]);
    for _ in 0..2 {
        assert_eq!(remove_device(space, LONG), Err(RemoveError::AlreadyRemoved));
        assert_eq!(
            remove_chunk(space, 0, LONG),
            Err(RemoveError::AlreadyRemoved)
        );
        assert_eq!(
            space.alloc_device_pages(1, 0).err(),
            Some(AllocError::Removed)
        );
        assert_eq!(
            space.alloc_device_page_at(at(0)).err(),
            Some(AllocError::Removed)
        );
        assert_eq!(space.add_chunk(1, 0), Err(AddChunkError::Removed));
        assert_eq!(space.add_chunk(1, 1), Err(AddChunkError::Removed));
        assert_eq!(to_device(&world, 0, 8), 0);
    }
    assert_eq!(device.removed(), [0], "the driver is told once");
    let no_such = Err(RemoveError::NoSuchDevice);
    assert_eq!(remove_chunk(space, 5, LONG), no_such);
    let mut scratch = Scratch::default();
    assert_eq!(space.remove_device(5, LONG, &mut scratch), no_such);
    assert_eq!(space.evict_device(5, LONG, &mut scratch), no_such);
    assert_eq!(space.evict_chunk(1, 5, LONG, &mut scratch), no_such);
    assert_eq!(space.suspend_device(5, LONG, &mut scratch), no_such);
    assert_eq!(space.add_chunk(5, 0), Err(AddChunkError::NoSuchChunk));
    assert_eq!(space.add_chunk(0, 77), Err(AddChunkError::NoSuchChunk));
    assert_eq!(
        space.alloc_device_pages(5, 0).err(),
        Some(AllocError::NoSuchDevice)
    );
    world.check_all();
    world.check_invariants();
}

#[test]
fn r2_removal_says_what_holds_it_up() {
    for memory in BOTH {
        let (world, device) = with_chunks(memory, 2);
        let space = &world.space;
        world.write_all(0..8);
        assert_eq!(to_device(&world, 0, 8), 8);
        let block = space.alloc_device_pages(1, 2).unwrap();
        let held = space.hold_device_page(at(3), Hold::default()).unwrap();
        let still = |pages, held| {
            Err(RemoveError::StillInUse(StillInUse {
                pages,
                held,
                ..StillInUse::default()
            }))
        };
        // What nobody holds has left by then.
        assert_eq!(remove_chunk(space, 0, NO_TIME), still(5, 5));
        assert_eq!(space.add_chunk(1, 0), Err(AddChunkError::AlreadyThere));
        assert_eq!(device.removed(), []);
        drop(block);
        assert_eq!(remove_chunk(space, 0, NO_TIME), still(1, 1));
        drop(held);
        assert_eq!(remove_chunk(space, 0, LONG), Ok(()));
        assert_eq!(device.removed(), [0]);
        world.check_all();
        world.check_invariants();
        // And a page whose program has dropped it belongs to who holds it alone.
        assert_eq!(space.add_chunk(1, 0), Ok(()));
        assert_eq!(to_device(&world, 100, 1), 1);
        let held = space.hold_device_page(at(0), Hold::default()).unwrap();
        world.discard(100, 1);
        assert_eq!(remove_device(space, NO_TIME), still(1, 1));
        drop(held);
        assert_eq!(remove_device(space, LONG), Ok(()));
        world.check_invariants();
    }
}

#[test]
fn r2_a_removal_that_waits_ends_when_the_last_holder_lets_go() {
    let (world, device) = with_chunks(MemoryType::Coherent, 1);
    let space = &world.space;
    assert_eq!(to_device(&world, 0, 8), 8);
    let held = space.hold_device_page(at(3), Hold::default()).unwrap();
    thread::scope(|scope| {
        let remover = scope.spawn(|| remove_chunk(space, 0, LONG));
        while in_use(space) > 1 {
            thread::yield_now();
        }
        assert!(!remover.is_finished());
        assert_eq!(device.removed(), []);
        drop(held);
        assert_eq!(remover.join().unwrap(), Ok(()));
    });
    assert_eq!(device.removed(), [0]);
    world.check_all();
    world.check_invariants();
}

#[test]
fn r2_the_memory_of_a_removed_chunk_goes_back_to_the_machine() {
    let (world, _device) = with_chunks(MemoryType::Coherent, 2);
    world.write_all(0..64);
    assert_eq!(to_device(&world, 0, 64), 64);
    assert_eq!(world.mmu().arena_resident(), 64);
    // Some in use, some free whose frames are still there.
    (0..20).for_each(|page| world.discard(page, 1));
    world.space.reclaim(&mut Scratch::default());
    assert_eq!(world.mmu().arena_resident(), 64);
    assert_eq!(remove_chunk(&world.space, 0, LONG), Ok(()));
    assert_eq!(world.mmu().arena_resident(), 0);
    world.check_all();
    world.check_invariants();
    // And when it comes again, nothing of what it held does (R10).
    assert_eq!(world.space.add_chunk(1, 0), Ok(()));
    let mut block = world.space.alloc_device_pages(1, 5).unwrap();
    for i in 0..32 {
        let zeros = &mut |data: &mut uhmm_core::addr::PageData| assert!(data.0 == [0; 4096]);
        assert!(block.with_bytes(i, zeros));
    }
    drop(block);
    world.check_invariants();
}

#[test]
fn an_evicted_chunk_stays_and_so_does_an_evicted_device() {
    for memory in BOTH {
        let (world, device) = with_chunks(memory, 2);
        let mut scratch = Scratch::default();
        world.write_all(0..100);
        for whole in [false, true] {
            assert_eq!(to_device(&world, 0, 100), 100);
            let evicted = match whole {
                true => world.space.evict_device(1, LONG, &mut scratch),
                false => world.space.evict_chunk(1, 0, LONG, &mut scratch),
            };
            assert_eq!(evicted, Ok(()));
            assert_eq!(in_use(&world.space), 0);
            assert_eq!((device.chunks().len(), device.removed().len()), (1, 0));
        }
        world.check_all();
        world.check_invariants();
    }
}

#[test]
fn nothing_comes_to_a_suspended_device() {
    for memory in BOTH {
        let (world, device) = with_chunks(memory, 2);
        let space = &world.space;
        world.write_all(0..100);
        assert_eq!(to_device(&world, 0, 100), 100);
        let mut scratch = Scratch::default();
        assert_eq!(space.suspend_device(1, LONG, &mut scratch), Ok(()));
        assert_eq!(in_use(space), 0);
        assert_eq!(to_device(&world, 0, 100), 0);
        let suspended = Some(AllocError::Suspended);
        assert_eq!(space.alloc_device_pages(1, 0).err(), suspended);
        assert_eq!(space.alloc_device_page_at(at(7)).err(), suspended);
        assert_eq!(device.removed(), [], "its chunks stay");
        assert!(space.resume_device(1));
        assert!(!space.resume_device(1), "it is not suspended");
        assert!(!space.resume_device(6), "there is none");
        assert_eq!(to_device(&world, 0, 100), 100);
        world.check_all();
        world.check_invariants();
    }
}

/// The allocation has found the device open, and is making a chunk, when the device is suspended.
#[test]
fn nothing_comes_to_a_device_that_is_suspended_meanwhile() {
    let (world, device) = with_chunks(MemoryType::Private, 2);
    let space = &world.space;
    let block = space.alloc_device_pages(1, 9).unwrap();
    let other = space.clone();
    let done = Arc::new(AtomicBool::new(false));
    let suspended = done.clone();
    device.before(Call::AddChunk, move || {
        let mut scratch = Scratch::default();
        let result = other.suspend_device(1, NO_TIME, &mut scratch);
        assert!(result.is_err(), "the driver has a block");
        suspended.store(true, SeqCst);
    });
    assert_eq!(
        space.alloc_device_pages(1, 0).err(),
        Some(AllocError::Suspended)
    );
    assert!(done.load(SeqCst));
    drop(block);
    assert_eq!(in_use(space), 0);
    world.check_invariants();
}

/// The driver is asked for a chunk when its device is removed.
#[test]
fn r2_a_chunk_that_comes_while_its_device_goes_goes_too() {
    for by_itself in [true, false] {
        let (world, device) = with_chunks(MemoryType::Private, 2);
        let space = world.space.clone();
        let blocks = Mutex::new(None);
        if by_itself {
            *blocks.lock().unwrap() = Some(space.alloc_device_pages(1, 9).unwrap());
        }
        let other = world.space.clone();
        device.before(Call::AddChunk, move || {
            // A second thread would wait for this one.
            let result = other.remove_device(1, NO_TIME, &mut Scratch::default());
            assert!(
                matches!(result, Err(RemoveError::StillInUse(_))),
                "{result:?}"
            );
        });
        match by_itself {
            true => assert_eq!(
                space.alloc_device_pages(1, 0).err(),
                Some(AllocError::Removed)
            ),
            false => assert_eq!(space.add_chunk(1, 1), Err(AddChunkError::Removed)),
        }
        drop(blocks.into_inner().unwrap());
        let _ = remove_device(&space, LONG);
        assert_eq!(device.chunks(), []);
        assert_eq!(
            remove_device(&space, LONG),
            Err(RemoveError::AlreadyRemoved)
        );
        world.check_invariants();
    }
}

/// While a driver is asked for a chunk, others who need a page wait for it; none is told that the
/// device is full, and none is given a page that the driver does not know.
#[test]
fn r1_two_who_need_the_same_new_chunk_both_get_a_page() {
    let (world, device) = with_chunks(MemoryType::Private, 2);
    let space = world.space.clone();
    let block = space.alloc_device_pages(1, 9).unwrap();
    let (sender, receiver) = mpsc::channel();
    let other = world.space.clone();
    device.before(Call::AddChunk, move || {
        let (begin, begun) = mpsc::channel();
        let asking = other.clone();
        let second = thread::spawn(move || {
            begin.send(()).unwrap();
            asking.alloc_device_pages(1, 0).map(|block| block.first())
        });
        begun.recv().unwrap();
        // Time to be served wrongly.
        (0..200).for_each(|_| thread::yield_now());
        assert!(!second.is_finished(), "it was answered before the driver");
        sender.send(second).unwrap();
    });
    let mine = space.alloc_device_pages(1, 0).map(|block| block.first());
    let theirs = receiver.recv().unwrap().join().unwrap();
    assert!(mine.is_ok() && theirs.is_ok(), "{mine:?}, {theirs:?}");
    assert_eq!(device.chunks(), [0, 512]);
    drop(block);
    world.check_invariants();
}

#[test]
fn a_driver_that_has_no_memory_now_is_asked_again() {
    let (world, device) = with_chunks(MemoryType::Private, 2);
    let space = &world.space;
    let block = space.alloc_device_pages(1, 9).unwrap();
    device.refuse_chunks(true);
    for _ in 0..3 {
        assert_eq!(space.alloc_device_pages(1, 0).err(), Some(AllocError::Full));
    }
    assert_eq!(space.add_chunk(1, 1), Err(AddChunkError::Refused));
    assert_eq!(device.chunks(), [0]);
    device.refuse_chunks(false);
    let more = space.alloc_device_pages(1, 0).unwrap();
    assert_eq!(more.first(), at(512));
    drop((block, more));
    // One that was removed is not brought back by need.
    assert_eq!(remove_chunk(space, 1, LONG), Ok(()));
    let block = space.alloc_device_pages(1, 9).unwrap();
    assert_eq!(space.alloc_device_pages(1, 0).err(), Some(AllocError::Full));
    assert_eq!(space.add_chunk(1, 1), Ok(()));
    assert!(space.alloc_device_pages(1, 0).is_ok());
    drop(block);
    world.check_invariants();
}

#[test]
fn a_device_may_have_no_memory_at_first() {
    let device = Recorder::new(small(MemoryType::Private, 2));
    device.refuse_chunks(true);
    let world = World::beside(64, 64, vec![device.boxed()]);
    let space = &world.space;
    assert_eq!(space.alloc_device_pages(1, 0).err(), Some(AllocError::Full));
    device.refuse_chunks(false);
    assert!(space.alloc_device_pages(1, 0).is_ok());
    assert_eq!(device.chunks(), [0]);
    assert_eq!(remove_device(space, LONG), Ok(()));
    assert_eq!(device.removed(), [0]);
    world.check_invariants();
}

#[test]
fn a_driver_that_panics_about_a_chunk_has_none_or_has_it_no_more() {
    let (world, device) = with_chunks(MemoryType::Private, 2);
    let space = &world.space;
    device.panic_in(Call::AddChunk);
    assert_eq!(space.add_chunk(1, 1), Err(AddChunkError::Refused));
    device.panic_in(Call::RemoveChunk);
    assert_eq!(remove_chunk(space, 0, LONG), Ok(()));
    assert_eq!(device.steps_left(), 0);
    assert_eq!(
        remove_chunk(space, 0, LONG),
        Err(RemoveError::AlreadyRemoved)
    );
    world.check_invariants();
}

/// No table for another chunk: the device stays as large as it is.
#[test]
fn a_chunk_without_a_table_is_an_error() {
    let (world, device) = with_chunks(MemoryType::Private, 2);
    let fail = |after_calls| {
        world.mmu().fail(
            uhmm_sim::Call::Table,
            uhmm_sim::Failure {
                after_calls,
                after_pages: 0,
                stop: uhmm_core::mmu::Stop::NoMemory,
            },
        );
    };
    for after_calls in 0..2 {
        fail(after_calls);
        let added = world.space.add_chunk(1, 1);
        assert_eq!(added, Err(AddChunkError::NoAddressSpace));
    }
    assert_eq!(device.chunks(), [0]);
    assert_eq!(world.space.add_chunk(1, 1), Ok(()));
    world.check_invariants();
}

/// Threads that take pages, migrate and give back, while chunks are removed and added under them.
#[test]
fn r2_chunks_come_and_go_under_threads_that_use_them() {
    for (round, memory) in (0..6u64).zip(BOTH.into_iter().cycle()) {
        let (world, device) = with_chunks(memory, 3);
        let space = &world.space;
        let removals = AtomicUsize::new(0);
        let done = AtomicBool::new(false);
        world.write_all(0..120);
        thread::scope(|scope| {
            let (world, removals, done) = (&world, &removals, &done);
            let users: Vec<_> = (0..2usize)
                .map(|thread| {
                    scope.spawn(move || {
                        let mut rng = Rng::new(round * 100 + thread as u64);
                        let mut blocks = Vec::new();
                        or_abort(|| {
                            for _ in 0..200 {
                                let page = thread * 60 + rng.below(50) as usize;
                                match rng.below(6) {
                                    0 => {
                                        let order = rng.below(10) as u32;
                                        blocks.extend(space.alloc_device_pages(1, order));
                                        if blocks.len() > 3 {
                                            blocks.remove(0);
                                        }
                                    }
                                    1..3 => {
                                        to_device(world, page, 10);
                                    }
                                    3 => world.write(page),
                                    _ => world.check(page),
                                }
                            }
                        });
                    })
                })
                .collect();
            scope.spawn(move || {
                let mut rng = Rng::new(round);
                while !done.load(SeqCst) || removals.load(SeqCst) == 0 {
                    let chunk = rng.below(3) as usize;
                    or_abort(|| {
                        // Once the others have ended, nothing holds it up.
                        if remove_chunk(space, chunk, Duration::from_millis(5)).is_ok() {
                            removals.fetch_add(1, SeqCst);
                        }
                        if rng.one_in(2) {
                            let _ = space.add_chunk(1, chunk);
                        }
                    });
                }
            });
            users.into_iter().for_each(|user| user.join().unwrap());
            done.store(true, SeqCst);
        });
        assert_eq!(device.removed().len(), removals.load(SeqCst));
        space.reclaim(&mut Scratch::default());
        world.check_invariants();
        let removed = remove_device(space, LONG);
        assert!(matches!(removed, Ok(()) | Err(RemoveError::AlreadyRemoved)));
        assert_eq!(device.chunks(), []);
        world.check_all();
        world.check_invariants();
    }
}

/// A page of each device, in many threads: each is told free once (R4).
#[test]
fn r4_pages_of_many_migrations_are_given_back_once() {
    let three = Three::new(1024);
    three.write_all(0..256);
    thread::scope(|scope| {
        for thread in 0..3usize {
            let three = &three;
            scope.spawn(move || {
                let mut rng = Rng::new(thread as u64);
                or_abort(|| {
                    for _ in 0..150 {
                        let first = thread * 85 + rng.below(60) as usize;
                        match rng.below(4) {
                            0 => {
                                three.to_device(first, 20, DEVICE_COHERENT);
                            }
                            1 => {
                                three.to_device(first, 20, DEVICE_PRIVATE);
                            }
                            2 => {
                                three.to_system(first, 20);
                            }
                            _ => three.check(first),
                        }
                    }
                });
            });
        }
    });
    three.space.reclaim(&mut Scratch::default());
    three.check_invariants();
    three.check_all();
    three.discard(0, 256);
    three.space.reclaim(&mut Scratch::default());
    assert_eq!(three.private.stored(), 0);
    three.check_invariants();
    assert!(Was::Hole.is(&three, 5) && three.space.range().contains(number(5)));
}

/// What does not fit in RAM goes on to another device, and not back to the one that is being emptied.
#[test]
fn r9_an_eviction_of_more_than_fits_in_ram_ends() {
    let three = Three::new(4 * BUDGET);
    with_reclaimer(&three.space, || three.write_all(0..3 * BUDGET));
    three.push_out();
    assert_eq!(three.device.stored().len(), 3 * BUDGET);
    let mut scratch = Scratch::default();
    let evicted = three.space.evict_device(WATCHED, 6 * LONG, &mut scratch);
    assert_eq!(evicted, Ok(()));
    assert!(three.private.stored() >= 2 * BUDGET);
    three.check_all();
    three.check_invariants();
}
