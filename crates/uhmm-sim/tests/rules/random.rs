//! Everything at once, at random, against the oracle: threads that touch, discard, move, protect and
//! pin pages, migrations by request between all kinds of devices, whose chunks come and go, devices with
//! page tables of their own that want pages alone, a fork now and then, failures at any call, and a
//! device that goes away.
//!
//! `UHMM_SIM_SEEDS` is how many seeds are run. A failing one is named, and brings the same touches
//! and failures back; the schedule of the threads is the machine's.

use crate::hook::HookedMmu;
use crate::rig::{Recorder, small};
use crate::watcher::{FAST, LONG, READ, WRITE, alone, device, pin, populate};
use crate::world::{BASE, BUDGET, Shared, SimSpace, or_abort, share, space, touch, with_reclaimer};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm_core::addr::{DevicePage, PageData, PageNo, PageRange};
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::{MigrateVma, Select};
use uhmm_core::mirror::Need;
use uhmm_lz4::Lz4Device;
use uhmm_mirror::MirrorDevice;
use uhmm_sim::Fault;
use uhmm_testkit::{FlakyDevice, Oracle, Rng, content};

const THREADS: usize = 2;
/// Pages that all threads touch, each its own of them: they lie between those of the others.
const MIXED: usize = 1800;
/// Chunks of pages that each thread has for itself, for what is done to ranges; one more is spare.
const CHUNKS: usize = 24;
const CHUNK: usize = 8;
const PAGES: usize = MIXED + THREADS * (CHUNKS + 1) * CHUNK;
const STEPS: usize = 6_000;

/// The devices whose memory comes and goes.
const PRIVATE: u8 = 2;
const COHERENT: u8 = 3;

/// Runs `part` of the run with this seed, which is named if it panics.
fn named(seed: u64, part: impl FnOnce()) {
    struct Seed(u64);
    impl Drop for Seed {
        fn drop(&mut self) {
            if thread::panicking() {
                let _ = writeln!(std::io::stderr(), "failed with seed {}", self.0);
            }
        }
    }
    let _seed = Seed(seed);
    part();
}

/// One thread of the program.
struct Program<'a> {
    space: &'a SimSpace,
    oracle: &'a Oracle,
    seed: u64,
    thread: usize,
    rng: Rng,
    /// Where each chunk is, in chunks from the thread's first; the last is the spare one.
    places: Vec<usize>,
    versions: Vec<u32>,
}

impl Program<'_> {
    fn run(mut self) {
        for _ in 0..STEPS {
            match self.rng.below(100) {
                0..84 => self.touch_mixed(),
                84..94 => self.touch_chunk(),
                94..96 => self.discard(),
                96..98 => self.relocate(),
                98 => self.protect(),
                _ => self.pin(),
            }
        }
        for chunk in 0..CHUNKS {
            (0..CHUNK).for_each(|page| self.check(chunk, page));
        }
    }

    fn touch_mixed(&mut self) {
        let page = self.rng.below((MIXED / THREADS) as u64) as usize * THREADS + self.thread;
        let write = self.rng.one_in(2);
        let access = |mmu: &HookedMmu, at: PageNo| {
            if write {
                mmu.touch_write(at, |data| self.oracle.write(page, data))
            } else {
                self.oracle.check(page, &mmu.touch_read(at)?);
                Ok(())
            }
        };
        let kind = if write { Access::Write } else { Access::Read };
        touch(self.space, page, kind, access).unwrap();
    }

    /// The pages of a chunk, counted from the first of the space.
    fn pages(&self, chunk: usize) -> usize {
        MIXED + (self.thread * (CHUNKS + 1) + self.places[chunk]) * CHUNK
    }

    fn range(&self, chunk: usize) -> PageRange {
        PageRange::new(BASE.plus(self.pages(chunk)), CHUNK)
    }

    fn any_chunk(&mut self) -> usize {
        self.rng.below(CHUNKS as u64) as usize
    }

    fn expected(&self, chunk: usize, page: usize) -> PageData {
        let mut data = PageData::ZERO;
        let number = ((self.thread * CHUNKS + chunk) * CHUNK + page) as u64;
        let version = self.versions[chunk * CHUNK + page];
        content(self.seed, number, version, &mut data);
        data
    }

    fn check(&self, chunk: usize, page: usize) {
        let expected = self.expected(chunk, page);
        touch(
            self.space,
            self.pages(chunk) + page,
            Access::Read,
            |mmu, at| {
                let found = mmu.touch_read(at)?;
                let thread = self.thread;
                assert!(
                    found.0 == expected.0,
                    "thread {thread}, chunk {chunk}, page {page}"
                );
                Ok(())
            },
        )
        .unwrap();
    }

    fn write(&mut self, chunk: usize, page: usize) {
        self.versions[chunk * CHUNK + page] += 1;
        let data = self.expected(chunk, page);
        touch(
            self.space,
            self.pages(chunk) + page,
            Access::Write,
            |mmu, at| mmu.touch_write(at, |to| to.0 = data.0),
        )
        .unwrap();
    }

    fn touch_chunk(&mut self) {
        let chunk = self.any_chunk();
        if self.rng.one_in(2) {
            (0..CHUNK).for_each(|page| self.check(chunk, page));
        } else {
            let page = self.rng.below(CHUNK as u64) as usize;
            self.write(chunk, page);
        }
    }

    fn discard(&mut self) {
        let chunk = self.any_chunk();
        // A fork that takes its time refuses it, and nothing has changed.
        if let Ok(inside) = self.space.inside() {
            inside.discard(self.range(chunk)).unwrap();
            self.versions[chunk * CHUNK..][..CHUNK].fill(0);
        }
    }

    fn relocate(&mut self) {
        let chunk = self.any_chunk();
        if let Ok(inside) = self.space.inside() {
            inside
                .relocate(self.range(chunk), self.range(CHUNKS).start)
                .unwrap();
            // As after an unmapping: where it was, nothing is.
            inside.discard(self.range(chunk)).unwrap();
            self.places.swap(chunk, CHUNKS);
        }
    }

    fn protect(&mut self) {
        let chunk = self.any_chunk();
        let (space, range) = (self.space, self.range(chunk));
        space.change_protection(range, || space.mmu().protect(range, false));
        for page in 0..CHUNK {
            self.check(chunk, page);
            let at = BASE.plus(self.pages(chunk) + page);
            assert_eq!(space.mmu().touch_write(at, |_| ()), Err(Fault::Protected));
        }
        space.change_protection(range, || space.mmu().protect(range, true));
    }

    fn pin(&mut self) {
        let chunk = self.any_chunk();
        let at = self.range(chunk).start;
        self.write(chunk, 0);
        if self.space.mmu().pin(at) {
            thread::yield_now();
            assert!(
                self.space.mmu().is_present(at),
                "a pinned page has gone (R7)"
            );
            self.check(chunk, 0);
            self.space.mmu().unpin(at);
        }
    }
}

