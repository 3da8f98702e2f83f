//! Owned mappings of memory, made by raw system calls.
//!
//! Never the heap, and never the C library's `mmap`: inside a managed program both lead back to
//! managed memory (R18).

use crate::own;
use rustix::io;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};
use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// An anonymous private mapping, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is memory of the whole process; who writes to it is up to its users, all of
// whose accesses are unsafe and give their own reasons.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `len` bytes, without access, that are not counted against the machine's memory, and
    /// that are named `name` in `/proc/PID/maps` where the kernel can.
    ///
    /// # Errors
    /// What `mmap` returns: `ENOMEM` where the address space is limited.
    pub fn anonymous(len: usize, name: &CStr) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping where the kernel finds room overlaps nothing.
        let base =
            unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), flags)? };
        let base = NonNull::new(base.cast()).expect("mmap never returns null");
        let mapping = Self { base, len };
        mapping.set_name(name);
        own::add(mapping.address()..mapping.address() + len);
        Ok(mapping)
    }

    fn set_name(&self, name: &CStr) {
        // Names are for people who read maps; a kernel without them is as good.
        // SAFETY: only names the mapping; the string is live for the call.
        unsafe {
            libc::prctl(
                libc::PR_SET_VMA,
                libc::PR_SET_VMA_ANON_NAME as libc::c_ulong,
                self.base.as_ptr(),
                self.len,
                name.as_ptr(),
            )
        };
    }

    /// The address of the first byte.
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes; no mapping is so.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The byte at `offset`. Whether it may be touched is up to the caller.
    pub fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.len);
        self.base.as_ptr().wrapping_add(offset)
    }

    /// Makes all of it readable and writable.
    ///
    /// # Errors
    /// What `mprotect` returns.
    pub fn allow_all(&self) -> io::Result<()> {
        self.protect(0, self.len, MprotectFlags::READ | MprotectFlags::WRITE)
    }

    /// Changes the protection of `len` bytes from `offset` on.
    ///
    /// # Errors
    /// What `mprotect` returns: `ENOMEM` when the process has too many mappings.
    pub fn protect(&self, offset: usize, len: usize, flags: MprotectFlags) -> io::Result<()> {
        assert!(offset + len <= self.len);
        // SAFETY: within this mapping. A touch that the protection forbids is a fault, not
        // undefined behaviour of this call.
        unsafe { mm::mprotect(self.at(offset).cast(), len, flags) }
    }

    /// Maps `len` bytes from `offset` on afresh, without access, in place of what is there, and
    /// without huge pages.
    ///
    /// # Errors
    /// What `mmap` returns.
    pub fn renew(&self, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset + len <= self.len);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: within this mapping, whose contents the caller gives up.
        unsafe { mm::mmap_anonymous(self.at(offset).cast(), len, ProtFlags::empty(), flags)? };
        self.leave_out_of_dumps();
        self.refuse_huge_pages(offset, len);
        Ok(())
    }

    /// Gives the memory of `len` bytes from `offset` on back; they are zero, or missing, afterwards.
    pub fn discard(&self, offset: usize, len: usize) {
        assert!(offset + len <= self.len);
        // SAFETY: within this mapping; the caller owns what is in it.
        let result = unsafe { mm::madvise(self.at(offset).cast(), len, Advice::LinuxDontNeed) };
        debug_assert!(
            result.is_ok(),
            "MADV_DONTNEED of our own memory: {result:?}"
        );
    }

    /// Keeps the mapping out of core dumps: it is large, and mostly not there.
    pub fn leave_out_of_dumps(&self) {
        // SAFETY: within this mapping; changes nothing that is in it.
        let _ = unsafe { mm::madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxDontDump) };
    }

    /// Forbids huge pages in `len` bytes from `offset` on: they hold more memory than was asked for.
    pub fn refuse_huge_pages(&self, offset: usize, len: usize) {
        assert!(offset + len <= self.len);
        // SAFETY: within this mapping; changes nothing that is in it.
        let _ = unsafe { mm::madvise(self.at(offset).cast(), len, Advice::LinuxNoHugepage) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First: once it is unmapped, the addresses may be somebody else's.
        own::remove(self.address());
        // SAFETY: the mapping is ours, and nobody can hold a reference past its owner.
        let result = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok());
    }
}

/// A table of zeroed words in a mapping of its own: costs memory only where it is used.
#[derive(Debug)]
pub struct Table {
    mapping: Mapping,
    words: usize,
}

impl Table {
    /// A table of `words` words, or `None` when the address space has no room.
    pub fn new(words: usize) -> Option<Self> {
        let bytes = (words.max(1) * size_of::<AtomicU64>()).next_multiple_of(4096);
        let mapping = Mapping::anonymous(bytes, c"uhmm-tables").ok()?;
        mapping.allow_all().ok()?;
        mapping.leave_out_of_dumps();
        Some(Self { mapping, words })
    }
}

impl std::ops::Deref for Table {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is readable, writable, zeroed, aligned to a page, large enough, and
        // lives as long as `self`; it is only ever used as these atomics.
        unsafe { std::slice::from_raw_parts(self.mapping.at(0).cast(), self.words) }
    }
}
