//! A device that is full makes room of its own coldest pages (R8, R19, R20).

use crate::hook::{HookedMmu, Op};
use crate::rig::{CHUNK, COHERENT, Call, PRIVATE, Recorder, SYSTEM, args, migrated, number, small};
use crate::world::{BUDGET, World, or_abort};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::addr::{DeviceAddr, DevicePage, PageRange};
use uhmm_core::device::{CopyInError, Device};
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_core::hints::Hints;
use uhmm_core::hold::Hold;
use uhmm_core::memory_type::MemoryType::{self, Coherent, Private};
use uhmm_core::migrate::{Migrated, Migration, Unmapped};
use uhmm_core::{AllocError, DevicePages, MIN_STAY, PageRef};

/// The device that is full, of one chunk.
const FULL: u8 = 1;
/// The one after it.
const NEXT: u8 = 2;
/// The one before it, which is the world's.
const BEFORE: u8 = 0;

/// Long enough for nothing to be young.
const LONG: Duration = MIN_STAY.saturating_mul(3);

/// A device whose pages are all in use: by pages 0 to [`CHUNK`], in their order.
struct Full {
    world: World,
    first: Arc<Recorder>,
    next: Arc<Recorder>,
}

impl std::ops::Deref for Full {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Full {
    fn new(memory: MemoryType) -> Self {
        let first = Recorder::new(small(memory, 1));
        let next = Recorder::new(small(Private, 1));
        let devices: Vec<Box<dyn Device>> = vec![first.boxed(), next.boxed()];
        let full = Self {
            world: World::beside(8 * BUDGET, BUDGET, devices),
            first,
            next,
        };
        for part in [0..CHUNK / 2, CHUNK / 2..CHUNK] {
            full.write_all(part.clone());
            assert_eq!(full.send(part.start, part.len()), migrated(part.len(), 0));
        }
        (0..CHUNK).for_each(|page| assert_eq!(full.on(page), Some(FULL), "page {page}"));
        full
    }

    /// The same, a while later.
    fn old(memory: MemoryType) -> Self {
        let full = Self::new(memory);
        full.mmu().advance(LONG);
        full
    }

    fn begin(&self, first: usize, len: usize) -> Migration<'_, HookedMmu, Unmapped> {
        let all = args(first, len, SYSTEM | PRIVATE | COHERENT);
        self.space.migrate_vma(&all).unwrap()
    }

    fn try_send(&self, first: usize, len: usize) -> Result<Migrated, AllocError> {
        let mut migration = self.begin(first, len);
        migration.allocate(FULL)?;
        Ok(migration.copy().pages().finalize())
    }

    /// Migrates pages to the full device.
    fn send(&self, first: usize, len: usize) -> Migrated {
        self.try_send(first, len).unwrap()
    }

    /// Writes `len` new pages, and sends them.
    fn send_new(&self, first: usize, len: usize) -> Migrated {
        self.write_all(first..first + len);
        self.send(first, len)
    }

    /// Which device a page is on.
    fn on(&self, page: usize) -> Option<u8> {
        match self.state(page) {
            State::Private(at) | State::Coherent(at) => Some(at.device),
            _ => None,
        }
    }

    fn at(&self, page: usize) -> DeviceAddr {
        self.state(page).device_page().expect("a device page")
    }

    /// Those of the first pages that are on the full device no more.
    fn left(&self) -> Vec<usize> {
        let has_left = |&page: &usize| self.on(page) != Some(FULL);
        (0..CHUNK).filter(has_left).collect()
    }

    fn hold(&self, page: usize) -> PageRef<'_, HookedMmu> {
        let at = self.at(page);
        self.space.hold_device_page(at, Hold::default()).unwrap()
    }

    fn in_use(&self) -> u64 {
        self.space.stats().devices[usize::from(FULL)].pages.get()
    }

    fn evicted(&self) -> u64 {
        self.space.stats().pages_evicted.get()
    }

    /// Leaves so many pages of RAM available.
    fn leave_ram(&self, pages: usize) {
        let used = self.space.stats().ram_bytes.get() as usize / 4096;
        self.write_all(CHUNK..CHUNK + BUDGET - used - pages);
    }

    fn check(self) {
        self.check_all();
        self.check_invariants();
    }
}

