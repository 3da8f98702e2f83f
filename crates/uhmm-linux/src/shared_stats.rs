//! Counters that outlive their process: a file that all processes of one `uhmm run` share.
//!
//! The file is sparse and made of pages. Page 0 is the header. Every further page is a *slot*:
//! the [`Stats`] of one process image, updated in place through a shared mapping, so that nothing
//! is lost when a process crashes or calls `_exit`. A slot is handed out by one atomic addition,
//! and is never handed out twice.
//!
//! | who | what |
//! | --- | --- |
//! | the command | creates the file ([`StatsFile`]), waits, reads the sums, removes the file |
//! | a process, as it starts | [`Slot::claim`] by the file's path |
//! | its child after `fork` | [`Slot::reclaim_after_fork`], through the inherited mapping |
//! | a process that no file is for | [`Slot::private`]: memory of its own, of the same shape |
//!
//! Only the user who started the run may open the file (mode 0600): who may write it may also cut
//! it short, which would kill the processes that map it. A process that has changed its user
//! therefore still counts after `fork`, which opens nothing, but no longer after `exec`.
//!
//! A process uses no heap here: only system calls and mapped pages.

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use rustix::process::{Resource, getpid, getrlimit};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{SystemTime, UNIX_EPOCH};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::stats::{Counter, MAX_DEVICES, Stats};

/// The most process images that one file counts. More run uncounted, and [`Total`] says so.
pub const MAX_SLOTS: u64 = 65_535;

/// How the files' names begin.
const NAME: &str = "uhmm-stats-";

/// What the file begins with. The last digit is the version of the layout.
const MAGIC: u64 = u64::from_le_bytes(*b"uhmmsta1");

/// Page 0 of the file.
#[repr(C)]
struct Header {
    magic: AtomicU64,
    /// Slots handed out; more than there are once they have run out.
    taken: AtomicU64,
}

/// A slot's page.
#[derive(Debug, Default)]
#[repr(C)]
struct SlotPage {
    stats: Stats,
    /// The process, or zero while the slot has no owner.
    pid: AtomicU64,
    /// Not zero once the process has given up being managed.
    unmanaged: AtomicU64,
}

const _: () = assert!(size_of::<SlotPage>() <= PAGE_SIZE && size_of::<Header>() <= PAGE_SIZE);

/// The file, in the hands of the command. Removed when dropped.
#[derive(Debug)]
pub struct StatsFile {
    file: File,
    path: PathBuf,
    slots: u64,
}

impl StatsFile {
    /// Creates a file in `dir`, and removes those that killed commands of this user left there.
    ///
    /// # Errors
    ///
    /// `dir` cannot be written to, has no room, or the limit on file sizes is below two pages.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let dir = std::path::absolute(dir)?;
        remove_stale(&dir);
        let room = getrlimit(Resource::Fsize)
            .current
            .map_or(u64::MAX, |n| n / PAGE_SIZE as u64);
        let slots = MAX_SLOTS.min(room.saturating_sub(1));
        if slots == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        loop {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let path = dir.join(format!("{NAME}{}-{}", std::process::id(), now.as_nanos()));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            let this = Self { file, path, slots };
            rustix::fs::flock(&this.file, FlockOperation::LockExclusive)?;
            // Between its creation and the lock another command may have thought it stale.
            if this.file.metadata()?.nlink() == 0 {
                continue;
            }
            this.file.set_len((slots + 1) * PAGE_SIZE as u64)?;
            this.file.write_all_at(&MAGIC.to_ne_bytes(), 0)?;
            return Ok(this);
        }
    }

    /// Creates a file in `/dev/shm`, or else in the directory for temporary files.
    ///
    /// # Errors
    ///
    /// Neither can hold it.
    pub fn create_anywhere() -> io::Result<Self> {
        Self::create(Path::new("/dev/shm")).or_else(|_| Self::create(&std::env::temp_dir()))
    }

    /// Where the file is, from the root directory on.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The sums over all processes so far. They may be running: each counter is then some value
    /// that it had during the call.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn sum(&self) -> io::Result<Total> {
        let mut word = [0; 8];
        self.file
            .read_exact_at(&mut word, std::mem::offset_of!(Header, taken) as u64)?;
        let taken = u64::from_ne_bytes(word);
        let mut total = Total {
            uncounted: taken.saturating_sub(self.slots),
            ..Total::default()
        };
        let mut processes = BTreeMap::<u64, SlotPage>::new();
        for slot in 1..=taken.min(self.slots) {
            let mut page = SlotPage::default();
            self.file
                .read_exact_at(bytes_of(&mut page), slot * PAGE_SIZE as u64)?;
            let pid = page.pid.load(Relaxed);
            if pid == 0 {
                total.uncounted += 1;
                continue;
            }
            let process = processes.entry(pid).or_default();
            add_image(&process.stats, &page.stats);
            process
                .unmanaged
                .fetch_or(page.unmanaged.load(Relaxed), Relaxed);
        }
        for process in processes.values() {
            add_process(&total.stats, &process.stats);
            total.processes += 1;
            total.unmanaged += process.unmanaged.load(Relaxed).min(1);
        }
        Ok(total)
    }
}

