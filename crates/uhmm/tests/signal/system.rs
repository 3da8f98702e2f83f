//! System calls on missing pages, and pages that are lost.

use crate::file::memory_file;
use crate::{End, World, alone, child, wait};
use std::ffi::{c_int, c_void};
use std::io::{Read, Seek, Write};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
use uhmm::{PinFlags, sigbus};
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;

#[allow(clippy::mut_from_ref)] // Of raw memory, as the world hands it out.
fn bytes(world: &World, page: usize) -> &mut [u8] {
    // SAFETY: a page of the region, which the caller uses alone.
    unsafe { std::slice::from_raw_parts_mut(world.at(page).cast::<u8>(), 4096) }
}

#[test]
fn a_system_call_on_a_missing_page_says_efault_and_works_after_a_touch() {
    let _alone = alone();
    let world = World::new(16);
    let file = memory_file();
    let is_efault = |result: std::io::Result<usize>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EFAULT));
    };
    // Never touched, and on a device.
    is_efault((&file).write(bytes(&world, 5)));
    world.write_all();
    world.push_out();
    is_efault((&file).write(bytes(&world, 5)));
    assert_eq!((&file).stream_position().unwrap(), 0, "nothing was written");
    world.check(5);
    assert_eq!((&file).write(bytes(&world, 5)).unwrap(), 4096);
    // Several pages, of which the second is missing: what comes before it is done.
    world.check(7);
    assert!(matches!(world.state(8), State::Private(_)));
    // SAFETY: pages of the region.
    let two = unsafe { std::slice::from_raw_parts(world.at(7).cast::<u8>(), 8192) };
    assert_eq!((&file).write(two).unwrap(), 4096);
    // The other way.
    (&file).rewind().unwrap();
    world.push_out();
    is_efault((&file).read(bytes(&world, 9)));
    bytes(&world, 9)[0] = 0;
    assert_eq!((&file).read(bytes(&world, 9)).unwrap(), 4096);
    assert!(bytes(&world, 9) == bytes(&world, 5));
    world.check(5);
    // A read-mostly page that is there may be read by the kernel, and not written.
    world.push_out();
    world.region.read_mostly(true).unwrap();
    world.check(11);
    assert_eq!((&file).write(bytes(&world, 11)).unwrap(), 4096);
    (&file).rewind().unwrap();
    is_efault((&file).read(bytes(&world, 11)));
    world.check(11);
}

/// What a pin is for: the pages are there, and stay.
#[test]
fn a_system_call_on_pinned_pages_does_all_of_it() {
    let _alone = alone();
    let mut world = World::new(64);
    world.write_all();
    world.push_out();
    let file = memory_file();
    let pinned = world.region.pin(0..64 * 4096, PinFlags::default());
    let pinned = pinned.unwrap();
    world.space.internals().push_out(&mut Scratch::default());
    assert_eq!((&file).write(&pinned).unwrap(), pinned.len());
    drop(pinned);
    world.push_out();
    (&file).rewind().unwrap();
    let mut pinned = world
        .region
        .pin_mut(0..64 * 4096, PinFlags::default())
        .unwrap();
    pinned.fill(0);
    assert_eq!((&file).read(&mut pinned).unwrap(), 64 * 4096);
    drop(pinned);
    world.check_all();
}

static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
static LEAST_BIT: AtomicI32 = AtomicI32::new(0);

extern "C" fn told(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel's structure; the address's least bit follows the address.
    unsafe {
        CODE.store((*info).si_code, SeqCst);
        ADDRESS.store((*info).si_addr() as usize, SeqCst);
        let least = info.cast::<u8>().add(24).cast::<i16>().read();
        LEAST_BIT.store(least.into(), SeqCst);
        libc::_exit(
            if CODE.load(SeqCst) == libc::BUS_MCEERR_AR && LEAST_BIT.load(SeqCst) == 12 {
                (ADDRESS.load(SeqCst) & 0xfff) as i32 / 16
            } else {
                99
            },
        );
    }
}

/// R9: whether the page is found to be lost by this touch or was before, by whatever touch.
#[test]
fn r9_a_lost_page_reaches_the_programs_handler_as_memory_that_has_failed() {
    let _alone = alone();
    for marked in [false, true] {
        for write in [false, true] {
            let (world, mood) = World::moody(16);
            world.write_all();
            world.push_out();
            let at = world.state(5).device_page().unwrap();
            mood.lost.store(at.page.0, SeqCst);
            if marked {
                world.space.memory_failure(world.at(5) as usize).unwrap();
                assert_eq!(world.state(5), State::Poisoned);
            }
            let touch = || {
                let byte = (world.at(5) as *mut u8).wrapping_add(160);
                // SAFETY: within the region; the touch is a SIGBUS.
                unsafe {
                    if write {
                        byte.write_volatile(1);
                    } else {
                        byte.read_volatile();
                    }
                }
                0
            };
            let with_handler = child(|| {
                // SAFETY: zeros are a value, and the handler may run at any time.
                unsafe {
                    let mut new: libc::sigaction = MaybeUninit::zeroed().assume_init();
                    new.sa_sigaction = told as *const () as usize;
                    new.sa_flags = libc::SA_SIGINFO;
                    sigbus::set_handler(&new).unwrap();
                }
                touch()
            });
            assert_eq!(wait(with_handler), End::Exit(10), "{marked} {write}");
            assert_eq!(wait(child(touch)), End::Signal(libc::SIGBUS));
            // No other page is hurt by it.
            (0..16)
                .filter(|&page| page != 5)
                .for_each(|page| world.check(page));
        }
    }
}
