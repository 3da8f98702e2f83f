//! Bad uses: an error of its own each, one line, and nothing has changed.

use crate::child::{End, child, wait};
use crate::own::{Own, raw_map, unmap};
use crate::{BUDGET, FIRST, World, alone, device, space};
use std::io;
use uhmm::memory::Protection;
use uhmm::{AdoptError, Adopted, IsAdopted, MigrateError, Place, RangeError, Space, Unfit};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType::{Generic, Private};
use uhmm_linux::abi::uffd::Uffd;
use uhmm_linux::adopted::MAX_RANGES;

const ACCESS: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

fn adopt(space: &Space, address: usize, pages: usize) -> Result<Adopted, AdoptError> {
    // SAFETY: what is the test's own is left alone meanwhile; all else is refused.
    unsafe { space.adopt(address as *mut u8, pages * PAGE_SIZE) }
}

/// It is refused because of `why`, and nothing is registered or charged.
fn refused(space: &Space, address: usize, pages: usize, why: impl Into<AdoptError>) {
    let error = adopt(space, address, pages).map(drop).unwrap_err();
    assert_eq!(error, why.into());
    assert_eq!(error.to_string().lines().count(), 1);
    assert!(!error.to_string().is_empty());
    let ours = space.internals().reserved();
    if address < ours.start.address() || address >= ours.end().address() {
        assert_eq!(space.page_at(address), None, "{error:?}");
    }
    assert_eq!(space.internals().stats().ram_bytes.get(), 0, "{error:?}");
}

#[test]
fn ranges_that_are_none() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0]);
    let own = Own::map(16);
    let at = own.at(0) as usize;
    refused(&space, at, 0, RangeError::Empty);
    refused(&space, at + 8, 1, RangeError::Unaligned);
    let last = usize::MAX - PAGE_SIZE + 1;
    refused(&space, last, 1, RangeError::Overflow);
    refused(&space, at, last / PAGE_SIZE, RangeError::Overflow);
    // SAFETY: refused.
    let odd = unsafe { space.adopt(own.at(0), PAGE_SIZE + 1) };
    assert_eq!(odd.map(drop), Err(RangeError::Unaligned.into()));
    own.unmap(8..9);
    refused(&space, at, 16, Unfit::Hole);
    refused(&space, at + 8 * PAGE_SIZE, 8, Unfit::Hole);
    refused(&space, at + 7 * PAGE_SIZE, 2, Unfit::Hole);
    refused(&space, 1 << 46, 1, Unfit::Hole);
    // At most one of several things is said, and the rest can be adopted.
    drop(adopt(&space, at, 8).unwrap());
}

#[test]
fn memory_that_is_not_plain() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0]);
    let own = Own::map(64);
    let at = |page: usize| own.at(page) as usize;
    let refused_page = |page: usize, why: Unfit| {
        refused(&space, at(page), 1, why);
        refused(&space, at(0), 64, why);
    };
    own.protect(20..21, ACCESS | libc::PROT_EXEC);
    refused_page(20, Unfit::Executable);
    own.protect(20..21, ACCESS);
    // SAFETY: pages of the test's own.
    assert_eq!(unsafe { libc::mlock(own.at(30).cast(), PAGE_SIZE) }, 0);
    refused_page(30, Unfit::Locked);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munlock(own.at(30).cast(), PAGE_SIZE) }, 0);
    own.advise(40..41, libc::MADV_DONTFORK);
    refused_page(40, Unfit::NotInChild);
    own.advise(40..41, libc::MADV_DOFORK);
    own.advise(40..41, libc::MADV_WIPEONFORK);
    refused_page(40, Unfit::NotInChild);
    own.advise(40..41, libc::MADV_KEEPONFORK);
    let mut world = adopt(&space, at(0), 64).unwrap();
    world.release(crate::SOON).unwrap();
    assert_eq!(own.flags().len(), 1);
}

#[test]
fn memory_that_is_not_private_and_anonymous() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0]);
    let len = 4 * PAGE_SIZE;
    let shared = raw_map(len, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    refused(&space, shared, 4, Unfit::Shared);
    unmap(shared..shared + len);
    // SAFETY: a new descriptor of the test's own.
    let fd = unsafe { libc::memfd_create(c"uhmm-test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::ftruncate(fd, len as i64) }, 0);
    for (flags, why) in [
        (libc::MAP_SHARED, Unfit::Shared),
        (libc::MAP_PRIVATE, Unfit::NotAnonymous),
    ] {
        let file = raw_map(len, flags, fd);
        refused(&space, file, 4, why);
        unmap(file..file + len);
    }
    // SAFETY: as above.
    unsafe { libc::close(fd) };
    // Where the machine has reserved no huge pages, the mapping can be made without one.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_NORESERVE;
    let huge = raw_map(2 << 20, flags, -1);
    refused(&space, huge, 512, Unfit::HugeTlb);
    unmap(huge..huge + (2 << 20));
}

/// `UFFD_FEATURE_SIGBUS`.
const SIGBUS: u64 = 1 << 7;

#[test]
fn memory_of_others() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0]);
    let own = Own::map(16);
    let range = own.at(4) as usize..own.at(8) as usize;
    // With signals, as every user may.
    let uffd = Uffd::open(SIGBUS).unwrap();
    uffd.register(range.clone(), false).unwrap();
    refused(&space, own.at(0) as usize, 16, Unfit::Served);
    drop(uffd);
    // Another space's.
    let other = crate::space(BUDGET, Vec::new());
    let elsewhere = adopt(&other, own.at(0) as usize, 4).unwrap();
    refused(&space, own.at(3) as usize, 2, Unfit::Served);
    drop(elsewhere);
    drop(adopt(&space, own.at(0) as usize, 16).unwrap());
}

