//! Hints that last: they stay with their range and go with it, on each side of a fork, and cost little.

use crate::child::{End, child, wait};
use crate::hints::{NONE, PAGES, advise, hints, is_on, push_all_out};
use crate::{FIRST, SECOND, World, alone};
use std::ops::Range;
use uhmm::memory::Protection;
use uhmm::{Hint, Place, RangeError};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::hints::{Hints, Preferred};
use uhmm_core::memory_type::MemoryType::Private;

#[test]
fn hints_last_until_the_range_is_unmapped() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let wanted = Hints {
        read_mostly: true,
        preferred: Some(Preferred::Device(0)),
        accessed_by: 1,
    };
    for hint in [
        Hint::ReadMostly,
        Hint::Prefer(Place::Device(FIRST)),
        Hint::AccessedBy(FIRST),
    ] {
        assert_eq!(advise(&world, 100..200, hint), NONE);
    }
    let at_100 = [
        Hint::Prefer(Place::Device(FIRST)),
        Hint::AccessedBy(FIRST),
        Hint::ReadMostly,
    ];
    let asked = |page: usize| world.space.hints_at(world.address + page * PAGE_SIZE + 5);
    assert_eq!(asked(100).unwrap(), at_100);
    assert_eq!(asked(99).unwrap(), []);
    assert_eq!(world.space.hints_at(4096), Err(RangeError::Foreign));
    let has = |pages: Range<usize>, wanted| pages.clone().all(|page| hints(&world, page) == wanted);
    let still = || has(0..100, Hints::NONE) && has(100..200, wanted) && has(200..300, Hints::NONE);
    assert!(still());
    world.write_all();
    world.send(Place::Device(FIRST));
    world.check_all();
    world.protect(50..150, Protection::READ);
    world.protect(50..150, Protection::READ | Protection::WRITE);
    assert!(still());
    let memory = world.space.memory();
    let at = |page: usize| world.address + page * PAGE_SIZE;
    // SAFETY: nothing borrows any of it.
    unsafe { memory.discard(at(120), 20 * PAGE_SIZE) }.unwrap();
    assert!(still());
    (120..140).for_each(|page| world.oracle.discard(page));
    // Gone with the range, and with no more than that.
    // SAFETY: as above.
    unsafe { memory.unmap(at(150), 20 * PAGE_SIZE) }.unwrap();
    assert!(has(100..150, wanted) && has(150..170, Hints::NONE) && has(170..200, wanted));
    let all = Protection::READ | Protection::WRITE;
    // SAFETY: as above.
    unsafe {
        memory.map_at(at(150), 20 * PAGE_SIZE, all, true).unwrap();
        // In place of what is there.
        memory.map_at(at(190), 20 * PAGE_SIZE, all, false).unwrap();
    }
    (150..170)
        .chain(190..210)
        .for_each(|page| world.oracle.discard(page));
    assert!(has(150..170, Hints::NONE) && has(170..190, wanted) && has(190..300, Hints::NONE));
    // Taken back, one by one.
    advise(&world, 0..PAGES, Hint::NotReadMostly);
    advise(&world, 0..PAGES, Hint::NoPreference);
    assert_eq!(hints(&world, 100).accessed_by, 1);
    advise(&world, 0..PAGES, Hint::NotAccessedBy(FIRST));
    assert!(has(0..PAGES, Hints::NONE));
    world.check_all();
}

