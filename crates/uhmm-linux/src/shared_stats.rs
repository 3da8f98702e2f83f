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

mod slot;

pub use slot::Slot;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Resource, getrlimit};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::stats::{Counter, MAX_DEVICES, Stats};

/// The most process images that one file counts. More run uncounted, and [`Total`] says so.
pub const MAX_SLOTS: u64 = 65_535;

/// How the files' names begin.
const NAME: &str = "uhmm-stats-";

/// What the file begins with. The last digit is the version of the layout.
const MAGIC: u64 = u64::from_le_bytes(*b"uhmmsta2");

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
    /// When the process was forked, in the kernel's ticks since boot: with the number it tells
    /// the images of one process from a later process with the same number. `exec` keeps it.
    started: AtomicU64,
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
        let mut processes = BTreeMap::<(u64, u64), SlotPage>::new();
        for slot in 1..=taken.min(self.slots) {
            let mut page = SlotPage::default();
            self.file
                .read_exact_at(bytes_of(&mut page), slot * PAGE_SIZE as u64)?;
            let pid = page.pid.load(Relaxed);
            if pid == 0 {
                total.uncounted += 1;
                continue;
            }
            let process = processes
                .entry((pid, page.started.load(Relaxed)))
                .or_default();
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
fn events(stats: &Stats) -> [&Counter; 18] {
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
        &stats.clean_evictions,
        &stats.pages_evicted,
        &stats.pins_acquired,
        &stats.pins_released,
        &stats.page_gets,
        &stats.page_puts,
        &stats.exclusive_pages,
        &stats.exclusive_ends,
        &stats.invalidations,
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
    [
        &stats.ram_bytes,
        &stats.duplicate_pages,
        &stats.pinned_pages,
    ]
    .into_iter()
    .chain(devices)
}

/// A counter that is in none of the three lists would be lost from the sums.
const _: () = assert!(size_of::<Stats>() == (18 + 2 + 3 + MAX_DEVICES * 4) * size_of::<Counter>());

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
