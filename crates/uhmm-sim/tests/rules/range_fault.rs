//! R14: what a device may map for each page, and what is done to bring it there.

use crate::duplicates::{duplicate, read_again};
use crate::hook::Op;
use crate::rig::{
    DEVICE_COHERENT, DEVICE_PRIVATE, Recorder, SYSTEM, Three, WATCHED, Was, number, small,
};
use crate::types::range;
use crate::watcher::{Book, Locked, READ, alone, device, pages, pin, populate};
use crate::world::{BUDGET, SimSpace, World, with_reclaimer};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::addr::PageRange;
use uhmm_core::device::{CopyInError, Owner};
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::mirror::{
    Mapped, MirrorError, Need, NotifierError, Permission, Permissions, RangeFault,
};

/// Past this, a call has waited for something. Calls that wait do so for a second.
const AT_ONCE: Duration = Duration::from_millis(800);
const BOUNDED: Duration = Duration::from_secs(5);
/// The owner of the private device of [`Three`].
const OWNER: Owner = Owner(7);

const MAY_READ: Permission = Permission {
    read: true,
    write: false,
};
const MAY_ALL: Permission = Permission {
    read: true,
    write: true,
};
const RAM: Mapped = Mapped::ram(true);

/// What a device of `owner` may map, where the program may do `permission`.
fn look(
    space: &SimSpace,
    request: &RangeFault<'_>,
    permission: Permission,
    owner: Option<Owner>,
) -> Result<Vec<Mapped>, MirrorError> {
    let mut found = Vec::new();
    let allowed = [(space.range(), permission)];
    space.range_fault(
        request,
        &allowed,
        owner,
        &mut Scratch::default(),
        &mut found,
    )?;
    Ok(found)
}

fn one(space: &SimSpace, page: usize, need: Need, owner: Option<Owner>) -> Mapped {
    let request = RangeFault::all(range(page, 1), need);
    look(space, &request, MAY_ALL, owner).unwrap()[0]
}

fn counters(space: &SimSpace) -> [u64; 8] {
    let stats = space.stats();
    [
        &stats.first_touch_faults,
        &stats.device_faults,
        &stats.limbo_faults,
        &stats.stale_faults,
        &stats.pages_to_system,
        &stats.duplicate_pages,
        &stats.invalidations,
        &stats.exclusive_ends,
    ]
    .map(|counter| counter.get())
}

fn in_each_state() -> Three {
    let three = Three::new(4 * BUDGET);
    for (i, was) in Was::ALL.into_iter().enumerate() {
        if was != Was::Limbo {
            was.make(&three, 8 * i, 8);
        }
    }
    three
}

fn on_device(three: &Three, page: usize, write: bool) -> Mapped {
    let at = three.on(page);
    Mapped::Device { at, write }
}

/// By its state and whose it is, with what the program may do.
#[test]
fn r14_a_snapshot_says_what_is_there_and_changes_nothing() {
    let three = in_each_state();
    let (_, other) = device(&three.space, 400, 8);
    assert_eq!(alone(&other, 400, 1), Ok(vec![true]));
    assert!(three.space.memory_failure(number(0)).is_err(), "a hole");
    three.write(200);
    three.space.memory_failure(number(200)).unwrap();
    let before: Vec<_> = (0..500).map(|page| three.state(page)).collect();
    let counted = counters(&three.space);
    // To write without a fault is no need either.
    let only_write = Need {
        fault: false,
        write: true,
    };
    let needs = [Need::SNAPSHOT, only_write];
    for (need, owner) in needs
        .map(|need| [(need, None), (need, Some(OWNER))])
        .concat()
    {
        for (i, was) in Was::ALL.into_iter().enumerate() {
            let page = 8 * i + 3;
            let expected = match was {
                Was::Hole | Was::Limbo => Mapped::Nothing,
                // The core is told what the program may do; here it may do everything.
                Was::System | Was::ReadOnly => RAM,
                Was::Private if owner.is_none() => Mapped::Nothing,
                Was::Private | Was::Coherent | Was::ReadOnlyCoherent => {
                    on_device(&three, page, true)
                }
            };
            assert_eq!(one(&three.space, page, need, owner), expected, "{was:?}");
        }
        assert_eq!(one(&three.space, 200, need, owner), Mapped::Error, "lost");
        assert_eq!(
            one(&three.space, 400, need, owner),
            Mapped::Nothing,
            "alone"
        );
    }
    let migration = three.begin(8, 1, SYSTEM);
    let start = Instant::now();
    assert_eq!(one(&three.space, 8, Need::SNAPSHOT, None), Mapped::Nothing);
    assert!(start.elapsed() < AT_ONCE, "it does not wait");
    drop(migration);
    let now: Vec<_> = (0..500).map(|page| three.state(page)).collect();
    assert_eq!(now[9..], before[9..]);
    assert_eq!(
        counters(&three.space)[..5],
        counted[..5],
        "nothing is faulted"
    );
    assert!(other.has_alone(number(400)));
}

