//! Much memory at once: out to the mirror device and back, beside `memcpy` of as many bytes.

use crate::content::{self, word};
use crate::error::Error;
use crate::floor::Pages;
use crate::managed::Managed;
use crate::report::Unit;
use crate::rounds::{Pair, Rounds, seconds};
use uhmm::devices::MirrorDevice;
use uhmm_core::addr::PAGE_SIZE;

/// Out by pushing everything out; back by a touch of each page in order, which is what a program
/// can do to get its memory back.
pub(crate) fn there_and_back(rounds: &mut Rounds<'_>) -> Result<(), Error> {
    let pages = rounds.size(64 << 10, 8 << 10);
    let device = MirrorDevice::new((2 * pages * PAGE_SIZE) as u64);
    let mut ours = Managed::new(pages, 2 * pages, Box::new(device))?;
    let (mut from, mut to) = (Pages::new(pages)?, Pages::new(pages)?);
    content::fill(from.as_mut_slice(), 0);
    let order = content::in_order(pages);
    let names = ["bulk_to_device", "bulk_to_system"];
    rounds.run(names, Unit::GigabytesPerSecond, pages, |_| {
        // Pages that nobody has touched since they were filled: none has a second chance to lose.
        ours.clear()?;
        content::fill(ours.as_mut_slice(), 0);
        ours.settle();
        let out = seconds(|| {
            ours.push_out();
            Ok(())
        })?;
        ours.check_out()?;
        let copied_out = copy(&from, &mut to)?;
        let back = seconds(|| content::read_words(ours.as_slice(), &order, |page| word(page, 0)))?;
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
