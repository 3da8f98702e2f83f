//! The signal engine: a fault is served by the thread that meets it, in a handler of SIGBUS.
//!
//! The userfaultfd is opened with `UFFD_FEATURE_SIGBUS`: a touch of a missing page, or a write to a
//! tracked one, sends SIGBUS to the thread, with the address and the CPU's error code. Our handler
//! ([`crate::sigbus`]) looks for the space that has the address (`places`), takes a scratch, calls
//! [`Space::fault_here`], and returns; the touch is repeated by the CPU. What is not ours goes to the
//! program's own handler. There is no wake-up and no queue, and two threads that fault share nothing but
//! what the core has.
//!
//! # In the handler
//!
//! - All signals are blocked, but SIGSEGV, SIGFPE, SIGILL and SIGTRAP, which only a mistake of ours raises. A
//!   SIGBUS in the handler ends the process.
//! - It runs on the stack of the thread, not on an alternate one, which is too small: serving takes up to
//!   20 KiB beside the kernel's own frame (3 to 11 KiB). So no stack may be managed memory; a handler that
//!   finds itself on one says so and ends the process, since it would die of its next touch anyway.
//! - It makes system calls, reads and writes atomics, and takes the locks of the fault path
//!   (`uhmm_core::lock`, a device's own). No thread can hold one of those and fault: internal threads and
//!   drivers' do not touch managed memory while they have one, application threads take none (R18). So a
//!   handler never waits for the thread that it has interrupted.
//! - It waits, without a claim: for RAM, for a page in somebody's hands, for the end of a fork (bounded), for
//!   a scratch. `uhmm_core::fault_here` says why none of those waits for the waiter.
//! - errno is put back.
//!
//! # What a program must know
//!
//! - A system call that is given a missing page fails with `EFAULT`, or does less than it was asked: the
//!   kernel does not wait for us. Touch the memory just before and try again, or pin it. The C library's
//!   locks are such calls when they have to wait: keep them out of managed memory.
//! - A thread that blocks SIGBUS is ended by its first fault, and the process with it.
//! - A debugger stops at each fault unless it is told to pass SIGBUS on.
//!
//! # Start, stop, fork
//!
//! The handler is installed once for the process and stays. An engine is found by handlers from the end of
//! `start` until it is dropped, which waits for the handlers that are in it; only then the reclaimer is
//! stopped, since they may wait for it. In the child of a fork the forking thread is the only one: what the
//! others had of scratches and places is forgotten, the userfaultfd is opened anew in the same way, and the
//! reclaimer is started. The child's handler is the parent's.

mod context;
mod places;
mod scratch;

use super::crew::Crew;
use super::reclaimer::{Reclaimer, Stoppable};
use crate::end::die_plainly;
use crate::mmu::LinuxMmu;
use crate::sigbus::{self, Fault, Replaced};
use crate::signals::blocks_sigbus;
use places::Registered;
use rustix::io::Errno;
use rustix::mm::{self, Advice};
use scratch::ScratchPool;
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use uhmm_core::Space;
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::fault::Access;
use uhmm_core::fault_here::Served;

/// Why faults cannot be served in signal handlers.
#[derive(Debug)]
pub enum SignalError {
    /// Another handler of SIGBUS stands in the place of ours.
    Replaced(Replaced),
    /// The calling thread blocks SIGBUS: its first fault would end the process.
    Blocked,
    /// The calling thread's stack, or its alternate stack for signals, is managed memory.
    ManagedStack,
    /// The process has as many spaces with a signal engine as it can have.
    TooMany,
    /// No memory for the handlers' copies.
    Scratch(Errno),
    /// The reclaimer's thread cannot be started.
    Threads(io::Error),
}

impl fmt::Display for SignalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replaced(replaced) => replaced.fmt(f),
            Self::Blocked => f.write_str(
                "this thread blocks SIGBUS, by which the signal engine serves faults: unblock it in every \
                 thread that touches managed memory",
            ),
            Self::ManagedStack => f.write_str(
                "this thread's stack, or its alternate stack for signals, is managed memory, which the \
                 signal engine cannot serve: give the thread another stack, or use the thread engine",
            ),
            Self::TooMany => write!(
                f,
                "a process has at most {} spaces with the signal engine: drop one, or use the thread engine",
                places::PLACES
            ),
            Self::Scratch(errno) => write!(
                f,
                "no memory for the copies of fault handlers ({errno}): raise the limit (ulimit -v unlimited)"
            ),
            Self::Threads(error) => write!(f, "cannot start the reclaimer's thread: {error}"),
        }
    }
}

impl std::error::Error for SignalError {}

/// What handlers and the reclaimer share.
struct Shared {
    space: Arc<Space<LinuxMmu>>,
    stop: AtomicBool,
    scratch: ScratchPool,
}

impl Stoppable for Shared {
    fn space(&self) -> &Space<LinuxMmu> {
        &self.space
    }

    fn stop(&self) -> &AtomicBool {
        &self.stop
    }
}

/// The running engine of one space; stops when dropped.
pub struct SignalEngine {
    /// `None` while it is being dropped.
    registered: Option<Registered>,
    crew: Crew<Shared>,
}

