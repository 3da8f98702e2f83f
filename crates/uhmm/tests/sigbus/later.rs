//! Handlers that a program installs when there is a space already, and faults inside of handlers.

use crate::handlers::{CALLS, plain, told};
use crate::{End, PAGE, Page, action, alone, ends, install, send, space, touch_all};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use uhmm::{BuildError, EngineError, sigbus};

#[test]
fn a_handler_set_behind_ours_is_called_and_the_one_before_is_told() {
    let _alone = alone();
    let first = action(plain as *const () as usize, libc::SA_RESTART);
    let end = ends(&first, |space, region| {
        let second = action(told as *const () as usize, libc::SA_SIGINFO);
        // SAFETY: the handler only notes and mends.
        let old = unsafe { sigbus::set_handler(&second) }.unwrap();
        assert_eq!(old.sa_sigaction, plain as *const () as usize);
        assert_eq!(old.sa_flags & libc::SA_RESTART, libc::SA_RESTART);
        assert_eq!(Page::new().touch(), 42);
        touch_all(region);
        assert!(space.check_engine().is_ok());
        // SAFETY: the default.
        let old = unsafe { sigbus::set_handler(&action(libc::SIG_DFL, 0)) }.unwrap();
        assert_eq!(old.sa_sigaction, told as *const () as usize);
        touch_all(region);
        send();
        1
    });
    assert_eq!(end, End::Signal(libc::SIGBUS));
}

/// Without an engine it is `sigaction`; the engine then finds it like any other.
#[test]
fn a_handler_set_before_there_is_an_engine_is_found_by_it() {
    let _alone = alone();
    let found = crate::wait(crate::child(|| {
        let handler = action(plain as *const () as usize, 0);
        // SAFETY: the handler only notes and mends.
        unsafe { sigbus::set_handler(&handler) }.unwrap();
        assert_eq!(sigbus::check(), Ok(()));
        let space = space();
        let _region = crate::use_memory(&space);
        send();
        assert_eq!(CALLS.load(SeqCst), 1);
        0
    }));
    assert_eq!(found, End::Exit(0));
}

#[test]
fn a_handler_in_our_place_is_reported_and_mended() {
    let _alone = alone();
    let end = ends(&action(libc::SIG_DFL, 0), |space, region| {
        let intruder = action(plain as *const () as usize, 0);
        install(&intruder);
        let error = space.check_engine().unwrap_err();
        assert!(matches!(error, EngineError::Signal(_)), "{error:?}");
        let line = error.to_string();
        assert!(line.contains("uhmm::sigbus::set_handler"), "{line}");
        assert_eq!(line.lines().count(), 1);
        // No other space is built on that.
        let refused = uhmm::Builder::new(4 << 20)
            .engine(uhmm::Engine::Signal)
            .build();
        assert!(matches!(
            refused.map(drop),
            Err(BuildError::Engine(EngineError::Signal(_)))
        ));
        // SAFETY: the handler only notes and mends.
        let old = unsafe { sigbus::set_handler(&intruder) }.unwrap();
        assert_eq!(old.sa_sigaction, plain as *const () as usize);
        assert!(space.check_engine().is_ok());
        touch_all(region);
        assert_eq!(CALLS.load(SeqCst), 0);
        assert_eq!(Page::new().touch(), 42);
        assert_eq!(CALLS.load(SeqCst), 1);
        0
    });
    assert_eq!(end, End::Exit(0));
}

static MANAGED: AtomicUsize = AtomicUsize::new(0);

/// Touches managed memory that is missing.
extern "C" fn uses_memory(_signal: i32) {
    let page = MANAGED.load(SeqCst) as *mut u8;
    // SAFETY: within a region that lives.
    unsafe { page.write_volatile(page.read_volatile() + 1) };
    CALLS.fetch_add(1, SeqCst);
}

/// With SIGBUS open it may; blocked, as it is in a handler unless that says otherwise, it may not.
#[test]
fn a_handler_touches_managed_memory_if_it_leaves_sigbus_open() {
    let _alone = alone();
    for flags in [0, libc::SA_NODEFER] {
        let handler = action(uses_memory as *const () as usize, flags);
        let end = ends(&handler, |space, _| {
            let region = space.region(4 * PAGE).unwrap();
            MANAGED.store(region.as_ptr() as usize, SeqCst);
            send();
            assert_eq!(region.as_slice()[0], 1);
            assert_eq!(CALLS.load(SeqCst), 1);
            0
        });
        let expected = match flags {
            0 => End::Signal(libc::SIGBUS),
            _ => End::Exit(0),
        };
        assert_eq!(end, expected);
    }
}

/// What is mapped over the space is the program's, its faults included.
#[test]
fn a_fault_on_a_file_mapped_over_the_space_is_the_programs() {
    let _alone = alone();
    let handler = action(told as *const () as usize, libc::SA_SIGINFO);
    let end = ends(&handler, |space, _| {
        let page = Page::new();
        let region = space.region(16 * PAGE).unwrap();
        let over = region.as_ptr() as usize + 4 * PAGE;
        let map = || {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            // SAFETY: from a mapping of ours, to pages of our region, which nobody uses.
            let moved = unsafe { libc::mremap(page.0.cast(), PAGE, PAGE, flags, over) };
            assert_eq!(moved as usize, over);
            Ok(())
        };
        // SAFETY: nobody has those pages.
        unsafe { space.memory().map_foreign(over, PAGE, map) }.unwrap();
        assert_eq!(Page(over as *mut u8).touch(), 42);
        assert_eq!(CALLS.load(SeqCst), 1);
        // The neighbours are ours.
        for page in [3, 5] {
            // SAFETY: within the region.
            unsafe { region.as_ptr().add(page * PAGE).write_volatile(7) };
        }
        assert_eq!(CALLS.load(SeqCst), 1);
        0
    });
    assert_eq!(end, End::Exit(0));
}
