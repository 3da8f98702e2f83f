//! Huge pages, as a device is told of them: of the kernel's own making, reserved, and of the space.

use crate::foreign::{NOTHING, RAM, READ, at, everything, fault, plain, snapshot};
use crate::own_memory::{Own, raw_map, unmap};
use crate::world::{ALL, alone};
use uhmm::mirror::{Mapped, Need};
use uhmm_core::addr::PAGE_SIZE;

const HUGE: usize = 2 << 20;
const BOTH: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// What a test says that cannot be made where it runs.
fn skipped(why: &str) {
    eprintln!("\n*** SKIPPED: {why}; this test did NOT run\n");
}

fn huge(write: bool) -> Vec<Mapped> {
    let order = 9;
    let zero = false;
    vec![Mapped::Ram { write, zero, order }; 512]
}

#[test]
fn transparent_huge_pages_are_told() {
    let _alone = alone();
    let space = plain();
    let mirror = everything(&space);
    let own = Own::map(2 * 512);
    own.advise(0..512, libc::MADV_HUGEPAGE);
    own.advise(512..1024, libc::MADV_NOHUGEPAGE);
    let (found, rounds) = fault(&mirror, at(&own, 0), 1024, Need::WRITE);
    assert_eq!(rounds, 1);
    if found[0] == RAM {
        return skipped("the kernel has given no huge page");
    }
    assert_eq!(found, [huge(true), vec![RAM; 512]].concat());
    assert_eq!(
        snapshot(&mirror, at(&own, 100), 3),
        huge(true)[..3],
        "a part of it"
    );
    let bytes: Vec<u8> = (0..HUGE).map(|i| (i % 253) as u8).collect();
    mirror.write(at(&own, 0), &bytes).unwrap();
    own.protect(0..512, READ);
    assert_eq!(snapshot(&mirror, at(&own, 0), 512), huge(false));
    // One page of it changed makes small pages of all.
    own.protect(0..512, BOTH);
    own.advise(9..10, libc::MADV_DONTNEED);
    let split = snapshot(&mirror, at(&own, 8), 3);
    assert_eq!(split, [RAM, NOTHING, RAM]);
    let mut found = vec![0; HUGE];
    mirror.read(at(&own, 0), &mut found).unwrap();
    assert!(found[..9 * PAGE_SIZE] == bytes[..9 * PAGE_SIZE]);
    assert!(found[10 * PAGE_SIZE..] == bytes[10 * PAGE_SIZE..]);
}

/// Reserved huge pages, for as long as this lives.
struct Reserved {
    before: String,
}

impl Reserved {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn some(pages: usize) -> Option<Self> {
        let before = std::fs::read_to_string(Self::FILE).ok()?;
        let count: usize = before.trim().parse().ok()?;
        std::fs::write(Self::FILE, (count + pages).to_string()).ok()?;
        let reserved = Self { before };
        let now = std::fs::read_to_string(Self::FILE).ok()?;
        (now.trim().parse::<usize>().ok()? >= count + pages).then_some(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        std::fs::write(Self::FILE, &self.before).expect("huge pages are given back");
    }
}

#[test]
fn reserved_huge_pages_are_told() {
    let _alone = alone();
    let Some(_reserved) = Reserved::some(2) else {
        return skipped("no huge pages can be reserved");
    };
    let space = plain();
    let mirror = everything(&space);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    for shared in [false, true] {
        let kind = if shared { libc::MAP_SHARED } else { 0 };
        let flags = flags & !if shared { libc::MAP_PRIVATE } else { 0 } | kind;
        let address = raw_map(HUGE, flags, -1);
        assert_eq!(snapshot(&mirror, address, 512), [NOTHING; 512]);
        assert_eq!(fault(&mirror, address, 512, Need::WRITE), (huge(true), 1));
        let bytes: Vec<u8> = (0..HUGE).map(|i| (i % 249) as u8).collect();
        mirror.write(address, &bytes).unwrap();
        // SAFETY: the mapping.
        let seen = unsafe { std::slice::from_raw_parts(address as *const u8, HUGE) };
        assert!(seen == bytes);
        // SAFETY: the mapping.
        unsafe { libc::mprotect(address as *mut _, HUGE, READ) };
        assert_eq!(snapshot(&mirror, address, 512), huge(false));
        unmap(address..address + HUGE);
    }
}

/// Of its own pages the space says it where all of a huge page is asked for.
#[test]
fn huge_pages_of_the_space_are_told() {
    let _alone = alone();
    let space = plain();
    let mirror = everything(&space);
    let mapped = space.memory().map(3 * HUGE, ALL).unwrap();
    let address = mapped.next_multiple_of(HUGE);
    for page in 0..1024 {
        crate::foreign::poke(address + page * PAGE_SIZE, page as u8);
    }
    // A handler may have the last one in hand still.
    let found = fault(&mirror, address, 1024, Need::READ).0;
    assert!(found == [RAM; 1024]);
    let applied = space.collapse(address, HUGE).unwrap();
    if applied.pages == 0 {
        return skipped("the kernel has given no huge page");
    }
    let expected = [huge(true), vec![RAM; 512]].concat();
    assert!(snapshot(&mirror, address, 1024) == expected);
    assert_eq!(snapshot(&mirror, address + PAGE_SIZE, 511), [RAM; 511]);
    for page in 0..1024 {
        let mut byte = [0];
        mirror.read(address + page * PAGE_SIZE, &mut byte).unwrap();
        assert_eq!(byte, [page as u8]);
    }
}
