//! Fault engines: how a fault gets from the kernel to the core's resolver, and back.
//!
//! | engine | who serves | faults that the kernel takes for the program | who may use it |
//! | --- | --- | --- | --- |
//! | [`thread`] | one handler thread per CPU | served | who may serve such faults: see `uhmm doctor` |
//! | [`signal`] | the faulting thread, in a handler of SIGBUS | `EFAULT` | everybody |
//!
//! Both have a reclaimer thread beside them. Which of them a space has is settled when it is built.

mod crew;
mod reclaimer;
pub mod signal;
pub mod stacks;
pub mod thread;

use crate::mmu::LinuxMmu;
use signal::{SignalEngine, SignalError};
pub(crate) use stacks::is_only_thread;
use std::fmt;
use std::io;
use std::sync::Arc;
use thread::ThreadEngine;
use uhmm_core::Space;
use uhmm_core::addr::{PageNo, PageRange};

/// Who serves the faults of a space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Threads of their own, one on each CPU: what system calls touch is served too.
    #[default]
    Thread,
    /// The thread that meets the fault, in a signal handler. Faster, and open to every user; a system
    /// call that is given a missing page fails with `EFAULT`.
    Signal,
}

/// The variable that says which engine a space has whose program does not say.
const VARIABLE: &str = "UHMM_ENGINE";

/// The variable names no engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchEngine;

impl fmt::Display for NoSuchEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VARIABLE} names no engine: give `thread` or `signal`")
    }
}

impl std::error::Error for NoSuchEngine {}

impl Kind {
    /// The engine that the environment names (`UHMM_ENGINE`), or the usual one if it names none.
    ///
    /// # Errors
    /// [`NoSuchEngine`].
    pub fn of_environment() -> Result<Self, NoSuchEngine> {
        match std::env::var_os(VARIABLE) {
            None => Ok(Self::default()),
            Some(name) if name == "thread" => Ok(Self::Thread),
            Some(name) if name == "signal" => Ok(Self::Signal),
            Some(_) => Err(NoSuchEngine),
        }
    }
}

/// The page of a space that the engine keeps for itself: the last one.
pub fn bell(space: PageRange) -> PageNo {
    space.start.plus(space.len - 1)
}

/// Why an engine could not be started, or does not work any more.
#[derive(Debug)]
pub enum EngineError {
    /// Threads of ours cannot be created.
    Threads(io::Error),
    /// Something is in the way of serving faults in signal handlers.
    Signal(SignalError),
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threads(error) => write!(f, "cannot start the fault handlers: {error}"),
            Self::Signal(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EngineError {}

impl From<SignalError> for EngineError {
    fn from(error: SignalError) -> Self {
        Self::Signal(error)
    }
}

/// The running engine of one space; stops when dropped.
pub enum Engine {
    /// With threads of its own.
    Thread(ThreadEngine),
    /// In signal handlers.
    Signal(SignalEngine),
}

impl Engine {
    /// Starts serving the faults of `space`, whose MMU was made for this kind of engine.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn start(kind: Kind, space: Arc<Space<LinuxMmu>>) -> Result<Self, EngineError> {
        Ok(match kind {
            Kind::Thread => Self::Thread(ThreadEngine::start(space).map_err(EngineError::Threads)?),
            Kind::Signal => Self::Signal(SignalEngine::start(space)?),
        })
    }

    /// Starts again in the child of a fork, which has only the forking thread.
    ///
    /// # Errors
    /// [`EngineError::Threads`].
    pub fn restart_in_child(&mut self) -> Result<(), EngineError> {
        let restarted = match self {
            Self::Thread(engine) => engine.restart_in_child(),
            Self::Signal(engine) => engine.restart_in_child(),
        };
        restarted.map_err(EngineError::Threads)
    }
}

/// Whether faults of the calling thread on `space` are served, as far as one can see.
///
/// # Errors
/// [`signal::check`]; threads of ours serve everybody.
pub fn check(kind: Kind, space: &Space<LinuxMmu>) -> Result<(), EngineError> {
    match kind {
        Kind::Thread => Ok(()),
        Kind::Signal => Ok(signal::check(space)?),
    }
}
