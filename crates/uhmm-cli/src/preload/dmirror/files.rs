//! The files that the program has open.
//!
//! A descriptor of a device is one of an empty file in memory, made for it: so `dup`, `fcntl`, `fork` and
//! whatever else hands descriptors around work without us. Which file of the driver it stands for is told by
//! its inode.
//!
//! A file is open for as long as this process has a descriptor or a mapping of it. Nobody tells us when the
//! last is gone; so the calls that take one away say so here, and then all are looked through. That is right
//! because nothing is missed:
//!
//! - a descriptor disappears under the lock, so one that moves to another number during a look is still at
//!   its old one;
//! - mappings change without it (a fork holds the gate of the space and waits for the lock, so who holds the
//!   lock may not wait for the gate): a look that another thread's change falls into counts for nothing, and
//!   that thread looks again when it is done.
//!
//! What a process has not opened itself it does not end: neither the child of a fork, whose files these are
//! not, nor that of a `vfork`, which has our memory and descriptors of its own.

use super::error;
use super::names::Name;
use libc::c_int;
use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, RawDir};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, IntoRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use uhmm_core::lock::{Guard, Lock};
use uhmm_linux::engine::stacks::needs_unmanaged_memory;
use uhmm_linux::signals::Blocked;

/// A file of the driver.
pub enum File {
    /// A device.
    Device(uhmm_dmirror::File<'static>),
    /// What pins pages.
    Gup(uhmm_dmirror::Gup<'static>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
}

struct Open {
    inode: Inode,
    file: Arc<File>,
    /// The process that has opened it.
    owner: u32,
    mapped: bool,
}

static OPEN: Lock<Vec<Open>> = Lock::new(Vec::new());

/// Files in [`OPEN`]: while there are none nobody has to look.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Those of them that have been mapped.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Changes of mappings under way, and all that there have been.
static CHANGING: AtomicUsize = AtomicUsize::new(0);
static CHANGES: AtomicUsize = AtomicUsize::new(0);

/// The lock, in the hands of a thread that takes no signals: a handler may close files too.
struct Held {
    open: Guard<'static, Vec<Open>>,
    _signals: Blocked,
}

fn hold() -> Held {
    let signals = Blocked::but_sigbus();
    Held {
        open: OPEN.lock(),
        _signals: signals,
    }
}

/// Keeps the list whole in the children of forks. To be called before the space sets its own hooks.
pub fn hold_during_forks() {
    static FORKING: Lock<Option<Held>> = Lock::new(None);
    extern "C" fn prepare() {
        let held = hold();
        *FORKING.lock() = Some(held);
    }
    extern "C" fn end() {
        let held = FORKING.lock().take();
        drop(held);
    }
    // SAFETY: functions of this library, which is never unloaded.
    unsafe { libc::pthread_atfork(Some(prepare), Some(end), Some(end)) };
}

/// Opens what has this name: `make` makes the file.
pub fn open(
    name: Name,
    close_on_exec: bool,
    make: impl FnOnce() -> io::Result<File>,
) -> io::Result<c_int> {
    let flags = match close_on_exec {
        true => MemfdFlags::CLOEXEC,
        false => MemfdFlags::empty(),
    };
    let fd = rustix::fs::memfd_create(name.of_memory(), flags)?.into_raw_fd();
    let opened = inode(fd)
        .ok_or_else(|| error(libc::EBADF))
        .and_then(|inode| {
            let file = Arc::new(make()?);
            let mut held = hold();
            held.open.push(Open {
                inode,
                file,
                owner: std::process::id(),
                mapped: false,
            });
            COUNT.store(held.open.len(), Release);
            Ok(fd)
        });
    if opened.is_err() {
        close(fd);
    }
    opened
}

/// The file that a descriptor is of, if it is one of ours.
pub fn find(fd: c_int) -> Option<Arc<File>> {
    if COUNT.load(Acquire) == 0 || needs_unmanaged_memory() {
        return None;
    }
    let inode = inode(fd)?;
    let held = hold();
    let found = held.open.iter().find(|open| open.inode == inode);
    found.map(|open| Arc::clone(&open.file))
}

/// Makes ready to map the first `len` bytes of the file of a descriptor, if that is a device's: `None` if
/// it is no file of ours.
pub fn before_mapping(fd: c_int, len: u64) -> Option<io::Result<()>> {
    if COUNT.load(Acquire) == 0 || needs_unmanaged_memory() {
        return None;
    }
    let inode = inode(fd)?;
    let mut held = hold();
    let open = held.open.iter_mut().find(|open| open.inode == inode)?;
    if let File::Gup(_) = &*open.file {
        return Some(Err(error(libc::ENODEV)));
    }
    // Under the lock: it only ever grows.
    // SAFETY: the program's descriptor; if it closes it meanwhile that is an error here.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    let grown = rustix::fs::fstat(file).and_then(|stat| match stat.st_size as u64 {
        size if size < len => rustix::fs::ftruncate(file, len),
        _ => Ok(()),
    });
    if !std::mem::replace(&mut open.mapped, true) {
        MAPPED.fetch_add(1, Release);
    }
    Some(grown.map_err(io::Error::from))
}

