//! Threads of our own, on stacks of our own.
//!
//! A fault handler must not run on a stack that some allocator gave out: inside a managed program
//! that would be managed memory (R18). All stacks lie in one mapping, so that whoever interposes
//! the allocator can tell a thread of ours by its stack pointer, in two comparisons: threads of
//! ours must get unmanaged memory even for what the C library allocates on their behalf.

use crate::mapping::Mapping;
use rustix::mm::MprotectFlags;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*};

/// Stacks in the mapping.
const STACKS: usize = 72;
const STACK: usize = 256 << 10;
/// Left without access below each stack.
const GUARD: usize = 16 << 10;

/// Where the stacks of the process lie; both zero while there are none.
static LOW: AtomicUsize = AtomicUsize::new(0);
static HIGH: AtomicUsize = AtomicUsize::new(0);

/// Threads being started now. What the C library allocates for them is theirs.
static STARTING: AtomicUsize = AtomicUsize::new(0);

/// Threads of ours that were started, and are not about to end.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Whether the process has no thread but the caller and ours.
pub(crate) fn is_only_thread() -> bool {
    let before = RUNNING.load(SeqCst);
    // A directory has a link for each directory in it, and two of its own.
    let tasks =
        rustix::fs::stat("/proc/self/task").map_or(usize::MAX, |task| task.st_nlink as usize);
    // Some other thread may start or end some of ours meanwhile: the lower count cannot hide that one.
    let ours = before.min(RUNNING.load(SeqCst));
    tasks == 2 + 1 + ours
}

/// Whether memory that is allocated now must not be managed: the calling thread is one of ours, or
/// one is being started.
#[inline]
pub fn needs_unmanaged_memory() -> bool {
    let here = 0u8;
    let address = std::ptr::from_ref(&here) as usize;
    address.wrapping_sub(LOW.load(Relaxed)) < HIGH.load(Relaxed).wrapping_sub(LOW.load(Relaxed))
        || STARTING.load(Relaxed) > 0
}

/// The stacks, for one engine after the other: a process has one at a time.
#[derive(Debug)]
pub(crate) struct Stacks {
    mapping: Mapping,
    used: AtomicUsize,
}

impl Stacks {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        let mapping = Mapping::anonymous(STACKS * STACK, c"uhmm-stacks")?;
        LOW.store(mapping.address(), Release);
        HIGH.store(mapping.address() + mapping.len(), Release);
        Ok(Self {
            mapping,
            used: AtomicUsize::new(0),
        })
    }

    /// Forgets all threads: in the child of a fork they do not exist.
    pub(crate) fn forget_threads(&self) {
        self.used.store(0, Release);
        RUNNING.store(0, SeqCst);
    }

    /// Starts a thread that runs `main(argument)` with all signals blocked, on the CPU `cpu` if
    /// one is given. `argument` must be valid for as long as the thread runs.
    pub(crate) fn spawn(
        &self,
        cpu: Option<usize>,
        main: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void,
        argument: *mut libc::c_void,
    ) -> std::io::Result<libc::pthread_t> {
        let index = self.used.fetch_add(1, AcqRel);
        if index >= STACKS {
            return Err(std::io::Error::other("too many handler threads"));
        }
        let stack = index * STACK + GUARD;
        self.mapping.protect(
            stack,
            STACK - GUARD,
            MprotectFlags::READ | MprotectFlags::WRITE,
        )?;
        // SAFETY: the structures are initialised by the calls that take them first; the stack is
        // ours, mapped, and no other thread's. Signals are blocked around the creation, so that the
        // new thread starts with all of them blocked: the program's handlers never run on it.
        unsafe {
            let mut attributes = std::mem::zeroed::<libc::pthread_attr_t>();
            check(libc::pthread_attr_init(&mut attributes))?;
            check(libc::pthread_attr_setstack(
                &mut attributes,
                self.mapping.at(stack).cast(),
                STACK - GUARD,
            ))?;
            let (mut all, mut old) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
            let mut thread = 0;
            STARTING.fetch_add(1, AcqRel);
            let created = libc::pthread_create(&mut thread, &attributes, main, argument);
            STARTING.fetch_sub(1, AcqRel);
            libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut());
            libc::pthread_attr_destroy(&mut attributes);
            check(created)?;
            RUNNING.fetch_add(1, SeqCst);
            hide_thread();
            let mut set = std::mem::zeroed::<libc::cpu_set_t>();
            if let Some(cpu) = cpu {
                libc::CPU_SET(cpu, &mut set);
                // A CPU that has gone away meanwhile costs speed only.
                libc::pthread_setaffinity_np(thread, size_of_val(&set), &set);
            }
            Ok(thread)
        }
    }
}

/// glibc's count of threads. The last thread of a program that ends by `pthread_exit` ends the
/// process, and ours must not keep it from being the last.
///
/// The variable is private to glibc and what belongs to it, debuggers among them. Where there is
/// none of the name, such a program does not end.
fn thread_count() -> Option<&'static AtomicU32> {
    static FOUND: OnceLock<Option<&AtomicU32>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the name is a string; glibc's variable of this name is an `unsigned int` that all
        // threads change by atomic operations, and that is never unloaded.
        unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, c"__nptl_nthreads".as_ptr());
            found.cast::<AtomicU32>().as_ref()
        }
    })
}

/// Takes a thread of ours, just made, out of the count.
fn hide_thread() {
    if let Some(count) = thread_count() {
        count.fetch_sub(1, AcqRel);
    }
}

/// Puts the calling thread, which is about to end, back among the program's.
pub(crate) fn show_thread() {
    RUNNING.fetch_sub(1, SeqCst);
    if let Some(count) = thread_count() {
        count.fetch_add(1, AcqRel);
    }
}

fn check(result: libc::c_int) -> std::io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::from_raw_os_error(result))
    }
}
