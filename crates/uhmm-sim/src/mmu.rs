//! The simulated MMU.

use crate::arenas::Arenas;
use crate::failure::{Call, Failure, Failures};
use crate::foreign::Places;
use crate::memory::Memory;
use crate::pages::{Fault, Pages, Physical};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use uhmm_core::addr::{DeviceAddr, FrameNo, Home, PageData, PageNo, PageRange};
use uhmm_core::frames::{BLOCK, Frame, slots_for};
use uhmm_core::mmu::{Mmu, Progress, Stop, Tracking};
use uhmm_core::stats::Stats;

/// Wakes that are remembered.
const WAKES: usize = 4096;

/// See the crate's head. All methods may be called by any thread at any time.
pub struct SimMmu {
    pub(crate) pages: Mutex<Pages>,
    pub(crate) foreign: Mutex<Places>,
    /// Pages that are mapped as huge ones.
    pub(crate) huge: Mutex<Vec<PageRange>>,
    frames: Box<[Mutex<Option<Physical>>]>,
    arenas: Mutex<Arenas>,
    pub(crate) failures: Mutex<Failures>,
    wakes: Mutex<VecDeque<PageRange>>,
    memory: Mutex<Memory>,
    out_of_memory: AtomicUsize,
    /// Nanoseconds.
    clock: AtomicU64,
    waiters: (Mutex<()>, Condvar),
    stats: Stats,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Making it, and making it fail.
impl SimMmu {
    /// An MMU over the pages of `range`, all of them missing, with frame slots for a space of
    /// `budget_pages`, and any amount of memory.
    pub fn new(range: PageRange, budget_pages: usize) -> Self {
        Self {
            pages: Mutex::new(Pages::new(range)),
            foreign: Mutex::default(),
            huge: Mutex::default(),
            frames: (0..slots_for(budget_pages))
                .map(|_| Mutex::default())
                .collect(),
            arenas: Mutex::default(),
            failures: Mutex::default(),
            wakes: Mutex::default(),
            memory: Mutex::default(),
            out_of_memory: AtomicUsize::new(0),
            clock: AtomicU64::new(0),
            waiters: Default::default(),
            stats: Stats::default(),
        }
    }

    /// The machine has `pages` of memory, that of arenas included: what needs more stops with
    /// [`Stop::NoMemory`].
    pub fn limit_memory(&self, pages: usize) {
        lock(&self.memory).limit = pages;
    }

    /// Makes one `call` fail. Several failures of one call may be planned.
    pub fn fail(&self, call: Call, failure: Failure) {
        lock(&self.failures).plan(call, failure);
    }

    /// Makes calls fail once in `one_in` times, at a random page, for reasons that the kernel may
    /// have at any time. The same seed and the same calls give the same failures.
    pub fn fail_at_random(&self, seed: u64, one_in: u64) {
        lock(&self.failures).at_random(seed, one_in);
    }

    /// Lets time pass: it stands still by itself.
    pub fn advance(&self, time: Duration) {
        self.clock.fetch_add(time.as_nanos() as u64, SeqCst);
    }

    /// Ends all failures, planned and random.
    pub fn heal(&self) {
        lock(&self.failures).clear();
    }
}

/// What the program does.
impl SimMmu {
    /// Reads a page.
    ///
    /// # Errors
    /// What the CPU meets instead.
    pub fn touch_read(&self, page: PageNo) -> Result<PageData, Fault> {
        lock(&self.pages).at(page).touch(false).cloned()
    }

    /// Gives the bytes of a page to `write`, at once: no page moves meanwhile.
    ///
    /// # Errors
    /// What the CPU meets instead; `write` is not called.
    pub fn touch_write(
        &self,
        page: PageNo,
        write: impl FnOnce(&mut PageData),
    ) -> Result<(), Fault> {
        let mut pages = lock(&self.pages);
        let page = pages.at(page);
        page.touch(true)?;
        page.own(&mut lock(&self.memory));
        page.touch(true).map(write)
    }

