//! A device of 32 MiB works on 512 MiB: it makes room for each block of its own coldest pages.
//! `cargo run --release -p uhmm --example oversubscribe`
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use uhmm::device::{CopyInError, CopyOutError, Device, DeviceInfo, DevicePage, PageData};
use uhmm::devices::Lz4Device;
use uhmm::{Builder, DeviceId};

const MIB: usize = 1 << 20;
const MEMORY: usize = 512 * MIB;
const DEVICE: usize = 32 * MIB;
const RAM: u64 = 64 << 20;
/// What the device works on at a time.
const BLOCK: usize = 4 * MIB;
const PASSES: u64 = 3;
const ACCELERATOR: DeviceId = DeviceId(0);

/// A device that computes, in memory of its own that nobody else can touch.
struct Accelerator {
    memory: Vec<Mutex<[u64; 512]>>,
}

/// What becomes of each word in each pass.
fn step(word: u64, pass: u64) -> u64 {
    (word * 5 + pass + 1) % 65_521
}

fn initial(index: usize) -> u64 {
    (index / 64) as u64 % 65_521
}

impl Accelerator {
    fn page<R>(&self, page: DevicePage, work: impl FnOnce(&mut [u64; 512]) -> R) -> R {
        let memory = &self.memory[page.0 as usize];
        work(&mut memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The kernel: one pass over these pages; returns the sum of all words.
    fn launch(&self, pages: &[DevicePage], pass: u64) -> u64 {
        let work = |words: &mut [u64; 512]| {
            words.iter_mut().for_each(|word| *word = step(*word, pass));
            words.iter().sum::<u64>()
        };
        pages.iter().map(|&page| self.page(page, work)).sum()
    }
}

/// How the space has the device that the program launches kernels on.
struct Driver(Arc<Accelerator>);

impl Device for Driver {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("accelerator", self.0.memory.len() as u32)
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        let words = from
            .0
            .as_chunks()
            .0
            .iter()
            .map(|word| u64::from_ne_bytes(*word));
        self.0.page(page, |memory| {
            memory
                .iter_mut()
                .zip(words)
                .for_each(|(to, word)| *to = word)
        });
        Ok(())
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        let to = to.0.as_chunks_mut().0.iter_mut();
        self.0.page(page, |memory| {
            to.zip(memory)
                .for_each(|(to, word)| *to = word.to_ne_bytes())
        });
        Ok(())
    }

    fn free(&self, _page: DevicePage) {}

    fn stored_bytes(&self) -> u64 {
        DEVICE as u64
    }
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let memory = (0..DEVICE / 4096).map(|_| Mutex::new([0; 512])).collect();
    let accelerator = Arc::new(Accelerator { memory });
    let space = Builder::new(RAM)
        .device(Box::new(Driver(accelerator.clone())))
        .device(Box::new(Lz4Device::new(MEMORY as u64)))
        .build()?;
    let mut region = space.region(MEMORY)?;
    for (i, word) in region
        .as_mut_slice()
        .as_chunks_mut()
        .0
        .iter_mut()
        .enumerate()
    {
        *word = initial(i).to_ne_bytes();
    }
    let start = Instant::now();
    let mut sum = 0;
    for pass in 0..PASSES {
        sum = 0;
        for first in (0..MEMORY).step_by(BLOCK) {
            let view = region.view(first..first + BLOCK, ACCELERATOR)?;
            sum += accelerator.launch(&view.pages()?, pass);
        }
    }
    let took = start.elapsed();
    let statistics = space.statistics();
    let pages = statistics.devices[0].pages_peak;
    let evicted = statistics.pages_evicted;
    println!(
        "a device of {pages} pages has worked {PASSES} times on {}",
        MEMORY / 4096
    );
    println!("{evicted} pages left it to make room, in {took:.2?}");
    let expected = |i| (0..PASSES).fold(initial(i), step);
    let words = region
        .as_slice()
        .as_chunks()
        .0
        .iter()
        .map(|word| u64::from_ne_bytes(*word));
    let (mut wrong, mut plain) = (0, 0);
    for (i, word) in words.enumerate() {
        wrong += usize::from(word != expected(i));
        plain += expected(i);
    }
    println!("{wrong} words are wrong, and the sum is {sum}");
    Ok(ExitCode::from(u8::from(wrong > 0 || sum != plain)))
}
