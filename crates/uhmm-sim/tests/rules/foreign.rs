//! R14 for memory that the space does not manage: a device maps what is there, faults in the rest, and never
//! has an entry that outlives its mapping.

use crate::hook::Op;
use crate::rig::{DEVICE_PRIVATE, Three, number};
use crate::types::range;
use crate::watcher::{Book, Device, Locked, all, device};
use crate::world::{BUDGET, SimSpace};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::addr::PageRange;
use uhmm_core::fault::Scratch;
use uhmm_core::foreign::{ForeignMemory, Refusal};
use uhmm_core::mirror::{Event, Mapped, MirrorError, Need, Permission, Permissions, RangeFault};
use uhmm_core::mmu::{Mmu, Stop};
use uhmm_sim::{Call, Failure, Mapping};

const NONE: Permission = Permission {
    read: false,
    write: false,
};
const READ_ONLY: Permission = Permission {
    read: true,
    write: false,
};
const BOTH: Permission = Permission {
    read: true,
    write: true,
};
const RAM: Mapped = Mapped::ram(true);
const COPIED_ON_WRITE: Mapped = Mapped::ram(false);
const ZERO: Mapped = Mapped::Ram {
    write: false,
    zero: true,
    order: 0,
};
const HUGE: Mapped = Mapped::Ram {
    write: true,
    zero: false,
    order: 9,
};

/// A space whose pages are its own but for those that are mapped as something else.
fn spaced(foreign: &[(usize, usize, Mapping, Permission)]) -> Three {
    let three = Three::new(4 * BUDGET);
    for &(first, len, mapping, allowed) in foreign {
        three.mmu().map_foreign(range(first, len), mapping, allowed);
    }
    three
}

/// What of `pages` is the space's, and may be used in every way; of holes it knows nothing.
fn managed(space: &SimSpace, pages: PageRange) -> Permissions {
    let own = pages.iter().filter(|page| space.mmu().manages(*page));
    own.map(|page| (PageRange::new(page, 1), BOTH)).collect()
}

fn fault(
    mirror: &Device<'_>,
    space: &SimSpace,
    request: &RangeFault<'_>,
) -> Result<(Vec<Mapped>, usize), MirrorError> {
    let look = |pages| Ok(managed(space, pages));
    let install = |table: &mut Locked<'_>, found: &[Mapped]| {
        let entries = request.pages.iter().zip(found.iter().copied());
        table.entries.extend(entries);
        found.to_vec()
    };
    mirror.range_fault(request, look, &mut Scratch::default(), install)
}

fn fault_all(
    mirror: &Device<'_>,
    space: &SimSpace,
    first: usize,
    len: usize,
    need: Need,
) -> Result<(Vec<Mapped>, usize), MirrorError> {
    fault(mirror, space, &RangeFault::all(range(first, len), need))
}

/// Two pages of each kind: the first was touched.
fn each_kind() -> Three {
    let kinds = [
        (0, Mapping::Private, BOTH),
        (2, Mapping::Shared, BOTH),
        (4, Mapping::File(7), BOTH),
        (6, Mapping::Private, READ_ONLY),
        (8, Mapping::Huge(9), BOTH),
        (10, Mapping::Private, NONE),
    ];
    let three = spaced(&kinds.map(|(first, mapping, allowed)| (first, 2, mapping, allowed)));
    for first in [0, 2, 4, 6, 8] {
        three.mmu().populate(range(first, 1), false).unwrap();
    }
    three
}

