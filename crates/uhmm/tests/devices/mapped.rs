//! Device memory that programs map as it is: generic, a file's pages, a peer's window.

use crate::child::{End, child, wait};
use crate::faults::{counting, faults};
use crate::{DEVICE, FIRST, World, alone};
use std::time::Duration;
use uhmm::memory::Protection;
use uhmm::migrate::MigrateError;
use uhmm::{
    AllocError, DevicePages, Hold, HoldError, MapError, Migrated, Place, RemoveError, Space,
};
use uhmm_core::addr::{PAGE_SIZE, PageData};
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{self, Coherent, FsDax, Generic, PeerToPeer, Private};
use uhmm_testkit::content;

const TYPES: [MemoryType; 3] = [Generic, FsDax, PeerToPeer];
/// Pages of a block, and its order.
const BLOCK: usize = 16;
const ORDER: u32 = 4;
const HOLD: Hold = Hold {
    longterm: false,
    peer: false,
};

/// Fills a block with what pages of this version hold.
fn fill(block: &mut DevicePages<'_>, version: u32) {
    for i in 0..BLOCK {
        assert!(block.with_bytes(i, &mut |data| content(9, i as u64, version, data)));
    }
}

fn holds(data: &PageData, i: usize, version: u32) -> bool {
    let mut expected = PageData::ZERO;
    content(9, i as u64, version, &mut expected);
    data.0 == expected.0
}

fn is_mapped(world: &World, first: usize, version: u32) {
    for i in 0..BLOCK {
        assert!(matches!(world.state(first + i), State::Coherent(_)));
        // SAFETY: within the mapping.
        let data = unsafe { &*world.at(first + i) };
        assert!(holds(data, i, version), "page {i} is not version {version}");
    }
}

fn zeros(data: &PageData) -> bool {
    data.0.iter().all(|&byte| byte == 0)
}

/// A world with a block of version 1 mapped at its page 8.
fn mapped(memory: MemoryType) -> World {
    let world = World::new(&[memory], 64);
    let mut block = world.space.alloc_device_pages(FIRST, ORDER).unwrap();
    for i in 0..BLOCK {
        assert!(block.with_bytes(i, &mut |data| assert!(zeros(data), "R10")));
    }
    fill(&mut block, 1);
    let to = world.at(8) as usize;
    world.space.map_device_pages(block, to).unwrap();
    is_mapped(&world, 8, 1);
    world
}

#[test]
fn pages_are_mapped_as_they_are_and_freed_when_unmapped() {
    let _alone = alone();
    for memory in TYPES {
        let world = mapped(memory);
        assert_eq!(world.device(FIRST).pages.get(), BLOCK as u64);
        assert_eq!(world.stats().ram_bytes.get(), 0, "not RAM");
        let _counting = counting(&world.space);
        let before = faults();
        (8..8 + BLOCK).for_each(|page| world.poke(page));
        assert_eq!(faults(), before, "no fault");
        let state = world.state(9);
        world.push_out();
        assert_eq!(world.state(9), state);
        drop(world);
    }
}

#[test]
fn they_do_not_migrate() {
    let _alone = alone();
    for memory in TYPES {
        let space = crate::space_with(&[memory, Private]);
        let world = World::within(space, 64);
        let block = world.space.alloc_device_pages(FIRST, 0).unwrap();
        let to = world.at(8) as usize;
        world.space.map_device_pages(block, to).unwrap();
        let migrate = |to| world.space.migrate(world.address, world.len(), to);
        let refused = Err(MigrateError::DoesNotMigrate);
        assert_eq!(migrate(Place::Device(FIRST)), refused);
        assert_eq!(migrate(Place::Ram), Ok(Migrated::default()));
        let others = migrate(Place::Device(crate::SECOND)).unwrap();
        assert_eq!(others.migrated, 63);
        let at = world.state(8).device_page().unwrap();
        let range = world.space.migrate_device_range(FIRST, at.page, 1);
        assert_eq!(range.err(), Some(MigrateError::DoesNotMigrate));
        let error = world.space.remove_device(FIRST, Duration::from_millis(20));
        let Err(RemoveError::StillInUse(found)) = error else {
            panic!("{error:?}");
        };
        assert_eq!((found.pages, found.mapped, found.held), (1, 1, 0));
        assert!(found.to_string().contains("does not migrate"), "{found}");
        // Unmapped, it lets the device go.
        // SAFETY: nothing borrows the range.
        unsafe { world.space.memory().discard(world.address, world.len()) }.unwrap();
        world.space.remove_device(FIRST, crate::SOON).unwrap();
    }
}

