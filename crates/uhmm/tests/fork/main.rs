//! Fork on real faults (R16): both sides see the memory of that moment, whatever state each page was
//! in, and go on writing and migrating.

mod busy;
mod child;
mod device;

use child::{End, child, wait};
use device::{Mood, Moody};
use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uhmm::device::{Device, PageData};
use uhmm::devices::{Lz4Device, MirrorDevice};
use uhmm::{Builder, Region, Space};
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_testkit::Oracle;

const BUDGET: usize = 4 << 20;
const DEVICE: u64 = 64 << 20;

static ALONE: Mutex<()> = Mutex::new(());

/// One test at a time: a fork takes the whole process along.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn devices() -> [(&'static str, Box<dyn Device>); 2] {
    [
        ("lz4", Box::new(Lz4Device::new(DEVICE))),
        ("mirror", Box::new(MirrorDevice::new(DEVICE))),
    ]
}

/// A region and what must be in it.
struct World {
    space: Space,
    region: Region,
    oracle: Oracle,
    mood: Arc<Mood>,
}

impl World {
    fn new(device: Box<dyn Device>, pages: usize) -> Self {
        let (device, mood) = Moody::new(device);
        let space = Builder::new(BUDGET as u64)
            .device(Box::new(device))
            .build()
            .unwrap();
        Self {
            region: space.region(pages * PAGE_SIZE).unwrap(),
            space,
            oracle: Oracle::new(16, pages),
            mood,
        }
    }

    fn at(&self, page: usize) -> *mut PageData {
        assert!(page < self.oracle.pages());
        self.region.as_ptr().cast::<PageData>().wrapping_add(page)
    }

    fn number(&self, page: usize) -> PageNo {
        PageNo::containing(self.at(page) as usize)
    }

    fn state(&self, page: usize) -> State {
        self.space.internals().state(self.number(page))
    }

    fn write(&self, page: usize) {
        // SAFETY: within the region, and nobody else's page now.
        self.oracle.write(page, unsafe { &mut *self.at(page) });
    }

    fn check(&self, page: usize) {
        // SAFETY: as above.
        self.oracle.check(page, unsafe { &*self.at(page) });
    }

    fn check_all(&self) {
        (0..self.oracle.pages()).for_each(|page| self.check(page));
    }

    fn push_out(&self) {
        self.space.internals().push_out(&mut Scratch::default());
    }

    /// Waits until the handler is done with a page.
    fn rest(&self, page: usize) {
        while self.state(page) == State::Migrating {
            std::thread::yield_now();
        }
    }

    /// Pushes out until these pages are where they should be. A page just touched may still be in
    /// the hands of the handler that brought it in.
    fn push_out_until(&self, pages: Range<usize>, out: impl Fn(State) -> bool) {
        let begin = Instant::now();
        while !pages.clone().all(|page| out(self.state(page))) {
            self.push_out();
            assert!(begin.elapsed() < Duration::from_secs(10), "they stay");
        }
    }
}

/// Pages of [`each_state`].
const PAGES: usize = 48;

/// 0 to 8 on the device, 8 to 16 in limbo, 16 to 24 mapped, 24 to 32 only read; the rest untouched.
/// From the last to the first, so that nothing is brought in ahead.
fn each_state(device: Box<dyn Device>) -> World {
    let world = World::new(device, PAGES);
    (0..8).rev().for_each(|page| world.write(page));
    world.push_out_until(0..8, |state| matches!(state, State::Private(_)));
    world.mood.full.store(true, SeqCst);
    (8..16).rev().for_each(|page| world.write(page));
    world.push_out_until(8..16, |state| matches!(state, State::Limbo(_)));
    world.mood.full.store(false, SeqCst);
    (16..24).rev().for_each(|page| world.write(page));
    (24..32).rev().for_each(|page| world.check(page));
    for page in 0..PAGES {
        world.rest(page);
        let state = world.state(page);
        assert!(
            match page {
                0..8 => matches!(state, State::Private(_)),
                8..16 => matches!(state, State::Limbo(_)),
                16..32 => matches!(state, State::System { .. }),
                _ => state == State::None,
            },
            "page {page} is {state:?}"
        );
    }
    world
}

/// What each side does after the fork: everything is as it was, and can be changed and moved.
fn live_on(world: &World) {
    world.check_all();
    (0..PAGES).step_by(2).for_each(|page| world.write(page));
    world.push_out();
    world.check_all();
    (0..PAGES).step_by(3).for_each(|page| world.write(page));
    world.push_out();
    world.check_all();
}

#[test]
fn both_sides_have_every_page_whatever_its_state() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = each_state(device);
        let pid = child(|| {
            live_on(&world);
            0
        });
        live_on(&world);
        assert_eq!(wait(pid), End::Exit(0), "{name}");
        world.check_all();
    }
}

#[test]
fn the_first_touch_after_a_fork_may_be_a_write_on_either_side() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = each_state(device);
        let pid = child(|| {
            // Each page alone, in no order.
            (0..PAGES).for_each(|page| world.write(page * 29 % PAGES));
            world.check_all();
            0
        });
        (0..PAGES).for_each(|page| world.write(page * 19 % PAGES));
        world.check_all();
        assert_eq!(wait(pid), End::Exit(0), "{name}");
    }
}

