//! The device of the kernel's tests, in software: what each command costs a page, beside what the bare
//! primitive under it costs.

use crate::content::{self, word};
use crate::error::Error;
use crate::floor::{FaultLoop, Pages};
use crate::report::Unit;
use crate::rounds::{Pair, Rounds, seconds};
use crate::signal_floor::SignalLoop;
use std::ops::Range;
use uhmm::{Builder, Engine, Region, Space};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_dmirror::{Command, Driver, File, Op, Process, Sizes};

/// The benchmarks of [`commands`].
pub(crate) const NAMES: [&str; 5] = [
    "dmirror_read_cold",
    "dmirror_read_warm",
    "dmirror_to_device",
    "dmirror_to_system",
    "dmirror_fault",
];

/// Pages that one command is about: as many as in the kernel's tests.
const PAGES: usize = 1024;

/// The word of every page of the bare fault loops.
const BARE: u64 = 0xd311_2202;

/// Memory that a device is commanded about, and where it copies to.
struct Memory {
    region: Region,
    copy: Vec<u8>,
}

impl Memory {
    fn new(space: &Space, pages: usize) -> Result<Self, Error> {
        let mut region = space.region(pages * PAGE_SIZE)?;
        content::fill(region.as_mut_slice(), 0);
        Ok(Self {
            copy: vec![0; region.len()],
            region,
        })
    }

    /// Has the device do `op` with all pages, some of them a command.
    fn command(&mut self, file: &File<'_>, op: Op) -> Result<(), Error> {
        let start = self.region.as_ptr() as usize;
        let parts = self.copy.chunks_mut(PAGES * PAGE_SIZE);
        for (i, copy) in parts.enumerate() {
            let address = (start + i * PAGES * PAGE_SIZE) as u64;
            let pages = (copy.len() / PAGE_SIZE) as u64;
            file.run(Command::new(op, address, pages, copy.as_mut_ptr() as u64)?)?;
        }
        Ok(())
    }

    /// Seconds that this takes; the device's copy is checked then, and cleared.
    fn copied(&mut self, file: &File<'_>, op: Op) -> Result<f64, Error> {
        let time = seconds(|| self.command(file, op))?;
        content::check(&self.copy, 0)?;
        self.copy.fill(0);
        Ok(time)
    }
}

fn space(engine: Engine, pages: usize) -> Result<Space, Error> {
    let budget = (2 * pages * PAGE_SIZE) as u64;
    Ok(Builder::new(budget).engine(engine).build()?)
}

fn driver(space: &Space, pages: usize) -> Result<Driver<'_>, Error> {
    let sizes = Sizes {
        private: (2 * pages * PAGE_SIZE) as u64,
        ..Sizes::default()
    };
    // SAFETY: the commands here name the memory of a `Memory`, which nobody else uses meanwhile.
    let process = unsafe { Process::new(space) };
    Ok(Driver::new(process, sizes)?)
}

/// A device reads, the first time and again; pages migrate to it and back, and are touched there.
pub(crate) fn commands(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    let pages = rounds.size(16 << 10, 4 << 10);
    let space = space(Engine::Thread, pages)?;
    let driver = driver(&space, pages)?;
    let mut ours = Memory::new(&space, pages)?;
    let (from, mut to) = (filled(pages)?, Pages::new(pages)?);
    let mut bare = FaultLoop::new(pages, rounds.cpus(), BARE)?;
    rounds.run(NAMES, Unit::MicrosPerPage, pages, |round| {
        // A file that has just been opened has an empty page table.
        let file = driver.open(0)?;
        let cold = Pair {
            ours: ours.copied(&file, Op::Read)?,
            floor: read_by_the_kernel(from.as_slice(), to.as_mut_slice())?,
        };
        let warm = Pair {
            ours: ours.copied(&file, Op::Read)?,
            floor: copy(&from, &mut to)?,
        };
        let there = Pair {
            ours: ours.copied(&file, Op::MigrateToDevice)?,
            floor: copy(&from, &mut to)?,
        };
        let back = Pair {
            ours: seconds(|| ours.command(&file, Op::MigrateToSystem))?,
            floor: copy(&from, &mut to)?,
        };
        ours.copied(&file, Op::MigrateToDevice)?;
        bare.forget();
        let order = content::shuffled(pages, round);
        let fault = Pair {
            ours: touch(ours.region.as_slice(), &order)?,
            floor: seconds(|| content::read_words(bare.as_slice(), &order, |_| BARE))?,
        };
        Ok([cold, warm, there, back, fault])
    })
}

/// Touching pages that are on the device, in the signal engine, beside the bare handler of SIGBUS.
pub(crate) fn signal_fault(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    let pages = rounds.size(16 << 10, 4 << 10);
    let space = space(Engine::Signal, pages)?;
    let driver = driver(&space, pages)?;
    let mut ours = Memory::new(&space, pages)?;
    let mut bare = SignalLoop::new(pages, BARE)?;
    let file = driver.open(0)?;
    rounds.run(
        ["dmirror_fault_signal"],
        Unit::MicrosPerPage,
        pages,
        |round| {
            ours.copied(&file, Op::MigrateToDevice)?;
            bare.forget();
            let order = content::shuffled(pages, round);
            let time = touch(ours.region.as_slice(), &order)?;
            let floor =
                bare.with(|bare| seconds(|| content::read_words(bare, &order, |_| BARE)))?;
            Ok([Pair { ours: time, floor }])
        },
    )
}

/// Seconds to read a word of each page. All bytes are checked.
fn touch(memory: &[u8], order: &[u32]) -> Result<f64, Error> {
    let time = seconds(|| content::read_words(memory, order, |page| word(page, 0)))?;
    content::check(memory, 0)?;
    Ok(time)
}

fn filled(pages: usize) -> Result<Pages, Error> {
    let mut memory = Pages::new(pages)?;
    content::fill(memory.as_mut_slice(), 0);
    Ok(memory)
}

/// Seconds of one `memcpy`, as many pages a call as a command has.
fn copy(from: &Pages, to: &mut Pages) -> Result<f64, Error> {
    seconds(|| {
        let from = from.as_slice().chunks(PAGES * PAGE_SIZE);
        let to = to.as_mut_slice().chunks_mut(PAGES * PAGE_SIZE);
        from.zip(to).for_each(|(from, to)| to.copy_from_slice(from));
        Ok(())
    })
}

/// Seconds for the kernel to read memory of this process as that of any other, `process_vm_readv`.
fn read_by_the_kernel(from: &[u8], to: &mut [u8]) -> Result<f64, Error> {
    let time = seconds(|| {
        let parts = from.chunks(PAGES * PAGE_SIZE);
        let mut parts = parts.zip(to.chunks_mut(PAGES * PAGE_SIZE));
        parts.try_for_each(|(from, to)| read_part(from.as_ptr_range(), to))
    })?;
    content::check(to, 0)?;
    Ok(time)
}

fn read_part(from: Range<*const u8>, to: &mut [u8]) -> Result<(), Error> {
    let local = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    let remote = libc::iovec {
        iov_base: from.start.cast_mut().cast(),
        iov_len: to.len(),
    };
    // SAFETY: both are memory of this process, of that length; only `to` is written.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    if read != to.len() as isize {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}
