//! The variables of those who serve faults, kept out of what a program can send to a device.
//!
//! A program may tell any of its memory to migrate. The variables of this library and of the C library are
//! private anonymous memory like others where they begin as zeros. If they went, a handler that reads one
//! would wait for itself (R18). So they are uhmm's own, and stay.

use libc::{c_int, c_void, dl_phdr_info, size_t};
use uhmm_linux::own;

const PAGE: usize = 4096;

/// Says whose they are.
pub fn keep() {
    unsafe extern "C" {
        fn __tls_get_addr(of: *mut c_void) -> *mut c_void;
        fn _Unwind_Backtrace(each: *mut c_void, argument: *mut c_void) -> c_int;
    }
    static OURS: u8 = 0;
    // One thing of each: this library, the C library, the loader, the unwinder.
    let mut used = [
        &raw const OURS as usize,
        libc::getpid as *const () as usize,
        __tls_get_addr as *const () as usize,
        _Unwind_Backtrace as *const () as usize,
    ];
    // SAFETY: `keep_of` takes what it is given here, and the call ends before `used` does.
    unsafe { libc::dl_iterate_phdr(Some(keep_of), (&raw mut used).cast()) };
}

/// Says so of the variables of one library, if it is among those whose addresses are at `used`.
unsafe extern "C" fn keep_of(info: *mut dl_phdr_info, _: size_t, used: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a loaded library, and the array of `keep`.
    let (base, segments, used) = unsafe {
        let info = &*info;
        let segments = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        (
            info.dlpi_addr as usize,
            segments,
            &*used.cast::<[usize; 4]>(),
        )
    };
    let loaded = || {
        segments
            .iter()
            .filter(|segment| segment.p_type == libc::PT_LOAD)
    };
    let whole = |of: &libc::Elf64_Phdr| {
        let start = base + of.p_vaddr as usize;
        start..start + of.p_memsz as usize
    };
    if loaded().any(|segment| used.iter().any(|at| whole(segment).contains(at))) {
        for segment in loaded().filter(|segment| segment.p_flags & libc::PF_W != 0) {
            let variables = whole(segment);
            own::add(variables.start / PAGE * PAGE..variables.end.next_multiple_of(PAGE));
        }
    }
    0
}
