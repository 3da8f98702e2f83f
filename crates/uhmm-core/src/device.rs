//! What HMM needs of a device: the trait that a device author implements.
//!
//! The core does the rest (page tables, references, races, eviction): a device only stores pages
//! under numbers that it is given. Five methods, and a device that works is under 100 lines.

use crate::addr::{DevicePage, PageData};
use std::fmt;

/// What a device is, fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The kind of device, as in `--device KIND`: `"lz4"`, `"mirror"`.
    pub kind: &'static str,
    /// How many pages the device can be asked to hold at once; page numbers stay below it. A
    /// device that compresses names more than fits uncompressed, and answers
    /// [`CopyInError::Full`] when its memory is used up.
    pub capacity_pages: u32,
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

/// Memory that the CPU cannot map (device-private memory): a compressed store, a file, a GPU.
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
}
