//! Memory of our own, never managed: the library's global allocator.
//!
//! dlmalloc over one reserved range, so that a pointer's owner is known by its address.

use dlmalloc::{Allocator, Dlmalloc};
use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicUsize, Ordering::*};
use uhmm_core::lock::{Guard, Lock};
use uhmm_linux::mapping::Mapping;

/// Sizes of the range that are tried, in bytes: the address space may be limited.
const RANGES: [usize; 6] = [256 << 30, 32 << 30, 4 << 30, 512 << 20, 64 << 20, 8 << 20];

static BASE: AtomicUsize = AtomicUsize::new(0);
static LEN: AtomicUsize = AtomicUsize::new(0);

/// Whether `pointer` was allocated here.
#[inline]
pub fn owns(pointer: *const u8) -> bool {
    (pointer as usize).wrapping_sub(BASE.load(Relaxed)) < LEN.load(Relaxed)
}

/// Hands out the range from its start on; what comes back at its end is handed out again.
struct Source {
    mapping: Option<Mapping>,
    used: usize,
}

/// dlmalloc wants a shared source; the lock around the heap makes it ours alone.
struct Shared(Lock<Source>);

static SOURCE: Shared = Shared(Lock::new(Source {
    mapping: None,
    used: 0,
}));

impl Source {
    fn take(&mut self, size: usize) -> Option<*mut u8> {
        if self.mapping.is_none() {
            let reserve = |len| {
                let mapping = Mapping::anonymous(len, c"uhmm-internal").ok()?;
                mapping.allow_all().ok()?;
                mapping.leave_out_of_dumps();
                Some(mapping)
            };
            let mapping = RANGES.into_iter().find_map(reserve)?;
            BASE.store(mapping.address(), Release);
            LEN.store(mapping.len(), Release);
            self.mapping = Some(mapping);
        }
        let mapping = self.mapping.as_ref()?;
        let end = self
            .used
            .checked_add(size)
            .filter(|&end| end <= mapping.len())?;
        let start = std::mem::replace(&mut self.used, end);
        Some(mapping.at(start))
    }

    /// Takes bytes back; their memory goes to the machine.
    fn give(&mut self, address: usize, size: usize) {
        let Some(mapping) = &self.mapping else { return };
        let offset = address - mapping.address();
        mapping.discard(offset, size);
        if offset + size == self.used {
            self.used = offset;
        }
    }
}

// SAFETY: hands out disjoint, zeroed, writable memory, aligned to pages; see `Source`.
unsafe impl Allocator for &'static Shared {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        match self.0.lock().take(size) {
            Some(start) => (start, size, 0),
            None => (std::ptr::null_mut(), 0, 0),
        }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        std::ptr::null_mut()
    }

    fn free_part(&self, start: *mut u8, old: usize, new: usize) -> bool {
        self.0.lock().give(start as usize + new, old - new);
        true
    }

    fn free(&self, start: *mut u8, size: usize) -> bool {
        self.0.lock().give(start as usize, size);
        true
    }

    fn can_release_part(&self, _: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        4096
    }
}

type Heap = Dlmalloc<&'static Shared>;

static HEAP: Lock<Heap> = Lock::new(Dlmalloc::new_with_allocator(&SOURCE));

/// The heap's lock during a fork, held by the forking thread, so that the child gets a whole heap.
static HELD: Lock<Option<Guard<'static, Heap>>> = Lock::new(None);

/// The forking thread, while [`HELD`] holds the lock; else zero.
static FORKING: AtomicUsize = AtomicUsize::new(0);

fn this_thread() -> usize {
    // SAFETY: has no preconditions.
    unsafe { libc::pthread_self() as usize }
}

fn with_heap<R>(work: impl FnOnce(&mut Heap) -> R) -> R {
    if FORKING.load(Relaxed) == this_thread()
        && let Some(heap) = &mut *HELD.lock()
    {
        return work(heap);
    }
    work(&mut HEAP.lock())
}

/// Keeps the heap whole in the children of forks. To be called before any other hook for forks is
/// set that allocates from here or needs those who do: hooks *before* a fork run in reverse order.
pub fn hold_during_forks() {
    extern "C" fn prepare() {
        let heap = HEAP.lock();
        *HELD.lock() = Some(heap);
        FORKING.store(this_thread(), Relaxed);
    }
    extern "C" fn end() {
        FORKING.store(0, Relaxed);
        drop(HELD.lock().take());
    }
    // SAFETY: functions of this library, which is never unloaded.
    unsafe { libc::pthread_atfork(Some(prepare), Some(end), Some(end)) };
}

/// The library's own allocator.
pub struct Internal;

#[global_allocator]
static GLOBAL: Internal = Internal;

// SAFETY: dlmalloc is an allocator; the lock gives it to one thread at a time.
unsafe impl GlobalAlloc for Internal {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the heap is ours alone meanwhile.
        with_heap(|heap| unsafe { heap.malloc(layout.size(), layout.align()) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        with_heap(|heap| unsafe { heap.calloc(layout.size(), layout.align()) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the caller got `pointer` from here with this layout.
        with_heap(|heap| unsafe { heap.free(pointer, layout.size(), layout.align()) })
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        with_heap(|heap| unsafe { heap.realloc(pointer, layout.size(), layout.align(), size) })
    }
}

/// What stands before memory that was allocated without its size being remembered by the caller:
/// the layout, to free it by.
#[repr(C)]
struct Head {
    size: usize,
    align: usize,
}

const HEAD: usize = size_of::<Head>();

/// Allocates as C's `memalign`: null when there is no memory.
pub fn allocate(size: usize, align: usize, zeroed: bool) -> *mut u8 {
    let align = align.max(HEAD).next_power_of_two();
    let layout = size
        .checked_add(align)
        .and_then(|all| Layout::from_size_align(all, align).ok());
    let Some(layout) = layout else {
        return std::ptr::null_mut();
    };
    // SAFETY: the layout is not empty; the head fits into the `align` bytes before the result.
    unsafe {
        let base = if zeroed {
            GLOBAL.alloc_zeroed(layout)
        } else {
            GLOBAL.alloc(layout)
        };
        if base.is_null() {
            return base;
        }
        let pointer = base.add(align);
        pointer.sub(HEAD).cast::<Head>().write(Head {
            size: layout.size(),
            align,
        });
        pointer
    }
}

/// Frees what [`allocate`] gave.
///
/// # Safety
/// `pointer` came from [`allocate`] and is not used again.
pub unsafe fn release(pointer: *mut u8) {
    // SAFETY: the head stands where `allocate` wrote it.
    unsafe {
        let Head { size, align } = pointer.sub(HEAD).cast::<Head>().read();
        GLOBAL.dealloc(
            pointer.sub(align),
            Layout::from_size_align_unchecked(size, align),
        );
    }
}

/// Bytes that can be used at what [`allocate`] gave.
///
/// # Safety
/// `pointer` came from [`allocate`] and is live.
pub unsafe fn usable(pointer: *const u8) -> usize {
    // SAFETY: as in `release`.
    unsafe {
        let head = pointer.sub(HEAD).cast::<Head>();
        (*head).size - (*head).align
    }
}