/// A migration never puts a page where it could not migrate away from.
#[test]
fn they_are_no_destination_of_a_migration() {
    let _alone = alone();
    for memory in TYPES {
        let space = crate::space_with(&[memory, Private]);
        let world = World::within(space, 4);
        world.write_all();
        (0..4).for_each(|page| _ = world.state(page));
        let args = crate::driver::everything(&world);
        let mut migration = world.space.migrate_vma(&args).unwrap();
        let given = world.space.alloc_device_pages(FIRST, 0).unwrap();
        assert!(!migration.set_destination(world.number(0), given));
        assert!(migration.allocate(FIRST.0).is_err());
        assert_eq!(migration.copy().pages().finalize().migrated, 0);
        world.check_all();
        world.wait_empty(FIRST);
    }
}

#[test]
fn who_may_hold_them() {
    let _alone = alone();
    for memory in [Private, Coherent, Generic, FsDax, PeerToPeer] {
        let space = crate::space_with(&[memory]);
        let block = space.alloc_device_pages(FIRST, 0).unwrap();
        let at = block.first();
        let try_hold = |hold| space.hold_device_page(at, hold).map(drop).err();
        let long = Hold {
            longterm: true,
            ..HOLD
        };
        let peer = Hold { peer: true, ..HOLD };
        let (short_answer, long_answer) = match memory {
            Private | Coherent => (None, Some(HoldError::MigrateFirst)),
            Generic => (None, None),
            FsDax => (None, Some(HoldError::NeverLongterm)),
            PeerToPeer => (Some(HoldError::PeersOnly), Some(HoldError::NeverLongterm)),
        };
        assert_eq!(try_hold(HOLD), short_answer, "{memory:?}");
        assert_eq!(try_hold(long), long_answer, "{memory:?}");
        assert_eq!(try_hold(peer), None, "{memory:?}");
        drop(block);
        crate::wait_until("it is free", || {
            space.hold_device_page(at, peer).err() == Some(HoldError::Free)
        });
        let beyond = FIRST.page(DEVICE);
        let error = space.hold_device_page(beyond, peer).err();
        assert_eq!(error, Some(HoldError::NoSuchPage));
    }
}

#[test]
fn they_are_mapped_only_where_nothing_is() {
    let _alone = alone();
    let world = World::new(&[Generic, Private], 64);
    let space = &world.space;
    let try_map = |order, address| {
        let block = space.alloc_device_pages(FIRST, order).unwrap();
        space.map_device_pages(block, address).err()
    };
    world.write(10);
    let at = |page| world.at(page) as usize;
    assert_eq!(try_map(2, at(8)), Some(MapError::InTheWay));
    assert_eq!(try_map(0, at(3) + 8), Some(MapError::NotManaged));
    assert_eq!(try_map(0, 1 << 12), Some(MapError::NotManaged));
    assert_eq!(try_map(0, usize::MAX & !4095), Some(MapError::NotManaged));
    let hole = world.address + world.len();
    assert_eq!(try_map(0, hole), Some(MapError::NotManaged));
    world.protect(20..24, Protection::READ);
    assert_eq!(try_map(1, at(20)), Some(MapError::InTheWay));
    // Half of it may be written to: what was mapped a moment ago is taken back.
    assert_eq!(try_map(2, at(18)), Some(MapError::InTheWay));
    let private = space.alloc_device_pages(crate::SECOND, 0).unwrap();
    let refused = space.map_device_pages(private, at(0));
    assert_eq!(refused.err(), Some(MapError::Migrates));
    let foreign = crate::space_with(&[Generic]);
    let block = foreign.alloc_device_pages(FIRST, 0).unwrap();
    let refused = space.map_device_pages(block, at(0));
    assert_eq!(refused.err(), Some(MapError::Foreign));
    world.wait_empty(FIRST);
    world.check_all();
    let too_large = space.alloc_device_pages(FIRST, 10);
    assert_eq!(too_large.err(), Some(AllocError::Full));
}

