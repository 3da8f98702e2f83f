//! What HMM needs of a device: the trait that a device author implements.
//!
//! The core does the rest (page tables, references, races, eviction): a device only stores pages
//! under numbers that it is given. Five methods, and a device that works is under 100 lines. What
//! else a device may be good at is a capability, with a default that works.

use crate::addr::{DevicePage, PageData};
use crate::memory_type::MemoryType;
use std::fmt;

/// Pages in a chunk of device memory unless a device says otherwise: 256 MiB.
pub const CHUNK_PAGES: u32 = 1 << 16;

/// Who device pages belong to: the driver's name for itself. A migration of pages that are on a
/// device selects by it (R6), as `pgmap_owner` does in Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

/// What a device is, fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The kind of device, as in `--device KIND`: `"lz4"`, `"mirror"`.
    pub kind: &'static str,
    /// How many pages the device can be asked to hold at once; page numbers stay below it. A
    /// device that compresses names more than fits uncompressed, and answers
    /// [`CopyInError::Full`] when its memory is used up.
    pub capacity_pages: u32,
    /// The type of its memory.
    pub memory: MemoryType,
    /// Whose its pages are; `None` makes them the device's own, and nobody else's.
    pub owner: Option<Owner>,
    /// How many pages the device's memory grows by: a power of two, at least 512 (2 MiB).
    pub chunk_pages: u32,
    /// Of memory that the CPU maps: the NUMA node that it is.
    pub node: Option<u32>,
    /// How many pages are worth copying with one call: 1 for a device that copies one by one.
    pub batch_pages: u16,
}

impl DeviceInfo {
    /// A device with private memory that copies pages one by one.
    pub const fn new(kind: &'static str, capacity_pages: u32) -> Self {
        Self {
            kind,
            capacity_pages,
            memory: MemoryType::Private,
            owner: None,
            chunk_pages: CHUNK_PAGES,
            node: None,
            batch_pages: 1,
        }
    }

    /// With memory of another type.
    #[must_use]
    pub const fn memory(self, memory: MemoryType) -> Self {
        Self { memory, ..self }
    }

    /// With an owner that other devices may have too.
    #[must_use]
    pub const fn owner(self, owner: Owner) -> Self {
        Self {
            owner: Some(owner),
            ..self
        }
    }

    /// With chunks of `chunk_pages` pages: a power of two, at least 512.
    #[must_use]
    pub const fn chunk_pages(self, chunk_pages: u32) -> Self {
        Self {
            chunk_pages,
            ..self
        }
    }

    /// With memory on NUMA node `node`.
    #[must_use]
    pub const fn node(self, node: u32) -> Self {
        Self {
            node: Some(node),
            ..self
        }
    }

    /// With `batch_pages` pages a copy.
    #[must_use]
    pub const fn batch_pages(self, batch_pages: u16) -> Self {
        Self {
            batch_pages,
            ..self
        }
    }
}

/// How a device of a space stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It takes pages.
    Open,
    /// It takes none until it is resumed.
    Suspended,
    /// It takes none any more: it has failed, or is being removed. Pages may be left on it.
    Ending,
    /// It was removed: all of its memory has been given back.
    Removed,
}

/// Why a page could not be copied in. The page stays where it was: nothing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyInError {
    /// No room now. Worth trying again once pages have been freed.
    Full,
    /// The device failed, and will go on failing.
    Dead,
}

/// Why a page could not be copied out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyOutError {
    /// Failed this time; the page is still there. The core tries again.
    Retry,
    /// The device has lost this page for good. The page becomes poisoned (R9): a touch is a
    /// SIGBUS, never zeros.
    Lost,
}

impl fmt::Display for CopyInError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the device is full",
            Self::Dead => "the device has failed",
        })
    }
}

impl fmt::Display for CopyOutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Retry => "the device could not read the page this time",
            Self::Lost => "the device has lost the page",
        })
    }
}

impl std::error::Error for CopyInError {}
impl std::error::Error for CopyOutError {}

