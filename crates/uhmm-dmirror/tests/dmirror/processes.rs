//! Two processes: the child of a fork has memory, devices and files of its own.

use super::world::{Buffer, Over, alone, done, driver, send, snapshot, space};
use std::io::{Read, Write, pipe};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use uhmm_dmirror::snapshot as see;
use uhmm_dmirror::{Errno, Op};

/// A child that ends with 0 when `main` comes to its end, and with 101 when it panics.
pub struct Child(libc::pid_t);

impl Child {
    pub fn run(main: impl FnOnce()) -> Self {
        // SAFETY: the child runs `main` and ends; it never returns to the harness.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            let failed = catch_unwind(AssertUnwindSafe(main)).is_err();
            // SAFETY: ends the process, without running what belongs to the parent.
            unsafe { libc::_exit(if failed { 101 } else { 0 }) };
        }
        Self(pid)
    }

    /// Waits for its end, for half a minute.
    pub fn ends_well(self) {
        let (begin, mut status) = (Instant::now(), 0);
        // SAFETY: our child, waited for once.
        while unsafe { libc::waitpid(self.0, &mut status, libc::WNOHANG) } == 0 {
            if begin.elapsed() > Duration::from_secs(30) {
                // SAFETY: our child, which has not been waited for.
                unsafe { libc::kill(self.0, libc::SIGKILL) };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
            "{status:#x}"
        );
    }
}

/// The file is its parent's: it answers with an error, changes nothing, and ends without harm.
#[test]
fn a_child_does_not_use_a_file_of_its_parent() {
    let _alone = alone();
    for unit in [0, 2] {
        let space = space();
        let driver = driver(&space);
        let mut file = Some(driver.open(unit).unwrap());
        let (memory, copy) = (Buffer::filled(&space, 64, 1), Buffer::new(&space, 64));
        let there = send(
            file.as_ref().unwrap(),
            Op::MigrateToDevice,
            memory.all(),
            copy.address(),
        );
        assert_eq!(there, done(64, 0));
        let gup = driver.open_gup().unwrap();
        let child = Child::run(|| {
            let inherited = file.take().unwrap();
            for op in [
                Op::Read,
                Op::Write,
                Op::MigrateToDevice,
                Op::MigrateToSystem,
                Op::Snapshot,
                Op::Exclusive,
                Op::CheckExclusive,
                Op::Release,
            ] {
                let refused = send(&inherited, op, memory.all(), copy.address());
                assert_eq!(refused, Err(Errno::Inval), "{op:?}");
            }
            assert_eq!(gup.ioctl(0xc050_6704, &mut [0; 80]), Err(Errno::Inval));
            // Nor have its pages come home when it ends.
            let own = driver.open(unit).unwrap();
            let before = snapshot(&own, memory.all());
            assert!(
                before
                    .iter()
                    .any(|byte| byte & (see::PRIVATE | see::COHERENT) != 0)
            );
            drop(inherited);
            assert_eq!(snapshot(&own, memory.all()), before);
            memory.check(0..64, 1);
            assert_eq!(
                send(&own, Op::Read, memory.all(), copy.address()),
                done(64, 1)
            );
            copy.check(0..64, 1);
        });
        child.ends_well();
        memory.check(0..64, 1);
        let file = file.as_ref().unwrap();
        assert!(send(file, Op::Read, memory.all(), copy.address()).is_ok());
        copy.check(0..64, 1);
    }
}

#[test]
fn parent_and_child_each_have_their_own() {
    let _alone = alone();
    for unit in [0, 2] {
        let space = space();
        let driver = driver(&space);
        let file = driver.open(unit).unwrap();
        let (memory, copy) = (Buffer::filled(&space, 256, 1), Buffer::new(&space, 256));
        let ((mut to_child, mut go), (mut done_there, mut tell)) =
            (pipe().unwrap(), pipe().unwrap());
        go.write_all(&[0]).unwrap();
        let work = |file: &uhmm_dmirror::File<'_>, version| {
            for version in version..version + 5 {
                copy.fill(0..256, version);
                let wrote = send(file, Op::Write, memory.all(), copy.address());
                assert!(wrote.is_ok(), "{wrote:?}");
                let there = send(file, Op::MigrateToDevice, memory.all(), copy.address());
                assert_eq!(there, done(256, 0));
                copy.check(0..256, version);
                memory.check(0..128, version);
            }
        };
        assert!(send(&file, Op::MigrateToDevice, memory.all(), copy.address()).is_ok());
        let child = Child::run(|| {
            memory.check(0..16, 1);
            let file = driver.open(unit).unwrap();
            work(&file, 100);
            tell.write_all(&[1]).unwrap();
            to_child.read_exact(&mut [0]).unwrap();
            drop(file);
            memory.check(0..256, 104);
        });
        work(&file, 200);
        done_there.read_exact(&mut [0]).unwrap();
        memory.check(0..256, 204);
        child.ends_well();
        memory.check(0..256, 204);
    }
}

/// A fork ends what a device has alone, for both sides.
#[test]
fn nothing_is_a_devices_alone_after_a_fork() {
    let _alone = alone();
    let space = space();
    let file = driver(&space).open(0).unwrap();
    let (memory, copy) = (Buffer::filled(&space, 256, 1), Buffer::new(&space, 256));
    assert_eq!(
        send(&file, Op::Exclusive, memory.all(), copy.address()),
        done(256, 0)
    );
    let child = Child::run(|| {
        memory.check(0..256, 1);
        memory.fill(0..256, 2);
        memory.check(0..256, 2);
    });
    memory.check(0..256, 1);
    memory.fill(0..256, 3);
    child.ends_well();
    memory.check(0..256, 3);
    assert_eq!(send(&file, Op::CheckExclusive, memory.all(), 0), done(0, 0));
}

/// Forks while commands are under way.
#[test]
fn a_fork_in_the_middle_of_commands_finds_everything() {
    let _alone = alone();
    for unit in [0, 2] {
        let space = space();
        let driver = driver(&space);
        let file = driver.open(unit).unwrap();
        let memory = Buffer::filled(&space, 256, 1);
        let over = Over::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let copy = Buffer::new(&space, 256);
                while !over.is_over() {
                    for op in [Op::MigrateToDevice, Op::Read, Op::Exclusive, Op::Release] {
                        // A fork may have taken away what the device has just got.
                        let done = send(&file, op, memory.all(), copy.address());
                        let fine = [None, Some(Errno::NoEnt), Some(Errno::Busy)];
                        assert!(fine.contains(&done.err()), "{op:?}: {done:?}");
                        if op != Op::Release && done.is_ok() {
                            copy.check(0..256, 1);
                        }
                    }
                }
            });
            let _over = over.at_the_end();
            for _ in 0..15 {
                let child = Child::run(|| {
                    let file = driver.open(unit).unwrap();
                    let copy = Buffer::new(&space, 256);
                    let there = send(&file, Op::MigrateToDevice, memory.all(), copy.address());
                    // Some may have been on the device already, where this table has not looked.
                    assert!(
                        there == done(256, 0) || there == Err(Errno::NoEnt),
                        "{there:?}"
                    );
                    let read = send(&file, Op::Read, memory.all(), copy.address());
                    assert!(read.is_ok(), "{read:?}");
                    copy.check(0..256, 1);
                    memory.fill(0..256, 2);
                    drop(file);
                    memory.check(0..256, 2);
                });
                child.ends_well();
                memory.check(0..256, 1);
            }
        });
    }
}