    /// Pins a page for I/O, as the kernel does: `false` if it is not present.
    pub fn pin(&self, page: PageNo) -> bool {
        let mut pages = lock(&self.pages);
        let page = pages.at(page);
        page.shared = false;
        page.pins += u32::from(page.data.is_some());
        page.data.is_some()
    }

    /// Ends one pin. Of a page that was discarded since, none is left.
    pub fn unpin(&self, page: PageNo) {
        let mut pages = lock(&self.pages);
        let page = pages.at(page);
        page.pins = page.pins.saturating_sub(1);
    }

    /// What is present in `pages` is shared with another process, as after a fork.
    pub fn share(&self, pages: PageRange) {
        lock(&self.pages)
            .present(pages)
            .for_each(|(_, page)| page.shared = true);
    }

    /// The other process has ended, or runs another program: no page is shared.
    pub fn share_no_more(&self) {
        let mut pages = lock(&self.pages);
        let all = pages.range;
        pages.present(all).for_each(|(_, page)| page.shared = false);
    }

    /// From now on this is the child of a fork: the kernel tracks nothing here, and what is present is
    /// shared with the parent.
    pub fn become_child(&self) {
        let mut pages = lock(&self.pages);
        let all = pages.range;
        for (_, page) in pages.present(all) {
            (page.tracked, page.shared) = (false, true);
        }
    }

    /// Says whether the program may write to `pages`.
    pub fn protect(&self, pages: PageRange, writable: bool) {
        let mut space = lock(&self.pages);
        pages
            .iter()
            .for_each(|page| space.at(page).protected = !writable);
    }

    /// The kernel maps pages that are there as a huge one.
    pub fn make_huge(&self, pages: PageRange) {
        lock(&self.huge).push(pages);
    }

    /// Ends the mapping of `pages`, with what is in them, or makes it anew.
    pub fn map(&self, pages: PageRange, mapped: bool) {
        self.discard(pages);
        let mut space = lock(&self.pages);
        pages
            .iter()
            .for_each(|page| space.at(page).unmapped = !mapped);
    }
}

/// What is so now.
impl SimMmu {
    /// Physical pages of RAM in use: pages present in the space, and frames, without those of
    /// arenas.
    pub fn resident(&self) -> usize {
        lock(&self.memory).ram
    }

    /// The most physical pages of RAM in use at any time.
    pub fn resident_peak(&self) -> usize {
        lock(&self.memory).ram_peak
    }

    /// Physical pages of arenas in use, in their slots and in the space.
    pub fn arena_resident(&self) -> usize {
        lock(&self.memory).arena
    }

    /// Whether a page is present.
    pub fn is_present(&self, page: PageNo) -> bool {
        lock(&self.pages).at(page).data.is_some()
    }

    /// Whether writes to a page are tracked.
    pub fn is_tracked(&self, page: PageNo) -> bool {
        lock(&self.pages).at(page).tracked
    }

    /// Whether another process maps the page too, since a fork.
    pub fn is_shared(&self, page: PageNo) -> bool {
        lock(&self.pages).at(page).shared
    }

    /// Whether a slot of the pool holds a frame.
    pub fn holds_frame(&self, slot: FrameNo) -> bool {
        lock(self.slot(slot)).is_some()
    }

    /// Whether a slot of an arena holds a frame.
    pub fn arena_holds_frame(&self, at: DeviceAddr) -> bool {
        lock(&self.arenas).is_filled(at)
    }

    /// The wakes since this was asked last, oldest first: of [`Mmu::wake`] and [`Mmu::untrack`], and
    /// of the pages that [`Mmu::put`] and [`Mmu::copy`] filled. Only the last few thousand are remembered.
    pub fn take_wakes(&self) -> Vec<PageRange> {
        lock(&self.wakes).drain(..).collect()
    }

    /// How often the core has reported that it is out of memory.
    pub fn out_of_memory_count(&self) -> usize {
        self.out_of_memory.load(SeqCst)
    }

