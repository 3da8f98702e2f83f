//! Several spaces at a time, of both engines, that come and go while threads fault.

use crate::{World, alone, builder};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::{BuildError, Builder, Engine};

const PAGES: usize = 2000;

#[test]
fn faults_find_their_space_among_several() {
    let _alone = alone();
    let worlds: Vec<_> = (0..4).map(|_| World::new(PAGES)).collect();
    let other = builder(Engine::Thread).build();
    let other = match other {
        Ok(space) => Some(World::within(space, PAGES)),
        // As every user without privilege: the message names the mend.
        Err(error) => {
            assert!(error.to_string().contains("UHMM_ENGINE=signal"), "{error}");
            // SAFETY: has no preconditions.
            assert_ne!(unsafe { libc::geteuid() }, 0, "root may serve all faults");
            None
        }
    };
    thread::scope(|scope| {
        for world in worlds.iter().chain(&other) {
            scope.spawn(|| {
                for _ in 0..3 {
                    world.write_all();
                    world.check_all();
                }
            });
        }
    });
    let engines = worlds
        .iter()
        .chain(&other)
        .map(|world| world.space.engine());
    assert_eq!(
        engines.filter(|&engine| engine == Engine::Signal).count(),
        4
    );
}

#[test]
fn spaces_come_and_go_beside_faults() {
    let _alone = alone();
    let lasting = World::new(PAGES);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                lasting.write_all();
                lasting.check_all();
            }
        });
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(2) {
            let passing = World::new(600);
            passing.write_all();
            thread::scope(|scope| {
                scope.spawn(|| passing.check_all());
            });
        }
        done.store(true, SeqCst);
    });
    lasting.check_all();
}

/// A space that stops does not wait for the reclaimer's next look.
#[test]
fn a_space_stops_at_once() {
    let _alone = alone();
    let begin = Instant::now();
    for _ in 0..20 {
        let world = World::new(16);
        world.write_all();
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "{begin:?}");
}

#[test]
fn more_spaces_than_a_process_can_have_are_refused() {
    let _alone = alone();
    let build = || {
        let builder = Builder::new(2 << 20).engine(Engine::Signal);
        builder.build()
    };
    let mut spaces = Vec::new();
    let error = loop {
        match build() {
            Ok(space) => spaces.push(space),
            Err(error) => break error,
        }
        assert!(spaces.len() < 1000);
    };
    assert_eq!(spaces.len(), 16, "{error}");
    assert!(matches!(error, BuildError::Engine(_)), "{error:?}");
    assert!(error.to_string().contains("at most 16 spaces"), "{error}");
    // Those that there are work, and the place of one that has gone is free.
    for space in &spaces {
        let mut region = space.region(4096).unwrap();
        region.as_mut_slice()[0] = 1;
    }
    spaces.remove(7);
    spaces.push(build().unwrap());
    let region = spaces[15].region(4096).unwrap();
    assert_eq!(region.as_slice()[0], 0);
}