fn run(seed: u64, one_in: u64) {
    // The first device is soon full.
    let lz4 = Arc::new(FlakyDevice::new(Lz4Device::new(1 << 20)));
    let mirror = Arc::new(FlakyDevice::new(MirrorDevice::new(PAGES as u64 * 4096)));
    // These come and go. The private one has a copy engine in every other run.
    let private = Recorder::new(small(MemoryType::Private, 3).batch_pages(8));
    private.set_fences(seed % 2 == 1);
    let coherent = Recorder::new(small(MemoryType::Coherent, 3));
    let space = space(
        PAGES,
        vec![
            Box::new(Shared(lz4.clone())),
            Box::new(Shared(mirror.clone())),
            private.boxed(),
            coherent.boxed(),
        ],
    );
    if one_in > 0 {
        space.mmu().fail_at_random(seed, one_in);
    }
    let oracle = Oracle::new(seed, MIXED);
    let done = AtomicBool::new(false);
    with_reclaimer(&space, || {
        thread::scope(|scope| {
            let programs: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let program = Program {
                        space: &space,
                        oracle: &oracle,
                        seed,
                        thread,
                        rng: Rng::new(seed * 100 + thread as u64),
                        places: (0..=CHUNKS).collect(),
                        versions: vec![0; CHUNKS * CHUNK],
                    };
                    scope.spawn(move || or_abort(|| named(seed, || program.run())))
                })
                .collect();
            scope.spawn(|| or_abort(|| disturb(&space, seed, &done)));
            scope.spawn(|| or_abort(|| migrate(&space, seed, &done)));
            scope.spawn(|| or_abort(|| look_and_take(&space, seed, &done)));
            scope.spawn(|| or_abort(|| hold_still(&space, seed, &done)));
            programs
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
            done.store(true, SeqCst);
        });
        space.mmu().heal();
        let mut scratch = Scratch::default();
        for device in [0, PRIVATE, COHERENT] {
            space
                .remove_device(device, Duration::from_secs(60), &mut scratch)
                .expect("the mirror has room");
        }
        assert_eq!(lz4.stored(), []);
        assert_eq!((private.stored(), private.chunks()), (0, vec![]));
        assert_eq!(
            (space.mmu().arena_resident(), coherent.chunks()),
            (0, vec![])
        );
        for page in 0..MIXED {
            touch(&space, page, Access::Read, |mmu, at| {
                oracle.check(page, &mmu.touch_read(at)?);
                Ok(())
            })
            .unwrap();
        }
    });
    space.check_invariants();
    assert_eq!(space.mmu().out_of_memory_count(), 0);
    assert!(
        space.mmu().resident_peak() <= BUDGET + BUDGET / 50 + 1024,
        "{} pages of {BUDGET}",
        space.mmu().resident_peak()
    );
}

/// What happens beside the program: everything pushed out, pages shared as after a fork, a fork.
fn disturb(space: &SimSpace, seed: u64, done: &AtomicBool) {
    let mut rng = Rng::new(seed ^ 0xd157);
    let mut scratch = Scratch::default();
    while !done.load(SeqCst) {
        match rng.below(8) {
            0 => drop(space.push_out(&mut scratch)),
            1 => {
                let forking = space.begin_fork();
                space.close_for_fork();
                thread::sleep(Duration::from_micros(rng.below(300)));
                let first = BASE.plus(rng.below(PAGES as u64 - 64) as usize);
                share(space, PageRange::new(first, 64));
                space.open_in_parent();
                drop(forking);
            }
            2 => space.mmu().share_no_more(),
            _ => thread::sleep(Duration::from_micros(rng.below(2_000))),
        }
    }
}

