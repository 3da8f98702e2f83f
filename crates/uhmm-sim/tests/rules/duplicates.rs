//! Clean duplicates: what is read in a range that is mostly read keeps its device page, so that it goes
//! out again without a copy; and no byte that was ever written is lost to it.

use crate::allocations::counted;
use crate::world::{BASE, BUDGET, Shared, World, space, touch, watched, with_reclaimer};
use std::ops::Range;
use std::time::Duration;
use uhmm_core::addr::{DeviceAddr, PageData, PageRange};
use uhmm_core::device::CopyInError;
use uhmm_core::entry::State;
use uhmm_core::evict::RemoveError;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::hints::Hints;
use uhmm_core::migrate::{MigrateVma, Select};
use uhmm_core::mmu::Stop;
use uhmm_sim::{Call, Failure, Fault};

const LONG: Duration = Duration::from_secs(20);

pub fn hint(world: &World, pages: Range<usize>, on: bool) {
    let pages = PageRange::new(BASE.plus(pages.start), pages.len());
    let inside = world.space.inside().unwrap();
    let read_mostly = on;
    let hints = Hints {
        read_mostly,
        ..Hints::NONE
    };
    inside.set_hints(pages, hints).unwrap();
}

pub fn duplicate(world: &World, page: usize) -> Option<DeviceAddr> {
    match world.state(page) {
        State::System { duplicate, .. } => duplicate,
        _ => None,
    }
}

pub fn duplicates(world: &World, pages: Range<usize>) -> usize {
    pages
        .filter(|&page| duplicate(world, page).is_some())
        .count()
}

pub fn is_private(world: &World, page: usize) -> bool {
    matches!(world.state(page), State::Private(_))
}

/// A migration of what of `pages` is in RAM.
pub fn system(pages: Range<usize>) -> MigrateVma {
    MigrateVma {
        pages: PageRange::new(BASE.plus(pages.start), pages.len()),
        select: Select::SYSTEM,
        owner: None,
        except: None,
        fault_page: None,
    }
}

/// The first `pages` pages are mostly read, and were read: they are in RAM and on the device.
pub fn read_again(pages: usize) -> World {
    let world = World::pushed_out(pages);
    hint(&world, 0..pages, true);
    (0..pages).rev().for_each(|page| world.check(page));
    assert_eq!(duplicates(&world, 0..pages), pages);
    assert_eq!(world.device.stored().len(), pages, "the copies are kept");
    assert_eq!(world.space.stats().duplicate_pages.get(), pages as u64);
    world.check_invariants();
    world
}

/// Pushes everything out, and compares every byte of it afterwards.
pub fn push_out_and_check(world: &World) {
    assert_eq!(world.push_out(), 0);
    world.check_invariants();
    world.check_all();
    world.check_invariants();
}

#[test]
fn what_was_only_read_goes_out_again_without_a_copy() {
    let world = read_again(40);
    let copies = world.device.copies_in();
    for round in 1..4 {
        assert_eq!(world.push_out(), 0, "round {round}");
        assert!((0..40).all(|page| is_private(&world, page)));
        assert_eq!(world.device.copies_in(), copies, "round {round}: a copy");
        assert_eq!(world.space.stats().clean_evictions.get(), round * 40);
        assert_eq!(world.space.stats().duplicate_pages.get(), 0);
        world.check_invariants();
        world.check_all();
        assert_eq!(duplicates(&world, 0..40), 40, "and kept again");
    }
    assert_eq!(world.device.frees(), 0);
    world.check_invariants();
}

#[test]
fn r15_the_first_write_to_a_duplicate_is_one_fault_and_the_next_none() {
    let world = read_again(40);
    let copies = world.device.copies_in();
    assert_eq!(world.try_check(7), Ok(0), "it can be read without a fault");
    assert_eq!(world.try_write(7), Ok(1));
    assert_eq!(duplicate(&world, 7), None);
    assert_eq!(world.device.frees(), 1, "its copy is out of date");
    assert_eq!(world.try_write(7), Ok(0));
    assert_eq!(duplicates(&world, 0..40), 39, "no other");
    world.check_invariants();
    assert_eq!(world.push_out(), 0);
    assert_eq!(
        world.device.copies_in(),
        copies + 1,
        "just what was written"
    );
    assert_eq!(world.space.stats().clean_evictions.get(), 39);
    world.check_all();
    world.check_invariants();
}

