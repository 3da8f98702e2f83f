//! The arenas of [`LinuxMmu`]: frames of a device's memory, in their slots and in the space.

use crate::common::{Sleeper, alone, child, next, wait};
use std::thread;
use uhmm_core::addr::{DeviceAddr, DevicePage, Home, PAGE_SIZE, PageData, PageNo, PageRange};
use uhmm_core::mmu::{Mmu, Progress, Stop, Tracking};
use uhmm_core::stats::MAX_DEVICES;
use uhmm_linux::abi::pagemap;
use uhmm_linux::abi::uffd::Event;
use uhmm_linux::engine::Kind;
use uhmm_linux::mmu::LinuxMmu;
use uhmm_linux::protection::MprotectFlags;
use uhmm_linux::shared_stats::Slot;

/// Pages of the space that may be read and written.
const PAGES: usize = 64;

fn mmu() -> LinuxMmu {
    let mmu = LinuxMmu::new(Kind::Thread, 512, Slot::private().unwrap(), || ()).unwrap();
    let all = PageRange::new(mmu.space_range().start, PAGES);
    mmu.protect(all, MprotectFlags::READ | MprotectFlags::WRITE)
        .unwrap();
    mmu
}

fn range(mmu: &LinuxMmu, first: usize, len: usize) -> PageRange {
    PageRange::new(mmu.space_range().start.plus(first), len)
}

fn device(page: u32) -> DeviceAddr {
    DeviceAddr {
        device: 3,
        page: DevicePage(page),
    }
}

fn home(page: u32) -> Home {
    Home::Arena(device(page))
}

/// Fills device pages 0 to `count` with their number and 1.
fn fill(mmu: &LinuxMmu, count: u32) {
    for page in 0..count {
        let filled = mmu.with_arena(device(page), &mut |data| {
            assert!(data.0 == [0; PAGE_SIZE], "a new frame is of zeros");
            data.0.fill(page as u8 + 1);
        });
        assert!(filled);
    }
}

fn byte_in_arena(mmu: &LinuxMmu, page: u32) -> u8 {
    let mut byte = 0;
    assert!(mmu.with_arena(device(page), &mut |data| byte = data.0[PAGE_SIZE - 1]));
    byte
}

fn last_byte(page: PageNo) -> *mut u8 {
    (page.address() + PAGE_SIZE - 1) as *mut u8
}

fn byte(mmu: &LinuxMmu, page: usize) -> u8 {
    // SAFETY: a page of the space that the test has filled, readable.
    unsafe { last_byte(range(mmu, page, 1).start).read_volatile() }
}

fn present(mmu: &LinuxMmu, pages: PageRange) -> usize {
    let mut present = 0;
    mmu.present(pages, &mut |found| present += found.len);
    present
}

#[test]
fn a_device_page_goes_into_the_space_and_back_with_its_bytes() {
    let _alone = alone();
    let mmu = mmu();
    assert!(mmu.add_arena(3, 100, None));
    fill(&mmu, 70);
    let pages = range(&mmu, 10, 50);
    assert_eq!(mmu.put(home(20), pages), Progress::all(50));
    assert_eq!(present(&mmu, range(&mmu, 0, PAGES)), 50);
    assert_eq!((byte(&mmu, 10), byte(&mmu, 59)), (21, 70));
    // SAFETY: a page of the space that is there, writable.
    unsafe { last_byte(range(&mmu, 11, 1).start).write_volatile(200) };
    assert_eq!(mmu.take(pages, home(20)), Progress::all(50));
    assert_eq!(present(&mmu, range(&mmu, 0, PAGES)), 0);
    assert_eq!(
        [19, 20, 21, 69].map(|page| byte_in_arena(&mmu, page)),
        [20, 21, 200, 70]
    );
    // Not beyond what there is, and not onto what is there.
    assert_eq!(
        mmu.put(home(68), range(&mmu, 0, 4)),
        Progress::stopped(2, Stop::Absent)
    );
    assert_eq!(
        mmu.put(home(67), range(&mmu, 0, 1)),
        Progress::stopped(0, Stop::Present)
    );
    assert_eq!(byte_in_arena(&mmu, 67), 68);
    assert_eq!(
        mmu.take(range(&mmu, 0, 3), home(68)),
        Progress::stopped(2, Stop::Absent)
    );
    assert_eq!((byte_in_arena(&mmu, 68), byte_in_arena(&mmu, 69)), (69, 70));
}

#[test]
fn what_is_dropped_is_zero_again() {
    let _alone = alone();
    let mmu = mmu();
    assert!(mmu.add_arena(3, 8, None));
    fill(&mmu, 4);
    mmu.drop_arena(device(1), 7);
    assert_eq!(
        [0, 1, 3, 7].map(|page| byte_in_arena(&mmu, page)),
        [1, 0, 0, 0]
    );
}

#[test]
fn an_arena_is_made_once_and_only_of_a_node_that_is_there() {
    let _alone = alone();
    let mmu = mmu();
    assert!(!mmu.add_arena(3, 8, Some(1023)));
    assert!(!mmu.add_arena(3, 8, Some(u32::MAX)));
    assert!(mmu.add_arena(3, 8, None));
    assert!(!mmu.add_arena(3, 8, None));
    assert!(!mmu.add_arena(MAX_DEVICES as u8, 8, None));
}

