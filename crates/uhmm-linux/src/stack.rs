//! Where threads have their stacks: the calling one, and the others.
//!
//! The C library unmaps the stack of a thread that has ended, and tells nobody. Memory that is managed then
//! would be managed still when another mapping lies there. So such memory is not managed, and the kernel is
//! asked for it: of each thread it knows the list of robust mutexes, which the GNU C library has in the
//! thread's descriptor, at the upper end of the stack. (Other C libraries make that list later, if at all:
//! their threads' stacks are not found.)

use crate::outlines;
use crate::proc_files::{MAPS, ProcError, open_high};
use rustix::fs::RawDir;
use rustix::io::Errno;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::Range;

const TASKS: &CStr = c"/proc/self/task";

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

/// Where the stacks of all threads lie that are found, the caller's perhaps too: mappings that were made to
/// be stacks (`MAP_STACK`; Linux marks them `nh` in `smaps`) are those of threads if they overlap one of these.
///
/// # Errors
/// The kernel does not say which threads there are, or what is mapped.
pub fn of_threads() -> Result<Vec<Range<usize>>, ProcError> {
    let descriptors = descriptors()?;
    let mapped = outlines::read(MAPS, &(0..usize::MAX))?;
    let stack = |descriptor: &usize| {
        let holds = |range: &&Range<usize>| range.contains(descriptor);
        let mut ranges = mapped.iter().map(|vma| &vma.range);
        let range = ranges.find(holds)?;
        Some(range.start..end_of_stack(*descriptor, range.end))
    };
    Ok(descriptors.iter().filter_map(stack).collect())
}

/// The end of a stack with a thread's descriptor, in a mapping that ends at `end`: other memory may have
/// been mapped right above it, and be one mapping with it.
fn end_of_stack(descriptor: usize, end: usize) -> usize {
    const PAGE: usize = uhmm_core::addr::PAGE_SIZE;
    if cfg!(target_arch = "x86_64") {
        // Nothing lies above the descriptor there, and the list is in its last page.
        (descriptor / PAGE + 1) * PAGE
    } else {
        // The thread's variables do.
        end
    }
}

/// An address in the descriptor of each thread that has a list of robust mutexes.
fn descriptors() -> Result<Vec<usize>, ProcError> {
    let tasks = open_high(TASKS)?;
    let failed = |errno: Errno| ProcError { path: TASKS, errno };
    // Not by the C library, which would allocate from a heap that may be managed.
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(tasks, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_str().unwrap_or_default();
        // Not `.` and `..`; a thread may have ended since.
        found.extend(name.parse().ok().and_then(robust_list));
    }
    Ok(found)
}

fn robust_list(thread: libc::pid_t) -> Option<usize> {
    let (mut head, mut len) = (0usize, 0usize);
    // SAFETY: the call writes two words, which are ours.
    let error = unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            thread,
            &raw mut head,
            &raw mut len,
        )
    };
    Some(head).filter(|&head| error == 0 && head != 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_threads_stack_is_found() {
        let (tell, stacks) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                tell.send(super::range().unwrap()).unwrap();
                let _ = stopped.recv();
            });
            let stack = stacks.recv().unwrap();
            let found = super::of_threads().unwrap();
            let is_it = |found: &&std::ops::Range<usize>| found.end == stack.end;
            let it = found.iter().find(is_it).expect("the thread's stack");
            assert!(it.start <= stack.start + (1 << 16), "{it:x?}, {stack:x?}");
            let own = super::range().unwrap();
            assert!(found.iter().any(|found| found.end == own.end), "{own:x?}");
            drop(stop);
        });
    }

    #[test]
    fn a_local_variable_is_on_the_stack() {
        let here = 0u8;
        let here = std::ptr::from_ref(&here) as usize;
        assert!(super::range().unwrap().contains(&here));
        let other = std::thread::spawn(|| super::range().unwrap());
        assert!(!other.join().unwrap().contains(&here));
    }
}
