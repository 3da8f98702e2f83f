//! The thread engine: one handler per CPU, blocked in `read` and pinned there.
//!
//! A fault wakes every handler, and the one on the faulting thread's own CPU normally wins: it runs
//! as soon as the faulting thread sleeps, without a wake-up of another CPU (docs/faults.md). A
//! read returns all messages that wait, events before the faults after them, and each fault is
//! served before the next read. `EINTR` and `EAGAIN` mean that nothing was read.
//!
//! Beside the handlers runs the reclaimer. None of these threads touches managed memory, takes a
//! signal, or is known to the program.
//!
//! # Stopping
//!
//! The last page of the space is the *bell*: nobody owns it. To stop, a flag is set and the bell is
//! touched. Each handler that reads the bell's fault wakes the toucher, whose touch repeats and
//! fetches the next handler; the last one fills the page.

use super::bell;
use super::crew::{Crew, Duty};
use super::reclaimer::{Reclaimer, Stoppable};
use crate::abi::uffd::{Event, Messages};
use crate::mmu::LinuxMmu;
use rustix::mm::{self, Advice, MprotectFlags};
use std::ffi::c_void;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use uhmm_core::Space;
use uhmm_core::addr::{PAGE_SIZE, PageData, PageNo, PageRange};
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::mmu::{Mmu, Tracking};

/// Handlers beyond this many only wake each other.
const MAX_HANDLERS: usize = 64;

/// What the threads share.
struct Shared {
    space: Arc<Space<LinuxMmu>>,
    stop: AtomicBool,
    handlers: AtomicUsize,
    bell: PageNo,
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
pub struct ThreadEngine {
    crew: Crew<Shared>,
}

impl ThreadEngine {
    /// Starts the handlers and the reclaimer of `space`.
    ///
    /// # Errors
    /// When threads cannot be created.
    pub fn start(space: Arc<Space<LinuxMmu>>) -> io::Result<Self> {
        let bell = bell(space.mmu().space_range());
        let one = PageRange::new(bell, 1);
        space
            .mmu()
            .protect(one, MprotectFlags::READ | MprotectFlags::WRITE)?;
        let shared = Arc::new(Shared {
            space,
            stop: AtomicBool::new(false),
            handlers: AtomicUsize::new(0),
            bell,
        });
        let mut engine = Self {
            crew: Crew::new(shared)?,
        };
        engine.spawn_all()?;
        Ok(engine)
    }

    fn spawn_all(&mut self) -> io::Result<()> {
        let allowed = rustix::thread::sched_getaffinity(None)?;
        let cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
        for cpu in cpus.take(MAX_HANDLERS) {
            self.crew.spawn::<Handler>(Some(cpu))?;
            self.crew.shared().handlers.fetch_add(1, AcqRel);
        }
        self.crew.spawn::<Reclaimer>(None)
    }

    /// Starts the threads again in the child of a fork, which has only the forking thread.
    ///
    /// # Errors
    /// When threads cannot be created.
    pub fn restart_in_child(&mut self) -> io::Result<()> {
        self.crew.forget_threads();
        self.crew.shared().handlers.store(0, Release);
        self.spawn_all()
    }
}

impl Drop for ThreadEngine {
    fn drop(&mut self) {
        let shared = self.crew.shared();
        shared.stop.store(true, SeqCst);
        if shared.handlers.load(Acquire) == 0 {
            // The engine did not get as far as to have a handler: nobody would hear the bell.
            return;
        }
        shared.space.wake_reclaimer();
        let bell = shared.bell.address() as *mut c_void;
        // SAFETY: the bell is a page of ours that holds nothing.
        let rung = unsafe { mm::madvise(bell, PAGE_SIZE, Advice::LinuxPopulateRead) };
        debug_assert!(rung.is_ok(), "the bell: {rung:?}");
        self.crew.join();
    }
}

/// Serves faults, on one CPU.
struct Handler;

impl Duty<Shared> for Handler {
    fn run(shared: &Shared) {
        let space = &*shared.space;
        let (mut messages, mut scratch) = (Messages::default(), Scratch::default());
        let mut rung = false;
        while !rung {
            let read = space.mmu().uffd().read(&mut messages, |event| {
                let Event::PageFault {
                    address,
                    write,
                    write_protected,
                    ..
                } = event
                else {
                    return;
                };
                let access = match (write_protected, write) {
                    (true, _) => Access::Tracked,
                    (false, true) => Access::Write,
                    (false, false) => Access::Read,
                };
                match space.mmu().page_at(address) {
                    Some(page) if page == shared.bell => rung = true,
                    Some(page) => space.fault(page, access, &mut scratch),
                    // Adopted memory that has been let go just now: the touch repeats, and meets memory.
                    None => _ = space.mmu().uffd().wake(address..address + PAGE_SIZE),
                }
            });
            if read.is_err() {
                // Only a descriptor that is not ours any more: nothing can be served.
                std::process::abort();
            }
        }
        debug_assert!(shared.stop.load(Acquire), "somebody touched the bell");
        if shared.handlers.fetch_sub(1, AcqRel) == 1 {
            let zeros = [PageData::ZERO];
            let _ = space.mmu().copy(&zeros, shared.bell, Tracking::Off);
        } else {
            space.mmu().wake(PageRange::new(shared.bell, 1));
        }
    }
}
