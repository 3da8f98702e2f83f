//! One thread that does to ranges all that a program can: it maps, unmaps, drops, moves, resizes
//! and protects them, and knows every byte.

use std::time::{Duration, Instant};
use uhmm::Space;
use uhmm::device::PageData;
use uhmm::memory::Protection;
use uhmm_core::addr::PAGE_SIZE;
use uhmm_testkit::{Rng, content};

/// Ranges at once, and the most pages of one.
const RANGES: usize = 12;
const PAGES: u64 = 150;

/// A mapped range: where it is, and which version of which content each page has.
struct Mapped {
    address: usize,
    /// Tells the contents of this range from those of all others.
    id: u64,
    versions: Vec<u32>,
}

pub struct Ranges<'a> {
    space: &'a Space,
    seed: u64,
    rng: Rng,
    ids: u64,
    mapped: Vec<Mapped>,
}

impl<'a> Ranges<'a> {
    pub fn new(space: &'a Space, seed: u64) -> Self {
        Self {
            space,
            seed,
            rng: Rng::new(seed ^ 0x7a9e5),
            ids: 0,
            mapped: Vec::new(),
        }
    }

    pub fn run(mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if self.mapped.len() < RANGES && (self.mapped.is_empty() || self.rng.one_in(6)) {
                self.map();
                continue;
            }
            let index = self.rng.below(self.mapped.len() as u64) as usize;
            match self.rng.below(10) {
                0..4 => self.write(index),
                4 => self.check(index),
                5 => self.discard(index),
                6 => self.resize(index),
                7 => self.move_away(index),
                8 => self.protect(index),
                _ => {
                    self.check(index);
                    let gone = self.mapped.swap_remove(index);
                    let len = gone.versions.len() * PAGE_SIZE;
                    // SAFETY: nothing borrows the range.
                    unsafe { self.space.memory().unmap(gone.address, len) }.unwrap();
                }
            }
        }
        (0..self.mapped.len()).for_each(|index| self.check(index));
        for range in &self.mapped {
            let len = range.versions.len() * PAGE_SIZE;
            // SAFETY: nothing borrows the range.
            unsafe { self.space.memory().unmap(range.address, len) }.unwrap();
        }
    }

    fn map(&mut self) {
        let pages = 1 + self.rng.below(PAGES) as usize;
        let all = Protection::READ | Protection::WRITE;
        let address = self.space.memory().map(pages * PAGE_SIZE, all).unwrap();
        self.ids += 1;
        self.mapped.push(Mapped {
            address,
            id: self.ids,
            versions: vec![0; pages],
        });
        self.check(self.mapped.len() - 1);
    }

    /// Some pages of a range: the first, and how many.
    fn part(&mut self, index: usize) -> (usize, usize) {
        let pages = self.mapped[index].versions.len();
        let first = self.rng.below(pages as u64) as usize;
        (first, 1 + self.rng.below((pages - first) as u64) as usize)
    }

    fn expected(&self, range: &Mapped, page: usize) -> PageData {
        let mut data = PageData::ZERO;
        let number = range.id << 16 | page as u64;
        content(self.seed, number, range.versions[page], &mut data);
        data
    }

    fn write(&mut self, index: usize) {
        let (first, len) = self.part(index);
        for page in (first..first + len).take(20) {
            self.mapped[index].versions[page] += 1;
            let range = &self.mapped[index];
            let data = self.expected(range, page);
            let at = (range.address + page * PAGE_SIZE) as *mut PageData;
            // SAFETY: mapped, writable, and used by this thread only.
            unsafe { (*at).0.copy_from_slice(&data.0) };
        }
    }

    fn check(&self, index: usize) {
        let range = &self.mapped[index];
        for page in 0..range.versions.len() {
            let at = (range.address + page * PAGE_SIZE) as *const PageData;
            // SAFETY: mapped, readable, and used by this thread only.
            let same = unsafe { (*at).0 == self.expected(range, page).0 };
            let version = range.versions[page];
            assert!(same, "range {}, page {page}, version {version}", range.id);
        }
    }

    fn discard(&mut self, index: usize) {
        let (first, len) = self.part(index);
        let address = self.mapped[index].address + first * PAGE_SIZE;
        let memory = self.space.memory();
        // SAFETY: nothing borrows the range.
        unsafe { memory.discard(address, len * PAGE_SIZE) }.unwrap();
        self.mapped[index].versions[first..][..len].fill(0);
        self.check(index);
    }

    fn resize(&mut self, index: usize) {
        let new = 1 + self.rng.below(PAGES) as usize;
        self.remap(index, new, None);
    }

    /// To a range that was mapped for it just now.
    fn move_away(&mut self, index: usize) {
        let pages = self.mapped[index].versions.len();
        let memory = self.space.memory();
        let to = memory.map(pages * PAGE_SIZE, Protection::empty()).unwrap();
        self.remap(index, pages, Some(to));
        assert_eq!(self.mapped[index].address, to);
    }

    fn remap(&mut self, index: usize, new: usize, to: Option<usize>) {
        let range = &mut self.mapped[index];
        let (old, bytes) = (range.versions.len() * PAGE_SIZE, new * PAGE_SIZE);
        let memory = self.space.memory();
        // SAFETY: nothing borrows the range.
        range.address =
            unsafe { memory.remap(range.address, old, bytes, true, to, false) }.unwrap();
        range.versions.resize(new, 0);
        self.check(index);
    }

    fn protect(&mut self, index: usize) {
        let (first, len) = self.part(index);
        let address = self.mapped[index].address + first * PAGE_SIZE;
        let memory = self.space.memory();
        // SAFETY: nothing borrows the range.
        let protect = |flags| unsafe { memory.protect(address, len * PAGE_SIZE, flags) }.unwrap();
        protect(Protection::READ);
        self.check(index);
        // Pages leave and come back meanwhile.
        if self.rng.one_in(4) {
            std::thread::sleep(Duration::from_millis(20));
            self.check(index);
        }
        protect(Protection::READ | Protection::WRITE);
        self.write(index);
    }
}
