//! The C library's own functions behind ours of the same name, for those that we only listen to.

use libc::c_void;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::mem::{size_of, transmute_copy};
use std::sync::atomic::{AtomicPtr, Ordering::*};

/// The function of this name that would be called if there were none of ours.
pub struct Next<F> {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
    kind: PhantomData<F>,
}

impl<F: Copy> Next<F> {
    /// The next function `name`, not yet looked up.
    ///
    /// # Safety
    /// `F` is the type of a pointer to it.
    pub const unsafe fn named(name: &'static CStr) -> Self {
        assert!(size_of::<F>() == size_of::<*mut c_void>());
        Self {
            name,
            found: AtomicPtr::new(std::ptr::null_mut()),
            kind: PhantomData,
        }
    }

    /// The function; `None` where the C library has none.
    ///
    /// The first call looks it up, which a handler of signals may not do: so all are asked for once at
    /// the start.
    pub fn get(&self) -> Option<F> {
        let mut found = self.found.load(Relaxed);
        if found.is_null() {
            // SAFETY: the name is a string.
            found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.found.store(found, Relaxed);
        }
        // SAFETY: the promise of `named`; a pointer to code of a library that is never unloaded.
        (!found.is_null()).then(|| unsafe { transmute_copy(&found) })
    }
}
