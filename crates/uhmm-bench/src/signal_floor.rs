//! The floor of faults in signal handlers: the barest handler there is.

use crate::error::Error;
use crate::floor::Pages;
use rustix::io::Errno;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering::*};
use uhmm_core::addr::{PAGE_SIZE, PageData};
use uhmm_linux::abi::uffd::Uffd;
use uhmm_linux::end::die_plainly;

/// `UFFD_FEATURE_SIGBUS`.
const SIGBUS: u64 = 1 << 7;

/// What the handler needs.
struct Source {
    uffd: Uffd,
    page: PageData,
}

/// Where the handler finds it.
static SOURCE: AtomicPtr<Source> = AtomicPtr::new(null_mut());

/// Memory whose missing pages are served by a handler of SIGBUS that answers each fault with `UFFDIO_COPY`
/// of one warm page, and looks at nothing but the address.
pub(crate) struct SignalLoop {
    source: Box<Source>,
    memory: Pages,
}

impl SignalLoop {
    /// `pages` pages, all missing, that begin with `word` and are zeros otherwise once they are
    /// touched.
    pub(crate) fn new(pages: usize, word: u64) -> Result<Self, Error> {
        let uffd = Uffd::open(SIGBUS)?;
        let memory = Pages::new(pages)?;
        let start = memory.as_slice().as_ptr() as usize;
        uffd.register(start..start + pages * PAGE_SIZE, false)?;
        let mut page = PageData::ZERO;
        page.0[..8].copy_from_slice(&word.to_le_bytes());
        Ok(Self {
            source: Box::new(Source { uffd, page }),
            memory,
        })
    }

    /// Makes all pages missing again.
    pub(crate) fn forget(&mut self) {
        self.memory.forget();
    }

    /// Gives the pages to `work`. Meanwhile the process's handler of SIGBUS is this one.
    pub(crate) fn with<R>(&mut self, work: impl FnOnce(&[u8]) -> R) -> R {
        let _installed = Installed::new(&self.source);
        work(self.memory.as_slice())
    }
}

struct Installed(libc::sigaction);

impl Installed {
    fn new(source: &Source) -> Self {
        SOURCE.store(std::ptr::from_ref(source).cast_mut(), Release);
        // SAFETY: zeros are a value of the structure; the handler finds its source until it is taken away.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = fill as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            let mut before = MaybeUninit::uninit();
            libc::sigaction(libc::SIGBUS, &action, before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // SAFETY: puts back what was found.
        unsafe { libc::sigaction(libc::SIGBUS, &self.0, null_mut()) };
    }
}

extern "C" fn fill(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel's structure, and the source of whoever has installed this.
    let (address, source) = unsafe { ((*info).si_addr() as usize, &*SOURCE.load(Acquire)) };
    let done = source.uffd.copy(&source.page.0, address & !(PAGE_SIZE - 1));
    if !matches!(done.stopped, None | Some(Errno::AGAIN | Errno::EXIST)) {
        die_plainly("uhmm: the bare handler of SIGBUS cannot go on\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content;

    #[test]
    fn the_bare_handler_serves_reads_again_and_again() {
        let pages = 300;
        let mut bare = SignalLoop::new(pages, 42).unwrap();
        for round in 0..3 {
            bare.forget();
            let order = content::shuffled(pages, round);
            bare.with(|memory| content::read_words(memory, &order, |_| 42))
                .unwrap();
        }
    }
}