#[test]
fn r14_what_is_needed_is_brought_and_nothing_else() {
    for (need, owner) in [
        (Need::READ, None),
        (Need::WRITE, None),
        (Need::WRITE, Some(OWNER)),
    ] {
        let three = in_each_state();
        for (i, was) in Was::ALL.into_iter().enumerate() {
            let page = 8 * i + 3;
            let neighbours: Vec<_> = [page - 2, page + 3].map(|page| three.state(page)).into();
            let found = one(&three.space, page, need, owner);
            let stays = match was {
                Was::Coherent | Was::ReadOnlyCoherent => true,
                Was::Private => owner == Some(OWNER),
                _ => false,
            };
            let expected = if stays {
                on_device(&three, page, true)
            } else {
                RAM
            };
            assert_eq!(found, expected, "{was:?}");
            assert_eq!(
                three.mmu().is_present(number(page)),
                !stays || was != Was::Private
            );
            let now: Vec<_> = [page - 2, page + 3].map(|page| three.state(page)).into();
            assert_eq!(now, neighbours, "{was:?}");
        }
        three.check_all();
        three.check_invariants();
    }
}

#[test]
fn r14_needs_are_of_all_pages_and_of_each_besides() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..8);
    three.to_device(0, 8, DEVICE_PRIVATE);
    let each = [Need::SNAPSHOT, Need::SNAPSHOT, Need::SNAPSHOT, Need::WRITE];
    let request = RangeFault {
        pages: range(0, 6),
        default: Need::SNAPSHOT,
        each: &each,
    };
    let found = look(&three.space, &request, MAY_ALL, None).unwrap();
    let nothing = Mapped::Nothing;
    assert_eq!(found, [nothing, nothing, nothing, RAM, nothing, nothing]);
    assert_eq!(three.space.stats().device_faults.get(), 1);
    // The default is of those too that have a need of their own, and of those past the list.
    let request = RangeFault {
        default: Need::READ,
        ..request
    };
    assert_eq!(
        look(&three.space, &request, MAY_ALL, None).unwrap(),
        [RAM; 6]
    );
    // A default to write makes no fault by itself, but of what is faulted a fault to write.
    let world = read_again(8);
    let request = RangeFault {
        pages: range(0, 4),
        default: Need {
            fault: false,
            write: true,
        },
        each: &[Need::SNAPSHOT, Need::READ],
    };
    let found = look(&world.space, &request, MAY_ALL, None).unwrap();
    let tracked = Mapped::ram(false);
    assert_eq!(found, [tracked, RAM, tracked, tracked]);
    assert!(duplicate(&world, 0).is_some() && duplicate(&world, 1).is_none());
}

#[test]
fn r14_private_pages_are_mapped_by_their_owner_alone() {
    let three = Three::new(4 * BUDGET);
    let same = Recorder::new(small(MemoryType::Private, 1).owner(OWNER));
    let other = Recorder::new(small(MemoryType::Private, 1));
    let same = three.space.add_device(same.boxed()).unwrap();
    let other = three.space.add_device(other.boxed()).unwrap();
    three.write_all(0..4);
    three.push_out();
    for (page, to) in [(1, DEVICE_PRIVATE), (2, same), (3, other)] {
        three.to_device(page, 1, to);
    }
    let device = |page| match three.state(page) {
        State::Private(at) => at.device,
        state => panic!("{state:?}"),
    };
    assert_eq!(
        [0, 1, 2, 3].map(device),
        [WATCHED, DEVICE_PRIVATE, same, other]
    );
    let request = RangeFault::all(range(0, 4), Need::SNAPSHOT);
    let mapped = |owner| look(&three.space, &request, MAY_READ, owner).unwrap();
    let there = |page| on_device(&three, page, false);
    let nothing = Mapped::Nothing;
    assert_eq!(mapped(Some(OWNER)), [nothing, there(1), there(2), nothing]);
    assert_eq!(
        mapped(three.space.owner(other)),
        [nothing, nothing, nothing, there(3)]
    );
    assert_eq!(mapped(None), [nothing; 4]);
    // A device without an owner is its own, and not everybody's.
    assert_eq!(
        mapped(three.space.owner(WATCHED)),
        [there(0), nothing, nothing, nothing]
    );
    // What is another's comes to RAM.
    let request = RangeFault::all(range(0, 4), Need::READ);
    let found = look(&three.space, &request, MAY_ALL, Some(OWNER)).unwrap();
    let there = |page| on_device(&three, page, true);
    assert_eq!(found, [RAM, there(1), there(2), RAM]);
    three.check_all();
    three.check_invariants();
}

