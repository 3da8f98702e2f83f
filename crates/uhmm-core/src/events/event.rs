//! What can happen, in values and in words for people.

use crate::addr::{DeviceAddr, DeviceId, PageRange, Place};
use crate::failure::Failure;
use crate::migrate::{Destination, From, Migrated, Page};
use std::fmt;
use std::time::Duration;

/// Something that has happened. Addresses and lengths are in bytes, pages have 4096 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// So many events were told faster than this listener looked, and are not told to it.
    Lost(u64),
    /// A migration that was asked for has moved pages. Those that faults and reclaim move are counted
    /// in the statistics.
    Migrated {
        /// The address of the first page that went.
        address: usize,
        /// Pages that went, perhaps not side by side.
        pages: usize,
        /// Pages that stayed: in use by others, or without room.
        left: usize,
        /// Where the first page was. Pages that were never touched count as in RAM.
        from: Place,
        /// Where the first page is now.
        to: Place,
    },
    /// All pages are being brought off a device, or off a chunk of it.
    EvictionBegan {
        /// Which device.
        device: DeviceId,
        /// Which of its chunks; `None`: all.
        chunk: Option<u32>,
    },
    /// The end of that.
    EvictionEnded {
        /// Which device.
        device: DeviceId,
        /// Which of its chunks; `None`: all.
        chunk: Option<u32>,
        /// Pages that are still in use there, because the time was over.
        left: usize,
    },
    /// A device was added.
    DeviceAdded(DeviceId),
    /// A device takes no pages until it is resumed.
    DeviceSuspended(DeviceId),
    /// A device takes pages again.
    DeviceResumed(DeviceId),
    /// A device was removed: nothing is left on it.
    DeviceRemoved(DeviceId),
    /// A device has failed: nothing new goes there.
    DeviceFailed(DeviceId),
    /// A device's memory has grown by a chunk.
    ChunkAdded {
        /// Which device.
        device: DeviceId,
        /// Which of its chunks.
        chunk: u32,
    },
    /// A chunk of a device's memory is gone.
    ChunkRemoved {
        /// Which device.
        device: DeviceId,
        /// Which of its chunks.
        chunk: u32,
    },
    /// A page is lost: a touch of it is a SIGBUS.
    PagePoisoned {
        /// Its address.
        address: usize,
    },
    /// The memory of a page has failed.
    MemoryFailure {
        /// The address of the page.
        address: usize,
        /// What became of it.
        outcome: Failure,
    },
    /// The memory of a device page has failed.
    DeviceMemoryFailure {
        /// The device page.
        at: DeviceAddr,
        /// What became of it.
        outcome: Failure,
    },
    /// RAM is short: cold pages are being pushed out.
    ReclaimBegan,
    /// There is enough RAM again.
    ReclaimEnded {
        /// Pages that went to devices meanwhile, for whatever reason.
        pages: u64,
    },
    /// Threads wait for RAM, and none could be won just now.
    ReclaimStuck,
    /// Threads have waited for RAM in vain for half of the time after which the process is ended.
    OutOfMemoryNear,
    /// The process has forked, and this is the parent.
    Forked,
    /// The process has forked, and this is the child.
    ForkedHere,
    /// An address range was mapped.
    Mapped {
        /// Its address.
        address: usize,
        /// Bytes.
        len: usize,
    },
    /// An address range, or part of one, was unmapped.
    Unmapped {
        /// Its address.
        address: usize,
        /// Bytes.
        len: usize,
    },
}

/// An event, and when it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Time since the space was built.
    pub at: Duration,
    /// What has happened.
    pub event: Event,
}

impl Event {
    /// What a migration came to, the first of whose pages was `first`; `None`: it has moved nothing.
    pub(crate) fn migrated(first: Option<Page>, done: Migrated) -> Option<Self> {
        let place = |at: DeviceAddr| Place::Device(DeviceId(at.device));
        let first = first.filter(|_| done.migrated > 0)?;
        Some(Self::Migrated {
            address: first.page.address(),
            pages: done.migrated,
            left: done.left,
            from: match first.source.from {
                From::Hole | From::System => Place::Ram,
                From::Device(at) => place(at),
            },
            to: match first.destination {
                Some(Destination::Device(at)) => place(at),
                _ => Place::Ram,
            },
        })
    }

