//! Counters of one space. Plain relaxed atomics: no lock, so the fault path may count.
//!
//! The layout is fixed (`repr(C)`), because `uhmm run` reads it from another process.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One counter, or one gauge with [`Counter::add`] and [`Counter::sub`].
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`, and returns the new value.
    pub fn add(&self, n: u64) -> u64 {
        self.0.fetch_add(n, Relaxed).wrapping_add(n)
    }

    /// Takes `n` away.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// Raises the value to `n` if it is lower.
    pub fn raise(&self, n: u64) {
        if self.get() < n {
            self.0.fetch_max(n, Relaxed);
        }
    }

    /// Sets the value.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The most devices that one space can have.
pub const MAX_DEVICES: usize = 8;

/// Counters of one device within one space.
#[derive(Debug, Default)]
#[repr(C)]
pub struct DeviceStats {
    /// Pages held now.
    pub pages: Counter,
    /// The most pages held at any time.
    pub pages_peak: Counter,
    /// Bytes that they take on the device now.
    pub stored_bytes: Counter,
    /// The most bytes taken at any time.
    pub stored_bytes_peak: Counter,
}

/// Counters of one space.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Stats {
    /// Bytes of RAM that the space may use.
    pub ram_budget_bytes: Counter,
    /// Bytes of RAM in use now: pages mapped by the program, and frames.
    pub ram_bytes: Counter,
    /// The most bytes of RAM in use at any time.
    pub ram_peak_bytes: Counter,
    /// Faults on pages that had never been touched.
    pub first_touch_faults: Counter,
    /// Faults on pages that were on a device.
    pub device_faults: Counter,
    /// Faults on pages in limbo: on their way out, and still in RAM.
    pub limbo_faults: Counter,
    /// Faults that had been served when they were looked at, or met a page in flight.
    pub stale_faults: Counter,
    /// Pages copied to a device.
    pub pages_to_device: Counter,
    /// Pages copied from a device to RAM.
    pub pages_to_system: Counter,
    /// Pages lost by a device, and reported to whoever touches them.
    pub poisoned_pages: Counter,
    /// Pages that could not be taken because something else holds them (pinned for I/O).
    pub busy_pages: Counter,
    /// Times a fault had to wait for the reclaimer.
    pub reclaim_waits: Counter,
    /// Pages in RAM now of which a device still has the same bytes.
    pub duplicate_pages: Counter,
    /// Pages pushed out without a copy, because a device had their bytes.
    pub clean_evictions: Counter,
    /// Pins taken by `pin_pages`, a page each, since the space was built (R12).
    pub pins_acquired: Counter,
    /// Of these: given back.
    pub pins_released: Counter,
    /// References taken by `get_pages`, a page each, since the space was built.
    pub page_gets: Counter,
    /// Of these: given back.
    pub page_puts: Counter,
    /// Pages that pins or references keep where they are now.
    pub pinned_pages: Counter,
    /// Pages made exclusive to a device.
    pub exclusive_pages: Counter,
    /// Exclusive pages given back: touched by the program, pinned, forked, or let go.
    pub exclusive_ends: Counter,
    /// Times a device's page table was told that pages change under it.
    pub invalidations: Counter,
    /// Pages that have left a full device to make room on it.
    pub pages_evicted: Counter,
    /// Each device, in the order in which they are used.
    pub devices: [DeviceStats; MAX_DEVICES],
}
