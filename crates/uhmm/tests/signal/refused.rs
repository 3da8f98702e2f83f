//! Threads whose faults cannot be served: an error of its own each, before anything is lost.

use crate::{End, World, alone, builder, child, wait};
use std::ffi::c_void;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use uhmm::{BuildError, Engine, EngineError, Space};
use uhmm_linux::engine::signal::SignalError;

fn with_sigbus_blocked<R>(run: impl FnOnce() -> R) -> R {
    // SAFETY: sets of this thread's signals.
    unsafe {
        let (mut set, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigaddset(&mut set, libc::SIGBUS);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
        let result = run();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, null_mut());
        result
    }
}

fn is_blocked(error: &EngineError) -> bool {
    matches!(error, EngineError::Signal(SignalError::Blocked))
}

#[test]
fn a_thread_that_blocks_sigbus_is_told() {
    let _alone = alone();
    let world = World::new(16);
    with_sigbus_blocked(|| {
        let error = world.space.check_engine().unwrap_err();
        assert!(is_blocked(&error), "{error:?}");
        assert!(error.to_string().contains("unblock it"), "{error}");
        match builder(Engine::Signal).build() {
            Err(BuildError::Engine(error)) => assert!(is_blocked(&error), "{error:?}"),
            other => panic!("{:?}", other.map(drop)),
        }
    });
    assert!(world.space.check_engine().is_ok());
    // And what happens to it.
    let end = wait(child(|| {
        with_sigbus_blocked(|| {
            world.write(3);
            0
        })
    }));
    assert_eq!(end, End::Signal(libc::SIGBUS));
    world.write_all();
    world.check_all();
}

/// A call of ours leaves a SIGBUS blocked that the program blocks, and what waits there waiting.
#[test]
fn a_blocked_signal_that_waits_is_not_let_through() {
    let _alone = alone();
    let world = World::new(16);
    let end = wait(child(|| {
        with_sigbus_blocked(|| {
            // SAFETY: to this thread, which blocks it; taken below.
            unsafe { libc::raise(libc::SIGBUS) };
            let region = world.space.region(1 << 20).unwrap();
            drop(region);
            // SAFETY: sets of this thread's signals.
            unsafe {
                let mut set = std::mem::zeroed();
                libc::sigaddset(&mut set, libc::SIGBUS);
                let mut taken = 0;
                libc::sigwait(&set, &mut taken);
                assert_eq!(taken, libc::SIGBUS);
            }
            0
        })
    }));
    assert_eq!(end, End::Exit(0));
}

static PASSED: AtomicBool = AtomicBool::new(false);

/// Runs on a managed stack, all of which is there.
extern "C" fn checks_itself(space: *mut c_void) -> *mut c_void {
    // SAFETY: the space lives until this thread has ended.
    let space = unsafe { &*space.cast::<Space>() };
    let error = space.check_engine().unwrap_err();
    let is_stack = matches!(error, EngineError::Signal(SignalError::ManagedStack));
    PASSED.store(is_stack, SeqCst);
    null_mut()
}

extern "C" fn faults(page: *mut c_void) -> *mut c_void {
    // SAFETY: within a region that lives.
    unsafe { page.cast::<u8>().write_volatile(1) };
    null_mut()
}

/// Runs `main` on a stack in managed memory.
fn on_managed_stack(
    space: &Space,
    main: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) {
    const STACK: usize = 256 << 10;
    let mut stack = space.region(STACK).unwrap();
    stack.as_mut_slice().fill(0);
    // SAFETY: the stack is ours for as long as the thread runs.
    unsafe {
        let mut attributes = std::mem::zeroed();
        libc::pthread_attr_init(&mut attributes);
        libc::pthread_attr_setstack(&mut attributes, stack.as_ptr().cast(), STACK);
        let mut thread = 0;
        let started = libc::pthread_create(&mut thread, &attributes, main, argument);
        assert_eq!(started, 0);
        libc::pthread_join(thread, null_mut());
    }
}

#[test]
fn a_thread_on_a_managed_stack_is_told() {
    let _alone = alone();
    let world = World::new(16);
    let space = std::ptr::from_ref(&world.space).cast_mut();
    on_managed_stack(&world.space, checks_itself, space.cast());
    assert!(PASSED.load(SeqCst));
    // And what happens to it: the process ends with a line that says why.
    let (mut said, writer) = std::io::pipe().unwrap();
    let pid = child(|| {
        // SAFETY: descriptors of ours.
        unsafe { libc::dup2(writer.as_raw_fd(), 2) };
        on_managed_stack(&world.space, faults, world.at(3).cast());
        0
    });
    drop(writer);
    assert_eq!(wait(pid), End::Signal(libc::SIGKILL));
    let mut line = String::new();
    said.read_to_string(&mut line).unwrap();
    assert!(line.contains("stack is managed memory"), "{line}");
    assert!(line.contains("use the thread engine"), "{line}");
}

#[test]
fn a_managed_stack_for_signals_is_told() {
    let _alone = alone();
    let world = World::new(64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the structures are plain data; the stack is replaced before the region goes.
            unsafe {
                let managed = libc::stack_t {
                    ss_sp: world.at(0).cast(),
                    ss_flags: 0,
                    ss_size: 64 << 10,
                };
                let mut before = std::mem::zeroed();
                assert_eq!(libc::sigaltstack(&managed, &mut before), 0);
                let error = world.space.check_engine().unwrap_err();
                let is_stack = matches!(error, EngineError::Signal(SignalError::ManagedStack));
                assert!(is_stack, "{error:?}");
                assert_eq!(libc::sigaltstack(&before, null_mut()), 0);
            }
            assert!(world.space.check_engine().is_ok());
        });
    });
}
