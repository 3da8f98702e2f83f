//! The C library's allocator calls, by mimalloc; see the crate's head for who gets which memory.

use super::internal;
use super::start::wants_internal;
use libc::{c_int, c_void, size_t};
use libmimalloc_sys as mi;

fn or_no_memory(pointer: *mut c_void) -> *mut c_void {
    if pointer.is_null() {
        set_errno(libc::ENOMEM);
    }
    pointer
}

fn set_errno(errno: c_int) {
    // SAFETY: the address is the calling thread's own.
    unsafe { *libc::__errno_location() = errno };
}

/// C's `malloc`.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: size_t) -> *mut c_void {
    or_no_memory(if wants_internal() {
        internal::allocate(size, 16, false).cast()
    } else {
        // SAFETY: any size is allowed.
        unsafe { mi::mi_malloc(size) }
    })
}

/// C's `calloc`.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: size_t, size: size_t) -> *mut c_void {
    or_no_memory(if wants_internal() {
        match count.checked_mul(size) {
            Some(all) => internal::allocate(all, 16, true).cast(),
            None => std::ptr::null_mut(),
        }
    } else {
        // SAFETY: any sizes are allowed.
        unsafe { mi::mi_calloc(count, size) }
    })
}

/// C's `free`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(pointer: *mut c_void) {
    if internal::owns(pointer.cast()) {
        // SAFETY: allocated there; the caller is done with it.
        unsafe { internal::release(pointer.cast()) }
    } else {
        // SAFETY: everything else that can be freed came from mimalloc.
        unsafe { mi::mi_free(pointer) }
    }
}

/// C's `realloc`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(pointer: *mut c_void, size: size_t) -> *mut c_void {
    if pointer.is_null() {
        return malloc(size);
    }
    let is_internal = internal::owns(pointer.cast());
    if !is_internal && !wants_internal() {
        // SAFETY: from mimalloc, as in `free`.
        return or_no_memory(unsafe { mi::mi_realloc(pointer, size) });
    }
    let new = malloc(size);
    if !new.is_null() {
        // SAFETY: both live and distinct; no more than either holds is copied.
        unsafe {
            let old = malloc_usable_size(pointer);
            std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), new.cast(), old.min(size));
            free(pointer);
        }
    }
    new
}

/// The GNU and BSD `reallocarray`.
///
/// # Safety
/// As `realloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(
    pointer: *mut c_void,
    count: size_t,
    size: size_t,
) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's promise.
        Some(all) => unsafe { realloc(pointer, all) },
        None => or_no_memory(std::ptr::null_mut()),
    }
}

fn aligned(align: size_t, size: size_t) -> *mut c_void {
    if wants_internal() {
        internal::allocate(size, align, false).cast()
    } else {
        // SAFETY: mimalloc checks the alignment itself.
        unsafe { mi::mi_malloc_aligned(size, align) }
    }
}

/// C's `aligned_alloc`.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: size_t, size: size_t) -> *mut c_void {
    if !align.is_power_of_two() {
        set_errno(libc::EINVAL);
        return std::ptr::null_mut();
    }
    or_no_memory(aligned(align, size))
}

/// The old `memalign`.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: size_t, size: size_t) -> *mut c_void {
    aligned_alloc(align.max(1).next_power_of_two(), size)
}

/// POSIX `posix_memalign`.
///
/// # Safety
/// `out` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(
    out: *mut *mut c_void,
    align: size_t,
    size: size_t,
) -> c_int {
    if !align.is_power_of_two() || align < size_of::<usize>() {
        return libc::EINVAL;
    }
    let pointer = aligned(align, size);
    if pointer.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's promise.
    unsafe { *out = pointer };
    0
}

/// The old `valloc`: aligned to a page.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: size_t) -> *mut c_void {
    or_no_memory(aligned(4096, size))
}

/// The old `pvalloc`: whole pages.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: size_t) -> *mut c_void {
    match size.checked_next_multiple_of(4096) {
        Some(all) => valloc(all),
        None => or_no_memory(std::ptr::null_mut()),
    }
}

/// The GNU `malloc_usable_size`.
///
/// # Safety
/// `pointer` is null or live, from this allocator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(pointer: *mut c_void) -> size_t {
    if pointer.is_null() {
        0
    } else if internal::owns(pointer.cast()) {
        // SAFETY: allocated there.
        unsafe { internal::usable(pointer.cast()) }
    } else {
        // SAFETY: from mimalloc, as in `free`.
        unsafe { mi::mi_usable_size(pointer) }
    }
}

/// The old `cfree`.
///
/// # Safety
/// As `free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cfree(pointer: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { free(pointer) }
}
