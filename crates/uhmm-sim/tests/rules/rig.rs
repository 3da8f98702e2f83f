//! Devices of every kind, several of them in one space, for the tests of migration by request.

use crate::world::{BASE, Shared, World};
use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uhmm_core::addr::{DeviceAddr, DevicePage, PageData, PageNo, PageRange};
use uhmm_core::device::{
    CopyFailed, CopyIn, CopyInError, CopyOut, CopyOutError, Device, DeviceInfo, Fence, Owner,
};
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::{MigrateVma, Migrated, Migration, Select, Unmapped};

use crate::hook::HookedMmu;

pub const SYSTEM: Select = Select::SYSTEM;
pub const PRIVATE: Select = Select::DEVICE_PRIVATE;
pub const COHERENT: Select = Select::DEVICE_COHERENT;

/// The address of a [`Recorder`]'s page 0.
pub const FIRST_ADDRESS: u64 = 1 << 40;

/// The watched device of the world, to which reclaim pushes.
pub const WATCHED: u8 = 0;

/// A call of a driver to step into, or to make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    CopyIn,
    CopyOut,
    Free,
    AddChunk,
    RemoveChunk,
    Wait,
}

type Step = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Kept {
    stored: HashMap<DevicePage, Box<PageData>>,
    /// Copies that were started, and whose fence has not been waited for.
    started: HashSet<DevicePage>,
    chunks: HashMap<DevicePage, u32>,
    freed: Vec<DevicePage>,
    removed: Vec<DevicePage>,
    broken: Option<String>,
}

/// A device that writes down what it is told, and that panics when a promise to devices is broken;
/// the core takes that for the device's failure, so the panic comes again when this is dropped.
pub struct Recorder {
    info: DeviceInfo,
    kept: Arc<Mutex<Kept>>,
    steps: Mutex<VecDeque<(Call, Step)>>,
    /// Batches come with a fence.
    fences: AtomicBool,
    /// So many fences fail from now on.
    failing_fences: Arc<AtomicUsize>,
    refuses_chunks: AtomicBool,
    full: AtomicBool,
    addresses: AtomicBool,
    lost: Mutex<HashSet<DevicePage>>,
    retries: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    /// A promise to devices does not hold.
    fn broken(&mut self, what: String) -> ! {
        self.broken.get_or_insert_with(|| what.clone());
        resume_unwind(Box::new(what));
    }

    fn in_a_chunk(&mut self, call: Call, page: DevicePage) {
        let within = |(first, len): (&DevicePage, &u32)| (first.0..first.0 + len).contains(&page.0);
        if !self.chunks.iter().any(within) {
            self.broken(format!("{call:?} of {page:?}, which is in no chunk"));
        }
    }
}

impl Recorder {
    pub fn new(info: DeviceInfo) -> Arc<Self> {
        Arc::new(Self {
            info,
            kept: Arc::default(),
            steps: Mutex::default(),
            fences: AtomicBool::new(false),
            failing_fences: Arc::default(),
            refuses_chunks: AtomicBool::new(false),
            full: AtomicBool::new(false),
            addresses: AtomicBool::new(false),
            lost: Mutex::default(),
            retries: AtomicUsize::new(0),
        })
    }

    pub fn of(memory: MemoryType, pages: u32) -> Arc<Self> {
        Self::new(DeviceInfo::new("recorder", pages).memory(memory))
    }

    pub fn boxed(self: &Arc<Self>) -> Box<dyn Device> {
        Box::new(Shared(self.clone()))
    }

    /// Runs `step` once, in the next such call that no other step waits for.
    pub fn before(&self, call: Call, step: impl FnOnce() + Send + 'static) {
        lock(&self.steps).push_back((call, Box::new(step)));
    }

    /// The next such call panics, without a word.
    pub fn panic_in(&self, call: Call) {
        self.before(call, || resume_unwind(Box::new("a driver's own")));
    }

    pub fn steps_left(&self) -> usize {
        lock(&self.steps).len()
    }

    pub fn set_fences(&self, on: bool) {
        self.fences.store(on, SeqCst);
    }

    pub fn fail_fences(&self, times: usize) {
        self.failing_fences.store(times, SeqCst);
    }

    pub fn refuse_chunks(&self, on: bool) {
        self.refuses_chunks.store(on, SeqCst);
    }

    pub fn set_full(&self, on: bool) {
        self.full.store(on, SeqCst);
    }

