//! Bytes of any memory of the process, copied as the kernel copies them for a system call.

use crate::foreign::{at, peek, poke};
use crate::own_memory::Own;
use crate::world::device::TestDevice;
use crate::world::{ALL, BUDGET, DEVICE, FIRST, World, alone, space};
use uhmm::device::{DeviceInfo, MemoryType, PageData};
use uhmm::memory::Protection;
use uhmm::mirror::{MirrorError, PageTable};
use uhmm::{AccessError, Place, RangeError, Space};
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::mirror;

const PAGES: usize = 64;

/// Writes by the space.
fn write(space: &Space, address: usize, from: &[u8]) -> Result<(), AccessError> {
    // SAFETY: memory of the tests, of which nothing is borrowed.
    unsafe { space.write_bytes(address, from) }
}

fn in_the_way(done: usize, error: mirror::MirrorError) -> Result<(), AccessError> {
    let error = MirrorError::Mirror(error);
    Err(AccessError { done, error })
}

/// Where the pages are does not matter, nor how much of them is asked for.
#[test]
fn managed_pages_are_read_and_written_wherever_they_are() {
    let _alone = alone();
    for memory in [MemoryType::Private, MemoryType::Coherent] {
        let world = World::new(&[memory], PAGES);
        world.write_all();
        let mut copy = vec![0; world.len()];
        for place in 0..4 {
            match place {
                0 => world.send(Place::Device(FIRST)),
                1 => world.push_out(),
                2 => {
                    let mirror = world.mirror();
                    mirror
                        .make_exclusive(world.address, world.len(), |_, _| ())
                        .unwrap();
                    world.space.read_bytes(world.address, &mut copy).unwrap();
                    assert!((0..PAGES).all(|page| !mirror.has_alone(world.at(page))));
                }
                _ => {}
            }
            copy.fill(1);
            world.space.read_bytes(world.address, &mut copy).unwrap();
            for (page, bytes) in copy.chunks(PAGE_SIZE).enumerate() {
                world
                    .oracle
                    .check(page, &PageData(bytes.try_into().unwrap()));
            }
        }
        for place in 0..2 {
            for (page, bytes) in copy.chunks_mut(PAGE_SIZE).enumerate() {
                let mut data = PageData::ZERO;
                world.oracle.write(page, &mut data);
                bytes.copy_from_slice(&data.0);
            }
            match place {
                0 => world.send(Place::Device(FIRST)),
                _ => world.push_out(),
            }
            write(&world.space, world.address, &copy).unwrap();
            world.check_all();
        }
        // Not on the bounds of pages, and what nobody has touched.
        world.discard(10..20).unwrap();
        let (from, len) = (world.at(9) + 4000, 11 * PAGE_SIZE);
        world.space.read_bytes(from, &mut copy[..len]).unwrap();
        assert_eq!(copy[96..96 + 10 * PAGE_SIZE], vec![0; 10 * PAGE_SIZE]);
        world.space.read_bytes(from, &mut []).unwrap();
        world.check_all();
        world.is_at_rest();
    }
}

/// Pages of which a device has the bytes too: what is written is not lost for the device's copy.
#[test]
fn what_is_written_to_a_page_with_a_duplicate_is_not_lost() {
    let _alone = alone();
    let world = World::new(&[MemoryType::Private], PAGES);
    world.write_all();
    world.read_mostly(true);
    world.send(Place::Device(FIRST));
    world.check_all();
    assert!((0..PAGES).any(|page| world.state(page).is_tracked()));
    for page in 0..PAGES {
        let mut data = PageData::ZERO;
        world.oracle.write(page, &mut data);
        write(&world.space, world.at(page), &data.0).unwrap();
    }
    world.push_out();
    world.check_all();
}

/// The buffer at this end may be managed memory too, and not there.
#[test]
fn the_buffer_may_be_managed_memory() {
    let _alone = alone();
    let world = World::new(&[MemoryType::Private], PAGES);
    world.write_all();
    let own = Own::map(PAGES);
    // SAFETY: both are the test's own, and nobody else is at them.
    let (managed, plain) = unsafe {
        let managed = std::slice::from_raw_parts_mut(world.address as *mut u8, world.len());
        (
            managed,
            std::slice::from_raw_parts_mut(own.at(0), own.len()),
        )
    };
    world.send(Place::Device(FIRST));
    write(&world.space, at(&own, 0), managed).unwrap();
    for (page, bytes) in plain.chunks(PAGE_SIZE).enumerate() {
        world
            .oracle
            .check(page, &PageData(<[u8; PAGE_SIZE]>::try_from(bytes).unwrap()));
    }
    world.send(Place::Device(FIRST));
    plain.fill(3);
    world
        .space
        .read_bytes(at(&own, 0) + 1, &mut managed[5..6 * PAGE_SIZE])
        .unwrap();
    assert!(managed[5..6 * PAGE_SIZE].iter().all(|byte| *byte == 3));
    // From one managed page to another, neither of which is there.
    world.send(Place::Device(FIRST));
    let (address, half) = (world.address, PAGES / 2 * PAGE_SIZE);
    world
        .space
        .read_bytes(address + 7, &mut managed[half..half + 4096])
        .unwrap();
    assert_eq!(managed[half..half + 4096], [3; 4096]);
}

