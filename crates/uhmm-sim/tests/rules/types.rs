//! The types of device memory: what `memory_type.rs` says of each is so, in mapping, holding, migrating
//! and freeing, and what is not allowed is an error of its own that changes nothing.

use crate::hook::Op;
use crate::world::{BASE, BUDGET, SimSpace, World, or_abort, space, touch, with_reclaimer};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use uhmm_core::addr::{DeviceAddr, DevicePage, PageData, PageRange};
use uhmm_core::device::{CopyInError, CopyOutError, Device, DeviceInfo};
use uhmm_core::entry::State;
use uhmm_core::error::BuildError;
use uhmm_core::evict::{RemoveError, StillInUse};
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::hold::{Hold, HoldError};
use uhmm_core::map::MapError;
use uhmm_core::memory_type::{Holding, MemoryType};
use uhmm_core::migrate::{MigrateError, MigrateVma, Select};
use uhmm_core::mmu::Stop;
use uhmm_core::stats::MAX_DEVICES;
use uhmm_core::{AllocError, DevicePages};
use uhmm_mirror::MirrorDevice;
use uhmm_sim::{Call, Failure};

use MemoryType::*;

const TYPES: [MemoryType; 5] = [Private, Coherent, Generic, FsDax, PeerToPeer];
/// Those that programs have by being mapped.
pub const MAPPED: [MemoryType; 3] = [Generic, FsDax, PeerToPeer];
/// Pages of each device.
pub const CAPACITY: usize = 2048;
const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(20);

pub type Pages<'a> = DevicePages<'a, crate::hook::HookedMmu>;

pub fn device(memory: MemoryType) -> Box<dyn Device> {
    Box::new(MirrorDevice::with_memory((CAPACITY * 4096) as u64, memory))
}

/// A space with one device, of this type.
pub fn with(memory: MemoryType) -> Arc<SimSpace> {
    space(4 * BUDGET, vec![device(memory)])
}

/// A page of the first device.
pub fn on(page: u32) -> DeviceAddr {
    DeviceAddr {
        device: 0,
        page: DevicePage(page),
    }
}

/// Maps a new block of the first device.
pub fn map(space: &SimSpace, to: usize, order: u32) -> DeviceAddr {
    let block = space.alloc_device_pages(0, order).expect("room");
    let first = block.first();
    space.map_device_pages(block, BASE.plus(to)).expect("a map");
    first
}

/// Fills a page of the program with `byte`.
pub fn write(space: &SimSpace, page: usize, byte: u8) {
    let wrote = touch(space, page, Access::Write, |mmu, at| {
        mmu.touch_write(at, |data| data.0.fill(byte))
    });
    wrote.unwrap();
}

/// The byte that a page of the program is full of.
pub fn read(space: &SimSpace, page: usize) -> u8 {
    let mut found = 0;
    let read = touch(space, page, Access::Read, |mmu, at| {
        found = same(&mmu.touch_read(at)?);
        Ok(())
    });
    read.unwrap();
    found
}

fn same(data: &PageData) -> u8 {
    assert!(data.0.iter().all(|&byte| byte == data.0[0]));
    data.0[0]
}

pub fn range(first: usize, len: usize) -> PageRange {
    PageRange::new(BASE.plus(first), len)
}

pub fn discard(space: &SimSpace, first: usize, len: usize) {
    let inside = space.inside().unwrap();
    inside.discard(range(first, len)).unwrap();
}

/// What holds for every space between two steps of a test.
pub fn check(space: &SimSpace) {
    space.check_invariants();
    let charged = space.stats().ram_bytes.get() as usize / 4096;
    assert_eq!(space.mmu().resident(), charged, "pages of RAM");
}

fn everything(pages: PageRange) -> MigrateVma {
    MigrateVma {
        pages,
        select: Select::SYSTEM | Select::DEVICE_PRIVATE | Select::DEVICE_COHERENT,
        owner: None,
        except: None,
        fault_page: None,
    }
}

// Mapping.

