//! The simulated MMU does what the kernel does, fails as it was told, and catches a broken contract.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::addr::{FrameNo, PageData, PageNo, PageRange};
use uhmm_core::mmu::{Mmu, Progress, Stop};
use uhmm_sim::{Call, Failure, Fault, SimMmu};

const BASE: PageNo = PageNo(0x1000);
const SLOT: FrameNo = FrameNo(3);

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
    assert_eq!(mmu.copy(&data, BASE), Progress::all(present.into()));
    mmu.take_wakes();
    mmu
}

fn byte(mmu: &SimMmu, index: usize) -> Result<u8, Fault> {
    mmu.touch_read(at(index)).map(|data| data.0[4095])
}

#[test]
fn pages_move_out_and_back_with_their_bytes() {
    let mmu = mmu(4);
    assert_eq!(mmu.take(range(1, 2), SLOT), Progress::all(2));
    assert_eq!(
        [0, 1, 2, 3].map(|i| byte(&mmu, i).ok()),
        [Some(1), None, None, Some(4)]
    );
    assert_eq!(byte(&mmu, 1), Err(Fault::Missing));
    assert!(mmu.holds_frame(SLOT) && mmu.holds_frame(SLOT.plus(1)));
    assert_eq!(mmu.put(SLOT, range(8, 2)), Progress::all(2));
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
        mmu.take(range(0, 4), SLOT),
        Progress::stopped(1, Stop::Busy)
    );
    mmu.unpin(at(1));
    mmu.protect(range(2, 1), false);
    assert_eq!(
        mmu.take(range(1, 3), SLOT.plus(1)),
        Progress::stopped(1, Stop::Protected)
    );
    assert_eq!(
        mmu.put(SLOT, range(3, 1)),
        Progress::stopped(0, Stop::Present)
    );
    assert_eq!(
        mmu.put(SLOT, range(2, 1)),
        Progress::stopped(0, Stop::Protected)
    );
    assert_eq!(
        mmu.take(range(3, 2), SLOT.plus(2)),
        Progress::stopped(1, Stop::Absent)
    );
    mmu.map(range(0, 1), false);
    assert_eq!(
        mmu.put(SLOT, range(0, 1)),
        Progress::stopped(0, Stop::Unmapped)
    );
    assert_eq!(
        mmu.copy(&[PageData::ZERO], at(0)),
        Progress::stopped(0, Stop::Unmapped)
    );
    assert_eq!(mmu.resident(), 4);
}

#[test]
fn pages_shared_after_a_fork_move_once_they_are_private() {
    let mmu = mmu(3);
    mmu.share(range(0, 3));
    assert_eq!(
        mmu.take(range(0, 3), SLOT),
        Progress::stopped(0, Stop::Busy)
    );
    mmu.unshare(range(0, 1));
    mmu.touch_write(at(1), |data| data.0.fill(9)).unwrap();
    assert_eq!(
        mmu.take(range(0, 3), SLOT),
        Progress::stopped(2, Stop::Busy)
    );
    assert!(mmu.pin(at(2)));
    mmu.unshare(range(2, 1));
    assert_eq!(
        mmu.take(range(2, 1), SLOT.plus(2)),
        Progress::stopped(0, Stop::Busy)
    );
}

#[test]
fn touches_meet_what_the_cpu_would() {
    let mmu = mmu(1);
    assert_eq!(mmu.copy(&[PageData::ZERO], at(9)), Progress::all(1));
    assert_eq!(mmu.take(range(9, 1), SLOT), Progress::all(1));
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
        mmu.put(SLOT, range(3, 1)),
        Progress::stopped(0, Stop::Present)
    );
    assert_eq!(mmu.copy(&[PageData::ZERO], at(3)), Progress::all(1));
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
    assert_eq!(mmu.copy(&data, at(8)), Progress::stopped(1, Stop::NoMemory));
    assert_eq!(mmu.take(range(0, 2), SLOT), Progress::all(2));
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
        mmu.take(range(0, 4), SLOT),
        Progress::stopped(0, Stop::NoMemory)
    );
    assert_eq!(
        mmu.take(range(0, 4), SLOT),
        Progress::stopped(2, Stop::Changing)
    );
    assert_eq!(mmu.take(range(2, 2), SLOT.plus(2)), Progress::all(2));
    mmu.fail(Call::Table, Failure::next(Stop::NoMemory));
    assert!(mmu.table(8).is_none());
    assert_eq!(mmu.table(8).unwrap().len(), 8);
    mmu.fail(Call::Put, Failure::next(Stop::Changing));
    mmu.heal();
    assert_eq!(mmu.put(SLOT, range(0, 4)), Progress::all(4));
}

#[test]
fn a_seed_brings_back_its_failures() {
    let run = |seed| {
        let mmu = mmu(8);
        mmu.fail_at_random(seed, 3);
        (0..40)
            .map(|i| {
                let taken = mmu.take(range(i % 8, 1), SLOT.plus(i));
                (taken, mmu.copy(&[PageData([i as u8; _])], at(8 + i % 8)))
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(run(5), run(5));
    assert!((6..20).any(|seed| run(seed) != run(5)));
}

#[test]
fn wakes_are_remembered() {
    let mmu = mmu(2);
    assert_eq!(mmu.take(range(0, 2), SLOT), Progress::all(2));
    assert_eq!(mmu.put(SLOT, range(0, 2)), Progress::all(2));
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
        assert_eq!(mmu.take(range(0, 1), SLOT), Progress::all(1));
        catch_unwind(AssertUnwindSafe(|| call(&mmu))).is_err()
    };
    let progress = |progress: Progress| assert!(progress.stop.is_some() || progress.pages > 0);
    assert!(panics(&|mmu| progress(mmu.take(range(1, 1), SLOT))));
    assert!(panics(&|mmu| progress(mmu.put(SLOT.plus(1), range(0, 1)))));
    assert!(panics(&|mmu| mmu.drop_frames(SLOT, 2)));
    assert!(panics(&|mmu| mmu.poison(at(1))));
    assert!(panics(&|mmu| mmu.discard(range(15, 2))));
    assert!(!panics(&|mmu| mmu.drop_frames(SLOT, 1)));
}
