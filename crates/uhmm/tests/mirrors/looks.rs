//! What a device sees of each kind of page, with a fault and without.

use crate::gpu::{Gpu, Memory, pages};
use crate::in_the_way;
use crate::world::device::TestDevice;
use crate::world::{ALL, BUDGET, DEVICE, FIRST, SECOND, World, alone, faults, space};
use std::sync::atomic::Ordering::SeqCst;
use uhmm::device::{DeviceInfo, PAGE_SIZE, PageData};
use uhmm::memory::Protection;
use uhmm::mirror::{Mapped, MirrorError, Need, PageTable};
use uhmm::{DeviceId, Hint, Place};
use uhmm_core::entry::State;
use uhmm_core::memory_type::MemoryType::{Coherent, Private};
use uhmm_core::mirror;

const PAGES: usize = 32;
const OTHER: DeviceId = DeviceId(2);

/// The device itself, one whose memory the CPU maps, and one that is another's. Pages 0 to 4 were never
/// touched, 4 to 8 are in RAM, 8 to 12 on the device itself, 12 to 16 on the one that is mapped, 16 to
/// 20 on the other; 20 to 24 may only be read, 24 to 28 not be touched, the rest is not mapped.
fn each_kind() -> (World, Memory) {
    let own = Memory::new(64);
    let info = |memory| DeviceInfo::new("test", DEVICE).memory(memory);
    let mut devices = vec![own.device()];
    devices.extend([Coherent, Private].map(|memory| TestDevice::boxed(info(memory)).0));
    let world = World::within(space(BUDGET, devices), PAGES);
    (4..28).rev().for_each(|page| world.write(page));
    for (first, device) in [(8, FIRST), (12, SECOND), (16, OTHER)] {
        let done = world.migrate(first..first + 4, Place::Device(device));
        assert_eq!(done.migrated, 4);
    }
    world.protect(20..24, Protection::READ).unwrap();
    world.protect(24..28, Protection::empty()).unwrap();
    world.unmap(28..PAGES).unwrap();
    (world, own)
}

/// What the states of all pages are, but for who touched them last.
fn states(world: &World) -> Vec<State> {
    let plain = |state| match state {
        State::System { duplicate, .. } => State::System {
            referenced: false,
            duplicate,
        },
        state => state,
    };
    (0..PAGES).map(|page| plain(world.state(page))).collect()
}

/// A snapshot looks, and nothing else.
#[test]
fn a_snapshot_faults_nothing_in() {
    let _alone = alone();
    let (world, own) = each_kind();
    let gpu = Gpu::new(&world, FIRST, &own);
    let before = states(&world);
    let found = gpu.0.snapshot(world.address, world.len()).unwrap();
    for (page, found) in found.iter().enumerate() {
        let at = || before[page].device_page().unwrap();
        let expected = match page {
            0..4 | 16..20 => Mapped::Nothing,
            4..8 => Mapped::ram(true),
            8..16 => Mapped::Device {
                at: at(),
                write: true,
            },
            20..24 => Mapped::ram(false),
            _ => Mapped::Error,
        };
        assert_eq!(*found, expected, "page {page}");
    }
    assert_eq!(states(&world), before);
    // Another device does not reach the first one's pages.
    let other = world.mirror();
    let found = other.snapshot(world.at(8), pages(4)).unwrap();
    assert_eq!(found, [Mapped::Nothing; 4]);
    assert_eq!(states(&world), before);
}

/// R14: each kind is brought to where the device reaches it; what it reads is what is there.
#[test]
fn a_device_reads_and_writes_every_kind_of_page() {
    let _alone = alone();
    let (world, own) = each_kind();
    let gpu = Gpu::new(&world, FIRST, &own);
    (0..24).for_each(|page| gpu.check(&world, page));
    // Its own pages and mapped ones are where they were.
    assert!((8..12).all(|page| matches!(world.state(page), State::Private(_))));
    assert!((12..16).all(|page| matches!(world.state(page), State::Coherent(_))));
    assert!((16..20).all(|page| world.is_in_ram(page)));
    (0..20).for_each(|page| gpu.fill(&world, page));
    assert!((8..12).all(|page| matches!(world.state(page), State::Private(_))));
    (0..24).for_each(|page| gpu.check(&world, page));
    (0..24).for_each(|page| world.check(page));
    assert!((8..12).all(|page| world.is_in_ram(page)), "touched");
    (0..20).for_each(|page| world.write(page));
    (0..20).for_each(|page| gpu.check(&world, page));
}

