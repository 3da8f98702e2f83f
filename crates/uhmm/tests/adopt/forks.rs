//! R16: after a fork both sides have the adopted memory of that moment, whatever state each page was
//! in, go on migrating it, and can release it.

use crate::child::{End, child, wait};
use crate::{FIRST, World, alone, devices, space};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::Place;
use uhmm::device::Device;

const PAGES: usize = 400;

/// Some pages on the device, some in RAM, some touched since, some never.
fn each_state(device: Box<dyn Device>) -> World {
    let mut world = World::new(space(2048, vec![device]), PAGES);
    world.own.advise(350..PAGES, libc::MADV_DONTNEED);
    (350..PAGES).for_each(|page| world.oracle.discard(page));
    world.adopt();
    world.send(Place::Device(FIRST));
    (0..PAGES).step_by(3).for_each(|page| world.check(page));
    (0..PAGES).step_by(4).for_each(|page| world.write(page));
    world.rest();
    world
}

fn live_on(world: &World) {
    world.check_all();
    world.write_all();
    world.send(Place::Device(FIRST));
    (0..PAGES).step_by(2).for_each(|page| world.write(page));
    world.push_out();
    world.check_all();
}

#[test]
fn r16_both_sides_have_it_and_go_on() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = each_state(device);
        for _ in 0..3 {
            let pid = child(|| {
                live_on(&world);
                live_on(&world);
                0
            });
            live_on(&world);
            assert_eq!(wait(pid), End::Exit(0), "{name}");
        }
        world.release();
        world.check_released();
    }
}

#[test]
fn r16_a_child_releases_what_its_parent_has_adopted() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = each_state(device);
        let pid = child(|| {
            world.release();
            world.check_all();
            world.write_all();
            // And has a child of its own, to which it is ordinary memory.
            let pid = child(|| {
                world.check_all();
                0
            });
            assert_eq!(wait(pid), End::Exit(0));
            // It can be adopted again.
            world.adopt();
            live_on(&world);
            world.release();
            world.check_all();
            0
        });
        live_on(&world);
        assert_eq!(wait(pid), End::Exit(0), "{name}");
        world.release();
        world.check_released();
    }
}

/// Forks while another thread adopts and releases: each child finds all bytes, and can go on.
#[test]
fn r16_forks_in_the_middle_of_both_ends() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = World::new(space(2048, vec![device]), PAGES);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    // SAFETY: a mapping of the test's own, which outlives it.
                    let adopted = unsafe { world.space.adopt(world.own.at(0), world.own.len()) };
                    let adopted = match adopted {
                        Ok(adopted) => adopted,
                        Err(error) => {
                            // A fork may take its time.
                            assert_eq!(error, uhmm::RangeError::Forking.into());
                            continue;
                        }
                    };
                    let _ = adopted.migrate(Place::Device(FIRST));
                    drop(adopted);
                }
            });
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(2) {
                let pid = child(|| {
                    world.check_all();
                    world.write_all();
                    world.push_out();
                    world.check_all();
                    0
                });
                assert_eq!(wait(pid), End::Exit(0), "{name}");
            }
            stop.store(true, SeqCst);
        });
        world.check_released();
    }
}

/// Memory that was shared with a child before it was adopted, and still is.
#[test]
fn pages_shared_with_an_older_child_are_adopted_too() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = World::new(space(2048, vec![device]), PAGES);
        let pid = child(|| {
            // SAFETY: waits for the signal that ends it.
            unsafe { libc::pause() };
            0
        });
        world.adopt();
        world.send(Place::Device(FIRST));
        live_on(&world);
        world.release();
        world.check_released();
        // SAFETY: our child.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        assert_eq!(wait(pid), End::Signal(libc::SIGKILL), "{name}");
    }
}
