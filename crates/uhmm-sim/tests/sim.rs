//! The simulated MMU does what the kernel does, fails as it was told, and catches a broken contract.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::addr::{DeviceAddr, DevicePage, FrameNo, Home, PageData, PageNo, PageRange};
use uhmm_core::mmu::{Mmu, Progress, Stop, Tracking};
use uhmm_sim::{Call, Failure, Fault, SimMmu};

const BASE: PageNo = PageNo(0x1000);
const SLOT: FrameNo = FrameNo(3);
const POOL: Home = Home::Pool(SLOT);

fn at(index: usize) -> PageNo {
    BASE.plus(index)
}

fn range(first: usize, len: usize) -> PageRange {
    PageRange::new(at(first), len)
}

/// Pages 0 to `present` hold their number and 1, in every byte; there are 16 places.
fn mmu(present: u8) -> SimMmu {
    let mmu = SimMmu::new(range(0, 16), 512);
    let data: Vec<_> = (0..present).map(|i| PageData([i + 1; _])).collect();
    assert_eq!(
        mmu.copy(&data, BASE, Tracking::Off),
        Progress::all(present.into())
    );
    mmu.take_wakes();
    mmu
}

/// Device page `page`, in the arena of the first device.
fn device(page: u32) -> DeviceAddr {
    DeviceAddr {
        device: 0,
        page: DevicePage(page),
    }
}

/// [`mmu`] with an arena of 8 pages for the first device; 2 of them hold 101 and 102 in every byte.
fn with_arena(present: u8) -> SimMmu {
    let mmu = mmu(present);
    assert!(mmu.add_arena(0, 8, None));
    for page in 0..2 {
        assert!(mmu.with_arena(device(page), &mut |data| data.0.fill(101 + page as u8)));
    }
    mmu
}

fn byte(mmu: &SimMmu, index: usize) -> Result<u8, Fault> {
    mmu.touch_read(at(index)).map(|data| data.0[4095])
}

#[test]
fn pages_move_out_and_back_with_their_bytes() {
    let mmu = mmu(4);
    assert_eq!(mmu.take(range(1, 2), POOL), Progress::all(2));
    assert_eq!(
        [0, 1, 2, 3].map(|i| byte(&mmu, i).ok()),
        [Some(1), None, None, Some(4)]
    );
    assert_eq!(byte(&mmu, 1), Err(Fault::Missing));
    assert!(mmu.holds_frame(SLOT) && mmu.holds_frame(SLOT.plus(1)));
    assert_eq!(mmu.put(POOL, range(8, 2)), Progress::all(2));
    assert_eq!((byte(&mmu, 8), byte(&mmu, 9)), (Ok(2), Ok(3)));
    assert!(!mmu.holds_frame(SLOT));
    assert_eq!(mmu.relocate(range(8, 2), at(1)), Progress::all(2));
    assert_eq!(
        [0, 1, 2, 3].map(|i| byte(&mmu, i)),
        [Ok(1), Ok(2), Ok(3), Ok(4)]
    );
    assert_eq!(mmu.resident(), 4);
}

#[test]
fn a_call_stops_where_the_kernel_would() {
    let mmu = mmu(4);
    assert!(mmu.pin(at(1)));
    assert_eq!(
        mmu.take(range(0, 4), POOL),
        Progress::stopped(1, Stop::Busy)
    );
    mmu.unpin(at(1));
    mmu.protect(range(2, 1), false);
    assert_eq!(
        mmu.take(range(1, 3), POOL.plus(1)),
        Progress::stopped(1, Stop::Protected)
    );
    assert_eq!(
        mmu.put(POOL, range(3, 1)),
        Progress::stopped(0, Stop::Present)
    );
    assert_eq!(
        mmu.put(POOL, range(2, 1)),
        Progress::stopped(0, Stop::Protected)
    );
    assert_eq!(
        mmu.take(range(3, 2), POOL.plus(2)),
        Progress::stopped(1, Stop::Absent)
    );
    mmu.map(range(0, 1), false);
    assert_eq!(
        mmu.put(POOL, range(0, 1)),
        Progress::stopped(0, Stop::Unmapped)
    );
    assert_eq!(
        mmu.copy(&[PageData::ZERO], at(0), Tracking::Off),
        Progress::stopped(0, Stop::Unmapped)
    );
    assert_eq!(mmu.resident(), 4);
}

