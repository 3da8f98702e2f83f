//! How a space fares, as plain values: taken at one moment, counter by counter, while the space goes
//! on working. So sums of several may be a few pages off.

use crate::build::Space;
use crate::device_memory::DeviceId;
use crate::size::Bytes;
use std::fmt;
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::device::Standing;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::stats::{DeviceStats, MAX_DEVICES};

/// How a space fares. A page is 4096 bytes; counts go up from zero since the space was built, or, in
/// the child of a fork, since the fork.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Bytes of RAM that the space may use.
    pub ram_budget_bytes: u64,
    /// Bytes of RAM in use now.
    pub ram_bytes: u64,
    /// The most bytes of RAM in use at any time.
    pub ram_peak_bytes: u64,
    /// Faults on pages that had never been touched.
    pub first_touch_faults: u64,
    /// Faults on pages that were on a device.
    pub device_faults: u64,
    /// Faults on pages that were on their way out, and still in RAM.
    pub limbo_faults: u64,
    /// Faults that had been served when they were looked at, or met a page in flight.
    pub stale_faults: u64,
    /// Pages copied to devices.
    pub pages_to_device: u64,
    /// Pages copied from devices to RAM.
    pub pages_to_system: u64,
    /// Pages pushed out without a copy, because a device had their bytes.
    pub clean_evictions: u64,
    /// Pages that have left a full device to make room on it.
    pub pages_evicted: u64,
    /// Pages in RAM now of which a device still has the same bytes.
    pub duplicate_pages: u64,
    /// Pages lost, each of them reported to whoever touches it.
    pub poisoned_pages: u64,
    /// Times that a page could not be taken, because something else holds it (I/O, a fork).
    pub busy_pages: u64,
    /// Times that a fault had to wait for RAM.
    pub reclaim_waits: u64,
    /// Pins of pages taken, a page each. Equal to those released when nothing is pinned.
    pub pins_acquired: u64,
    /// Pins of pages released.
    pub pins_released: u64,
    /// References on pages taken, a page each.
    pub page_gets: u64,
    /// References on pages given back.
    pub page_puts: u64,
    /// Pages that pins or references keep where they are now.
    pub pinned_pages: u64,
    /// Pages made exclusive to a device.
    pub exclusive_pages: u64,
    /// Exclusive pages given back, or taken from the device.
    pub exclusive_ends: u64,
    /// Times that a device's page table was told of a change.
    pub invalidations: u64,
    /// Each device, in the order in which they were added; removed ones included.
    pub devices: Vec<DeviceStatistics>,
}

/// How a device of a space fares.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceStatistics {
    /// Which device.
    pub id: DeviceId,
    /// The kind of device, as it names itself.
    pub kind: &'static str,
    /// The type of its memory.
    pub memory: MemoryType,
    /// How it stands.
    pub standing: Standing,
    /// The most pages that it can be asked to hold.
    pub capacity_pages: u64,
    /// Pages that it holds now.
    pub pages: u64,
    /// The most pages that it held at any time.
    pub pages_peak: u64,
    /// Bytes that they take on the device now.
    pub stored_bytes: u64,
    /// The most bytes taken at any time.
    pub stored_bytes_peak: u64,
}

impl Space {
    /// How the space fares now.
    pub fn statistics(&self) -> Statistics {
        let stats = self.core().stats();
        Statistics {
            ram_budget_bytes: stats.ram_budget_bytes.get(),
            ram_bytes: stats.ram_bytes.get(),
            ram_peak_bytes: stats.ram_peak_bytes.get(),
            first_touch_faults: stats.first_touch_faults.get(),
            device_faults: stats.device_faults.get(),
            limbo_faults: stats.limbo_faults.get(),
            stale_faults: stats.stale_faults.get(),
            pages_to_device: stats.pages_to_device.get(),
            pages_to_system: stats.pages_to_system.get(),
            clean_evictions: stats.clean_evictions.get(),
            pages_evicted: stats.pages_evicted.get(),
            duplicate_pages: stats.duplicate_pages.get(),
            poisoned_pages: stats.poisoned_pages.get(),
            busy_pages: stats.busy_pages.get(),
            reclaim_waits: stats.reclaim_waits.get(),
            pins_acquired: stats.pins_acquired.get(),
            pins_released: stats.pins_released.get(),
            page_gets: stats.page_gets.get(),
            page_puts: stats.page_puts.get(),
            pinned_pages: stats.pinned_pages.get(),
            exclusive_pages: stats.exclusive_pages.get(),
            exclusive_ends: stats.exclusive_ends.get(),
            invalidations: stats.invalidations.get(),
            devices: (0..MAX_DEVICES as u8)
                .zip(&stats.devices)
                .map_while(|(device, stats)| self.device_statistics(device, stats))
                .collect(),
        }
    }

    fn device_statistics(&self, device: u8, stats: &DeviceStats) -> Option<DeviceStatistics> {
        let (info, standing) = self.core().device_info(device)?;
        Some(DeviceStatistics {
            id: DeviceId(device),
            kind: info.kind,
            memory: info.memory,
            standing,
            capacity_pages: info.capacity_pages.into(),
            pages: stats.pages.get(),
            pages_peak: stats.pages_peak.get(),
            stored_bytes: stats.stored_bytes.get(),
            stored_bytes_peak: stats.stored_bytes_peak.get(),
        })
    }
}

impl Statistics {
    /// All faults.
    pub fn faults(&self) -> u64 {
        self.first_touch_faults + self.device_faults + self.limbo_faults + self.stale_faults
    }
}

impl fmt::Display for Statistics {
    /// A few lines for people. Programs read the fields.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "RAM: {} of {}, {} at most",
            Bytes(self.ram_bytes),
            Bytes(self.ram_budget_bytes),
            Bytes(self.ram_peak_bytes)
        )?;
        writeln!(
            f,
            "faults: {} first touches, {} from devices, {} on the way out, {} stale; {} waited for RAM",
            self.first_touch_faults,
            self.device_faults,
            self.limbo_faults,
            self.stale_faults,
            self.reclaim_waits
        )?;
        write!(
            f,
            "pages: {} to devices, {} out without a copy, {} to RAM, {} off full devices; {} busy, {} lost",
            self.pages_to_device,
            self.clean_evictions,
            self.pages_to_system,
            self.pages_evicted,
            self.busy_pages,
            self.poisoned_pages
        )?;
        if self.pins_acquired + self.page_gets > 0 {
            write!(
                f,
                "\npinned: {} pages; {} pins taken, {} released",
                self.pinned_pages, self.pins_acquired, self.pins_released
            )?;
        }
        if self.invalidations > 0 {
            write!(
                f,
                "\nmirrors: told {} times; {} pages made exclusive, {} given back",
                self.invalidations, self.exclusive_pages, self.exclusive_ends
            )?;
        }
        self.devices
            .iter()
            .try_for_each(|device| write!(f, "\n{device}"))
    }
}

impl fmt::Display for DeviceStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (now, peak) = [self.pages, self.pages_peak]
            .map(|n| Bytes(n * PAGE_SIZE as u64))
            .into();
        write!(
            f,
            "device {} ({}): {now} in {}, {peak} in {} at most",
            self.id.0,
            self.kind,
            Bytes(self.stored_bytes),
            Bytes(self.stored_bytes_peak)
        )?;
        match self.standing {
            Standing::Open => Ok(()),
            Standing::Suspended => f.write_str("; suspended"),
            Standing::Ending => f.write_str("; takes nothing any more"),
            Standing::Removed => f.write_str("; removed"),
        }
    }
}