    fn slot(&self, slot: FrameNo) -> &Mutex<Option<Physical>> {
        self.frames
            .get(slot.0 as usize)
            .unwrap_or_else(|| panic!("{slot:?} is outside of the pool of {}", self.frames.len()))
    }

    /// A new physical page, if there is memory for it.
    pub(crate) fn new_page(&self, bytes: PageData, arena: bool) -> Result<Physical, Stop> {
        lock(&self.memory).charge(arena)?;
        let bytes = Box::new(bytes);
        Ok(Physical { bytes, arena })
    }

    /// The end of a physical page.
    fn give_back(&self, page: &Physical) {
        lock(&self.memory).uncharge(page.arena);
    }

    /// Puts a page that was taken out of the space where it belongs.
    fn put_home(&self, home: Home, page: Physical) {
        match home {
            Home::Pool(slot) => {
                assert!(!page.arena, "a frame of an arena is taken into {slot:?}");
                *lock(self.slot(slot)) = Some(page);
            }
            Home::Arena(at) => {
                assert!(page.arena, "a page of RAM is taken into the arena, {at:?}");
                lock(&self.arenas).fill(at, page);
            }
        }
    }

    fn home_is_filled(&self, home: Home) -> bool {
        match home {
            Home::Pool(slot) => lock(self.slot(slot)).is_some(),
            Home::Arena(at) => lock(&self.arenas).is_filled(at),
        }
    }

    fn take_from_home(&self, home: Home) -> Option<Physical> {
        match home {
            Home::Pool(slot) => lock(self.slot(slot)).take(),
            Home::Arena(at) => lock(&self.arenas).empty(at),
        }
    }

    fn log_wake(&self, pages: PageRange) {
        let mut wakes = lock(&self.wakes);
        if wakes.len() == WAKES {
            wakes.pop_front();
        }
        wakes.push_back(pages);
    }

    /// Does `step` for each of `pages` in order, until one fails, or the call does on command.
    fn each(
        &self,
        call: Call,
        pages: Range<usize>,
        mut step: impl FnMut(&mut Pages, usize) -> Result<(), Stop>,
    ) -> Progress {
        let failure = lock(&self.failures).next(call, pages.len());
        for index in pages.clone() {
            let ordered = match failure {
                Some((at, stop)) if at == index => Err(stop),
                _ => Ok(()),
            };
            // The lock is let go between pages, as the kernel's are.
            if let Err(stop) = ordered.and_then(|()| step(&mut lock(&self.pages), index)) {
                return Progress::stopped(index, stop);
            }
        }
        Progress::all(pages.len())
    }
}

impl Mmu for SimMmu {
    type Table = Box<[AtomicU64]>;

    fn table(&self, len: usize) -> Option<Self::Table> {
        if lock(&self.failures).next(Call::Table, 1).is_some() {
            return None;
        }
        Some((0..len).map(|_| AtomicU64::new(0)).collect())
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }

    fn add_arena(&self, device: u8, pages: u32, node: Option<u32>) -> bool {
        let fails = lock(&self.failures).next(Call::AddArena, 1).is_some();
        !fails && lock(&self.arenas).add(device, pages, node)
    }

    fn take(&self, pages: PageRange, into: Home) -> Progress {
        self.each(Call::Take, 0..pages.len, |space, i| {
            let (page, home) = (pages.start.plus(i), into.plus(i));
            self.check_managed(page)?;
            assert!(
                !self.home_is_filled(home),
                "take of {page:?} into {home:?}, which holds a frame"
            );
            self.put_home(home, space.at(page).take()?);
            Ok(())
        })
    }

    fn put(&self, from: Home, pages: PageRange) -> Progress {
        let progress = self.each(Call::Put, 0..pages.len, |space, i| {
            let (home, page) = (from.plus(i), pages.start.plus(i));
            self.check_managed(page)?;
            assert!(
                self.home_is_filled(home),
                "put of {home:?} as {page:?}, which holds no frame"
            );
            let page = space.at(page);
            page.can_be_filled(true)?;
            page.data = self.take_from_home(home);
            Ok(())
        });
        self.log_wake(PageRange::new(pages.start, progress.pages));
        progress
    }

