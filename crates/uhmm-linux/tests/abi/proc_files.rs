//! The files of [`LinuxMmu`] about its own memory: they are open for good, out of the way, and its own
//! in the child of a fork.

use crate::common::{alone, child, wait};
use rustix::io::{Errno, FdFlags, fcntl_getfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::fd::{BorrowedFd, RawFd};
use uhmm_core::addr::{PAGE_SIZE, PageData, PageNo, PageRange};
use uhmm_core::mmu::{Mmu, Progress, Tracking};
use uhmm_linux::engine::Kind;
use uhmm_linux::mmu::{LinuxMmu, SetupError};
use uhmm_linux::proc_files::{ProcError, ProcFiles};
use uhmm_linux::protection::MprotectFlags;
use uhmm_linux::shared_stats::Slot;

/// Pages of the space that may be read and written. The first three hold 1, 2 and 3.
const PAGES: usize = 16;

fn set_up() -> Result<LinuxMmu, SetupError> {
    LinuxMmu::new(Kind::Thread, 512, Slot::private().unwrap(), || ())
}

fn mmu() -> LinuxMmu {
    let mmu = set_up().unwrap();
    mmu.protect(range(&mmu), MprotectFlags::READ | MprotectFlags::WRITE)
        .unwrap();
    let data = [1, 2, 3].map(|byte| PageData([byte; _]));
    let copied = mmu.copy(&data, page(&mmu, 0), Tracking::Off);
    assert_eq!(copied, Progress::all(3));
    mmu
}

fn range(mmu: &LinuxMmu) -> PageRange {
    PageRange::new(mmu.space_range().start, PAGES)
}

fn page(mmu: &LinuxMmu, index: usize) -> PageNo {
    mmu.space_range().start.plus(index)
}

fn present(mmu: &LinuxMmu) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let start = mmu.space_range().start.address();
    mmu.present(range(mmu), &mut |run| {
        found.push(((run.start.address() - start) / PAGE_SIZE, run.len));
    });
    found
}

/// The byte that all of a page is made of, read through the file.
fn peek(mmu: &LinuxMmu, index: usize) -> Option<u8> {
    let mut data = PageData::ZERO;
    let read = mmu.peek(page(mmu, index), &mut data);
    (read && data.0.iter().all(|byte| *byte == data.0[0])).then_some(data.0[0])
}

