//! The kernel's interfaces, as they are: typed results, and no policy.

pub mod futex;
pub mod numa;
pub mod pagemap;
pub mod process_vm;
pub mod procmap;
pub mod uffd;

use rustix::io::Errno;

/// What the last call of the C library that failed on this thread failed with.
pub(crate) fn last_errno() -> Errno {
    let errno = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(errno.unwrap_or(libc::EIO))
}