    /// What is stored as `page` is lost.
    pub fn lose(&self, page: DevicePage) {
        lock(&self.lost).insert(page);
    }

    /// So many copies out say `Retry`.
    pub fn retry(&self, times: usize) {
        self.retries.store(times, SeqCst);
    }

    /// What the device reads itself, in its own memory.
    pub fn peek(&self, page: DevicePage) -> PageData {
        let kept = lock(&self.kept);
        let found = kept.stored.get(&page);
        PageData::clone(found.unwrap_or_else(|| panic!("{page:?} is free, and is read")))
    }

    pub fn stored(&self) -> usize {
        lock(&self.kept).stored.len()
    }

    /// Copies that are under way.
    pub fn started(&self) -> usize {
        lock(&self.kept).started.len()
    }

    /// The pages that the driver was told are free.
    pub fn freed(&self) -> Vec<DevicePage> {
        lock(&self.kept).freed.clone()
    }

    /// The device's own program works on a page that it stores.
    pub fn compute(&self, page: DevicePage, work: impl FnOnce(&mut PageData)) {
        let mut kept = lock(&self.kept);
        work(kept.stored.get_mut(&page).expect("a page that is stored"));
    }

    /// The device has an address for each page.
    pub fn give_addresses(&self) {
        self.addresses.store(true, SeqCst);
    }

    /// First pages of the chunks that are there, in order.
    pub fn chunks(&self) -> Vec<u32> {
        let mut chunks: Vec<u32> = lock(&self.kept).chunks.keys().map(|page| page.0).collect();
        chunks.sort_unstable();
        chunks
    }

    /// First pages of the chunks that were removed, in the order of their removals.
    pub fn removed(&self) -> Vec<u32> {
        lock(&self.kept).removed.iter().map(|page| page.0).collect()
    }

    fn is_private(&self) -> bool {
        self.info.memory == MemoryType::Private
    }

    fn at(&self, call: Call) {
        let step = {
            let mut steps = lock(&self.steps);
            let due = steps.iter().position(|(when, _)| *when == call);
            due.and_then(|due| steps.remove(due))
        };
        if let Some((_, step)) = step {
            step();
        }
    }

    fn store(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        self.at(Call::CopyIn);
        let mut kept = lock(&self.kept);
        kept.in_a_chunk(Call::CopyIn, page);
        if !self.is_private() {
            kept.broken(format!("copy in of {page:?}, which the CPU maps"));
        }
        if kept.stored.contains_key(&page) || kept.started.contains(&page) {
            kept.broken(format!("copy in of {page:?}, which is in use"));
        }
        if self.full.load(SeqCst) {
            return Err(CopyInError::Full);
        }
        kept.stored.insert(page, Box::new(from.clone()));
        Ok(())
    }

    fn read(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        self.at(Call::CopyOut);
        let mut kept = lock(&self.kept);
        if lock(&self.lost).contains(&page) {
            return Err(CopyOutError::Lost);
        }
        let fewer = |times: usize| times.checked_sub(1);
        if self.retries.fetch_update(SeqCst, SeqCst, fewer).is_ok() {
            return Err(CopyOutError::Retry);
        }
        match kept.stored.get(&page) {
            Some(found) if !kept.started.contains(&page) => to.0 = found.0,
            _ => kept.broken(format!("copy out of {page:?}, which is not stored")),
        }
        Ok(())
    }
}