fn limit_open_files(to: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(to);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

fn use_up_open_files() {
    limit_open_files(
        getrlimit(Resource::Nofile)
            .current
            .unwrap_or(1024)
            .min(1024),
    );
    // SAFETY: asks for a new descriptor, until there is none.
    while unsafe { libc::dup(2) } >= 0 {}
}

/// Whether `main` says that all is well, in a child that it may spoil.
fn fine_in_child(main: impl FnOnce() -> bool) -> bool {
    let status = wait(child(|| i32::from(!main())));
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

fn close(number: RawFd) {
    // SAFETY: only in children that test what follows.
    unsafe { libc::close(number) };
}

#[test]
fn the_files_need_no_more_descriptors() {
    let _alone = alone();
    assert!(fine_in_child(|| {
        let mmu = mmu();
        limit_open_files(0);
        let full = std::fs::File::open("/proc/self/mem").is_err();
        let there = present(&mmu) == [(0, 3)] && peek(&mmu, 2) == Some(3);
        mmu.discard(PageRange::new(page(&mmu, 1), 1));
        mmu.protect(PageRange::new(page(&mmu, 2), 1), MprotectFlags::empty())
            .unwrap();
        let changed = present(&mmu) == [(0, 1), (2, 1)] && peek(&mmu, 2) == Some(3);
        full && there && changed
    }));
}

#[test]
fn the_files_are_out_of_the_way_and_closed_in_other_programs() {
    let _alone = alone();
    let first = set_up().unwrap();
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let low = limit.saturating_sub(5).min(900) as RawFd;
    let mut numbers = first.descriptors();
    numbers.sort_unstable();
    for number in numbers {
        // SAFETY: open as long as the MMU.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        assert_eq!(fcntl_getfd(fd), Ok(FdFlags::CLOEXEC));
        assert!(number >= low, "{number}");
    }
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn a_low_limit_has_room_for_all() {
    let _alone = alone();
    assert!(fine_in_child(|| {
        limit_open_files(200);
        let mmu = mmu();
        mmu.descriptors().iter().all(|number| *number >= 195) && peek(&mmu, 0) == Some(1)
    }));
}

#[test]
fn the_files_are_the_childs_own_after_a_fork() {
    let _alone = alone();
    let mmu = mmu();
    assert!(fine_in_child(|| {
        let before = mmu.descriptors();
        // Full but for what is closed on the way.
        use_up_open_files();
        let set_up = mmu.set_up_in_child();
        mmu.discard(PageRange::new(page(&mmu, 0), 1));
        // SAFETY: a present, writable page.
        unsafe { (page(&mmu, 2).address() as *mut PageData).write(PageData([9; _])) };
        set_up == Ok(())
            && mmu.descriptors() == before
            && present(&mmu) == [(1, 2)]
            && peek(&mmu, 2) == Some(9)
    }));
    assert_eq!(present(&mmu), [(0, 3)]);
    assert_eq!(
        [0, 1, 2].map(|index| peek(&mmu, index)),
        [1, 2, 3].map(Some)
    );
}

#[test]
fn what_cannot_be_read_is_not_peeked() {
    let _alone = alone();
    let mmu = mmu();
    assert!(fine_in_child(|| {
        // Beyond all memory, and over its end: a part is not a page.
        let files = ProcFiles::open(0).unwrap();
        let last = crate::common::pages(2);
        let mut data = [1; 2 * 4096];
        let end = last.address() + last.len();
        // SAFETY: the second page is nobody's.
        unsafe { libc::munmap((end - 4096) as *mut _, 4096) };
        let whole = files.read(end - 2 * 4096, &mut data[..4096]);
        let part = files.read(end - 2 * 4096, &mut data);
        std::mem::forget(last);
        whole && !part && !files.read(usize::MAX - 8191, &mut data)
    }));
    assert!(fine_in_child(|| {
        close(mmu.descriptors()[2]);
        peek(&mmu, 0).is_none()
    }));
}

#[test]
fn without_an_answer_the_process_ends() {
    let _alone = alone();
    let mmu = mmu();
    let mut ends = [0; 2];
    // SAFETY: two numbers.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    let status = wait(child(|| {
        // SAFETY: both are open.
        unsafe { libc::dup2(ends[1], 2) };
        close(mmu.descriptors()[1]);
        i32::from(present(&mmu).is_empty())
    }));
    assert!(libc::WIFSIGNALED(status), "{status:#x}");
    assert_eq!(libc::WTERMSIG(status), libc::SIGKILL);
    let mut said = [0; 512];
    // SAFETY: into the array; then both ends, which are ours, are closed.
    let read = unsafe {
        libc::close(ends[1]);
        let read = libc::read(ends[0], said.as_mut_ptr().cast(), said.len());
        libc::close(ends[0]);
        read
    };
    let said = str::from_utf8(&said[..read as usize]).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.ends_with('\n'), "{said}");
    assert!(said.contains(&format!("errno {}", libc::EBADF)), "{said}");
    assert!(said.contains("rather than losing data"), "{said}");
}

#[test]
fn files_that_cannot_be_opened_are_an_error_that_says_what_to_do() {
    let _alone = alone();
    assert!(fine_in_child(|| {
        use_up_open_files();
        let refused = ProcFiles::open(0).err().map(|error| error.errno);
        // Room for the userfaultfd alone, or not even that where it takes two to open one.
        close(3);
        let mmu = set_up().err();
        let setup = matches!(mmu, Some(SetupError::Proc(_) | SetupError::Open(_)));
        refused == Some(Errno::MFILE) && setup
    }));
    let remedies = [
        (Errno::NOENT, "mount /proc"),
        (Errno::MFILE, "ulimit -n"),
        (Errno::NFILE, "fs.file-max"),
        (Errno::ACCESS, "let this user read"),
    ];
    for (errno, remedy) in remedies {
        let path = c"/proc/self/mem";
        let message = SetupError::Proc(ProcError { path, errno }).to_string();
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains("/proc/self/mem"), "{message}");
        assert!(message.contains(remedy), "{message}");
    }
}