#[test]
fn a_full_device_makes_room() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        assert_eq!(full.send_new(CHUNK, 64), migrated(64, 0));
        (CHUNK..CHUNK + 64).for_each(|page| assert_eq!(full.on(page), Some(FULL)));
        assert_eq!((full.in_use(), full.evicted()), (CHUNK as u64, 64));
        // RAM has plenty of room, so what has left is there.
        assert_eq!(full.left().len(), 64);
        for page in full.left() {
            assert!(matches!(full.state(page), State::System { .. }), "{page}");
        }
        full.check();
    }
}

#[test]
fn no_more_leaves_than_there_has_to_be_room_for() {
    let full = Full::old(Private);
    // 88 pages: a block of 64, one of 16 and one of 8.
    assert_eq!(full.send_new(CHUNK, 88), migrated(88, 0));
    assert_eq!(full.evicted(), 88);
    full.check();
}

#[test]
fn what_came_first_leaves_first() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        assert_eq!(full.send_new(CHUNK, 32), migrated(32, 0));
        assert_eq!(full.left(), (0..32).collect::<Vec<_>>());
        assert_eq!(full.send_new(CHUNK + 32, 32), migrated(32, 0));
        assert_eq!(full.left(), (0..64).collect::<Vec<_>>());
        full.check();
    }
}

#[test]
fn what_is_used_is_spared_once() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        (0..128).for_each(|page| drop(full.hold(page)));
        assert_eq!(full.send_new(CHUNK, 64), migrated(64, 0));
        assert_eq!(full.left(), (128..192).collect::<Vec<_>>());
        // The others were colder: they all go before the hand comes round again.
        full.mmu().advance(LONG);
        for part in 0..5 {
            assert_eq!(full.send_new(CHUNK + 64 * (part + 1), 64), migrated(64, 0));
        }
        assert_eq!(full.left(), (128..CHUNK).collect::<Vec<_>>());
        full.mmu().advance(LONG);
        assert_eq!(full.send_new(2 * CHUNK, 64), migrated(64, 0));
        assert_eq!(full.left().len(), CHUNK - 64);
        full.check();
    }
}

#[test]
fn r7_what_is_held_stays() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        let free = |page: usize| page % 16 == 3;
        let holds: Vec<_> = (0..CHUNK)
            .filter(|&page| !free(page))
            .map(|page| full.hold(page))
            .collect();
        // Only single pages can be had.
        assert_eq!(
            full.send_new(CHUNK, 64),
            migrated(CHUNK / 16, 64 - CHUNK / 16)
        );
        assert!(full.left().into_iter().all(free));
        full.mmu().advance(LONG);
        drop(holds);
        full.check();
    }
}

#[test]
fn r19_where_all_is_held_the_error_is_clean() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        let _holds: Vec<_> = (0..CHUNK).map(|page| full.hold(page)).collect();
        full.write_all(CHUNK..CHUNK + 8);
        let begin = Instant::now();
        assert_eq!(full.try_send(CHUNK, 8), Err(AllocError::Full));
        let refused = full.space.alloc_device_pages(FULL, 0).err();
        assert_eq!(refused, Some(AllocError::Full));
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert_eq!((full.left(), full.evicted()), (vec![], 0));
        drop(_holds);
        full.check();
    }
}

#[test]
fn r20_what_has_just_come_stays() {
    for memory in [Private, Coherent] {
        let full = Full::new(memory);
        full.write_all(CHUNK..CHUNK + 8);
        assert_eq!(full.try_send(CHUNK, 8), Err(AllocError::Full));
        full.mmu().advance(MIN_STAY);
        assert_eq!(full.try_send(CHUNK, 8), Err(AllocError::Full));
        assert_eq!((full.left(), full.evicted()), (vec![], 0));
        full.mmu().advance(MIN_STAY);
        assert_eq!(full.send(CHUNK, 8), migrated(8, 0));
        full.check();
    }
}

