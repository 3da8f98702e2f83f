//! The end of a process that cannot go on.

/// Says `message` on standard error and ends the process as the kernel's out-of-memory killer would:
/// at once, by SIGKILL, with no cleaning up that could touch managed memory.
pub fn die_plainly(message: &str) -> ! {
    // SAFETY: writes plain bytes, then ends the process; a closed standard error changes nothing.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        libc::kill(libc::getpid(), libc::SIGKILL);
        libc::_exit(137)
    }
}