#[test]
fn each_type_comes_to_programs_as_its_table_says() {
    for memory in TYPES {
        let space = with(memory);
        let mut block = space.alloc_device_pages(0, 3).unwrap();
        let first = block.first();
        assert_eq!(block.with_bytes(7, &mut |_| ()), memory != Private);
        let mapped = space.map_device_pages(block, BASE.plus(8));
        if memory.migrates() {
            assert_eq!(mapped, Err(MapError::Migrates), "{memory:?}");
            assert_eq!(space.state(BASE.plus(8)), State::None);
        } else {
            assert_eq!(mapped, Ok(()), "{memory:?}");
            for i in 0..8 {
                assert_eq!(
                    space.state(BASE.plus(8 + i)),
                    State::Coherent(first.plus(i))
                );
                let found = space.mmu().touch_read(BASE.plus(8 + i)).map(|d| same(&d));
                assert_eq!(found, Ok(0), "no fault, and zeros");
                write(&space, 8 + i, i as u8);
            }
            assert_eq!(space.mmu().resident(), 0, "it is no RAM");
            check(&space);
            assert_eq!(read(&space, 11), 3);
            discard(&space, 0, 32);
        }
        check(&space);
        assert_eq!(space.stats().devices[0].pages.get(), 0, "{memory:?}");
    }
}

#[test]
fn what_is_in_the_way_of_a_mapping_stays() {
    for memory in MAPPED {
        let space = with(memory);
        let order_2 = || space.alloc_device_pages(0, 2).unwrap();
        let refused = |to: usize| {
            let refused = space.map_device_pages(order_2(), BASE.plus(to));
            check(&space);
            assert_eq!(space.stats().devices[0].pages.get(), 0, "it is freed");
            refused
        };
        let end = 4 * BUDGET;
        assert_eq!(refused(end - 3), Err(MapError::NotManaged));
        let before = uhmm_core::addr::PageNo(BASE.0 - 1);
        let outside = space.map_device_pages(order_2(), before);
        assert_eq!(outside, Err(MapError::NotManaged));
        write(&space, 22, 5);
        assert_eq!(refused(20), Err(MapError::InTheWay));
        assert_eq!(read(&space, 22), 5);
        space.change_protection(range(42, 1), || space.mmu().protect(range(42, 1), false));
        assert_eq!(refused(40), Err(MapError::InTheWay));
        space.mmu().map(range(62, 1), false);
        assert!(refused(60).is_err());
        for page in [20, 21, 23, 40, 41, 43, 60, 61] {
            assert_eq!(space.state(BASE.plus(page)), State::None, "{page}");
            assert_eq!(read(&space, page), 0);
        }
        // Device pages are in the way of others too.
        let first = map(&space, 80, 0);
        let over = space.map_device_pages(order_2(), BASE.plus(78));
        assert_eq!(over, Err(MapError::InTheWay));
        assert_eq!(space.state(BASE.plus(80)), State::Coherent(first));
        check(&space);
    }
}

/// The CPU's page tables refuse in the middle, and may then refuse to give back what was mapped.
#[test]
fn a_mapping_that_fails_part_way_is_undone() {
    for memory in MAPPED {
        for k in 0..8 {
            for stuck in [false, true] {
                let space = with(memory);
                let mut file = space.alloc_device_pages(0, 3).unwrap();
                let first = file.first();
                for i in 0..8 {
                    assert!(file.with_bytes(i, &mut |data| data.0.fill(i as u8 + 1)));
                }
                let failure = Failure {
                    after_calls: 0,
                    after_pages: k,
                    stop: Stop::Changing,
                };
                space.mmu().fail(Call::Put, failure);
                if stuck {
                    space.mmu().fail(Call::Take, Failure::next(Stop::Busy));
                }
                let mapped = space.map_device_pages(file, BASE.plus(16));
                assert_eq!(mapped, Err(MapError::InTheWay));
                space.mmu().heal();
                for page in 16..24 {
                    assert_eq!(space.state(BASE.plus(page)), State::None);
                    assert!(!space.mmu().is_present(BASE.plus(page)));
                }
                check(&space);
                // A file's bytes are still its own, and nobody sees those of others (R10).
                let expected = |i: usize| if memory == FsDax { i as u8 + 1 } else { 0 };
                let mut file = space.alloc_device_pages(0, 3).unwrap();
                assert_eq!(file.first(), first);
                for i in 0..8 {
                    file.with_bytes(i, &mut |data| assert_eq!(same(data), expected(i)));
                }
                space.map_device_pages(file, BASE.plus(16)).unwrap();
                assert_eq!(read(&space, 23), expected(7));
                check(&space);
            }
        }
    }
}

