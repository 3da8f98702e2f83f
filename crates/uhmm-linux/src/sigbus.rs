//! The process's handler of SIGBUS, while there is a signal engine: ours first, then the program's.
//!
//! A process has one handler of a signal. From the first signal engine on that is `on_sigbus`, for good:
//! it costs nothing where no fault is ours, and to take it out again would race with whoever put another
//! one over it. What the program had before is kept, and gets whatever is not a fault on managed memory,
//! as if ours were not there:
//!
//! | the program has | a fault (or memory that has failed) | a signal that was sent |
//! | --- | --- | --- |
//! | `SIG_DFL` | the process ends by SIGBUS, with a core of the access | the same |
//! | `SIG_IGN` | the same: a fault cannot be ignored | ignored |
//! | a function | called, with one argument or three (`SA_SIGINFO`) | the same |
//!
//! While a function runs, the signals of its mask are blocked, and SIGBUS unless `SA_NODEFER`;
//! `SA_RESETHAND` gives it one call; it may leave by `siglongjmp`, since nothing of ours is held. System
//! calls that a sent SIGBUS interrupts go on as its `SA_RESTART` says. Not as without us:
//!
//! - `SA_ONSTACK`: it runs on the stack that the thread is on. Serving a fault takes more than an alternate
//!   stack has, and the kernel lets one handler run on one stack only.
//! - a program that ignores SIGBUS: what cannot be restarted (`pause`, `nanosleep`) is interrupted by a
//!   SIGBUS that is sent, and what it executes starts with the default, not with the signal ignored.
//!
//! # Protocol
//!
//! `PROGRAM` is read by handlers and written by [`set_handler`], by `SA_RESETHAND`, and where the
//! program's own function has put the default back in our place (Rust's runtime does that for SIGBUS): then
//! that is what the program has from now on, and we go back in front. It is locked for a copy of three
//! words, with all signals blocked, SIGBUS included: nobody who holds it faults. In the child of a fork the
//! lock is taken over.
//!
//! A program that installs a handler by itself takes ours away: managed memory that is missing then ends in
//! that handler. [`check`] tells; [`set_handler`] is the call that does it right. If the new handler hands
//! what is not its own to the one that it found, all is well, but nobody can tell that from outside.

use crate::signals::{Blocked, all_but, leave_sigbus_open, set_mask};
use std::ffi::{c_int, c_void};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use uhmm_core::addr::PAGE_SHIFT;
use uhmm_core::lock::Lock;

/// What is to be done about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: the touch is to be repeated.
    Served,
    /// It is the program's affair.
    NotOurs,
    /// It is the program's affair: the page has lost its bytes.
    Lost,
}

/// Serves a fault, if it is one of ours. For signal handlers: allocates nothing, and leaves errno to us.
pub(crate) type Serve = unsafe fn(&libc::siginfo_t, *mut c_void) -> Fault;

static SERVE: OnceLock<Serve> = OnceLock::new();

/// What the program has for SIGBUS.
static PROGRAM: Lock<Action> = Lock::new(Action::DEFAULT);

/// Another handler of SIGBUS stands in the place of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced;

impl fmt::Display for Replaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the program has put its own handler of SIGBUS in the place of uhmm's, which the signal engine \
             needs: install it with `uhmm::sigbus::set_handler`, or before the first space is built",
        )
    }
}

impl std::error::Error for Replaced {}

/// A `sigaction`, as far as it matters here.
#[derive(Clone, Copy)]
struct Action {
    handler: usize,
    flags: c_int,
    /// Bit n - 1 is signal n.
    mask: u64,
}

impl Action {
    const DEFAULT: Self = Self {
        handler: libc::SIG_DFL,
        flags: 0,
        mask: 0,
    };

    fn of(action: &libc::sigaction) -> Self {
        Self {
            handler: action.sa_sigaction,
            flags: action.sa_flags,
            mask: signals_of(&action.sa_mask),
        }
    }

    fn is_function(self) -> bool {
        self.handler != libc::SIG_DFL && self.handler != libc::SIG_IGN
    }

