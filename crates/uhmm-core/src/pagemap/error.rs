//! Why device memory could not be had.

use crate::gate::{Refused, takes_refusals};
use std::fmt;

/// Why a device has no page to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocError {
    /// No page is free, or none that is aligned to such an order.
    Full,
    /// The device was removed, or is being removed.
    Removed,
    /// The device is suspended.
    Suspended,
    /// The space has no such device.
    NoSuchDevice,
    /// The device has no such page.
    NoSuchPage,
    /// Pages of the device's type of memory do not migrate.
    DoesNotMigrate,
    /// The process is forking, and the fork does not end; try again.
    Forking,
    /// Called from a notifier, which must not call the space.
    InNotifier,
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the device has no free page of that order",
            Self::Removed => "the device was removed",
            Self::Suspended => "the device is suspended: resume it first",
            Self::NoSuchDevice => "the space has no such device",
            Self::NoSuchPage => "the device has no such page",
            Self::DoesNotMigrate => "pages of that type of device memory do not migrate",
            Self::Forking => Refused::FORKING,
            Self::InNotifier => Refused::IN_NOTIFIER,
        })
    }
}

impl std::error::Error for AllocError {}

takes_refusals!(AllocError);

/// Why a chunk of device memory was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddChunkError {
    /// The device's capacity ends before it.
    NoSuchChunk,
    /// It is there, or still on its way out.
    AlreadyThere,
    /// The device was removed.
    Removed,
    /// The driver has no memory for it.
    Refused,
    /// No address space for its table.
    NoAddressSpace,
    /// The process is forking.
    Forking,
    /// Called from a notifier, which must not call the space.
    InNotifier,
}

impl fmt::Display for AddChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchChunk => "the device's capacity ends before that chunk",
            Self::AlreadyThere => "the chunk is there already, or is still being removed",
            Self::Removed => "the device was removed",
            Self::Refused => "the driver has no memory for another chunk",
            Self::NoAddressSpace => "no address space for the chunk's table (ulimit -v unlimited)",
            Self::Forking => Refused::FORKING,
            Self::InNotifier => Refused::IN_NOTIFIER,
        })
    }
}

impl std::error::Error for AddChunkError {}

takes_refusals!(AddChunkError);
