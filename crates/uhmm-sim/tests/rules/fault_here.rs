//! Faults that their own thread serves: it waits for a page in flight, is told of a page that is lost and of
//! one that is not ours, and is served while a fork closes the gate, whoever it is.

use crate::rig::args;
use crate::world::{BASE, World, or_abort};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm_core::addr::PageRange;
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, SCRATCH_PAGES, Scratch};
use uhmm_core::fault_here::Served;
use uhmm_core::migrate::Select;
use uhmm_sim::Fault;

/// Touches a page as the signal engine has it: the thread serves itself, and repeats. Returns how many
/// faults that took, or what it was told instead.
fn write_here(world: &World, page: usize) -> Result<usize, Served> {
    let mut pages = [const { uhmm_core::addr::PageData::ZERO }; SCRATCH_PAGES];
    let mut scratch = Scratch::lent(&mut pages);
    for faults in 0.. {
        let written = world.mmu().touch_write(BASE.plus(page), |data| {
            world.oracle.write(page, data);
        });
        let access = match written {
            Ok(()) => return Ok(faults),
            Err(Fault::Tracked) => Access::Tracked,
            Err(_) => Access::Write,
        };
        match world
            .space
            .fault_here(BASE.plus(page), access, &mut scratch)
        {
            Served::Yes => {}
            told => return Err(told),
        }
    }
    unreachable!()
}

#[test]
fn a_page_of_each_state_is_served_by_one_fault() {
    let world = World::pushed_out(8);
    for page in [3, 20] {
        assert_eq!(write_here(&world, page), Ok(1), "page {page}");
        assert_eq!(write_here(&world, page), Ok(0));
    }
    world.check_invariants();
}

/// A page in flight is waited for, not asked for over and over.
#[test]
fn r18_the_thread_waits_until_the_page_has_landed() {
    let world = World::new(64);
    world.write_all(0..16);
    let migration = world.space.migrate_vma(&args(0, 16, Select::SYSTEM));
    let mut migration = migration.unwrap();
    assert_eq!(world.state(5), State::Migrating);
    let (done, faults) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            or_abort(|| {
                faults.store(write_here(&world, 5).unwrap(), SeqCst);
                done.store(true, SeqCst);
            });
        });
        thread::sleep(Duration::from_millis(100));
        assert!(!done.load(SeqCst), "the page is in flight");
        migration.allocate(0).unwrap();
        migration.copy().pages().finalize();
    });
    // The one that met it in flight, and the one that finds it on the device. (It may meet an end of
    // its own page before that of the whole migration.)
    let faults = faults.load(SeqCst);
    assert!((1..=3).contains(&faults), "{faults} faults");
    world.check_all();
    world.check_invariants();
}

#[test]
fn r9_a_lost_page_is_told_and_not_repeated() {
    let world = World::pushed_out(8);
    let at = world.state(3).device_page().unwrap();
    world.device.lose(at.page);
    // Whoever finds it so, and whoever comes later.
    for _ in 0..2 {
        assert_eq!(write_here(&world, 3), Err(Served::Lost));
        assert_eq!(world.state(3), State::Poisoned);
    }
    assert_eq!(write_here(&world, 4), Ok(1));
}

#[test]
fn what_is_mapped_there_by_others_is_not_served() {
    let world = World::new(64);
    world.mmu().map(PageRange::new(BASE.plus(10), 4), false);
    assert_eq!(write_here(&world, 11), Err(Served::NotOurs));
    assert_eq!(world.state(11), State::None);
    assert_eq!(write_here(&world, 14), Ok(1));
    let beyond = world.space.range().end();
    let told = (world.space).fault_here(beyond, Access::Read, &mut Scratch::default());
    assert_eq!(told, Served::NotOurs);
    world.check_invariants();
}

/// R16: an application thread that is inside the gate serves its own faults while a fork waits for it, and
/// the forking thread its own while the gate is closed, sealed or not.
#[test]
fn r16_threads_that_a_fork_waits_for_and_the_one_that_forks_serve_themselves() {
    let world = World::pushed_out(16);
    let inside = std::sync::Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            or_abort(|| {
                let pass = world.space.inside().unwrap();
                inside.wait();
                while world.space.inside().is_ok() {
                    thread::yield_now();
                }
                for page in (0..4).rev() {
                    assert_eq!(write_here(&world, page), Ok(1));
                }
                drop(pass);
            });
        });
        inside.wait();
        world.space.close_for_fork();
    });
    for page in (4..8).rev() {
        assert_eq!(write_here(&world, page), Ok(1), "while it is closed");
    }
    world.space.seal_for_fork();
    assert_eq!(write_here(&world, 8), Ok(1), "after the seal");
    world.space.open_in_parent();
    world.check_all();
    world.check_invariants();
}
