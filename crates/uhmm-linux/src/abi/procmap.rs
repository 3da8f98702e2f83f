//! `PROCMAP_QUERY` (Linux 6.11): one mapping, by an address in it, without the text of `/proc/self/maps`.

use linux_raw_sys::general::{procmap_query, procmap_query_flags as flags};
use rustix::fd::BorrowedFd;
use rustix::io::{self, Errno};
use rustix::ioctl::{Updater, ioctl, opcode};
use std::ops::Range;

const PROCMAP_QUERY: rustix::ioctl::Opcode = opcode::read_write::<procmap_query>(b'f', 17);

/// A mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Its addresses.
    pub range: Range<usize>,
    /// It may be read.
    pub read: bool,
    /// It may be written to.
    pub write: bool,
    /// What is written there is seen by whoever maps the same.
    pub shared: bool,
    /// Bytes of its pages: more than 4096 for reserved huge pages.
    pub page_size: usize,
}

/// The mapping that holds `address`, or else the next one; `None`: there is none. `maps` is
/// `/proc/self/maps`, opened by this process itself.
///
/// # Errors
/// `ENOTTY` before Linux 6.11.
pub fn at_or_after(maps: BorrowedFd<'_>, address: usize) -> io::Result<Option<Mapped>> {
    let mut query = procmap_query {
        size: size_of::<procmap_query>() as u64,
        query_flags: flags::PROCMAP_QUERY_COVERING_OR_NEXT_VMA as u64,
        query_addr: address as u64,
        vma_start: 0,
        vma_end: 0,
        vma_flags: 0,
        vma_page_size: 0,
        vma_offset: 0,
        inode: 0,
        dev_major: 0,
        dev_minor: 0,
        vma_name_size: 0,
        build_id_size: 0,
        vma_name_addr: 0,
        build_id_addr: 0,
    };
    // SAFETY: the argument is the structure of this request, and asks for nothing to be written elsewhere.
    let done = unsafe { ioctl(maps, Updater::<PROCMAP_QUERY, _>::new(&mut query)) };
    match done {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    let has = |flag: flags| query.vma_flags & flag as u64 != 0;
    Ok(Some(Mapped {
        range: query.vma_start as usize..query.vma_end as usize,
        read: has(flags::PROCMAP_QUERY_VMA_READABLE),
        write: has(flags::PROCMAP_QUERY_VMA_WRITABLE),
        shared: has(flags::PROCMAP_QUERY_VMA_SHARED),
        page_size: query.vma_page_size as usize,
    }))
}
