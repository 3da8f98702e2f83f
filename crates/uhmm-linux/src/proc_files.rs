//! The kernel's files about this process's own memory, kept open.
//!
//! `pagemap` says what is present, `mem` reads a page whatever its protection, `smaps` lists the mappings
//! with all there is to say of them, and of `maps` a single one can be asked for. They are opened once,
//! because later may be too late: a program lowers its limit on open files or uses it up, changes its user
//! (and `/proc/self` is root's from then on), or goes where no `/proc` is mounted. And a descriptor that
//! came and went with each call would have a low number for a moment, which the program may close, or put
//! a file of its own under, while we read from it.
//!
//! A descriptor refers to the memory of the process that opened it. In the child of a fork all are
//! opened anew ([`ProcFiles::renew`]): the parent's pages, or nothing once the parent has ended, would
//! be taken for the child's.

use crate::abi::{last_errno, pagemap};
use crate::mmu::high_fd;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{self, Errno};
use std::ffi::CStr;
use std::fmt;

const MEM: &CStr = c"/proc/self/mem";
/// See [`crate::vmas`].
pub(crate) const SMAPS: &CStr = c"/proc/self/smaps";
/// See [`crate::outlines`].
pub(crate) const MAPS: &CStr = c"/proc/self/maps";

/// Which file could not be opened, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcError {
    /// Its path.
    pub path: &'static CStr,
    /// What opening it returned.
    pub errno: Errno,
}

impl fmt::Display for ProcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, errno) = (self.path.to_string_lossy(), self.errno);
        let remedy = match errno {
            Errno::NOENT | Errno::NOTDIR => "mount /proc (mount -t proc proc /proc)",
            // `EBADF`: a number that was free to use before is over the limit now.
            Errno::MFILE | Errno::BADF => "raise the limit on open files (ulimit -n)",
            Errno::NFILE => "raise the system's limit on open files (sysctl fs.file-max)",
            _ => {
                "let this user read it (after a change of user it is root's; a security filter may \
                 block it)"
            }
        };
        write!(f, "cannot open {path} ({errno}): {remedy}")
    }
}

impl std::error::Error for ProcError {}

impl ProcError {
    /// The file is open, and cannot be read.
    pub(crate) fn reading(path: &'static CStr, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        Self {
            path,
            errno: errno.unwrap_or(Errno::IO),
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct ProcFiles {
    pagemap: OwnedFd,
    mem: OwnedFd,
    smaps: OwnedFd,
    maps: OwnedFd,
}

impl ProcFiles {
    /// Opens all, under numbers of `at_least` or above if there are any free.
    ///
    /// # Errors
    /// [`ProcError`].
    pub fn open(at_least: RawFd) -> Result<Self, ProcError> {
        Ok(Self {
            pagemap: moved_up(open_file(pagemap::PATH)?, at_least),
            mem: moved_up(open_file(MEM)?, at_least),
            smaps: moved_up(open_file(SMAPS)?, at_least),
            maps: moved_up(open_file(MAPS)?, at_least),
        })
    }

    /// Opens all for this process in the place of those that it has inherited by a fork, under the
    /// same numbers. To be called while there is one thread.
    ///
    /// # Errors
    /// [`ProcError`]. A number is then not open.
    pub fn renew(&self) -> Result<(), ProcError> {
        renew(&self.pagemap, pagemap::PATH)?;
        renew(&self.mem, MEM)?;
        renew(&self.smaps, SMAPS)?;
        renew(&self.maps, MAPS)
    }

    /// For [`pagemap::scan_in`].
    pub fn pagemap(&self) -> BorrowedFd<'_> {
        self.pagemap.as_fd()
    }

    /// This process's memory, as a file.
    pub fn mem(&self) -> BorrowedFd<'_> {
        self.mem.as_fd()
    }

    /// This process's mappings, as a file.
    pub fn smaps(&self) -> BorrowedFd<'_> {
        self.smaps.as_fd()
    }

    /// This process's mappings, as a file that can be asked for one of them.
    pub fn maps(&self) -> BorrowedFd<'_> {
        self.maps.as_fd()
    }

    /// Reads `to` from `address` on, whatever the protection there; `false` if not all can be read.
    #[must_use]
    pub fn read(&self, address: usize, to: &mut [u8]) -> bool {
        let mut done = 0;
        while done < to.len() {
            match io::pread(&self.mem, &mut to[done..], (address + done) as u64) {
                Ok(0) => return false,
                Ok(read) => done += read,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

fn open_file(path: &'static CStr) -> Result<OwnedFd, ProcError> {
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| ProcError { path, errno })
}

/// Opens a file for one look at it, out of the way of the program's own descriptors.
pub(crate) fn open_high(path: &'static CStr) -> Result<OwnedFd, ProcError> {
    Ok(moved_up(open_file(path)?, high_fd()))
}

fn moved_up(file: OwnedFd, at_least: RawFd) -> OwnedFd {
    io::fcntl_dupfd_cloexec(&file, at_least).unwrap_or(file)
}

/// As `Uffd::renew`: past the C library, whose calls a preload library may have taken over, and
/// closing first, so that there is a number left to open the new one under.
fn renew(file: &OwnedFd, path: &'static CStr) -> Result<(), ProcError> {
    let number = file.as_raw_fd();
    // SAFETY: the number stays owned by `file`, and nobody uses it meanwhile.
    unsafe { libc::syscall(libc::SYS_close, number) };
    let new = open_file(path)?;
    if new.as_raw_fd() == number {
        // It is `file` from now on.
        std::mem::forget(new);
        return Ok(());
    }
    // SAFETY: `new` is open; the number is `file`'s, and free.
    if unsafe { libc::syscall(libc::SYS_dup3, new.as_raw_fd(), number, libc::O_CLOEXEC) } < 0 {
        let errno = last_errno();
        return Err(ProcError { path, errno });
    }
    Ok(())
}
