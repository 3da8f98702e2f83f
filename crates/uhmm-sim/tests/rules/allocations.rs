//! Counts what the calling thread allocates (R18).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    fn count() {
        if COUNTING.get() {
            COUNT.set(COUNT.get() + 1);
        }
    }
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::count();
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How often `call` allocates or frees memory of the heap on this thread.
pub fn counted(call: impl FnOnce()) -> usize {
    COUNT.set(0);
    COUNTING.set(true);
    call();
    COUNTING.set(false);
    COUNT.get()
}

/// Runs `call` without counting.
pub fn uncounted<R>(call: impl FnOnce() -> R) -> R {
    with_counting(false, call)
}

/// Whether the calling thread's allocations are counted now.
pub fn is_counting() -> bool {
    COUNTING.get()
}

/// Runs `call`, and counts or does not.
pub fn with_counting<R>(count: bool, call: impl FnOnce() -> R) -> R {
    let counting = COUNTING.replace(count);
    let result = call();
    COUNTING.set(counting);
    result
}
