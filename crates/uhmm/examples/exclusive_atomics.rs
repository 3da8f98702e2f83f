//! A histogram that threads of the program and a device count at the same time, in the same bins. The
//! device has no atomic operations: it takes the page for itself for each step, and the CPU's next touch
//! takes it back. `cargo run --release -p uhmm --example exclusive_atomics`
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use uhmm::Builder;
use uhmm::device::{PAGE_SIZE, PageData};
use uhmm::mirror::{DeviceTable, Event, Invalidation, Mirror};

const BINS: usize = 256;
const SAMPLES: usize = 1 << 22;
/// Samples that somebody counts before he looks for more.
const STEP: usize = 256;

/// Random bytes, most of them small.
fn sample(i: usize) -> usize {
    let random = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    ((random & 0xff) * (random >> 8 & 0xff)) as usize >> 8
}

/// What a device knows of the program's memory. This one remembers nothing between two steps, so there
/// is nothing to forget; it only counts how often the page was taken away from it.
#[derive(Default)]
struct Taken(u64);

impl DeviceTable for Taken {
    /// This runs in the page fault of who touches the page, and waits for the step under way.
    fn invalidate(&mut self, what: &Invalidation) {
        self.0 += u64::from(what.event == Event::EndExclusive);
    }
}

/// The CPU: atomic additions, as between any threads.
fn count_on_cpu(bins: &[AtomicU64; BINS], samples: &[usize]) {
    for &bin in samples {
        bins[bin].fetch_add(1, Relaxed);
    }
}

/// The device: ordinary additions, to a page that nobody else sees meanwhile.
fn count_on_device(mirror: &Mirror<'_, Taken>, bins: usize, samples: &[usize]) {
    let counted = mirror.exclusively(bins, |_taken, page: &mut PageData| {
        let (words, _) = page.0.as_chunks_mut::<8>();
        for &bin in samples {
            words[bin] = (u64::from_ne_bytes(words[bin]) + 1).to_ne_bytes();
        }
    });
    counted.expect("the page is neither pinned nor read-only");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let space = Builder::new(16 << 20).build()?;
    let region = space.region(PAGE_SIZE)?;
    let address = region.as_ptr() as usize;
    // SAFETY: from here on the region is touched by atomic accesses and by the device only.
    let mirror = unsafe { space.mirror(address, region.len(), None, Taken::default())? };
    // SAFETY: aligned, within the region, which outlives it, and atomics wherever the CPU touches it.
    let bins = unsafe { &*(address as *const [AtomicU64; BINS]) };

    let samples: Vec<usize> = (0..SAMPLES).map(sample).collect();
    // Whoever is done with his samples takes the next ones.
    let next = AtomicUsize::new(0);
    let take = || samples.chunks(STEP).nth(next.fetch_add(1, Relaxed));
    let together = Barrier::new(3);
    let by_device = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                together.wait();
                while let Some(samples) = take() {
                    count_on_cpu(bins, samples);
                }
            });
        }
        together.wait();
        let mut counted = 0;
        while let Some(samples) = take() {
            count_on_device(&mirror, address, samples);
            counted += samples.len();
        }
        counted
    });

    let mut expected = vec![0; BINS];
    samples.iter().for_each(|&bin| expected[bin] += 1);
    let counted: Vec<u64> = bins.iter().map(|bin| bin.load(Relaxed)).collect();
    assert_eq!(counted, expected, "a count was lost, or counted twice");
    let sum: u64 = counted.iter().sum();
    let taken = mirror.lock()?.0;
    println!(
        "{sum} samples in {BINS} bins, {by_device} of them by the device; the CPU took the page {taken} times"
    );
    Ok(())
}