    /// A device, or a chunk of it, is being emptied.
    pub(crate) fn eviction_began(device: u8, chunk: Option<usize>) -> Self {
        Self::EvictionBegan {
            device: DeviceId(device),
            chunk: chunk.map(|chunk| chunk as u32),
        }
    }

    /// The same, at its end.
    pub(crate) fn eviction_ended(device: u8, chunk: Option<usize>, left: usize) -> Self {
        Self::EvictionEnded {
            device: DeviceId(device),
            chunk: chunk.map(|chunk| chunk as u32),
            left,
        }
    }

    /// Pages were mapped.
    pub fn mapped(pages: PageRange) -> Self {
        let (address, len) = (pages.start.address(), pages.bytes());
        Self::Mapped { address, len }
    }

    /// Pages were unmapped.
    pub fn unmapped(pages: PageRange) -> Self {
        let (address, len) = (pages.start.address(), pages.bytes());
        Self::Unmapped { address, len }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(events) => write!(f, "{events} events were told too fast, and are lost"),
            Self::Migrated {
                address,
                pages,
                left,
                from,
                to,
            } => write!(
                f,
                "{pages} pages from {address:#x} on went from {from} to {to}, {left} stayed"
            ),
            Self::EvictionBegan { device, chunk } => {
                write!(f, "{} is being emptied", Part(*device, *chunk))
            }
            Self::EvictionEnded {
                device,
                chunk,
                left: 0,
            } => write!(f, "{} was emptied", Part(*device, *chunk)),
            Self::EvictionEnded {
                device,
                chunk,
                left,
            } => write!(
                f,
                "{} was not emptied in time: {left} pages are left",
                Part(*device, *chunk)
            ),
            Self::DeviceAdded(device) => write!(f, "{device} was added"),
            Self::DeviceSuspended(device) => write!(f, "{device} was suspended"),
            Self::DeviceResumed(device) => write!(f, "{device} was resumed"),
            Self::DeviceRemoved(device) => write!(f, "{device} was removed"),
            Self::DeviceFailed(device) => write!(f, "{device} has failed"),
            Self::ChunkAdded { device, chunk } => {
                write!(f, "{} was added", Part(*device, Some(*chunk)))
            }
            Self::ChunkRemoved { device, chunk } => {
                write!(f, "{} was removed", Part(*device, Some(*chunk)))
            }
            Self::PagePoisoned { address } => write!(f, "the page at {address:#x} is lost"),
            Self::MemoryFailure { address, outcome } => {
                write!(
                    f,
                    "the memory of the page at {address:#x} has failed: {outcome}"
                )
            }
            Self::DeviceMemoryFailure { at, outcome } => write!(
                f,
                "the memory of page {} of {} has failed: {outcome}",
                at.page.0,
                DeviceId(at.device)
            ),
            Self::ReclaimBegan => f.write_str("RAM is short: cold pages go to the devices"),
            Self::ReclaimEnded { pages } => {
                write!(f, "there is enough RAM again: {pages} pages have gone")
            }
            Self::ReclaimStuck => f.write_str("threads wait for RAM, and none could be won"),
            Self::OutOfMemoryNear => {
                f.write_str("RAM and every device are full: the process is about to be ended")
            }
            Self::Forked => f.write_str("the process has forked"),
            Self::ForkedHere => f.write_str("this is the child of a fork"),
            Self::Mapped { address, len } => write!(f, "{len} bytes at {address:#x} were mapped"),
            Self::Unmapped { address, len } => {
                write!(f, "{len} bytes at {address:#x} were unmapped")
            }
        }
    }
}

/// A device, or a chunk of it.
struct Part(DeviceId, Option<u32>);

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(chunk) => write!(f, "chunk {chunk} of {}", self.0),
            None => self.0.fmt(f),
        }
    }
}

impl fmt::Display for Told {
    /// The time in seconds, and what has happened.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6} s: {}", self.at.as_secs_f64(), self.event)
    }
}
