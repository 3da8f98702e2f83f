//! Hints on ranges: what each does, and what is wrong with a bad one.

use crate::device::{FULL, WORKS};
use crate::faults::{counting, faults};
use crate::{BUDGET, FIRST, SECOND, SOON, World, alone, device, space, wait_until};
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;
use uhmm::memory::Protection;
use uhmm::{BoundsError, DeviceId, Hint, HintError, Migrated, Place, RangeError};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::entry::State;
use uhmm_core::hints::Hints;
use uhmm_core::memory_type::MemoryType::{Coherent, Generic, Private};

pub const PAGES: usize = 300;
pub const NONE: Migrated = moved(0, 0);

const fn moved(migrated: usize, left: usize) -> Migrated {
    Migrated { migrated, left }
}

fn try_advise(world: &World, pages: Range<usize>, hint: Hint) -> Result<Migrated, HintError> {
    let address = world.address + pages.start * PAGE_SIZE;
    world.space.advise(address, pages.len() * PAGE_SIZE, hint)
}

pub fn advise(world: &World, pages: Range<usize>, hint: Hint) -> Migrated {
    // No handler is in the middle of the page that it brought in last.
    world.rest();
    try_advise(world, pages, hint).unwrap()
}

pub fn hints(world: &World, page: usize) -> Hints {
    world.space.internals().hints(world.number(page))
}

pub fn is_on(world: &World, page: usize, device: DeviceId) -> bool {
    match world.state(page) {
        State::Private(at) | State::Coherent(at) => at.device == device.0,
        _ => false,
    }
}

fn is_in_ram(world: &World, page: usize) -> bool {
    matches!(world.state(page), State::System { .. })
}

/// Pushes out until none of the pages is in RAM.
pub fn push_all_out(world: &World) {
    wait_until("all are out", || {
        world.push_out();
        (0..world.pages()).all(|page| !is_in_ram(world, page))
    });
}

#[test]
fn cold_pages_go_to_the_device_that_they_prefer() {
    let _alone = alone();
    let world = World::new(&[Private, Private], PAGES);
    assert_eq!(
        advise(&world, 50..150, Hint::Prefer(Place::Device(SECOND))),
        NONE
    );
    world.write_all();
    push_all_out(&world);
    for page in 0..PAGES {
        let device = if (50..150).contains(&page) {
            SECOND
        } else {
            FIRST
        };
        assert!(
            is_on(&world, page, device),
            "page {page}: {:?}",
            world.state(page)
        );
    }
    world.check_all();
    advise(&world, 0..100, Hint::NoPreference);
    push_all_out(&world);
    assert!((0..100).all(|page| is_on(&world, page, FIRST)));
    assert!((100..150).all(|page| is_on(&world, page, SECOND)));
    world.check_all();
    // Nothing goes to a device that is gone, whatever prefers it.
    world.space.remove_device(SECOND, SOON).unwrap();
    push_all_out(&world);
    assert!((0..PAGES).all(|page| is_on(&world, page, FIRST)));
    world.check_all();
}

#[test]
fn pages_that_prefer_ram_stay_while_others_come_and_go() {
    const STAY: Range<usize> = 500..900;
    let _alone = alone();
    let world = World::new(&[Private], 4 * BUDGET);
    advise(&world, STAY, Hint::Prefer(Place::Ram));
    STAY.for_each(|page| world.write(page));
    for round in 0..3 {
        (0..4 * BUDGET)
            .filter(|page| !STAY.contains(page))
            .for_each(|page| world.write(page));
        let _counting = counting(&world.space);
        let before = faults();
        STAY.for_each(|page| world.check(page));
        assert_eq!(faults(), before, "round {round}");
    }
    assert!(world.stats().pages_to_device.get() > 4 * BUDGET as u64);
    world.check_all();
}

/// R19: a program that prefers RAM for more than there is goes on.
#[test]
fn r19_more_may_prefer_ram_than_there_is() {
    let _alone = alone();
    let world = World::new(&[Private], 3 * BUDGET);
    advise(&world, 0..3 * BUDGET, Hint::Prefer(Place::Ram));
    world.write_all();
    world.check_all();
    (0..3 * BUDGET)
        .step_by(7)
        .for_each(|page| world.write(page));
    world.check_all();
    let stats = world.stats();
    assert!(stats.ram_peak_bytes.get() <= stats.ram_budget_bytes.get());
}

