//! Threads use the memory before, during and after both ends.

use crate::{FIRST, World, alone, devices, space};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::Place;
use uhmm_testkit::Rng;

const PAGES: usize = 1500;
const THREADS: usize = 4;

/// Writes and checks pages of its own until told to stop.
fn work(world: &World, me: usize, stop: &AtomicBool, done: &AtomicU64) {
    let mut rng = Rng::new(me as u64 + 1);
    while !stop.load(SeqCst) {
        let page = rng.below(PAGES as u64 / THREADS as u64) as usize * THREADS + me;
        world.check(page);
        if rng.below(2) == 0 {
            world.write(page);
            world.check(page);
        }
        done.fetch_add(1, SeqCst);
    }
}

#[test]
fn threads_touch_it_all_the_time() {
    let _alone = alone();
    for (name, device) in devices() {
        // Reclaim puts nothing into memory that the CPU maps (R13).
        let budget = if name == "coherent" { 2048 } else { 1024 };
        let world = World::new(space(budget, vec![device]), PAGES);
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let begin = Instant::now();
        let mut rounds = 0;
        thread::scope(|scope| {
            for me in 0..THREADS {
                let (world, stop, done) = (&world, &stop, &done);
                scope.spawn(move || work(world, me, stop, done));
            }
            let _stop = Stop(&stop);
            while begin.elapsed() < Duration::from_secs(3) {
                let range = (world.own.at(0), world.own.len());
                // SAFETY: a mapping of the test's own, which outlives it.
                let mut adopted = unsafe { world.space.adopt(range.0, range.1) }.unwrap();
                for _ in 0..rounds % 4 {
                    adopted.migrate(Place::Device(FIRST)).unwrap();
                    thread::sleep(Duration::from_millis(rounds % 3));
                    adopted.migrate(Place::Ram).unwrap();
                }
                adopted.migrate(Place::Device(FIRST)).unwrap();
                if rounds % 2 == 0 {
                    adopted.release(crate::SOON).unwrap();
                }
                drop(adopted);
                rounds += 1;
            }
        });
        assert!(
            rounds > 3 && done.load(SeqCst) > 1000,
            "{name}: {rounds} rounds"
        );
        world.check_released();
        assert_eq!(world.on_device(), 0, "{name}");
        // Reclaim keeps what is left of a block warm for the next fault.
        world.push_out();
        assert!(world.charged() <= 64, "{name}: {} pages", world.charged());
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Threads that touch untouched pages, so that faults are waiting whenever a part is let go.
#[test]
fn first_touches_during_a_release_are_not_left_waiting() {
    let _alone = alone();
    let (device, _) = crate::device(uhmm_core::memory_type::MemoryType::Private);
    let space = space(2048, vec![device]);
    for round in 0..40 {
        let own = crate::own::Own::map(PAGES);
        // SAFETY: a mapping of the test's own, which outlives it.
        let adopted = unsafe { space.adopt(own.at(0), own.len()) }.unwrap();
        thread::scope(|scope| {
            for me in 0..THREADS {
                let own = &own;
                scope.spawn(move || {
                    for page in (me..PAGES).step_by(THREADS) {
                        let byte = own.at(page);
                        // SAFETY: within the mapping, and this thread's alone.
                        unsafe {
                            assert_eq!(byte.read_volatile(), 0);
                            byte.write_volatile(page as u8);
                        }
                    }
                });
            }
            thread::sleep(Duration::from_micros(200 * (round % 10)));
            drop(adopted);
        });
        for page in 0..PAGES {
            // SAFETY: within the mapping.
            assert_eq!(unsafe { own.at(page).read() }, page as u8);
        }
        assert_eq!(
            space.internals().stats().ram_bytes.get(),
            0,
            "round {round}"
        );
    }
    space.internals().check_invariants();
}
