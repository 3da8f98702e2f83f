//! What the tests share: a space with the four devices, memory to command them about, and commands as a
//! program sends them.

use crate::KIND;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use uhmm::device::PAGE_SIZE;
use uhmm::memory::Protection;
use uhmm::{Builder, DeviceId, Pin, PinFlags, Place, Space};
use uhmm_dmirror::{Driver, Errno, File, Op, Process, Reply, Sizes};

/// RAM of a space, in pages.
pub const BUDGET: usize = 16384;
/// The devices with private memory, and those with coherent memory.
pub const PRIVATE: [usize; 2] = [0, 1];
pub const COHERENT: [usize; 2] = [2, 3];
/// What out fields hold that nobody has written.
const UNTOUCHED: u64 = 0x5555_5555_5555_5555;

pub const ALL: Protection = Protection::READ.union(Protection::WRITE);

/// One test at a time, since a fork takes the whole process along; and each within a minute.
pub struct Alone {
    _over: Sender<()>,
    _lock: MutexGuard<'static, ()>,
}

/// Waits for the tests before.
pub fn alone() -> Alone {
    static LOCK: Mutex<()> = Mutex::new(());
    let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let (over, watched) = channel();
    thread::spawn(move || {
        if watched.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{name} hangs: it is given up after a minute");
            std::process::abort();
        }
    });
    Alone {
        _over: over,
        _lock: lock,
    }
}

pub fn space() -> Space {
    Builder::new((BUDGET * PAGE_SIZE) as u64).build().unwrap()
}

pub fn driver(space: &Space) -> Driver<'_> {
    sized(space, Sizes::default())
}

pub fn sized(space: &Space, sizes: Sizes) -> Driver<'_> {
    // SAFETY: commands of these tests name memory of these tests.
    Driver::new(unsafe { Process::new(space) }, sizes).unwrap()
}

/// Says when threads are to stop: also when the test fails, which waits for them.
#[derive(Default)]
pub struct Over(AtomicBool);

impl Over {
    pub fn is_over(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// It is over when this is dropped.
    pub fn at_the_end(&self) -> impl Drop + '_ {
        struct End<'a>(&'a Over);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.0.store(true, Relaxed);
            }
        }
        End(self)
    }
}

/// The bytes of a command.
pub fn bytes(address: usize, buffer: usize, pages: usize) -> [u8; 40] {
    let mut bytes = [0x55; 40];
    let fields = [address, buffer, pages].map(usize::to_ne_bytes);
    bytes[..24].copy_from_slice(fields.as_flattened());
    bytes
}

/// Sends a command, and sees to it that one that fails writes no out field.
pub fn send(file: &File<'_>, op: Op, range: Range<usize>, buffer: usize) -> Result<Reply, Errno> {
    let given = bytes(range.start, buffer, range.len() / PAGE_SIZE);
    let mut bytes = given;
    let done = file.ioctl(op.request(), &mut bytes);
    assert_eq!(bytes[..24], given[..24], "in fields are not changed");
    let out = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    let reply = Reply {
        pages: out(24),
        faults: out(32),
    };
    if done.is_err() {
        assert_eq!((reply.pages, reply.faults), (UNTOUCHED, UNTOUCHED));
    }
    done.map(|()| reply)
}

/// What a command returns that dealt with so many pages.
pub fn done(pages: usize, faults: u64) -> Result<Reply, Errno> {
    Ok(Reply {
        pages: pages as u64,
        faults,
    })
}

/// Whose memory the tests are about.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each test crate is about one")]
pub enum Kind {
    /// The space's.
    Managed,
    /// The program's.
    Plain,
}

/// Pages of the program. Each begins with its number and the version that was written last.
pub struct Buffer<'a> {
    space: &'a Space,
    address: usize,
    pages: usize,
}

impl<'a> Buffer<'a> {
    /// Pages that were never touched.
    pub fn new(space: &'a Space, pages: usize) -> Self {
        let len = pages * PAGE_SIZE;
        let address = match KIND {
            Kind::Managed => space.memory().map(len, ALL).unwrap(),
            Kind::Plain => map(len),
        };
        Self {
            space,
            address,
            pages,
        }
    }

    /// Pages that were written.
    pub fn filled(space: &'a Space, pages: usize, version: u64) -> Self {
        let buffer = Self::new(space, pages);
        buffer.fill(0..pages, version);
        buffer
    }

