//! Atomic operations of a device against those of the CPU, on the same words.

use crate::world::child::{End, child, wait};
use crate::world::device::TestDevice;
use crate::world::{BUDGET, FIRST, SECOND, World, alone, is_for_now, space};
use crate::{Told, add};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::{DeviceInfo, PageData};
use uhmm::memory::Protection;
use uhmm::mirror::{Mirror, MirrorError};
use uhmm::{PinFlags, Place};
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_testkit::Rng;

const PAGES: usize = 6;
const WORDS: usize = 16;

/// A page at random, a word of it, and how much to add.
fn pick(rng: &mut Rng) -> (usize, usize, u64) {
    let page = rng.below(PAGES as u64) as usize;
    (page, rng.below(WORDS as u64) as usize, 1 + rng.below(1000))
}

/// Returns what it has added.
fn by_cpu(world: &World, seed: u64, done: &AtomicBool) -> u64 {
    let (mut rng, mut sum) = (Rng::new(seed), 0);
    while !done.load(Relaxed) {
        let (page, word, more) = pick(&mut rng);
        world.word(page, word).fetch_add(more, SeqCst);
        sum += more;
    }
    sum
}

/// The same by the device; where a page cannot be had alone, it adds nothing.
fn by_device(world: &World, mirror: &Mirror<'_, Told>, seed: u64, done: &AtomicBool) -> u64 {
    let (mut rng, mut sum) = (Rng::new(seed), 0);
    while !done.load(Relaxed) {
        let (page, word, more) = pick(&mut rng);
        let added = mirror.exclusively(world.at(page), |_, data: &mut PageData| {
            add(data, word, more);
        });
        match added {
            Ok(()) => sum += more,
            Err(MirrorError::NotAlone | MirrorError::NotWritable) => {}
            Err(other) => assert!(is_for_now(&other), "{other}"),
        }
    }
    sum
}

fn sum(world: &World) -> u64 {
    let words = (0..PAGES).flat_map(|page| (0..WORDS).map(move |word| (page, word)));
    words
        .map(|(page, word)| world.word(page, word).load(SeqCst))
        .sum()
}

/// Two threads of the program and two of a device count on the same words, while `meanwhile` is done
/// again and again; nothing is counted twice, or lost.
fn count(devices: &[uhmm::device::MemoryType], mut meanwhile: impl FnMut(&World, &mut Rng)) {
    let boxed = devices.iter().map(|&memory| {
        let info = DeviceInfo::new("test", 64).memory(memory);
        TestDevice::boxed(info).0
    });
    let world = World::within(space(BUDGET, boxed.collect()), PAGES);
    let mirror = world.mirror(&Told::default());
    let done = AtomicBool::new(false);
    let sums: Vec<u64> = thread::scope(|scope| {
        let (world, mirror, done) = (&world, &mirror, &done);
        let mut threads = Vec::new();
        for seed in 0..2 {
            threads.push(scope.spawn(move || by_cpu(world, seed, done)));
            threads.push(scope.spawn(move || by_device(world, mirror, seed + 9, done)));
        }
        let (begin, mut rng) = (Instant::now(), Rng::new(1));
        let result = catch_unwind(AssertUnwindSafe(|| {
            while begin.elapsed() < Duration::from_millis(1500) {
                meanwhile(world, &mut rng);
            }
        }));
        done.store(true, SeqCst);
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(sums.iter().all(|sum| *sum > 0), "{sums:?}");
    assert_eq!(sum(&world), sums.iter().sum());
    assert!(world.stats().exclusive_ends.get() > 0);
    drop(mirror);
    world.is_at_rest();
}

#[test]
fn device_and_cpu_count_on_the_same_words() {
    let _alone = alone();
    count(&[Private], |_, _| thread::sleep(Duration::from_millis(10)));
}

#[test]
fn counts_are_right_while_pages_move_are_pinned_and_protected() {
    let _alone = alone();
    count(&[Private, Coherent], |world, rng| {
        let page = rng.below(PAGES as u64) as usize;
        match rng.below(6) {
            0 => _ = world.migrate(0..PAGES, Place::Device(FIRST)),
            1 => {
                world.migrate(page..page + 1, Place::Device(SECOND));
                thread::sleep(Duration::from_micros(200));
                world.migrate(page..page + 1, Place::Ram);
            }
            2 => world.push_out(),
            3 => {
                let pin = world
                    .space
                    .pin_pages(world.at(page), 8, PinFlags::default());
                drop(pin.unwrap());
            }
            4 => world.read_mostly(rng.one_in(2)),
            _ => thread::sleep(Duration::from_micros(500)),
        }
    });
}

/// R16, R17: a child sees the counts of a moment, and counts on.
#[test]
fn counts_are_right_on_both_sides_of_forks() {
    let _alone = alone();
    count(&[Private], |world, _| {
        let pid = child(|| {
            let before = sum(world);
            assert!((0..PAGES).all(|page| !world.is_exclusive(page)));
            let mirror = world.mirror(&Told::default());
            let (own, other) = thread::scope(|scope| {
                let cpu = scope.spawn(|| {
                    let mut sum = 0;
                    for i in 0..200 {
                        world.word(i % PAGES, i % WORDS).fetch_add(3, SeqCst);
                        sum += 3;
                    }
                    sum
                });
                let mut own = 0;
                for i in 0..200 {
                    let at = world.at(i % PAGES);
                    mirror
                        .exclusively(at, |_, data| add(data, i % WORDS, 5))
                        .unwrap();
                    own += 5;
                }
                (own, cpu.join().unwrap())
            });
            drop(mirror);
            assert_eq!(sum(world), before + own + other);
            world.is_at_rest();
            0
        });
        assert_eq!(wait(pid), End::Exit(0));
    });
}

/// What the program may only read does not change, and what it takes the right away from stops at once.
#[test]
fn nothing_is_counted_while_it_is_read_only() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let mirror = world.mirror(&Told::default());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let threads = (0..2).map(|seed| {
            let (world, mirror, done) = (&world, &mirror, &done);
            scope.spawn(move || by_device(world, mirror, seed, done))
        });
        let threads: Vec<_> = threads.collect();
        for _ in 0..200 {
            world.protect(0..PAGES, Protection::READ).unwrap();
            let before = sum(&world);
            thread::sleep(Duration::from_micros(100));
            assert_eq!(sum(&world), before);
            world.protect(0..PAGES, crate::world::ALL).unwrap();
            thread::sleep(Duration::from_micros(300));
        }
        done.store(true, SeqCst);
        let counted: u64 = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum();
        assert!(counted > 0);
        assert_eq!(sum(&world), counted);
    });
    drop(mirror);
    world.is_at_rest();
}
