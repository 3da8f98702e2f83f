//! The handler that the program had before there was a space.

use crate::handlers::{ADDRESS, CALLS, CODE, MASK, VALUE, plain, told};
use crate::{End, PAGE, Page, action, alone, ends, send, send_value};
use std::ptr::null_mut;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

#[test]
fn with_the_default_a_fault_elsewhere_and_a_sent_signal_end_the_process() {
    let _alone = alone();
    let default = action(libc::SIG_DFL, 0);
    let by_fault = ends(&default, |_, _| i32::from(Page::new().touch()));
    assert_eq!(by_fault, End::Signal(libc::SIGBUS));
    let by_signal = ends(&default, |_, _| {
        send();
        1
    });
    assert_eq!(by_signal, End::Signal(libc::SIGBUS));
}

#[test]
fn what_is_ignored_is_ignored_unless_it_is_a_fault() {
    let _alone = alone();
    let ignored = action(libc::SIG_IGN, 0);
    let by_signal = ends(&ignored, |_, _| {
        send();
        send_value(3);
        0
    });
    assert_eq!(by_signal, End::Exit(0));
    let by_fault = ends(&ignored, |_, _| i32::from(Page::new().touch()));
    assert_eq!(by_fault, End::Signal(libc::SIGBUS));
}

#[test]
fn a_handler_of_one_argument_mends_the_fault() {
    let _alone = alone();
    let end = ends(&action(plain as *const () as usize, 0), |_, _| {
        assert_eq!(Page::new().touch(), 42);
        assert_eq!(CALLS.load(SeqCst), 1);
        send();
        assert_eq!(CALLS.load(SeqCst), 2);
        0
    });
    assert_eq!(end, End::Exit(0));
}

#[test]
fn a_handler_of_three_arguments_is_told_all() {
    let _alone = alone();
    let handler = action(told as *const () as usize, libc::SA_SIGINFO);
    let end = ends(&handler, |_, _| {
        let page = Page::new();
        assert_eq!(page.touch(), 42);
        assert_eq!(CALLS.load(SeqCst), 1);
        assert_eq!(CODE.load(SeqCst), libc::BUS_ADRERR);
        assert_eq!(ADDRESS.load(SeqCst), page.0 as usize + 100);
        send_value(0x1234);
        assert_eq!(CALLS.load(SeqCst), 2);
        assert_eq!(CODE.load(SeqCst), libc::SI_QUEUE);
        assert_eq!(VALUE.load(SeqCst), 0x1234);
        0
    });
    assert_eq!(end, End::Exit(0));
}

#[test]
fn its_mask_is_blocked_while_it_runs_and_nothing_else() {
    let _alone = alone();
    for (flags, own) in [
        (0, bit(libc::SIGBUS)),
        (libc::SA_NODEFER, 0),
        (libc::SA_NODEFER | libc::SA_SIGINFO, 0),
    ] {
        let function = match flags & libc::SA_SIGINFO {
            0 => plain as *const () as usize,
            _ => told as *const () as usize,
        };
        let mut handler = action(function, flags);
        // SAFETY: a set, and a signal.
        unsafe { libc::sigaddset(&mut handler.sa_mask, libc::SIGUSR1) };
        let end = ends(&handler, |_, _| {
            // What the thread blocks itself stays blocked.
            // SAFETY: plain data, filled by the calls.
            unsafe {
                let mut usr2 = std::mem::zeroed();
                libc::sigaddset(&mut usr2, libc::SIGUSR2);
                libc::pthread_sigmask(libc::SIG_BLOCK, &usr2, null_mut());
            }
            for _ in 0..2 {
                send();
                let expected = bit(libc::SIGUSR1) | bit(libc::SIGUSR2) | own;
                assert_eq!(MASK.swap(0, SeqCst), expected);
            }
            assert_eq!(Page::new().touch(), 42);
            assert_eq!(CALLS.load(SeqCst), 3);
            0
        });
        assert_eq!(end, End::Exit(0), "{flags:#x}");
    }
}

#[test]
fn a_handler_for_one_call_has_one() {
    let _alone = alone();
    let once = action(plain as *const () as usize, libc::SA_RESETHAND);
    let end = ends(&once, |_, region| {
        assert_eq!(Page::new().touch(), 42);
        crate::touch_all(region);
        send();
        1
    });
    assert_eq!(end, End::Signal(libc::SIGBUS));
}

#[test]
fn a_system_call_goes_on_after_a_signal_if_the_program_wants_that() {
    let _alone = alone();
    for restart in [true, false] {
        let flags = if restart { libc::SA_RESTART } else { 0 };
        let end = ends(&action(plain as *const () as usize, flags), |_, _| {
            let (mut reader, mut writer) = std::io::pipe().unwrap();
            // SAFETY: names this thread.
            let sleeper = unsafe { libc::pthread_self() };
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(50));
                    // SAFETY: the thread lives until the scope ends.
                    unsafe { libc::pthread_kill(sleeper, libc::SIGBUS) };
                    std::thread::sleep(Duration::from_millis(50));
                    std::io::Write::write_all(&mut writer, b"x").unwrap();
                });
                let read = std::io::Read::read(&mut reader, &mut [0; 4]);
                assert_eq!(CALLS.load(SeqCst), 1);
                match read {
                    Ok(bytes) => assert!(restart && bytes == 1),
                    Err(error) => {
                        assert!(!restart && error.kind() == std::io::ErrorKind::Interrupted);
                    }
                }
            });
            0
        });
        assert_eq!(end, End::Exit(0), "{restart}");
    }
}

/// The runtime's handler puts the default back when a SIGBUS is none of its own: the next one ends the
/// process, and until then memory is served.
#[test]
fn the_handler_of_rusts_runtime_does_not_take_ours_away() {
    let _alone = alone();
    let found = crate::wait(crate::child(|| {
        let space = crate::space();
        let mut region = crate::use_memory(&space);
        send();
        crate::touch_all(&mut region);
        assert_eq!(uhmm::sigbus::check(), Ok(()));
        drop(region);
        send();
        1
    }));
    assert_eq!(found, End::Signal(libc::SIGBUS));
}

/// A fault is no call of the program's: nothing of the thread changes by it.
#[test]
fn a_fault_leaves_errno_and_the_mask_alone() {
    let _alone = alone();
    let end = ends(&action(libc::SIG_DFL, 0), |space, _| {
        let region = space.region(64 * PAGE).unwrap();
        let mut before = 0u64;
        // SAFETY: the kernel writes a set of 8 bytes.
        let mask = |to: *mut u64| unsafe {
            let none = null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, none, to, 8)
        };
        mask(&mut before);
        for page in 0..64 {
            let mut after = 0u64;
            // SAFETY: this thread's; within the region.
            unsafe {
                *libc::__errno_location() = 4242;
                region.as_ptr().add(page * PAGE).write_volatile(1);
                assert_eq!(*libc::__errno_location(), 4242);
            }
            mask(&mut after);
            assert_eq!(after, before);
        }
        0
    });
    assert_eq!(end, End::Exit(0));
}
