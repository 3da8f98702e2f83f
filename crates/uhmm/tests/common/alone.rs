//! One test at a time in a process, and none that hangs for ever.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// One test at a time, since a fork takes the whole process along; and each within a minute.
pub struct Alone {
    _over: Sender<()>,
    _lock: MutexGuard<'static, ()>,
}

/// Waits for the tests before.
pub fn alone() -> Alone {
    static LOCK: Mutex<()> = Mutex::new(());
    let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let (over, watched) = channel();
    thread::spawn(move || {
        if watched.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{name} hangs: it is given up after a minute");
            std::process::abort();
        }
    });
    Alone {
        _over: over,
        _lock: lock,
    }
}
