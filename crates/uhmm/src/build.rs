//! Building a space, and the parts that make one up.

use crate::device_memory::off_managed_stack;
use crate::fork;
use crate::memory::Memory;
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use uhmm_core::addr::PAGE_SHIFT;
use uhmm_core::device::Device;
use uhmm_linux::engine::{self, EngineError, Kind as Engine, NoSuchEngine};
use uhmm_linux::mmu::{LinuxMmu, SetupError};
use uhmm_linux::shared_stats::Slot;

pub(crate) type CoreSpace = uhmm_core::Space<LinuxMmu>;

/// Why a space could not be built.
#[derive(Debug)]
pub enum BuildError {
    /// What was asked for does not work: budget or devices.
    Core(uhmm_core::error::BuildError),
    /// The machine does not allow it; `uhmm doctor` says more.
    Setup(SetupError),
    /// The engine that serves faults cannot be started.
    Engine(EngineError),
    /// `UHMM_ENGINE` is neither `thread` nor `signal`.
    NoSuchEngine,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Core(error) => error.fmt(f),
            Self::Setup(error) => error.fmt(f),
            Self::Engine(error) => error.fmt(f),
            Self::NoSuchEngine => NoSuchEngine.fmt(f),
        }
    }
}

impl std::error::Error for BuildError {}

impl From<SetupError> for BuildError {
    fn from(error: SetupError) -> Self {
        Self::Setup(error)
    }
}

/// What a space is to be like.
#[must_use]
pub struct Builder {
    ram_bytes: u64,
    devices: Vec<Box<dyn Device>>,
    slot: Option<Slot>,
    engine: Option<Engine>,
}

impl Builder {
    /// A space that keeps at most `ram_bytes` of RAM, and has no device yet.
    pub fn new(ram_bytes: u64) -> Self {
        Self {
            ram_bytes,
            devices: Vec::new(),
            slot: None,
            engine: None,
        }
    }

    /// Who serves the faults of the space. Unless it is said, the environment variable `UHMM_ENGINE` does
    /// (`thread` or `signal`), and else it is [`Engine::Thread`].
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = Some(engine);
        self
    }

    /// Adds a device. Cold pages go to the first one that has room.
    pub fn device(mut self, device: Box<dyn Device>) -> Self {
        self.devices.push(device);
        self
    }

    /// Keeps the counters in the stats file at `path`, which another process reads.
    ///
    /// # Errors
    /// What opening or mapping the file returns.
    pub fn stats_file(mut self, path: &CStr) -> io::Result<Self> {
        self.slot = Some(Slot::claim(path)?);
        Ok(self)
    }

    /// Builds the space and starts its engine. With [`Engine::Signal`], the process has uhmm's handler of
    /// SIGBUS from now on: see [`crate::sigbus`].
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build(self) -> Result<Space, BuildError> {
        let kind = self.engine.map_or_else(Engine::of_environment, Ok);
        let kind = kind.map_err(|NoSuchEngine| BuildError::NoSuchEngine)?;
        let budget = (self.ram_bytes >> PAGE_SHIFT) as usize;
        let slot = match self.slot {
            Some(slot) => slot,
            None => Slot::private().map_err(|_| SetupError::Stats)?,
        };
        let mmu = LinuxMmu::new(kind, budget, slot, out_of_memory)?;
        let range = mmu.range();
        let core = CoreSpace::new(mmu, range, budget, self.devices).map_err(BuildError::Core)?;
        let core = Arc::new(core);
        let engine = engine::Engine::start(kind, Arc::clone(&core)).map_err(BuildError::Engine)?;
        let memory = Memory::new(Arc::clone(&core));
        let inner = Arc::new(Inner {
            engine: Mutex::new(engine),
            kind,
            memory,
            core,
        });
        fork::register(&inner);
        Ok(Space { inner })
    }
}

/// The process cannot go on: a thread waits for a page, and there is no room for it anywhere. Said
/// as the kernel's own out-of-memory killer would, and ended the same way.
fn out_of_memory() {
    uhmm_linux::end::die_plainly(
        "uhmm: out of memory: the RAM budget and every device are full; give more --ram or a \
         larger --device. The process is killed.\n",
    );
}

/// The parts of a space. The engine comes first, so that it stops before the rest goes.
pub(crate) struct Inner {
    pub(crate) engine: Mutex<engine::Engine>,
    pub(crate) kind: Engine,
    pub(crate) memory: Memory,
    pub(crate) core: Arc<CoreSpace>,
}

impl Drop for Inner {
    /// What is on devices of memory that the program had before is its own again.
    fn drop(&mut self) {
        let mmu = self.core.mmu();
        if mmu.adopted().into_iter().next().is_none() {
            return;
        }
        let mut all = self.core.range();
        let give_back = || self.memory.give_back(&mut all, false, None);
        let done = off_managed_stack(mmu, give_back);
        assert!(
            done.is_ok() || std::thread::panicking(),
            "a space ends in a notifier, where it cannot give back what it manages"
        );
    }
}

/// A managed address space. Cloning it is cheap; it ends with its last clone and region.
#[derive(Clone)]
pub struct Space {
    pub(crate) inner: Arc<Inner>,
}

impl Space {
    /// The space's address ranges, as the operating system's calls have them.
    pub fn memory(&self) -> &Memory {
        &self.inner.memory
    }

    /// Who serves its faults.
    pub fn engine(&self) -> Engine {
        self.inner.kind
    }

    /// Whether faults of the calling thread are served, as far as one can see: for threads that touch
    /// managed memory for the first time, and after libraries were loaded that may have a handler of SIGBUS.
    ///
    /// # Errors
    /// With the signal engine: another handler of SIGBUS is in the place of uhmm's, or this thread blocks
    /// SIGBUS, or its stack is managed memory. The message says how to mend it.
    pub fn check_engine(&self) -> Result<(), EngineError> {
        engine::check(self.inner.kind, &self.inner.core)
    }

    /// The core. Safe code can drop pages with it, so it is not given away: see `internals`.
    pub(crate) fn core(&self) -> &Arc<CoreSpace> {
        &self.inner.core
    }
}