#[test]
fn a_driver_cannot_map_pages_of_another_space() {
    let (mine, other) = (with(Generic), with(Generic));
    let foreign = other.alloc_device_pages(0, 0).unwrap();
    let mapped = mine.map_device_pages(foreign, BASE);
    assert_eq!(mapped, Err(MapError::Foreign));
    check(&mine);
    check(&other);
}

// Holding.

#[test]
fn each_type_is_held_as_its_table_says() {
    for memory in TYPES {
        let space = with(memory);
        let block = space.alloc_device_pages(0, 0).unwrap();
        for (longterm, peer) in [(false, false), (false, true), (true, false), (true, true)] {
            let expected = match (memory, longterm) {
                (Private | Coherent, true) => Err(HoldError::MigrateFirst),
                (FsDax | PeerToPeer, true) => Err(HoldError::NeverLongterm),
                (PeerToPeer, false) if !peer => Err(HoldError::PeersOnly),
                _ => Ok(block.first()),
            };
            let held = space.hold_device_page(block.first(), Hold { longterm, peer });
            let held = held.map(|held| held.at());
            assert_eq!(held, expected, "{memory:?}, {longterm}, {peer}");
        }
        drop(block);
        check(&space);
    }
    assert_eq!(Private.holding(false), Holding::ItsDevice);
}

// Migrating.

#[test]
fn r6_what_does_not_migrate_is_never_selected() {
    for memory in MAPPED {
        let space = with(memory);
        let first = map(&space, 4, 2);
        write(&space, 1, 9);
        let migration = space.migrate_vma(&everything(range(4, 4))).unwrap();
        assert_eq!(migration.selected().count(), 0, "{memory:?}");
        drop(migration);
        let refused = space.migrate_device_range(0, first.page, 4).err();
        assert_eq!(refused, Some(MigrateError::DoesNotMigrate), "{memory:?}");
        let refused = space.migrate_device_coherent_page(first);
        assert_eq!(refused, Err(MigrateError::DoesNotMigrate), "{memory:?}");
        assert_eq!(space.state(BASE.plus(4)), State::Coherent(first));
        check(&space);
    }
    let private = with(Private);
    let refused = private.migrate_device_coherent_page(on(0));
    assert_eq!(refused, Err(MigrateError::DoesNotMigrate));
}

#[test]
fn what_does_not_migrate_is_no_destination_either() {
    for memory in MAPPED {
        let space = with(memory);
        write(&space, 0, 1);
        let mut migration = space.migrate_vma(&everything(range(0, 2))).unwrap();
        assert_eq!(migration.allocate(0), Err(AllocError::DoesNotMigrate));
        let own = space.alloc_device_pages(0, 0).unwrap();
        assert!(!migration.set_destination(BASE, own), "{memory:?}");
        let done = migration.copy().pages().finalize();
        assert_eq!((done.migrated, done.left), (0, 2));
        assert_eq!(read(&space, 0), 1);
        check(&space);
        assert_eq!(space.stats().devices[0].pages.get(), 0);
    }
}

// Removing.

#[test]
fn r2_memory_that_does_not_migrate_ends_when_it_is_unmapped() {
    for memory in MAPPED {
        let space = with(memory);
        map(&space, 0, 2);
        let block = space.alloc_device_pages(0, 0).unwrap();
        let mut scratch = Scratch::default();
        let found = |error| match error {
            Err(RemoveError::StillInUse(found)) => found,
            other => panic!("{memory:?}: {other:?}"),
        };
        let expected = StillInUse {
            pages: 5,
            mapped: 4,
            held: 1,
            ..StillInUse::default()
        };
        let suspended = space.suspend_device(0, NOW, &mut scratch);
        assert_eq!(found(suspended), expected, "{memory:?}");
        let removed = space.remove_device(0, NOW, &mut scratch);
        assert_eq!(found(removed), expected, "{memory:?}");
        // Meanwhile the program goes on, and nothing new comes.
        write(&space, 3, 4);
        assert_eq!(
            space.alloc_device_pages(0, 0).err(),
            Some(AllocError::Removed)
        );
        discard(&space, 0, 3);
        drop(block);
        assert_eq!(found(space.remove_device(0, NOW, &mut scratch)).mapped, 1);
        assert_eq!(read(&space, 3), 4);
        discard(&space, 3, 1);
        assert_eq!(space.remove_device(0, LONG, &mut scratch), Ok(()));
        assert_eq!(
            space.remove_device(0, NOW, &mut scratch),
            Err(RemoveError::AlreadyRemoved)
        );
        check(&space);
    }
}