#[test]
fn r15_a_write_to_a_missing_page_keeps_no_duplicate() {
    let world = World::pushed_out(8);
    hint(&world, 0..8, true);
    assert_eq!(world.try_write(3), Ok(1), "one fault, writable at once");
    assert_eq!(duplicate(&world, 3), None);
    assert!(!world.mmu().is_tracked(BASE.plus(3)));
    assert_eq!(world.device.frees(), 1);
    // Nor does a page that was never on a device.
    world.check(20);
    hint(&world, 0..32, true);
    world.check(21);
    assert_eq!(duplicates(&world, 20..22), 0);
    assert_eq!(world.try_write(21), Ok(0));
    world.check_invariants();
}

#[test]
fn only_hinted_pages_keep_their_copies() {
    // In both directions: in sequence, pages are brought in ahead of their touch.
    for forward in [false, true] {
        let world = World::pushed_out(64);
        hint(&world, 16..40, true);
        let mut pages: Vec<usize> = (0..64).collect();
        if !forward {
            pages.reverse();
        }
        pages.into_iter().for_each(|page| world.check(page));
        for page in 0..64 {
            let kept = duplicate(&world, page).is_some();
            assert!(!kept || (16..40).contains(&page), "page {page}");
            assert_eq!(kept, world.mmu().is_tracked(BASE.plus(page)), "page {page}");
        }
        if !forward {
            assert_eq!(duplicates(&world, 16..40), 24);
        }
        world.check_invariants();
        push_out_and_check(&world);
    }
}

#[test]
fn a_hint_that_is_taken_back_ends_for_what_is_read_from_then_on() {
    let world = read_again(16);
    hint(&world, 0..16, false);
    let copies = world.device.copies_in();
    assert_eq!(world.push_out(), 0);
    assert_eq!(world.device.copies_in(), copies, "what is known stays so");
    world.check_all();
    assert_eq!(duplicates(&world, 0..16), 0);
    assert_eq!(world.device.stored(), []);
    assert_eq!(world.try_write(3), Ok(0));
    world.check_invariants();
}

#[test]
fn r7_a_pinned_page_with_a_duplicate_stays_and_is_a_page_like_others() {
    let world = read_again(32);
    assert!(world.mmu().pin(BASE.plus(10)));
    assert_eq!(world.push_out(), 1, "all but the pinned page leave");
    assert!(world.mmu().is_present(BASE.plus(10)));
    assert_eq!(duplicate(&world, 10), None);
    assert_eq!(world.try_write(10), Ok(0), "writable, as it was");
    world.check_invariants();
    world.mmu().unpin(BASE.plus(10));
    push_out_and_check(&world);
}

#[test]
fn r7_a_page_shared_after_a_fork_leaves_once_the_sharing_is_broken() {
    let world = read_again(32);
    world.mmu().share(PageRange::new(BASE.plus(4), 9));
    push_out_and_check(&world);
}

#[test]
fn r5_an_unmapping_that_fails_at_any_page_keeps_every_byte() {
    for k in 0..24 {
        for stop in [Stop::Busy, Stop::Changing] {
            let world = read_again(24);
            let failure = Failure {
                after_calls: 0,
                after_pages: k,
                stop,
            };
            world.mmu().fail(Call::Take, failure);
            world.push_out();
            world.check_invariants();
            world.check_all();
            world.write_all(0..24);
            push_out_and_check(&world);
        }
    }
}

/// A page of a range that may not be written to: it cannot be moved, and keeps its bytes.
#[test]
fn r7_a_read_only_page_with_a_duplicate_leaves_and_comes_back() {
    let world = read_again(16);
    let pages = PageRange::new(BASE.plus(4), 8);
    let space = world.space.clone();
    space.change_protection(pages, || space.mmu().protect(pages, false));
    push_out_and_check(&world);
    assert_eq!(world.try_write(5), Err(Fault::Protected));
    space.change_protection(pages, || space.mmu().protect(pages, true));
    world.write_all(0..16);
    push_out_and_check(&world);
}

#[test]
fn discarded_pages_take_their_duplicates_along() {
    let world = read_again(32);
    world.discard(8, 16);
    assert_eq!(world.space.stats().duplicate_pages.get(), 16);
    world.check_invariants();
    world.check_all();
    world.discard(0, 32);
    world.space.reclaim(&mut Scratch::default());
    assert_eq!(world.device.stored(), []);
    world.check_invariants();
    world.check_all();
}