#[test]
fn hints_go_along_when_a_range_moves_grows_and_shrinks() {
    let _alone = alone();
    let mut world = World::new(&[Private], PAGES);
    let memory = world.space.clone();
    let memory = memory.memory();
    world.write_all();
    advise(&world, 0..10, Hint::Prefer(Place::Ram));
    advise(&world, 10..20, Hint::ReadMostly);
    advise(&world, 290..300, Hint::ReadMostly);
    let wanted = |page| match page {
        0..10 => Hints {
            preferred: Some(Preferred::Ram),
            ..Hints::NONE
        },
        10..20 | 290.. => Hints::READ_MOSTLY,
        _ => Hints::NONE,
    };
    let (old, len) = (world.number(0), world.len());
    let room = memory.map(2 * len, Protection::empty()).unwrap();
    // SAFETY: nothing borrows the range.
    let moved = unsafe {
        memory.remap(
            world.address,
            len,
            len + 5 * PAGE_SIZE,
            true,
            Some(room),
            false,
        )
    };
    world.address = moved.unwrap();
    let now = |page: usize| {
        let page = uhmm_core::addr::PageNo::containing(world.address).plus(page);
        world.space.internals().hints(page)
    };
    (0..PAGES + 5).for_each(|page| assert_eq!(now(page), wanted(page), "page {page}"));
    let internals = world.space.internals();
    (0..PAGES).for_each(|page| assert_eq!(internals.hints(old.plus(page)), Hints::NONE));
    world.check_all();
    // What it loses at its end has none.
    // SAFETY: as above.
    let same = unsafe { memory.remap(world.address, len + 5 * PAGE_SIZE, len, true, None, false) };
    assert_eq!(same.unwrap(), world.address);
    assert_eq!(now(PAGES), Hints::NONE);
    assert_eq!(now(PAGES - 1), Hints::READ_MOSTLY);
    // What it gains is like its end.
    // SAFETY: as above; the rest of the room is unmapped first, so it grows where it is.
    let same = unsafe {
        memory.unmap(room + len, len).unwrap();
        memory.remap(world.address, len, len + PAGE_SIZE, false, None, false)
    };
    assert_eq!(same.unwrap(), world.address);
    assert_eq!(now(PAGES), Hints::READ_MOSTLY);
    // SAFETY: as above.
    unsafe { memory.unmap(room + len, PAGE_SIZE) }.unwrap();
    world.check_all();
}

#[test]
fn each_side_of_a_fork_has_the_hints_and_changes_its_own() {
    let _alone = alone();
    let world = World::new(&[Private, Private], PAGES);
    world.write_all();
    let prefer = |device| Hint::Prefer(Place::Device(device));
    advise(&world, 0..100, prefer(SECOND));
    let pid = child(|| {
        assert_eq!(hints(&world, 50).preferred, Some(Preferred::Device(1)));
        push_all_out(&world);
        assert!((0..100).all(|page| is_on(&world, page, SECOND)));
        assert!((100..PAGES).all(|page| is_on(&world, page, FIRST)));
        world.check_all();
        advise(&world, 0..PAGES, Hint::Prefer(Place::Ram));
        0
    });
    advise(&world, 50..150, prefer(FIRST));
    assert_eq!(wait(pid), End::Exit(0));
    push_all_out(&world);
    for page in 0..PAGES {
        let device = if page < 50 { SECOND } else { FIRST };
        assert!(is_on(&world, page, device), "page {page}");
    }
    world.check_all();
}

/// Bytes of RAM that the process has.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages = statm.split(' ').nth(1).unwrap();
    pages.parse::<usize>().unwrap() * PAGE_SIZE
}

/// Hints cost memory where they were given, and 8 bytes for 2 MiB where a whole region has them.
#[test]
fn a_hint_on_a_tebibyte_costs_little() {
    const TIB: usize = 1 << 40;
    let _alone = alone();
    let space = crate::space_with(&[Private]);
    for len in [1 << 30, TIB] {
        let time = |what: &str, work: &mut dyn FnMut()| {
            let (begin, before) = (std::time::Instant::now(), resident());
            work();
            let (took, more) = (begin.elapsed(), resident().saturating_sub(before));
            println!("{len:#x} bytes: {what}: {took:?}, {more} bytes of RAM");
            assert!(took.as_millis() < 1000, "{what}: {took:?}");
            assert!(more < 16 << 20, "{what}: {more} bytes of RAM");
        };
        let mut region = None;
        time("map", &mut || region = Some(space.region(len).unwrap()));
        time("free, no hint given", &mut || region = None);
        time("map", &mut || region = Some(space.region(len).unwrap()));
        let advise = |region: &Option<uhmm::Region>, hint| {
            let region = region.as_ref().unwrap();
            assert_eq!(region.advise(hint), Ok(NONE), "{hint:?}");
        };
        time("hint", &mut || advise(&region, Hint::Prefer(Place::Ram)));
        time("hint again", &mut || {
            advise(&region, Hint::AccessedBy(FIRST))
        });
        time("will need", &mut || advise(&region, Hint::WillNeed));
        time("do not need", &mut || advise(&region, Hint::DoNotNeed));
        time("prefetch", &mut || advise(&region, Hint::Prefetch(None)));
        time("free, hint given", &mut || region = None);
        time("map", &mut || region = Some(space.region(len).unwrap()));
        time("hint a page", &mut || {
            let region = region.as_ref().unwrap();
            let page = region
                .range(len / 2 + PAGE_SIZE..len / 2 + 2 * PAGE_SIZE)
                .unwrap();
            assert_eq!(page.advise(Hint::ReadMostly), Ok(NONE));
        });
        time("free, a page's hint given", &mut || region = None);
    }
}
