//! Counting the faults of a thread, in either engine.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use uhmm::{Engine, Space};

thread_local! {
    static SIGNALS: Cell<i64> = const { Cell::new(0) };
}

/// The handler that the counting one hands everything to.
static BEHIND: AtomicUsize = AtomicUsize::new(0);

/// Faults that this thread has taken, of any kind. The kernel does not count a fault that ends in a signal:
/// in the signal engine those are counted only while there is a [`Counting`].
pub fn faults() -> i64 {
    // SAFETY: plain data, filled by the call.
    unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage.ru_minflt + usage.ru_majflt + SIGNALS.get()
    }
}

/// While it lives, faults of the signal engine are counted too. One at a time in a process.
pub struct Counting(Option<libc::sigaction>);

/// Counts the faults on pages of `space` as what they are.
pub fn counting(space: &Space) -> Counting {
    Counting((space.engine() == Engine::Signal).then(|| {
        let mut action = install(None);
        let behind = action;
        BEHIND.store(action.sa_sigaction, SeqCst);
        action.sa_sigaction = count as *const () as usize;
        install(Some(&action));
        behind
    }))
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Some(behind) = &self.0 {
            install(Some(behind));
        }
    }
}

fn install(new: Option<&libc::sigaction>) -> libc::sigaction {
    let mut old = MaybeUninit::uninit();
    let new = new.map_or(null_mut(), |new| std::ptr::from_ref(new).cast_mut());
    // SAFETY: both are structures of this type, or none; the handler is one.
    unsafe {
        assert_eq!(libc::sigaction(libc::SIGBUS, new, old.as_mut_ptr()), 0);
        old.assume_init()
    }
}

/// A handler that hands on what is not its own, which is everything.
extern "C" fn count(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    SIGNALS.set(SIGNALS.get() + 1);
    type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
    // SAFETY: what was found takes three arguments: it is uhmm's.
    let behind: Handler = unsafe { std::mem::transmute(BEHIND.load(SeqCst)) };
    behind(signal, info, context);
}
