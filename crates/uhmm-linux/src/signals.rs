//! Blocking signals around sections that a signal handler of the program must not interrupt.
//!
//! A handler may map memory, or fault. Run in the middle of a section that holds a lock of ours,
//! it would wait for its own thread.

/// All signals are blocked for the calling thread while this lives. It must be dropped on the
/// thread that made it.
pub struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    /// Blocks all signals.
    pub fn all() -> Self {
        // SAFETY: the sets are plain data, filled by the calls.
        unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            Self { before }
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that the thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}