/// The mappings of this process, each with where new pages of it come from.
fn policies() -> Vec<(PageNo, String)> {
    let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
    let policy = |line: &str| {
        let (address, rest) = line.split_once(' ').unwrap();
        let address = usize::from_str_radix(address, 16).unwrap();
        let policy = rest.split(' ').next().unwrap();
        (PageNo::containing(address), policy.to_owned())
    };
    maps.lines().map(policy).collect()
}

fn assert_space_is_local(mmu: &LinuxMmu) {
    let mut of_space = policies();
    of_space.retain(|(page, _)| mmu.space_range().contains(*page));
    let local = |(_, policy): &(PageNo, String)| policy == "local";
    assert!(
        !of_space.is_empty() && of_space.iter().all(local),
        "{of_space:?}"
    );
}

#[test]
fn a_bound_arena_is_of_its_node_and_the_space_is_left_alone() {
    let _alone = alone();
    let mmu = mmu();
    let Some(node) = (0..4).find(|&node| mmu.add_arena(3, 8, Some(node))) else {
        eprintln!("NUMA policies are not tested: none can be set here");
        return;
    };
    fill(&mmu, 2);
    let bind = format!("bind:{node}");
    let bound = policies()
        .iter()
        .filter(|(_, policy)| *policy == bind)
        .count();
    assert_eq!(bound, 1);
    assert_space_is_local(&mmu);
    // Also where it was mapped again.
    mmu.reserve_again(range(&mmu, 0, 4)).unwrap();
    assert_space_is_local(&mmu);
    mmu.protect(
        range(&mmu, 0, 4),
        MprotectFlags::READ | MprotectFlags::WRITE,
    )
    .unwrap();
    assert_eq!(mmu.put(home(0), range(&mmu, 3, 1)), Progress::all(1));
    assert_eq!(byte(&mmu, 3), 1);
}

#[test]
fn frames_shared_with_a_child_go_into_the_space_all_the_same() {
    let _alone = alone();
    let mmu = mmu();
    assert!(mmu.add_arena(3, 8, None));
    fill(&mmu, 4);
    let _sleeper = Sleeper::new();
    assert_eq!(mmu.put(home(0), range(&mmu, 0, 4)), Progress::all(4));
    assert_eq!((byte(&mmu, 0), byte(&mmu, 3)), (1, 4));
}

#[test]
fn arenas_work_in_a_child() {
    let _alone = alone();
    let mmu = mmu();
    assert!(mmu.add_arena(3, 8, None));
    fill(&mmu, 4);
    assert_eq!(mmu.put(home(3), range(&mmu, 5, 1)), Progress::all(1));
    let status = wait(child(|| {
        let set_up = mmu
            .set_up_in_child()
            .and_then(|()| mmu.register(range(&mmu, 0, PAGES)));
        let mut fine = set_up.is_ok();
        // Shared with the parent: private copies are made first.
        fine &= mmu.put(home(0), range(&mmu, 0, 2)) == Progress::all(2);
        fine &= mmu.take(range(&mmu, 5, 1), home(3)) == Progress::stopped(0, Stop::Busy);
        mmu.unshare(range(&mmu, 5, 2));
        fine &= mmu.take(range(&mmu, 5, 1), home(3)) == Progress::all(1);
        fine &= mmu.with_arena(device(7), &mut |data| data.0.fill(77));
        fine &= mmu.put(home(7), range(&mmu, 9, 1)) == Progress::all(1);
        fine &= byte(&mmu, 1) == 2 && byte(&mmu, 9) == 77 && byte_in_arena(&mmu, 3) == 4;
        i32::from(!fine)
    }));
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "{status:#x}"
    );
    assert_eq!((byte_in_arena(&mmu, 0), byte_in_arena(&mmu, 7)), (1, 0));
}

#[test]
fn a_tracked_copy_tells_of_a_write_until_tracking_ends() {
    let _alone = alone();
    let mmu = mmu();
    let data = [PageData([1; _]), PageData([2; _])];
    let at = range(&mmu, 4, 2);
    assert_eq!(
        mmu.copy(&data, at.start, Tracking::Writes),
        Progress::all(2)
    );
    thread::scope(|scope| {
        let second = at.start.plus(1);
        // SAFETY: a page of the space that is there, writable.
        scope.spawn(move || unsafe { last_byte(second).write_volatile(9) });
        let expected = Event::PageFault {
            address: second.address(),
            write: true,
            write_protected: true,
            minor: false,
        };
        assert_eq!(next(mmu.uffd()), expected);
        mmu.untrack(second);
    });
    assert_eq!((byte(&mmu, 4), byte(&mmu, 5)), (1, 9));
    // Into the pool and back it is as any other page.
    let slot = Home::Pool(uhmm_core::addr::FrameNo(0));
    assert_eq!(mmu.take(at, slot), Progress::all(2));
    assert_eq!(mmu.put(slot, at), Progress::all(2));
    assert!(mmu.is_writable(at.start));
    mmu.untrack(range(&mmu, 60, 1).start);
    let all = at.start.address()..at.end().address();
    let mut found = Vec::new();
    pagemap::scan(all.clone(), pagemap::PRESENT, |run, _| found.push(run)).unwrap();
    assert_eq!(found, [all]);
}