#[test]
fn pages_shared_after_a_fork_move_once_they_are_private() {
    let mmu = mmu(3);
    mmu.share(range(0, 3));
    assert_eq!(
        mmu.take(range(0, 3), POOL),
        Progress::stopped(0, Stop::Busy)
    );
    mmu.unshare(range(0, 1));
    mmu.touch_write(at(1), |data| data.0.fill(9)).unwrap();
    assert_eq!(
        mmu.take(range(0, 3), POOL),
        Progress::stopped(2, Stop::Busy)
    );
    assert!(mmu.pin(at(2)));
    mmu.unshare(range(2, 1));
    assert_eq!(
        mmu.take(range(2, 1), POOL.plus(2)),
        Progress::stopped(0, Stop::Busy)
    );
}

#[test]
fn touches_meet_what_the_cpu_would() {
    let mmu = mmu(1);
    assert_eq!(
        mmu.copy(&[PageData::ZERO], at(9), Tracking::Off),
        Progress::all(1)
    );
    assert_eq!(mmu.take(range(9, 1), POOL), Progress::all(1));
    mmu.protect(range(0, 2), false);
    assert_eq!(byte(&mmu, 0), Ok(1));
    assert_eq!(mmu.touch_write(at(0), |_| ()), Err(Fault::Protected));
    assert!(!mmu.is_writable(at(0)));
    mmu.protect(range(0, 2), true);
    assert!(mmu.is_writable(at(0)));
    mmu.poison(at(1));
    assert_eq!(
        (byte(&mmu, 1), byte(&mmu, 2)),
        (Err(Fault::Poisoned), Err(Fault::Missing))
    );
    mmu.poison(at(3));
    assert_eq!(
        mmu.put(POOL, range(3, 1)),
        Progress::stopped(0, Stop::Present)
    );
    assert_eq!(
        mmu.copy(&[PageData::ZERO], at(3), Tracking::Off),
        Progress::all(1)
    );
    assert_eq!(byte(&mmu, 3), Ok(0), "the kernel copies over poison");
    mmu.discard(range(0, 4));
    assert_eq!(
        (byte(&mmu, 0), byte(&mmu, 1)),
        (Err(Fault::Missing), Err(Fault::Missing))
    );
    mmu.map(range(0, 1), false);
    assert_eq!(byte(&mmu, 0), Err(Fault::Unmapped));
    let mut data = PageData::ZERO;
    assert!(!mmu.peek(at(0), &mut data));
    mmu.drop_frames(SLOT, 1);
    assert_eq!(mmu.resident(), 0);
}

#[test]
fn present_pages_are_listed_in_maximal_ranges() {
    let mmu = mmu(6);
    mmu.discard(range(2, 1));
    let mut found = Vec::new();
    mmu.present(range(1, 4), &mut |run| found.push(run));
    assert_eq!(found, [range(1, 1), range(3, 2)]);
}

#[test]
fn memory_is_counted_and_bounded() {
    let mmu = mmu(2);
    mmu.limit_memory(3);
    let data = [PageData::ZERO, PageData::ZERO];
    assert_eq!(
        mmu.copy(&data, at(8), Tracking::Off),
        Progress::stopped(1, Stop::NoMemory)
    );
    assert_eq!(mmu.take(range(0, 2), POOL), Progress::all(2));
    assert_eq!((mmu.resident(), mmu.resident_peak()), (3, 3));
    mmu.drop_frames(SLOT, 2);
    mmu.discard(range(0, 16));
    assert_eq!((mmu.resident(), mmu.resident_peak()), (0, 3));
}

