//! The processes' side: one slot of the file, or memory of the same shape.
//!
//! Runs inside of processes whose heap is managed, so it uses none: only system calls and mapped
//! pages.

use super::{Header, MAGIC, MAX_SLOTS, SlotPage};
use crate::own;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use rustix::process::getpid;
use std::ffi::CStr;
use std::io;
use std::ops::Deref;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::stats::Stats;

/// The place of one process's counters. They stay at one address for the slot's life.
#[derive(Debug)]
pub struct Slot {
    page: NonNull<SlotPage>,
    file: Option<FileMapping>,
}

// SAFETY: the slot owns its mappings, which any thread may use, and holds only atomics in them.
unsafe impl Send for Slot {}
// SAFETY: as above; a shared slot gives out shared references to atomics, and changes the
// mapping under them only for other memory of the same shape.
unsafe impl Sync for Slot {}

impl Slot {
    /// Counters in this process's own memory, all zero.
    ///
    /// # Errors
    ///
    /// There is no room for a page.
    pub fn private() -> io::Result<Self> {
        let page = anonymous_page(None)?;
        let start = page.as_ptr() as usize;
        // Whoever serves a fault counts it there.
        own::add(start..start + PAGE_SIZE);
        Ok(Self { page, file: None })
    }

    /// Takes a slot of the file at `path`. Where the file has none left the counters are private.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or mapped, or is no file of this version.
    pub fn claim(path: &CStr) -> io::Result<Self> {
        let mut slot = Self::private()?;
        slot.file = Some(FileMapping::open(path)?);
        slot.attach()?;
        Ok(slot)
    }

    /// Gives a child process, which shares its parent's slot after `fork`, one of its own. It
    /// begins at zero; the address stays. To be called before the child counts anything, and
    /// while it has one thread; what the child has inherited (budget, RAM in use, pages on each
    /// device) is the caller's to set.
    ///
    /// # Errors
    ///
    /// There is no room for a page. The slot is then still the parent's.
    pub fn reclaim_after_fork(&self) -> io::Result<()> {
        anonymous_page(Some(self.page))?;
        self.attach()
    }

    /// Records that this process goes on without being managed.
    pub fn mark_unmanaged(&self) {
        self.page().unmanaged.store(1, Relaxed);
    }

    /// Puts a page of the file in the place of the anonymous page, if there is one left.
    fn attach(&self) -> io::Result<()> {
        if let Some(file) = &self.file
            && file.take_slot(self.page).is_err()
        {
            // A remapping that failed may have left nothing there.
            anonymous_page(Some(self.page))?;
        }
        self.page().started.store(started(), Relaxed);
        self.page()
            .pid
            .store(getpid().as_raw_nonzero().get() as u64, Release);
        Ok(())
    }

    fn page(&self) -> &SlotPage {
        // SAFETY: `page` is mapped and aligned while the slot lives, holds only atomics, and is
        // only ever replaced by another page of them, in one step.
        unsafe { self.page.as_ref() }
    }
}

impl Deref for Slot {
    type Target = Stats;

    fn deref(&self) -> &Stats {
        &self.page().stats
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        own::remove(self.page.as_ptr() as usize);
        // SAFETY: the page is the slot's own mapping, and no reference into it outlives the slot.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), PAGE_SIZE) };
    }
}

/// The whole file, mapped. It costs address space only; a child inherits it, so that it needs
/// neither the path nor the right to open it.
#[derive(Debug)]
struct FileMapping {
    base: NonNull<Header>,
    slots: u64,
}

impl FileMapping {
    fn open(path: &CStr) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let pages = rustix::fs::fstat(&file)?.st_size as u64 / PAGE_SIZE as u64;
        if !(2..=MAX_SLOTS + 1).contains(&pages) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let len = pages as usize * PAGE_SIZE;
        let rw = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { rustix::mm::mmap(null_mut(), len, rw, MapFlags::SHARED, &file, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        let this = Self {
            base,
            slots: pages - 1,
        };
        // SAFETY: the range is that mapping; the advice only leaves it out of core dumps.
        unsafe { rustix::mm::madvise(base.as_ptr().cast(), len, Advice::LinuxDontDump) }?;
        if this.header().magic.load(Acquire) != MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(this)
    }

    fn header(&self) -> &Header {
        // SAFETY: the first page of the mapping, which lives as long as `self`; all atomics.
        unsafe { self.base.as_ref() }
    }

    /// Maps the next free slot at `place`, a page that the caller owns. Fails if no slot is left,
    /// or the file system has no room for one.
    fn take_slot(&self, place: NonNull<SlotPage>) -> Result<(), Errno> {
        let slot = self.header().taken.fetch_add(1, Relaxed) + 1;
        if slot > self.slots {
            return Err(Errno::NOSPC);
        }
        // SAFETY: `slot` is at most `slots`, so the page lies within the mapping. Populating it
        // first turns a full file system into an error here; later it would be a SIGBUS.
        // Remapping zero bytes of a shared mapping duplicates it: the mapping itself stays, and
        // the page at `place`, which the caller owns, is replaced in one step.
        unsafe {
            let page = self
                .base
                .as_ptr()
                .byte_add(slot as usize * PAGE_SIZE)
                .cast();
            rustix::mm::madvise(page, PAGE_SIZE, Advice::LinuxPopulateWrite)?;
            let to = place.as_ptr().cast();
            rustix::mm::mremap_fixed(page, 0, PAGE_SIZE, MremapFlags::MAYMOVE, to)?;
        }
        Ok(())
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        let len = (self.slots as usize + 1) * PAGE_SIZE;
        // SAFETY: the mapping is this value's own, and no reference into it is left.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), len) };
    }
}

/// Maps a page of zeros, in the place of `over` (which the caller owns) if given.
fn anonymous_page(over: Option<NonNull<SlotPage>>) -> io::Result<NonNull<SlotPage>> {
    let at = over.map_or(null_mut(), |page| page.as_ptr().cast());
    let fixed = if over.is_some() {
        MapFlags::FIXED
    } else {
        MapFlags::empty()
    };
    let rw = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: either at an address that the kernel chooses, or over a page that the caller owns
    // and that holds the same kind of value: zeros are a valid `SlotPage`.
    let page = unsafe { rustix::mm::mmap_anonymous(at, PAGE_SIZE, rw, MapFlags::PRIVATE | fixed) }?;
    NonNull::new(page.cast()).ok_or(Errno::NOMEM.into())
}

/// When this process was forked, in ticks since boot; zero if `/proc` does not say.
fn started() -> u64 {
    let read = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let stat = rustix::fs::open(c"/proc/self/stat", flags, Mode::empty()).ok()?;
        let mut text = [0u8; 1024];
        let len = rustix::io::read(stat, &mut text[..]).ok()?;
        // The second field, the name, ends with the last bracket; the 22nd is wanted.
        let name = text[..len].iter().rposition(|byte| *byte == b')')?;
        let ticks = text[name..len].split(|byte| *byte == b' ').nth(20)?;
        std::str::from_utf8(ticks).ok()?.parse().ok()
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_time_of_the_fork_is_known_and_in_the_past() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        // There are 100 of these ticks a second on every machine that uhmm runs on.
        let started = super::started() as f64 / 100.0;
        assert!(
            started > 0.0 && started <= seconds,
            "{started} of {seconds}"
        );
    }
}
