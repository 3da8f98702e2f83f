//! Ranges to try the calls on, threads that touch them, and children.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use uhmm_linux::abi::uffd::{Done, Event, Messages, Uffd};
use uhmm_linux::mapping::Mapping;

pub const PAGE: usize = 4096;

static ALONE: Mutex<()> = Mutex::new(());

/// One test at a time: a fork shares the pages of all.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Some pages that can be read and written.
pub fn pages(count: usize) -> Mapping {
    let mapping = Mapping::anonymous(count * PAGE, c"uhmm-test").unwrap();
    mapping.allow_all().unwrap();
    mapping
}

/// The bytes of `count` pages of `mapping` from page `first` on.
pub fn range(mapping: &Mapping, first: usize, count: usize) -> Range<usize> {
    let start = mapping.address() + first * PAGE;
    start..start + count * PAGE
}

/// A userfaultfd with `features` that serves all of `mapping`.
pub fn registered(mapping: &Mapping, features: u32) -> Uffd {
    let uffd = Uffd::open(features.into()).expect("a userfaultfd");
    register(&uffd, mapping);
    uffd
}

pub fn register(uffd: &Uffd, mapping: &Mapping) {
    let all = mapping.address()..mapping.address() + mapping.len();
    uffd.register(all, false).unwrap();
}

/// `count` pages, each full of its number, counted from `first`.
pub fn data(first: u8, count: u8) -> Vec<u8> {
    (first..first + count)
        .flat_map(|page| [page; PAGE])
        .collect()
}

pub fn all(pages: usize) -> Done {
    Done {
        bytes: pages * PAGE,
        stopped: None,
    }
}

pub fn stopped(pages: usize, errno: rustix::io::Errno) -> Done {
    Done {
        bytes: pages * PAGE,
        stopped: Some(errno),
    }
}

/// Reads the last byte of a page. It waits while the page is missing.
pub fn read(mapping: &Mapping, page: usize) -> u8 {
    // SAFETY: within the mapping, which is readable.
    unsafe { mapping.at(page * PAGE + PAGE - 1).read_volatile() }
}

/// Writes the last byte of a page. It waits while the page is missing or protected.
pub fn write(mapping: &Mapping, page: usize, byte: u8) {
    // SAFETY: within the mapping, which is writable.
    unsafe { mapping.at(page * PAGE + PAGE - 1).write_volatile(byte) };
}

/// Waits for the next message.
pub fn next(uffd: &Uffd) -> Event {
    let mut found = Vec::new();
    while found.is_empty() {
        let mut messages = Messages::default();
        uffd.read(&mut messages, |event| found.push(event)).unwrap();
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Whether a message comes within this time.
pub fn comes(uffd: &Uffd, milliseconds: i32) -> bool {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use std::os::fd::AsRawFd;
    let fd = uffd.fd();
    let flags = fcntl_getfl(fd).unwrap();
    // A userfaultfd whose reads block is an error to poll.
    fcntl_setfl(fd, flags | OFlags::NONBLOCK).unwrap();
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, which the call reads and writes.
    let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
    fcntl_setfl(fd, flags).unwrap();
    assert!(ready == 0 || poll.revents == libc::POLLIN, "{ready}");
    ready > 0
}

/// Waits a little, and checks that `thread` has not ended and that there is no message.
pub fn assert_asleep<T>(uffd: &Uffd, thread: &std::thread::ScopedJoinHandle<'_, T>) {
    assert!(!comes(uffd, 50), "a message");
    assert!(!thread.is_finished(), "it goes on by itself");
}

/// Runs `main` in a child, which ends with the status that it returns.
pub fn child(main: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: the child makes a few system calls and ends; it never returns to the harness.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            libc::_exit(main());
        }
        pid
    }
}

/// Waits for a child; returns what `waitpid` says of it.
pub fn wait(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: our child, waited for once.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

/// A child that does nothing until it is killed.
pub struct Sleeper(pub libc::pid_t);

impl Sleeper {
    pub fn new() -> Self {
        Self(child(|| {
            loop {
                // SAFETY: only waits for a signal.
                unsafe { libc::pause() };
            }
        }))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // SAFETY: our child, which has not been waited for.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        wait(self.0);
    }
}