impl Drop for StatsFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes files whose command has ended without doing so: nobody holds their lock.
fn remove_stale(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(NAME) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let Ok(file) = rustix::fs::open(entry.path(), flags, Mode::empty()) else {
            continue;
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// What all processes of a run counted together.
#[derive(Debug, Default)]
pub struct Total {
    /// Sums over the processes. A process that called `exec` counts its events in all its images,
    /// its peaks in the image where they were highest, and what it holds now in the last.
    pub stats: Stats,
    /// Processes counted.
    pub processes: u64,
    /// Those of them that gave up being managed.
    pub unmanaged: u64,
    /// Process images that found no slot, and are in no other number here.
    pub uncounted: u64,
}

/// What only grows.
fn events(stats: &Stats) -> [&Counter; 9] {
    [
        &stats.first_touch_faults,
        &stats.device_faults,
        &stats.limbo_faults,
        &stats.stale_faults,
        &stats.pages_to_device,
        &stats.pages_to_system,
        &stats.poisoned_pages,
        &stats.busy_pages,
        &stats.reclaim_waits,
    ]
}

/// The highest values so far.
fn peaks(stats: &Stats) -> impl Iterator<Item = &Counter> {
    let devices = stats
        .devices
        .iter()
        .flat_map(|d| [&d.pages_peak, &d.stored_bytes_peak]);
    [&stats.ram_budget_bytes, &stats.ram_peak_bytes]
        .into_iter()
        .chain(devices)
}

/// What is so now.
fn levels(stats: &Stats) -> impl Iterator<Item = &Counter> {
    let devices = stats
        .devices
        .iter()
        .flat_map(|d| [&d.pages, &d.stored_bytes]);
    [&stats.ram_bytes].into_iter().chain(devices)
}

/// A counter that is in none of the three lists would be lost from the sums.
const _: () = assert!(size_of::<Stats>() == (9 + 2 + 1 + MAX_DEVICES * 4) * size_of::<Counter>());

/// Adds what a process counted in its next image.
fn add_image(to: &Stats, image: &Stats) {
    events(to)
        .into_iter()
        .zip(events(image))
        .for_each(|(to, n)| to.set(to.get() + n.get()));
    peaks(to)
        .zip(peaks(image))
        .for_each(|(to, n)| to.raise(n.get()));
    levels(to)
        .zip(levels(image))
        .for_each(|(to, n)| to.set(n.get()));
}

/// Adds what a process counted to what others did.
fn add_process(to: &Stats, process: &Stats) {
    let all = |stats| {
        events(stats)
            .into_iter()
            .chain(peaks(stats))
            .chain(levels(stats))
    };
    all(to)
        .zip(all(process))
        .for_each(|(to, n)| to.set(to.get().saturating_add(n.get())));
}

/// The memory of a slot's page as bytes to be filled.
fn bytes_of(page: &mut SlotPage) -> &mut [u8] {
    // SAFETY: the bytes are those of one value that is borrowed for as long, and it is made of
    // 64-bit atomics without padding, for which any bytes are a value.
    unsafe {
        std::slice::from_raw_parts_mut(std::ptr::from_mut(page).cast(), size_of::<SlotPage>())
    }
}

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
        Ok(Self {
            page: anonymous_page(None)?,
            file: None,
        })
    }

    /// Takes a slot of the file at `path`. Where the file has none left the counters are private.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or mapped, or is no file of this version.
    pub fn claim(path: &CStr) -> io::Result<Self> {
        let slot = Self {
            page: anonymous_page(None)?,
            file: Some(FileMapping::open(path)?),
        };
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