#[test]
fn r20_what_has_just_come_is_passed_by_for_what_is_old() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        // Pages 0 to 64 leave; their places are taken by young pages.
        assert_eq!(full.send_new(CHUNK, 64), migrated(64, 0));
        for round in 1..8 {
            assert_eq!(full.send_new(CHUNK + 64 * round, 64), migrated(64, 0));
        }
        assert_eq!(full.left().len(), CHUNK);
        (CHUNK..2 * CHUNK).for_each(|page| assert_eq!(full.on(page), Some(FULL)));
        full.write_all(2 * CHUNK..2 * CHUNK + 1);
        assert_eq!(full.try_send(2 * CHUNK, 1), Err(AllocError::Full));
        full.check();
    }
}

/// A driver that wants room, and finds nothing but young pages, waits for them: it is not refused for
/// being early.
#[test]
fn r20_who_finds_only_young_pages_waits_for_them() {
    for memory in [Private, Coherent] {
        let full = Full::new(memory);
        full.write_all(CHUNK..CHUNK + 8);
        for _ in 0..4 {
            let space = Arc::clone(&full.space);
            let pass = move || space.mmu().advance(MIN_STAY / 2);
            full.mmu().before(Op::Wait, pass);
        }
        assert_eq!(full.try_send(CHUNK, 8), Ok(migrated(8, 0)));
        // It has waited no longer than it had to.
        assert_eq!(full.mmu().steps_left(), 1);
        full.check();
    }
}

/// Two want what only one of them can have: they do not take it from each other over and over.
#[test]
fn r20_two_that_do_not_fit_do_not_thrash() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        let (one, other) = (CHUNK, CHUNK + 256);
        for start in (0..512).step_by(128) {
            full.write_all(CHUNK + start..CHUNK + start + 128);
            full.send(CHUNK + start, 128);
        }
        let before = full.evicted();
        for _ in 0..10 {
            for first in [one, other] {
                // What is there is not selected again.
                let mut args = args(first, 256, SYSTEM | PRIVATE | COHERENT);
                args.except = Some(FULL);
                let migration = full.space.migrate_vma(&args).unwrap();
                assert_eq!(migration.selected().count(), 0);
            }
            let refused = full.try_send(0, 64);
            assert_eq!(refused, Err(AllocError::Full));
        }
        assert_eq!(full.evicted(), before);
        full.check();
    }
}

#[test]
fn where_ram_is_short_pages_go_to_the_next_device() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        full.leave_ram(100);
        assert_eq!(full.send(CHUNK, 64), migrated(64, 0));
        let left = full.left();
        assert_eq!(left.len(), 64);
        left.iter()
            .for_each(|&page| assert_eq!(full.on(page), Some(NEXT)));
        full.check();
    }
}

#[test]
fn where_the_next_device_is_full_too_they_go_to_the_one_before() {
    let full = Full::old(Private);
    full.leave_ram(100);
    full.next.set_full(true);
    assert_eq!(
        full.space
            .suspend_device(NEXT, LONG, &mut Scratch::default()),
        Ok(())
    );
    assert_eq!(full.send(CHUNK, 64), migrated(64, 0));
    full.left()
        .iter()
        .for_each(|&page| assert_eq!(full.on(page), Some(BEFORE)));
    full.check();
}

/// A device that has numbers left, and no memory for the bytes.
#[test]
fn where_the_next_device_refuses_the_bytes_they_go_to_ram() {
    let full = Full::old(Private);
    full.leave_ram(100);
    full.next.set_full(true);
    full.device.fail_copy_in_after(0, CopyInError::Full);
    // 36 pages above what is kept for faults.
    let sent = full.send(CHUNK, 32);
    assert_eq!(sent, migrated(32, 0));
    for page in full.left() {
        assert!(matches!(full.state(page), State::System { .. }), "{page}");
    }
    full.next.set_full(false);
    full.device.heal();
    full.check();
}

/// R13: memory that the CPU maps is its driver's to give, and no way out for others.
#[test]
fn r13_no_page_goes_to_coherent_memory_to_make_room() {
    let full = Full::old(Private);
    let coherent = Recorder::new(small(Coherent, 1));
    let third = full.space.add_device(coherent.boxed()).unwrap();
    full.leave_ram(60);
    let mut scratch = Scratch::default();
    for device in [NEXT, BEFORE] {
        assert_eq!(
            full.space.suspend_device(device, LONG, &mut scratch),
            Ok(())
        );
    }
    assert_eq!(full.try_send(CHUNK, 8), Err(AllocError::Full));
    let stats = &full.space.stats().devices[usize::from(third)];
    assert_eq!(stats.pages_peak.get(), 0);
    for device in [NEXT, BEFORE] {
        assert!(full.space.resume_device(device));
    }
    full.check();
}