/// Where the stacks of the engine's threads are that wait in a system call now. They are the ones that take
/// no signals.
fn stack_pointers() -> Vec<usize> {
    let pointer = |task: std::fs::DirEntry| {
        let read = |file| std::fs::read_to_string(task.path().join(file)).ok();
        let status = read("status")?;
        let blocked = status
            .lines()
            .find_map(|line| line.strip_prefix("SigBlk:"))?;
        let takes_none = u64::from_str_radix(blocked.trim(), 16).ok()?.count_ones() > 32;
        let call = read("syscall").filter(|_| takes_none)?;
        let pointer = call.split_whitespace().nth(7)?;
        usize::from_str_radix(pointer.strip_prefix("0x")?, 16).ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter_map(pointer).collect()
}

#[test]
fn memory_of_ours_and_of_this_thread() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0]);
    let all = space.internals().reserved();
    refused(&space, all.start.address(), 1, Unfit::Ours);
    refused(&space, all.end().address() - PAGE_SIZE, 1, Unfit::Ours);
    refused(&space, all.start.address() - PAGE_SIZE, 2, Unfit::Ours);
    let own = crate::own::vmas().into_iter();
    let served = own.filter(|(_, flags)| flags.split(' ').any(|flag| flag == "um"));
    for (range, _) in served {
        refused(&space, range.start, 1, Unfit::Ours);
    }
    let mut stacks = Vec::new();
    while stacks.is_empty() {
        stacks = stack_pointers();
    }
    for pointer in stacks {
        let page = pointer / PAGE_SIZE * PAGE_SIZE;
        refused(&space, page, 1, Unfit::Ours);
        // SAFETY: nothing is managed by it.
        let managed = unsafe { space.manage(page, PAGE_SIZE) };
        assert_eq!(managed, Ok(Vec::new()));
    }
    let local = 0u8;
    let page = std::ptr::from_ref(&local) as usize / PAGE_SIZE * PAGE_SIZE;
    refused(&space, page, 1, AdoptError::OwnStack);
    refused(&space, page - 16 * PAGE_SIZE, 32, AdoptError::OwnStack);
}

/// The C library unmaps it when the thread ends, and nobody is told.
#[test]
fn the_stack_of_another_thread() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0]);
    // Kept from huge pages too, as stacks are, and no stack.
    let own = Own::map(16);
    own.advise(0..16, libc::MADV_NOHUGEPAGE);
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let local = 0u8;
            tell.send(std::ptr::from_ref(&local) as usize).unwrap();
            let _ = stopped.recv();
        });
        let page = told.recv().unwrap() / PAGE_SIZE * PAGE_SIZE;
        for (first, pages) in [(page, 1), (page - 16 * PAGE_SIZE, 17)] {
            refused(&space, first, pages, Unfit::Stack);
            // SAFETY: nothing is managed by it.
            let managed = unsafe { space.manage(first, pages * PAGE_SIZE) };
            assert_eq!(managed, Ok(Vec::new()));
        }
        let at = own.at(0) as usize;
        drop(adopt(&space, at, 16).unwrap());
        // SAFETY: the memory is the test's own, and is not unmapped before it is given back.
        let managed = unsafe { space.manage(at, 16 * PAGE_SIZE) }.unwrap();
        let all = at..at + 16 * PAGE_SIZE;
        assert_eq!(managed.as_slice(), std::slice::from_ref(&all));
        space.unmanage(at, 16 * PAGE_SIZE, crate::SOON).unwrap();
        drop(stop);
    });
}

#[test]
fn memory_that_is_adopted_already() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0]);
    let own = Own::map(16);
    let at = |page: usize| own.at(page) as usize;
    let middle = adopt(&space, at(4), 4).unwrap();
    for (first, pages) in [(4, 4), (0, 16), (3, 2), (7, 2), (5, 1)] {
        let error = adopt(&space, at(first), pages).map(drop);
        assert_eq!(error, Err(Unfit::Adopted.into()));
    }
    let sides = [adopt(&space, at(0), 4), adopt(&space, at(8), 8)].map(Result::unwrap);
    drop((middle, sides));
    // As many as there can be, and one more.
    let many = Own::map(2 * MAX_RANGES + 2);
    let adopted: Vec<_> = (0..MAX_RANGES)
        .map(|i| adopt(&space, many.at(2 * i) as usize, 1).unwrap())
        .collect();
    let error = adopt(&space, many.at(2 * MAX_RANGES) as usize, 1).map(drop);
    assert_eq!(error, Err(Unfit::TooMany.into()));
    // Beside another it is one with that.
    let beside = adopt(&space, many.at(1) as usize, 1).unwrap();
    drop((adopted, beside));
    drop(adopt(&space, many.at(0) as usize, 2 * MAX_RANGES + 2).unwrap());
}