    fn relocate(&self, from: PageRange, to: PageNo) -> Progress {
        self.each(Call::Relocate, 0..from.len, |space, i| {
            self.check_managed(from.start.plus(i))?;
            self.check_managed(to.plus(i))?;
            space.at(to.plus(i)).can_be_filled(true)?;
            space.at(to.plus(i)).data = Some(space.at(from.start.plus(i)).take()?);
            Ok(())
        })
    }

    fn copy(&self, from: &[PageData], at: PageNo, tracking: Tracking) -> Progress {
        let progress = self.each(Call::Copy, 0..from.len(), |space, i| {
            self.check_managed(at.plus(i))?;
            let page = space.at(at.plus(i));
            page.can_be_filled(false)?;
            page.data = Some(self.new_page(from[i].clone(), false)?);
            page.tracked = tracking == Tracking::Writes;
            Ok(())
        });
        self.log_wake(PageRange::new(at, progress.pages));
        progress
    }

    fn track(&self, pages: PageRange) -> bool {
        if lock(&self.failures).next(Call::Track, 1).is_some() {
            return false;
        }
        lock(&self.pages)
            .present(pages)
            .for_each(|(_, page)| page.tracked = true);
        true
    }

    fn mapped_here_alone(&self, pages: PageRange) -> usize {
        let mut space = lock(&self.pages);
        let alone = |page: &PageNo| {
            let page = space.at(*page);
            page.data.is_some() && !page.shared
        };
        pages.iter().take_while(alone).count()
    }

    fn untrack(&self, page: PageNo) {
        lock(&self.pages).at(page).tracked = false;
        self.log_wake(PageRange::new(page, 1));
    }

    fn peek(&self, page: PageNo, to: &mut PageData) -> bool {
        let fails = lock(&self.failures).next(Call::Peek, 1).is_some();
        match &lock(&self.pages).at(page).data {
            Some(found) if !fails => {
                to.0 = found.bytes.0;
                true
            }
            _ => false,
        }
    }

    fn read_mapped(&self, page: PageNo, offset: usize, to: &mut [u8]) {
        let mut pages = lock(&self.pages);
        let data = pages.at(page).data.as_ref();
        let data = data.unwrap_or_else(|| panic!("a device reads {page:?}, which is not there"));
        to.copy_from_slice(&data.bytes.0[offset..offset + to.len()]);
    }

    fn write_mapped(&self, page: PageNo, offset: usize, from: &[u8]) {
        let mut pages = lock(&self.pages);
        let place = pages.at(page);
        assert!(!place.tracked, "a device writes to {page:?} unseen");
        assert!(
            !place.protected,
            "a device writes to {page:?}, which may not be"
        );
        place.own(&mut lock(&self.memory));
        let data = place.data.as_mut();
        let data = data.unwrap_or_else(|| panic!("a device writes {page:?}, which is not there"));
        data.bytes.0[offset..offset + from.len()].copy_from_slice(from);
    }

    fn manages(&self, page: PageNo) -> bool {
        !self.is_foreign(page) && !lock(&self.pages).at(page).unmapped
    }

    fn is_writable(&self, page: PageNo) -> bool {
        let mut pages = lock(&self.pages);
        let found = pages.at(page);
        found.assert_not_tracked(page);
        found.touch(true).is_ok()
    }

    fn wake(&self, pages: PageRange) {
        self.log_wake(pages);
    }

    fn discard(&self, pages: PageRange) {
        let mut space = lock(&self.pages);
        pages
            .iter()
            .filter_map(|page| space.at(page).discard())
            .for_each(|dropped| self.give_back(&dropped));
    }