#[test]
fn r14_a_snapshot_of_foreign_memory_says_what_is_there_and_brings_nothing() {
    let three = each_kind();
    let (_, mirror) = device(&three.space, 0, 16);
    three.write(14);
    let nothing = Mapped::Nothing;
    // The last two are the space's own.
    let expected = [
        ZERO,
        nothing,
        RAM,
        nothing,
        COPIED_ON_WRITE,
        nothing,
        ZERO,
        nothing,
        HUGE,
        nothing,
        Mapped::Error,
        Mapped::Error,
        Mapped::Nothing,
        Mapped::Nothing,
        RAM,
        Mapped::Nothing,
    ];
    for _ in 0..2 {
        let found = fault_all(&mirror, &three.space, 0, 16, Need::SNAPSHOT);
        assert_eq!(found, Ok((expected.to_vec(), 0)));
    }
    let there = |page: &usize| three.mmu().peek_foreign(number(*page)).is_some();
    assert_eq!((0..12).filter(there).collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
    // What is written to is an ordinary page from then on.
    three.mmu().write_foreign(number(0), |data| data.0[0] = 1);
    three.mmu().write_foreign(number(5), |data| data.0[0] = 1);
    let found = fault_all(&mirror, &three.space, 0, 6, Need::SNAPSHOT)
        .unwrap()
        .0;
    assert_eq!([found[0], found[5]], [RAM; 2]);
    // A hole, and one where nothing of the space is either.
    three.mmu().unmap_foreign(range(4, 2));
    let look = |_| Ok(Permissions::new());
    let request = RangeFault::all(range(3, 4), Need::SNAPSHOT);
    let found = mirror.range_fault(&request, look, &mut Scratch::default(), |_, found| {
        found.to_vec()
    });
    let expected = vec![nothing, Mapped::Error, Mapped::Error, ZERO];
    assert_eq!(found, Ok((expected, 0)));
}

#[test]
fn r14_foreign_pages_come_in_one_round_and_one_call() {
    for (need, expected) in [
        (Need::READ, [ZERO, RAM, COPIED_ON_WRITE, HUGE]),
        (Need::WRITE, [RAM, RAM, RAM, HUGE]),
    ] {
        let three = spaced(&[
            (0, 4, Mapping::Private, BOTH),
            (4, 4, Mapping::Shared, BOTH),
            (8, 4, Mapping::File(7), BOTH),
            (12, 4, Mapping::Huge(9), BOTH),
        ]);
        let (_, mirror) = device(&three.space, 0, 16);
        let (found, rounds) = fault_all(&mirror, &three.space, 0, 16, need).unwrap();
        let expected: Vec<_> = expected.iter().flat_map(|is| [*is; 4]).collect();
        assert_eq!((found, rounds), (expected.clone(), 1));
        assert_eq!(three.mmu().populated.load(SeqCst), 1, "one call for all");
        assert_eq!(three.mmu().looks.load(SeqCst), 2);
        let again = fault_all(&mirror, &three.space, 0, 16, need);
        assert_eq!(again, Ok((expected, 0)));
        let byte = three.mmu().peek_foreign(number(9)).unwrap().0[4095];
        assert_eq!(byte, 7, "the file's");
    }
}

/// A page that is there to read is made one to write to where that is needed.
#[test]
fn r14_a_need_to_write_makes_the_copy() {
    let three = each_kind();
    let (_, mirror) = device(&three.space, 0, 16);
    assert_eq!(
        fault_all(&mirror, &three.space, 0, 1, Need::READ),
        Ok((vec![ZERO], 0))
    );
    assert_eq!(
        fault_all(&mirror, &three.space, 0, 1, Need::WRITE),
        Ok((vec![RAM], 1))
    );
    let found = fault_all(&mirror, &three.space, 4, 1, Need::WRITE);
    assert_eq!(found, Ok((vec![RAM], 1)));
    assert_eq!(three.mmu().peek_foreign(number(4)).unwrap().0[0], 7);
}

#[test]
fn r14_foreign_pages_are_brought_as_each_is_needed_and_no_other() {
    let three = spaced(&[(0, 8, Mapping::Private, BOTH)]);
    let (_, mirror) = device(&three.space, 0, 8);
    let mut each = [Need::SNAPSHOT; 8];
    (each[1], each[2], each[5]) = (Need::READ, Need::WRITE, Need::READ);
    let request = RangeFault {
        pages: range(0, 8),
        default: Need::SNAPSHOT,
        each: &each,
    };
    let (found, rounds) = fault(&mirror, &three.space, &request).unwrap();
    let nothing = Mapped::Nothing;
    let expected = [nothing, ZERO, RAM, nothing, nothing, ZERO, nothing, nothing];
    assert_eq!((&found[..], rounds), (&expected[..], 1));
    let there = |page: &usize| three.mmu().peek_foreign(number(*page)).is_some();
    assert_eq!((0..8).filter(there).collect::<Vec<_>>(), [1, 2, 5]);
}

#[test]
fn r14_what_the_program_may_not_do_with_foreign_pages_the_device_may_not() {
    let three = spaced(&[
        (0, 4, Mapping::Private, BOTH),
        (4, 4, Mapping::Private, READ_ONLY),
        (8, 4, Mapping::Private, NONE),
    ]);
    let (_, mirror) = device(&three.space, 0, 16);
    let fault =
        |first, len, need| fault_all(&mirror, &three.space, first, len, need).map(|found| found.1);
    let not_writable = |page| Err(MirrorError::NotWritable(number(page)));
    let no_access = |page| Err(MirrorError::NoAccess(number(page)));
    assert_eq!(fault(0, 6, Need::WRITE), not_writable(4));
    assert_eq!(fault(6, 4, Need::WRITE), not_writable(6), "the first");
    assert_eq!(fault(6, 4, Need::READ), no_access(8));
    assert_eq!(fault(9, 1, Need::WRITE), no_access(9));
    assert_eq!(
        three.mmu().populated.load(SeqCst),
        0,
        "nothing for what is refused"
    );
    assert_eq!(fault(0, 8, Need::READ), Ok(1));
    // A hole that the space does not know of either.
    let request = RangeFault::all(range(12, 2), Need::READ);
    let look = |_| Ok(Permissions::new());
    let hole = mirror.range_fault(&request, look, &mut Scratch::default(), |_, _| ());
    assert_eq!(hole, no_access(12).map(|_| ((), 0)));
    // The same range once more, when all of it may be used.
    three.mmu().protect_foreign(range(0, 12), BOTH);
    assert_eq!(fault(0, 12, Need::WRITE), Ok(1));
}

#[test]
fn r14_foreign_pages_that_do_not_come_are_an_error_of_that_page() {
    let three = spaced(&[(0, 8, Mapping::Shared, BOTH)]);
    let (_, mirror) = device(&three.space, 0, 8);
    let fault = |need| fault_all(&mirror, &three.space, 0, 8, need).map(|found| found.1);
    three
        .mmu()
        .refuse_foreign(range(5, 3), Some(Refusal::Deadly));
    assert_eq!(fault(Need::READ), Err(MirrorError::NoAccess(number(5))));
    three
        .mmu()
        .refuse_foreign(range(5, 3), Some(Refusal::Poisoned));
    assert_eq!(fault(Need::WRITE), Err(MirrorError::Poisoned(number(5))));
    three.mmu().refuse_foreign(range(5, 3), None);
    // There is no memory: the rest of the second is waited for it.
    three
        .mmu()
        .refuse_foreign(range(6, 1), Some(Refusal::Later));
    let start = Instant::now();
    assert_eq!(fault(Need::READ), Err(MirrorError::NoRam(number(6))));
    assert!(start.elapsed() >= Duration::from_secs(1));
    three.mmu().refuse_foreign(range(6, 1), None);
    three
        .mmu()
        .fail(Call::Populate, Failure::next(Stop::NoMemory));
    assert_eq!(fault(Need::READ), Ok(2), "and there is some the next time");
    three.mmu().fail(Call::Look, Failure::next(Stop::Changing));
    assert_eq!(fault(Need::READ), Err(MirrorError::Unseen));
    assert_eq!(fault(Need::READ), Ok(0));
}

/// Pages of both kinds, in one range.
#[test]
fn r14_a_range_may_be_managed_in_parts() {
    let three = spaced(&[
        (4, 4, Mapping::Private, BOTH),
        (12, 4, Mapping::Shared, BOTH),
    ]);
    let (_, mirror) = device(&three.space, 0, 16);
    three.write_all(0..4);
    three.to_device(0, 4, DEVICE_PRIVATE);
    three.mmu().write_foreign(number(5), |data| data.0[9] = 5);
    let (found, rounds) = fault_all(&mirror, &three.space, 0, 16, Need::WRITE).unwrap();
    assert_eq!((found, rounds), (vec![RAM; 16], 1));
    let mut table = mirror.lock().unwrap();
    let mut bytes = vec![0; 16 * 4096];
    table.read(number(0), 0, &mut bytes).unwrap();
    assert_eq!(bytes[5 * 4096 + 9], 5);
    for page in 0..4 {
        let bytes = bytes[page * 4096..][..4096].try_into().unwrap();
        three.oracle.check(page, &uhmm_core::addr::PageData(bytes));
    }
    // The foreign pages in two calls, each for a whole run.
    assert_eq!(three.mmu().copies.load(SeqCst), 2);
    let written = vec![3; 2 * 4096];
    table.write(number(7), 2048, &written).unwrap();
    assert_eq!(
        three.mmu().peek_foreign(number(7)).unwrap().0[2047..2049],
        [0, 3]
    );
    drop(table);
    assert_eq!(three.mmu().touch_read(number(8)).unwrap().0, [3; 4096]);
    assert_eq!(
        three.mmu().touch_read(number(9)).unwrap().0[2047..2049],
        [3, 0]
    );
    (0..4).for_each(|page| three.check(page));
    three.check_invariants();
}

/// A table is told of what goes through the space; of what does not, its device hears by an error.
#[test]
fn r14_a_foreign_page_that_goes_unseen_is_an_error_and_no_other_byte() {
    let three = spaced(&[(0, 8, Mapping::Private, BOTH)]);
    let (listener, mirror) = device(&three.space, 0, 8);
    fault_all(&mirror, &three.space, 0, 8, Need::WRITE).unwrap();
    three.mmu().unmap_foreign(range(3, 1));
    three.mmu().map_foreign(range(3, 1), Mapping::Private, NONE);
    let mut table = mirror.lock().unwrap();
    let mut bytes = [1; 8 * 4096];
    let gone = Err(MirrorError::Gone(number(3)));
    assert_eq!(table.read(number(0), 8, &mut bytes[8..]), gone);
    assert_eq!(bytes[8..3 * 4096], [0; 3 * 4096 - 8], "what is before it");
    assert_eq!(bytes[3 * 4096..], [1; 5 * 4096], "and nothing after it");
    assert_eq!(table.write(number(2), 4000, &[9; 200]), gone);
    assert_eq!(
        three.mmu().peek_foreign(number(2)).unwrap().0[4000..],
        [9; 96]
    );
    assert_eq!(table.read(number(4), 0, &mut bytes[..4096]), Ok(()));
    drop(table);
    assert_eq!(listener.take(), []);
    // And a look finds what is mapped there now.
    let found = fault_all(&mirror, &three.space, 0, 8, Need::READ);
    assert_eq!(found.err(), Some(MirrorError::NoAccess(number(3))));
}

type Step = fn(&SimSpace);

/// What the program asks the kernel for, by way of the space.
const CHANGES: [(&str, Event, Step, Mapped); 3] = [
    (
        "an unmapping",
        Event::Unmap,
        |space| space.mmu().unmap_foreign(range(2, 1)),
        Mapped::Error,
    ),
    (
        "a change of protection",
        Event::Protect,
        |space| space.mmu().protect_foreign(range(2, 1), READ_ONLY),
        COPIED_ON_WRITE,
    ),
    (
        "a drop",
        Event::Clear,
        |space| space.mmu().map_foreign(range(2, 1), Mapping::Private, BOTH),
        Mapped::Nothing,
    ),
];

fn changing(space: &SimSpace, event: Event, step: Step) {
    let changing = space.invalidating(range(2, 1), event);
    step(space);
    drop(changing);
}

/// What the space's own pages are told, and nothing of the rest: then all of this is unmanaged.
fn nothing_managed(_: PageRange) -> Result<Permissions, MirrorError> {
    Ok(Permissions::new())
}

/// Before a look, between a look and the lock, and once the table is written.
#[test]
fn r14_a_change_of_foreign_memory_at_any_line_is_never_missed() {
    for (what, event, step, expected) in CHANGES {
        for op in [Some(Op::Look), Some(Op::Populate), None] {
            let three = spaced(&[(0, 4, Mapping::Private, BOTH)]);
            let space = three.space.clone();
            space.mmu().populate(range(0, 3), true).unwrap();
            let (listener, mirror) = device(&space, 0, 4);
            if let Some(op) = op {
                let within = Arc::clone(&space);
                space
                    .mmu()
                    .before(op, move || changing(&within, event, step));
            }
            let mut each = [Need::SNAPSHOT; 4];
            each[3] = Need::READ;
            let request = RangeFault {
                pages: range(0, 4),
                default: Need::SNAPSHOT,
                each: &each,
            };
            let install = |table: &mut Locked<'_>, found: &[Mapped]| {
                let entries = request.pages.iter().zip(found.iter().copied());
                table.entries.extend(entries);
                found.to_vec()
            };
            let mut scratch = Scratch::default();
            let found = mirror.range_fault(&request, nothing_managed, &mut scratch, install);
            let (found, _) = found.unwrap();
            assert_eq!(space.mmu().steps_left(), 0);
            if op.is_none() {
                assert_eq!(found[2], RAM);
                assert!(mirror.lock().unwrap().entries.contains_key(&number(2)));
                changing(&space, event, step);
                assert!(
                    !mirror.lock().unwrap().entries.contains_key(&number(2)),
                    "{what}"
                );
            } else {
                assert_eq!(found[2], expected, "{what} at {op:?}");
            }
            assert_eq!(listener.take(), [(2, 1, event)], "{what}");
        }
    }
}

