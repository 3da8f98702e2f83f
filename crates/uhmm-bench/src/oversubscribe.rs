//! Walks over four times the memory that the budget allows, with the lz4 device: faults, reclaim
//! and compression at once. Beside the bare fault loop with as many threads, which keeps all it
//! gets: a lower bound of any walk that misses with each page.

use crate::content;
use crate::cpu;
use crate::error::Error;
use crate::floor::FaultLoop;
use crate::managed::Managed;
use crate::report::Unit;
use crate::rounds::{Pair, Rounds};
use std::thread;
use std::time::Instant;
use uhmm::devices::Lz4Device;
use uhmm_core::addr::PAGE_SIZE;

/// The benchmarks, in the order of [`KINDS`].
pub(crate) const NAMES: [&str; 4] = [
    "oversubscribe_seq_1t",
    "oversubscribe_seq_2t",
    "oversubscribe_random_1t",
    "oversubscribe_random_2t",
];

/// Threads, and whether the order is random.
const KINDS: [(usize, bool); 4] = [(1, false), (2, false), (1, true), (2, true)];

/// How many times the budget the region is.
const TIMES: usize = 4;

/// The word of every page of the bare fault loop.
const BARE: u64 = 0xba5e_ba11;

/// Runs those that are wanted, over one region.
pub(crate) fn walks(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    let budget = rounds.size(8 << 10, 2 << 10);
    let pages = TIMES * budget;
    let device = Lz4Device::new((2 * pages * PAGE_SIZE) as u64);
    let mut ours = Managed::new(pages, budget, Box::new(device))?;
    let mut bare = FaultLoop::new(pages, rounds.cpus(), BARE)?;
    let cpus = rounds.cpus();
    rounds.say("oversubscribe: filling");
    let mut version = 0;
    content::fill(ours.as_mut_slice(), version);
    for (name, (threads, random)) in NAMES.into_iter().zip(KINDS) {
        if !rounds.wanted(name) {
            continue;
        }
        let part = pages / threads;
        rounds.run([name], Unit::MicrosPerPage, pages, |round| {
            let order = match random {
                true => content::shuffled(part, round),
                false => content::in_order(part),
            };
            let time = walk(ours.as_mut_slice(), part, &cpus, |memory, first| {
                content::change_words(memory, first, &order, version)
            })?;
            version += 1;
            bare.forget();
            let floor = walk(bare.as_mut_slice(), part, &cpus, |memory, _| {
                content::read_words(memory, &order, |_| BARE)
            })?;
            Ok([Pair { ours: time, floor }])
        })?;
        content::check(ours.as_slice(), version)?;
    }
    Ok(())
}

/// Seconds that one thread for each `part` pages needs, all at once, each on a CPU of its own as
/// far as there are enough. `each` gets its pages, and the number of the first.
fn walk(
    memory: &mut [u8],
    part: usize,
    cpus: &[usize],
    each: impl Fn(&mut [u8], usize) -> Result<(), Error> + Sync,
) -> Result<f64, Error> {
    let start = Instant::now();
    thread::scope(|scope| {
        let each = &each;
        let walkers: Vec<_> = memory
            .chunks_mut(part * PAGE_SIZE)
            .enumerate()
            .map(|(i, memory)| {
                let cpu = cpus[cpus.len() - 1 - i % cpus.len()];
                scope.spawn(move || {
                    cpu::pin(cpu);
                    each(memory, i * part)
                })
            })
            .collect();
        walkers.into_iter().try_for_each(|walker| {
            walker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(start.elapsed().as_secs_f64())
}
