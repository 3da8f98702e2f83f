//! Forks in the middle of things: while other threads fault, map and push out.

use crate::child::{End, child, wait};
use crate::{BUDGET, World, alone, devices};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::thread;
use std::time::Duration;
use uhmm_core::addr::PAGE_SIZE;
use uhmm_testkit::Rng;

/// Pages of the region that the other threads use; those of [`World`] are the forking thread's.
const BUSY: usize = 3 * BUDGET / PAGE_SIZE;
const MINE: usize = BUDGET / PAGE_SIZE;
const FORKS: u64 = 12;

/// Counts up in a page, in two words, the first before the second.
fn count_up(page: *mut u8) {
    let (first, last) = words(page);
    let value = first.load(Relaxed) + 1;
    first.store(value, SeqCst);
    last.store(value, SeqCst);
}

/// Whether the two words of a page are those of one moment.
fn is_of_one_moment(page: *mut u8) -> bool {
    let (first, last) = words(page);
    let (first, last) = (first.load(SeqCst), last.load(SeqCst));
    first == last || first == last + 1
}

fn words<'a>(page: *mut u8) -> (&'a AtomicU64, &'a AtomicU64) {
    // SAFETY: a page of a region that outlives the use, used as these two atomics only.
    unsafe {
        (
            AtomicU64::from_ptr(page.cast()),
            AtomicU64::from_ptr(page.add(PAGE_SIZE - 8).cast()),
        )
    }
}

#[test]
fn forks_while_other_threads_fault() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = World::new(device, MINE);
        let busy = world.space.region(BUSY * PAGE_SIZE).unwrap();
        let start = busy.as_ptr() as usize;
        let page = |page: usize| (start + page * PAGE_SIZE) as *mut u8;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for thread in 0..2 {
                let done = &done;
                scope.spawn(move || {
                    let mut rng = Rng::new(thread);
                    while !done.load(SeqCst) {
                        count_up(page(
                            rng.below(BUSY as u64 / 2) as usize * 2 + thread as usize,
                        ));
                    }
                });
            }
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    world.push_out();
                    if let Ok(mut region) = world.space.region(1 << 18) {
                        region.as_mut_slice()[..1 << 16].fill(3);
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            });
            let mut rng = Rng::new(99);
            let mut children = Vec::new();
            for _ in 0..FORKS {
                for _ in 0..MINE / 4 {
                    world.write(rng.below(MINE as u64) as usize);
                }
                children.push(child(|| {
                    world.check_all();
                    for index in 0..BUSY {
                        if !is_of_one_moment(page(index)) {
                            return 2;
                        }
                        count_up(page(index));
                    }
                    (0..MINE).for_each(|page| world.write(page));
                    world.check_all();
                    0
                }));
                world.check_all();
                if children.len() == 3 {
                    let oldest = children.remove(0);
                    let end = wait(oldest);
                    if end != End::Exit(0) {
                        done.store(true, SeqCst);
                        panic!("{name}: {end:?}");
                    }
                }
            }
            done.store(true, SeqCst);
            for pid in children {
                assert_eq!(wait(pid), End::Exit(0), "{name}");
            }
        });
        world.check_all();
        assert!((0..BUSY).all(|index| is_of_one_moment(page(index))));
    }
}

/// Two threads fork, each in its own time.
#[test]
fn threads_fork_at_the_same_time() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = World::new(device, MINE);
        (0..MINE).for_each(|page| world.write(page));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..8 {
                        let pid = child(|| {
                            world.check_all();
                            0
                        });
                        assert_eq!(wait(pid), End::Exit(0), "{name}");
                    }
                });
            }
        });
        world.check_all();
    }
}