/// The space manages pages from now on that it did not.
fn adopt(space: &SimSpace, first: usize, len: usize) {
    let pages = range(first, len);
    let inside = space.inside().unwrap();
    let adopting = space.invalidating(pages, Event::Adopt);
    space.mmu().serve_foreign(pages).unwrap();
    inside.adopt(pages);
    drop(adopting);
}

/// A page that is adopted leaves the table before it can go to a device.
#[test]
fn r14_a_page_that_is_adopted_leaves_the_table_before_it_is_the_spaces() {
    let three = spaced(&[(0, 4, Mapping::Private, BOTH)]);
    (0..4).for_each(|page| {
        let write = |data: &mut uhmm_core::addr::PageData| three.oracle.write(page, data);
        three.mmu().write_foreign(number(page), write);
    });
    let (listener, mirror) = device(&three.space, 0, 4);
    fault_all(&mirror, &three.space, 0, 4, Need::WRITE).unwrap();
    thread::scope(|scope| {
        let table = mirror.lock().unwrap();
        let adopting = scope.spawn(|| adopt(&three.space, 1, 2));
        thread::sleep(Duration::from_millis(50));
        assert!(
            !adopting.is_finished(),
            "what the table says is so while it is locked"
        );
        assert!(!three.mmu().manages(number(1)));
        let mut bytes = [0; 4096];
        table.read(number(1), 0, &mut bytes).unwrap();
        drop(table);
    });
    assert_eq!(listener.take(), [(1, 2, Event::Adopt)]);
    assert_eq!(three.to_device(1, 2, DEVICE_PRIVATE).migrated, 2);
    let table = mirror.lock().unwrap();
    let left: Vec<_> = table.entries.keys().copied().collect();
    assert_eq!(left, [number(0), number(3)]);
    let refused = table.read(number(0), 0, &mut [0; 2 * 4096]);
    assert_eq!(refused, Err(MirrorError::NotInTable(number(1))));
    drop(table);
    let found = fault_all(&mirror, &three.space, 0, 4, Need::READ);
    assert_eq!(found, Ok((vec![RAM; 4], 1)));
    (1..3).for_each(|page| three.check(page));
}