    #[allow(dead_code, reason = "each test crate uses a part of it")]
    pub fn space(&self) -> &'a Space {
        self.space
    }

    pub fn all(&self) -> Range<usize> {
        self.at(0..self.pages)
    }

    pub fn at(&self, pages: Range<usize>) -> Range<usize> {
        assert!(pages.end <= self.pages);
        self.address + pages.start * PAGE_SIZE..self.address + pages.end * PAGE_SIZE
    }

    pub fn address(&self) -> usize {
        self.address
    }

    fn word(&self, index: usize) -> *mut u64 {
        assert!(index < self.pages * PAGE_SIZE / 8);
        (self.address as *mut u64).wrapping_add(index)
    }

    /// Writes all words of pages.
    pub fn fill(&self, pages: Range<usize>, version: u64) {
        for (index, word) in words(pages, version) {
            // SAFETY: within the mapping, which no reference points to.
            unsafe { self.word(index).write_volatile(word) };
        }
    }

    /// All words of pages are what was written.
    pub fn check(&self, pages: Range<usize>, version: u64) {
        for (index, word) in words(pages, version) {
            // SAFETY: as above.
            let found = unsafe { self.word(index).read_volatile() };
            assert_eq!(found, word, "word {} of page {}", index % 512, index / 512);
        }
    }

    /// All bytes of pages are zeros.
    pub fn check_zeros(&self, pages: Range<usize>) {
        for index in pages.start * 512..pages.end * 512 {
            // SAFETY: as above.
            assert_eq!(unsafe { self.word(index).read_volatile() }, 0);
        }
    }

    /// Has the space manage pages, if it does not.
    fn manage(&self, pages: Range<usize>) -> Range<usize> {
        let range = self.at(pages);
        // SAFETY: the memory is of this buffer, which changes its mapping by way of the space.
        let managed = unsafe { self.space.manage(range.start, range.len()) };
        assert_eq!(managed.unwrap(), std::slice::from_ref(&range));
        range
    }

    pub fn pin(&self, pages: Range<usize>) -> Pin<'a> {
        let Range { start, end } = self.manage(pages);
        let pin = self
            .space
            .pin_pages(start, end - start, PinFlags::default());
        pin.unwrap()
    }

    /// Sends all pages to a device.
    pub fn migrate(&self, device: DeviceId) {
        let Range { start, end } = self.manage(0..self.pages);
        let done = self
            .space
            .migrate(start, end - start, Place::Device(device));
        assert_eq!(done.unwrap().left, 0);
    }

    pub fn protect(&self, pages: Range<usize>, protection: Protection) {
        let Range { start, end } = self.at(pages);
        let (memory, len) = (self.space.memory(), end - start);
        // SAFETY: nothing of it is borrowed.
        let call =
            || check(unsafe { libc::mprotect(start as *mut _, len, protection.bits() as i32) });
        // SAFETY: as above.
        unsafe {
            match KIND {
                Kind::Managed => memory.protect(start, len, protection),
                Kind::Plain => memory.around_protect(start, len, protection, call),
            }
        }
        .unwrap();
    }

    pub fn discard(&self, pages: Range<usize>) {
        let Range { start, end } = self.at(pages);
        let (memory, len) = (self.space.memory(), end - start);
        // SAFETY: as above.
        let call = || check(unsafe { libc::madvise(start as *mut _, len, libc::MADV_DONTNEED) });
        // SAFETY: as above.
        unsafe {
            match KIND {
                Kind::Managed => memory.discard(start, len),
                Kind::Plain => memory.around_discard(start, len, call),
            }
        }
        .unwrap();
    }

    pub fn unmap(&self, pages: Range<usize>) {
        let Range { start, end } = self.at(pages);
        let (memory, len) = (self.space.memory(), end - start);
        // SAFETY: as above.
        let call = || check(unsafe { libc::munmap(start as *mut _, len) });
        // SAFETY: as above.
        unsafe {
            match KIND {
                Kind::Managed => memory.unmap(start, len),
                Kind::Plain => memory.around_unmap(start, len, call),
            }
        }
        .unwrap();
    }
}

/// Maps memory of the program's own, on 2 MiB as the space does.
fn map(len: usize) -> usize {
    const HUGE: usize = 2 << 20;
    let (all, anywhere) = (len + HUGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new mappings, of which what is not used is given back.
    unsafe {
        let found = libc::mmap(std::ptr::null_mut(), all, libc::PROT_NONE, anywhere, -1, 0);
        assert_ne!(found, libc::MAP_FAILED);
        let start = (found as usize).next_multiple_of(HUGE);
        let whole = found as usize..found as usize + all;
        for rest in [whole.start..start, start + len..whole.end] {
            assert!(rest.is_empty() || libc::munmap(rest.start as *mut _, rest.len()) == 0);
        }
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        check(libc::mprotect(start as *mut _, len, writable)).unwrap();
        // What the tests count are pages of 4 KiB.
        check(libc::madvise(start as *mut _, len, libc::MADV_NOHUGEPAGE)).unwrap();
        start
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let _ = (!thread::panicking()).then(|| self.unmap(0..self.pages));
    }
}

/// The words of pages, with their places.
fn words(pages: Range<usize>, version: u64) -> impl Iterator<Item = (usize, u64)> {
    let word = move |index: usize| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version;
    (pages.start * 512..pages.end * 512).map(move |index| (index, word(index)))
}

/// One snapshot byte for each page.
pub fn snapshot(file: &File<'_>, range: Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0x55; range.len() / PAGE_SIZE];
    let buffer = bytes.as_mut_ptr() as usize;
    assert_eq!(
        send(file, Op::Snapshot, range, buffer),
        done(bytes.len(), 0)
    );
    bytes
}