/// Makes `call`, which closes `fd`, or whatever it likes if that is `None`. Files that have no descriptor
/// and no mapping any more end before it returns.
pub fn closing<R>(fd: Option<c_int>, call: impl FnOnce() -> R) -> R {
    if COUNT.load(Acquire) == 0 || needs_unmanaged_memory() {
        return call();
    }
    let inode = fd.map(inode);
    let mut held = hold();
    let concerns = |open: &Open| inode.is_none_or(|inode| inode == Some(open.inode));
    if !held.open.iter().any(concerns) {
        drop(held);
        return call();
    }
    let result = call();
    keeping_errno(|| {
        let gone = unused(&mut held.open);
        drop(held);
        drop(gone);
    });
    result
}

/// Makes `call`, which changes mappings; the same as for [`closing`] holds where a file is mapped.
pub fn unmapping<R>(call: impl FnOnce() -> R) -> R {
    if MAPPED.load(Acquire) == 0 {
        return call();
    }
    CHANGING.fetch_add(1, SeqCst);
    let result = call();
    CHANGES.fetch_add(1, SeqCst);
    CHANGING.fetch_sub(1, SeqCst);
    keeping_errno(|| {
        let mut held = hold();
        let gone = unused(&mut held.open);
        drop(held);
        drop(gone);
    });
    result
}

/// What the caller's call has left in `errno` is what its caller wants to see.
fn keeping_errno(work: impl FnOnce()) {
    // SAFETY: the address is the calling thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let was = unsafe { *errno };
    work();
    // SAFETY: as above.
    unsafe { *errno = was };
}

/// Takes the files of this process off the list that it does not use any more. In doubt they stay.
fn unused(open: &mut Vec<Open>) -> Vec<Arc<File>> {
    let before = CHANGES.load(SeqCst);
    let Ok(described) = described(open) else {
        return Vec::new();
    };
    let me = std::process::id();
    let is_idle = |open: &Open| open.owner == me && !described.contains(&open.inode);
    let mut mapped = None;
    if open.iter().any(|open| open.mapped && is_idle(open)) {
        let changing = || CHANGING.load(SeqCst) != 0 || CHANGES.load(SeqCst) != before;
        mapped = self::mapped(open).ok().filter(|_| !changing());
    }
    let is_mapped = |of: &Open| {
        of.mapped
            && mapped
                .as_ref()
                .is_none_or(|mapped| mapped.contains(&of.inode))
    };
    let is_unused = |open: &mut Open| is_idle(open) && !is_mapped(open);
    let gone: Vec<Open> = open.extract_if(.., is_unused).collect();
    COUNT.store(open.len(), Release);
    let were_mapped = gone.iter().filter(|open| open.mapped).count();
    MAPPED.fetch_sub(were_mapped, Release);
    gone.into_iter().map(|open| open.file).collect()
}

/// The inodes of files on the list that this process has descriptors of.
///
/// What is opened here is closed by the kernel's own call: the list is locked, and the C library's `close`
/// would come back to us.
fn described(open: &[Open]) -> io::Result<Vec<Inode>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?.into_raw_fd();
    let mut found = Vec::new();
    let mut room = [MaybeUninit::uninit(); 2048];
    // SAFETY: it was opened just now, and is closed below.
    let mut entries = RawDir::new(unsafe { BorrowedFd::borrow_raw(folder) }, &mut room);
    let read = loop {
        match entries.next() {
            None => break Ok(found),
            Some(Err(errno)) => break Err(errno.into()),
            Some(Ok(entry)) => {
                let name = entry.file_name().to_str().ok();
                let number = name.and_then(|name| name.parse().ok());
                found.extend(number.and_then(inode).filter(|inode| has(open, *inode)));
            }
        }
    };
    close(folder);
    read
}

/// The inodes of files on the list that this process has mapped.
fn mapped(open: &[Open]) -> io::Result<Vec<Inode>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let maps = rustix::fs::open(c"/proc/self/maps", flags, Mode::empty())?.into_raw_fd();
    // SAFETY: it was opened just now, and is closed below.
    let file = unsafe { BorrowedFd::borrow_raw(maps) };
    let (mut text, mut part) = (Vec::new(), [0; 4096]);
    let read = loop {
        match rustix::io::read(file, &mut part) {
            Ok(0) => break Ok(()),
            Ok(len) => text.extend_from_slice(&part[..len]),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => break Err(errno),
        }
    };
    close(maps);
    read?;
    let text = String::from_utf8_lossy(&text);
    let found = text.lines().filter_map(inode_of_mapping);
    Ok(found.filter(|inode| has(open, *inode)).collect())
}

/// The inode in a line of `/proc/self/maps`: `7f00-7f01 r--p 00000000 00:01 1234   /memfd:name`.
fn inode_of_mapping(line: &str) -> Option<Inode> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    let half = |digits| u32::from_str_radix(digits, 16).ok();
    Some(Inode {
        device: rustix::fs::makedev(half(major)?, half(minor)?),
        number: fields.next()?.parse().ok()?,
    })
}

fn has(open: &[Open], inode: Inode) -> bool {
    open.iter().any(|open| open.inode == inode)
}

/// The inode of an open file; `None` if `fd` is none, or of no plain file.
fn inode(fd: c_int) -> Option<Inode> {
    if fd < 0 {
        return None;
    }
    // SAFETY: asks about the number alone; it may be no descriptor, or another one's by now.
    let stat = rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(fd) }).ok()?;
    let plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    plain.then_some(Inode {
        device: stat.st_dev,
        number: stat.st_ino,
    })
}

/// Closes a descriptor of ours, past the C library.
fn close(fd: c_int) {
    // SAFETY: whoever calls has opened it, and does not use it again.
    unsafe { rustix::io::close(fd) };
}
