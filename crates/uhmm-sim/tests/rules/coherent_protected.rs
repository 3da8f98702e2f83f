//! Pages of coherent memory whose protection does not let the program write, or touch them.

use crate::coherent::in_use;
use crate::rig::{COHERENT, DEVICE_COHERENT, DEVICE_PRIVATE, SYSTEM, Three, Was, migrated, number};
use crate::watcher::{Book, pages, populate};
use uhmm_core::addr::PageData;
use uhmm_core::entry::State;
use uhmm_core::mirror::{Mapped, MirrorError, Need};
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

/// A driver may have them on its device all the same: at home there, where the device reads them.
#[test]
fn what_may_not_be_written_goes_to_coherent_memory_for_a_driver_that_says_so() {
    let three = Three::new(64);
    three.write_all(8..12);
    three.protect(8, 4, false);
    let go = |unmapped| {
        let mut migration = three.begin(8, 4, SYSTEM);
        if unmapped {
            migration.allow_unmapped();
        }
        migration.allocate(DEVICE_COHERENT).unwrap();
        migration.copy().pages().finalize()
    };
    assert_eq!(go(false), migrated(0, 4));
    assert!((8..12).all(|page| Was::ReadOnly.is_again(&three, page)));
    assert_eq!(go(true), migrated(4, 0));
    three.check_invariants();
    for page in 8..12 {
        assert!(matches!(three.state(page), State::Private(at) if at.device == DEVICE_COHERENT));
        assert!(!three.mmu().is_present(number(page)));
    }
    // Its device, and no other, reads them there.
    let owner = three.space.owner(DEVICE_COHERENT);
    let mirror = three.space.mirror(pages(0, 64), owner, Book::default());
    let mirror = mirror.unwrap();
    let there = |page| Mapped::Device {
        at: three.on(page),
        write: false,
    };
    let found = populate(&mirror, 8, 4, Need::READ).unwrap();
    assert_eq!(found, [there(8), there(9), there(10), there(11)]);
    for page in 8..12 {
        let (mut table, mut data) = (mirror.lock().unwrap(), PageData::ZERO);
        let (first, second) = data.0.split_at_mut(1000);
        table.read(number(page), 0, first).unwrap();
        table.read(number(page), 1000, second).unwrap();
        three.oracle.check(page, &data);
        let refused = table.write(number(page), 0, &[1]);
        assert_eq!(refused, Err(MirrorError::NotInTable(number(page))));
    }
    let nobody = three.space.mirror(pages(0, 64), None, Book::default());
    let found = populate(&nobody.unwrap(), 8, 1, Need::READ).unwrap();
    assert_eq!(found, [Mapped::ram(true)], "it was brought to RAM");
    // A touch brings a page too, and so does a write of the device's own, once that is allowed.
    three.check(9);
    assert!(Was::System.is_again(&three, 9) || Was::ReadOnly.is_again(&three, 9));
    three.protect(8, 4, true);
    let found = populate(&mirror, 10, 1, Need::WRITE).unwrap();
    assert_eq!(found, [Mapped::ram(true)]);
    // What a program could not touch is no view.
    assert!(three.space.view(DEVICE_COHERENT, pages(11, 1)).is_err());
    assert_eq!(three.to_system(8, 4), migrated(1, 0));
    assert_eq!(in_use(&three, DEVICE_COHERENT), 0);
    three.check_all();
    three.check_invariants();
}
