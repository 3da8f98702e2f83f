//! The threads of one engine, and what they share.
//!
//! What is shared is counted: each thread has a count of its own, given to it when it is started, and
//! gives it back when it ends. In the child of a fork no thread is left to do so, and whoever starts them
//! again takes the counts back first.

use super::stacks::{Stacks, show_thread};
use std::ffi::c_void;
use std::io;
use std::sync::Arc;

/// Most engines have one thread for each CPU, and the reclaimer.
const USUAL: usize = 80;

/// See the module's head.
pub(crate) struct Crew<S> {
    shared: Arc<S>,
    stacks: Stacks,
    threads: Vec<libc::pthread_t>,
}

/// What a thread of a crew runs.
pub(crate) trait Duty<S> {
    /// Returns when the engine is to stop.
    fn run(shared: &S);
}

impl<S: Send + Sync> Crew<S> {
    pub(crate) fn new(shared: Arc<S>) -> io::Result<Self> {
        Ok(Self {
            shared,
            stacks: Stacks::new()?,
            threads: Vec::with_capacity(USUAL),
        })
    }

    pub(crate) fn shared(&self) -> &Arc<S> {
        &self.shared
    }

    /// Starts a thread for `D`, on the CPU `cpu` if one is given.
    pub(crate) fn spawn<D: Duty<S>>(&mut self, cpu: Option<usize>) -> io::Result<()> {
        let argument = Arc::into_raw(Arc::clone(&self.shared));
        match self
            .stacks
            .spawn(cpu, main::<S, D>, argument.cast_mut().cast())
        {
            Ok(thread) => self.threads.push(thread),
            Err(error) => {
                // SAFETY: the thread that would have owned this count does not exist.
                drop(unsafe { Arc::from_raw(argument) });
                return Err(error);
            }
        }
        Ok(())
    }

    /// Forgets all threads, in the child of a fork, where they do not exist.
    pub(crate) fn forget_threads(&mut self) {
        for _ in self.threads.drain(..) {
            // SAFETY: takes back the count that a thread of the parent held; here it never runs.
            unsafe { Arc::decrement_strong_count(Arc::as_ptr(&self.shared)) };
        }
        self.stacks.forget_threads();
    }

    /// Waits for the end of all threads, which have been told.
    pub(crate) fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // SAFETY: started by us, joined once.
            unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
        }
    }
}

extern "C" fn main<S, D: Duty<S>>(argument: *mut c_void) -> *mut c_void {
    // SAFETY: the spawner gave this thread one count of the `Arc`.
    let shared = unsafe { Arc::from_raw(argument.cast::<S>().cast_const()) };
    D::run(&shared);
    drop(shared);
    show_thread();
    std::ptr::null_mut()
}