/// Of a device that is gone no memory is left.
#[test]
fn r2_a_removed_device_gives_its_arena_back() {
    for memory in [Coherent, Generic, FsDax, PeerToPeer] {
        let space = with(memory);
        drop(space.alloc_device_pages(0, 5).unwrap());
        assert_eq!(space.mmu().arena_resident(), 32, "{memory:?}");
        let mut scratch = Scratch::default();
        assert_eq!(space.remove_device(0, LONG, &mut scratch), Ok(()));
        assert_eq!(space.mmu().arena_resident(), 0, "{memory:?}");
    }
}

/// A chunk that went and came again is other memory.
#[test]
fn r10_a_chunk_that_is_added_again_is_empty() {
    for memory in [Generic, FsDax] {
        let space = with(memory);
        let mut block = space.alloc_device_page_at(on(7)).unwrap();
        block.with_bytes(0, &mut |data| data.0.fill(1));
        drop(block);
        let mut scratch = Scratch::default();
        assert_eq!(space.remove_chunk(0, 0, LONG, &mut scratch), Ok(()));
        assert_eq!(space.mmu().arena_resident(), 0);
        assert_eq!(space.add_chunk(0, 0), Ok(()));
        let mut block = space.alloc_device_page_at(on(7)).unwrap();
        block.with_bytes(0, &mut |data| assert_eq!(same(data), 0));
    }
}

// Freeing.

#[test]
fn r10_the_next_owner_of_a_page_sees_zeros_or_its_file() {
    for memory in MAPPED {
        let space = with(memory);
        for round in 1..4 {
            let block = space.alloc_device_page_at(on(5)).unwrap();
            assert_eq!(block.first(), on(5));
            let to = 20 * round;
            space.map_device_pages(block, BASE.plus(to)).unwrap();
            let expected = if memory == FsDax { round as u8 - 1 } else { 0 };
            assert_eq!(read(&space, to), expected, "{memory:?}, {round}");
            write(&space, to, round as u8);
            discard(&space, to, 1);
            assert_eq!(read(&space, to), 0, "unmapped: nothing is there");
            assert!(space.wait_idle(0, DevicePage(5), 1, NOW));
            check(&space);
        }
        assert!(memory.keeps_bytes() == (memory == FsDax));
    }
}

/// The frame cannot go home, and what it holds must.
#[test]
fn a_files_bytes_survive_an_unmapping_that_cannot_move_them() {
    for case in ["pinned", "shared", "read-only", "changing", "no memory"] {
        let space = with(FsDax);
        let first = map(&space, 3, 2);
        (0..4).for_each(|i| write(&space, 3 + i, i as u8 + 1));
        match case {
            "pinned" => assert!(space.mmu().pin(BASE.plus(4))),
            "shared" => space.mmu().share(range(3, 4)),
            "read-only" => {
                space.change_protection(range(3, 4), || space.mmu().protect(range(3, 4), false));
            }
            "changing" => space.mmu().fail(Call::Take, Failure::next(Stop::Changing)),
            _ => {
                space.mmu().pin(BASE.plus(4));
                let all = space.mmu().resident() + space.mmu().arena_resident();
                space.mmu().limit_memory(all);
            }
        }
        discard(&space, 0, 16);
        assert!((0..16).all(|page| space.state(BASE.plus(page)) == State::None));
        assert!((0..16).all(|page| !space.mmu().is_present(BASE.plus(page))));
        check(&space);
        for i in 0..4 {
            let mut page = space.alloc_device_page_at(first.plus(i)).unwrap();
            let read = page.with_bytes(0, &mut |data| assert_eq!(same(data), i as u8 + 1));
            assert!(read, "{case}: page {i}");
            if case != "read-only" {
                space.map_device_pages(page, BASE.plus(9 + i)).unwrap();
                assert_eq!(self::read(&space, 9 + i), i as u8 + 1, "{case}");
            }
        }
        check(&space);
    }
}

