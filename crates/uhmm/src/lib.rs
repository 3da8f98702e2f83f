//! Heterogeneous memory management for user space: the public library.
//!
//! Build a [`Space`] with a budget of RAM and some devices, and map [`Region`]s in it. Their cold
//! pages go to the devices, and come back when they are touched:
//!
//! ```no_run
//! let space = uhmm::Builder::new(64 << 20)
//!     .device(Box::new(uhmm::devices::Lz4Device::new(1 << 30)))
//!     .build()?;
//! let mut region = space.region(256 << 20)?;
//! region.as_mut_slice().fill(7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod build;
mod device_memory;
mod fork;
#[doc(hidden)]
pub mod internals;
pub mod memory;
pub mod migrate;
pub mod mirror;
pub mod pin;
mod policy;
mod range;
mod region;
pub mod size;
pub mod spec;

pub use build::{BuildError, Builder, Space};
pub use device_memory::*;
pub use migrate::{MigrateError, Migrated, Place};
pub use pin::{Pin, PinError, PinFlags, Pinned, PinnedMut};
pub use policy::{Applied, PolicyError};
pub use range::RangeError;
pub use region::Region;

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
        Fence, Owner,
    };
    pub use uhmm_core::memory_type::MemoryType;
}