#[test]
fn what_the_program_may_not_do_the_device_may_not_either() {
    let _alone = alone();
    let (world, own) = each_kind();
    let gpu = Gpu::new(&world, FIRST, &own);
    let mut found = [0; 8];
    for page in 20..24 {
        let error = in_the_way(gpu.0.write(world.at(page), &[1; 8]));
        let wanted = mirror::MirrorError::NotWritable(world.number(page));
        assert_eq!(error, wanted);
        gpu.check(&world, page);
    }
    for page in 24..PAGES {
        let wanted = mirror::MirrorError::NoAccess(world.number(page));
        assert_eq!(in_the_way(gpu.0.read(world.at(page), &mut found)), wanted);
        assert_eq!(in_the_way(gpu.0.write(world.at(page), &[1; 8])), wanted);
    }
    world.protect(20..28, ALL).unwrap();
    world.map_again(28..PAGES);
    (20..PAGES).for_each(|page| gpu.check(&world, page));
    (20..PAGES).for_each(|page| gpu.fill(&world, page));
    (0..PAGES).for_each(|page| world.check(page));
}

/// A write that spans pages is made up to the page that cannot be had.
#[test]
fn reads_and_writes_cross_pages() {
    let _alone = alone();
    let (world, own) = each_kind();
    let gpu = Gpu::new(&world, FIRST, &own);
    let (at, bytes) = (world.at(7) + 4000, vec![5; 2 * PAGE_SIZE]);
    gpu.0.write(at, &bytes).unwrap();
    let mut found = vec![0; bytes.len()];
    gpu.0.read(at, &mut found).unwrap();
    assert_eq!(found, bytes);
    assert_eq!([world.peek(8), world.peek(9)], [5, 5]);
    let at = world.at(19) + 4000;
    let error = in_the_way(gpu.0.write(at, &[6; 200]));
    let wanted = mirror::MirrorError::NotWritable(world.number(20));
    assert_eq!(error, wanted);
    gpu.0.read(at, &mut found[..200]).unwrap();
    assert!(found[..96].iter().all(|byte| *byte == 6));
    assert!(gpu.0.read(at, &mut []).is_ok());
}

/// Needs of all pages, and of single ones besides.
#[test]
fn each_page_is_brought_as_it_is_needed() {
    let _alone = alone();
    let (world, own) = each_kind();
    let gpu = Gpu::new(&world, FIRST, &own);
    let look = |each: &[Need]| {
        let range = gpu
            .0
            .range_fault(world.at(16), pages(4), Need::SNAPSHOT, each, |_, found| {
                found.to_vec()
            });
        range.unwrap()
    };
    let ram = Mapped::ram(true);
    let nothing = Mapped::Nothing;
    let (found, rounds) = look(&[Need::SNAPSHOT, Need::READ]);
    assert_eq!((found, rounds), (vec![nothing, ram, nothing, nothing], 1));
    let (found, rounds) = look(&[]);
    assert_eq!((found, rounds), (vec![nothing, ram, nothing, nothing], 0));
    let (found, rounds) = look(&[Need::WRITE; 4]);
    assert_eq!((found, rounds), (vec![ram; 4], 1));
    let (found, rounds) = look(&[Need::WRITE; 4]);
    assert_eq!((found, rounds), (vec![ram; 4], 0));
    // One that cannot be had is an error for all of them, and nothing was installed.
    let mut installed = false;
    let needs = [Need::READ, Need::SNAPSHOT, Need::READ, Need::READ];
    let asked = gpu
        .0
        .range_fault(world.at(22), pages(4), Need::SNAPSHOT, &needs, |_, _| {
            installed = true
        });
    let wanted = mirror::MirrorError::NoAccess(world.number(24));
    assert_eq!(in_the_way(asked), wanted);
    assert!(!installed);
}

