//! A device is removed in the middle of threads that use its pages, and nothing is lost.
//! `cargo run --release -p uhmm --example device_removal`
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::PAGE_SIZE;
use uhmm::devices::{Lz4Device, MirrorDevice};
use uhmm::{Builder, DeviceId};

const MIB: usize = 1 << 20;
const MEMORY: usize = 64 * MIB;
const THREADS: usize = 4;
const MIRROR: DeviceId = DeviceId(0);

/// What stands beside a counter, so that old bytes, zeros and another page's bytes are all found out.
fn seal(page: usize, count: u64) -> u64 {
    (count << 24 | (page as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The counter at the beginning of a page, if its seal is right.
fn read(memory: &[u8], page: usize) -> Option<u64> {
    let words = memory[page * PAGE_SIZE..][..16].as_chunks().0;
    let [count, found] = [0, 1].map(|i| u64::from_ne_bytes(words[i]));
    (found == seal(page, count)).then_some(count)
}

fn write(memory: &mut [u8], page: usize, count: u64) {
    let words = memory[page * PAGE_SIZE..][..16].as_chunks_mut().0;
    words.copy_from_slice(&[count, seal(page, count)].map(u64::to_ne_bytes));
}

/// Counts up in pages at random until `done`; returns how often, and how many pages are not what was
/// written last.
fn count_up(memory: &mut [u8], mut random: u64, full: &Barrier, done: &AtomicBool) -> (u64, usize) {
    let mut counts = vec![0u64; memory.len() / PAGE_SIZE];
    let mut lost = 0;
    (0..counts.len()).for_each(|page| write(memory, page, 0));
    full.wait();
    while !done.load(Relaxed) {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let page = (random >> 33) as usize % counts.len();
        lost += usize::from(read(memory, page) != Some(counts[page]));
        counts[page] += 1;
        write(memory, page, counts[page]);
    }
    for (page, &count) in counts.iter().enumerate() {
        lost += usize::from(read(memory, page) != Some(count));
    }
    (counts.iter().sum(), lost)
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    // A quarter of the memory fits into RAM. The second device has room for what the first one has.
    let space = Builder::new(MEMORY as u64 / 4)
        .device(Box::new(MirrorDevice::new(MEMORY as u64)))
        .device(Box::new(Lz4Device::new(MEMORY as u64)))
        .build()?;
    let mut region = space.region(MEMORY)?;
    let pages = |device: usize| space.statistics().devices[device].pages;
    let (full, done) = (Barrier::new(THREADS + 1), AtomicBool::new(false));
    let (removed, counted) = thread::scope(|scope| {
        let parts = region.as_mut_slice().chunks_mut(MEMORY / THREADS);
        let threads: Vec<_> = (0..)
            .zip(parts)
            .map(|(seed, part)| {
                scope.spawn({
                    let (full, done) = (&full, &done);
                    move || count_up(part, seed, full, done)
                })
            })
            .collect();
        full.wait();
        thread::sleep(Duration::from_millis(200));
        println!(
            "{THREADS} threads use {} pages, {} of them on the mirror device",
            MEMORY / PAGE_SIZE,
            pages(0)
        );
        let start = Instant::now();
        let removed = space.remove_device(MIRROR, Duration::from_secs(30));
        let removed = removed.map(|()| (start.elapsed(), pages(0), pages(1)));
        thread::sleep(Duration::from_millis(300));
        done.store(true, Relaxed);
        let counted: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        (removed, counted)
    });
    let (took, left, moved) = removed?;
    println!("it was removed in {took:.2?}: {left} pages left on it, {moved} on the lz4 device");
    let all = counted.into_iter().map(|thread| thread.expect("no panic"));
    let (counts, lost) = all.fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1));
    println!("{counts} counts in all, before, meanwhile and after: {lost} pages lost");
    Ok(ExitCode::from(u8::from(lost > 0 || counts == 0)))
}
