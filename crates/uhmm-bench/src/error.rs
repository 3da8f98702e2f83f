//! Why a benchmark gives no figure.

use std::fmt;
use std::io;
use uhmm::BuildError;
use uhmm::migrate::MigrateError;
use uhmm::size::Bytes;
use uhmm_linux::abi::uffd::OpenError;

/// Why a benchmark gives no figure.
#[derive(Debug)]
pub enum Error {
    /// There is no benchmark of this name.
    UnknownName(String),
    /// Too little memory is free for a figure that means anything.
    Memory {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A space could not be built.
    Build(BuildError),
    /// No userfaultfd for a floor.
    Open(OpenError),
    /// A mapping or a thread could not be made.
    Io(io::Error),
    /// Pages could not be migrated.
    Migrate(MigrateError),
    /// The software device has refused a command.
    Device(uhmm_dmirror::Errno),
    /// A page was read back with other bytes than were written.
    WrongContent {
        /// The page's number in its region.
        page: usize,
    },
    /// Pages that had to be on the device before the clock starts are not.
    NotOut {
        /// Pages in RAM.
        system: usize,
        /// Pages in limbo.
        limbo: usize,
        /// Pages that somebody is migrating.
        in_flight: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownName(name) => {
                let names: Vec<_> = crate::choices().collect();
                write!(
                    f,
                    "unknown benchmark {name:?}: there are {}",
                    names.join(", ")
                )
            }
            Self::Memory { needed, free } => write!(
                f,
                "the benchmarks need {} of free memory, and there are {}; --quick needs less",
                Bytes(*needed),
                Bytes(*free)
            ),
            Self::Build(error) => error.fmt(f),
            Self::Migrate(error) => error.fmt(f),
            Self::Device(error) => write!(f, "the device has refused a command: {error}"),
            Self::Open(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
            Self::WrongContent { page } => {
                write!(f, "WRONG CONTENT: page {page} is not what was written")
            }
            Self::NotOut {
                system,
                limbo,
                in_flight,
            } => write!(
                f,
                "not all pages could be pushed out to the device: {system} are in RAM, {limbo} in \
                 limbo, {in_flight} in flight"
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<MigrateError> for Error {
    fn from(error: MigrateError) -> Self {
        Self::Migrate(error)
    }
}

impl From<uhmm_dmirror::Errno> for Error {
    fn from(error: uhmm_dmirror::Errno) -> Self {
        Self::Device(error)
    }
}

impl From<BuildError> for Error {
    fn from(error: BuildError) -> Self {
        Self::Build(error)
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}