#[test]
fn pages_are_prefetched_to_where_they_are_told_or_prefer() {
    let _alone = alone();
    let world = World::new(&[Private, Coherent], PAGES);
    (0..200).rev().for_each(|page| world.write(page));
    advise(&world, 0..50, Hint::Prefer(Place::Device(FIRST)));
    advise(&world, 50..100, Hint::Prefer(Place::Device(SECOND)));
    advise(&world, 100..110, Hint::Prefer(Place::Ram));
    assert_eq!(advise(&world, 0..150, Hint::Prefetch(None)), moved(100, 0));
    let is_right = |page| match page {
        0..50 => is_on(&world, page, FIRST),
        50..100 => is_on(&world, page, SECOND),
        _ => is_in_ram(&world, page),
    };
    assert!((0..200).all(is_right));
    // What was told comes before what is preferred, and what was never touched goes along.
    let to = Hint::Prefetch(Some(Place::Device(SECOND)));
    assert_eq!(advise(&world, 0..PAGES, to), moved(PAGES - 50, 0));
    assert!((0..PAGES).all(|page| is_on(&world, page, SECOND)));
    let _counting = counting(&world.space);
    let before = faults();
    world.check_all();
    assert_eq!(faults(), before, "the CPU maps the memory of that device");
    assert_eq!(
        advise(&world, 0..PAGES, Hint::Prefetch(Some(Place::Ram))),
        moved(PAGES, 0)
    );
    assert!((0..PAGES).all(|page| is_in_ram(&world, page)));
    world.check_all();
}

#[test]
fn what_does_not_fit_is_left_and_counted() {
    let _alone = alone();
    let (world, mood) = World::moody(Private, PAGES);
    world.write_all();
    mood.copy_in.store(FULL, SeqCst);
    mood.good.store(100, SeqCst);
    let to = Hint::Prefetch(Some(Place::Device(FIRST)));
    assert_eq!(advise(&world, 0..PAGES, to), moved(100, 200));
    assert_eq!(advise(&world, 0..PAGES, to), moved(0, 200));
    assert_eq!(advise(&world, 0..PAGES, Hint::DoNotNeed), moved(0, 200));
    world.check_all();
    world.space.suspend_device(FIRST, SOON).unwrap();
    assert_eq!(advise(&world, 0..PAGES, to).migrated, 0);
    world.space.resume_device(FIRST);
    mood.copy_in.store(WORKS, SeqCst);
    assert_eq!(advise(&world, 0..PAGES, to), moved(PAGES, 0));
    world.check_all();
    // To RAM: as much as is free.
    let more = World::within(world.space.clone(), BUDGET - 100);
    more.write_all();
    let done = advise(&world, 0..PAGES, Hint::Prefetch(Some(Place::Ram)));
    assert!(done.migrated < PAGES, "{done:?}");
    world.check_all();
    more.check_all();
}

#[test]
fn what_will_be_needed_is_there_without_a_fault() {
    let _alone = alone();
    let world = World::new(&[Private, Coherent], PAGES);
    (0..200).rev().for_each(|page| world.write(page));
    push_all_out(&world);
    advise(&world, 50..60, Hint::Prefer(Place::Device(SECOND)));
    let needed = 20..PAGES;
    assert_eq!(
        advise(&world, needed.clone(), Hint::WillNeed),
        moved(180, 0)
    );
    let _counting = counting(&world.space);
    let before = faults();
    (20..200).for_each(|page| world.check(page));
    assert_eq!(faults(), before);
    for page in 0..PAGES {
        let right = match page {
            0..20 => is_on(&world, page, FIRST),
            50..60 => is_on(&world, page, SECOND),
            200..PAGES => world.state(page) == State::None,
            _ => is_in_ram(&world, page),
        };
        assert!(right, "page {page}: {:?}", world.state(page));
    }
    world.check_all();
}

