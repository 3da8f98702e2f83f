//! Much memory at once: migrated to a device and back, beside `memcpy` of as many bytes.

use crate::content;
use crate::error::Error;
use crate::floor::Pages;
use crate::managed::Managed;
use crate::report::Unit;
use crate::rounds::{Pair, Rounds, seconds};
use uhmm::devices::MirrorDevice;
use uhmm::{DeviceId, Place};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType;

/// To the mirror device, whose memory the CPU does not map, and back.
pub(crate) fn private(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    let names = ["bulk_to_device", "bulk_to_system"];
    there_and_back(rounds, MemoryType::Private, names)
}

/// To device memory that the CPU maps, and back.
pub(crate) fn coherent(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    let names = ["bulk_to_coherent", "bulk_from_coherent"];
    there_and_back(rounds, MemoryType::Coherent, names)
}

fn there_and_back(
    rounds: &mut Rounds<'_>,
    memory: MemoryType,
    names: [&'static str; 2],
) -> Result<(), Error> {
    let pages = rounds.size(64 << 10, 8 << 10);
    let device = MirrorDevice::with_memory((2 * pages * PAGE_SIZE) as u64, memory);
    let mut ours = Managed::new(pages, 2 * pages, Box::new(device))?;
    let (mut from, mut to) = (Pages::new(pages)?, Pages::new(pages)?);
    content::fill(from.as_mut_slice(), 0);
    content::fill(ours.as_mut_slice(), 0);
    rounds.run(names, Unit::GigabytesPerSecond, pages, |_| {
        ours.settle();
        let out = seconds(|| ours.migrate(Place::Device(DeviceId(0))))?;
        ours.check_out()?;
        let copied_out = copy(&from, &mut to)?;
        let back = seconds(|| ours.migrate(Place::Ram))?;
        content::check(ours.as_slice(), 0)?;
        let copied_back = copy(&to, &mut from)?;
        content::check(from.as_slice(), 0)?;
        Ok([
            Pair {
                ours: out,
                floor: copied_out,
            },
            Pair {
                ours: back,
                floor: copied_back,
            },
        ])
    })
}

/// Seconds of one `memcpy`.
fn copy(from: &Pages, to: &mut Pages) -> Result<f64, Error> {
    seconds(|| {
        to.as_mut_slice().copy_from_slice(from.as_slice());
        Ok(())
    })
}