/// Where there is no address space for tables over all of it, the space has its own memory alone.
#[test]
fn memory_outside_of_a_space_whose_address_space_is_limited() {
    let _alone = alone();
    let own = Own::map(8);
    let main = || {
        let limit = libc::rlimit {
            rlim_cur: 300 << 30,
            rlim_max: 300 << 30,
        };
        // SAFETY: a limit of this process, which ends soon.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
        let space = space(BUDGET, vec![device(Private).0]);
        refused(&space, own.at(0) as usize, 8, Unfit::TooLarge);
        let region = space.region(64 * PAGE_SIZE).unwrap();
        region.migrate(Place::Device(FIRST)).unwrap();
        assert!(region.as_slice().iter().all(|&byte| byte == 0));
        0
    };
    assert_eq!(wait(child(main)), End::Exit(0));
}

#[test]
fn more_than_there_is_room_for() {
    let _alone = alone();
    let no_device = space(512, Vec::new());
    let own = Own::map(600);
    // What is not there needs no room.
    let adopted = adopt(&no_device, own.at(0) as usize, 600).unwrap();
    drop(adopted);
    (0..600).for_each(|page| {
        // SAFETY: the test's own mapping.
        unsafe { own.at(page).write(1) }
    });
    let why = AdoptError::NoRoom {
        pages: 600,
        room: 512,
    };
    refused(&no_device, own.at(0) as usize, 600, why);
    drop(adopt(&no_device, own.at(0) as usize, 400).unwrap());
}

/// The program's mappings are the program's: the space's calls do not change them.
#[test]
fn calls_on_mappings_are_refused_on_adopted_memory() {
    let _alone = alone();
    let (mut world, _) = World::adopted(Private, 64);
    let memory = world.space.memory();
    let (at, len) = (world.at(0) as usize, world.own.len());
    for (at, len) in [
        (at, len),
        (at + PAGE_SIZE, PAGE_SIZE),
        (at - PAGE_SIZE, 2 * PAGE_SIZE),
    ] {
        let error = |result: io::Result<()>| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let inner = error.into_inner().expect("a reason");
            assert_eq!(inner.downcast_ref(), Some(&IsAdopted));
            assert_eq!(inner.to_string().lines().count(), 1);
        };
        error(memory.contents(at, len).map(drop));
        // SAFETY: each is refused, and does nothing.
        unsafe {
            error(memory.unmap(at, len));
            error(memory.protect(at, len, Protection::READ));
            error(memory.discard(at, len));
            error(memory.map_at(at, len, Protection::READ, false));
            error(memory.map_foreign(at, len, || panic!("it is called")));
            error(memory.remap(at, len, 2 * len, true, None, false).map(drop));
            error(memory.wipe_on_fork(at, len, true));
        }
    }
    world.check_all();
    world.release();
    world.check_released();
}

#[test]
fn ranges_that_go_past_adopted_memory() {
    let _alone = alone();
    let space = space(BUDGET, vec![device(Private).0, device(Generic).0]);
    let own = Own::map(32);
    let at = |page: usize| own.at(page) as usize;
    let (first, second) = (adopt(&space, at(0), 8), adopt(&space, at(8), 8));
    let both = [first.unwrap(), second.unwrap()];
    let to = Place::Device(FIRST);
    let migrate = |first: usize, pages: usize| space.migrate(at(first), pages * PAGE_SIZE, to);
    assert!(migrate(0, 8).is_ok() && migrate(9, 7).is_ok() && migrate(3, 2).is_ok());
    // Both as one.
    assert!(migrate(0, 16).is_ok() && migrate(7, 2).is_ok());
    let foreign = Err(MigrateError::Range(RangeError::Foreign));
    for (first, pages) in [(15, 2), (8, 24), (16, 1)] {
        assert_eq!(migrate(first, pages), foreign);
    }
    // Pages that leave only by being unmapped are not for memory that is given back.
    let block = space.alloc_device_pages(uhmm::DeviceId(1), 0).unwrap();
    assert_eq!(
        space.map_device_pages(block, at(0)),
        Err(uhmm::MapError::NotManaged)
    );
    drop(both);
    assert_eq!(migrate(0, 8), foreign);
    assert_eq!(
        space.lookup_ordinary(at(0)),
        Err(uhmm::NotOrdinary::NotManaged)
    );
}
