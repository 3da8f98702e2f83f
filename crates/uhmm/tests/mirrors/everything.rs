//! Everything at once: the program and a device read and write the same pages, word by word, while they
//! migrate, are pushed out for want of RAM, change their protection, and the process forks. Never a
//! stale byte.

use crate::gpu::{Gpu, Memory};
use crate::until_done;
use crate::world::child::{End, child, wait};
use crate::world::device::TestDevice;
use crate::world::{ALL, FIRST, SECOND, World, alone, space};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::{DeviceInfo, PAGE_SIZE};
use uhmm::memory::Protection;
use uhmm::mirror::MirrorError;
use uhmm::{DeviceId, Place};
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_core::mirror;
use uhmm_testkit::Rng;

const PAGES: usize = 1200;
/// Words of a page that are used.
const WORDS: usize = 8;
/// Two threads of the program, then two of the device.
const WRITERS: usize = 4;

/// Pages whose words each have one writer, who counts up.
struct Counters {
    world: World,
    /// What was written to each word: it is there from then on.
    written: Vec<AtomicU64>,
    /// Held while the program writes to pages; and by who makes them read-only.
    writable: RwLock<()>,
}

impl Counters {
    fn new(world: World) -> Self {
        Self {
            written: (0..PAGES * WORDS).map(|_| AtomicU64::new(0)).collect(),
            writable: RwLock::new(()),
            world,
        }
    }

    fn address(&self, word: usize) -> usize {
        self.world.at(word / WORDS) + word % WORDS * (PAGE_SIZE / WORDS) + 8
    }

    /// A word of the program's own memory.
    fn word(&self, word: usize) -> &AtomicU64 {
        // SAFETY: within the mapping, aligned, and used by atomic accesses and by the device.
        unsafe { AtomicU64::from_ptr(self.address(word) as *mut u64) }
    }

    /// What is read is what was written last, or what is just being written.
    fn check(&self, word: usize, read: impl FnOnce() -> Option<u64>) {
        let before = self.written[word].load(SeqCst);
        let Some(found) = read() else { return };
        let after = self.written[word].load(SeqCst);
        let is_right = (before..=after + 1).contains(&found);
        assert!(is_right, "word {word} is {found}, not {before} to {after}");
    }
}

/// One step of a thread of the program.
fn program(counters: &Counters, word: usize, is_own: bool) {
    if !is_own {
        return counters.check(word, || Some(counters.word(word).load(SeqCst)));
    }
    let _writable = counters.writable.read().unwrap();
    let next = counters.written[word].load(SeqCst) + 1;
    counters.word(word).store(next, SeqCst);
    counters.written[word].store(next, SeqCst);
}

/// One step of a thread of the device; whether it was let.
fn device(counters: &Counters, gpu: &Gpu<'_>, word: usize, is_own: bool) -> bool {
    let address = counters.address(word);
    if !is_own {
        counters.check(word, || {
            let mut found = [0; 8];
            until_done(|| gpu.0.read(address, &mut found)).unwrap();
            Some(u64::from_ne_bytes(found))
        });
        return true;
    }
    let next = counters.written[word].load(SeqCst) + 1;
    match until_done(|| gpu.0.write(address, &next.to_ne_bytes())) {
        Ok(_) => counters.written[word].store(next, SeqCst),
        Err(MirrorError::Mirror(mirror::MirrorError::NotWritable(_))) => return false,
        Err(other) => panic!("{other}"),
    }
    true
}