/// More than there is RAM for.
#[test]
fn a_copy_may_be_larger_than_the_budget() {
    let _alone = alone();
    let info = DeviceInfo::new("test", DEVICE);
    let space = space(512, vec![TestDevice::boxed(info).0]);
    let pages = 3 * 512;
    let address = space.memory().map(pages * PAGE_SIZE, ALL).unwrap();
    let bytes: Vec<u8> = (0..pages * PAGE_SIZE)
        .map(|i| (i / PAGE_SIZE % 255) as u8)
        .collect();
    write(&space, address, &bytes).unwrap();
    let mut found = vec![0; bytes.len()];
    space.read_bytes(address, &mut found).unwrap();
    assert!(found == bytes);
}

#[test]
fn what_is_in_the_way_is_said_with_how_far_it_came() {
    let _alone = alone();
    let world = World::new(&[MemoryType::Private], PAGES);
    let space = &world.space;
    world.write_all();
    world.send(Place::Device(FIRST));
    world.protect(8..10, Protection::READ).unwrap();
    world.protect(20..21, Protection::empty()).unwrap();
    world.unmap(30..31).unwrap();
    let number = |page| PageNo::containing(world.at(page));
    let mut bytes = vec![7; world.len()];
    let no_access = |page| mirror::MirrorError::NoAccess(number(page));
    let read = space.read_bytes(world.at(15) + 9, &mut bytes);
    assert_eq!(read, in_the_way(5 * PAGE_SIZE - 9, no_access(20)));
    assert_eq!(
        bytes[5 * PAGE_SIZE - 9..],
        vec![7; world.len() - 5 * PAGE_SIZE + 9]
    );
    assert_eq!(
        space.read_bytes(world.at(30), &mut bytes[..1]),
        in_the_way(0, no_access(30))
    );
    let written = write(space, world.at(5), &[1; 5 * PAGE_SIZE]);
    let error = mirror::MirrorError::NotWritable(number(8));
    assert_eq!(written, in_the_way(3 * PAGE_SIZE, error));
    assert_eq!(world.peek(7), 1);
    world.check(8);
    let said = written.unwrap_err().to_string();
    assert!(
        said.contains("may not be written to") && said.contains("12288 bytes"),
        "{said}"
    );
    // Memory of others.
    let own = Own::map(4);
    (0..4).for_each(|page| poke(at(&own, page), page as u8));
    own.protect(2..3, libc::PROT_READ);
    own.unmap(3..4);
    let number = |page| PageNo::containing(at(&own, page));
    space
        .read_bytes(at(&own, 0), &mut bytes[..3 * PAGE_SIZE])
        .unwrap();
    assert_eq!(
        [bytes[0], bytes[PAGE_SIZE], bytes[2 * PAGE_SIZE]],
        [0, 1, 2]
    );
    let read = space.read_bytes(at(&own, 2) + 1, &mut bytes);
    let error = mirror::MirrorError::NoAccess(number(3));
    assert_eq!(read, in_the_way(PAGE_SIZE - 1, error));
    let written = write(space, at(&own, 1) + 1, &[9; 2 * PAGE_SIZE]);
    let error = mirror::MirrorError::NotWritable(number(2));
    assert_eq!(written, in_the_way(PAGE_SIZE - 1, error));
    assert_eq!([peek(at(&own, 1) + 1), peek(at(&own, 2))], [9, 2]);
    // Addresses that no program has.
    let overflow = Err(AccessError {
        done: 0,
        error: RangeError::Overflow.into(),
    });
    assert_eq!(space.read_bytes(usize::MAX - 3, &mut bytes[..8]), overflow);
    assert!(space.read_bytes(8, &mut bytes[..8]).is_err());
    assert!(space.read_bytes(1 << 60, &mut bytes[..8]).is_err());
}

#[test]
fn a_lost_page_is_an_error() {
    let _alone = alone();
    let (world, mood) = World::moody(MemoryType::Private, 8);
    world.write_all();
    world.send(Place::Device(FIRST));
    mood.lost.store(1, std::sync::atomic::Ordering::SeqCst);
    let mut bytes = vec![0; world.len()];
    let error = world
        .space
        .read_bytes(world.address, &mut bytes)
        .unwrap_err();
    let lost = error.done / PAGE_SIZE;
    let poisoned = mirror::MirrorError::Poisoned(PageNo::containing(world.at(lost)));
    assert_eq!(Err(error), in_the_way(lost * PAGE_SIZE, poisoned));
}

#[test]
fn whoever_has_a_table_locked_is_refused() {
    let _alone = alone();
    let world = World::new(&[], 8);
    let mirror = world.mirror();
    world.write_all();
    let table = mirror.lock().unwrap();
    let refused = AccessError {
        done: 0,
        error: RangeError::InNotifier.into(),
    };
    let mut byte = [0];
    assert_eq!(
        world.space.read_bytes(world.address, &mut byte),
        Err(refused)
    );
    assert_eq!(write(&world.space, world.address, &byte), Err(refused));
    drop(table);
    assert_eq!(world.space.read_bytes(world.address, &mut byte), Ok(()));
    drop(mirror);
    let plain = space(BUDGET, vec![]);
    let table = PageTable::new(0, PAGE_SIZE);
    // SAFETY: nothing is there.
    let nowhere = unsafe { plain.mirror(0, PAGE_SIZE, None, table) };
    assert!(
        nowhere.is_ok(),
        "a mirror of another space is in nobody's way"
    );
}
