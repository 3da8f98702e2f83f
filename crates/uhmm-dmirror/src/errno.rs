//! The error numbers that the calls return, and what they stand for in the library.

use std::fmt;
use uhmm::migrate::MigrateError;
use uhmm::mirror::{MirrorError, NotifierError, PageError};
use uhmm::{AccessError, AdoptError, RangeError, Unfit};

/// An error number of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// Memory that may not be written to; a page that is still exclusive.
    Perm = 1,
    /// The device does not have the page.
    NoEnt = 2,
    /// There is no memory for it.
    NoMem = 12,
    /// Memory that is not there, or may not be read.
    Fault = 14,
    /// Pages that do not come to rest, or are in use by others.
    Busy = 16,
    /// There is no such device.
    NoDev = 19,
    /// A command that makes no sense.
    Inval = 22,
}

impl Errno {
    /// The number, as in `errno`.
    pub const fn raw(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Perm => "the memory may not be written to, or a page is still exclusive (EPERM)",
            Self::NoEnt => "the device does not have all of the range (ENOENT)",
            Self::NoMem => "there is no memory for it (ENOMEM)",
            Self::Fault => "some of the memory is not there, or may not be read (EFAULT)",
            Self::Busy => "pages are in use by others, try again (EBUSY)",
            Self::NoDev => "there is no such device (ENODEV)",
            Self::Inval => "the command or its range is not valid (EINVAL)",
        })
    }
}

impl std::error::Error for Errno {}

impl From<MirrorError> for Errno {
    fn from(error: MirrorError) -> Self {
        match error {
            MirrorError::Range(error) => of_range(error, Self::Fault),
            MirrorError::NotWritable => Self::Perm,
            MirrorError::NoSuchDevice => Self::NoDev,
            MirrorError::NotAlone | MirrorError::ManagedStack => Self::Busy,
            MirrorError::Mirror(error) => match error {
                PageError::NoAccess(_) | PageError::Poisoned(_) | PageError::Gone(_) => Self::Fault,
                PageError::NotWritable(_) => Self::Perm,
                PageError::NoRam(_) | PageError::Unseen => Self::NoMem,
                PageError::NotMirrored
                | PageError::Notifier(NotifierError::Removed | NotifierError::NotManaged) => {
                    Self::Inval
                }
                PageError::NotInTable(_)
                | PageError::NotManaged(_)
                | PageError::TooMuch { .. }
                | PageError::Forking
                | PageError::Notifier(_) => Self::Busy,
            },
        }
    }
}

impl From<MigrateError> for Errno {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Range(error) => of_range(error, Self::Inval),
            MigrateError::NoSuchDevice | MigrateError::DoesNotMigrate => Self::NoDev,
            MigrateError::Busy | MigrateError::Device(_) | MigrateError::ManagedStack => Self::Busy,
        }
    }
}

impl From<AdoptError> for Errno {
    fn from(error: AdoptError) -> Self {
        match error {
            AdoptError::Range(error) => of_range(error, Self::Inval),
            AdoptError::NoRoom { .. } => Self::NoMem,
            AdoptError::Unfit(Unfit::Hole | Unfit::NoAccess) => Self::Inval,
            AdoptError::OwnStack | AdoptError::Unfit(_) => Self::Busy,
        }
    }
}

/// Copying for the program fails as `copy_from_user` and `copy_to_user` do: with one error.
impl From<AccessError> for Errno {
    fn from(error: AccessError) -> Self {
        match Self::from(error.error) {
            Self::Busy => Self::Busy,
            _ => Self::Fault,
        }
    }
}

/// What is wrong with a range: `bad`, if it is the range itself.
fn of_range(error: RangeError, bad: Errno) -> Errno {
    match error {
        RangeError::Forking | RangeError::InNotifier | RangeError::Pinned => Errno::Busy,
        _ => bad,
    }
}