#[test]
fn what_will_be_needed_comes_as_far_as_there_is_room() {
    let _alone = alone();
    let world = World::new(&[Private], 2 * BUDGET);
    let hot = World::within(world.space.clone(), BUDGET / 2);
    world.write_all();
    push_all_out(&world);
    hot.write_all();
    let done = advise(&world, 0..2 * BUDGET, Hint::WillNeed);
    assert!(
        (BUDGET / 4..BUDGET / 2).contains(&done.migrated),
        "{done:?}"
    );
    assert_eq!(done.migrated + done.left, 2 * BUDGET);
    assert!((0..BUDGET / 2).all(|page| is_in_ram(&hot, page)));
    assert!((0..done.migrated).all(|page| is_in_ram(&world, page)));
    world.check_all();
    hot.check_all();
}

#[test]
fn what_is_not_needed_leaves_ram_and_comes_back_whole() {
    let _alone = alone();
    let world = World::new(&[Private, Coherent], PAGES);
    world.write_all();
    advise(&world, 0..PAGES, Hint::WillNeed);
    advise(&world, 100..120, Hint::Prefer(Place::Ram));
    let coherent = world.migrate(120..140, Place::Device(SECOND));
    assert_eq!(coherent, moved(20, 0));
    world.protect(140..150, Protection::READ);
    let budget = || world.stats().ram_bytes.get() as usize / PAGE_SIZE;
    let before = budget();
    assert_eq!(advise(&world, 50..250, Hint::DoNotNeed), moved(180, 0));
    assert!(budget() <= before - 180, "the RAM is free");
    for page in 0..PAGES {
        let right = match page {
            120..140 => is_on(&world, page, SECOND),
            50..250 => is_on(&world, page, FIRST),
            _ => is_in_ram(&world, page),
        };
        assert!(right, "page {page}: {:?}", world.state(page));
    }
    world.protect(140..150, Protection::READ | Protection::WRITE);
    world.check_all();
    // Also what the program may not touch.
    world.protect(0..50, Protection::empty());
    assert_eq!(advise(&world, 0..50, Hint::DoNotNeed), moved(50, 0));
    world.protect(0..50, Protection::READ | Protection::WRITE);
    world.check_all();
}

#[test]
fn what_is_freed_eagerly_is_gone_everywhere() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0, device(Coherent).0]);
    let mut region = space.region(90 * PAGE_SIZE).unwrap();
    region.as_mut_slice().fill(0x5a);
    wait_until("no handler is at the last page", || {
        region.usage().unwrap().migrating == 0
    });
    let part = |region: &uhmm::Region, pages: Range<usize>| {
        region
            .range(pages.start * PAGE_SIZE..pages.end * PAGE_SIZE)
            .unwrap()
    };
    part(&region, 0..30)
        .advise(Hint::Prefetch(Some(Place::Device(FIRST))))
        .unwrap();
    part(&region, 30..60)
        .advise(Hint::Prefetch(Some(Place::Device(SECOND))))
        .unwrap();
    region.advise(Hint::ReadMostly).unwrap();
    let bytes = 10 * PAGE_SIZE..80 * PAGE_SIZE;
    region.free_eagerly(bytes.clone()).unwrap();
    let usage = region.usage().unwrap();
    assert_eq!((usage.ram, usage.devices[0], usage.devices[1]), (10, 10, 0));
    wait_until("devices have freed it", || {
        let devices = &space.internals().stats().devices;
        devices[0].pages.get() == 10 && devices[1].pages.get() == 0
    });
    for (i, &byte) in region.as_slice().iter().enumerate() {
        assert_eq!(byte, if bytes.contains(&i) { 0 } else { 0x5a }, "byte {i}");
    }
    // It is mapped all the same, with the hints that it has.
    let page = uhmm_core::addr::PageNo::containing(region.as_ptr() as usize).plus(20);
    assert!(space.internals().hints(page).read_mostly);
    region.as_mut_slice().fill(7);
    assert!(region.as_slice().iter().all(|&byte| byte == 7));
}