impl SignalEngine {
    /// Starts serving faults of `space`, whose MMU was made for this engine, and its reclaimer.
    ///
    /// # Errors
    /// [`SignalError`]; nothing has changed, except that our handler may have been put before the
    /// program's.
    pub fn start(space: Arc<Space<LinuxMmu>>) -> Result<Self, SignalError> {
        if blocks_sigbus() {
            return Err(SignalError::Blocked);
        }
        sigbus::install(serve).map_err(SignalError::Replaced)?;
        let shared = Arc::new(Shared {
            space,
            stop: AtomicBool::new(false),
            scratch: ScratchPool::new().map_err(SignalError::Scratch)?,
        });
        let registered = Registered::new(&shared).ok_or(SignalError::TooMany)?;
        let mut engine = Self {
            registered: Some(registered),
            crew: Crew::new(shared).map_err(SignalError::Threads)?,
        };
        let started = engine.crew.spawn::<Reclaimer>(None);
        started.map_err(SignalError::Threads)?;
        Ok(engine)
    }

    /// Starts again in the child of a fork, which has only the forking thread.
    ///
    /// # Errors
    /// When the reclaimer's thread cannot be created.
    pub fn restart_in_child(&mut self) -> io::Result<()> {
        self.crew.forget_threads();
        self.crew.shared().scratch.forget_threads();
        places::forget_handlers();
        self.crew.spawn::<Reclaimer>(None)
    }
}

impl Drop for SignalEngine {
    fn drop(&mut self) {
        // No handler is in the engine afterwards, and none comes.
        self.registered = None;
        let shared = self.crew.shared();
        shared.stop.store(true, SeqCst);
        shared.space.wake_reclaimer();
        self.crew.join();
    }
}

/// Whether faults of the calling thread on `space` are served, as far as one can see.
///
/// # Errors
/// [`SignalError::Replaced`], [`SignalError::Blocked`], [`SignalError::ManagedStack`].
pub fn check(space: &Space<LinuxMmu>) -> Result<(), SignalError> {
    sigbus::check().map_err(SignalError::Replaced)?;
    if blocks_sigbus() {
        return Err(SignalError::Blocked);
    }
    if is_on_managed_stack(space) || has_managed_signal_stack(space) {
        return Err(SignalError::ManagedStack);
    }
    Ok(())
}

fn is_on_managed_stack(space: &Space<LinuxMmu>) -> bool {
    let here = 0u8;
    let here = std::ptr::from_ref(&here) as usize;
    space.mmu().page_at(here).is_some()
}

fn has_managed_signal_stack(space: &Space<LinuxMmu>) -> bool {
    let mut stack = MaybeUninit::<libc::stack_t>::uninit();
    // SAFETY: the call writes the structure.
    let stack = unsafe {
        libc::sigaltstack(std::ptr::null(), stack.as_mut_ptr());
        stack.assume_init()
    };
    let first = stack.ss_sp as usize;
    let last = first.saturating_add(stack.ss_size.saturating_sub(1));
    let is_on = stack.ss_flags & libc::SS_DISABLE == 0;
    is_on
        && [first, last]
            .into_iter()
            .any(|end| space.mmu().page_at(end).is_some())
}

impl Shared {
    /// Serves a fault of the calling thread.
    fn serve(&self, page: PageNo, access: Access) -> Served {
        if is_on_managed_stack(&self.space) {
            die_plainly(
                "uhmm: a thread whose stack is managed memory has touched a missing page, which the \
                 signal engine cannot serve; use the thread engine. The process is killed.\n",
            );
        }
        self.scratch
            .with(|scratch| self.space.fault_here(page, access, scratch))
    }
}

/// Whether a touch would succeed now, or be a SIGSEGV for want of memory there, as the kernel has it.
fn would_not_be_sigbus(address: usize, access: Access) -> bool {
    let advice = match access {
        Access::Read => Advice::LinuxPopulateRead,
        Access::Write | Access::Tracked => Advice::LinuxPopulateWrite,
    };
    let page = PageNo::containing(address).address() as *mut c_void;
    // SAFETY: does to the page what the program's own access is about to do.
    let touched = unsafe { mm::madvise(page, PAGE_SIZE, advice) };
    matches!(touched, Ok(()) | Err(Errno::NOMEM))
}

/// Serves a fault that the kernel has reported, if a space has its address.
///
/// # Safety
/// With the arguments of a handler of SIGBUS, for a fault.
unsafe fn serve(info: &libc::siginfo_t, context: *mut c_void) -> Fault {
    // SAFETY: as the caller promises.
    let (address, access) = unsafe { (info.si_addr() as usize, context::access(context)) };
    for _ in 0..2 {
        let served = places::find(|engine| {
            let page = engine.space.mmu().page_at(address)?;
            Some(engine.serve(page, access))
        });
        match served {
            Some(Served::Yes) => return Fault::Served,
            Some(Served::Lost) => return Fault::Lost,
            Some(Served::NotOurs) | None => {}
        }
        // It may have been ours at the time of the fault: adopted memory that was let go, pages that
        // something else is mapped over now. So the kernel is asked what a touch would be now; and where it
        // would be the same again, the range may be ours again meanwhile, and has a second look.
        if would_not_be_sigbus(address, access) {
            return Fault::Served;
        }
    }
    Fault::NotOurs
}
