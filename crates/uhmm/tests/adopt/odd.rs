//! Ranges that nobody would name on purpose, and calls that fail half way.

use crate::own::Own;
use crate::{FIRST, SOON, World, alone, device, space};
use std::io;
use uhmm::{Hint, Place};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::hints::Hints;
use uhmm_core::memory_type::MemoryType::Private;
use uhmm_testkit::Oracle;

const PAGES: usize = 64;

/// `madvise` takes a range that goes past the end of what a program can have: it drops what is there, and
/// says that not all of it is mapped.
#[test]
fn what_goes_past_the_last_address_is_dropped_up_to_there() {
    let _alone = alone();
    // Mapped before the space, and so above it.
    let own = Own::map(PAGES);
    let world = World {
        adopted: None,
        own,
        space: space(2048, vec![device(Private).0]),
        oracle: Oracle::new(5, PAGES),
    };
    world.write_all();
    world.manage(0..PAGES).unwrap();
    world.migrate(0..PAGES, Place::Device(FIRST));
    let at = world.at(0) as usize;
    assert!(at > world.space.internals().reserved().start.address());
    let call = || {
        // Not what lies behind it, which is this thread's stack.
        world.own.advise(0..PAGES, libc::MADV_DONTNEED);
        Err::<(), _>(io::Error::from_raw_os_error(libc::ENOMEM))
    };
    // SAFETY: nothing of it is borrowed.
    let done = unsafe { world.space.memory().around_discard(at, 1 << 50, call) };
    assert_eq!(done.unwrap_err().raw_os_error(), Some(libc::ENOMEM));
    (0..PAGES).for_each(|page| world.oracle.discard(page));
    world.check_all();
}

#[test]
fn of_no_bytes_nothing_is_given_back() {
    let _alone = alone();
    let world = World::new(space(2048, vec![device(Private).0]), PAGES);
    world.manage(0..PAGES).unwrap();
    for address in [world.at(3) as usize, world.at(3) as usize + 100] {
        world.space.unmanage(address, 0, SOON).unwrap();
    }
    let is_there = |page| world.space.page_at(world.at(page) as usize).is_some();
    assert!((0..PAGES).all(is_there));
}

/// What the program wants of pages goes with their mapping, also where the call fails after that.
#[test]
fn hints_do_not_outlive_a_mapping_that_a_failed_call_has_taken_away() {
    let _alone = alone();
    let world = World::new(space(2048, vec![device(Private).0]), PAGES);
    world.manage(0..PAGES).unwrap();
    let (at, len) = world.bytes(&(8..16));
    world.space.advise(at, len, Hint::ReadMostly).unwrap();
    let number = world.number(8);
    assert_ne!(world.space.internals().hints(number), Hints::NONE);
    let call = || {
        world.own.unmap(8..16);
        Err::<(), _>(io::Error::from_raw_os_error(libc::ENOMEM))
    };
    // SAFETY: nothing of it is borrowed.
    unsafe { world.space.memory().around_unmap(at, len, call) }.unwrap_err();
    assert_eq!(world.space.page_at(at), None);
    assert_eq!(world.space.internals().hints(number), Hints::NONE);
    world.map_again(8..16).unwrap();
    world.check_all();
    assert_eq!(len, 8 * PAGE_SIZE);
}
