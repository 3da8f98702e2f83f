//! The calling thread's stack.

use std::mem::MaybeUninit;
use std::ops::Range;

/// Where it lies; `None` if the C library cannot tell.
pub fn range() -> Option<Range<usize>> {
    let mut attributes = MaybeUninit::uninit();
    let (mut start, mut len) = (std::ptr::null_mut(), 0);
    // SAFETY: the attributes are made before they are read, and destroyed once; the outputs are ours.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let attributes = attributes.as_mut_ptr();
        let known = libc::pthread_attr_getstack(attributes, &mut start, &mut len) == 0;
        libc::pthread_attr_destroy(attributes);
        known.then(|| start as usize..start as usize + len)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_local_variable_is_on_the_stack() {
        let here = 0u8;
        let here = std::ptr::from_ref(&here) as usize;
        assert!(super::range().unwrap().contains(&here));
        let other = std::thread::spawn(|| super::range().unwrap());
        assert!(!other.join().unwrap().contains(&here));
    }
}
