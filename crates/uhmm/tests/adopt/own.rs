//! A mapping of the test's own.

use std::ops::Range;
use uhmm_core::addr::PAGE_SIZE;

/// Private anonymous memory, unmapped when dropped.
pub struct Own {
    start: usize,
    len: usize,
}

impl Own {
    /// `pages` pages, readable and writable, on 2 MiB.
    pub fn map(pages: usize) -> Self {
        const HUGE: usize = 2 << 20;
        let len = pages * PAGE_SIZE;
        let mapped = raw_map(len + HUGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        let start = mapped.next_multiple_of(HUGE);
        unmap(mapped..start);
        unmap(start + len..mapped + len + HUGE);
        Self { start, len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    pub fn at(&self, page: usize) -> *mut u8 {
        assert!(page * PAGE_SIZE <= self.len);
        (self.start + page * PAGE_SIZE) as *mut u8
    }

    pub fn protect(&self, pages: Range<usize>, protection: libc::c_int) {
        let len = pages.len() * PAGE_SIZE;
        // SAFETY: within the mapping.
        let done = unsafe { libc::mprotect(self.at(pages.start).cast(), len, protection) };
        assert_eq!(done, 0);
    }

    pub fn advise(&self, pages: Range<usize>, advice: libc::c_int) {
        let len = pages.len() * PAGE_SIZE;
        // SAFETY: within the mapping.
        let done = unsafe { libc::madvise(self.at(pages.start).cast(), len, advice) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    pub fn unmap(&self, pages: Range<usize>) {
        unmap(self.at(pages.start) as usize..self.at(pages.end) as usize);
    }

    /// The flags of the kernel's mappings here.
    pub fn flags(&self) -> Vec<String> {
        vmas()
            .into_iter()
            .filter(|(range, _)| range.start < self.range().end && self.range().start < range.end)
            .map(|(_, flags)| flags)
            .collect()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        unmap(self.range());
    }
}

pub fn raw_map(len: usize, flags: libc::c_int, fd: libc::c_int) -> usize {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: where the kernel finds room.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    at as usize
}

pub fn unmap(range: Range<usize>) {
    if !range.is_empty() {
        // SAFETY: memory of the test's own.
        let done = unsafe { libc::munmap(range.start as *mut _, range.len()) };
        assert_eq!(done, 0);
    }
}

/// The kernel's mappings of this process, with their flags.
pub fn vmas() -> Vec<(Range<usize>, String)> {
    let mut all = Vec::new();
    let mut last = 0..0;
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            all.push((last.clone(), flags.trim().to_owned()));
        } else if let Some((start, end)) = line.split(' ').next().unwrap().split_once('-') {
            let hex = |text| usize::from_str_radix(text, 16);
            if let (Ok(start), Ok(end)) = (hex(start), hex(end)) {
                last = start..end;
            }
        }
    }
    all
}
