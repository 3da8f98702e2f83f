//! Children, and other processes.

use crate::device::*;
use crate::with_devices;
use std::process::Command;

/// Runs `body` in a child made by `fork`, which ends with what it returns.
pub fn in_child(body: impl FnOnce()) {
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        unsafe { libc::_exit(i32::from(ended.is_err())) };
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "{status:x}"
    );
}

with_devices! {
    fn a_child_has_the_bytes_and_opens_its_own_files() {
        for unit in [0, 2] {
            let (bytes, others) = (pattern(32, 1), pattern(32, 2));
            let (fd, memory) = (device(unit), filled(&bytes));
            migrate(fd, memory, &bytes);
            in_child(|| {
                let mut given = Struct { addr: memory as u64, npages: 1, ..Struct::default() };
                assert_eq!(ioctl(fd, CHECK_EXCLUSIVE, &mut given), Err(libc::EINVAL));
                close(fd).unwrap();
                assert_eq!(ioctl(fd, CHECK_EXCLUSIVE, &mut given), Err(libc::EBADF));
                let own = device(unit);
                assert!(read(own, memory, 32).unwrap() == bytes);
                write(own, memory, &others).unwrap();
                assert!(bytes_of(memory, others.len()) == others);
                migrate(own, memory, &others);
                close(own).unwrap();
                assert!(bytes_of(memory, others.len()) == others);
            });
            // Its child's end is not the file's.
            assert!(read(fd, memory, 32).unwrap() == bytes);
            assert!(bytes_of(memory, bytes.len()) == bytes);
            migrate(fd, memory, &bytes);
            close(fd).unwrap();
            unmap(memory, 32);
        }
    }
}

with_devices! {
    /// No space is built for who opens nothing, and a child of such a one builds its own.
    fn children_of_who_has_opened_nothing_open_devices() {
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        for unit in 0..4 {
            in_child(|| {
                assert_eq!(threads(), 1);
                let bytes = pattern(3, unit);
                let memory = filled(&bytes);
                let fd = device(unit as usize);
                in_child(|| assert!(bytes_of(memory, bytes.len()) == bytes));
                migrate(fd, memory, &bytes);
                assert!(threads() > 1);
            });
        }
        assert_eq!(threads(), before);
    }
}

with_devices! {
    /// It has our memory while it runs, and descriptors of its own.
    fn what_a_vfork_closes_is_not_the_parents() {
        let (fd, bytes) = (device(0), pattern(2, 3));
        let memory = filled(&bytes);
        migrate(fd, memory, &bytes);
        #[allow(deprecated, reason = "it is what is tested")]
        let pid = unsafe { libc::vfork() };
        if pid == 0 {
            unsafe {
                libc::close(fd);
                libc::_exit(0);
            }
        }
        assert!(pid > 0);
        assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
        assert_eq!(snapshot(fd, memory, 2), [PRIVATE; 2]);
        assert!(Command::new("true").status().unwrap().success());
        assert_eq!(snapshot(fd, memory, 2), [PRIVATE; 2]);
    }
}

with_devices! {
    /// Forks while other threads open, migrate and close: each child has a whole list of files.
    fn forks_fall_between_calls() {
        let bytes = &pattern(16, 4);
        let done = &std::sync::atomic::AtomicBool::new(false);
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        std::thread::scope(|scope| {
            for unit in [0, 3] {
                scope.spawn(move || {
                    while !done.load(relaxed) {
                        let (fd, memory) = (device(unit), filled(bytes));
                        migrate(fd, memory, bytes);
                        assert!(bytes_of(memory, bytes.len()) == bytes);
                        close(fd).unwrap();
                        unmap(memory, 16);
                    }
                });
            }
            for _ in 0..30 {
                in_child(|| {
                    let (fd, memory) = (device(1), filled(bytes));
                    migrate(fd, memory, bytes);
                    close(fd).unwrap();
                    assert!(bytes_of(memory, bytes.len()) == bytes);
                });
            }
            done.store(true, relaxed);
        });
    }
}

with_devices! {
    /// Two processes have the devices without having anything of each other's.
    fn two_processes_have_devices_of_their_own() {
        let bytes = pattern(64, 5);
        let (fd, memory) = (device(1), filled(&bytes));
        migrate(fd, memory, &bytes);
        in_child(|| {
            let bytes = pattern(64, 6);
            let (fd, memory) = (device(1), filled(&bytes));
            migrate(fd, memory, &bytes);
            assert_eq!(snapshot(fd, memory, 64), [PRIVATE; 64]);
            assert!(bytes_of(memory, bytes.len()) == bytes);
            close(fd).unwrap();
        });
        assert_eq!(snapshot(fd, memory, 64), [PRIVATE; 64]);
        assert!(bytes_of(memory, bytes.len()) == bytes);
    }
}