#[test]
fn calls_fail_as_planned() {
    let mmu = mmu(4);
    let second = Failure {
        after_calls: 1,
        after_pages: 2,
        stop: Stop::Changing,
    };
    mmu.fail(Call::Take, second);
    mmu.fail(Call::Take, Failure::next(Stop::NoMemory));
    assert_eq!(
        mmu.take(range(0, 4), POOL),
        Progress::stopped(0, Stop::NoMemory)
    );
    assert_eq!(
        mmu.take(range(0, 4), POOL),
        Progress::stopped(2, Stop::Changing)
    );
    assert_eq!(mmu.take(range(2, 2), POOL.plus(2)), Progress::all(2));
    mmu.fail(Call::Table, Failure::next(Stop::NoMemory));
    assert!(mmu.table(8).is_none());
    assert_eq!(mmu.table(8).unwrap().len(), 8);
    mmu.fail(Call::Put, Failure::next(Stop::Changing));
    mmu.heal();
    assert_eq!(mmu.put(POOL, range(0, 4)), Progress::all(4));
}

#[test]
fn a_seed_brings_back_its_failures() {
    let run = |seed| {
        let mmu = mmu(8);
        mmu.fail_at_random(seed, 3);
        (0..40)
            .map(|i| {
                let taken = mmu.take(range(i % 8, 1), POOL.plus(i));
                (
                    taken,
                    mmu.copy(&[PageData([i as u8; _])], at(8 + i % 8), Tracking::Off),
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(run(5), run(5));
    assert!((6..20).any(|seed| run(seed) != run(5)));
}

#[test]
fn wakes_are_remembered() {
    let mmu = mmu(2);
    assert_eq!(mmu.take(range(0, 2), POOL), Progress::all(2));
    assert_eq!(mmu.put(POOL, range(0, 2)), Progress::all(2));
    mmu.wake(range(5, 1));
    assert_eq!(mmu.take_wakes(), [range(0, 2), range(5, 1)]);
    assert_eq!(mmu.take_wakes(), []);
}

#[test]
fn waiting_ends_with_a_wake_a_change_or_the_time() {
    let mmu = Arc::new(mmu(0));
    let word = Arc::new(AtomicU64::new(1 << 32 | 7));
    let begin = Instant::now();
    mmu.wait(&word, 8, Duration::from_secs(60));
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "the word was another one"
    );
    mmu.wait(&word, 7, Duration::from_millis(5));
    let waiter = thread::spawn({
        let (mmu, word) = (mmu.clone(), word.clone());
        move || {
            while word.load(SeqCst) as u32 == 7 {
                mmu.wait(&word, 7, Duration::from_secs(60));
            }
        }
    });
    word.store(9, SeqCst);
    mmu.wake_waiters(&word);
    waiter.join().unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "the wake was lost"
    );
}

#[test]
fn a_broken_contract_panics() {
    let panics = |call: &dyn Fn(&SimMmu)| {
        let mmu = mmu(2);
        assert_eq!(mmu.take(range(0, 1), POOL), Progress::all(1));
        catch_unwind(AssertUnwindSafe(|| call(&mmu))).is_err()
    };
    let progress = |progress: Progress| assert!(progress.stop.is_some() || progress.pages > 0);
    assert!(panics(&|mmu| progress(mmu.take(range(1, 1), POOL))));
    assert!(panics(&|mmu| progress(mmu.put(POOL.plus(1), range(0, 1)))));
    assert!(panics(&|mmu| mmu.drop_frames(SLOT, 2)));
    assert!(panics(&|mmu| mmu.poison(at(1))));
    assert!(panics(&|mmu| mmu.discard(range(15, 2))));
    assert!(!panics(&|mmu| mmu.drop_frames(SLOT, 1)));
}

#[test]
fn a_frame_of_an_arena_goes_into_the_space_and_comes_home() {
    let mmu = with_arena(2);
    assert_eq!((mmu.resident(), mmu.arena_resident()), (2, 2));
    assert_eq!(
        mmu.put(Home::Arena(device(0)), range(8, 2)),
        Progress::all(2)
    );
    assert_eq!(mmu.take_wakes(), [range(8, 2)]);
    assert_eq!((byte(&mmu, 8), byte(&mmu, 9)), (Ok(101), Ok(102)));
    assert!(!mmu.arena_holds_frame(device(0)));
    mmu.touch_write(at(8), |data| data.0.fill(7)).unwrap();
    assert_eq!(mmu.relocate(range(8, 1), at(10)), Progress::all(1));
    assert_eq!((mmu.resident(), mmu.arena_resident()), (2, 2));
    assert_eq!(
        mmu.take(range(10, 1), Home::Arena(device(5))),
        Progress::all(1)
    );
    let mut found = 0;
    assert!(mmu.with_arena(device(5), &mut |data| found = data.0[4095]));
    assert_eq!(found, 7);
    // What the program drops while it has it is gone.
    mmu.discard(range(0, 16));
    assert_eq!((mmu.resident(), mmu.arena_resident()), (0, 1));
    mmu.drop_arena(device(0), 8);
    assert_eq!(mmu.arena_resident(), 0);
    assert!(!mmu.arena_holds_frame(device(5)));
}

#[test]
fn an_empty_slot_of_an_arena_is_zeros_if_there_is_memory() {
    let mmu = with_arena(2);
    mmu.limit_memory(5);
    let zeros = |page| {
        let mut zeros = false;
        let done = mmu.with_arena(device(page), &mut |data| zeros = data.0 == PageData::ZERO.0);
        assert_eq!(done, zeros);
        done
    };
    mmu.fail(Call::FillArena, Failure::next(Stop::NoMemory));
    assert!(!zeros(3), "as told");
    assert!(zeros(3));
    assert!(!zeros(4), "RAM and arena are one machine's");
    assert!(zeros(3), "it is there");
    mmu.drop_arena(device(3), 1);
    assert!(zeros(4));
    assert_eq!((mmu.resident(), mmu.arena_resident()), (2, 3));
    assert_eq!(mmu.resident_peak(), 2, "of RAM");
}

#[test]
fn arenas_are_made_once_and_where_there_is_a_node() {
    let mmu = mmu(0);
    assert!(mmu.add_arena(0, 8, Some(0)));
    assert!(!mmu.add_arena(0, 8, Some(0)));
    assert!(!mmu.add_arena(1, 8, Some(77)));
    mmu.fail(Call::AddArena, Failure::next(Stop::NoMemory));
    assert!(!mmu.add_arena(1, 8, None));
    assert!(mmu.add_arena(1, 8, None));
    assert!(!mmu.add_arena(200, 8, None));
}

#[test]
fn moves_between_an_arena_and_the_space_fail_as_others_do() {
    let mmu = with_arena(2);
    let home = Home::Arena(device(0));
    assert_eq!(
        mmu.put(home, range(1, 1)),
        Progress::stopped(0, Stop::Present)
    );
    mmu.fail(
        Call::Put,
        Failure {
            after_pages: 1,
            ..Failure::next(Stop::Changing)
        },
    );
    assert_eq!(
        mmu.put(home, range(8, 2)),
        Progress::stopped(1, Stop::Changing)
    );
    assert!(!mmu.arena_holds_frame(device(0)) && mmu.arena_holds_frame(device(1)));
    mmu.share(range(8, 1));
    assert_eq!(
        mmu.take(range(8, 1), home),
        Progress::stopped(0, Stop::Busy)
    );
    mmu.unshare(range(8, 1));
    mmu.fail(Call::Take, Failure::next(Stop::Changing));
    assert_eq!(
        mmu.take(range(8, 1), home),
        Progress::stopped(0, Stop::Changing)
    );
    assert_eq!(mmu.take(range(8, 1), home), Progress::all(1));
}

/// Pages 0 to 2 of which writes are tracked.
fn tracked() -> SimMmu {
    let mmu = mmu(0);
    let data = [1, 2, 3].map(|byte| PageData([byte; _]));
    assert_eq!(mmu.copy(&data, at(0), Tracking::Writes), Progress::all(3));
    mmu.take_wakes();
    mmu
}

#[test]
fn a_write_to_a_tracked_page_is_a_fault_until_that_ends() {
    let mmu = tracked();
    let write = |page| mmu.touch_write(at(page), |data| data.0.fill(9));
    assert_eq!(byte(&mmu, 0), Ok(1));
    assert_eq!(write(0), Err(Fault::Tracked));
    assert_eq!(byte(&mmu, 0), Ok(1), "nothing was written");
    mmu.protect(range(0, 1), false);
    assert_eq!(write(0), Err(Fault::Protected));
    mmu.protect(range(0, 1), true);
    assert_eq!(write(0), Err(Fault::Tracked), "protection does not end it");
    mmu.untrack(at(0));
    assert_eq!(mmu.take_wakes(), [range(0, 1)]);
    assert_eq!(write(0), Ok(()));
    assert_eq!(byte(&mmu, 0), Ok(9));
    assert_eq!(write(1), Err(Fault::Tracked), "each page by itself");
}

#[test]
fn tracking_ends_when_the_page_leaves_its_place() {
    let mmu = tracked();
    assert_eq!(mmu.take(range(0, 1), POOL), Progress::all(1));
    assert_eq!(mmu.put(POOL, range(0, 1)), Progress::all(1));
    assert_eq!(mmu.relocate(range(1, 1), at(8)), Progress::all(1));
    mmu.discard(range(2, 1));
    let zeros = [PageData::ZERO, PageData::ZERO];
    assert_eq!(mmu.copy(&zeros, at(1), Tracking::Off), Progress::all(2));
    for page in [0, 1, 2, 8] {
        assert!(!mmu.is_tracked(at(page)), "page {page}");
        assert_eq!(mmu.touch_write(at(page), |_| ()), Ok(()), "page {page}");
    }
}

#[test]
fn a_broken_contract_about_arenas_and_tracking_panics() {
    let panics = |call: &dyn Fn(&SimMmu)| {
        let mmu = with_arena(2);
        assert_eq!(
            mmu.put(Home::Arena(device(1)), range(8, 1)),
            Progress::all(1)
        );
        assert_eq!(
            mmu.copy(&[PageData::ZERO], at(9), Tracking::Writes),
            Progress::all(1)
        );
        catch_unwind(AssertUnwindSafe(|| call(&mmu))).is_err()
    };
    let progress = |progress: Progress| assert!(progress.stop.is_some() || progress.pages > 0);
    let home = |page| Home::Arena(device(page));
    // Into a slot that holds a frame, out of one that does not.
    assert!(panics(&|mmu| progress(mmu.take(range(8, 1), home(0)))));
    assert!(panics(&|mmu| progress(mmu.put(home(1), range(4, 1)))));
    // Frames never change sides.
    assert!(panics(&|mmu| progress(mmu.take(range(8, 1), POOL))));
    assert!(panics(&|mmu| progress(mmu.take(range(0, 1), home(1)))));
    assert!(!panics(&|mmu| progress(mmu.take(range(8, 1), home(1)))));
    // No such slot, no such arena, two at once.
    assert!(panics(&|mmu| mmu.drop_arena(device(7), 2)));
    assert!(panics(&|mmu| progress(mmu.take(range(8, 1), home(8)))));
    let elsewhere = DeviceAddr {
        device: 1,
        ..device(0)
    };
    assert!(panics(&|mmu| {
        mmu.with_arena(elsewhere, &mut |_| ());
    }));
    assert!(panics(&|mmu| {
        mmu.with_arena(device(0), &mut |_| mmu.drop_arena(device(0), 1));
    }));
    // Populating a tracked page for writing waits for a handler, which waits for whoever does it.
    assert!(panics(&|mmu| {
        mmu.is_writable(at(9));
    }));
    assert!(panics(&|mmu| mmu.unshare(range(8, 2))));
    assert!(!panics(&|mmu| mmu.unshare(range(0, 9))));
}