#[test]
fn r19_with_no_room_anywhere_the_error_is_clean_and_nothing_is_lost() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        full.leave_ram(60);
        full.next.set_full(true);
        full.device.fail_copy_in_after(0, CopyInError::Full);
        let begin = Instant::now();
        for _ in 0..5 {
            assert_eq!(full.try_send(CHUNK, 64), Err(AllocError::Full));
        }
        assert!(begin.elapsed() < Duration::from_secs(2));
        assert_eq!((full.left(), full.evicted()), (vec![], 0));
        // What is kept for faults is still there.
        let ram = full.space.stats().ram_bytes.get() as usize / 4096;
        assert_eq!(BUDGET - ram, 60);
        full.next.set_full(false);
        full.device.heal();
        full.check();
    }
}

/// A copy that fails leaves the cold page where it was, and the request without room.
#[test]
fn r5_a_cold_page_that_does_not_leave_is_what_it_was() {
    let full = Full::old(Private);
    full.first.retry(usize::MAX);
    full.write_all(CHUNK..CHUNK + 8);
    assert_eq!(full.try_send(CHUNK, 8), Err(AllocError::Full));
    assert_eq!(full.left(), vec![]);
    full.first.retry(0);
    assert_eq!(full.send(CHUNK, 8), migrated(8, 0));
    full.check();
}

#[test]
fn a_driver_is_handed_blocks_for_which_room_is_made() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        let order = 6;
        // One page of the first block, and of the third.
        let holds = [full.hold(5), full.hold(2 * 64 + 9)];
        let block = full.space.alloc_device_pages(FULL, order).unwrap();
        assert_eq!(
            block.first(),
            DeviceAddr {
                device: FULL,
                page: DevicePage(64),
            }
        );
        assert_eq!(full.left(), (64..128).collect::<Vec<_>>());
        let blocks: Vec<DevicePages<'_, _>> = (0..5)
            .map(|_| full.space.alloc_device_pages(FULL, order).unwrap())
            .collect();
        // There is no whole block any more, but there are pages.
        let refused = full.space.alloc_device_pages(FULL, order).err();
        assert_eq!(refused, Some(AllocError::Full));
        assert!(full.space.alloc_device_pages(FULL, 0).is_ok());
        drop((block, blocks, holds));
        full.check();
    }
}

/// A block is as cold as the warmest of its pages.
#[test]
fn r20_a_block_with_a_young_page_is_left_whole() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        full.discard(5, 1);
        assert_eq!(full.send_new(CHUNK, 1), migrated(1, 0));
        assert_eq!(full.at(CHUNK).page, DevicePage(5));
        let block = full.space.alloc_device_pages(FULL, 6).unwrap();
        assert_eq!(block.first().page, DevicePage(64));
        let mut left = full.left();
        left.retain(|&page| page != 5);
        assert_eq!(left, (64..128).collect::<Vec<_>>());
        drop(block);
        full.check();
    }
}

/// A duplicate is given up without a copy, since its bytes are in RAM; one that was read just now is
/// spared once.
#[test]
fn a_duplicate_makes_room_without_a_copy() {
    let full = Full::new(Private);
    let read = PageRange::new(number(0), 64);
    let inside = full.space.inside().unwrap();
    inside.set_hints(read, Hints::READ_MOSTLY).unwrap();
    drop(inside);
    (0..64).for_each(|page| full.world.check(page));
    let duplicates = |full: &Full| full.space.stats().duplicate_pages.get();
    assert_eq!(duplicates(&full), 64);
    full.mmu().advance(LONG);
    assert_eq!(full.send_new(CHUNK, 64), migrated(64, 0));
    // The duplicates were spared.
    assert_eq!((duplicates(&full), full.left()), (64, (0..128).collect()));
    let copied = full.space.stats().pages_to_system.get();
    // The hand comes round.
    for part in 1..8 {
        full.mmu().advance(LONG);
        full.send_new(CHUNK + 64 * part, 64);
    }
    assert_eq!(duplicates(&full), 0);
    let more = full.space.stats().pages_to_system.get() - copied;
    // RAM is short by and by: some have gone to the next device.
    let onward = (0..CHUNK)
        .filter(|&page| full.on(page) == Some(NEXT))
        .count() as u64;
    assert_eq!((full.evicted(), more + onward), (8 * 64, 6 * 64));
    full.check();
}

