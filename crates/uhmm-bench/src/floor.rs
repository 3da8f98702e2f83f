//! Floors: what the bare primitives cost, with nothing managed.

use crate::cpu;
use crate::error::Error;
use rustix::io::Errno;
use rustix::mm::{self, Advice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::thread::{Builder, JoinHandle};
use uhmm_core::addr::{PAGE_SIZE, PageData};
use uhmm_linux::abi::uffd::{Event, Messages, Uffd};
use uhmm_linux::end::die_plainly;
use uhmm_linux::mapping::Mapping;

/// Anonymous memory of the kernel's own, in pages of 4 KiB.
pub(crate) struct Pages(Mapping);

impl Pages {
    pub(crate) fn new(pages: usize) -> Result<Self, Error> {
        let mapping = Mapping::anonymous(pages * PAGE_SIZE, c"uhmm-bench")?;
        mapping.allow_all()?;
        // SAFETY: our own mapping, and only the size of the kernel's pages changes.
        let _ =
            unsafe { mm::madvise(mapping.at(0).cast(), mapping.len(), Advice::LinuxNoHugepage) };
        Ok(Self(mapping))
    }

    /// Gives all of it back to the kernel: it reads as zero.
    pub(crate) fn forget(&mut self) {
        self.0.discard(0, self.0.len());
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: mapped and readable while `self` lives, and written only by way of `&mut self`;
        // what fills a missing page does so before anyone has seen it.
        unsafe { std::slice::from_raw_parts(self.0.at(0), self.0.len()) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.at(0), self.0.len()) }
    }
}

/// What the threads of a [`FaultLoop`] share.
struct Shared {
    uffd: Uffd,
    source: Box<PageData>,
    bell: usize,
    handlers: AtomicUsize,
}

/// Memory whose missing pages are served by the barest loop there is: one thread on each CPU,
/// blocked in `read`, that answers each fault with `UFFDIO_COPY` of one warm page.
pub(crate) struct FaultLoop {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The last page is the bell: touching it ends the threads, one after the other.
    memory: Pages,
}

impl FaultLoop {
    /// `pages` pages, all missing, that begin with `word` and are zeros otherwise once they are
    /// touched.
    pub(crate) fn new(pages: usize, cpus: Vec<usize>, word: u64) -> Result<Self, Error> {
        let uffd = Uffd::open(0)?;
        let memory = Pages::new(pages + 1)?;
        let start = memory.0.address();
        uffd.register(start..start + memory.0.len(), false)?;
        let mut source = Box::new(PageData::ZERO);
        source.0[..8].copy_from_slice(&word.to_le_bytes());
        let shared = Arc::new(Shared {
            uffd,
            source,
            bell: start + pages * PAGE_SIZE,
            handlers: AtomicUsize::new(0),
        });
        let mut fault_loop = Self {
            shared,
            threads: Vec::new(),
            memory,
        };
        for cpu in cpus {
            let shared = Arc::clone(&fault_loop.shared);
            shared.handlers.fetch_add(1, AcqRel);
            let spawned = Builder::new().spawn(move || {
                cpu::pin(cpu);
                shared.serve();
            });
            match spawned {
                Ok(thread) => fault_loop.threads.push(thread),
                Err(error) => {
                    fault_loop.shared.handlers.fetch_sub(1, AcqRel);
                    return Err(error.into());
                }
            }
        }
        Ok(fault_loop)
    }

    /// Makes all pages missing again.
    pub(crate) fn forget(&mut self) {
        self.memory.forget();
    }

    /// The pages, without the bell.
    pub(crate) fn as_slice(&self) -> &[u8] {
        let all = self.memory.as_slice();
        &all[..all.len() - PAGE_SIZE]
    }

    /// The pages to write to, without the bell.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        let all = self.memory.as_mut_slice();
        let pages = all.len() - PAGE_SIZE;
        &mut all[..pages]
    }
}

impl Drop for FaultLoop {
    fn drop(&mut self) {
        if self.threads.is_empty() {
            return;
        }
        let pages = self.memory.as_slice();
        std::hint::black_box(pages[pages.len() - PAGE_SIZE]);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut messages = Messages::default();
        let mut rung = false;
        while !rung {
            let read = self.uffd.read(&mut messages, |event| match event {
                Event::PageFault { address, .. } if address == self.bell => rung = true,
                Event::PageFault { address, .. } => self.fill(address),
                _ => {}
            });
            if let Err(errno) = read {
                self.give_up(errno);
            }
        }
        if self.handlers.fetch_sub(1, AcqRel) == 1 {
            self.fill(self.bell);
        } else {
            self.wake(self.bell);
        }
    }

    fn fill(&self, address: usize) {
        loop {
            match self.uffd.copy(&self.source.0, address).stopped {
                None => return,
                Some(Errno::AGAIN) => {}
                Some(Errno::EXIST) => return self.wake(address),
                Some(errno) => self.give_up(errno),
            }
        }
    }

    fn wake(&self, address: usize) {
        if let Err(errno) = self.uffd.wake(address..address + PAGE_SIZE) {
            self.give_up(errno);
        }
    }

    /// A thread waits for a page that cannot be given: nothing else ends its wait.
    fn give_up(&self, errno: Errno) -> ! {
        die_plainly(&format!(
            "uhmm: the bare fault loop cannot go on: {errno}\n"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content;

    #[test]
    fn the_bare_loop_serves_reads_and_writes_again_and_again() {
        let pages = 300;
        let mut bare = FaultLoop::new(pages, cpu::allowed(), 42).unwrap();
        for round in 0..3 {
            bare.forget();
            let order = content::shuffled(pages, round);
            content::read_words(bare.as_slice(), &order, |_| 42).unwrap();
            bare.forget();
            content::write_words(bare.as_mut_slice(), &order, round);
            content::check_words(bare.as_slice(), round).unwrap();
        }
    }

    #[test]
    fn forgotten_pages_are_zeros() {
        let mut pages = Pages::new(4).unwrap();
        content::fill(pages.as_mut_slice(), 1);
        pages.forget();
        assert!(pages.as_slice().iter().all(|byte| *byte == 0));
    }
}