#[test]
fn r14_a_tracked_page_is_mapped_to_read_or_its_tracking_ends() {
    let world = read_again(8);
    let space = &world.space;
    let faults = counters(space)[..4].to_vec();
    assert_eq!(one(space, 3, Need::READ, None), Mapped::ram(false));
    assert!(duplicate(&world, 3).is_some());
    assert_eq!(one(space, 3, Need::WRITE, None), RAM);
    assert!(duplicate(&world, 3).is_none() && !world.mmu().is_tracked(number(3)));
    assert_eq!(counters(space)[..4], faults, "it was there");
    // And so for one that is pinned: it stays.
    let pinned = pin(space, 4, 1, READ).unwrap();
    assert_eq!(one(space, 4, Need::WRITE, None), RAM);
    drop(pinned);
    let (_, mirror) = device(space, 0, 8);
    assert_eq!(populate(&mirror, 5, 1, Need::WRITE), Ok(vec![RAM]));
    let mut table = mirror.lock().unwrap();
    table.write(number(5), 8, &[1, 2, 3]).unwrap();
    drop(table);
    // What the device wrote is not lost for a copy that is out of date.
    let mut written = [0; 3];
    world.push_out();
    assert_eq!(
        populate(&mirror, 5, 1, Need::READ),
        Ok(vec![Mapped::ram(false)])
    );
    mirror
        .lock()
        .unwrap()
        .read(number(5), 8, &mut written)
        .unwrap();
    assert_eq!(written, [1, 2, 3]);
    world.check_invariants();
}

#[test]
fn r14_permissions_of_the_program_are_the_devices() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..16);
    three.to_device(8, 4, DEVICE_COHERENT);
    let space = &three.space;
    let mut scratch = Scratch::default();
    let mut found = Vec::new();
    // Pages 0 to 4 to write, 4 to 12 to read, 12 to 14 not at all, then a hole.
    let none = Permission::default();
    let allowed = [
        (range(0, 4), MAY_ALL),
        (range(4, 8), MAY_READ),
        (range(12, 2), none),
    ];
    let mut ask = |pages: PageRange, need: Need| {
        let request = RangeFault::all(pages, need);
        let rounds = space.range_fault(&request, &allowed, None, &mut scratch, &mut found);
        rounds.map(|_| found.clone())
    };
    let read_only = Mapped::ram(false);
    let there = |page| on_device(&three, page, false);
    let all = ask(range(0, 16), Need::SNAPSHOT).unwrap();
    assert_eq!(
        all[..8],
        [
            RAM, RAM, RAM, RAM, read_only, read_only, read_only, read_only
        ]
    );
    assert_eq!(all[8..12], [there(8), there(9), there(10), there(11)]);
    assert_eq!(all[12..], [Mapped::Error; 4]);
    assert_eq!(ask(range(0, 12), Need::READ).unwrap(), all[..12]);
    assert_eq!(ask(range(0, 4), Need::WRITE).unwrap(), [RAM; 4]);
    let not_writable = |page| Err(MirrorError::NotWritable(number(page)));
    assert_eq!(ask(range(0, 5), Need::WRITE), not_writable(4));
    assert_eq!(ask(range(9, 1), Need::WRITE), not_writable(9));
    for need in [Need::READ, Need::WRITE] {
        for page in [12, 13, 14, 15] {
            let error = MirrorError::NoAccess(number(page));
            assert_eq!(ask(range(page, 1), need), Err(error));
        }
    }
    // Nothing is brought for what is refused.
    assert!(matches!(three.state(9), State::Coherent(_)));
    three.check_all();
}

