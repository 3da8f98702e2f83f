//! Pages of coherent memory whose protection does not let the program write, or touch them.

use crate::rig::{COHERENT, DEVICE_PRIVATE, SYSTEM, Three, Was, migrated, number};
use uhmm_sim::Fault;

pub(crate) fn every_kind() -> uhmm_core::migrate::Select {
    SYSTEM | COHERENT | crate::rig::PRIVATE
}

/// The space ends for a page at its protection, not at its device.
#[test]
fn r7_a_coherent_page_keeps_its_protection_wherever_it_goes() {
    let three = Three::new(64);
    Was::ReadOnlyCoherent.make(&three, 8, 4);
    for page in 8..12 {
        three.check(page);
        let written = three.mmu().touch_write(number(page), |_| ());
        assert_eq!(written, Err(Fault::Protected));
    }
    assert_eq!(three.to_device(8, 4, DEVICE_PRIVATE), migrated(4, 0));
    assert_eq!(three.try_write(8), Err(Fault::Protected));
    (8..12).for_each(|page| three.check(page));
    three.protect(8, 4, true);
    (8..12).for_each(|page| assert_eq!(three.try_write(page), Ok(0)));
    three.check_all();
    three.check_invariants();
}
