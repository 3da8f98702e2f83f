//! The real [`Mmu`]: a reserved address range, the frame pool and the devices' arenas, all registered
//! with one userfaultfd; and the files that tell what is mapped.
//!
//! The space is reserved without access; whoever hands parts of it out gives them access with
//! `mprotect`. It is registered for missing and for write-protected pages. The pool is one mapping of
//! slots, all of it writable, and so is each [`Arena`]; they are registered for missing pages, only
//! because a move's destination must be. Each is registered once and whole, so the number of regions
//! a program makes costs no registrations (docs/faults.md).
//!
//! A page's number is its address divided by 4096, in the space and in the memory of the program's own
//! that is adopted ([`adopted`](crate::adopted)). Nothing is done to any other page: a call over pages
//! not all of which are managed does the first of them, and stops.
//!
//! Moving a page needs both mappings to be writable and each range to lie within one kernel
//! mapping. Where a range straddles two, a move is repeated on halves, and a copy does the first page.

use crate::abi::uffd::{OpenError, Uffd};
use crate::abi::{futex, numa, pagemap};
use crate::adopted::AdoptedRanges;
use crate::arena::Arena;
use crate::engine::Kind;
use crate::mapping::{Mapping, Table};
use crate::moves::RACES;
use crate::proc_files::{ProcError, ProcFiles};
use crate::shared_stats::Slot;
use linux_raw_sys::general::{
    UFFD_FEATURE_MOVE, UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_POISON, UFFD_FEATURE_SIGBUS,
};
use rustix::fd::{AsRawFd, RawFd};
use rustix::io::{self, Errno};
use rustix::mm::{self, Advice, MprotectFlags};
use std::fmt;
use std::ops::Range;
use std::slice;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use uhmm_core::Space;
use uhmm_core::addr::{
    DeviceAddr, FrameNo, Home, PAGE_SHIFT, PAGE_SIZE, PageData, PageNo, PageRange,
};
use uhmm_core::frames::{BLOCK, Frame, slots_for};
use uhmm_core::mmu::{Mmu, Progress, Stop, Tracking};
use uhmm_core::stats::{MAX_DEVICES, Stats};

/// The userfaultfd features that an engine cannot do without.
pub const fn features(engine: Kind) -> u64 {
    let each = UFFD_FEATURE_MOVE as u64
        | UFFD_FEATURE_POISON as u64
        | UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64;
    match engine {
        Kind::Thread => each,
        Kind::Signal => each | UFFD_FEATURE_SIGBUS as u64,
    }
}

static ZEROS: PageData = PageData::ZERO;

/// Descriptors that an MMU has open.
pub const DESCRIPTORS: usize = 5;

/// The lowest number for our descriptors: high, if the limit on open files allows.
pub(crate) fn high_fd() -> RawFd {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(900, |limit| {
        limit.saturating_sub(DESCRIPTORS as u64).min(900) as RawFd
    })
}

/// Why the real MMU could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// No userfaultfd.
    Open(OpenError),
    /// A file in `/proc/self` that tells of our own memory cannot be opened.
    Proc(ProcError),
    /// No address space for the space or the pool.
    Reserve(Errno),
    /// A range could not be registered; `EBUSY`: another userfaultfd has it.
    Register(Errno),
    /// No memory for the counters.
    Stats,
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => error.fmt(f),
            Self::Proc(error) => error.fmt(f),
            Self::Reserve(errno) => write!(
                f,
                "cannot reserve address space ({errno}): raise the limit (ulimit -v unlimited)"
            ),
            Self::Register(Errno::BUSY) => f.write_str(
                "the range belongs to another userfaultfd: only one program may serve a mapping",
            ),
            Self::Register(errno) => write!(f, "cannot register memory with userfaultfd: {errno}"),
            Self::Stats => f.write_str("no memory for the counters"),
        }
    }
}

impl std::error::Error for SetupError {}

/// Sizes of space that are tried, in bytes: the address space may be limited.
const SPACES: [usize; 5] = [16 << 40, 4 << 40, 1 << 40, 128 << 30, 16 << 30];

