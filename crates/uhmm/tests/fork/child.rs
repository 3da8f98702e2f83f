//! Children by `fork`, which never come back to the test harness.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Exit(i32),
    Signal(i32),
}

/// Runs `main` in a child, which ends by `_exit` with the status that `main` returns, or 101 when
/// it panics.
pub fn child(main: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: the child runs `main` and ends; it never returns to the harness.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let status = catch_unwind(AssertUnwindSafe(main)).unwrap_or(101);
        // SAFETY: ends the process, without running what belongs to the parent.
        unsafe { libc::_exit(status) };
    }
    pid
}

/// Waits for a child; one that does not end is killed.
pub fn wait(pid: libc::pid_t) -> End {
    let begin = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: our child, waited for once.
        match unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } {
            0 if begin.elapsed() < Duration::from_secs(30) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            0 => {
                // SAFETY: our child, which has not been waited for.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                    libc::waitpid(pid, &mut status, 0);
                }
                panic!("the child hangs");
            }
            found => {
                assert_eq!(found, pid);
                return if libc::WIFEXITED(status) {
                    End::Exit(libc::WEXITSTATUS(status))
                } else {
                    End::Signal(libc::WTERMSIG(status))
                };
            }
        }
    }
}
