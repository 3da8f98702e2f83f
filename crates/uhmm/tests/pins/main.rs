//! Pins on real faults: I/O by the kernel into and out of managed memory that stays where it is while
//! everything around it moves; what is pinned where; what is refused; both sides of a fork.

mod files;
mod forks;
mod places;
mod refusals;
mod threads;
#[path = "../world/mod.rs"]
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::PAGE_SIZE;
use uhmm::{Pin, PinError, PinFlags, Place};
use uhmm_core::pin;
use world::{FIRST, World};

const READ: PinFlags = PinFlags {
    write: false,
    longterm: false,
    fast: false,
    peer: false,
};
const WRITE: PinFlags = PinFlags {
    write: true,
    ..READ
};
const LONGTERM: PinFlags = PinFlags {
    longterm: true,
    ..READ
};
const FAST: PinFlags = PinFlags { fast: true, ..READ };

impl World {
    fn try_pin(&self, pages: Range<usize>, flags: PinFlags) -> Result<Pin<'_>, PinError> {
        let len = pages.len() * PAGE_SIZE;
        self.space.pin_pages(self.at(pages.start), len, flags)
    }

    fn pin(&self, pages: Range<usize>, flags: PinFlags) -> Pin<'_> {
        self.try_pin(pages, flags).unwrap()
    }

    /// A fast pin of what is there: a fault that was served late may have a page in hand for a moment.
    fn fast_pin(&self, pages: Range<usize>) -> Pin<'_> {
        let start = Instant::now();
        loop {
            match self.try_pin(pages.clone(), FAST) {
                Err(PinError::Page(pin::PinError::WouldFault(_)))
                    if start.elapsed() < Duration::from_secs(1) => {}
                done => return done.unwrap(),
            }
        }
    }
}

/// Why pages are not pinned, when something is in the way of one of them.
fn in_the_way(result: Result<Pin<'_>, PinError>) -> pin::PinError {
    match result.unwrap_err() {
        PinError::Page(error) => error,
        other => panic!("{other:?}"),
    }
}

/// The bytes that a pin holds, for a system call.
#[expect(clippy::mut_from_ref, reason = "a pin is of memory, not of a value")]
fn bytes<'a>(pin: &'a Pin<'_>) -> &'a mut [u8] {
    let bytes = pin.bytes();
    // SAFETY: mapped while it is pinned, and the calling test's alone.
    unsafe { std::slice::from_raw_parts_mut(bytes.start as *mut u8, bytes.len()) }
}

/// Runs `work` while other threads push everything out, send it to the device and bring it back.
fn while_all_moves(world: &World, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                world.push_out();
                thread::yield_now();
            }
        });
        scope.spawn(|| {
            while !done.load(SeqCst) {
                for to in [Place::Device(FIRST), Place::Ram] {
                    let _ = world.space.migrate(world.address, world.len(), to);
                }
            }
        });
        let result = catch_unwind(AssertUnwindSafe(work));
        done.store(true, SeqCst);
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    });
}