/// R15: a page that the device writes to first is the program's to write to without a fault.
#[test]
fn a_write_of_the_device_is_one_fault() {
    let _alone = alone();
    let (world, own) = each_kind();
    let gpu = Gpu::new(&world, FIRST, &own);
    assert_eq!(gpu.0.write(world.at(0), &[7; 8]), Ok(1));
    assert_eq!(gpu.0.write(world.at(0), &[8; 8]), Ok(0), "the table has it");
    world.state(0);
    let before = faults();
    assert_eq!(world.peek(0), 8);
    world.poke(0, 9);
    assert_eq!(faults() - before, 0);
    let mut found = [0; 2];
    assert_eq!(gpu.0.read(world.at(0), &mut found), Ok(0));
    assert_eq!(found, [9, 8]);
}

/// A page that is read-mostly keeps its duplicate for as long as the device only reads it.
#[test]
fn a_device_that_reads_leaves_a_duplicate_and_one_that_writes_ends_it() {
    let _alone = alone();
    let (device, mood) = TestDevice::boxed(DeviceInfo::new("test", DEVICE));
    let world = World::within(space(BUDGET, vec![device]), PAGES);
    world.write_all();
    world.read_mostly(true);
    world.send(Place::Device(FIRST));
    let mirror = world.mirror();
    let mut found = PageData::ZERO;
    for page in 0..PAGES {
        mirror.read(world.at(page), &mut found.0).unwrap();
        world.oracle.check(page, &found);
    }
    let is_tracked = |page| world.state(page).is_tracked();
    assert!((0..PAGES).all(is_tracked));
    let snapshot = mirror.snapshot(world.address, world.len()).unwrap();
    assert_eq!(snapshot, vec![Mapped::ram(false); PAGES]);
    let copies = mood.copies_in.load(SeqCst);
    mirror.write(world.at(3) + 5, &[1]).unwrap();
    assert!((0..PAGES).all(|page| is_tracked(page) == (page != 3)));
    // The rest goes out again without a copy, and the device is told.
    let invalidations = world.stats().invalidations.get();
    world.push_out();
    assert!(world.stats().invalidations.get() > invalidations);
    assert!(mood.copies_in.load(SeqCst) <= copies + 1);
    for page in (0..PAGES).filter(|page| *page != 3) {
        mirror.read(world.at(page), &mut found.0).unwrap();
        world.oracle.check(page, &found);
    }
}

/// What is wrong with the range is said before anything is done.
#[test]
fn a_range_that_is_not_mirrored_is_refused() {
    let _alone = alone();
    let (world, own) = each_kind();
    let gpu = Gpu::new(&world, FIRST, &own);
    let refused = |address, len| gpu.0.snapshot(address, len).unwrap_err();
    let first = world.address;
    for (address, len, wanted) in [
        (first, 0, uhmm::RangeError::Empty),
        (first + 5, PAGE_SIZE, uhmm::RangeError::Unaligned),
        (first, 100, uhmm::RangeError::Unaligned),
        (first, usize::MAX - 4095, uhmm::RangeError::Overflow),
        (1 << 60, PAGE_SIZE, uhmm::RangeError::Overflow),
    ] {
        assert_eq!(refused(address, len), MirrorError::Range(wanted));
    }
    let len = world.len() + PAGE_SIZE;
    let wanted = MirrorError::Mirror(mirror::MirrorError::NotMirrored);
    assert_eq!(refused(first, len), wanted);
    assert_eq!(refused(first + world.len(), PAGE_SIZE), wanted);
    assert_eq!(refused(PAGE_SIZE, PAGE_SIZE), wanted);
    let table = || uhmm::mirror::PageTable::new(world.address, world.len());
    // SAFETY: none is made.
    let no_device = unsafe {
        let device = Some(DeviceId(7));
        world.space.mirror(first, world.len(), device, table())
    };
    assert_eq!(no_device.err(), Some(MirrorError::NoSuchDevice));
    // SAFETY: as above.
    let beyond = unsafe { world.space.mirror(1 << 48, PAGE_SIZE, None, table()) };
    let wanted = MirrorError::Range(uhmm::RangeError::Overflow);
    assert_eq!(beyond.err(), Some(wanted));
}