/// Who brings a page wakes those who wait for it, and settles its entry then: a look that comes between
/// finds the page all the same. One that is unmapped is not waited for.
#[test]
fn r14_a_look_finds_what_a_touch_has_just_brought() {
    let world = read_again(8);
    let space = world.space.clone();
    let (sent, found) = std::sync::mpsc::channel();
    // The first write to a page with a duplicate: mapped, and in the hands of who ends the tracking.
    world.mmu().before(Op::Untrack, move || {
        let looks = thread::spawn(move || one(&space, 3, Need::SNAPSHOT, None));
        thread::sleep(Duration::from_millis(20));
        assert!(!looks.is_finished(), "it has looked too soon");
        sent.send(looks).unwrap();
    });
    world.write(3);
    assert_eq!(found.recv().unwrap().join().unwrap(), RAM);
    assert_eq!(world.push_out(), 0);
    let migration = world
        .space
        .migrate_vma(&crate::rig::args(3, 1, crate::rig::PRIVATE));
    let started = Instant::now();
    assert_eq!(one(&world.space, 3, Need::SNAPSHOT, None), Mapped::Nothing);
    assert!(started.elapsed() < AT_ONCE);
    drop(migration);
    world.check_all();
}

#[test]
fn r14_a_lost_page_is_an_error_where_it_is_needed() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..4);
    three.to_device(0, 4, DEVICE_PRIVATE);
    three.space.memory_failure(number(1)).unwrap();
    three.private.lose(three.on(2).page);
    let (_, mirror) = device(&three.space, 0, 4);
    let poisoned = |page| Err(MirrorError::Poisoned(number(page)));
    for need in [Need::READ, Need::WRITE] {
        assert_eq!(populate(&mirror, 0, 4, need), poisoned(1));
        assert_eq!(
            populate(&mirror, 2, 2, need),
            poisoned(2),
            "found out just now"
        );
    }
    assert_eq!(
        mirror.lock().unwrap().entries.len(),
        0,
        "install was not called"
    );
    let found = populate(&mirror, 0, 4, Need::SNAPSHOT).unwrap();
    assert_eq!(
        found[..3],
        [RAM, Mapped::Error, Mapped::Error],
        "and no neighbour"
    );
}

#[test]
fn r14_what_does_not_come_is_an_error_in_time() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..8);
    let busy = MirrorError::Notifier(NotifierError::Busy);
    let bounded = |first, need, error: MirrorError| {
        let start = Instant::now();
        let request = RangeFault::all(range(first, 1), need);
        assert_eq!(look(&three.space, &request, MAY_ALL, None), Err(error));
        assert!(
            start.elapsed() >= Duration::from_millis(900),
            "it is waited for"
        );
        assert!(start.elapsed() < BOUNDED);
    };
    let migration = three.begin(0, 1, SYSTEM);
    bounded(0, Need::READ, busy);
    drop(migration);
    three.to_device(4, 1, DEVICE_PRIVATE);
    three.private.retry(usize::MAX);
    bounded(4, Need::WRITE, busy);
    three.private.retry(0);
    three.space.close_for_fork();
    bounded(4, Need::WRITE, MirrorError::Forking);
    three.space.open_in_parent();
    // And no RAM.
    three.device.fail_copy_in_after(0, CopyInError::Full);
    three.private.set_full(true);
    (8..4 * BUDGET)
        .take_while(|page| {
            let charged = three.space.stats().ram_bytes.get() as usize / 4096;
            if charged < BUDGET {
                three.write(*page);
            }
            charged < BUDGET
        })
        .for_each(drop);
    bounded(
        4 * BUDGET - 2,
        Need::READ,
        MirrorError::NoRam(number(4 * BUDGET - 2)),
    );
    bounded(4, Need::READ, MirrorError::NoRam(number(4)));
    three.device.heal();
    three.private.set_full(false);
    with_reclaimer(&three.space, || three.check_all());
}

#[test]
fn r14_what_is_in_flight_is_waited_for() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..4);
    let (_, mirror) = device(&three.space, 0, 4);
    thread::scope(|scope| {
        let migration = three.begin(1, 2, SYSTEM);
        let asker = scope.spawn(|| populate(&mirror, 0, 4, Need::READ));
        thread::sleep(Duration::from_millis(30));
        assert!(!asker.is_finished());
        drop(migration);
        assert_eq!(asker.join().unwrap(), Ok(vec![RAM; 4]));
    });
    three.check_all();
}

