//! One page at a time: first touches, and faults on pages of a device.

use crate::content::{self, word};
use crate::error::Error;
use crate::floor::{FaultLoop, Pages};
use crate::managed::Managed;
use crate::report::Unit;
use crate::rounds::{Pair, Rounds, seconds};
use crate::signal_floor::SignalLoop;
use uhmm::Engine;
use uhmm::device::Device;
use uhmm::devices::{Lz4Device, MirrorDevice};
use uhmm_core::addr::PAGE_SIZE;

/// The word of every page of the bare fault loop.
const BARE: u64 = 0x5ca1_ab1e;

/// A device with room for twice `pages`.
fn mirror(pages: usize) -> Box<dyn Device> {
    Box::new(MirrorDevice::new((2 * pages * PAGE_SIZE) as u64))
}

fn lz4(pages: usize) -> Box<dyn Device> {
    Box::new(Lz4Device::new((2 * pages * PAGE_SIZE) as u64))
}

/// Filling fresh memory from end to end, beside the kernel's own anonymous memory of 4 KiB pages.
pub(crate) fn first_touch(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    let pages = rounds.size(16 << 10, 4 << 10);
    let mut ours = Managed::new(pages, 2 * pages, mirror(pages))?;
    let mut kernel = Pages::new(pages)?;
    let order = content::in_order(pages);
    rounds.run(["first_touch"], Unit::MicrosPerPage, pages, |round| {
        ours.clear()?;
        kernel.forget();
        Ok([Pair {
            ours: touch_first(ours.as_mut_slice(), &order, round)?,
            floor: touch_first(kernel.as_mut_slice(), &order, round)?,
        }])
    })
}

/// First touches in random order, beside the bare fault loop: one fault is one page for both.
pub(crate) fn first_touch_uffd(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    let pages = rounds.size(16 << 10, 4 << 10);
    let mut ours = Managed::new(pages, 2 * pages, mirror(pages))?;
    let mut bare = FaultLoop::new(pages, rounds.cpus(), 0)?;
    rounds.run(["first_touch_uffd"], Unit::MicrosPerPage, pages, |round| {
        ours.clear()?;
        bare.forget();
        let order = content::shuffled(pages, round);
        Ok([Pair {
            ours: touch_first(ours.as_mut_slice(), &order, round)?,
            floor: touch_first(bare.as_mut_slice(), &order, round)?,
        }])
    })
}

/// Seconds to write a word to each page, none of which has been touched. All bytes are checked.
fn touch_first(memory: &mut [u8], order: &[u32], version: u64) -> Result<f64, Error> {
    let time = seconds(|| {
        content::write_words(memory, order, version);
        Ok(())
    })?;
    content::check_words(memory, version)?;
    Ok(time)
}

/// Reading pages of the mirror device in random order, beside the bare fault loop.
pub(crate) fn private_mirror(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    private(rounds, "fault_private_mirror", mirror, content::shuffled)
}

/// Reading pages of the lz4 device in random order, beside the bare fault loop.
pub(crate) fn private_lz4(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    private(rounds, "fault_private_lz4", lz4, content::shuffled)
}

/// Reading pages of the mirror device from end to end, beside the bare fault loop a page.
pub(crate) fn sequential_mirror(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    let in_order = |pages, _| content::in_order(pages);
    private(rounds, "sequential_mirror", mirror, in_order)
}

fn private(
    rounds: &mut Rounds<'_>,
    name: &'static str,
    device: fn(usize) -> Box<dyn Device>,
    order: fn(usize, u64) -> Vec<u32>,
) -> Result<(), Error> {
    let pages = rounds.size(16 << 10, 4 << 10);
    let mut ours = Managed::new(pages, 2 * pages, device(pages))?;
    let mut bare = FaultLoop::new(pages, rounds.cpus(), BARE)?;
    content::fill(ours.as_mut_slice(), 0);
    rounds.run([name], Unit::MicrosPerPage, pages, |round| {
        ours.settle();
        ours.push_out();
        ours.check_out()?;
        bare.forget();
        let order = order(pages, round);
        let time = seconds(|| content::read_words(ours.as_slice(), &order, |page| word(page, 0)))?;
        content::check(ours.as_slice(), 0)?;
        Ok([Pair {
            ours: time,
            floor: seconds(|| content::read_words(bare.as_slice(), &order, |_| BARE))?,
        }])
    })
}

/// The same in the signal engine: reading pages of the mirror device in random order, beside the bare
/// handler of SIGBUS.
pub(crate) fn signal_mirror(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    signal(rounds, "fault_signal_mirror", mirror)
}

/// Reading pages of the lz4 device in random order in the signal engine.
pub(crate) fn signal_lz4(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    signal(rounds, "fault_signal_lz4", lz4)
}

fn signal(
    rounds: &mut Rounds<'_>,
    name: &'static str,
    device: fn(usize) -> Box<dyn Device>,
) -> Result<(), Error> {
    let pages = rounds.size(16 << 10, 4 << 10);
    let mut ours = Managed::with_engine(Engine::Signal, pages, 2 * pages, device(pages))?;
    let mut bare = SignalLoop::new(pages, BARE)?;
    content::fill(ours.as_mut_slice(), 0);
    rounds.run([name], Unit::MicrosPerPage, pages, |round| {
        ours.push_out();
        ours.check_out()?;
        bare.forget();
        let order = content::shuffled(pages, round);
        let time = seconds(|| content::read_words(ours.as_slice(), &order, |page| word(page, 0)))?;
        content::check(ours.as_slice(), 0)?;
        let floor = bare.with(|bare| seconds(|| content::read_words(bare, &order, |_| BARE)))?;
        Ok([Pair { ours: time, floor }])
    })
}
