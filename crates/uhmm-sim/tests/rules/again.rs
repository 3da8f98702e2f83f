//! What is in other hands when a migration comes by: it counts as left, and a request looks again.

use crate::hook::{HookedMmu, Op};
use crate::rig::{
    COHERENT, Call, DEVICE_COHERENT, DEVICE_PRIVATE, PRIVATE, SYSTEM, Three, Was, args, migrated,
    number,
};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use uhmm_core::AllocError;
use uhmm_core::migrate::{MigrateError, Migrated, Migration, Patience, Select, Unmapped};

const ALL: [Select; 3] = [SYSTEM, PRIVATE, COHERENT];

#[derive(Debug, PartialEq)]
enum Failed {
    NotBegun(MigrateError),
    Device(AllocError),
}

impl From<MigrateError> for Failed {
    fn from(error: MigrateError) -> Self {
        Self::NotBegun(error)
    }
}

/// A request for pages 8 to 16.
fn request(
    three: &Three,
    go: impl FnMut(Migration<'_, HookedMmu, Unmapped>) -> Result<Migrated, Failed>,
) -> Result<Migrated, Failed> {
    let all = ALL.into_iter().reduce(|a, b| a | b).unwrap();
    let args = args(8, 8, all);
    three
        .space
        .migrate_vma_again(&args, &mut Patience::default(), go)
}

fn to_coherent(mut migration: Migration<'_, HookedMmu, Unmapped>) -> Result<Migrated, Failed> {
    if migration.selected().next().is_some() {
        migration
            .allocate(DEVICE_COHERENT)
            .map_err(Failed::Device)?;
    }
    Ok(migration.copy().pages().finalize())
}

/// Another thread has pages 10 and 11 in hand, in a device's copy, until it is told to go on.
fn in_other_hands(three: &Three, meanwhile: impl FnOnce(Sender<()>)) {
    let (in_hand, wait) = channel();
    let (go_on, told): (_, Receiver<()>) = channel();
    three.private.before(Call::CopyIn, move || {
        in_hand.send(()).unwrap();
        // Also where the test has failed, and nobody is left to tell.
        let _ = told.recv();
    });
    thread::scope(|scope| {
        let other = scope.spawn(|| three.to_device(10, 2, DEVICE_PRIVATE));
        wait.recv().unwrap();
        meanwhile(go_on);
        assert_eq!(other.join().unwrap(), migrated(2, 0));
    });
    three.check_all();
    three.check_invariants();
}

#[test]
fn a_page_in_other_hands_counts_as_left() {
    for was in Was::ALL {
        let three = Three::new(64);
        was.make(&three, 8, 8);
        let mut other = three.begin(10, 2, ALL.into_iter().reduce(|a, b| a | b).unwrap());
        for select in ALL {
            let mut migration = three.begin(8, 8, select);
            assert_eq!(migration.missed(), [number(10), number(11)], "{was:?}");
            assert!(
                migration
                    .selected()
                    .all(|page| page.page != number(10) && page.page != number(11))
            );
            // Whatever is selected stays too.
            migration.skip_if(|_| true);
            let selected = migration.selected().count();
            let done = migration.copy().pages().finalize();
            assert_eq!(done, migrated(0, selected + 2), "{was:?}, {select:?}");
        }
        other.skip_if(|_| true);
        assert_eq!(other.missed(), []);
        drop(other);
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn a_request_waits_for_pages_in_other_hands_and_takes_them_then() {
    let three = Three::new(64);
    three.write_all(8..16);
    in_other_hands(&three, |go_on| {
        three
            .mmu()
            .before(Op::Wait, move || go_on.send(()).unwrap());
        let mut looks = Vec::new();
        let done = request(&three, |migration| {
            looks.push(migration.selected().count());
            to_coherent(migration)
        });
        assert_eq!(done, Ok(migrated(8, 0)));
        assert_eq!(looks, [6, 2], "only what was missed is looked at again");
    });
    assert!((8..16).all(|page| three.is_on(page, DEVICE_COHERENT)));
}

/// Somebody who does not let go holds a request up for a moment only.
#[test]
fn a_request_does_not_wait_for_ever() {
    let three = Three::new(64);
    three.write_all(8..16);
    in_other_hands(&three, |go_on| {
        assert_eq!(request(&three, to_coherent), Ok(migrated(6, 2)));
        assert!(three.mmu().waits.load(SeqCst) > 0);
        drop(go_on);
    });
}

/// Where the second look fails, what has gone has gone; where nothing has, it is the request that fails.
#[test]
fn a_second_look_that_fails_leaves_pages_or_fails_the_request() {
    for some_go in [true, false] {
        let three = Three::new(64);
        three.write_all(8..16);
        in_other_hands(&three, |go_on| {
            three
                .mmu()
                .before(Op::Wait, move || go_on.send(()).unwrap());
            let mut looks = 0;
            let done = request(&three, |mut migration| {
                looks += 1;
                if looks == 2 {
                    return Err(Failed::Device(AllocError::Full));
                }
                if !some_go {
                    migration.skip_if(|_| true);
                }
                to_coherent(migration)
            });
            assert_eq!(looks, 2);
            match some_go {
                true => assert_eq!(done, Ok(migrated(6, 2))),
                false => assert_eq!(done, Err(Failed::Device(AllocError::Full))),
            }
        });
    }
}