    fn poison(&self, page: PageNo) {
        let mut pages = lock(&self.pages);
        let found = pages.at(page);
        assert!(found.data.is_none(), "poison of {page:?}, which is present");
        found.poisoned = true;
    }

    fn unshare(&self, pages: PageRange) {
        let mut space = lock(&self.pages);
        for (number, page) in space.present(pages) {
            page.assert_not_tracked(number);
            // No private copy is made for who may not write.
            page.shared &= page.protected;
        }
    }

    fn present(&self, pages: PageRange, each: &mut dyn FnMut(PageRange)) {
        let mut runs: Vec<PageRange> = Vec::new();
        for (page, _) in lock(&self.pages).present(pages) {
            match runs.last_mut() {
                Some(run) if run.end() == page => run.len += 1,
                _ => runs.push(PageRange::new(page, 1)),
            }
        }
        // The lock is let go: `each` may call the MMU.
        runs.into_iter().for_each(each);
    }

    fn with_frame(&self, frame: &Frame, with: &mut dyn FnMut(&mut PageData)) {
        match lock(self.slot(frame.slot())).as_mut() {
            Some(found) => with(&mut found.bytes),
            None => panic!("the bytes of {frame:?} are asked for, which holds no frame"),
        }
    }

    fn with_frames(&self, frames: &[&Frame], with: &mut dyn FnMut(&[&PageData])) {
        let mut slots = [const { None }; BLOCK];
        for (slot, frame) in slots[..frames.len()].iter_mut().zip(frames) {
            *slot = Some(lock(self.slot(frame.slot())));
        }
        let mut pages = [&PageData::ZERO; BLOCK];
        for ((page, slot), frame) in pages.iter_mut().zip(&slots).zip(frames) {
            match slot.as_deref() {
                Some(Some(found)) => *page = &found.bytes,
                _ => panic!("the bytes of {frame:?} are asked for, which holds no frame"),
            }
        }
        with(&pages[..frames.len()]);
    }

    fn with_arena(&self, at: DeviceAddr, with: &mut dyn FnMut(&mut PageData)) -> bool {
        if !self.arena_holds_frame(at) {
            if lock(&self.failures).next(Call::FillArena, 1).is_some() {
                return false;
            }
            match self.new_page(PageData::ZERO, true) {
                Ok(page) => lock(&self.arenas).fill(at, page),
                Err(_) => return false,
            }
        }
        // No lock is held meanwhile: `with` may be a device's, and may take its time.
        let mut page = lock(&self.arenas).borrow(at);
        with(&mut page.bytes);
        lock(&self.arenas).give_back(at, page);
        true
    }

    fn read_arena(&self, at: DeviceAddr, offset: usize, to: &mut [u8]) {
        to.copy_from_slice(&lock(&self.arenas).peek(at).0[offset..offset + to.len()]);
    }

    fn drop_arena(&self, first: DeviceAddr, len: usize) {
        for at in (0..len).map(|i| first.plus(i)) {
            if let Some(dropped) = lock(&self.arenas).empty(at) {
                self.give_back(&dropped);
            }
        }
    }

    fn drop_frames(&self, first: FrameNo, len: usize) {
        for i in 0..len {
            let slot = first.plus(i);
            match lock(self.slot(slot)).take() {
                Some(dropped) => self.give_back(&dropped),
                None => panic!("drop of {slot:?}, which holds no frame"),
            }
        }
    }

    fn wait(&self, word: &AtomicU64, seen: u64, at_most: Duration) {
        let guard = lock(&self.waiters.0);
        if word.load(SeqCst) as u32 == seen as u32 {
            drop(self.waiters.1.wait_timeout(guard, at_most));
        }
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.clock.load(SeqCst))
    }

    fn wake_waiters(&self, _word: &AtomicU64) {
        // Waiters on other words wake without reason, which they may.
        drop(lock(&self.waiters.0));
        self.waiters.1.notify_all();
    }

    fn out_of_memory(&self) {
        self.out_of_memory.fetch_add(1, SeqCst);
    }
}
