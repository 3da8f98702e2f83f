//! Threads that touch pages which somebody has in flight, and threads that touch the same page.

use crate::{FIRST, World, alone};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::migrate::{MigrateVma, Select};
use uhmm::{Place, Space};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::entry::State;

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    // SAFETY: the call fills the structure.
    unsafe {
        let mut time = std::mem::zeroed::<libc::timespec>();
        assert_eq!(
            libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time),
            0
        );
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

fn words<'a>(world: &World, page: usize) -> &'a [AtomicU64] {
    // SAFETY: a page of a region that outlives the use, used as these words only.
    unsafe { std::slice::from_raw_parts(world.at(page).cast(), PAGE_SIZE / 8) }
}

#[test]
fn who_touches_a_page_in_flight_sleeps_until_it_has_landed() {
    let _alone = alone();
    for to_device in [true, false] {
        let world = World::new(16);
        world.write_all();
        let migration = world.space.migrate_vma(&MigrateVma {
            address: world.at(0) as usize,
            len: 16 * PAGE_SIZE,
            select: Select::SYSTEM,
            owner: None,
            except: None,
            fault_page: None,
        });
        let mut migration = migration.unwrap();
        assert_eq!(world.state(5), State::Migrating);
        let landed = AtomicBool::new(false);
        thread::scope(|scope| {
            let touchers: Vec<_> = (0..4)
                .map(|i| {
                    let (world, landed) = (&world, &landed);
                    scope.spawn(move || {
                        let before = cpu_time();
                        world.check(5);
                        assert!(landed.load(SeqCst), "not before it has landed");
                        // Whoever touches a neighbour waits as well.
                        world.check(6 + i);
                        cpu_time() - before
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(300));
            if to_device {
                migration.allocate(FIRST.0).unwrap();
            }
            landed.store(true, SeqCst);
            migration.copy().pages().finalize();
            for toucher in touchers {
                let used = toucher.join().unwrap();
                assert!(used < Duration::from_millis(60), "it spins: {used:?}");
            }
        });
        world.check_all();
    }
}

fn migrate_to_and_fro(space: &Space, world: &World, until: Instant) -> usize {
    let (mut there, mut moved) = (false, 0);
    while Instant::now() < until {
        there = !there;
        let to = if there {
            Place::Device(FIRST)
        } else {
            Place::Ram
        };
        let len = world.oracle.pages() * PAGE_SIZE;
        moved += space
            .migrate(world.at(0) as usize, len, to)
            .unwrap()
            .migrated;
    }
    moved
}

/// Each thread counts in words of its own, on pages that all of them use, while the pages migrate.
#[test]
fn no_count_is_lost_on_pages_that_migrate_under_several_threads() {
    const PAGES: usize = 64;
    const THREADS: usize = 3;
    let _alone = alone();
    let world = World::new(PAGES);
    let until = Instant::now() + Duration::from_secs(3);
    let (counts, moved) = thread::scope(|scope| {
        let counting: Vec<_> = (0..THREADS)
            .map(|thread| {
                let world = &world;
                scope.spawn(move || {
                    let mut counts = [0u64; PAGES];
                    let mut page = thread;
                    while Instant::now() < until {
                        page = (page * 37 + 11) % PAGES;
                        let word = &words(world, page)[thread * 100];
                        assert_eq!(word.load(SeqCst), counts[page], "page {page}");
                        counts[page] += 1;
                        word.store(counts[page], SeqCst);
                        // And one word that all of them change.
                        words(world, page)[511].fetch_add(1, SeqCst);
                    }
                    counts
                })
            })
            .collect();
        let moved = migrate_to_and_fro(&world.space, &world, until);
        let counts: Vec<_> = counting.into_iter().map(|t| t.join().unwrap()).collect();
        (counts, moved)
    });
    assert!(moved > 10 * PAGES, "{moved}");
    for page in 0..PAGES {
        let words = words(&world, page);
        let all = counts.iter().map(|counts| counts[page]).sum();
        assert_eq!(words[511].load(SeqCst), all, "page {page}");
    }
    let stats = world.space.internals().stats();
    assert!(stats.device_faults.get() > 0);
}

#[test]
fn threads_that_touch_one_missing_page_at_once_see_the_same() {
    let _alone = alone();
    let world = World::new(64);
    world.write_all();
    for _ in 0..50 {
        world.push_out();
        let start = std::sync::Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for page in 0..64 {
                        start.wait();
                        world.check(page * 13 % 64);
                    }
                });
            }
        });
    }
}