/// Pages go to devices and come back by request, and the devices' memory comes and goes.
fn migrate(space: &SimSpace, seed: u64, done: &AtomicBool) {
    let mut rng = Rng::new(seed ^ 0x316a);
    let mut scratch = Scratch::default();
    let soon = Duration::from_millis(2);
    while !done.load(SeqCst) {
        let device = rng.pick(&[PRIVATE, COHERENT]);
        let chunk = rng.below(3) as usize;
        match rng.below(40) {
            0 => drop(space.evict_chunk(device, chunk, soon, &mut scratch)),
            1 => drop(space.remove_chunk(device, chunk, soon, &mut scratch)),
            2..4 => drop(space.add_chunk(device, chunk)),
            4 => {
                let _ = space.suspend_device(device, soon, &mut scratch);
                space.resume_device(device);
            }
            5 => {
                let first = DevicePage(rng.below(1000) as u32);
                let migration = space.migrate_device_range(device, first, 64);
                if let Ok(mut migration) = migration {
                    migration.to_system();
                    migration.copy().pages().finalize();
                }
            }
            6..20 => migrate_some(space, &mut rng, device),
            _ => thread::sleep(Duration::from_micros(rng.below(1_000))),
        }
    }
    for device in [PRIVATE, COHERENT] {
        space.resume_device(device);
    }
}

/// A device looks at pages, brings them, reads them, and takes some for itself alone: those it turns over
/// and back again, which nobody may see in between.
fn look_and_take(space: &SimSpace, seed: u64, done: &AtomicBool) {
    let mut rng = Rng::new(seed ^ 0x3177);
    let turn = |data: &mut PageData| data.0.iter_mut().for_each(|byte| *byte = !*byte);
    let (_, mut mirror) = device(space, 0, PAGES);
    while !done.load(SeqCst) {
        let len = 1 + rng.below(16) as usize;
        let first = rng.below((PAGES - len) as u64) as usize;
        match rng.below(8) {
            0 => (_, mirror) = device(space, 0, PAGES),
            1..4 => drop(alone(&mirror, first, len)),
            4 => drop(populate(&mirror, first, len, Need::SNAPSHOT)),
            5 => drop(populate(&mirror, first, len, Need::READ)),
            _ => thread::sleep(Duration::from_micros(rng.below(500))),
        }
        for page in PageRange::new(BASE.plus(first), len).iter() {
            let turned = mirror.with_exclusive(page, |_, data| {
                turn(data);
                thread::yield_now();
                turn(data);
            });
            let table = mirror.lock().unwrap();
            if turned.is_err() && table.entries.contains_key(&page) {
                let _ = table.read(page, 0, &mut [0; 8]);
            }
        }
    }
}

/// Pages are pinned, in ways that the program does not rely on being free of pins.
fn hold_still(space: &SimSpace, seed: u64, done: &AtomicBool) {
    let mut rng = Rng::new(seed ^ 0x9199);
    let mut guards = Vec::new();
    while !done.load(SeqCst) {
        let len = 1 + rng.below(16) as usize;
        let first = rng.below((MIXED - len) as u64) as usize;
        let flags = rng.pick(&[READ, WRITE, LONG, FAST]);
        if let Ok(pinned) = pin(space, first, len, flags) {
            for page in pinned.pages().iter() {
                assert!(space.mmu().is_present(page), "a pinned page has gone (R11)");
            }
            guards.push(pinned);
        }
        if guards.len() > 4 || rng.one_in(8) {
            guards.clear();
        }
        thread::sleep(Duration::from_micros(rng.below(300)));
    }
}

/// Migrates a range to a device or to RAM; now and then the migration is dropped.
fn migrate_some(space: &SimSpace, rng: &mut Rng, device: u8) {
    let len = 1 + rng.below(64) as usize;
    let pages = PageRange::new(BASE.plus(rng.below((PAGES - len) as u64) as usize), len);
    let args = MigrateVma {
        pages,
        select: Select::SYSTEM | Select::DEVICE_PRIVATE | Select::DEVICE_COHERENT,
        owner: None,
        except: None,
        fault_page: None,
    };
    let Ok(mut migration) = space.migrate_vma(&args) else {
        return;
    };
    match rng.below(4) {
        0 => migration.to_system(),
        _ => drop(migration.allocate(device)),
    }
    if rng.one_in(8) {
        return;
    }
    let copied = migration.copy();
    if rng.one_in(8) {
        return;
    }
    let installed = copied.pages();
    if !rng.one_in(8) {
        installed.finalize();
    }
}

#[test]
fn everything_at_once_keeps_every_byte() {
    let seeds = std::env::var("UHMM_SIM_SEEDS").map_or(2, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        for one_in in [0, 50, 8] {
            named(seed, || run(seed, one_in));
        }
    }
}