/// What the program has said a device uses goes along with one fault, wherever it is by then; of other
/// pages, only the one that was asked for.
#[test]
fn pages_that_a_device_uses_come_to_its_table_together() {
    let _alone = alone();
    let world = World::new(&[Private, Coherent], PAGES);
    world.write_all();
    let table = PageTable::new(world.address, world.len());
    let mirror = world.mirror_by(Some(FIRST), table);
    let used = 3..PAGES - 2;
    let hint = |hint| {
        let len = used.len() * PAGE_SIZE;
        world.space.advise(world.at(used.start), len, hint).unwrap();
    };
    let mapped = || {
        let table = mirror.lock().unwrap();
        let has = |&page: &usize| table.at(world.at(page)) != Mapped::Nothing;
        (0..PAGES).filter(has).collect::<Vec<_>>()
    };
    let look = |page: usize| {
        mirror.read(world.at(page) + 5, &mut [0; 3]).unwrap();
    };
    look(9);
    assert_eq!(mapped(), [9], "nobody has said a word");
    hint(Hint::AccessedBy(FIRST));
    look(10);
    assert_eq!(mapped(), used.clone().collect::<Vec<_>>());
    // They have moved: one fault brings them all again, those on another device's mapped memory too.
    world.migrate(0..PAGES, Place::Device(SECOND));
    assert_eq!(mapped(), []);
    look(10);
    assert_eq!(mapped(), used.clone().collect::<Vec<_>>());
    // Another device's hint is not this one's.
    hint(Hint::NotAccessedBy(FIRST));
    hint(Hint::AccessedBy(SECOND));
    world.migrate(0..PAGES, Place::Ram);
    look(10);
    assert_eq!(mapped(), [10]);
    look(1);
    assert_eq!(mapped(), [1, 10], "beside the range that was named");
    world.check_all();
}

/// One thread of a device reads and writes by its table, another takes the same pages alone.
#[test]
fn threads_of_one_device_reach_pages_by_the_table_and_alone() {
    let _alone = alone();
    let world = World::new(&[Private], PAGES);
    let mirror = world.mirror();
    let turns = 3000;
    let is_for_now = |error: &MirrorError| {
        let busy = ["try again", "come to rest"];
        busy.iter().any(|words| error.to_string().contains(words))
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0..turns {
                let (at, byte) = (world.at(turn % 3), [turn as u8; 64]);
                // The second kilobyte is this thread's, the first the other's.
                while let Err(error) = mirror.write(at + 1024, &byte) {
                    assert!(is_for_now(&error), "{error}");
                }
                let mut read = [0; 64];
                while let Err(error) = mirror.read(at + 1024, &mut read) {
                    assert!(is_for_now(&error), "{error}");
                }
                assert_eq!(read, byte);
            }
        });
        for turn in 0..turns {
            let add = |_: &mut PageTable, data: &mut PageData| {
                data.0[turn % 512] = data.0[turn % 512].wrapping_add(1);
            };
            while let Err(error) = mirror.exclusively(world.at(turn % 3), add) {
                let again = error == MirrorError::NotAlone || is_for_now(&error);
                assert!(again, "{error}");
            }
        }
    });
    let sums = (0..3).flat_map(|page| (0..512).map(move |i| (page, i)));
    let sum: usize = sums
        .map(|(page, i)| usize::from(byte_at(&world, page, i)))
        .sum();
    assert_eq!(sum, turns);
}

fn byte_at(world: &World, page: usize, i: usize) -> u8 {
    // SAFETY: within the test's range; nobody writes there any more.
    unsafe { ((world.at(page) + i) as *const u8).read_volatile() }
}
