//! Running a program in one's place: it gets the signals, its parent only waits.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::ptr::null_mut;

/// Signals that are passed on to the child when a process sends them. What the terminal sends,
/// it sends to the child as well.
const FORWARDED: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];

/// Signals that are the child's alone while it runs.
const LEFT_TO_CHILD: [libc::c_int; 2] = [libc::SIGINT, libc::SIGQUIT];

/// Runs `command` and waits for its end, as one who is not there: `SIGINT` and `SIGQUIT` are
/// ignored meanwhile (the terminal sends them to the child too), `SIGTERM`, `SIGHUP`, `SIGUSR1`
/// and `SIGUSR2` are passed on. The child starts with the signal mask that the caller has.
///
/// To be called while the process has one thread: signals that another thread does not block
/// would be taken by that one.
///
/// # Errors
///
/// The program cannot be started, or not be waited for.
pub fn run(command: &mut Command) -> io::Result<ExitStatus> {
    let held = HeldSignals::hold();
    held.give_back_in(command);
    let mut child = command.spawn()?;
    loop {
        let info = held.next();
        match info.si_signo {
            libc::SIGCHLD => {
                if let Some(status) = child.try_wait()? {
                    return Ok(status);
                }
            }
            // Codes above zero are the kernel's, such as those of a terminal that hangs up.
            signal if FORWARDED.contains(&signal) && info.si_code <= 0 => send(&child, signal),
            _ => {}
        }
    }
}

/// Sends `signal` to `child`, which has not been waited for.
fn send(child: &Child, signal: libc::c_int) {
    // SAFETY: no memory is touched. The process is our child and not reaped, so its number is its.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

/// Signals blocked, to be taken one by one; as they were before once this is dropped.
struct HeldSignals {
    held: libc::sigset_t,
    mask_before: libc::sigset_t,
    on_child_before: libc::sigaction,
}

impl HeldSignals {
    fn hold() -> Self {
        let mut held = MaybeUninit::uninit();
        let mut mask_before = MaybeUninit::uninit();
        let mut on_child_before = MaybeUninit::uninit();
        // SAFETY: every pointer is to storage for the value that the call writes, or to one
        // written before; with valid arguments none of the calls can fail. A zeroed `sigaction`
        // is the default disposition. It is set because a parent may have left SIGCHLD ignored,
        // and then there would be no signal and no exit status.
        unsafe {
            libc::sigemptyset(held.as_mut_ptr());
            for signal in FORWARDED
                .into_iter()
                .chain(LEFT_TO_CHILD)
                .chain([libc::SIGCHLD])
            {
                libc::sigaddset(held.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, held.as_ptr(), mask_before.as_mut_ptr());
            let default = MaybeUninit::<libc::sigaction>::zeroed();
            libc::sigaction(
                libc::SIGCHLD,
                default.as_ptr(),
                on_child_before.as_mut_ptr(),
            );
            Self {
                held: held.assume_init(),
                mask_before: mask_before.assume_init(),
                on_child_before: on_child_before.assume_init(),
            }
        }
    }

    /// Makes the child start as if nothing had been held.
    fn give_back_in(&self, command: &mut Command) {
        let (mask, on_child) = (self.mask_before, self.on_child_before);
        // SAFETY: the closure makes two async-signal-safe calls on values that it owns.
        unsafe {
            command.pre_exec(move || {
                give_back(&mask, &on_child);
                Ok(())
            })
        };
    }

    /// Waits for the next of the signals.
    fn next(&self) -> libc::siginfo_t {
        let mut info = MaybeUninit::uninit();
        loop {
            // SAFETY: both pointers are to storage of the right type; the call writes `info`
            // whenever it returns a signal.
            unsafe {
                if libc::sigwaitinfo(&raw const self.held, info.as_mut_ptr()) > 0 {
                    return info.assume_init();
                }
            }
        }
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        give_back(&self.mask_before, &self.on_child_before);
    }
}

fn give_back(mask: &libc::sigset_t, on_child: &libc::sigaction) {
    // SAFETY: both values were written by the same calls, and are only read.
    unsafe {
        libc::sigaction(libc::SIGCHLD, on_child, null_mut());
        libc::pthread_sigmask(libc::SIG_SETMASK, mask, null_mut());
    }
}
