//! The devices, and memory for them, as a C program would use them: by the C library alone.

use std::ffi::CString;
use std::io;
use std::ptr::null_mut;

pub const PAGE: usize = 4096;

/// The commands, by their numbers.
pub const READ: u64 = 0xc028_4800;
pub const WRITE: u64 = READ + 1;
pub const TO_DEVICE: u64 = READ + 2;
pub const TO_SYSTEM: u64 = READ + 3;
pub const SNAPSHOT: u64 = READ + 4;
pub const CHECK_EXCLUSIVE: u64 = READ + 6;

/// What a snapshot says of a page.
pub const NONE: u8 = 0;
pub const READABLE: u8 = 1;
pub const WRITABLE: u8 = 2;
pub const ERROR: u8 = 0xff;
/// On the device that is asked: private memory, and coherent memory.
pub const PRIVATE: u8 = 0x20 | WRITABLE;
pub const COHERENT: u8 = 0x40 | WRITABLE;

/// What a command gets and gives.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Struct {
    pub addr: u64,
    pub ptr: u64,
    pub npages: u64,
    pub cpages: u64,
    pub faults: u64,
}

/// The result of a call of the C library that is -1 where it fails.
pub fn result(result: i32) -> Result<i32, i32> {
    match result {
        -1 => Err(errno()),
        value => Ok(value),
    }
}

pub fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap()
}

pub fn open(path: &str) -> Result<i32, i32> {
    let path = CString::new(path).unwrap();
    result(unsafe { libc::open(path.as_ptr(), libc::O_RDWR) })
}

/// Opens a device.
pub fn device(unit: usize) -> i32 {
    open(&format!("/dev/hmm_dmirror{unit}")).unwrap()
}

pub fn close(fd: i32) -> Result<i32, i32> {
    result(unsafe { libc::close(fd) })
}

pub fn ioctl(fd: i32, request: u64, argument: *mut Struct) -> Result<i32, i32> {
    result(unsafe { libc::ioctl(fd, request, argument) })
}

/// Sends a command about pages of `memory`.
pub fn command(
    fd: i32,
    request: u64,
    memory: usize,
    pages: usize,
    ptr: usize,
) -> Result<Struct, i32> {
    let mut given = Struct {
        addr: memory as u64,
        ptr: ptr as u64,
        npages: pages as u64,
        ..Struct::default()
    };
    ioctl(fd, request, &mut given).map(|_| given)
}

/// What the device sees of each page.
pub fn snapshot(fd: i32, memory: usize, pages: usize) -> Vec<u8> {
    let mut seen = vec![0xaa; pages];
    command(fd, SNAPSHOT, memory, pages, seen.as_mut_ptr() as usize).unwrap();
    seen
}

/// What the device reads.
pub fn read(fd: i32, memory: usize, pages: usize) -> Result<Vec<u8>, i32> {
    let mut bytes = vec![0xaa; pages * PAGE];
    command(fd, READ, memory, pages, bytes.as_mut_ptr() as usize)?;
    Ok(bytes)
}

/// Has the device write.
pub fn write(fd: i32, memory: usize, bytes: &[u8]) -> Result<Struct, i32> {
    let ptr = bytes.as_ptr() as usize;
    command(fd, WRITE, memory, bytes.len() / PAGE, ptr)
}

/// Migrates pages to the device, and checks what it then has.
pub fn migrate(fd: i32, memory: usize, expected: &[u8]) {
    let mut bytes = vec![0xaa; expected.len()];
    let pages = expected.len() / PAGE;
    let done = command(fd, TO_DEVICE, memory, pages, bytes.as_mut_ptr() as usize).unwrap();
    assert_eq!(done.cpages, pages as u64);
    assert!(
        bytes == expected,
        "what the device has is not what was there"
    );
}

/// Bytes of which no page is like another.
pub fn pattern(pages: usize, seed: u64) -> Vec<u8> {
    let words = 0..(pages * PAGE / 8) as u64;
    words
        .flat_map(|word| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed).to_ne_bytes())
        .collect()
}

/// Maps private anonymous memory.
pub fn map(pages: usize) -> usize {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let at = unsafe { libc::mmap(null_mut(), pages * PAGE, prot, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at as usize
}

pub fn unmap(at: usize, pages: usize) {
    assert_eq!(unsafe { libc::munmap(at as *mut _, pages * PAGE) }, 0);
}

/// Maps memory and fills it.
pub fn filled(bytes: &[u8]) -> usize {
    let at = map(bytes.len() / PAGE);
    bytes_of(at, bytes.len()).copy_from_slice(bytes);
    at
}

/// The program's own view of mapped memory.
pub fn bytes_of<'a>(at: usize, len: usize) -> &'a mut [u8] {
    unsafe { std::slice::from_raw_parts_mut(at as *mut u8, len) }
}