/// What a bad hint is told, and nothing else comes of it.
#[test]
fn every_bad_hint_has_an_error_of_its_own() {
    let _alone = alone();
    let devices = vec![device(Private).0, device(Generic).0, device(Private).0];
    let world = World::within(space(BUDGET, devices), PAGES);
    world.write_all();
    let third = DeviceId(2);
    world.space.remove_device(third, SOON).unwrap();
    let memory = world.space.memory();
    let (start, len) = (world.address, world.len());
    // SAFETY: nothing borrows any of it.
    unsafe {
        memory.unmap(start + 200 * PAGE_SIZE, PAGE_SIZE).unwrap();
        let over = || {
            let at = (start + 250 * PAGE_SIZE) as *mut libc::c_void;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let mapped = libc::mmap(at, PAGE_SIZE, libc::PROT_READ, flags, -1, 0);
            assert_eq!(mapped, at);
            Ok(())
        };
        memory
            .map_foreign(start + 250 * PAGE_SIZE, PAGE_SIZE, over)
            .unwrap();
    }
    world.protect(100..101, Protection::empty());
    let local = [0u8; PAGE_SIZE];
    let elsewhere = local.as_ptr() as usize & !(PAGE_SIZE - 1);
    let page = PAGE_SIZE;
    let every = [
        Hint::Prefer(Place::Ram),
        Hint::Prefer(Place::Device(FIRST)),
        Hint::NoPreference,
        Hint::AccessedBy(FIRST),
        Hint::NotAccessedBy(FIRST),
        Hint::ReadMostly,
        Hint::NotReadMostly,
        Hint::Prefetch(None),
        Hint::Prefetch(Some(Place::Device(FIRST))),
        Hint::WillNeed,
        Hint::DoNotNeed,
    ];
    let range = |error| Err(HintError::Range(error));
    let bad = |address, len, error| {
        for hint in every {
            assert_eq!(
                world.space.advise(address, len, hint),
                range(error),
                "{hint:?}"
            );
        }
        // SAFETY: nothing is freed.
        let freed = unsafe { world.space.free_eagerly(address, len) };
        assert_eq!(freed, Err(HintError::Range(error)));
    };
    bad(elsewhere, page, RangeError::Foreign);
    bad(start + 249 * page, 3 * page, RangeError::Foreign);
    bad(start + 199 * page, 3 * page, RangeError::Hole);
    bad(start + 1, page, RangeError::Unaligned);
    bad(start, page + 1, RangeError::Unaligned);
    bad(start, 0, RangeError::Empty);
    bad(start, usize::MAX & !(page - 1), RangeError::Overflow);
    for moves in [Hint::Prefetch(None), Hint::WillNeed] {
        assert_eq!(
            try_advise(&world, 99..102, moves),
            range(RangeError::NoAccess)
        );
    }
    let of = |device| {
        [
            Hint::Prefer(Place::Device(device)),
            Hint::Prefetch(Some(Place::Device(device))),
            Hint::AccessedBy(device),
        ]
    };
    for hint in of(DeviceId(3)).into_iter().chain([
        Hint::AccessedBy(DeviceId(200)),
        Hint::NotAccessedBy(DeviceId(8)),
    ]) {
        assert_eq!(
            try_advise(&world, 0..10, hint),
            Err(HintError::NoSuchDevice),
            "{hint:?}"
        );
    }
    for hint in of(third) {
        assert_eq!(
            try_advise(&world, 0..10, hint),
            Err(HintError::DeviceRemoved),
            "{hint:?}"
        );
    }
    for hint in &of(SECOND)[..2] {
        assert_eq!(
            try_advise(&world, 0..10, *hint),
            Err(HintError::DoesNotMigrate),
            "{hint:?}"
        );
    }
    // A device may use what it cannot hold; and to take back what it was given is always right.
    assert_eq!(
        try_advise(&world, 0..10, Hint::AccessedBy(SECOND)),
        Ok(NONE)
    );
    assert_eq!(
        try_advise(&world, 0..10, Hint::NotAccessedBy(SECOND)),
        Ok(NONE)
    );
    assert_eq!(
        try_advise(&world, 0..10, Hint::NotAccessedBy(third)),
        Ok(NONE)
    );
    assert!((0..PAGES).all(|page| hints(&world, page) == Hints::NONE));
    assert_eq!(world.device(FIRST).pages.get(), 0, "nothing has moved");
    world.protect(100..101, Protection::READ | Protection::WRITE);
    (0..PAGES)
        .filter(|page| ![200, 250].contains(page))
        .for_each(|page| world.check(page));
    assert_eq!(
        memory.contents(start, len).unwrap(),
        uhmm::memory::Contents::Holes
    );
    for (i, error) in [
        HintError::NoSuchDevice,
        HintError::DeviceRemoved,
        HintError::DoesNotMigrate,
        HintError::ManagedStack,
        HintError::Range(RangeError::Hole),
        HintError::Bounds(BoundsError::Empty),
    ]
    .iter()
    .enumerate()
    {
        let line = error.to_string();
        assert!(line.len() > 15 && !line.contains('\n'), "{i}: {line}");
    }
}

