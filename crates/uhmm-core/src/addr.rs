//! Pages and ranges of pages, as numbers.
//!
//! Each kind of page number is a type of its own, so that a frame cannot be taken for a device
//! page, nor either of them for a page of the address space.

use std::fmt;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;
/// `log2` of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// The bytes of one page, aligned as memory-mapping calls want them.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct PageData(pub [u8; PAGE_SIZE]);

impl PageData {
    /// A page of zeros.
    pub const ZERO: Self = Self([0; PAGE_SIZE]);
}

impl fmt::Debug for PageData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageData({:02x?}..)", &self.0[..8])
    }
}

/// A page of the address space: its virtual address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(pub u64);

impl PageNo {
    /// The page that holds `address`.
    pub const fn containing(address: usize) -> Self {
        Self((address >> PAGE_SHIFT) as u64)
    }

    /// The address of the page's first byte.
    pub const fn address(self) -> usize {
        (self.0 as usize) << PAGE_SHIFT
    }

    /// The page `n` pages further on.
    pub const fn plus(self, n: usize) -> Self {
        Self(self.0 + n as u64)
    }
}

/// `len` pages of the address space from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// The first page.
    pub start: PageNo,
    /// How many pages; may be zero.
    pub len: usize,
}

impl PageRange {
    /// No pages.
    pub const EMPTY: Self = Self::new(PageNo(0), 0);

    /// Whether some page is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.start.max(other.start) < self.end().min(other.end())
    }

    /// `len` pages from `start` on.
    pub const fn new(start: PageNo, len: usize) -> Self {
        Self { start, len }
    }

    /// The page just past the last.
    pub const fn end(self) -> PageNo {
        self.start.plus(self.len)
    }

    /// Whether `page` lies in the range.
    pub fn contains(self, page: PageNo) -> bool {
        (self.start..self.end()).contains(&page)
    }

    /// Whether all of `other` lies in the range, wherever `other` ends.
    pub fn covers(self, other: Self) -> bool {
        let before = other.start.0.checked_sub(self.start.0);
        let rest = before.and_then(|before| (self.len as u64).checked_sub(before));
        rest.is_some_and(|rest| other.len as u64 <= rest)
    }

    /// The range's size in bytes.
    pub const fn bytes(self) -> usize {
        self.len << PAGE_SHIFT
    }

    /// The pages, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = PageNo> + Clone {
        (self.start.0..self.end().0).map(PageNo)
    }
}

/// A device of a space: its place in the order in which devices were added, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u8);

impl DeviceId {
    /// A page of this device.
    pub const fn page(self, page: u32) -> DeviceAddr {
        DeviceAddr {
            device: self.0,
            page: DevicePage(page),
        }
    }
}

/// Where pages are, or are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// RAM.
    Ram,
    /// A device.
    Device(DeviceId),
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}", self.0)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ram => f.write_str("RAM"),
            Self::Device(device) => device.fmt(f),
        }
    }
}

/// A slot of the frame pool: a page of the pool's own mapping that may hold a frame (a physical
/// page that no program maps). Only a number; [`crate::frames::Frame`] is the right to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameNo(pub u32);

impl FrameNo {
    /// The slot `n` slots further on.
    pub const fn plus(self, n: usize) -> Self {
        Self(self.0 + n as u32)
    }
}

/// A page of one device, numbered from 0 to the device's capacity. This is what a driver sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePage(pub u32);

impl DevicePage {
    /// The page `n` pages further on.
    pub const fn plus(self, n: usize) -> Self {
        Self(self.0 + n as u32)
    }
}

/// A page of one of the space's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceAddr {
    /// Which device, counted in the space's order.
    pub device: u8,
    /// Which of its pages.
    pub page: DevicePage,
}

impl DeviceAddr {
    /// The page `n` pages further on, on the same device.
    pub const fn plus(self, n: usize) -> Self {
        Self {
            device: self.device,
            page: self.page.plus(n),
        }
    }
}

/// Where a frame is while no program maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In a slot of the frame pool: ordinary RAM.
    Pool(FrameNo),
    /// In the arena of a device whose memory the CPU can map: the frame *is* that device page, and
    /// goes back to this slot whenever it leaves the program's mapping.
    Arena(DeviceAddr),
}

impl Home {
    /// The slot `n` slots further on.
    pub const fn plus(self, n: usize) -> Self {
        match self {
            Self::Pool(slot) => Self::Pool(slot.plus(n)),
            Self::Arena(at) => Self::Arena(at.plus(n)),
        }
    }
}