/// A look at a page that comes to be the space's in the middle of it is no error.
#[test]
fn r14_a_refusal_counts_only_if_nothing_has_changed() {
    for op in [Op::Look, Op::Populate] {
        let three = spaced(&[(0, 4, Mapping::Private, BOTH)]);
        let (_, mirror) = device(&three.space, 0, 4);
        let space = three.space.clone();
        three.mmu().before(op, move || adopt(&space, 0, 4));
        let found = fault_all(&mirror, &three.space, 0, 4, Need::WRITE).unwrap();
        assert_eq!(found.0, [RAM; 4]);
        assert_eq!(three.mmu().steps_left(), 0);
        three.check_invariants();
    }
}

#[test]
fn r17_no_device_has_a_foreign_page_alone() {
    let three = spaced(&[(2, 2, Mapping::Private, BOTH)]);
    three.write_all(0..2);
    let (_, mirror) = device(&three.space, 0, 4);
    fault_all(&mirror, &three.space, 0, 4, Need::WRITE).unwrap();
    let refused = |first, len| crate::watcher::alone(&mirror, first, len).err();
    assert_eq!(refused(2, 1), Some(MirrorError::NotManaged(number(2))));
    assert_eq!(refused(0, 4), Some(MirrorError::NotManaged(number(2))));
    assert_eq!(crate::watcher::alone(&mirror, 0, 2), Ok(vec![true; 2]));
    drop(mirror);
    three.check_all();
}