/// All pages that a program can map.
pub const EVERYWHERE: PageRange = PageRange::new(PageNo(0), 1 << (ADDRESS_BITS - PAGE_SHIFT));
const ADDRESS_BITS: u32 = if cfg!(target_arch = "x86_64") { 47 } else { 48 };

/// See the module's head.
pub struct LinuxMmu {
    pub(crate) uffd: Uffd,
    engine: Kind,
    pub(crate) files: ProcFiles,
    space: Mapping,
    pool: Mapping,
    arenas: [OnceLock<Arena>; MAX_DEVICES],
    range: PageRange,
    pub(crate) adopted: AdoptedRanges,
    stats: Slot,
    exhausted: fn(),
    built: Instant,
}

impl LinuxMmu {
    /// Reserves a space, as large as the limits allow, and a frame pool for `budget_pages`.
    /// `exhausted` is called when RAM and every device are full and a fault waits (R19). Faults arrive
    /// as `engine` wants them.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(
        engine: Kind,
        budget_pages: usize,
        stats: Slot,
        exhausted: fn(),
    ) -> Result<Self, SetupError> {
        let uffd = Uffd::open(features(engine))
            .map_err(SetupError::Open)?
            .moved_up(high_fd());
        let files = ProcFiles::open(high_fd()).map_err(SetupError::Proc)?;
        let mut last = Errno::NOMEM;
        let space = SPACES.into_iter().find_map(|len| {
            Mapping::anonymous(len, c"uhmm-space")
                .map_err(|errno| last = errno)
                .ok()
        });
        let space = space.ok_or(SetupError::Reserve(last))?;
        let pool = Mapping::anonymous(slots_for(budget_pages) * PAGE_SIZE, c"uhmm-frames")
            .and_then(|pool| pool.allow_all().map(|()| pool))
            .map_err(SetupError::Reserve)?;
        for mapping in [&space, &pool] {
            mapping.leave_out_of_dumps();
            mapping.refuse_huge_pages(0, mapping.len());
        }
        let reserved = pages_of(&space);
        let mmu = Self {
            uffd,
            engine,
            files,
            range: if has_tables_for_all() {
                EVERYWHERE
            } else {
                reserved
            },
            adopted: AdoptedRanges::default(),
            space,
            pool,
            arenas: [const { OnceLock::new() }; MAX_DEVICES],
            stats,
            exhausted,
            built: Instant::now(),
        };
        mmu.register_slots(mmu.pool.address()..mmu.pool.address() + mmu.pool.len())?;
        mmu.register(mmu.space_range())?;
        Ok(mmu)
    }

    /// The pages that the core is to have an entry for: all that the process can have, or, where the
    /// address space is limited, those of the space.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// The pages of the space.
    pub fn space_range(&self) -> PageRange {
        pages_of(&self.space)
    }

    /// Registers the pool or an arena.
    fn register_slots(&self, range: Range<usize>) -> Result<(), SetupError> {
        self.uffd
            .register(range, false)
            .map(drop)
            .map_err(SetupError::Register)
    }

    /// Registers pages of the space (again): after something else was mapped there, or in the
    /// child of a fork.
    ///
    /// # Errors
    /// [`SetupError::Register`].
    pub fn register(&self, pages: PageRange) -> Result<(), SetupError> {
        self.uffd
            .register(bytes(pages), true)
            .map(drop)
            .map_err(SetupError::Register)
    }

    /// Sets the MMU up again in the child of a fork: the kernel has copied the memory, but not the
    /// registrations. The pages of the space are left to [`LinuxMmu::register`], since only the
    /// caller knows which of them are ours. No page is tracked in the child.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn set_up_in_child(&self) -> Result<(), SetupError> {
        let _ = self.stats.reclaim_after_fork();
        let renewed = self.uffd.renew(features(self.engine));
        renewed.map_err(SetupError::Open)?;
        self.files.renew().map_err(SetupError::Proc)?;
        self.register_slots(self.pool.address()..self.pool.address() + self.pool.len())?;
        self.arenas()
            .try_for_each(|arena| self.register_slots(arena.range()))
    }

    /// The userfaultfd, for the engines.
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// The numbers of all our descriptors, which nobody else may close or use.
    pub fn descriptors(&self) -> [RawFd; DESCRIPTORS] {
        let files = &self.files;
        let files = [files.pagemap(), files.mem(), files.smaps(), files.maps()];
        let [pagemap, mem, smaps, maps] = files.map(|file| file.as_raw_fd());
        [self.uffd.fd().as_raw_fd(), pagemap, mem, smaps, maps]
    }

    /// Where the counters live.
    pub fn slot(&self) -> &Slot {
        &self.stats
    }

    /// Changes what the program may do with `pages`.
    ///
    /// # Errors
    /// What `mprotect` returns.
    pub fn protect(&self, pages: PageRange, flags: MprotectFlags) -> io::Result<()> {
        let offset = pages.start.address() - self.space.address();
        self.space.protect(offset, pages.bytes(), flags)
    }

    /// Reserves pages of the space again where something else was mapped over them.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn reserve_again(&self, pages: PageRange) -> Result<(), SetupError> {
        let offset = pages.start.address() - self.space.address();
        self.space
            .renew(offset, pages.bytes())
            .map_err(SetupError::Reserve)?;
        if self.arenas().any(Arena::is_bound) {
            leave_frames_where_they_are(bytes(pages));
        }
        self.register(pages)
    }

    /// Drops the contents of something else that was mapped over pages of the space.
    pub fn discard_foreign(&self, pages: PageRange) {
        self.space
            .discard(pages.start.address() - self.space.address(), pages.bytes());
    }

    /// Touches `page` by way of the kernel, if the program may write to it. `false`: it is missing or
    /// tracked, and who touches it by way of the kernel in the signal engine is not served.
    pub fn touch(&self, page: PageNo) -> bool {
        self.populate(page) != Err(Errno::FAULT)
    }

    /// Makes `page` present and private to this process, as a write of the program would.
    fn populate(&self, page: PageNo) -> io::Result<()> {
        let place = self.place(page).ok_or(Errno::NOMEM)?;
        // SAFETY: of what is present nothing changes; what is missing a fault brings in.
        unsafe { mm::madvise(place.start as *mut _, PAGE_SIZE, Advice::LinuxPopulateWrite) }
    }

    /// Makes huge pages of present pages, which must begin and end on 2 MiB. The kernel's own
    /// collapsing stays off for the space: it would take frames of devices for RAM (R13).
    ///
    /// # Errors
    /// What `MADV_COLLAPSE` returns: `EAGAIN` or `EBUSY` where pages are in use, `ENOMEM`.
    pub fn collapse(&self, pages: PageRange) -> io::Result<()> {
        // Off in the space, and in adopted memory where there are arenas; else it is the program's affair.
        let off = self.space_range().contains(pages.start) || self.arenas().next().is_some();
        let place = self.whole(pages)?;
        let (start, len) = (place.start as *mut _, place.len());
        // SAFETY: within the space, or adopted; none of these changes a byte of it. (The second call goes past the
        // C library, whose `madvise` a preload library may have taken over.)
        unsafe {
            if off {
                mm::madvise(start, len, Advice::LinuxHugepage)?;
            }
            let collapsed = libc::syscall(libc::SYS_madvise, start, len, libc::MADV_COLLAPSE) == 0;
            let error = crate::abi::last_errno();
            if off {
                mm::madvise(start, len, Advice::LinuxNoHugepage)?;
            }
            if collapsed { Ok(()) } else { Err(error) }
        }
    }

    /// Moves present pages to a NUMA node; returns how many are there now.
    ///
    /// # Errors
    /// As [`numa::move_pages`].
    pub fn move_to_node(&self, pages: PageRange, node: u32) -> io::Result<usize> {
        let place = self.whole(pages)?;
        let addresses: Vec<_> = place.step_by(PAGE_SIZE).map(|at| at as *mut _).collect();
        numa::move_pages(&addresses, node)
    }

    fn arena(&self, device: u8) -> &Arena {
        let arena = self.arenas.get(usize::from(device));
        let arena = arena.and_then(OnceLock::get);
        arena.unwrap_or_else(|| panic!("device {device} has no arena"))
    }

    /// All arenas.
    pub(crate) fn arenas(&self) -> impl Iterator<Item = &Arena> {
        self.arenas.iter().filter_map(OnceLock::get)
    }

    /// Whether any byte of `range` is of the space, the pool or an arena.
    pub fn is_own(&self, range: &Range<usize>) -> bool {
        let own = [&self.space, &self.pool].map(|own| own.address()..own.address() + own.len());
        let mut own = own.into_iter().chain(self.arenas().map(Arena::range));
        own.any(|own| range.start < own.end && own.start < range.end)
    }

    /// The address of the first of `pages` slots from `home` on.
    fn home_address(&self, home: Home, pages: usize) -> usize {
        match home {
            Home::Pool(slot) => self.pool.address() + slot.0 as usize * PAGE_SIZE,
            Home::Arena(at) => self.arena(at.device).address(at.page, pages),
        }
    }

    /// Gives an empty slot of an arena a frame of zeros, of the arena's own memory. By a copy, since
    /// a touch would wait for ourselves. `false`: there is no memory for it.
    fn fill(&self, slot: PageNo) -> bool {
        let zeros = slice::from_ref(&ZEROS);
        (0..RACES).any(
            |_| match self.copy_within(zeros, slot.address(), Tracking::Off) {
                Progress { pages: 1, .. } => true,
                progress => progress.stop == Some(Stop::Present),
            },
        )
    }
}

