//! The C library's open files (`FILE`), of which it has a list of its own.

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

/// More than glibc's `FILE`, its lock and its wide part take together.
const SIZE: usize = 1024;

/// glibc's iterator over the list.
struct Iterator {
    begin: extern "C" fn() -> *mut c_void,
    end: extern "C" fn() -> *mut c_void,
    next: extern "C" fn(*mut c_void) -> *mut c_void,
    lock: extern "C" fn(),
    unlock: extern "C" fn(),
}

fn iterator() -> Option<&'static Iterator> {
    static FOUND: OnceLock<Option<Iterator>> = OnceLock::new();
    fn symbol(name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the name is a string; looking it up runs no code of others.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }
    FOUND
        .get_or_init(|| {
            // SAFETY: these are the types of the functions of these names in glibc; no other C
            // library has them.
            unsafe {
                Some(Iterator {
                    begin: std::mem::transmute::<*mut c_void, extern "C" fn() -> *mut c_void>(
                        symbol(c"_IO_iter_begin")?,
                    ),
                    end: std::mem::transmute::<*mut c_void, extern "C" fn() -> *mut c_void>(
                        symbol(c"_IO_iter_end")?,
                    ),
                    next: std::mem::transmute::<
                        *mut c_void,
                        extern "C" fn(*mut c_void) -> *mut c_void,
                    >(symbol(c"_IO_iter_next")?),
                    lock: std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(
                        c"_IO_list_lock",
                    )?),
                    unlock: std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(
                        c"_IO_list_unlock",
                    )?),
                })
            }
        })
        .as_ref()
}

/// Finds what [`each_open_file`] needs; that may allocate and take locks of the C library.
pub fn prepare() {
    iterator();
}

/// Calls `each` with the place of every open file of the C library, standard ones included, while
/// the list is locked. With other C libraries than glibc it does nothing.
pub fn each_open_file(mut each: impl FnMut(usize, usize)) {
    let Some(list) = iterator() else { return };
    (list.lock)();
    let (mut file, end) = ((list.begin)(), (list.end)());
    while file != end {
        each(file as usize, SIZE);
        file = (list.next)(file);
    }
    (list.unlock)();
}
