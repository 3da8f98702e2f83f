//! Bytes of any memory, copied as for a system call: managed pages are brought, wherever they are, and what
//! cannot be had is an error that says how far it came.

use crate::hook::Op;
use crate::rig::{DEVICE_PRIVATE, Three, number};
use crate::types::range;
use crate::watcher::{WRITE, device, pin};
use crate::world::{BUDGET, SimSpace};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use uhmm_core::addr::{PageData, PageRange};
use uhmm_core::entry::State;
use uhmm_core::foreign::Refusal;
use uhmm_core::mirror::{MirrorError, NotifierError, Permission, Permissions};
use uhmm_core::mmu::Mmu;
use uhmm_core::user_copy::CopyError;
use uhmm_sim::Mapping;

const BOTH: Permission = Permission {
    read: true,
    write: true,
};
const READ_ONLY: Permission = Permission {
    read: true,
    write: false,
};

/// All that is the space's may be used in every way.
fn managed(space: &SimSpace, pages: PageRange) -> Result<Permissions, MirrorError> {
    let own = pages.iter().filter(|page| space.mmu().manages(*page));
    let one = |page| (PageRange::new(page, 1), BOTH);
    let mut runs: Permissions = Vec::new();
    for (page, is) in own.map(one) {
        match runs.last_mut() {
            Some((run, _)) if run.end() == page.start => run.len += 1,
            _ => runs.push((page, is)),
        }
    }
    Ok(runs)
}

fn read(space: &SimSpace, page: usize, offset: usize, to: &mut [u8]) -> Result<(), CopyError> {
    space.read_bytes(number(page), offset, to, |pages| managed(space, pages))
}

fn write(space: &SimSpace, page: usize, offset: usize, from: &[u8]) -> Result<(), CopyError> {
    space.write_bytes(number(page), offset, from, |pages| managed(space, pages))
}

fn stopped(done: usize, error: MirrorError) -> Result<(), CopyError> {
    Err(CopyError { done, error })
}

/// Pages 0 to 8 the space's, in RAM, in limbo, on a device and nowhere, two of each; the rest others'.
fn mixed() -> Three {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..6);
    three.mmu().map_foreign(range(8, 8), Mapping::Private, BOTH);
    three.to_device(4, 2, DEVICE_PRIVATE);
    three
}

#[test]
fn bytes_are_read_and_written_wherever_the_pages_are() {
    let three = mixed();
    let mut bytes = vec![1; 16 * 4096];
    read(&three.space, 0, 0, &mut bytes).unwrap();
    for page in 0..6 {
        let data = PageData(bytes[page * 4096..][..4096].try_into().unwrap());
        three.oracle.check(page, &data);
    }
    assert_eq!(bytes[6 * 4096..], vec![0; 10 * 4096]);
    three.push_out();
    three.to_device(0, 3, DEVICE_PRIVATE);
    for page in 0..6 {
        let mut data = PageData::ZERO;
        three.oracle.write(page, &mut data);
        bytes[page * 4096..][..4096].copy_from_slice(&data.0);
    }
    bytes[10 * 4096..].fill(9);
    write(&three.space, 0, 5, &bytes[5..]).unwrap();
    write(&three.space, 0, 0, &bytes[..5]).unwrap();
    three.check_all();
    assert_eq!(three.mmu().peek_foreign(number(10)).unwrap().0, [9; 4096]);
    let mut part = [1; 3];
    read(&three.space, 9, 4094, &mut part).unwrap();
    assert_eq!(part, [0, 0, 9]);
    three.check_invariants();
}

/// A copy tries first: what is there costs one call, and no look at the regions.
#[test]
fn what_is_there_is_copied_at_once() {
    let three = mixed();
    let mut bytes = vec![1; 3 * 4096];
    let nothing = |_| panic!("nobody has to be asked");
    three
        .space
        .read_bytes(number(9), 1, &mut bytes, nothing)
        .unwrap();
    three
        .space
        .write_bytes(number(0), 1, &bytes, nothing)
        .unwrap();
    assert_eq!(three.mmu().copies.load(SeqCst), 2);
}

