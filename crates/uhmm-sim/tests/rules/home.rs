//! Pages in memory that the CPU maps, and that are not mapped: at home there, where their device reads them.

use crate::rig::{DEVICE_COHERENT, SYSTEM, Three, Was, migrated, number};
use crate::watcher::{Book, pages, populate};
use uhmm_core::addr::PageData;
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_core::mirror::{Mapped, MirrorError, Need};

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
    // What a program could not touch is no view.
    assert!(three.space.view(DEVICE_COHERENT, pages(11, 1)).is_err());
    // To be written to it comes to RAM, for its device too.
    three.protect(8, 4, true);
    let found = populate(&mirror, 8, 1, Need::WRITE).unwrap();
    assert_eq!(found, [Mapped::ram(true)]);
    // So it does for another device, and for a touch.
    let nobody = three.space.mirror(pages(0, 64), None, Book::default());
    let found = populate(&nobody.unwrap(), 9, 1, Need::READ).unwrap();
    assert_eq!(found, [Mapped::ram(true)]);
    three.check_all();
    assert!((8..12).all(|page| Was::System.is_again(&three, page)));
    three.space.reclaim(&mut Scratch::default());
    let device = &three.space.stats().devices[usize::from(DEVICE_COHERENT)];
    assert_eq!(device.pages.get(), 0);
    three.check_all();
    three.check_invariants();
}
