//! userfaultfd, raw.
//!
//! Calls over several pages return [`Done`]: the bytes that were done, and the errno that stopped
//! the call if any did. The kernel reports partial progress as `EAGAIN` with a byte count in the
//! structure, and failure as a negative errno in the same field; that number never leaves this
//! module unchecked. See `docs/faults.md` for what each errno means here.

use super::last_errno;
use linux_raw_sys::general::*;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::{self, Errno};
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Range;

const GROUP: u8 = UFFDIO as u8;
const API: Opcode = opcode::read_write::<uffdio_api>(GROUP, _UFFDIO_API as u8);
const REGISTER: Opcode = opcode::read_write::<uffdio_register>(GROUP, _UFFDIO_REGISTER as u8);
const UNREGISTER: Opcode = opcode::read::<uffdio_range>(GROUP, _UFFDIO_UNREGISTER as u8);
const WAKE: Opcode = opcode::read::<uffdio_range>(GROUP, _UFFDIO_WAKE as u8);
const COPY: Opcode = opcode::read_write::<uffdio_copy>(GROUP, _UFFDIO_COPY as u8);
const ZEROPAGE: Opcode = opcode::read_write::<uffdio_zeropage>(GROUP, _UFFDIO_ZEROPAGE as u8);
const MOVE: Opcode = opcode::read_write::<uffdio_move>(GROUP, _UFFDIO_MOVE as u8);
const PROTECT: Opcode =
    opcode::read_write::<uffdio_writeprotect>(GROUP, _UFFDIO_WRITEPROTECT as u8);
const CONTINUE: Opcode = opcode::read_write::<uffdio_continue>(GROUP, _UFFDIO_CONTINUE as u8);
const POISON: Opcode = opcode::read_write::<uffdio_poison>(GROUP, _UFFDIO_POISON as u8);
/// `USERFAULTFD_IOC_NEW` on `/dev/userfaultfd`; the argument is the flags, by value.
const NEW: u32 = opcode::none(GROUP, 0);

/// What a call over several pages came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Done {
    /// Bytes done, from the start of the range.
    pub bytes: usize,
    /// Why not all were. `EAGAIN` after some were done only means: call again for the rest.
    pub stopped: Option<Errno>,
}

/// Why no userfaultfd could be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The system call, and `/dev/userfaultfd` too, failed with this.
    Open(Errno),
    /// This user may have one, but not for faults that the kernel takes on a program's behalf.
    KernelFaults,
    /// The kernel lacks features that were asked for: those bits.
    Features(u64),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(errno) => write!(f, "cannot open a userfaultfd: {errno}"),
            Self::KernelFaults => f.write_str(
                "this user may not serve faults taken by the kernel, which the thread engine does: use \
                 the signal engine (UHMM_ENGINE=signal), or run as root \
                 `sysctl -w vm.unprivileged_userfaultfd=1`",
            ),
            Self::Features(bits) => {
                write!(
                    f,
                    "this kernel's userfaultfd lacks features {bits:#x}: Linux 6.8 is needed \
                     (6.10 on arm64)"
                )
            }
        }
    }
}

impl std::error::Error for OpenError {}

/// A message read from a [`Uffd`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for the page at `address`.
    PageFault {
        /// The address touched, its low 12 bits cleared.
        address: usize,
        /// Whether it was a write.
        write: bool,
        /// Whether the page is present but write-protected.
        write_protected: bool,
        /// Whether the page is present in the page cache but not mapped.
        minor: bool,
    },
    /// The process has forked; this descriptor serves the child's copy of the ranges.
    Fork(RawFd),
    /// A range was moved by `mremap`.
    Remap {
        /// Where it was.
        from: usize,
        /// Where it is.
        to: usize,
        /// Its bytes.
        len: usize,
    },
    /// The contents of a range were dropped.
    Remove(
        /// The range.
        Range<usize>,
    ),
    /// A range was unmapped.
    Unmap(
        /// The range.
        Range<usize>,
    ),
}

/// Messages that one read can return.
pub const BATCH: usize = 16;