#[test]
fn r5_a_page_that_is_moved_leaves_its_duplicate_behind() {
    for seed in 0..20 {
        let world = read_again(32);
        if seed > 0 {
            world.mmu().fail_at_random(seed, 3);
        }
        let inside = world.space.inside().unwrap();
        let from = PageRange::new(BASE, 32);
        inside.relocate(from, BASE.plus(100)).unwrap();
        drop(inside);
        world.mmu().heal();
        world.check_invariants();
        assert_eq!(world.space.stats().duplicate_pages.get(), 0);
        for page in 0..32 {
            let found = world.mmu().touch_read(BASE.plus(100 + page)).unwrap();
            world.oracle.check(page, &found);
            let written = world.mmu().touch_write(BASE.plus(100 + page), |_| ());
            assert_eq!(written, Ok(()), "nobody tracks writes there");
            world.oracle.discard(page);
        }
        world.check_all();
        world.check_invariants();
    }
}

#[test]
fn a_migration_of_pages_with_duplicates_has_them_once() {
    let world = read_again(32);
    let args = system(0..32);
    let mut migration = world.space.migrate_vma(&args).unwrap();
    assert_eq!(migration.selected().count(), 32);
    assert_eq!(migration.allocate(0), Ok(32));
    let done = migration.copy().pages().finalize();
    assert_eq!((done.migrated, done.left), (32, 0));
    assert_eq!(world.device.stored().len(), 32);
    assert!((0..32).all(|page| is_private(&world, page)));
    world.check_invariants();
    // And one that is given up half way.
    world.check_all();
    drop(world.space.migrate_vma(&args).unwrap());
    world.check_invariants();
    world.check_all();
    push_out_and_check(&world);
}

#[test]
fn r9_removal_gives_duplicates_up_and_reads_none_of_them() {
    let world = read_again(64);
    let read = world.device.copies_out();
    // There is no memory to bring anything to, and none is needed.
    world.mmu().limit_memory(world.mmu().resident());
    let removed = world.space.remove_device(0, LONG, &mut Scratch::default());
    assert_eq!(removed, Ok(()));
    assert_eq!(world.device.stored(), []);
    assert_eq!(world.device.copies_out(), read);
    world.mmu().limit_memory(usize::MAX);
    world.check_all();
    assert_eq!(world.try_write(5), Ok(0));
    world.check_invariants();
}

/// A device that has said that it failed has a copy of pages that are in RAM: they stay there.
#[test]
fn r9_the_copies_of_a_dead_device_are_not_relied_on() {
    let world = read_again(32);
    world.device.fail_copy_in_after(0, CopyInError::Dead);
    world.write(100);
    let mut migration = world.space.migrate_vma(&system(100..101)).unwrap();
    assert_eq!(migration.allocate(0), Ok(1));
    assert_eq!(migration.copy().pages().finalize().left, 1);
    assert_eq!(duplicates(&world, 0..32), 32);
    world.push_out();
    assert!((0..32).all(|page| !is_private(&world, page)));
    assert_eq!(duplicates(&world, 0..32), 0);
    world.check_all();
    assert_eq!(world.space.stats().poisoned_pages.get(), 0);
    world.check_invariants();
}

/// Nothing comes to a suspended device: neither a page that it has a copy of, nor is one kept there.
#[test]
fn r9_a_suspended_device_keeps_no_copies() {
    let world = World::pushed_out(32);
    hint(&world, 0..32, true);
    world.device.retry_copy_out_after(0, u64::MAX);
    let mut scratch = Scratch::default();
    let suspended = world.space.suspend_device(0, Duration::ZERO, &mut scratch);
    assert!(matches!(suspended, Err(RemoveError::StillInUse(_))));
    world.device.heal();
    world.check_all();
    assert_eq!(duplicates(&world, 0..32), 0);
    assert_eq!(world.device.stored(), []);
    assert_eq!(world.push_out(), 32, "nothing goes there");
    assert!(world.space.resume_device(0));
    push_out_and_check(&world);
}

