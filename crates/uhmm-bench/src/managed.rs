//! Managed memory to measure: a space of its own, with one device and one region.

use crate::error::Error;
use std::thread;
use std::time::{Duration, Instant};
use uhmm::device::Device;
use uhmm::{Builder, Engine, Place, Region, Space};
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;

/// How long to wait for what others hold up, and how long between two looks.
const PATIENCE: Duration = Duration::from_secs(2);
const NAP: Duration = Duration::from_millis(1);

/// One region in a space of its own.
pub(crate) struct Managed {
    region: Region,
    space: Space,
    scratch: Scratch<'static>,
}

impl Managed {
    /// A region of `pages` pages in a space that may keep `budget` pages in RAM.
    pub(crate) fn new(pages: usize, budget: usize, device: Box<dyn Device>) -> Result<Self, Error> {
        Self::with_engine(Engine::Thread, pages, budget, device)
    }

    /// The same, with an engine of one's choice.
    pub(crate) fn with_engine(
        engine: Engine,
        pages: usize,
        budget: usize,
        device: Box<dyn Device>,
    ) -> Result<Self, Error> {
        let space = Builder::new((budget * PAGE_SIZE) as u64)
            .device(device)
            .engine(engine)
            .build()?;
        Ok(Self {
            region: space.region(pages * PAGE_SIZE)?,
            space,
            scratch: Scratch::default(),
        })
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.region.as_slice()
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.region.as_mut_slice()
    }

    /// Makes all of it untouched again.
    pub(crate) fn clear(&mut self) -> Result<(), Error> {
        Ok(self.region.clear()?)
    }

    /// Waits until no page is in flight. A fault wakes the thread that waits for the page before it
    /// has settled the page's entry, so the last touch may be over before its fault is.
    pub(crate) fn settle(&self) {
        let start = Instant::now();
        while self.states().any(|state| state == State::Migrating) && start.elapsed() < PATIENCE {
            thread::sleep(NAP);
        }
    }

    /// Pushes all of it out to the device. A page that something else holds for a moment (the
    /// kernel's own page walks do) stays behind, and is pushed again.
    pub(crate) fn push_out(&mut self) {
        let start = Instant::now();
        while self.space.internals().push_out(&mut self.scratch) > 0 && start.elapsed() < PATIENCE {
            thread::sleep(NAP);
        }
    }

    /// Migrates all of it, and what stays behind for a moment again.
    pub(crate) fn migrate(&self, to: Place) -> Result<(), Error> {
        let start = Instant::now();
        while self.region.migrate(to)?.left > 0 && start.elapsed() < PATIENCE {
            thread::sleep(NAP);
        }
        Ok(())
    }

    /// Makes sure that every page is on the device.
    pub(crate) fn check_out(&self) -> Result<(), Error> {
        let (mut system, mut limbo, mut in_flight) = (0, 0, 0);
        for state in self.states() {
            match state {
                State::Private(_) | State::Coherent(_) => {}
                State::Limbo(_) => limbo += 1,
                State::Migrating => in_flight += 1,
                _ => system += 1,
            }
        }
        if system + limbo + in_flight == 0 {
            Ok(())
        } else {
            Err(Error::NotOut {
                system,
                limbo,
                in_flight,
            })
        }
    }

    fn states(&self) -> impl Iterator<Item = State> {
        let first = PageNo::containing(self.region.as_ptr() as usize);
        let pages = self.region.len() / PAGE_SIZE;
        (0..pages).map(move |i| self.space.internals().state(first.plus(i)))
    }
}
