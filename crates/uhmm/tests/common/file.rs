//! Files for system calls to read and write.

use std::fs::File;
use std::os::fd::FromRawFd;

/// A file in memory.
pub fn memory_file() -> File {
    // SAFETY: a new descriptor, owned by the file from here on.
    unsafe {
        let fd = libc::memfd_create(c"uhmm-test".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    }
}
