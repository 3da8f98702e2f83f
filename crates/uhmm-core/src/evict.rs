//! Eviction of a whole device, without knowing who maps its pages (R8, R9).

use crate::addr::DevicePage;
use crate::entry::{DeviceAddr, State};
use crate::fault::Scratch;
use crate::mmu::Mmu;
use crate::space::Space;
use std::fmt;
use std::time::{Duration, Instant};

/// Why a device could not be removed in time. It stays dying: nothing new goes to it, and another
/// call goes on where this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StillInUse {
    /// Pages still on the device.
    pub pages: usize,
}

impl fmt::Display for StillInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} pages are still on the device; try again with more time",
            self.pages
        )
    }
}

impl std::error::Error for StillInUse {}

impl<M: Mmu> Space<M> {
    /// Removes a device while programs use its pages: kills its pagemap, so that nothing new comes,
    /// then brings every page back to RAM, or onward to the other devices by way of RAM, until its
    /// last page is free (R2). It waits for RAM where there is none (R9). For internal threads.
    ///
    /// # Errors
    /// [`StillInUse`] when `patience` is over first.
    pub fn remove_device(
        &self,
        device: usize,
        patience: Duration,
        scratch: &mut Scratch,
    ) -> Result<(), StillInUse> {
        let start = Instant::now();
        let pagemap = &self.devices[device];
        pagemap.kill();
        loop {
            for page in (0..pagemap.high_water()).map(DevicePage) {
                let at = DeviceAddr {
                    device: device as u8,
                    page,
                };
                // The owner may change under the look; the fault looks again by itself.
                if let Some((owner, _)) = pagemap.owner(page)
                    && self.state(owner) == State::Private(at)
                {
                    self.fault(owner, scratch);
                }
            }
            if let Some(_pass) = self.gate.enter(&self.mmu) {
                pagemap.free_buried(self.device_stats(device as u8));
            }
            if pagemap.references() == 0 {
                return Ok(());
            }
            if start.elapsed() > patience {
                return Err(StillInUse {
                    pages: pagemap.in_use(),
                });
            }
            self.reclaim(scratch);
            std::thread::yield_now();
        }
    }
}