/// Space for messages, kept by the reader.
pub struct Messages([MaybeUninit<uffd_msg>; BATCH]);

impl Default for Messages {
    fn default() -> Self {
        Self([const { MaybeUninit::uninit() }; BATCH])
    }
}

/// An open userfaultfd.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// Opens one with `features`. Reads block. Tries the system call, then `/dev/userfaultfd`.
    ///
    /// It serves faults taken by the kernel too, except with `UFFD_FEATURE_SIGBUS`: then those end in
    /// `EFAULT` whoever opens it, so it is opened for faults of user mode only, which every user may.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(features: u64) -> Result<Self, OpenError> {
        let user_mode_only = features & u64::from(UFFD_FEATURE_SIGBUS) != 0;
        let fd = match Self::open_any(user_mode_only) {
            Err(Errno::PERM) if !user_mode_only && Self::open_any(true).is_ok() => {
                return Err(OpenError::KernelFaults);
            }
            opened => opened.map_err(OpenError::Open)?,
        };
        let uffd = Self(fd);
        match uffd.agree(features) {
            Ok(_) => Ok(uffd),
            Err(_) => Err(OpenError::Features(
                features & !Self::features().unwrap_or(0),
            )),
        }
    }

    fn open_any(user_mode_only: bool) -> io::Result<OwnedFd> {
        let mut flags = UserfaultfdFlags::CLOEXEC;
        if user_mode_only {
            flags |= UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY);
        }
        // SAFETY: what the descriptor can do to memory is in the hands of this type's callers.
        let fd = unsafe { userfaultfd(flags) };
        fd.or_else(|errno| Self::open_device(flags).map_err(|_| errno))
    }

    fn open_device(flags: UserfaultfdFlags) -> io::Result<OwnedFd> {
        use rustix::fs::{Mode, OFlags, open};
        let device = open(
            "/dev/userfaultfd",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // SAFETY: this request takes its flags by value and returns a new descriptor.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW.into(), flags.bits()) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: the descriptor is new and ours.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Settles with the kernel what is spoken; returns the feature bits that it has.
    fn agree(&self, features: u64) -> io::Result<u64> {
        let mut api = uffdio_api {
            api: UFFD_API.into(),
            features,
            ioctls: 0,
        };
        self.update::<API, _>(&mut api)?;
        Ok(api.features)
    }

    /// The feature bits that this kernel has.
    ///
    /// # Errors
    /// [`OpenError::Open`].
    pub fn features() -> Result<u64, OpenError> {
        let fd = Self::open_any(true).map_err(OpenError::Open)?;
        Self(fd).agree(0).map_err(OpenError::Open)
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        use rustix::fd::AsFd;
        self.0.as_fd()
    }

    /// Opens a userfaultfd of this process in the place of the one that it has inherited by a fork,
    /// under the same descriptor number. To be called while there is one thread.
    ///
    /// # Errors
    /// [`OpenError`]. The number is then not open.
    pub fn renew(&self, features: u64) -> Result<(), OpenError> {
        let number = self.0.as_raw_fd();
        // Past the C library, whose calls a preload library may have taken over. Closing comes
        // first, so that there is a number left to open the new one under.
        // SAFETY: the number stays owned by `self`, and nobody uses it meanwhile.
        unsafe { libc::syscall(libc::SYS_close, number) };
        let new = Self::open(features)?;
        if new.0.as_raw_fd() == number {
            // It is `self` from now on.
            std::mem::forget(new);
            return Ok(());
        }
        // SAFETY: `new` is open; the number is `self`'s, and free.
        if unsafe { libc::syscall(libc::SYS_dup3, new.0.as_raw_fd(), number, libc::O_CLOEXEC) } < 0
        {
            return Err(OpenError::Open(last_errno()));
        }
        Ok(())
    }

    /// Moves the descriptor to a number of `at_least` or above, out of the way of a program that
    /// counts on low numbers being free.
    #[must_use]
    pub fn moved_up(self, at_least: RawFd) -> Self {
        match rustix::io::fcntl_dupfd_cloexec(&self.0, at_least) {
            Ok(fd) => Self(fd),
            Err(_) => self,
        }
    }

    fn update<const OPCODE: Opcode, T>(&self, value: &mut T) -> io::Result<()> {
        // SAFETY: each caller's opcode is that of a request which reads and writes a `T`.
        unsafe { ioctl(&self.0, Updater::<OPCODE, T>::new(value)) }
    }

    fn range<const OPCODE: Opcode>(&self, range: Range<usize>) -> io::Result<()> {
        // SAFETY: each caller's opcode is that of a request which reads a `uffdio_range`.
        unsafe { ioctl(&self.0, Setter::<OPCODE, _>::new(kernel_range(range))) }
    }

    /// Registers mappings in `range`: missing pages fault to this descriptor; with
    /// `write_protect`, write-protected ones too. Returns the bits of the calls that work there.
    ///
    /// # Errors
    /// `EBUSY` where another userfaultfd has the range, `EINVAL` where it cannot be served.
    pub fn register(&self, range: Range<usize>, write_protect: bool) -> io::Result<u64> {
        let protect = if write_protect {
            UFFDIO_REGISTER_MODE_WP
        } else {
            0
        };
        let mut register = uffdio_register {
            range: kernel_range(range),
            mode: u64::from(UFFDIO_REGISTER_MODE_MISSING | protect),
            ioctls: 0,
        };
        self.update::<REGISTER, _>(&mut register)?;
        Ok(register.ioctls)
    }

    /// Ends the registration of `range`.
    ///
    /// # Errors
    /// `EINVAL` where the range cannot be registered.
    pub fn unregister(&self, range: Range<usize>) -> io::Result<()> {
        self.range::<UNREGISTER>(range)
    }

    /// Makes threads that wait for pages in `range` touch them again.
    ///
    /// # Errors
    /// `EINVAL` for a range that is not of pages.
    pub fn wake(&self, range: Range<usize>) -> io::Result<()> {
        self.range::<WAKE>(range)
    }

    /// Fills the missing pages at `to` with copies of `from`, and wakes who waits for them.
    pub fn copy(&self, from: &[u8], to: usize) -> Done {
        self.copy_with(from, to, 0)
    }

    /// As [`Uffd::copy`], but a write to one of the pages waits until its protection is ended with
    /// [`Uffd::write_protect`]. `EINVAL` where the range is not registered for that.
    pub fn copy_write_protected(&self, from: &[u8], to: usize) -> Done {
        self.copy_with(from, to, UFFDIO_COPY_MODE_WP.into())
    }

    fn copy_with(&self, from: &[u8], to: usize, mode: u64) -> Done {
        let mut copy = uffdio_copy {
            dst: to as u64,
            src: from.as_ptr() as u64,
            len: from.len() as u64,
            mode,
            copy: 0,
        };
        let result = self.update::<COPY, _>(&mut copy);
        done(result, copy.copy, from.len())
    }

    /// Maps the page of zeros at missing pages. A later write to one allocates memory unseen.
    pub fn zeropage(&self, range: Range<usize>) -> Done {
        let len = range.len();
        let mut zero = uffdio_zeropage {
            range: kernel_range(range),
            mode: 0,
            zeropage: 0,
        };
        let result = self.update::<ZEROPAGE, _>(&mut zero);
        done(result, zero.zeropage, len)
    }

    /// Moves `len` bytes of present pages from `from` to the missing pages at `to`, and wakes who
    /// waits for those.
    pub fn move_pages(&self, from: usize, to: usize, len: usize) -> Done {
        let mut arg = uffdio_move {
            dst: to as u64,
            src: from as u64,
            len: len as u64,
            mode: 0,
            move_: 0,
        };
        let result = self.update::<MOVE, _>(&mut arg);
        done(result, arg.move_, len)
    }

    /// Write-protects present pages, or ends that (which wakes who waits).
    ///
    /// # Errors
    /// `ENOENT` where the range is not registered for it, `EAGAIN` while the mapping changes.
    pub fn write_protect(&self, range: Range<usize>, on: bool) -> io::Result<()> {
        let mode = u64::from(on); // UFFDIO_WRITEPROTECT_MODE_WP is bit 0
        let mut protect = uffdio_writeprotect {
            range: kernel_range(range),
            mode,
        };
        self.update::<PROTECT, _>(&mut protect)
    }

    /// Maps pages that are in the page cache already (minor faults of shared memory).
    pub fn resume(&self, range: Range<usize>) -> Done {
        let len = range.len();
        let mut arg = uffdio_continue {
            range: kernel_range(range),
            mode: 0,
            mapped: 0,
        };
        let result = self.update::<CONTINUE, _>(&mut arg);
        done(result, arg.mapped, len)
    }

    /// Makes every later touch of the missing pages of `range` a SIGBUS, and wakes who waits.
    pub fn poison(&self, range: Range<usize>) -> Done {
        let len = range.len();
        let mut arg = uffdio_poison {
            range: kernel_range(range),
            mode: 0,
            updated: 0,
        };
        let result = self.update::<POISON, _>(&mut arg);
        done(result, arg.updated, len)
    }

    /// Waits for messages and hands each to `event`, in the kernel's order.
    ///
    /// # Errors
    /// What `read` returns, `EINTR` and `EAGAIN` excepted: those mean that nothing was read.
    pub fn read(&self, messages: &mut Messages, mut event: impl FnMut(Event)) -> io::Result<()> {
        let size = size_of::<uffd_msg>();
        // SAFETY: the buffer is writable, of this many bytes, and any bytes are a valid message.
        let got = unsafe {
            let buffer = messages.0.as_mut_ptr().cast::<u8>();
            std::slice::from_raw_parts_mut(buffer.cast::<MaybeUninit<u8>>(), BATCH * size)
        };
        let read = match rustix::io::read(&self.0, got) {
            Ok((read, _)) => read.len(),
            Err(Errno::INTR | Errno::AGAIN) => 0,
            Err(errno) => return Err(errno),
        };
        for message in &messages.0[..read / size] {
            // SAFETY: the kernel has filled whole messages.
            if let Some(decoded) = decode(unsafe { message.assume_init_ref() }) {
                event(decoded);
            }
        }
        Ok(())
    }
}

fn kernel_range(range: Range<usize>) -> uffdio_range {
    uffdio_range {
        start: range.start as u64,
        len: range.len() as u64,
    }
}

fn done(result: io::Result<()>, field: i64, len: usize) -> Done {
    let bytes = usize::try_from(field).unwrap_or(0).min(len);
    match result {
        Ok(()) => Done {
            bytes: len,
            stopped: None,
        },
        Err(errno) => Done {
            bytes,
            stopped: Some(errno),
        },
    }
}

fn decode(message: &uffd_msg) -> Option<Event> {
    // SAFETY: `event` says which member of the union the kernel has filled; all are plain numbers.
    unsafe {
        Some(match u32::from(message.event) {
            UFFD_EVENT_PAGEFAULT => {
                let fault = message.arg.pagefault;
                let is = |flag: u32| fault.flags & u64::from(flag) != 0;
                Event::PageFault {
                    address: fault.address as usize & !0xfff,
                    write: is(UFFD_PAGEFAULT_FLAG_WRITE),
                    write_protected: is(UFFD_PAGEFAULT_FLAG_WP),
                    minor: is(UFFD_PAGEFAULT_FLAG_MINOR),
                }
            }
            UFFD_EVENT_FORK => Event::Fork(message.arg.fork.ufd as RawFd),
            UFFD_EVENT_REMAP => {
                let remap = message.arg.remap;
                Event::Remap {
                    from: remap.from as usize,
                    to: remap.to as usize,
                    len: remap.len as usize,
                }
            }
            UFFD_EVENT_REMOVE => {
                Event::Remove(message.arg.remove.start as usize..message.arg.remove.end as usize)
            }
            UFFD_EVENT_UNMAP => {
                Event::Unmap(message.arg.remove.start as usize..message.arg.remove.end as usize)
            }
            _ => return None,
        })
    }
}
