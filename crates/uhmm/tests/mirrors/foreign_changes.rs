//! Memory that the space does not manage, or not always, and that changes under a mirror.

use crate::foreign::{at, everything, peek, plain, poke};
use crate::own_memory::{Own, raw_map, unmap};
use crate::world::child::{End, child, wait};
use crate::world::device::TestDevice;
use crate::world::{ALL, BUDGET, DEVICE, FIRST, SOON, alone, is_for_now, space};
use crate::{in_the_way, memory_file, until_done};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm::device::{DeviceInfo, MemoryType};
use uhmm::mirror::{Mapped, Need};
use uhmm::{Place, Space};
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::mirror::MirrorError;

const PAGES: usize = 64;

fn with_device(memory: MemoryType) -> Space {
    let info = DeviceInfo::new("test", DEVICE).memory(memory);
    space(BUDGET, vec![TestDevice::boxed(info).0])
}

fn number(own: &Own, page: usize) -> PageNo {
    PageNo::containing(at(own, page))
}

/// Unmaps pages by way of the space, as who takes over the program's calls does.
fn unmap_seen(space: &Space, own: &Own, pages: Range<usize>) {
    let (address, len) = (at(own, pages.start), pages.len() * PAGE_SIZE);
    let call = || {
        own.unmap(pages);
        Ok(())
    };
    // SAFETY: nothing of it is borrowed.
    unsafe { space.memory().around_unmap(address, len, call) }.unwrap();
}

/// A part of a range is the space's, and on its device; a device reads and writes all of it.
#[test]
fn a_range_may_be_managed_in_parts() {
    let _alone = alone();
    for memory in [MemoryType::Private, MemoryType::Coherent] {
        let space = with_device(memory);
        let mirror = everything(&space);
        let own = Own::map(PAGES);
        (0..PAGES).for_each(|page| poke(at(&own, page), page as u8));
        // SAFETY: a mapping of the test's own, which is unmapped after its release.
        let adopted = unsafe { space.adopt(own.at(16), 32 * PAGE_SIZE) }.unwrap();
        let sent = adopted.migrate(Place::Device(FIRST)).unwrap();
        assert_eq!(sent.left, 0);
        let found = mirror.snapshot(at(&own, 0), own.len()).unwrap();
        for (page, found) in found.into_iter().enumerate() {
            match (page, memory) {
                (16..48, MemoryType::Private) => assert_eq!(found, Mapped::Nothing),
                (16..48, _) => assert!(matches!(found, Mapped::Device { write: true, .. })),
                _ => assert_eq!(found, Mapped::ram(true), "page {page}"),
            }
        }
        let mut bytes = vec![0; own.len()];
        mirror.read(at(&own, 0), &mut bytes).unwrap();
        for page in 0..PAGES {
            assert_eq!(bytes[page * PAGE_SIZE], page as u8);
            bytes[page * PAGE_SIZE] = 200 - page as u8;
        }
        mirror.write(at(&own, 0), &bytes).unwrap();
        for page in 0..PAGES {
            assert_eq!(peek(at(&own, page)), 200 - page as u8);
        }
        drop(mirror);
        drop(adopted);
    }
}