/// Keeps the kernel's automatic NUMA balancing away from part of the space: it would move a device's
/// frames, where the program has them mapped, to the memory of the CPU that touches them, and only
/// the driver decides what is in device memory (R13). It looks only at mappings under a policy that
/// lets it migrate; the system's own does, one set without `MPOL_F_NUMA_BALANCING` does not. New
/// pages then come from the local node even if the program was started with another policy. A
/// kernel that refuses has no balancing, or does not let us say so: that costs speed only.
fn leave_frames_where_they_are(range: Range<usize>) {
    let _ = numa::prefer_local(range);
}

fn pages_of(mapping: &Mapping) -> PageRange {
    PageRange::new(
        PageNo::containing(mapping.address()),
        mapping.len() / PAGE_SIZE,
    )
}

/// Whether there is address space for tables over all pages that the program can have, and for as much
/// again.
fn has_tables_for_all() -> bool {
    Table::new(2 * Space::<LinuxMmu>::table_words(EVERYWHERE.len)).is_some()
}

pub(crate) fn bytes(pages: PageRange) -> Range<usize> {
    pages.start.address()..pages.end().address()
}

impl Mmu for LinuxMmu {
    type Table = Table;

    fn table(&self, len: usize) -> Option<Table> {
        Table::new(len)
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }

