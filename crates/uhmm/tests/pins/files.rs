//! The kernel reads and writes pinned memory: direct I/O, registered buffers, plain system calls.

use crate::world::device::TestDevice;
use crate::world::{FIRST, World, alone, space, wait_until};
use crate::{READ, WRITE, bytes, while_all_moves};
use io_uring::{IoUring, opcode, squeue, types};
use std::fs::{File, OpenOptions, remove_file};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use uhmm::device::{DeviceInfo, MemoryType, PAGE_SIZE, PageData};
use uhmm::{PinFlags, Place};
use uhmm_core::memory_type::MemoryType::{Coherent, Private};

/// Four times what fits into RAM.
const PAGES: usize = 2048;
/// What is pinned at a time.
const WINDOW: usize = 64;

/// A world that does not fit into RAM.
fn tight(memory: MemoryType) -> World {
    let info = DeviceInfo::new("test", 16384).memory(memory);
    let spill = DeviceInfo::new("spill", 16384);
    let devices = [info, spill].map(|info| TestDevice::boxed(info).0);
    World::within(space(512, devices.into()), PAGES)
}

/// A file without a name, past whose cache the kernel reads and writes.
fn direct_file() -> File {
    let name = format!("uhmm-pins-{}", std::process::id());
    // On a disk, rather than in memory; where that is not this user's, wherever temporary files go.
    let folder = std::env::var_os("TMPDIR").unwrap_or(env!("CARGO_TARGET_TMPDIR").into());
    let path = Path::new(&folder).join(name);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let file = options.custom_flags(libc::O_DIRECT).open(&path).unwrap();
    remove_file(path).unwrap();
    file
}

fn windows() -> impl Iterator<Item = Range<usize>> {
    (0..PAGES).step_by(WINDOW).map(|at| at..at + WINDOW)
}

/// What the file holds of some pages is what was written to them.
fn check_file(world: &World, file: &File, pages: Range<usize>) {
    let mut found = vec![PageData::ZERO; pages.len()];
    let all = found.as_mut_ptr().cast::<u8>();
    // SAFETY: all of the pages, which are plain bytes.
    let all = unsafe { std::slice::from_raw_parts_mut(all, pages.len() * PAGE_SIZE) };
    let place = pages.start * PAGE_SIZE;
    file.read_exact_at(all, place as u64).unwrap();
    for (page, found) in pages.zip(&found) {
        world.oracle.check(page, found);
    }
}

/// R11: out of pinned memory to a file, and back into other pinned memory, past the page cache.
#[test]
fn direct_io_into_and_out_of_pinned_memory() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let (world, file) = (tight(memory), direct_file());
        while_all_moves(&world, || {
            for pages in windows() {
                pages.clone().for_each(|page| world.write(page));
                let pin = world.pin(pages.clone(), READ);
                let place = pages.start * PAGE_SIZE;
                file.write_all_at(bytes(&pin), place as u64).unwrap();
                drop(pin);
                check_file(&world, &file, pages);
            }
            for pages in windows() {
                // From now on the bytes are in the file alone.
                world.forget(pages.clone());
                let pin = world.pin(pages.clone(), WRITE);
                let place = pages.start * PAGE_SIZE;
                file.read_exact_at(bytes(&pin), place as u64).unwrap();
                pages.for_each(|page| world.check(page));
            }
        });
        world.check_all();
        world.is_at_rest();
    }
}

