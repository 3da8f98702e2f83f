//! Errors of the core.

use crate::gate::{Refused, takes_refusals};
use crate::space::MIN_BUDGET_PAGES;
use crate::stats::MAX_DEVICES;
use std::fmt;

/// Why a space could not be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The budget is below [`MIN_BUDGET_PAGES`].
    BudgetTooSmall {
        /// The budget asked for, in pages.
        pages: usize,
    },
    /// More than [`MAX_DEVICES`] devices.
    TooManyDevices {
        /// How many were given.
        devices: usize,
    },
    /// As many devices as a space can have were added to it, removed ones included.
    NoPlace,
    /// No room in the address space for the tables.
    NoAddressSpace,
    /// The process is forking, and the fork does not end; try again.
    Forking,
    /// Called from a notifier, which must not call the space.
    InNotifier,
    /// A device wants chunks of a size that is no power of two, or below 512 pages.
    ChunkPages {
        /// The size asked for, in pages.
        pages: u32,
    },
    /// A device's memory is on a NUMA node that the machine does not have.
    NoNode {
        /// The node's number.
        node: u32,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BudgetTooSmall { pages } => write!(
                f,
                "a budget of {} KiB is too small: give at least {} KiB",
                pages * 4,
                MIN_BUDGET_PAGES * 4
            ),
            Self::TooManyDevices { devices } => {
                write!(
                    f,
                    "{devices} devices are too many: give at most {MAX_DEVICES}"
                )
            }
            Self::NoPlace => write!(
                f,
                "a space takes {MAX_DEVICES} devices in its life, removed ones included: build a new one"
            ),
            Self::Forking => f.write_str(Refused::FORKING),
            Self::InNotifier => f.write_str(Refused::IN_NOTIFIER),
            Self::NoAddressSpace => f.write_str(
                "no address space for the page tables: raise the limit on virtual memory \
                 (ulimit -v unlimited)",
            ),
            Self::ChunkPages { pages } => write!(
                f,
                "chunks of {pages} pages do not work: give a power of two, at least 512"
            ),
            Self::NoNode { node } => write!(
                f,
                "this machine has no NUMA node {node}: leave the node out to let ordinary memory \
                 stand in, or see /sys/devices/system/node"
            ),
        }
    }
}

impl std::error::Error for BuildError {}

takes_refusals!(BuildError);

/// Why an operation on a range was not done. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// Some of the range is not managed by this space.
    NotManaged,
    /// The program is forking, and the fork does not end; try again.
    Forking,
    /// Called from a notifier, which must not call the space.
    InNotifier,
    /// Some of the range is pinned: it is neither dropped nor moved until the pins are released.
    Pinned,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotManaged => "the range is not managed by this space",
            Self::Forking => Refused::FORKING,
            Self::InNotifier => Refused::IN_NOTIFIER,
            Self::Pinned => "some of the range is pinned: release the pins first",
        })
    }
}

impl std::error::Error for RangeError {}

takes_refusals!(RangeError);