/// The space's own pages may be parts of huge ones: it is asked where a whole one is.
#[test]
fn r14_huge_pages_of_the_space_are_told_where_all_of_one_is_asked_for() {
    let three = Three::new(4 * BUDGET);
    three.write_all(508..516);
    three.write_all(1020..1024);
    three.to_device(515, 1, DEVICE_PRIVATE);
    three.mmu().make_huge(range(0, 512));
    three.mmu().make_huge(range(514, 100));
    let look = |first, len| {
        let (_, mirror) = device(&three.space, 0, 1024);
        let request = RangeFault::all(range(first, len), Need::SNAPSHOT);
        let copy = |_: &mut Locked<'_>, found: &[Mapped]| found.to_vec();
        let found = mirror.range_fault(&request, all, &mut Scratch::default(), copy);
        found.unwrap().0
    };
    let found = look(0, 1024);
    let nothing = Mapped::Nothing;
    assert_eq!(
        found[507..517],
        [
            nothing, HUGE, HUGE, HUGE, HUGE, RAM, RAM, HUGE, nothing, nothing
        ]
    );
    assert_eq!(found[1019..], [nothing, RAM, RAM, RAM, RAM]);
    assert_eq!(look(1, 511)[506..], [nothing, RAM, RAM, RAM, RAM], "a part");
    let found = look(511, 513);
    assert_eq!(
        found[..4],
        [RAM, RAM, RAM, HUGE],
        "a whole one, and what is beside it"
    );
}

/// A table over everything costs nothing, and is told of what is in it.
#[test]
fn r14_a_table_may_be_over_all_that_has_a_number() {
    let three = spaced(&[(100, 8, Mapping::Shared, BOTH)]);
    let space = &three.space;
    let mirror = space.mirror(space.range(), None, Book::default()).unwrap();
    let look = |pages| Ok(managed(space, pages));
    let request = RangeFault::all(range(100, 8), Need::WRITE);
    let install = |table: &mut Locked<'_>, found: &[Mapped]| {
        table.write(number(100), 0, &[1; 8 * 4096]).unwrap();
        found.to_vec()
    };
    let found = mirror.range_fault(&request, look, &mut Scratch::default(), install);
    assert_eq!(found, Ok((vec![RAM; 8], 1)));
    assert_eq!(three.mmu().peek_foreign(number(107)).unwrap().0, [1; 4096]);
}
