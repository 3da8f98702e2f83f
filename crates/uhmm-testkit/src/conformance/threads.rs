//! Threads of a program touch and drop pages while a migrator moves them about.

use super::world::{DEVICE, PAGES, PATIENCE, World};
use super::{Make, join};
use crate::Rng;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use uhmm_core::addr::DevicePage;
use uhmm_core::fault::Scratch;
use uhmm_core::migrate::MigrateError;

const THREADS: usize = 3;
const STEPS: usize = 500;

pub(super) fn check(make: Make<'_>) {
    let world = World::written(make, "threads touch what a migrator moves");
    let running = &AtomicUsize::new(THREADS);
    thread::scope(|scope| {
        let touch = |thread| {
            let world = &world;
            move || {
                let _leave = Leave(running);
                program(world, thread);
            }
        };
        let mut threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(touch(thread)))
            .collect();
        threads.push(scope.spawn(|| {
            let mut rng = Rng::new(THREADS as u64);
            while running.load(SeqCst) > 0 {
                migrate(&world, &mut rng);
            }
        }));
        join(threads);
    });
    world.end();
}

/// A thread has ended, well or not.
struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Touches pages that are this thread's; they lie between those of the others.
fn program(world: &World, thread: usize) {
    let mut rng = Rng::new(thread as u64);
    for _ in 0..STEPS {
        let own = rng.below((PAGES / THREADS) as u64) as usize;
        let page = own * THREADS + thread;
        match rng.below(20) {
            0..10 => world.check(page),
            10..19 => world.write(page),
            _ => world.discard(page, 1),
        }
    }
}

/// One move of some pages.
fn migrate(world: &World, rng: &mut Rng) {
    let space = &world.space;
    let scratch = &mut Scratch::default();
    let first = rng.below(PAGES as u64 - 40) as usize;
    match rng.below(12) {
        0..5 => drop(world.push(first, 40)),
        5 | 6 => drop(world.pull(first, 40, None)),
        7 | 8 => {
            let number = DevicePage(rng.below(PAGES as u64) as u32);
            match space.migrate_device_range(DEVICE, number, 24) {
                Ok(mut migration) => {
                    migration.to_system();
                    migration.copy().pages().finalize();
                }
                // The device has fewer pages.
                Err(MigrateError::NoSuchPage) => {}
                Err(error) => world.fail(error),
            }
        }
        9 => drop(space.push_out(scratch)),
        10 => {
            let suspended = space.suspend_device(DEVICE, PATIENCE, scratch);
            world.expect("every page leaves the device", suspended);
            space.resume_device(DEVICE);
        }
        _ => {
            let removed = space.remove_chunk(DEVICE, 0, PATIENCE, scratch);
            world.expect("every page leaves the chunk", removed);
            world.expect("the chunk comes again", space.add_chunk(DEVICE, 0));
        }
    }
    space.reclaim(scratch);
}