/// Reclaim would fill what is freed: it puts the device last meanwhile.
#[test]
fn reclaim_leaves_alone_what_is_freed() {
    let full = Full::old(Private);
    // Of two devices with room, the full one would be the first in order.
    full.device.fail_copy_in_after(0, CopyInError::Full);
    full.leave_ram(60);
    let space = Arc::clone(&full.space);
    let left = Arc::new(AtomicUsize::new(BUDGET));
    let seen = Arc::clone(&left);
    // One page is free by then.
    full.first.before(Call::Free, || ());
    full.first.before(Call::Free, move || {
        let pages = space.push_out(&mut Scratch::default());
        seen.store(pages, SeqCst);
    });
    assert_eq!(full.send(CHUNK, 64), migrated(64, 0));
    assert!(left.load(SeqCst) < BUDGET / 2, "reclaim has been at work");
    assert_eq!((full.left().len(), full.evicted()), (64, 64));
    full.device.heal();
    full.check();
}

/// The fork waits for the migration that makes room, and that does not wait for the fork.
#[test]
fn r16_a_fork_does_not_hold_up_who_makes_room() {
    for memory in [Private, Coherent] {
        let full = Full::old(memory);
        full.write_all(CHUNK..CHUNK + 8);
        let forked = thread::scope(|scope| {
            let mut migration = full.begin(CHUNK, 8);
            let fork = scope.spawn(|| {
                or_abort(|| {
                    full.space.close_for_fork();
                    full.space.open_in_parent();
                });
            });
            while full.space.inside().is_ok() {
                thread::yield_now();
            }
            let begin = Instant::now();
            assert_eq!(migration.allocate(FULL), Ok(8));
            assert!(begin.elapsed() < Duration::from_millis(500));
            assert!(!fork.is_finished());
            assert_eq!(migration.copy().pages().finalize(), migrated(8, 0));
            fork.join().is_ok()
        });
        assert!(forked);
        full.check();
    }
}

/// Everybody wants all of the device, with failures at any step: nobody hangs, and no byte is lost.
#[test]
fn r19_many_that_want_room_at_once_lose_nothing() {
    const THREADS: usize = 3;
    const ROUNDS: usize = 60;
    const EACH: usize = 400;
    for (seed, one_in) in [(1, 0), (2, 40), (3, 8)] {
        for memory in [Private, Coherent] {
            let full = Full::old(memory);
            if one_in > 0 {
                full.mmu().fail_at_random(seed, one_in);
            }
            let done = AtomicBool::new(false);
            crate::world::with_reclaimer(&full.space, || {
                thread::scope(|scope| {
                    scope.spawn(|| {
                        while !done.load(SeqCst) {
                            full.mmu().advance(Duration::from_millis(1));
                            thread::sleep(Duration::from_micros(200));
                        }
                    });
                    let threads: Vec<_> = (0..THREADS)
                        .map(|thread| {
                            let full = &full;
                            scope.spawn(move || {
                                or_abort(|| {
                                    let mut rng = uhmm_testkit::Rng::new(seed * 10 + thread as u64);
                                    let mine = CHUNK + thread * EACH;
                                    for _ in 0..ROUNDS {
                                        let first = mine + rng.below(EACH as u64 - 64) as usize;
                                        let len = 1 + rng.below(64) as usize;
                                        match rng.below(4) {
                                            0 => (first..first + len)
                                                .for_each(|page| full.write(page)),
                                            1 => (first..first + len)
                                                .for_each(|page| full.world.check(page)),
                                            _ => drop(full.try_send(first, len)),
                                        }
                                    }
                                });
                            })
                        })
                        .collect();
                    threads
                        .into_iter()
                        .for_each(|thread| thread.join().unwrap());
                    done.store(true, SeqCst);
                });
            });
            full.mmu().heal();
            assert!(full.evicted() > 0, "seed {seed}");
            assert_eq!(full.mmu().out_of_memory_count(), 0);
            full.check();
        }
    }
}