#[test]
fn a_mapped_device_page_that_moves_in_the_program_stays_what_it_is() {
    for memory in MAPPED {
        for pinned in [false, true] {
            let space = with(memory);
            let first = map(&space, 8, 2);
            (0..4).for_each(|i| write(&space, 8 + i, i as u8 + 1));
            if pinned {
                assert!(space.mmu().pin(BASE.plus(9)));
            }
            let inside = space.inside().unwrap();
            inside.relocate(range(8, 4), BASE.plus(40)).unwrap();
            drop(inside);
            for i in 0..4 {
                assert_eq!(read(&space, 40 + i), i as u8 + 1);
                assert_eq!(read(&space, 8 + i), 0);
                if !pinned || i != 1 {
                    let state = space.state(BASE.plus(40 + i));
                    assert_eq!(state, State::Coherent(first.plus(i)), "{memory:?}");
                }
            }
            check(&space);
            discard(&space, 0, 64);
            check(&space);
            if memory == FsDax {
                let mut file = space.alloc_device_page_at(first.plus(1)).unwrap();
                file.with_bytes(0, &mut |data| assert_eq!(same(data), 2));
            }
        }
    }
}

/// A fault on a device page that is there, as one that waited, changes nothing; one whose frame was
/// dropped behind our back is a page of RAM from then on.
#[test]
fn a_fault_on_a_mapped_device_page_ends() {
    use uhmm_core::mmu::Mmu;
    for memory in MAPPED {
        let space = with(memory);
        let first = map(&space, 0, 0);
        write(&space, 0, 3);
        for access in [Access::Read, Access::Write, Access::Tracked] {
            space.fault(BASE, access, &mut Scratch::default());
            assert_eq!(space.state(BASE), State::Coherent(first));
        }
        assert_eq!(read(&space, 0), 3);
        space.mmu().discard(range(0, 1));
        assert_eq!(read(&space, 0), 0);
        assert!(matches!(space.state(BASE), State::System { .. }));
        check(&space);
        assert!(space.wait_idle(0, first.page, 1, NOW));
    }
}

#[test]
fn who_waits_for_a_page_to_be_idle_waits_for_its_last_user() {
    let space = with(FsDax);
    let first = map(&space, 0, 3);
    assert!(!space.wait_idle(0, first.page, 8, NOW));
    let held = space
        .hold_device_page(first.plus(2), Hold::default())
        .unwrap();
    discard(&space, 0, 8);
    assert!(space.wait_idle(0, first.page, 2, NOW));
    assert!(!space.wait_idle(0, first.page, 8, Duration::from_millis(5)));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| space.wait_idle(0, first.page, 8, LONG));
        thread::yield_now();
        drop(held);
        assert!(waiter.join().unwrap());
    });
    // The blocks can go to another file at once.
    let given = (0..8).map(|i| space.alloc_device_page_at(first.plus(i)));
    assert!(given.collect::<Vec<_>>().iter().all(Result::is_ok));
    // Nobody uses what is not there.
    assert!(space.wait_idle(0, DevicePage(CAPACITY as u32 - 1), 4, NOW));
    assert!(space.wait_idle(0, DevicePage(u32::MAX), usize::MAX, NOW));
    assert!(space.wait_idle(7, DevicePage(0), 8, NOW));
    check(&space);
}

// Adding devices.