/// One page of a batch to be copied in.
#[derive(Debug)]
pub struct CopyIn<'a> {
    /// The page to store it as.
    pub page: DevicePage,
    /// The bytes.
    pub from: &'a PageData,
    /// What came of it.
    pub result: Result<(), CopyInError>,
}

/// One page of a batch to be copied out.
#[derive(Debug)]
pub struct CopyOut<'a> {
    /// The page.
    pub page: DevicePage,
    /// Where its bytes go.
    pub to: &'a mut PageData,
    /// What came of it.
    pub result: Result<(), CopyOutError>,
}

/// Copies that a device has started, and that are not done yet. Until [`Fence::wait`] returns, the
/// core keeps the memory that they read or write where it is, and does not touch it.
pub trait Fence: Send {
    /// Waits for all of them. On an error none of the batch counts: pages copied in are not stored,
    /// pages copied out are still there and will be asked for again.
    ///
    /// # Errors
    /// [`CopyFailed`].
    fn wait(&mut self) -> Result<(), CopyFailed>;
}

/// A batch of copies did not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFailed;

/// A device: somewhere that pages are kept under numbers.
///
/// A device with *private* memory (a compressed store, a file, a GPU) implements all of the first
/// five methods. For memory that the CPU maps, [`info`](Device::info) says so, and the core keeps the
/// pages in an arena of frames and copies them itself: such a device has no use for `copy_in` and
/// `copy_out`.
///
/// # What the core promises
///
/// - A page is copied in once, then copied out any number of times, then freed once; then its
///   number may be used again. `copy_in` never meets a number that is in use.
/// - For one page, `copy_in`, `copy_out` and `free` never overlap. For different pages all three
///   run at the same time on several threads.
///
/// # What a device promises
///
/// - `copy_out` writes the exact bytes that `copy_in` was given, or returns an error.
/// - `copy_out` and `free` run in the fault path (R18): they do not allocate from the heap they
///   serve, do not log, are bounded, and take no lock that an application thread may hold.
/// - No method touches managed memory other than the page it was handed.
///
/// A method that panics is a device that has failed: a copy in is [`CopyInError::Dead`], a copy out
/// is tried again and then [`CopyOutError::Lost`].
pub trait Device: Send + Sync {
    /// What this device is. The answer never changes.
    fn info(&self) -> DeviceInfo;

    /// Stores `from` as `page`. On an error nothing is stored and `page` stays free.
    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError>;

    /// Copies what is stored as `page` to `to`. On an error what `to` holds is not used.
    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError>;

    /// Forgets what is stored as `page`. Its memory is used again, or given back.
    fn free(&self, page: DevicePage);

    /// Bytes of memory that the stored pages take on the device now, its own waste included.
    fn stored_bytes(&self) -> u64;

    /// Capability: copies many pages in. A device with a copy engine starts the copies and returns a
    /// fence; what it can say at once is in each `result`.
    fn copy_in_batch(&self, copies: &mut [CopyIn<'_>]) -> Option<Box<dyn Fence>> {
        for copy in copies {
            copy.result = self.copy_in(copy.page, copy.from);
        }
        None
    }

    /// Capability: copies many pages out, as [`copy_in_batch`](Device::copy_in_batch).
    fn copy_out_batch(&self, copies: &mut [CopyOut<'_>]) -> Option<Box<dyn Fence>> {
        for copy in copies {
            copy.result = self.copy_out(copy.page, copy.to);
        }
        None
    }

    /// Capability: where the device itself finds `page`, which is in use: the address that its programs
    /// take, in whatever address space they run in. `None`: they take numbers of pages.
    fn address(&self, page: DevicePage) -> Option<u64> {
        let _ = page;
        None
    }

    /// Capability: the device's memory grows by `pages` pages from `first` on. `false`: not now.
    fn add_chunk(&self, first: DevicePage, pages: u32) -> bool {
        let _ = (first, pages);
        true
    }

    /// Capability: the pages that [`add_chunk`](Device::add_chunk) added are gone; all are free.
    fn remove_chunk(&self, first: DevicePage, pages: u32) {
        let _ = (first, pages);
    }
}
