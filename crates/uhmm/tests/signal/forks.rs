//! Forks on the signal engine, beyond what `tests/fork` does on both.

use crate::{BUDGET, End, World, alone, child, wait};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm::{Builder, Engine};
use uhmm_core::addr::PAGE_SIZE;

/// Pages that the program's own hooks touch, or 0.
static PREPARED: AtomicUsize = AtomicUsize::new(0);
static AFTERWARDS: AtomicUsize = AtomicUsize::new(0);
static SEEN: AtomicU8 = AtomicU8::new(0);

fn touch(page: &AtomicUsize) {
    let address = page.load(SeqCst) as *const u8;
    if !address.is_null() {
        // SAFETY: within a region that lives.
        SEEN.store(unsafe { address.read_volatile() }, SeqCst);
    }
}

extern "C" fn prepare() {
    touch(&PREPARED);
}

extern "C" fn parent() {
    touch(&AFTERWARDS);
}

/// The program's hooks that were there before ours run while our gate is closed: its own faults are served
/// by the forking thread itself, from the log.
#[test]
fn the_forking_thread_faults_in_hooks_of_its_own() {
    let _alone = alone();
    let end = wait(child(|| {
        // The hooks of this library are set with the first space of a process: in another one, so that
        // those of the test come first.
        let program = std::env::current_exe().unwrap();
        let status = std::process::Command::new(program)
            .args(["--exact", "forks::hooks_first", "--ignored"])
            .status();
        i32::from(!status.unwrap().success())
    }));
    assert_eq!(end, End::Exit(0));
}

#[test]
#[ignore = "run by the_forking_thread_faults_in_hooks_of_its_own, in a process of its own"]
fn hooks_first() {
    // SAFETY: functions that live as long as the process.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), None) };
    let world = World::new(16);
    world.write_all();
    world.push_out();
    PREPARED.store(world.at(3) as usize, SeqCst);
    AFTERWARDS.store(world.at(7) as usize, SeqCst);
    let pid = child(|| {
        world.check_all();
        world.write_all();
        world.push_out();
        world.check_all();
        0
    });
    PREPARED.store(0, SeqCst);
    AFTERWARDS.store(0, SeqCst);
    world.check_all();
    assert_eq!(wait(pid), End::Exit(0));
    world.write_all();
    world.check_all();
}

/// Several threads fork, and others fault all the while; each child has the memory of its moment.
#[test]
fn several_threads_fork_while_others_fault() {
    const PAGES: usize = 1500;
    let _alone = alone();
    let world = World::new(PAGES);
    world.write_all();
    let busy = World::within(world.space.clone(), PAGES);
    thread::scope(|scope| {
        let forking: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..6 {
                        let pid = child(|| {
                            world.check_all();
                            0
                        });
                        assert_eq!(wait(pid), End::Exit(0));
                    }
                })
            })
            .collect();
        while !forking.iter().all(|thread| thread.is_finished()) {
            busy.write_all();
            busy.check_all();
        }
        for thread in forking {
            thread.join().unwrap();
        }
    });
    world.check_all();
}

/// More threads wait for RAM, or fault, than there are scratches: none of them is there in the child.
#[test]
fn what_other_threads_had_at_the_fork_is_free_in_the_child() {
    const THREADS: usize = 100;
    let _alone = alone();
    let world = World::new(16);
    world.write_all();
    let busy = world.space.region(THREADS * 64 * PAGE_SIZE).unwrap();
    let start = busy.as_ptr() as usize;
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let done = &done;
            scope.spawn(move || {
                let mut page = 0;
                while !done.load(SeqCst) {
                    let at = start + (thread * 64 + page) * PAGE_SIZE;
                    // SAFETY: this thread's part of the region.
                    unsafe { (at as *mut u64).write_volatile(at as u64) };
                    page = (page + 1) % 64;
                }
            });
        }
        for _ in 0..5 {
            let pid = child(|| {
                // All of the child's scratches are needed at once.
                thread::scope(|scope| {
                    for thread in 0..THREADS {
                        scope.spawn(move || {
                            for page in 0..64 {
                                let at = start + (thread * 64 + page) * PAGE_SIZE;
                                // SAFETY: as above.
                                let found = unsafe { (at as *const u64).read_volatile() };
                                assert!(found == 0 || found == at as u64);
                            }
                        });
                    }
                });
                world.check_all();
                0
            });
            assert_eq!(wait(pid), End::Exit(0));
        }
        done.store(true, SeqCst);
    });
}

/// Threads that wait for RAM at the fork are not in the child: nobody starves there on their behalf, and
/// the child is not ended for it (R19).
#[test]
fn r19_a_child_does_not_starve_for_threads_that_it_has_not() {
    let _alone = alone();
    let end = wait(child(|| {
        let builder = Builder::new(BUDGET as u64).engine(Engine::Signal);
        let space = builder.build().unwrap();
        let mut full = space.region(BUDGET - 256 * PAGE_SIZE).unwrap();
        full.as_mut_slice().fill(1);
        let more = space.region(BUDGET).unwrap();
        let start = more.as_ptr() as usize;
        let mut children = Vec::new();
        thread::scope(|scope| {
            for thread in 0..48 {
                scope.spawn(move || {
                    for page in 0..16 {
                        let at = start + (thread * 16 + page) * PAGE_SIZE;
                        // SAFETY: this thread's part of the region.
                        unsafe { (at as *mut u8).write_volatile(1) };
                    }
                });
            }
            // All that there is has been taken, and is waited for.
            thread::sleep(Duration::from_millis(100));
            for _ in 0..6 {
                children.push(child(|| {
                    // Three times the patience of those who starve.
                    thread::sleep(Duration::from_millis(1500));
                    0
                }));
            }
            full.clear().unwrap();
        });
        let ends: Vec<_> = children.into_iter().map(wait).collect();
        i32::from(ends.iter().any(|end| *end != End::Exit(0)))
    }));
    assert_eq!(end, End::Exit(0));
}