#[test]
fn a_device_that_cannot_be_is_refused() {
    struct Odd(DeviceInfo);
    impl Device for Odd {
        fn info(&self) -> DeviceInfo {
            self.0.clone()
        }
        fn copy_in(&self, _: DevicePage, _: &PageData) -> Result<(), CopyInError> {
            Ok(())
        }
        fn copy_out(&self, _: DevicePage, _: &mut PageData) -> Result<(), CopyOutError> {
            Err(CopyOutError::Lost)
        }
        fn free(&self, _: DevicePage) {}
        fn stored_bytes(&self) -> u64 {
            0
        }
    }
    let space = space(4 * BUDGET, vec![]);
    let add = |info: DeviceInfo| space.add_device(Box::new(Odd(info)));
    let plain = DeviceInfo::new("odd", 1024);
    for pages in [0, 1, 256, 511, 513, 1000, 3 << 10] {
        let refused = add(plain.clone().chunk_pages(pages));
        assert_eq!(refused, Err(BuildError::ChunkPages { pages }));
    }
    let coherent = plain.clone().memory(Coherent);
    let refused = add(coherent.clone().node(9));
    assert_eq!(refused, Err(BuildError::NoNode { node: 9 }));
    space
        .mmu()
        .fail(Call::AddArena, Failure::next(Stop::NoMemory));
    assert_eq!(add(coherent.clone()), Err(BuildError::NoAddressSpace));
    space.mmu().fail(Call::Table, Failure::next(Stop::NoMemory));
    assert_eq!(add(plain.clone()), Err(BuildError::NoAddressSpace));
    // None of them has taken a place.
    assert_eq!(add(coherent.node(1)), Ok(0));
    assert_eq!(add(DeviceInfo::new("nothing", 0)), Ok(1));
    assert_eq!(
        space.alloc_device_pages(1, 0).err(),
        Some(AllocError::Full),
        "a device of no pages has none"
    );
    for number in 2..MAX_DEVICES {
        assert_eq!(add(plain.clone()), Ok(number as u8));
    }
    let mut scratch = Scratch::default();
    assert_eq!(space.remove_device(3, LONG, &mut scratch), Ok(()));
    // The number of a device that was removed is not used again.
    assert_eq!(add(plain), Err(BuildError::NoPlace));
    space.check_invariants();
}

/// The program has filled RAM and waits; then a device comes.
#[test]
fn r19_a_device_that_is_added_while_threads_run_is_used_at_once() {
    let space = space(4 * BUDGET, vec![]);
    with_reclaimer(&space, || {
        thread::scope(|scope| {
            for thread in 0..2 {
                let space = &space;
                scope.spawn(move || {
                    or_abort(|| {
                        for page in (0..2 * BUDGET).filter(|page| page % 2 == thread) {
                            write(space, page, page as u8);
                        }
                    });
                });
            }
            while space.mmu().out_of_memory_count() == 0 {
                thread::yield_now();
            }
            assert_eq!(
                space.add_device(device(Coherent)),
                Ok(0),
                "no place for RAM"
            );
            assert_eq!(space.add_device(device(Private)), Ok(1));
        });
        (0..2 * BUDGET).for_each(|page| assert_eq!(read(&space, page), page as u8));
    });
    let stats = &space.stats().devices;
    assert!(stats[1].pages.get() > 0);
    assert_eq!(stats[0].pages_peak.get(), 0, "R13");
    check(&space);
}

/// A page comes, and in the middle of that its owner unmaps the range, or touches it.
#[test]
fn a_touch_in_the_middle_of_a_mapping_waits_for_it() {
    let space = with(Generic);
    let other = space.clone();
    space.mmu().before(Op::Put, move || {
        other.fault(BASE.plus(2), Access::Write, &mut Scratch::default());
        assert_eq!(other.state(BASE.plus(2)), State::Migrating);
    });
    space.mmu().take_wakes();
    map(&space, 0, 2);
    assert_eq!(space.mmu().steps_left(), 0);
    let woken = space.mmu().take_wakes();
    assert!(woken.iter().any(|pages| pages.contains(BASE.plus(2))));
    write(&space, 2, 2);
    check(&space);
}

/// Pages of devices that do not migrate are where they are whatever reclaim does, beside a program that
/// does not fit.
#[test]
fn r13_mapped_device_pages_stay_under_pressure() {
    let world = World::new(4 * BUDGET);
    assert_eq!(world.space.add_device(device(Generic)), Ok(1));
    let block = world.space.alloc_device_pages(1, 5).unwrap();
    let first = block.first();
    let to = 3 * BUDGET;
    world.space.map_device_pages(block, BASE.plus(to)).unwrap();
    (0..32).for_each(|i| write(&world.space, to + i, i as u8));
    with_reclaimer(&world.space, || {
        (0..2 * BUDGET).for_each(|page| world.write(page));
        (0..2 * BUDGET).for_each(|page| world.check(page));
    });
    for i in 0..32 {
        let state = world.space.state(BASE.plus(to + i));
        assert_eq!(state, State::Coherent(first.plus(i)));
        assert_eq!(read(&world.space, to + i), i as u8);
    }
    world.check_invariants();
}