    /// As the C library has it.
    fn to_libc(self) -> libc::sigaction {
        // SAFETY: plain data, for which zeros are a value.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = self.handler;
        action.sa_flags = self.flags;
        for signal in 1..=64 {
            if self.mask & 1 << (signal - 1) != 0 {
                // SAFETY: the set is a value; a signal that it cannot have is refused.
                unsafe { libc::sigaddset(&mut action.sa_mask, signal) };
            }
        }
        action
    }
}

/// The 64 signals of Linux, which a set of the C library or of the kernel begins with.
fn signals_of(set: &libc::sigset_t) -> u64 {
    // SAFETY: the set is larger than this and aligned as this is.
    unsafe { std::ptr::from_ref(set).cast::<u64>().read() }
}

/// The process's action for SIGBUS now, whosever it is.
fn current() -> io::Result<libc::sigaction> {
    let mut now = MaybeUninit::uninit();
    // SAFETY: writes the structure that it is given, if it succeeds.
    if unsafe { libc::sigaction(libc::SIGBUS, null(), now.as_mut_ptr()) } == 0 {
        // SAFETY: it has.
        Ok(unsafe { now.assume_init() })
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes ours the process's handler. `restart` is whether system calls go on after a SIGBUS that was sent.
fn put_ours(restart: bool) -> io::Result<()> {
    // SAFETY: plain data, for which zeros are a value. All signals are blocked while it runs but those that
    // tell of a mistake in it: blocked, they would end the process without a word.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | if restart { libc::SA_RESTART } else { 0 };
        action.sa_mask = all_but(&[libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP]);
        if libc::sigaction(libc::SIGBUS, &action, null_mut()) == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

fn is_ours(action: &libc::sigaction) -> bool {
    action.sa_sigaction == on_sigbus as *const () as usize
}

fn restarts(program: Action) -> bool {
    !program.is_function() || program.flags & libc::SA_RESTART != 0
}

/// Puts our handler in front of the program's, once; `serve` is asked first from then on.
///
/// # Errors
/// [`Replaced`] where it was installed before and somebody has put another one in its place.
pub(crate) fn install(serve: Serve) -> Result<(), Replaced> {
    let _signals = Blocked::and_sigbus();
    let mut program = PROGRAM.lock();
    if SERVE.get().is_some() {
        return check();
    }
    // These calls fail only for a signal that does not exist, or memory that is not ours.
    let before = current().expect("the action for SIGBUS");
    *program = Action::of(&before);
    // A handler that runs from here on waits for the lock, if it needs the program's action.
    SERVE.get_or_init(|| serve);
    leave_sigbus_open();
    put_ours(restarts(*program)).expect("a handler of SIGBUS");
    Ok(())
}

/// Whether our handler, if it was ever installed, is the process's still.
///
/// # Errors
/// [`Replaced`].
pub fn check() -> Result<(), Replaced> {
    if SERVE.get().is_none() || current().is_ok_and(|now| is_ours(&now)) {
        return Ok(());
    }
    Err(Replaced)
}

/// Installs `new` as the program's handler of SIGBUS, as `sigaction` does, but behind the signal engine's,
/// where there is one; returns the one before. Where ours had been replaced, it is put back in front.
///
/// # Errors
/// What `sigaction` returns.
///
/// # Safety
/// As of `sigaction`: the function must be one that may be called at any moment, with these arguments.
pub unsafe fn set_handler(new: &libc::sigaction) -> io::Result<libc::sigaction> {
    // A copy: what the caller has may be managed memory, whose faults need SIGBUS.
    let new = *new;
    let _signals = Blocked::and_sigbus();
    let mut program = PROGRAM.lock();
    if SERVE.get().is_none() {
        let mut old = MaybeUninit::uninit();
        // SAFETY: as the caller promises.
        if unsafe { libc::sigaction(libc::SIGBUS, &new, old.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: filled by the call.
        return Ok(unsafe { old.assume_init() });
    }
    let now = current()?;
    let old = if is_ours(&now) {
        program.to_libc()
    } else {
        now
    };
    *program = Action::of(&new);
    put_ours(restarts(*program))?;
    Ok(old)
}

/// The process's handler of SIGBUS.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a structure of this type; `serve` is called with what it passes.
    unsafe {
        let errno = *libc::__errno_location();
        let fault = match SERVE.get() {
            Some(serve) if (*info).si_code == libc::BUS_ADRERR => serve(&*info, context),
            _ => Fault::NotOurs,
        };
        *libc::__errno_location() = errno;
        match fault {
            Fault::Served => return,
            Fault::NotOurs => {}
            Fault::Lost => tell_loss(info),
        }
        pass_on(signal, info, context);
    }
}

/// Says of a fault that the memory has failed, as a kernel does that was built to tell (`MEMORY_FAILURE`).
///
/// # Safety
/// `info` tells of a fault.
unsafe fn tell_loss(info: *mut libc::siginfo_t) {
    /// Where the kernel has the number of bits of the address that say nothing, after the address itself.
    const LEAST_BIT: usize = 24;
    // SAFETY: the structure is the kernel's, of a fault, and 128 bytes long.
    unsafe {
        (*info).si_code = libc::BUS_MCEERR_AR;
        info.cast::<u8>()
            .add(LEAST_BIT)
            .cast::<i16>()
            .write(PAGE_SHIFT as i16);
    }
}

/// Does what the program wants done about a SIGBUS.
///
/// # Safety
/// With the arguments of a handler, from it, all signals blocked.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let action = {
        let mut program = PROGRAM.lock();
        let action = *program;
        if action.is_function() && action.flags & libc::SA_RESETHAND != 0 {
            program.handler = libc::SIG_DFL;
        }
        action
    };
    // SAFETY: the kernel's structure.
    let code = unsafe { (*info).si_code };
    // Of memory that has failed and that nobody touches the kernel tells by a signal that can be ignored.
    let was_sent = code <= 0 || code == libc::BUS_MCEERR_AO;
    match action.handler {
        libc::SIG_IGN if was_sent => {}
        // SAFETY: as the caller promises.
        libc::SIG_DFL | libc::SIG_IGN => unsafe { end(info) },
        // SAFETY: as the caller promises.
        _ => unsafe {
            call(action, signal, info, context);
            after_call();
        },
    }
}

/// Ends the process as the default action does, once the handler returns: the signal is raised again, with
/// all that it told, and waits until then. The core shows the access itself.
///
/// # Safety
/// As of [`pass_on`].
unsafe fn end(info: *const libc::siginfo_t) {
    // SAFETY: the structures are the kernel's and ours; a process may send itself any information.
    unsafe {
        libc::sigaction(libc::SIGBUS, &Action::DEFAULT.to_libc(), null_mut());
        let (process, thread) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
        let sent = libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            process,
            thread,
            libc::SIGBUS,
            info,
        );
        if sent != 0 {
            // The queue is full. One signal can always be pending.
            libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGBUS);
        }
    }
}