/// The page of a file, mapped at page 0 of the world.
fn map_file(world: &World) {
    let at = FIRST.page(5);
    let block = world.space.alloc_device_page_at(at).unwrap();
    let to = world.address;
    world.space.map_device_pages(block, to).unwrap();
    assert_eq!(world.state(0), State::Coherent(at));
}

/// Unmaps by `how`, and maps the file's page again: it holds what was written.
fn keeps_bytes(what: &str, how: impl Fn(&World, &Space)) {
    let world = World::new(&[FsDax], 1);
    map_file(&world);
    world.check(0);
    for _ in 0..3 {
        world.write(0);
        how(&world, &world.space);
        world.wait_empty(FIRST);
        let memory = world.space.memory();
        // SAFETY: nothing borrows the range.
        unsafe { memory.unmap(world.address, world.len()) }.unwrap();
        let all = Protection::READ | Protection::WRITE;
        // SAFETY: nothing borrows the range.
        unsafe { memory.map_at(world.address, world.len(), all, true) }.unwrap();
        assert_eq!(world.peek(0), 0, "{what}: memory of the program's own");
        // SAFETY: nothing borrows the range.
        unsafe { memory.discard(world.address, world.len()) }.unwrap();
        map_file(&world);
        // SAFETY: within the mapping.
        let found = world.oracle.compare(0, unsafe { &*world.at(0) });
        assert_eq!(found, Ok(()), "{what}");
    }
}

#[test]
fn a_files_page_keeps_its_bytes() {
    let _alone = alone();
    keeps_bytes("unmapped", |world, space| {
        // SAFETY: nothing borrows the range.
        unsafe { space.memory().unmap(world.address, world.len()) }.unwrap();
    });
    keeps_bytes("dropped", |world, space| {
        // SAFETY: nothing borrows the range.
        unsafe { space.memory().discard(world.address, world.len()) }.unwrap();
    });
    for protection in [Protection::READ, Protection::empty()] {
        keeps_bytes("unmapped while protected", |world, space| {
            world.protect(0..1, protection);
            // SAFETY: nothing borrows the range.
            unsafe { space.memory().unmap(world.address, world.len()) }.unwrap();
        });
        keeps_bytes("dropped while protected", |world, space| {
            world.protect(0..1, protection);
            // SAFETY: nothing borrows the range.
            unsafe { space.memory().discard(world.address, world.len()) }.unwrap();
        });
    }
    keeps_bytes("unmapped after a fork", |world, space| {
        let pid = child(|| {
            world.check(0);
            0
        });
        assert_eq!(wait(pid), End::Exit(0));
        // SAFETY: nothing borrows the range.
        unsafe { space.memory().unmap(world.address, world.len()) }.unwrap();
    });
    keeps_bytes("moved, then unmapped", |world, space| {
        let memory = space.memory();
        // SAFETY: nothing borrows the range.
        let moved = unsafe {
            memory.remap(
                world.address,
                PAGE_SIZE,
                PAGE_SIZE,
                true,
                Some(memory.map(PAGE_SIZE, Protection::empty()).unwrap()),
                false,
            )
        };
        // SAFETY: nothing borrows the range.
        unsafe { memory.unmap(moved.unwrap(), PAGE_SIZE) }.unwrap();
        // The old range is the world's to unmap again.
        let all = Protection::READ | Protection::WRITE;
        // SAFETY: nothing borrows the range.
        unsafe { memory.map_at(world.address, PAGE_SIZE, all, true) }.unwrap();
    });
}