/// R14: a page that was not managed leaves the table before it can go to a device.
#[test]
fn what_is_adopted_under_a_mirror_is_read_where_it_goes() {
    let _alone = alone();
    for memory in [MemoryType::Private, MemoryType::Coherent] {
        let space = with_device(memory);
        let mirror = everything(&space);
        let own = Own::map(PAGES);
        let done = AtomicBool::new(false);
        // Each page holds a number that only grows; the second half is the device's to write.
        let word = |page: usize| at(&own, page) as *mut u64;
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut last = [0_u64; PAGES / 2];
                let mut next = 0_u64;
                while !done.load(SeqCst) {
                    for (page, last) in last.iter_mut().enumerate() {
                        let mut bytes = [0; 8];
                        match mirror.read(at(&own, page), &mut bytes) {
                            Ok(_) => {}
                            Err(error) => assert!(is_for_now(&error), "{error}"),
                        }
                        let now = u64::from_le_bytes(bytes);
                        assert!(now == 0 || now >= *last, "page {page} went back");
                        *last = now.max(*last);
                    }
                    next += 1;
                    for page in PAGES / 2..PAGES {
                        while let Err(error) = mirror.write(at(&own, page), &next.to_le_bytes()) {
                            assert!(is_for_now(&error), "{error}");
                        }
                    }
                }
            });
            let mut seen = 0;
            for round in 1..=200_u64 {
                // SAFETY: as above.
                let adopted = unsafe { space.adopt(own.at(0), own.len()) }.unwrap();
                // SAFETY: the first half is this thread's to write.
                (0..PAGES / 2).for_each(|page| unsafe { word(page).write_volatile(round) });
                let _ = adopted.migrate(Place::Device(FIRST));
                // SAFETY: the device writes there, and words are not torn.
                let found = unsafe { word(PAGES - 1).read_volatile() };
                assert!(found >= seen, "the device's writes are not lost");
                seen = found;
                drop(adopted);
                (0..PAGES / 2).for_each(|page| {
                    // SAFETY: as above.
                    assert_eq!(unsafe { word(page).read_volatile() }, round);
                });
            }
            done.store(true, SeqCst);
        });
        drop(mirror);
    }
}

/// Adoption is a change like others: what a look was about to say of the pages does not count.
#[test]
fn what_is_adopted_leaves_the_table() {
    let _alone = alone();
    let space = with_device(MemoryType::Private);
    let mirror = everything(&space);
    let own = Own::map(8);
    mirror.write(at(&own, 0), &[3; 8 * PAGE_SIZE]).unwrap();
    let in_table = || {
        let table = mirror.lock().unwrap();
        (0..8)
            .filter(|page| table.at(at(&own, *page)) != Mapped::Nothing)
            .collect::<Vec<_>>()
    };
    assert_eq!(in_table().len(), 8);
    // SAFETY: a mapping of the test's own, which is unmapped after its release.
    let adopted = unsafe { space.adopt(own.at(2), 3 * PAGE_SIZE) }.unwrap();
    assert_eq!(in_table(), [0, 1, 5, 6, 7]);
    let mut bytes = [0; 8 * PAGE_SIZE];
    mirror.read(at(&own, 0), &mut bytes).unwrap();
    assert_eq!(bytes, [3; 8 * PAGE_SIZE]);
    drop(adopted);
    assert_eq!(in_table(), [0, 1, 5, 6, 7], "and it is given back");
}

/// In the signal engine a page that is being adopted cannot be brought by the kernel: that is no error.
#[test]
fn what_is_adopted_while_it_is_faulted_in_comes_all_the_same() {
    let _alone = alone();
    let builder = uhmm::Builder::new((BUDGET * PAGE_SIZE) as u64).engine(uhmm::Engine::Signal);
    let space = builder.build().unwrap();
    let mirror = everything(&space);
    for round in 0..300 {
        let own = Own::map(PAGES);
        let bytes = vec![7; own.len()];
        let write = || mirror.write(at(&own, 0), &bytes);
        thread::scope(|scope| {
            let device = scope.spawn(|| until_done(write));
            thread::sleep(Duration::from_micros(round % 30 * 5));
            // SAFETY: as above.
            let adopted = unsafe { space.adopt(own.at(0), own.len()) }.unwrap();
            device.join().unwrap().unwrap();
            assert!((0..PAGES).all(|page| peek(at(&own, page)) == 7));
            drop(adopted);
        });
        assert!((0..PAGES).all(|page| peek(at(&own, page)) == 7));
    }
}