#[test]
fn a_region_is_freed_by_the_page_and_within_its_bounds() {
    let _alone = alone();
    let space = crate::space_with(&[Private]);
    let mut region = space.region(4 * PAGE_SIZE).unwrap();
    region.as_mut_slice().fill(1);
    let end = 4 * PAGE_SIZE;
    let past = BoundsError::PastEnd {
        end: end + 1,
        len: end,
    };
    assert_eq!(
        region.free_eagerly(0..end + 1),
        Err(HintError::Bounds(past))
    );
    assert_eq!(
        region.free_eagerly(5..5),
        Err(HintError::Bounds(BoundsError::Empty))
    );
    let unaligned = Err(HintError::Range(RangeError::Unaligned));
    assert_eq!(region.free_eagerly(1..PAGE_SIZE), unaligned);
    assert_eq!(region.free_eagerly(..100), unaligned);
    assert!(region.as_slice().iter().all(|&byte| byte == 1));
    // A hint takes all pages that a part touches.
    region
        .range(PAGE_SIZE + 1..PAGE_SIZE + 2)
        .unwrap()
        .advise(Hint::ReadMostly)
        .unwrap();
    let first = uhmm_core::addr::PageNo::containing(region.as_ptr() as usize);
    let read_mostly = |page| space.internals().hints(first.plus(page)).read_mostly;
    assert_eq!([0, 1, 2].map(read_mostly), [false, true, false]);
    region.free_eagerly(..).unwrap();
    assert!(region.as_slice().iter().all(|&byte| byte == 0));
    // A span may be kept for longer than its region.
    let span = region.span().clone();
    drop(region);
    assert_eq!(
        span.advise(Hint::WillNeed),
        Err(HintError::Range(RangeError::Hole))
    );
}

/// What calls into devices must not be called where the stack may be on one of them.
#[test]
fn hints_that_move_pages_are_refused_on_a_managed_stack() {
    extern "C" fn main(space: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: what the test below passes, which waits for this thread.
        let (space, address) = unsafe { &*space.cast::<(uhmm::Space, usize)>() };
        let advise = |hint| space.advise(*address, PAGE_SIZE, hint);
        let refused = [Hint::Prefetch(None), Hint::WillNeed, Hint::DoNotNeed]
            .into_iter()
            .all(|hint| advise(hint) == Err(HintError::ManagedStack));
        let taken = advise(Hint::ReadMostly) == Ok(NONE);
        usize::from(refused && taken) as *mut libc::c_void
    }
    const STACK: usize = 1 << 20;
    let _alone = alone();
    let space = crate::space_with(&[Private]);
    let mut stack = space.region(STACK).unwrap();
    // All of it is there from the beginning: the signal engine cannot bring in what it runs on.
    stack.as_mut_slice().fill(0);
    let mut work = (space.clone(), stack.as_ptr() as usize);
    let mut result = std::ptr::null_mut();
    // SAFETY: the stack outlives the thread, which is waited for.
    unsafe {
        let mut attributes = std::mem::zeroed();
        let mut thread = std::mem::zeroed();
        assert_eq!(libc::pthread_attr_init(&mut attributes), 0);
        let at = stack.as_ptr().cast();
        assert_eq!(libc::pthread_attr_setstack(&mut attributes, at, STACK), 0);
        let work = std::ptr::from_mut(&mut work).cast();
        assert_eq!(
            libc::pthread_create(&mut thread, &attributes, main, work),
            0
        );
        assert_eq!(libc::pthread_join(thread, &mut result), 0);
        libc::pthread_attr_destroy(&mut attributes);
    }
    assert_eq!(result as usize, 1);
}