/// The device is full, of copies of what is in RAM: they go, and everything fits.
#[test]
fn r19_a_device_full_of_duplicates_has_room() {
    const KEPT: usize = 300;
    let device = watched(KEPT);
    let space = space(4 * BUDGET, vec![Box::new(Shared(device.clone()))]);
    let write = |page: usize| {
        let wrote = touch(&space, page, Access::Write, |mmu, at| {
            mmu.touch_write(at, |data| data.0.fill(page as u8 | 1))
        });
        wrote.unwrap();
    };
    let check = |page: usize| {
        let checked = touch(&space, page, Access::Read, |mmu, at| {
            assert!(mmu.touch_read(at)?.0 == [page as u8 | 1; 4096], "{page}");
            Ok(())
        });
        checked.unwrap();
    };
    let far = 2 * BUDGET;
    (far..far + KEPT).rev().for_each(write);
    space.push_out(&mut Scratch::default());
    assert_eq!(device.stored().len(), KEPT, "it is full");
    let pages = PageRange::new(BASE.plus(far), KEPT);
    space
        .inside()
        .unwrap()
        .set_hints(pages, Hints::READ_MOSTLY)
        .unwrap();
    (far..far + KEPT).rev().for_each(check);
    assert_eq!(space.stats().duplicate_pages.get(), KEPT as u64);
    // What comes now is never read, so it is what reclaim finds; the duplicates are always in use.
    with_reclaimer(&space, || {
        let new = BUDGET + KEPT / 2 - 100;
        for page in 0..new - KEPT / 2 {
            write(page);
            if page % 4 == 0 {
                (far..far + KEPT / 2).for_each(check);
            }
        }
        (0..new - KEPT / 2).for_each(check);
        (far..far + KEPT).for_each(check);
    });
    assert_eq!(space.mmu().out_of_memory_count(), 0);
    space.check_invariants();
}

/// Step by step: reclaim that can store nothing frees duplicates, as long as there are any, and says that
/// it is stuck only then.
#[test]
fn r19_reclaim_sheds_duplicates_before_it_is_stuck() {
    let world = read_again(200);
    world.device.fail_copy_in_after(0, CopyInError::Full);
    // Those in RAM cannot leave it by being forgotten.
    (0..200).for_each(|page| assert!(world.mmu().pin(BASE.plus(page))));
    (200..BUDGET).for_each(|page| world.write(page));
    let mut scratch = Scratch::default();
    let steps = (0..200).map(|_| world.space.reclaim(&mut scratch));
    assert_eq!(steps.last(), Some(uhmm_core::reclaim::Step::Stuck));
    assert_eq!(world.device.stored(), [], "all duplicates are shed");
    world.check_invariants();
    world.check_all();
}

/// Twice as much as fits is read again and again, under pressure: each page is copied in once.
#[test]
fn reading_more_than_fits_again_and_again_stores_it_once() {
    const PAGES: usize = 2 * BUDGET;
    let world = World::new(4 * BUDGET);
    hint(&world, 0..PAGES, true);
    with_reclaimer(&world.space, || {
        (0..PAGES).for_each(|page| world.write(page));
        (0..PAGES).for_each(|page| world.check(page));
    });
    // What was written and not stored yet is stored, and then all of it is.
    world.push_out();
    let copies = world.device.copies_in();
    with_reclaimer(&world.space, || {
        for _ in 0..3 {
            (0..PAGES).for_each(|page| world.check(page));
        }
    });
    assert_eq!(world.device.copies_in(), copies);
    assert!(world.space.stats().clean_evictions.get() > PAGES as u64);
    world.check_invariants();
}

#[test]
fn r18_keeping_and_dropping_duplicates_allocates_nothing() {
    let world = World::pushed_out(64);
    hint(&world, 0..64, true);
    let mut scratch = Scratch::default();
    let mut fault =
        |page: usize, access| counted(|| world.space.fault(BASE.plus(page), access, &mut scratch));
    for page in 0..64 {
        assert_eq!(fault(page, Access::Read), 0);
        assert_eq!(fault(page, Access::Tracked), 0);
        assert_eq!(duplicate(&world, page), None);
    }
    world.check_invariants();
}

// What happens in between: each step into the MMU, with a write, a push or a failure just then.

/// The bytes of a device page that is a duplicate are the page's.
#[test]
fn a_duplicate_has_the_bytes_of_its_page() {
    use uhmm_core::device::Device;
    let world = read_again(16);
    for page in 0..16 {
        let at = duplicate(&world, page).unwrap();
        let mut data = PageData::ZERO;
        world.device.copy_out(at.page, &mut data).unwrap();
        world.oracle.check(page, &data);
    }
}