/// Calls that the space sees: the table forgets, and a device never reads what was there before.
#[test]
fn the_table_forgets_what_the_program_changes() {
    let _alone = alone();
    let space = plain();
    let mirror = everything(&space);
    let own = Own::map(8);
    let memory = space.memory();
    let have_all = || {
        (0..8).for_each(|page| poke(at(&own, page), 7));
        let need = Need::WRITE;
        let install = |table: &mut uhmm::mirror::Table<'_, _>, found: &[Mapped]| {
            let table: &mut uhmm::mirror::PageTable = table;
            table.set(at(&own, 0), found);
        };
        mirror
            .range_fault(at(&own, 0), own.len(), need, &[], install)
            .unwrap();
    };
    let in_table = || {
        let table = mirror.lock().unwrap();
        (0..8)
            .filter(|page| table.at(at(&own, *page)) != Mapped::Nothing)
            .collect::<Vec<_>>()
    };
    have_all();
    assert_eq!(in_table(), [0, 1, 2, 3, 4, 5, 6, 7]);
    // Dropped contents.
    let discard = || {
        own.advise(1..3, libc::MADV_DONTNEED);
        Ok(())
    };
    // SAFETY: nothing of it is borrowed, here and below.
    unsafe { memory.around_discard(at(&own, 1), 2 * PAGE_SIZE, discard) }.unwrap();
    assert_eq!(in_table(), [0, 3, 4, 5, 6, 7]);
    let mut bytes = [1; 3 * PAGE_SIZE];
    mirror.read(at(&own, 1), &mut bytes).unwrap();
    assert_eq!(
        [bytes[0], bytes[PAGE_SIZE], bytes[2 * PAGE_SIZE]],
        [0, 0, 7]
    );
    // Another protection.
    have_all();
    let protect = || {
        own.protect(4..5, libc::PROT_READ);
        Ok(())
    };
    let to_read = uhmm::memory::Protection::READ;
    // SAFETY: as above.
    unsafe { memory.around_protect(at(&own, 4), PAGE_SIZE, to_read, protect) }.unwrap();
    assert_eq!(in_table(), [0, 1, 2, 3, 5, 6, 7]);
    let error = MirrorError::NotWritable(number(&own, 4));
    assert_eq!(in_the_way(mirror.write(at(&own, 4), &[1])), error);
    let protect = || {
        own.protect(4..5, libc::PROT_READ | libc::PROT_WRITE);
        Ok(())
    };
    // SAFETY: as above.
    unsafe { memory.around_protect(at(&own, 4), PAGE_SIZE, ALL, protect) }.unwrap();
    assert_eq!(mirror.write(at(&own, 4), &[1]), Ok(0), "it is there");
    // A mapping that goes.
    have_all();
    unmap_seen(&space, &own, 6..7);
    assert_eq!(in_table(), [0, 1, 2, 3, 4, 5, 7]);
    let error = MirrorError::NoAccess(number(&own, 6));
    assert_eq!(in_the_way(mirror.read(at(&own, 6), &mut bytes[..1])), error);
    // A fork is told for everything, and the child's copies are the child's.
    let before = mirror.read(at(&own, 0), &mut bytes[..1]);
    assert_eq!(before, Ok(0));
    let pid = child(|| i32::from(peek(at(&own, 0)) != 7));
    assert_eq!(wait(pid), End::Exit(0));
    assert_eq!(in_table(), []);
    mirror.write(at(&own, 0), &[8]).unwrap();
    assert_eq!(peek(at(&own, 0)), 8);
}

/// What is read is right, or an error, while the mapping goes under the device's hands.
#[test]
fn a_mapping_that_goes_while_a_device_reads_it_is_an_error() {
    let _alone = alone();
    let space = plain();
    let mirror = everything(&space);
    for round in 0..300_usize {
        let own = Own::map(PAGES);
        let byte = |page: usize| (round + page) as u8;
        (0..PAGES).for_each(|page| poke(at(&own, page), byte(page)));
        let mut bytes = vec![0; own.len()];
        let read = thread::scope(|scope| {
            let reader = scope.spawn(|| until_done(|| mirror.read(at(&own, 0), &mut bytes)));
            if round % 3 != 0 {
                thread::sleep(Duration::from_micros(20 * (round % 20) as u64));
            }
            unmap_seen(&space, &own, PAGES / 2..PAGES);
            reader.join().unwrap()
        });
        let right = |bytes: &[u8], pages: Range<usize>| {
            pages.for_each(|page| assert_eq!(bytes[page * PAGE_SIZE], byte(page), "{round}"));
        };
        match read {
            Ok(_) => right(&bytes, 0..PAGES),
            Err(error) => {
                let error: MirrorError = in_the_way(Err::<(), _>(error));
                assert!(matches!(error, MirrorError::NoAccess(_)), "{error:?}");
            }
        }
        let half = &mut bytes[..PAGES / 2 * PAGE_SIZE];
        mirror.read(at(&own, 0), half).unwrap();
        right(half, 0..PAGES / 2);
    }
}

