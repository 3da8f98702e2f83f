//! The driver: it adds its devices to a space, and opens them.

use crate::device::Device;
use crate::errno::Errno;
use crate::file::File;
use crate::gup::Gup;
use crate::process::Process;
use uhmm::{BuildError, DeviceId};

/// How many devices there are: 0 and 1 with private memory, 2 and 3 with coherent memory.
pub const UNITS: usize = 4;

/// How much memory the devices have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of each device with private memory.
    pub private: u64,
    /// Bytes of each device with coherent memory.
    pub coherent: u64,
}

impl Default for Sizes {
    /// A gigabyte each. Memory that is not used costs nothing.
    fn default() -> Self {
        Self {
            private: 1 << 30,
            coherent: 1 << 30,
        }
    }
}

/// A device as its space knows it.
#[derive(Clone)]
pub(crate) struct Unit {
    pub(crate) id: DeviceId,
    pub(crate) device: Device,
}

/// The four devices of a space.
///
/// The child of a fork has them too, with the memory of that moment, and opens its own files.
pub struct Driver<'a> {
    process: Process<'a>,
    units: [Unit; UNITS],
}

impl<'a> Driver<'a> {
    /// Adds the devices to the space of `process`.
    ///
    /// # Errors
    /// [`BuildError`]; devices that were added before the one that cannot be are left in the space.
    pub fn new(process: Process<'a>, sizes: Sizes) -> Result<Self, BuildError> {
        let add = |device: Device| {
            let id = process.space().add_device(Box::new(device.clone()))?;
            Ok::<_, BuildError>(Unit { id, device })
        };
        let units = [
            add(Device::private(sizes.private))?,
            add(Device::private(sizes.private))?,
            add(Device::coherent(sizes.coherent))?,
            add(Device::coherent(sizes.coherent))?,
        ];
        Ok(Self { process, units })
    }

    /// What the space calls a device.
    pub fn id(&self, unit: usize) -> Option<DeviceId> {
        Some(self.units.get(unit)?.id)
    }

    /// Opens a device: it has a page table over all of the process's memory until the file is dropped. Two
    /// files of one device have two tables.
    ///
    /// # Errors
    /// [`Errno::NoDev`]; or why there can be no mirror now.
    pub fn open(&self, unit: usize) -> Result<File<'a>, Errno> {
        let unit = self.units.get(unit).ok_or(Errno::NoDev)?;
        File::open(self.process, unit.clone())
    }

    /// Opens what pins memory.
    ///
    /// # Errors
    /// Why there can be no mirror now.
    pub fn open_gup(&self) -> Result<Gup<'a>, Errno> {
        Gup::open(self.process)
    }
}
