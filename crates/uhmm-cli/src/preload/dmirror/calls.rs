//! `open` and its family, and `ioctl`: ours for the devices, the C library's for all else.
//!
//! C's functions with an argument that may be left out are declared here with all of them: on the machines
//! that Linux runs on such an argument is passed like any other, and it is read only where it was given.

use super::files::{self, File};
use super::names::Name;
use super::{driver, error};
use crate::preload::calls::status;
use crate::preload::next::Next;
use crate::preload::start::{self, space};
use libc::{c_char, c_int, c_ulong, c_void, mode_t, pid_t};
use std::io;
use uhmm_dmirror::Errno;

type Open = unsafe extern "C" fn(*const c_char, c_int, ...) -> c_int;
type OpenAt = unsafe extern "C" fn(c_int, *const c_char, c_int, ...) -> c_int;
type Open2 = unsafe extern "C" fn(*const c_char, c_int) -> c_int;
type OpenAt2 = unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int;
type Ioctl = unsafe extern "C" fn(c_int, c_ulong, ...) -> c_int;
type Fork = unsafe extern "C" fn() -> pid_t;

macro_rules! next {
    ($($next:ident: $type:ty = $name:literal;)*) => {
        $(
            // SAFETY: it is the type of the C library's function of this name.
            static $next: Next<$type> = unsafe { Next::named($name) };
        )*

        /// Looks all of them up.
        pub fn find_next() {
            $($next.get();)*
        }
    };
}

next! {
    OPEN: Open = c"open";
    OPEN64: Open = c"open64";
    OPENAT: OpenAt = c"openat";
    OPENAT64: OpenAt = c"openat64";
    OPEN_2: Open2 = c"__open_2";
    OPEN64_2: Open2 = c"__open64_2";
    OPENAT_2: OpenAt2 = c"__openat_2";
    OPENAT64_2: OpenAt2 = c"__openat64_2";
    IOCTL: Ioctl = c"ioctl";
    FORK: Fork = c"fork";
}

fn missing() -> c_int {
    status(Err(error(libc::ENOSYS)))
}

/// Opens a device, if `path` is the name of one.
fn device(path: *const c_char, flags: c_int) -> Option<c_int> {
    if !start::has_devices() || flags & libc::O_PATH != 0 {
        return None;
    }
    let name = Name::of(path)?;
    Some(match opened(name, flags) {
        Ok(fd) => fd,
        Err(error) => status(Err(error)),
    })
}

fn opened(name: Name, flags: c_int) -> io::Result<c_int> {
    let created = libc::O_CREAT | libc::O_EXCL;
    if flags & created == created {
        return Err(error(libc::EEXIST));
    }
    if flags & libc::O_DIRECTORY != 0 {
        return Err(error(libc::ENOTDIR));
    }
    let driver = driver()?;
    files::open(name, flags & libc::O_CLOEXEC != 0, || {
        let file = match name {
            Name::Device(unit) => driver.open(unit).map(File::Device),
            Name::Gup => driver.open_gup().map(File::Gup),
        };
        file.map_err(|errno| error(errno.raw()))
    })
}

fn openat_2(at: c_int, path: *const c_char, flags: c_int, next: &Next<OpenAt2>) -> c_int {
    // SAFETY: the caller's own call.
    let call = || Some(unsafe { next.get()?(at, path, flags) });
    device(path, flags).or_else(call).unwrap_or_else(missing)
}

/// POSIX `open`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's own call.
    let next = || Some(unsafe { OPEN.get()?(path, flags, mode) });
    device(path, flags).or_else(next).unwrap_or_else(missing)
}

/// `open` of large files, which all are here.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's own call.
    let next = || Some(unsafe { OPEN64.get()?(path, flags, mode) });
    device(path, flags).or_else(next).unwrap_or_else(missing)
}

/// POSIX `openat`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(
    at: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: the caller's own call.
    let next = || Some(unsafe { OPENAT.get()?(at, path, flags, mode) });
    device(path, flags).or_else(next).unwrap_or_else(missing)
}

/// `openat` of large files, which all are here.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(
    at: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: the caller's own call.
    let next = || Some(unsafe { OPENAT64.get()?(at, path, flags, mode) });
    device(path, flags).or_else(next).unwrap_or_else(missing)
}

/// What `open` without a mode is in programs that are compiled with `_FORTIFY_SOURCE`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __open_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's own call.
    let next = || Some(unsafe { OPEN_2.get()?(path, flags) });
    device(path, flags).or_else(next).unwrap_or_else(missing)
}

/// See [`__open_2`].
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's own call.
    let next = || Some(unsafe { OPEN64_2.get()?(path, flags) });
    device(path, flags).or_else(next).unwrap_or_else(missing)
}

/// See [`__open_2`].
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __openat_2(at: c_int, path: *const c_char, flags: c_int) -> c_int {
    openat_2(at, path, flags, &OPENAT_2)
}

/// See [`__open_2`].
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __openat64_2(at: c_int, path: *const c_char, flags: c_int) -> c_int {
    openat_2(at, path, flags, &OPENAT64_2)
}

/// POSIX `ioctl`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    match files::find(fd) {
        Some(file) => status(command(&file, request, argument as usize)),
        // SAFETY: the caller's own call.
        None => IOCTL
            .get()
            .map_or_else(missing, |next| unsafe { next(fd, request, argument) }),
    }
}

/// Has the driver do what the struct at `at` says, and writes back what it has changed.
fn command(file: &File, request: u64, at: usize) -> io::Result<()> {
    match file {
        File::Device(file) => with_struct(at, |bytes| file.ioctl(request, bytes)),
        File::Gup(file) => with_struct(at, |bytes| file.ioctl(request, bytes)),
    }
}

fn with_struct<const LEN: usize>(
    at: usize,
    work: impl FnOnce(&mut [u8; LEN]) -> Result<(), Errno>,
) -> io::Result<()> {
    let space = space().ok_or_else(|| error(libc::EINVAL))?;
    let mut bytes = [0; LEN];
    space
        .read_bytes(at, &mut bytes)
        .map_err(|_| error(libc::EFAULT))?;
    work(&mut bytes).map_err(|errno| error(errno.raw()))?;
    // SAFETY: the program's struct, which it has given to the call.
    let written = unsafe { space.write_bytes(at, &bytes) };
    written.map_err(|_| error(libc::EFAULT))
}

/// Calls `work` with the C library's `fork`.
pub fn next_fork(work: impl FnOnce(&dyn Fn() -> pid_t) -> pid_t) -> pid_t {
    // SAFETY: the caller's own call.
    FORK.get()
        .map_or_else(missing, |next| work(&|| unsafe { next() }))
}