#[test]
fn r14_a_range_that_is_not_the_mirrors_is_refused() {
    let world = World::new(64);
    let (_, mirror) = device(&world.space, 8, 8);
    assert_eq!(mirror.pages(), range(8, 8));
    for (first, len) in [(8, 0), (7, 2), (15, 2), (0, 64), (20, 1)] {
        let refused = Err(MirrorError::NotMirrored);
        assert_eq!(populate(&mirror, first, len, Need::READ), refused);
        assert_eq!(alone(&mirror, first, len).err(), refused.err());
    }
    let request = RangeFault::all(range(63, 2), Need::READ);
    let not_managed = Err(NotifierError::NotManaged.into());
    assert_eq!(look(&world.space, &request, MAY_ALL, None), not_managed);
    let mut table = mirror.lock().unwrap();
    let not_in_table = |page| Err(MirrorError::NotInTable(number(page)));
    assert_eq!(
        table.read(number(9), 0, &mut [0]),
        not_in_table(9),
        "not there"
    );
    assert_eq!(
        table.read(number(2), 0, &mut [0]),
        not_in_table(2),
        "not its"
    );
    assert_eq!(table.write(number(9), 0, &[0]), not_in_table(9));
    drop(table);
    world.check_invariants();
}

/// What may be done is looked at again in each round, and an error there is the call's.
#[test]
fn r14_permissions_are_looked_at_again_when_they_change() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..4);
    let (listener, mirror) = device(&three.space, 0, 4);
    let request = RangeFault::all(range(0, 4), Need::READ);
    let mut looks = 0;
    let look = |pages: PageRange| -> Result<Permissions, MirrorError> {
        looks += 1;
        if looks == 1 {
            // As another thread might, just then.
            three.protect(0, 4, false);
            return Ok(vec![(pages, MAY_ALL)]);
        }
        Ok(vec![(pages, MAY_READ)])
    };
    let install = |_: &mut Locked<'_>, found: &[Mapped]| found.to_vec();
    let done = mirror.range_fault(&request, look, &mut Scratch::default(), install);
    assert_eq!(done, Ok((vec![Mapped::ram(false); 4], 0)));
    assert_eq!((looks, listener.take().len()), (2, 1));
    let refused = |_| Err(MirrorError::Forking);
    let done = mirror.range_fault(&request, refused, &mut Scratch::default(), install);
    assert_eq!(done, Err(MirrorError::Forking));
}

/// A device that never gets on, because its pages change in every round, is told so.
#[test]
fn r14_a_range_that_does_not_come_to_rest_is_busy() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..4);
    let (_, mirror) = device(&three.space, 0, 4);
    let request = RangeFault::all(range(0, 4), Need::READ);
    let look = |pages: PageRange| {
        drop(
            three
                .space
                .invalidating(range(0, 1), uhmm_core::mirror::Event::Protect),
        );
        Ok(vec![(pages, MAY_ALL)])
    };
    let start = Instant::now();
    let install = |_: &mut Locked<'_>, _: &[Mapped]| panic!("what was found is out of date");
    let done = mirror.range_fault(&request, look, &mut Scratch::default(), install);
    assert_eq!(done.err(), Some(NotifierError::Busy.into()));
    assert!(start.elapsed() < BOUNDED);
}

/// A device that has a page alone, and asks for it like others, gives it back first.
#[test]
fn r17_a_device_that_faults_in_what_it_has_alone_has_it_no_more() {
    let world = World::new(4 * BUDGET);
    world.write_all(0..4);
    let (listener, mirror) = device(&world.space, 0, 4);
    assert_eq!(alone(&mirror, 0, 4), Ok(vec![true; 4]));
    assert_eq!(listener.take().len(), 1);
    assert_eq!(populate(&mirror, 1, 2, Need::READ), Ok(vec![RAM; 2]));
    let alone: Vec<_> = (0..4).map(|page| mirror.has_alone(number(page))).collect();
    assert_eq!(alone, [true, false, false, true]);
    assert_eq!(listener.take().len(), 2);
    world.check_all();
    world.check_invariants();
}

/// Private memory of its own, mapped in place, is read there; and is not read through the CPU.
#[test]
fn r14_what_the_cpu_does_not_map_is_not_read_through_it() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..2);
    three.to_device(0, 2, DEVICE_PRIVATE);
    let mirror = three
        .space
        .mirror(pages(0, 2), Some(OWNER), Book::default())
        .unwrap();
    let request = RangeFault::all(range(0, 2), Need::WRITE);
    let permit = |pages| Ok(vec![(pages, MAY_ALL)]);
    let install = |table: &mut Locked<'_>, found: &[Mapped]| {
        let read = table.read(number(0), 0, &mut [0]);
        assert_eq!(read, Err(MirrorError::NotInTable(number(0))));
        found.to_vec()
    };
    let (found, rounds) = mirror
        .range_fault(&request, permit, &mut Scratch::default(), install)
        .unwrap();
    assert_eq!(
        found,
        [on_device(&three, 0, true), on_device(&three, 1, true)]
    );
    assert_eq!(rounds, 0, "nothing had to be brought");
}