/// Pinned memory is registered with a ring, which pins it in the kernel too, and used by number.
#[test]
fn registered_buffers_of_a_ring_are_good_while_everything_moves() {
    let _alone = alone();
    let flags = PinFlags {
        write: true,
        longterm: true,
        ..READ
    };
    for memory in [Private, Coherent] {
        let (world, file) = (tight(memory), direct_file());
        world.write_all();
        let (from, to) = (0..WINDOW, 1024..1024 + WINDOW);
        let pins = [from.clone(), to.clone()].map(|pages| world.pin(pages, flags));
        let mut ring = IoUring::new(8).unwrap();
        let buffers = pins.each_ref().map(|pin| libc::iovec {
            iov_base: bytes(pin).as_mut_ptr().cast(),
            iov_len: bytes(pin).len(),
        });
        // SAFETY: the buffers stay mapped until the ring is gone.
        unsafe { ring.submitter().register_buffers(&buffers).unwrap() };
        let fd = types::Fd(file.as_raw_fd());
        let len = (WINDOW * PAGE_SIZE) as u32;
        let [source, target] = [0, 1].map(|i| bytes(&pins[i]).as_mut_ptr());
        let mut run = |entry: squeue::Entry| {
            // SAFETY: the buffers are registered, and ours.
            unsafe { ring.submission().push(&entry).unwrap() };
            ring.submit_and_wait(1).unwrap();
            let done = ring.completion().next().unwrap();
            assert_eq!(done.result(), len as i32);
        };
        while_all_moves(&world, || {
            for _ in 0..50 {
                from.clone().for_each(|page| world.write(page));
                run(opcode::WriteFixed::new(fd, source, len, 0).build());
                run(opcode::ReadFixed::new(fd, target, len, 1).build());
                let same = bytes(&pins[0]) == bytes(&pins[1]);
                assert!(same, "what the ring has read is seen by the CPU");
                from.clone().for_each(|page| world.check(page));
            }
        });
        let mut pinned = from.clone().chain(to.clone());
        assert!(pinned.all(|page| world.is_in_ram(page)));
        drop((ring, pins));
        // The rest is what it was; the target has other bytes now.
        let rest = (0..PAGES).filter(|page| !to.contains(page));
        rest.for_each(|page| world.check(page));
        world.is_at_rest();
    }
}

/// Through a socket, with both ends in pinned memory.
#[test]
fn plain_system_calls_into_and_out_of_pinned_memory() {
    let _alone = alone();
    let world = tight(Private);
    world.write_all();
    let (mut here, mut there) = UnixStream::pair().unwrap();
    while_all_moves(&world, || {
        for (from, to) in windows().zip(windows().skip(PAGES / WINDOW / 2)) {
            thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    let pin = world.pin(from.clone(), READ);
                    here.write_all(bytes(&pin)).unwrap();
                });
                let pin = world.pin(to.clone(), WRITE);
                let (first, second) = bytes(&pin).split_at_mut(10_000);
                let (fd, at) = (there.as_raw_fd(), first.as_mut_ptr().cast());
                // SAFETY: the bytes are ours, and as many as that.
                let got = unsafe { libc::recv(fd, at, first.len(), libc::MSG_WAITALL) };
                assert_eq!(got, 10_000);
                there.read_exact(second).unwrap();
                sender.join().unwrap();
            });
            let (pin, mut wanted) = (world.pin(to, READ), PageData::ZERO);
            for (page, found) in from.zip(bytes(&pin).chunks(PAGE_SIZE)) {
                world.oracle.expected(page, &mut wanted);
                assert!(found == wanted.0, "page {page}");
            }
        }
    });
    world.is_at_rest();
}

/// R7: what the kernel has pinned without asking us stays where it is, is counted, and all around it
/// goes.
#[test]
fn pages_pinned_behind_our_back_stay_and_are_counted_as_busy() {
    let _alone = alone();
    let world = World::new(&[Private], 64);
    world.write_all();
    let ring = IoUring::new(8).unwrap();
    let buffer = libc::iovec {
        iov_base: world.at(8) as *mut _,
        iov_len: 4 * PAGE_SIZE,
    };
    // SAFETY: the buffer stays mapped until it is unregistered.
    unsafe { ring.submitter().register_buffers(&[buffer]).unwrap() };
    assert_eq!(world.migrate(0..64, Place::Device(FIRST)).migrated, 60);
    assert!((8..12).all(|page| world.is_in_ram(page)));
    assert_eq!(world.stats().busy_pages.get(), 4);
    assert_eq!(world.stats().pinned_pages.get(), 0, "they are not our pins");
    world.push_out();
    assert!(world.stats().busy_pages.get() > 4);
    assert!((8..12).all(|page| world.is_in_ram(page)));
    // A pin of ours outlasts the kernel's, which lets go a moment later.
    let pin = world.pin(10..11, WRITE);
    ring.submitter().unregister_buffers().unwrap();
    wait_until("the kernel lets go", || {
        world.migrate(0..64, Place::Device(FIRST));
        (8..12).filter(|&page| world.is_in_ram(page)).count() == 1
    });
    assert!(world.is_in_ram(10));
    drop(pin);
    world.send(Place::Device(FIRST));
    world.check_all();
    world.is_at_rest();
}