    fn add_arena(&self, device: u8, pages: u32, node: Option<u32>) -> bool {
        let Some(place) = self.arenas.get(usize::from(device)) else {
            return false;
        };
        if place.get().is_some() {
            return false;
        }
        let Some(arena) = Arena::new(pages, node) else {
            return false;
        };
        if self.register_slots(arena.range()).is_err() {
            return false;
        }
        if arena.is_bound() {
            leave_frames_where_they_are(bytes(self.space_range()));
        }
        let added = place.set(arena).is_ok();
        for pages in self.adopted.all() {
            self.keep_the_kernel_away(bytes(pages));
        }
        added
    }

    fn take(&self, pages: PageRange, into: Home) -> Progress {
        let to = self.home_address(into, pages.len);
        let progress = self.in_place(pages, |from, len| self.move_all(from, to, len));
        if let Home::Arena(at) = into {
            self.arena(at.device).set_filled(at.page, progress.pages);
        }
        progress
    }

    fn put(&self, from: Home, pages: PageRange) -> Progress {
        let slot = self.home_address(from, pages.len);
        let progress = self.in_place(pages, |to, len| self.put_all(slot, to, len));
        if let Home::Arena(at) = from {
            self.arena(at.device).set_empty(at.page, progress.pages);
        }
        progress
    }

