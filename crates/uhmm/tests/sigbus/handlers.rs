//! Handlers that note what they were told, and things that raise SIGBUS.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null_mut, write_volatile};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use crate::PAGE;

pub static CALLS: AtomicU32 = AtomicU32::new(0);
pub static CODE: AtomicI32 = AtomicI32::new(0);
pub static ADDRESS: AtomicUsize = AtomicUsize::new(0);
pub static VALUE: AtomicUsize = AtomicUsize::new(0);
/// What was blocked while the handler ran; bit n - 1 is signal n.
pub static MASK: AtomicU64 = AtomicU64::new(0);
/// The file behind a [`Page`], which a handler makes long enough.
static FILE: AtomicI32 = AtomicI32::new(-1);

/// A `sigaction` with this handler.
pub fn action(handler: usize, flags: c_int) -> libc::sigaction {
    // SAFETY: plain data, for which zeros are a value.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    action
}

/// Installs it by the C library's call.
pub fn install(new: &libc::sigaction) -> libc::sigaction {
    let mut old = MaybeUninit::uninit();
    // SAFETY: structures of the call's type; the handlers here may run at any moment.
    unsafe {
        assert_eq!(libc::sigaction(libc::SIGBUS, new, old.as_mut_ptr()), 0);
        old.assume_init()
    }
}

fn note() {
    CALLS.fetch_add(1, SeqCst);
    let mut mask = 0u64;
    // SAFETY: the kernel writes a set of 8 bytes.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            null_mut::<u64>(),
            &raw mut mask,
            8,
        )
    };
    MASK.store(mask, SeqCst);
    mend();
}

fn mend() {
    let file = FILE.load(SeqCst);
    if file >= 0 {
        // SAFETY: a file of ours.
        unsafe { libc::ftruncate(file, PAGE as i64) };
    }
}

/// A handler of one argument.
pub extern "C" fn plain(signal: c_int) {
    assert_eq!(signal, libc::SIGBUS);
    note();
}

/// A handler of three.
pub extern "C" fn told(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    assert_eq!(signal, libc::SIGBUS);
    assert!(!context.is_null());
    // SAFETY: the kernel's structure, or one like it.
    unsafe {
        CODE.store((*info).si_code, SeqCst);
        ADDRESS.store((*info).si_addr() as usize, SeqCst);
        VALUE.store((*info).si_value().sival_ptr as usize, SeqCst);
    }
    note();
}

/// A mapping of a file that has no bytes: a touch is a SIGBUS, until a handler has made the file longer.
pub struct Page(pub *mut u8);

impl Page {
    pub fn new() -> Self {
        // SAFETY: a new mapping of a new file, which overlaps nothing.
        unsafe {
            let file = libc::memfd_create(c"uhmm-test".as_ptr(), 0);
            let all = libc::PROT_READ | libc::PROT_WRITE;
            let page = libc::mmap(null_mut(), PAGE, all, libc::MAP_SHARED, file, 0);
            assert_ne!(page, libc::MAP_FAILED);
            FILE.store(file, SeqCst);
            Self(page.cast())
        }
    }

    /// Writes to it, and what comes of that.
    pub fn touch(&self) -> u8 {
        // SAFETY: the mapping is this page's, and a handler sees to it that it can be written.
        unsafe {
            write_volatile(self.0.add(100), 42);
            self.0.add(100).read_volatile()
        }
    }
}

/// Sends SIGBUS to this thread.
pub fn send() {
    // SAFETY: has no effect on memory.
    unsafe { libc::raise(libc::SIGBUS) };
}

/// Sends SIGBUS to this thread, with a value.
pub fn send_value(value: usize) {
    let value = libc::sigval {
        sival_ptr: value as *mut c_void,
    };
    // SAFETY: as above.
    unsafe { libc::pthread_sigqueue(libc::pthread_self(), libc::SIGBUS, value) };
}
