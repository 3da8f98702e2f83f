//! Copies that take their time, or fail: fences, and drivers that panic.

use crate::migrate_vma::*;
use crate::rig::{Call as Driver, DEVICE_PRIVATE, SYSTEM, Three, Was, migrated};
use uhmm_core::AllocError;
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_sim::Fault;

#[test]
fn r5_a_copy_counts_once_its_fence_says_so() {
    let three = Three::with_batch(64, 16);
    three.private.set_fences(true);
    three.write_all(0..20);
    let mut migration = three.begin(0, 20, SYSTEM);
    assert_eq!(migration.allocate(DEVICE_PRIVATE), Ok(20));
    let installed = migration.copy().pages();
    assert_eq!(three.private.started(), 20);
    for page in 0..20 {
        assert_eq!(three.state(page), State::Migrating);
    }
    assert_eq!(installed.finalize(), migrated(20, 0));
    assert_eq!((three.private.started(), three.private.stored()), (0, 20));
    three.check_invariants();
    three.check_all();
}

#[test]
fn r5_a_fence_that_fails_leaves_its_pages_where_they_were() {
    for was in Was::ALL {
        let three = Three::with_batch(64, 16);
        three.private.set_fences(true);
        was.make(&three, 0, 8);
        let freed = three.private.freed().len();
        let stored = three.private.stored();
        if was == Was::Private {
            // From one page of the device to another: the fence of the copy out comes first.
            three.private.fail_fences(2);
        } else {
            three.private.fail_fences(1);
        }
        let done = three.to_device(0, 8, DEVICE_PRIVATE);
        assert_eq!(done, migrated(0, 8), "{was:?}");
        assert!((0..8).all(|page| was.is_again(&three, page)), "{was:?}");
        assert_eq!(
            three.private.freed().len(),
            freed,
            "{was:?}: what is not stored is not freed"
        );
        assert_eq!(three.private.stored(), stored);
        three.check_invariants();
        use_pages(&three, 0, 8, was.is_writable());
        three.check_invariants();
    }
}

#[test]
fn r5_of_two_fences_the_one_that_fails_decides_for_its_own() {
    let three = Three::with_batch(512, 16);
    three.private.set_fences(true);
    three.write_all(0..200);
    three.private.fail_fences(1);
    let done = three.to_device(0, 200, DEVICE_PRIVATE);
    assert_eq!(done.migrated + done.left, 200);
    assert!(done.migrated > 0 && done.left > 0, "{done:?}");
    assert_eq!(three.private.stored(), done.migrated);
    three.check_invariants();
    three.check_all();
    three.check_invariants();
}

#[test]
fn r5_a_dropped_migration_waits_for_its_fence() {
    for after in [After::Copy, After::Pages] {
        for fails in [0, 1] {
            let three = Three::with_batch(64, 16);
            three.private.set_fences(true);
            three.private.fail_fences(fails);
            three.write_all(0..8);
            // The device says if a page is freed, or used again, whose copy goes on.
            drop_after(three.begin(0, 8, SYSTEM), To::Private, after);
            assert_eq!((three.private.started(), three.private.stored()), (0, 0));
            assert_eq!(three.private.freed().len(), 8 * (1 - fails));
            three.check_invariants();
            assert!((0..8).all(|page| Was::System.is(&three, page)));
            three.check_all();
        }
    }
}

#[test]
fn r5_copies_out_with_a_fence_that_fails_are_made_again() {
    let three = Three::with_batch(64, 16);
    Was::Private.make(&three, 0, 8);
    three.private.set_fences(true);
    three.private.fail_fences(1);
    assert_eq!(three.to_system(0, 8), migrated(8, 0));
    three.check_invariants();
    three.check_all();
}

#[test]
fn r5_a_driver_that_panics_in_a_copy_loses_nothing() {
    for batch in [1, 16] {
        for was in Was::ALL {
            let three = Three::with_batch(64, batch);
            was.make(&three, 0, 4);
            three.private.panic_in(Driver::CopyIn);
            let done = three.to_device(0, 4, DEVICE_PRIVATE);
            assert_eq!(three.private.steps_left(), 0);
            assert!(done.left >= 1, "{was:?}: {done:?}");
            three.check_invariants();
            use_pages(&three, 0, 4, was.is_writable());
            // It has failed: nothing comes to it any more, and what was there leaves it.
            three.write(40);
            let mut migration = three.begin(40, 1, SYSTEM);
            assert_eq!(
                migration.allocate(DEVICE_PRIVATE),
                Err(AllocError::Removed),
                "{was:?}"
            );
            drop(migration);
            let long = std::time::Duration::from_secs(20);
            let mut scratch = Scratch::default();
            three
                .space
                .remove_device(DEVICE_PRIVATE, long, &mut scratch)
                .unwrap();
            three.check_all();
            three.check_invariants();
        }
    }
}

#[test]
fn r5_a_driver_that_panics_in_a_copy_out_is_asked_again() {
    for batch in [1, 16] {
        let three = Three::with_batch(64, batch);
        Was::Private.make(&three, 0, 4);
        three.private.panic_in(Driver::CopyOut);
        let done = three.to_system(0, 4);
        assert_eq!(done, migrated(4, 0));
        three.check_all();
        three.check_invariants();
    }
    // For ever: the page is lost, and no other.
    let three = Three::new(64);
    Was::Private.make(&three, 0, 4);
    (0..4).for_each(|_| three.private.panic_in(Driver::CopyOut));
    assert_eq!(three.to_system(0, 4), migrated(3, 1));
    assert_eq!(three.state(0), State::Poisoned);
    assert_eq!(three.try_check(0), Err(Fault::Poisoned));
    (1..4).for_each(|page| three.check(page));
    three.check_invariants();
}

#[test]
fn r5_a_driver_that_panics_in_free_loses_nothing() {
    let three = Three::new(64);
    Was::Private.make(&three, 0, 4);
    three.private.panic_in(Driver::Free);
    assert_eq!(three.to_system(0, 4), migrated(4, 0));
    three.check_all();
    three.check_invariants();
}

#[test]
fn r5_a_fence_that_panics_has_failed() {
    let three = Three::with_batch(64, 16);
    three.private.set_fences(true);
    three.write_all(0..4);
    three.private.panic_in(Driver::Wait);
    assert_eq!(three.to_device(0, 4, DEVICE_PRIVATE), migrated(0, 4));
    three.check_all();
    three.check_invariants();
}