    fn relocate(&self, from: PageRange, to: PageNo) -> Progress {
        self.in_place(from, |source, len| {
            self.in_place(PageRange::new(to, len), |target, len| {
                self.move_all(source, target, len)
            })
        })
    }

    fn copy(&self, from: &[PageData], at: PageNo, tracking: Tracking) -> Progress {
        self.in_place(PageRange::new(at, from.len()), |to, len| {
            let from = &from[..len];
            let progress = self.copy_within(from, to, tracking);
            if len == 1 || progress != Progress::stopped(0, Stop::Unmapped) {
                return progress;
            }
            // A mapping ends within these pages. Only the first is sure to be in it: beyond its end is
            // somebody else's mapping, or nobody's, and nothing may be put there.
            match self.copy_within(&from[..1], to, tracking) {
                Progress { pages: 1, .. } => Progress::stopped(1, Stop::Unmapped),
                nothing => nothing,
            }
        })
    }

    fn track(&self, pages: PageRange) -> bool {
        let mut all = true;
        self.each_managed(pages, |place| {
            let protect = |_| self.uffd.write_protect(place.clone(), true).is_ok();
            all &= (0..RACES).any(protect);
        });
        all
    }

    fn mapped_here_alone(&self, pages: PageRange) -> usize {
        let (file, managed) = (self.files.pagemap(), self.managed(pages));
        let alone = pagemap::mapped_here_alone(file, managed.start.address(), managed.len);
        // A page that nothing is known of counts as shared: at worst a copy is made that nobody needs.
        alone.unwrap_or(0)
    }

    fn untrack(&self, page: PageNo) {
        let Some(range) = self.place(page) else {
            return;
        };
        for _ in 0..RACES {
            match self.uffd.write_protect(range.clone(), false) {
                // Whoever waits has been woken.
                Ok(()) => return,
                // Only while an event of the mapping is unread, and none is requested.
                Err(Errno::AGAIN) => {}
                Err(_) => break,
            }
        }
        // Still changing, or not the space's any more. Nobody may sleep on for that: the touch
        // repeats, and meets the protection again if it is still there.
        self.wake(PageRange::new(page, 1));
    }

    fn peek(&self, page: PageNo, to: &mut PageData) -> bool {
        let place = self.place(page);
        place.is_some_and(|place| self.files.read(place.start, &mut to.0[..]))
    }