impl Device for Recorder {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        self.store(page, from)
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        self.read(page, to)
    }

    fn free(&self, page: DevicePage) {
        self.at(Call::Free);
        let mut kept = lock(&self.kept);
        kept.in_a_chunk(Call::Free, page);
        if kept.started.contains(&page) {
            kept.broken(format!("free of {page:?}, whose copy has not ended"));
        }
        if self.is_private() && kept.stored.remove(&page).is_none() {
            kept.broken(format!("free of {page:?}, which is not stored"));
        }
        kept.freed.push(page);
    }

    fn stored_bytes(&self) -> u64 {
        self.stored() as u64 * 4096
    }

    fn copy_in_batch(&self, copies: &mut [CopyIn<'_>]) -> Option<Box<dyn Fence>> {
        for copy in &mut *copies {
            copy.result = self.store(copy.page, copy.from);
        }
        if !self.fences.load(SeqCst) {
            return None;
        }
        let done = copies.iter().filter(|copy| copy.result.is_ok());
        let pages: Vec<_> = done.map(|copy| copy.page).collect();
        lock(&self.kept).started.extend(&pages);
        Some(self.fence(pages))
    }

    fn copy_out_batch(&self, copies: &mut [CopyOut<'_>]) -> Option<Box<dyn Fence>> {
        for copy in &mut *copies {
            copy.result = self.read(copy.page, copy.to);
        }
        self.fences.load(SeqCst).then(|| self.fence(Vec::new()))
    }

    fn address(&self, page: DevicePage) -> Option<u64> {
        let given = self.addresses.load(SeqCst);
        given.then(|| FIRST_ADDRESS + u64::from(page.0) * 4096)
    }

    fn add_chunk(&self, first: DevicePage, pages: u32) -> bool {
        self.at(Call::AddChunk);
        let mut kept = lock(&self.kept);
        if self.refuses_chunks.load(SeqCst) {
            return false;
        }
        if kept.chunks.insert(first, pages).is_some() {
            kept.broken(format!("chunk {first:?} is added twice"));
        }
        true
    }

    fn remove_chunk(&self, first: DevicePage, pages: u32) {
        self.at(Call::RemoveChunk);
        let mut kept = lock(&self.kept);
        let chunk = first.0..first.0 + pages;
        if kept.stored.keys().any(|page| chunk.contains(&page.0)) {
            kept.broken(format!("chunk {first:?} is removed with pages in it"));
        }
        if kept.chunks.remove(&first).is_none() {
            kept.broken(format!("chunk {first:?} is removed twice"));
        }
        kept.removed.push(first);
    }
}

impl Recorder {
    fn fence(&self, pages: Vec<DevicePage>) -> Box<dyn Fence> {
        // The test may step into the wait.
        let mut steps = lock(&self.steps);
        let due = steps.iter().position(|(when, _)| *when == Call::Wait);
        Box::new(Started {
            kept: self.kept.clone(),
            failing: self.failing_fences.clone(),
            step: due.and_then(|due| steps.remove(due)).map(|(_, step)| step),
            pages,
        })
    }
}

/// Copies in that count once they have been waited for, and copies out.
struct Started {
    kept: Arc<Mutex<Kept>>,
    failing: Arc<AtomicUsize>,
    step: Option<Step>,
    pages: Vec<DevicePage>,
}

impl Fence for Started {
    fn wait(&mut self) -> Result<(), CopyFailed> {
        if let Some(step) = self.step.take() {
            step();
        }
        let fails = self
            .failing
            .fetch_update(SeqCst, SeqCst, |times| times.checked_sub(1))
            .is_ok();
        let mut kept = lock(&self.kept);
        for page in &self.pages {
            kept.started.remove(page);
            if fails {
                kept.stored.remove(page);
            }
        }
        if fails { Err(CopyFailed) } else { Ok(()) }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(broken) = lock(&self.kept).broken.take()
            && !std::thread::panicking()
        {
            panic!("{broken}");
        }
    }
}

/// The watched device of the world and two more, one of each type that migrates, in chunks of 2 MiB.
pub struct Three {
    pub world: World,
    pub private: Arc<Recorder>,
    pub coherent: Arc<Recorder>,
}

pub const DEVICE_PRIVATE: u8 = 1;
pub const DEVICE_COHERENT: u8 = 2;
pub const CHUNK: usize = 512;

impl std::ops::Deref for Three {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

/// A device of `chunks` small chunks.
pub fn small(memory: MemoryType, chunks: usize) -> DeviceInfo {
    let pages = (chunks * CHUNK) as u32;
    let info = DeviceInfo::new("small", pages);
    info.memory(memory).chunk_pages(CHUNK as u32)
}

impl Three {
    pub fn new(pages: usize) -> Self {
        Self::with_batch(pages, 1)
    }

    /// The private one copies `batch` pages a call.
    pub fn with_batch(pages: usize, batch: u16) -> Self {
        let private = small(MemoryType::Private, 4)
            .batch_pages(batch)
            .owner(Owner(7));
        let private = Recorder::new(private);
        let coherent = Recorder::new(small(MemoryType::Coherent, 4).owner(Owner(8)));
        let devices = vec![private.boxed(), coherent.boxed()];
        Self {
            world: World::beside(pages, pages, devices),
            private,
            coherent,
        }
    }

    /// Migrates `len` pages from `first` on to `device`, all that can be.
    pub fn to_device(&self, first: usize, len: usize, device: u8) -> Migrated {
        let mut migration = self.begin(first, len, SYSTEM | PRIVATE | COHERENT);
        let _ = migration.allocate(device);
        migration.copy().pages().finalize()
    }

    /// Migrates `len` pages from `first` on to RAM.
    pub fn to_system(&self, first: usize, len: usize) -> Migrated {
        let mut migration = self.begin(first, len, PRIVATE | COHERENT);
        migration.to_system();
        migration.copy().pages().finalize()
    }

    /// Begins to migrate pages of any owner.
    pub fn begin(
        &self,
        first: usize,
        len: usize,
        select: Select,
    ) -> Migration<'_, HookedMmu, Unmapped> {
        self.space.migrate_vma(&args(first, len, select)).unwrap()
    }

    /// Where on a device page `page` is.
    pub fn on(&self, page: usize) -> DeviceAddr {
        match self.state(page) {
            State::Private(at) | State::Coherent(at) => at,
            state => panic!("page {page} is {state:?}"),
        }
    }

    /// Where all of `pages` are.
    pub fn is_on(&self, page: usize, device: u8) -> bool {
        match self.state(page) {
            State::Private(at) => at.device == device && device != DEVICE_COHERENT,
            State::Coherent(at) => at.device == device && device == DEVICE_COHERENT,
            _ => false,
        }
    }

    /// Makes the program's mapping of pages writable or not.
    pub fn protect(&self, first: usize, len: usize, writable: bool) {
        let pages = PageRange::new(BASE.plus(first), len);
        self.space
            .change_protection(pages, || self.mmu().protect(pages, writable));
    }
}

/// What to give to `migrate_vma`.
pub fn args(first: usize, len: usize, select: Select) -> MigrateVma {
    MigrateVma {
        pages: PageRange::new(BASE.plus(first), len),
        select,
        owner: None,
        except: None,
        fault_page: None,
    }
}

pub fn migrated(migrated: usize, left: usize) -> Migrated {
    Migrated { migrated, left }
}

/// What a page was before a migration: the origins of the core's own table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Was {
    Hole,
    System,
    Limbo,
    ReadOnly,
    Private,
    Coherent,
    ReadOnlyCoherent,
}