/// Pages that go again are brought again.
#[test]
fn a_page_that_goes_before_it_is_copied_is_brought_again() {
    let three = mixed();
    // The first try finds them on the device; each of the next three is too late.
    three.mmu().before(Op::TryCopy, || ());
    for _ in 0..3 {
        let space = three.space.clone();
        three.mmu().before(Op::TryCopy, move || {
            let mut migration = space
                .migrate_vma(&crate::rig::args(4, 2, crate::rig::SYSTEM))
                .unwrap();
            migration.allocate(DEVICE_PRIVATE).unwrap();
            assert_eq!(migration.copy().pages().finalize().migrated, 2);
        });
    }
    let mut bytes = vec![0; 2 * 4096];
    read(&three.space, 4, 0, &mut bytes).unwrap();
    for (page, bytes) in bytes.chunks(4096).enumerate() {
        three
            .oracle
            .check(4 + page, &PageData(bytes.try_into().unwrap()));
    }
}

#[test]
fn what_cannot_be_copied_is_said_with_how_far_it_came() {
    let three = mixed();
    let mut bytes = vec![7; 16 * 4096];
    three.mmu().protect_foreign(range(12, 2), READ_ONLY);
    three.mmu().unmap_foreign(range(15, 1));
    // Nothing is there for the space either.
    let nothing = |_| Ok(Permissions::new());
    three.mmu().map(range(15, 1), false);
    let done = three.space.read_bytes(number(9), 5, &mut bytes, nothing);
    assert_eq!(
        done,
        stopped(6 * 4096 - 5, MirrorError::NoAccess(number(15)))
    );
    assert_eq!(bytes[6 * 4096 - 5..], vec![7; 10 * 4096 + 5]);
    let done = write(&three.space, 10, 0, &bytes);
    assert_eq!(
        done,
        stopped(2 * 4096, MirrorError::NotWritable(number(12)))
    );
    three
        .mmu()
        .refuse_foreign(range(9, 1), Some(Refusal::Poisoned));
    let done = read(&three.space, 8, 4000, &mut bytes);
    assert_eq!(done, stopped(96, MirrorError::Poisoned(number(9))));
    // A page of the space that is lost, behind others that are not there.
    three.private.lose(three.on(5).page);
    let done = read(&three.space, 4, 0, &mut bytes[..3 * 4096]);
    assert_eq!(done, stopped(4096, MirrorError::Poisoned(number(5))));
    let data = PageData(bytes[..4096].try_into().unwrap());
    three.oracle.check(4, &data);
}

#[test]
fn a_page_that_does_not_come_is_not_waited_for_without_end() {
    let three = mixed();
    let mut byte = [0];
    let start = Instant::now();
    let migration = three.begin(0, 1, crate::rig::SYSTEM);
    let busy = MirrorError::Notifier(NotifierError::Busy);
    assert_eq!(read(&three.space, 0, 0, &mut byte), stopped(0, busy));
    drop(migration);
    // One that may be written to, as the space knows it, and that the kernel does not let go.
    three.mmu().protect(range(1, 1), false);
    assert_eq!(write(&three.space, 1, 0, &byte), stopped(0, busy));
    three.mmu().protect(range(1, 1), true);
    assert!(start.elapsed() < Duration::from_secs(10));
    let mirror = device(&three.space, 0, 4).1;
    let table = mirror.lock().unwrap();
    let refused = MirrorError::Notifier(NotifierError::InNotifier);
    assert_eq!(read(&three.space, 2, 0, &mut byte), stopped(0, refused));
    assert_eq!(write(&three.space, 2, 0, &byte), stopped(0, refused));
    drop(table);
}

/// R11, R15: pins and copies on devices are what they are for the program's own writes.
#[test]
fn a_write_is_as_the_programs_own() {
    let three = mixed();
    let pinned = pin(&three.space, 0, 2, WRITE).unwrap();
    write(&three.space, 0, 0, &[5; 2 * 4096]).unwrap();
    assert_eq!(three.mmu().touch_read(number(1)).unwrap().0, [5; 4096]);
    drop(pinned);
    let world = crate::duplicates::read_again(8);
    write(&world.space, 3, 0, &[5; 4096]).unwrap();
    assert!(matches!(
        world.state(3),
        State::System {
            duplicate: None,
            ..
        }
    ));
    world.push_out();
    let mut found = [0; 4096];
    read(&world.space, 3, 0, &mut found).unwrap();
    assert_eq!(found, [5; 4096]);
}
