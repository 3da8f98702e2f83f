//! Files: each has a table of its own, and takes the device's pages along when it ends.

use super::world::{Buffer, Over, alone, done, driver, send, snapshot, space};
use std::thread;
use uhmm_dmirror::snapshot as see;
use uhmm_dmirror::{Errno, Op};

#[test]
fn two_files_of_a_device_have_two_tables() {
    let _alone = alone();
    for unit in [1, 3] {
        let space = space();
        let driver = driver(&space);
        let (file, other) = (driver.open(unit).unwrap(), driver.open(unit).unwrap());
        let (memory, copy) = (Buffer::filled(&space, 16, 1), Buffer::new(&space, 16));
        assert_eq!(
            send(&file, Op::Read, memory.all(), copy.address()),
            done(16, 1)
        );
        assert_eq!(
            send(&other, Op::Read, memory.all(), copy.address()),
            done(16, 1)
        );
        assert_eq!(
            send(&file, Op::MigrateToDevice, memory.all(), copy.address()),
            done(16, 0)
        );
        // It is the same device, to which they are local; but its table has them only once it has looked.
        assert_eq!(
            snapshot(&other, memory.all()),
            snapshot(&file, memory.all())
        );
        let there = || send(&other, Op::MigrateToDevice, memory.all(), copy.address());
        assert_eq!(there(), Err(Errno::NoEnt));
        assert_eq!(
            send(&other, Op::Read, memory.all(), copy.address()),
            done(16, 1)
        );
        assert_eq!(there(), done(16, 0));
        // What one has alone the other has not.
        assert!(send(&other, Op::MigrateToSystem, memory.all(), 0).is_ok());
        assert_eq!(
            send(&file, Op::Exclusive, memory.all(), copy.address()),
            done(16, 0)
        );
        assert_eq!(
            send(&other, Op::CheckExclusive, memory.all(), 0),
            done(0, 0)
        );
        assert_eq!(
            send(&file, Op::CheckExclusive, memory.all(), 0),
            Err(Errno::Perm)
        );
        memory.check(0..16, 1);
    }
}

#[test]
fn pages_come_home_when_a_file_is_closed() {
    let _alone = alone();
    for unit in 0..4 {
        let space = space();
        let driver = driver(&space);
        let (memory, copy) = (Buffer::filled(&space, 600, 1), Buffer::new(&space, 600));
        let looks = driver.open((unit + 1) % 4).unwrap();
        let file = driver.open(unit).unwrap();
        assert_eq!(
            send(&file, Op::MigrateToDevice, memory.all(), copy.address()),
            done(600, 0)
        );
        copy.fill(0..600, 2);
        assert_eq!(
            send(&file, Op::Write, memory.all(), copy.address()),
            done(600, 0)
        );
        drop(file);
        assert_eq!(snapshot(&looks, memory.all()), vec![see::WRITE; 600]);
        memory.check(0..600, 2);
        // What it had alone is the program's too.
        let file = driver.open(unit).unwrap();
        assert_eq!(
            send(&file, Op::Exclusive, memory.all(), copy.address()),
            done(600, 0)
        );
        drop(file);
        assert_eq!(snapshot(&looks, memory.all()), vec![see::WRITE; 600]);
        memory.check(0..600, 2);
    }
}

/// Another file of the device goes on: its pages are home, and it faults them in there.
#[test]
fn a_file_that_stays_open_finds_everything() {
    let _alone = alone();
    let space = space();
    let driver = driver(&space);
    let (file, other) = (driver.open(0).unwrap(), driver.open(0).unwrap());
    let (memory, copy) = (Buffer::filled(&space, 16, 1), Buffer::new(&space, 16));
    assert_eq!(
        send(&file, Op::MigrateToDevice, memory.all(), copy.address()),
        done(16, 0)
    );
    drop(other);
    copy.fill(0..16, 5);
    assert_eq!(
        send(&file, Op::Read, memory.all(), copy.address()),
        done(16, 1)
    );
    copy.check(0..16, 1);
}

#[test]
fn a_file_is_closed_while_threads_use_its_pages() {
    let _alone = alone();
    for unit in [0, 2] {
        let space = space();
        let driver = driver(&space);
        let (memory, copy) = (Buffer::filled(&space, 256, 1), Buffer::new(&space, 256));
        let (reader, over) = (driver.open(1).unwrap(), Over::default());
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.is_over() {
                    memory.check(0..256, 1);
                }
            });
            scope.spawn(|| {
                let copy = Buffer::new(&space, 128);
                while !over.is_over() {
                    let read = send(&reader, Op::Read, memory.at(0..128), copy.address());
                    assert!(read.is_ok(), "{read:?}");
                    copy.check(0..128, 1);
                }
            });
            let _over = over.at_the_end();
            for _ in 0..40 {
                let file = driver.open(unit).unwrap();
                let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
                assert!(
                    there == done(256, 0) || there == Err(Errno::NoEnt),
                    "{there:?}"
                );
                if there.is_ok() {
                    copy.check(0..256, 1);
                }
            }
        });
        memory.check(0..256, 1);
    }
}

/// Commands of many threads to one file.
#[test]
fn a_file_is_used_by_many_threads() {
    let _alone = alone();
    for unit in [0, 2] {
        let space = space();
        let file = driver(&space).open(unit).unwrap();
        thread::scope(|scope| {
            for thread in 0..4 {
                let (space, file) = (&space, &file);
                scope.spawn(move || {
                    // A touch brings what is around it along: not the pages of another thread.
                    let (memory, copy) = (Buffer::new(space, 512), Buffer::new(space, 512));
                    let few = memory.at(0..64);
                    for round in 0..20 {
                        let version = 10 * round + thread;
                        copy.fill(0..64, version);
                        let wrote = send(file, Op::Write, few.clone(), copy.address());
                        assert!(wrote.is_ok(), "{wrote:?}");
                        let there = send(file, Op::MigrateToDevice, few.clone(), copy.address());
                        assert_eq!(there, done(64, 0));
                        copy.check(0..64, version);
                        if round % 3 == 0 {
                            memory.check(0..64, version);
                        }
                        if round % 4 == 0 {
                            let back = send(file, Op::MigrateToSystem, few.clone(), 0);
                            assert!(back.is_ok(), "{back:?}");
                        }
                        let read = send(file, Op::Read, few.clone(), copy.address());
                        assert!(read.is_ok(), "{read:?}");
                        copy.check(0..64, version);
                    }
                });
            }
        });
    }
}