impl Was {
    pub const ALL: [Self; 7] = [
        Self::Hole,
        Self::System,
        Self::Limbo,
        Self::ReadOnly,
        Self::Private,
        Self::Coherent,
        Self::ReadOnlyCoherent,
    ];

    pub fn is_writable(self) -> bool {
        !matches!(self, Self::ReadOnly | Self::ReadOnlyCoherent)
    }

    /// Makes `len` pages from `first` on so.
    pub fn make(self, three: &Three, first: usize, len: usize) {
        if self == Self::Hole {
            return;
        }
        three.write_all(first..first + len);
        match self {
            Self::Hole | Self::System => {}
            Self::Limbo => {
                three.device.fail_copy_in_after(0, CopyInError::Full);
                three.private.set_full(true);
                three.push_out();
                three.device.heal();
                three.private.set_full(false);
            }
            Self::Private => {
                let done = three.to_device(first, len, DEVICE_PRIVATE);
                assert_eq!(done, migrated(len, 0));
            }
            Self::Coherent | Self::ReadOnlyCoherent => {
                let done = three.to_device(first, len, DEVICE_COHERENT);
                assert_eq!(done, migrated(len, 0));
            }
            Self::ReadOnly => {}
        }
        if !self.is_writable() {
            three.protect(first, len, false);
        }
        (first..first + len).for_each(|page| assert!(self.is(three, page), "page {page}"));
    }

    /// Whether a page is so.
    pub fn is(self, three: &Three, page: usize) -> bool {
        let state = three.state(page);
        let is_so = match self {
            Self::Hole => state == State::None,
            Self::System | Self::ReadOnly => matches!(state, State::System { .. }),
            Self::Limbo => matches!(state, State::Limbo(_)),
            Self::Private => matches!(state, State::Private(_)),
            Self::Coherent | Self::ReadOnlyCoherent => matches!(state, State::Coherent(_)),
        };
        is_so && three.mmu().is_present(BASE.plus(page)) == state.is_mapped()
    }

    /// Whether a page is what it should be after it was put back.
    pub fn is_again(self, three: &Three, page: usize) -> bool {
        match self {
            // The core's table: put back as System.
            Self::Limbo | Self::ReadOnlyCoherent => Self::System.is(three, page),
            _ => self.is(three, page),
        }
    }
}

/// The page as the core numbers it.
pub fn number(page: usize) -> PageNo {
    BASE.plus(page)
}
