//! Blocking signals around sections that a signal handler of the program must not interrupt.
//!
//! A handler may map memory, or fault. Run in the middle of a section that holds a lock of ours,
//! it would wait for its own thread.
//!
//! SIGBUS stays open once there is a signal engine: that is how a fault arrives then, sections of application
//! threads may touch managed memory, and a fault whose signal is blocked ends the process. So a SIGBUS that
//! is *sent* runs the program's handler there too, which may not call us (nor most other things, being a
//! handler).

use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering::*};

/// Faults arrive as SIGBUS.
static SIGBUS_SERVES: AtomicBool = AtomicBool::new(false);

/// Signals are blocked for the calling thread while this lives. It must be dropped on the thread that
/// made it.
pub struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    /// Blocks all signals; SIGBUS stays as it is where faults arrive so.
    pub fn all() -> Self {
        if SIGBUS_SERVES.load(Acquire) {
            Self::but_sigbus()
        } else {
            Self::and_sigbus()
        }
    }

    /// Blocks all signals but SIGBUS. For sections in which the first space may come to be.
    pub fn but_sigbus() -> Self {
        Self::these(&all_but(&[libc::SIGBUS]))
    }

    /// Blocks all signals, whatever SIGBUS is for. For sections that touch nothing but what is ours.
    pub(crate) fn and_sigbus() -> Self {
        Self::these(&all_but(&[]))
    }

    fn these(signals: &libc::sigset_t) -> Self {
        let mut before = MaybeUninit::uninit();
        // SAFETY: both sets are storage of the right type; with valid arguments the call cannot fail.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, signals, before.as_mut_ptr());
            Self {
                before: before.assume_init(),
            }
        }
    }
}

/// From now on faults arrive as SIGBUS.
pub(crate) fn leave_sigbus_open() {
    SIGBUS_SERVES.store(true, Release);
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that the thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, null_mut()) };
    }
}

/// All signals but those of `open`.
pub(crate) fn all_but(open: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is filled by the first call; the others get a set, and signals that exist.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for &signal in open {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Whether the calling thread has SIGBUS blocked.
pub(crate) fn blocks_sigbus() -> bool {
    let mut now = MaybeUninit::uninit();
    // SAFETY: the call only writes the set.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), now.as_mut_ptr());
        libc::sigismember(now.as_ptr(), libc::SIGBUS) == 1
    }
}

/// Makes `mask` (bit n - 1 is signal n) the signals that the calling thread blocks. Past the C library,
/// which leaves some out.
pub(crate) fn set_mask(mask: u64) {
    // SAFETY: the kernel reads a set of 8 bytes.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
}