/// Calls that the space does not see: the device gets an error, and nobody is killed.
#[test]
fn a_raw_unmapping_under_a_table_is_an_error() {
    let _alone = alone();
    let space = plain();
    let mirror = everything(&space);
    let own = Own::map(8);
    let mut bytes = vec![0; own.len()];
    let have_all = || mirror.write(at(&own, 0), &[5; 8 * PAGE_SIZE]).map(drop);
    have_all().unwrap();
    own.unmap(3..4);
    let gone = MirrorError::Gone(number(&own, 3));
    assert_eq!(in_the_way(mirror.read(at(&own, 0), &mut bytes)), gone);
    assert_eq!(bytes[..3 * PAGE_SIZE], [5; 3 * PAGE_SIZE]);
    assert_eq!(
        in_the_way(mirror.write(at(&own, 2) + 4000, &[6; 200])),
        gone
    );
    assert_eq!(peek(at(&own, 2) + 4095), 6);
    // A protection; the table says that the device may write.
    own.protect(5..6, libc::PROT_READ);
    let gone = MirrorError::Gone(number(&own, 5));
    assert_eq!(
        in_the_way(mirror.write(at(&own, 4), &[6; 2 * PAGE_SIZE])),
        gone
    );
    assert_eq!([peek(at(&own, 4)), peek(at(&own, 5))], [6, 5]);
    // A file that is cut short.
    let file = memory_file();
    file.set_len(4 * PAGE_SIZE as u64).unwrap();
    let address = raw_map(4 * PAGE_SIZE, libc::MAP_SHARED, file.as_raw_fd());
    mirror.write(address, &[9; 4 * PAGE_SIZE]).unwrap();
    file.set_len(PAGE_SIZE as u64).unwrap();
    let gone = MirrorError::Gone(PageNo::containing(address + PAGE_SIZE));
    assert_eq!(
        in_the_way(mirror.read(address, &mut bytes[..4 * PAGE_SIZE])),
        gone
    );
    assert_eq!(bytes[..PAGE_SIZE], [9; PAGE_SIZE]);
    unmap(address..address + 4 * PAGE_SIZE);
    // Whatever is mapped there next is what the device works on.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: in the hole of the mapping.
    let again = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(own.at(3).cast(), PAGE_SIZE, access, flags, -1, 0)
    };
    assert_eq!(again as usize, at(&own, 3));
    mirror.read(at(&own, 3), &mut bytes[..1]).unwrap();
    assert_eq!(bytes[0], 0);
}

/// A table over everything holds no more than what the device has used, whatever the program does.
#[test]
fn programs_go_on_under_a_table_over_everything() {
    let _alone = alone();
    let space = with_device(MemoryType::Private);
    let mirror = everything(&space);
    let managed = space.memory().map(PAGES * PAGE_SIZE, ALL).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                let mut bytes = [0; 4];
                for page in 0..PAGES {
                    if let Err(error) = mirror.read(managed + page * PAGE_SIZE, &mut bytes) {
                        assert!(is_for_now(&error), "{error}");
                    }
                }
            }
        });
        for round in 0..100_u8 {
            for page in 0..PAGES {
                poke(managed + page * PAGE_SIZE, round);
            }
            let len = PAGES * PAGE_SIZE;
            let _ = space.migrate(managed, len, Place::Device(FIRST));
            for page in 0..PAGES {
                assert_eq!(peek(managed + page * PAGE_SIZE), round);
            }
        }
        done.store(true, SeqCst);
    });
    drop(mirror);
    space.evict_device(FIRST, SOON).unwrap();
}
