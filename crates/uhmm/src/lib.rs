//! Memory that is larger than its RAM, and knows about devices.
//!
//! A [`Space`] is address space with a budget of RAM and some devices. Memory of it is ordinary memory:
//! slices, read and written by any thread. What is cold leaves RAM for a device (compressed memory, a
//! GPU, a file, whatever implements [`Device`](device::Device)), and comes back by a page fault when it
//! is touched. A program never notices more than time.
//!
//! ```no_run
//! use uhmm::{Builder, devices::Lz4Device};
//!
//! // 64 MiB of RAM, and up to 1 GiB of compressed pages beside it.
//! let space = Builder::new(64 << 20)
//!     .device(Box::new(Lz4Device::new(1 << 30)))
//!     .build()?;
//! let mut numbers = space.slice::<u64>(50_000_000)?;
//! numbers.fill(7);
//! let sum: u64 = numbers.iter().sum();
//! println!("{sum}\n{}", space.statistics());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What there is
//!
//! | to | use |
//! | --- | --- |
//! | have memory | [`Space::slice`] for [plain old data](typed), [`Space::region`] for bytes; both are unmapped when they are dropped |
//! | name a part of it | [`Slice::range`], [`Region::range`]: a [`Span`], which says where its pages are, and sends them elsewhere |
//! | move pages | [`Span::migrate`], [`Region::migrate`] to a [`Place`]; drivers take a migration through its phases with [`Space::migrate_vma`] |
//! | run a kernel of a device on it | [`Region::view`], [`Slice::view`], [`Span::view`]: on the device, all of it, until the [`View`] is dropped |
//! | say how it is used | [`Span::advise`], [`Region::advise`] with a [`Hint`]; [`Region::free_eagerly`] |
//! | keep pages where they are for I/O | [`Region::pin`], [`Region::pin_mut`], [`Space::pin_pages`] |
//! | let a device reach memory by the program's addresses | [`Space::mirror`], which is `unsafe`: the device asks nobody |
//! | read and write memory that may not be there | [`Space::read_bytes`], [`Space::write_bytes`]: an error, where the program would be killed |
//! | manage memory that is mapped already | [`Space::adopt`], at its own address, until the [`Adopted`] is released; [`Space::manage`], on demand, until it is unmapped |
//! | do without privileges | [`Builder::engine`] with [`Engine::Signal`]: threads serve their own faults |
//! | see how it fares | [`Space::statistics`]: counters as plain values, and a few lines for people |
//! | hear what happens | [`Space::events`]: devices, migrations, lost pages, pressure, as they come |
//! | change devices | [`Space::add_device`], [`Space::suspend_device`], [`Space::remove_device`], while programs use their pages |
//! | have address ranges | [`memory`]: map, protect and unmap as the system calls do, which is `unsafe` where a slice could be there |
//!
//! # What holds
//!
//! - **The budget is hard.** RAM and every device full, a touch waits for room, and when there is none for
//!   half a second the process is ended with a message that says so. [`Event::OutOfMemoryNear`] comes
//!   before that.
//! - **Nothing is lost in silence.** A page whose device has lost it is a SIGBUS for whoever touches it,
//!   never zeros or old bytes, and an [`Event::PagePoisoned`].
//! - **Requests are best effort.** A migration leaves pages where they are that others use or have in
//!   hand at that moment; [`Span::usage`] says where they all are then.
//! - **Errors change nothing**, and each says in a line what is wrong and what to do.
//! - **Forks are seen**, by the C library's hooks: both sides have the memory of that moment.
//! - **A device's own methods** serve faults: what they must not do is with
//!   [`Device`](device::Device) and in `docs/adding-a-device.md`.
//!
//! The kernel has to allow `userfaultfd` with `UFFDIO_MOVE` (Linux 6.8); what is missing, `uhmm doctor`
//! names, and how to mend it.
//!
//! # Features
//!
//! `tracing`: `Space::trace_events` hands the events on to the `tracing` crate.

mod access;
mod adopt;
mod build;
mod device_memory;
pub mod events;
mod fork;
mod hint;
#[doc(hidden)]
pub mod internals;
mod manage;
pub mod memory;
pub mod migrate;
pub mod mirror;
pub mod pin;
mod policy;
mod range;
mod region;
pub mod sigbus;
pub mod size;
mod span;
pub mod spec;
pub mod statistics;
#[cfg(feature = "tracing")]
mod tracing;
pub mod typed;
mod view;
mod wanted;

pub use access::AccessError;
pub use adopt::{AdoptError, Adopted, IsAdopted, ReleaseError, Unfit};
pub use build::{BuildError, Builder, Space};
pub use device_memory::*;
pub use events::{Event, Events};
pub use hint::{Hint, HintError};
pub use migrate::{MigrateError, Migrated, Place};
pub use pin::{Pin, PinError, PinFlags, Pinned, PinnedMut};
pub use policy::{Applied, PolicyError};
pub use range::RangeError;
pub use region::{Region, RegionError};
pub use span::{BoundsError, Span};
pub use statistics::{DeviceStatistics, Statistics};
pub use typed::{Pod, Slice};
pub use view::{View, ViewError, Why};

/// Who serves the faults of a space: [`Builder::engine`].
pub use uhmm_linux::engine::{EngineError, Kind as Engine};

/// The devices that come with the library.
pub mod devices {
    pub use uhmm_lz4::Lz4Device;
    pub use uhmm_mirror::MirrorDevice;
}

/// What a device author implements: [`Device`](device::Device), and what its methods take and return.
pub mod device {
    pub use uhmm_core::addr::{DevicePage, PAGE_SIZE, PageData};
    pub use uhmm_core::device::{
        CHUNK_PAGES, CopyFailed, CopyIn, CopyInError, CopyOut, CopyOutError, Device, DeviceInfo,
        Fence, Owner, Standing,
    };
    pub use uhmm_core::memory_type::MemoryType;
}