    fn read_mapped(&self, page: PageNo, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= PAGE_SIZE, "beyond the page");
        let from = (page.address() + offset) as *const u8;
        // SAFETY: the caller has seen to it that the page is present and stays so, and may be read. The
        // program may write to it meanwhile, as it may while any device reads memory: what is read
        // then is old or new, byte by byte, and no reference to it is made.
        unsafe { std::ptr::copy(from, to.as_mut_ptr(), to.len()) };
    }

    fn write_mapped(&self, page: PageNo, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= PAGE_SIZE, "beyond the page");
        let to = (page.address() + offset) as *mut u8;
        // SAFETY: as above, and it may be written to: the program has given the device that range.
        unsafe { std::ptr::copy(from.as_ptr(), to, from.len()) };
    }

    fn manages(&self, page: PageNo) -> bool {
        self.around(page).is_some() && !self.adopted.is_coming(page)
    }

    /// Not for a tracked page: populating it for writing is a write to it, which waits for a handler
    /// of ours, and that for whoever has the page claimed: the caller. The core asks this of no
    /// tracked page that it has claimed.
    fn is_writable(&self, page: PageNo) -> bool {
        self.populate(page).is_ok()
    }

    fn wake(&self, pages: PageRange) {
        if self.engine == Kind::Signal {
            // Nobody sleeps in the kernel: who waits, waits on the entry.
            return;
        }
        self.each_managed(pages, |place| {
            let result = self.uffd.wake(place);
            debug_assert!(result.is_ok(), "UFFDIO_WAKE: {result:?}");
        });
    }

    fn discard(&self, pages: PageRange) {
        self.each_managed(pages, |place| {
            // SAFETY: pages of the space, or of memory that was adopted; the caller has claimed them,
            // and gives up what is in them.
            let result = unsafe {
                let start = place.start as *mut _;
                mm::madvise(start, place.len(), Advice::LinuxDontNeed)
            };
            debug_assert!(result.is_ok(), "MADV_DONTNEED: {result:?}");
        });
    }

    fn poison(&self, page: PageNo) {
        // Poisoned before, or the range is gone: as good.
        if let Some(place) = self.place(page) {
            let _ = self.uffd.poison(place);
        }
    }

    /// Not for tracked pages, for the reason given at `is_writable`: the core ends tracking first.
    /// Nor for missing ones, and those are passed over.
    fn unshare(&self, pages: PageRange) {
        self.each_managed(pages, |place| self.populate_present(place));
    }

    fn present(&self, pages: PageRange, each: &mut dyn FnMut(PageRange)) {
        self.each_managed(pages, |place| {
            self.scan_present(place, |found| {
                let start = PageNo::containing(found.start);
                each(PageRange::new(start, found.len() / PAGE_SIZE));
            });
        });
    }

    fn with_frame(&self, frame: &Frame, with: &mut dyn FnMut(&mut PageData)) {
        let slot = self
            .pool
            .at(frame.slot().0 as usize * PAGE_SIZE)
            .cast::<PageData>();
        // SAFETY: a `Frame` is the sole right to use its slot, which holds a page, aligned.
        with(unsafe { &mut *slot });
    }

    fn with_frames(&self, frames: &[&Frame], with: &mut dyn FnMut(&[&PageData])) {
        assert!(frames.len() <= BLOCK, "{} frames at once", frames.len());
        let mut pages = [&ZEROS; BLOCK];
        for (page, frame) in pages.iter_mut().zip(frames) {
            let slot = self.pool.at(frame.slot().0 as usize * PAGE_SIZE);
            // SAFETY: a `Frame` is the sole right to use its slot, which holds a page, aligned; it
            // is borrowed for the call, and only read.
            *page = unsafe { &*slot.cast::<PageData>() };
        }
        with(&pages[..frames.len()]);
    }

    fn with_arena(&self, at: DeviceAddr, with: &mut dyn FnMut(&mut PageData)) -> bool {
        let arena = self.arena(at.device);
        let slot = arena.bytes(at.page);
        if !arena.is_filled(at.page) {
            if !self.fill(PageNo::containing(slot as usize)) {
                return false;
            }
            arena.set_filled(at.page, 1);
        }
        // SAFETY: the slot holds a page, aligned; the caller has the device page alone, so nobody
        // else reads, writes or moves it meanwhile.
        with(unsafe { &mut *slot });
        true
    }

    fn read_arena(&self, at: DeviceAddr, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= PAGE_SIZE, "beyond the page");
        let from = self.arena(at.device).bytes(at.page).cast::<u8>();
        // SAFETY: the slot holds a page, which stays there and is not written to, says the caller.
        unsafe { std::ptr::copy(from.add(offset), to.as_mut_ptr(), to.len()) };
    }

    fn drop_arena(&self, first: DeviceAddr, len: usize) {
        self.arena(first.device).discard(first.page, len);
    }

    fn drop_frames(&self, first: FrameNo, len: usize) {
        self.pool
            .discard(first.0 as usize * PAGE_SIZE, len * PAGE_SIZE);
    }

    fn wait(&self, word: &AtomicU64, seen: u64, at_most: Duration) {
        futex::wait(word, seen, at_most);
    }

    fn now(&self) -> Duration {
        self.built.elapsed()
    }

    fn wake_waiters(&self, word: &AtomicU64) {
        futex::wake(word);
    }

    fn out_of_memory(&self) {
        (self.exhausted)();
    }
}