/// What one side writes, drops and unmaps, the other does not see.
#[test]
fn the_sides_do_not_see_each_other() {
    let _alone = alone();
    for (name, device) in devices() {
        let mut world = each_state(device);
        let pid = child(|| {
            world.region.clear().unwrap();
            assert!(world.region.as_slice().iter().all(|&byte| byte == 0));
            let mut more = world.space.region(2 * BUDGET).unwrap();
            more.as_mut_slice().fill(0x5a);
            assert!(more.as_slice().iter().all(|&byte| byte == 0x5a));
            drop(more);
            assert!(world.region.as_slice().iter().all(|&byte| byte == 0));
            0
        });
        assert_eq!(wait(pid), End::Exit(0), "{name}");
        world.check_all();
        live_on(&world);
    }
}

#[test]
fn a_poisoned_page_is_poisoned_on_both_sides() {
    let _alone = alone();
    for (name, device) in devices() {
        let world = each_state(device);
        let State::Private(at) = world.state(3) else {
            unreachable!()
        };
        world.mood.lost.store(at.page.0, SeqCst);
        let fault = || {
            world
                .space
                .internals()
                .fault(world.number(3), Access::Read, &mut Scratch::default())
        };
        fault();
        assert_eq!(world.state(3), State::Poisoned);
        // SAFETY: within the region; the touch ends the process.
        let touch = || i32::from(unsafe { world.at(3).cast::<u8>().read_volatile() });
        assert_eq!(wait(child(touch)), End::Signal(libc::SIGBUS), "{name}");
        // After some more of them, too, and others are as good as ever.
        let pid = child(|| {
            world.check(4);
            world.write(5);
            match wait(child(touch)) {
                End::Signal(libc::SIGBUS) => 0,
                _ => 1,
            }
        });
        assert_eq!(wait(pid), End::Exit(0), "{name}");
        world.check(4);
    }
}

#[test]
fn children_have_children() {
    fn generation(world: &World, left: usize) -> i32 {
        live_on(world);
        if left > 0 {
            let pid = child(|| generation(world, left - 1));
            live_on(world);
            if wait(pid) != End::Exit(left as i32 - 1) {
                return 100;
            }
        }
        world.check_all();
        left as i32
    }
    let _alone = alone();
    for (name, device) in devices() {
        let world = each_state(device);
        let pid = child(|| generation(&world, 3));
        live_on(&world);
        assert_eq!(wait(pid), End::Exit(3), "{name}");
    }
}

/// A child needs its own RAM, and keeps to its own budget.
#[test]
fn a_child_under_pressure_evicts_what_it_shares() {
    let _alone = alone();
    for (name, device) in devices() {
        let pages = 4 * BUDGET / PAGE_SIZE;
        let world = World::new(device, pages);
        (0..pages).for_each(|page| world.write(page));
        let pid = child(|| {
            world.check_all();
            (0..pages).for_each(|page| world.write(page));
            world.check_all();
            let peak = world.space.internals().stats().ram_peak_bytes.get() as usize;
            assert!(peak <= BUDGET + BUDGET / 50 + (2 << 20), "{peak}");
            0
        });
        (0..pages).rev().for_each(|page| world.write(page));
        world.check_all();
        assert_eq!(wait(pid), End::Exit(0), "{name}");
    }
}

#[test]
fn a_child_ends_with_its_status_and_leaves_the_parent_alone() {
    let _alone = alone();
    let (_, device) = devices().into_iter().next().unwrap();
    let world = each_state(device);
    for status in [0, 7, 255] {
        assert_eq!(wait(child(|| status)), End::Exit(status));
        let pid = child(|| {
            world.write(0);
            status
        });
        assert_eq!(wait(pid), End::Exit(status));
    }
    let pid = child(|| {
        loop {
            live_on(&world);
        }
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    // SAFETY: our child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    assert_eq!(wait(pid), End::Signal(libc::SIGKILL));
    live_on(&world);
}

/// What a program maps over managed memory is its own, in the child too.
#[test]
fn a_mapping_over_managed_memory_is_left_alone() {
    let _alone = alone();
    let space = uhmm::Builder::new(64 << 20).build().expect("a space");
    let region = space.region(16 * PAGE_SIZE).expect("a region");
    let over = region.as_ptr() as usize + 4 * PAGE_SIZE;
    let map = || {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
        );
        // SAFETY: over pages of our own region, which nobody uses.
        let mapped = unsafe { libc::mmap(over as *mut _, 4 * PAGE_SIZE, protection, flags, -1, 0) };
        assert_eq!(mapped as usize, over);
        Ok(())
    };
    // SAFETY: nothing borrows the range.
    unsafe { space.memory().map_foreign(over, 4 * PAGE_SIZE, map) }
        .expect("the range is ours to give");
    let bytes = || {
        // SAFETY: mapped above, and only used here.
        unsafe { std::slice::from_raw_parts_mut(over as *mut u8, 4 * PAGE_SIZE) }
    };
    bytes().fill(7);
    let pid = child(|| {
        assert!(bytes().iter().all(|&byte| byte == 7), "in the child");
        bytes().fill(8);
        0
    });
    assert_eq!(wait(pid), End::Exit(0));
    assert!(bytes().iter().all(|&byte| byte == 7), "in the parent");
}