/// Calls the program's function as the kernel would.
///
/// # Safety
/// As of [`pass_on`]; `action` is a function that the program has installed.
unsafe fn call(action: Action, signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let own = if action.flags & libc::SA_NODEFER != 0 {
        0
    } else {
        1 << (libc::SIGBUS - 1)
    };
    // SAFETY: the context is the kernel's; the function takes these arguments, as the program has said when
    // it installed it.
    unsafe {
        let context = context.cast::<libc::ucontext_t>();
        set_mask(signals_of(&(*context).uc_sigmask) | action.mask | own);
        if action.flags & libc::SA_SIGINFO != 0 {
            type Three = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            let function: Three = std::mem::transmute(action.handler);
            function(signal, info, context.cast());
        } else {
            let function: extern "C" fn(c_int) = std::mem::transmute(action.handler);
            function(signal);
        }
    }
}

/// A function that has put the default, or "ignore", in our place means itself: see the module's head. What
/// else it has installed is left: that may well call us.
fn after_call() {
    set_mask(u64::MAX);
    let Ok(now) = current() else { return };
    if now.sa_sigaction == libc::SIG_DFL || now.sa_sigaction == libc::SIG_IGN {
        let mut program = PROGRAM.lock();
        *program = Action::of(&now);
        let _ = put_ours(restarts(*program));
    }
}