/// What else happens to the pages.
fn trouble(counters: &Counters, rng: &mut Rng) {
    let world = &counters.world;
    let first = rng.below(PAGES as u64 - 300) as usize;
    let pages = first..first + 1 + rng.below(300) as usize;
    let (address, len) = (world.at(pages.start), pages.len() * PAGE_SIZE);
    let places = [
        Place::Ram,
        Place::Device(FIRST),
        Place::Device(SECOND),
        Place::Device(DeviceId(2)),
    ];
    match rng.below(8) {
        0..4 => _ = world.space.migrate(address, len, rng.pick(&places)),
        4 => world.push_out(),
        5 => {
            let _nobody_writes = counters.writable.write().unwrap();
            world.protect(pages.clone(), Protection::READ).unwrap();
            let _ = world.space.migrate(address, len, rng.pick(&places));
            thread::sleep(Duration::from_micros(rng.below(500)));
            world.protect(pages, ALL).unwrap();
        }
        6 => world.read_mostly(rng.one_in(2)),
        _ => {
            let _ = world.space.evict_device(FIRST, Duration::from_millis(5));
        }
    }
}

fn counters() -> (Counters, Memory) {
    let own = Memory::new(2048);
    let info = |memory| DeviceInfo::new("test", 16384).memory(memory);
    let mut devices = vec![own.device()];
    devices.extend([Coherent, Private].map(|memory| TestDevice::boxed(info(memory)).0));
    (
        Counters::new(World::within(space(600, devices), PAGES)),
        own,
    )
}

/// Runs all of it, and `meanwhile` again and again.
fn run(counters: &Counters, gpu: &Gpu<'_>, mut meanwhile: impl FnMut(&mut Rng)) {
    let done = AtomicBool::new(false);
    let begin = Instant::now();
    thread::scope(|scope| {
        let threads = (0..WRITERS).map(|me| {
            let done = &done;
            scope.spawn(move || {
                let mut rng = Rng::new(me as u64 + 1);
                let mut refused = 0;
                while !done.load(SeqCst) {
                    let word = rng.below((PAGES * WORDS) as u64) as usize;
                    let is_own = word % WRITERS == me;
                    if me < WRITERS / 2 {
                        program(counters, word, is_own);
                    } else {
                        refused += usize::from(!device(counters, gpu, word, is_own));
                    }
                }
                refused
            })
        });
        let threads: Vec<_> = threads.collect();
        let mut rng = Rng::new(99);
        while begin.elapsed() < Duration::from_secs(3)
            && !threads.iter().any(|thread| thread.is_finished())
        {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| meanwhile(&mut rng))) {
                done.store(true, SeqCst);
                resume_unwind(panic);
            }
        }
        done.store(true, SeqCst);
        threads
            .into_iter()
            .for_each(|thread| _ = thread.join().unwrap());
    });
    for word in 0..PAGES * WORDS {
        let wanted = counters.written[word].load(SeqCst);
        assert_eq!(counters.word(word).load(SeqCst), wanted, "word {word}");
    }
    let stats = counters.world.stats();
    assert!(stats.invalidations.get() > 0 && stats.device_faults.get() > 0);
}

#[test]
fn no_byte_is_stale_whatever_happens_to_the_pages() {
    let _alone = alone();
    let (counters, own) = counters();
    let gpu = Gpu::new(&counters.world, FIRST, &own);
    run(&counters, &gpu, |rng| trouble(&counters, rng));
}

/// R16, R17: children see that moment, whatever the device is about, and have no mirrors.
#[test]
fn no_byte_is_stale_in_the_children_of_forks() {
    let _alone = alone();
    let (counters, own) = counters();
    let gpu = Gpu::new(&counters.world, FIRST, &own);
    run(&counters, &gpu, |rng| {
        trouble(&counters, rng);
        let pid = child(|| {
            for word in 0..PAGES * WORDS {
                counters.check(word, || Some(counters.word(word).load(SeqCst)));
            }
            let removed = gpu.0.read(counters.address(0), &mut [0]).unwrap_err();
            let wanted = mirror::MirrorError::Notifier(mirror::NotifierError::Removed);
            assert_eq!(removed, MirrorError::Mirror(wanted));
            0
        });
        assert_eq!(wait(pid), End::Exit(0));
    });
}
