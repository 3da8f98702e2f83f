//! Memory that the space does not manage, as a device sees it: all kinds of mappings, each as the program
//! itself has it.

use crate::in_the_way;
use crate::memory_file;
use crate::own_memory::{Own, raw_map, unmap, vmas};
use crate::world::{BUDGET, alone, space};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use uhmm::Space;
use uhmm::mirror::{Mapped, Mirror, Need, PageTable};
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::mirror::MirrorError;

const EVERYTHING: usize = 1 << 47;
pub const READ: libc::c_int = libc::PROT_READ;

pub const RAM: Mapped = Mapped::ram(true);
const TO_READ: Mapped = Mapped::ram(false);
pub const NOTHING: Mapped = Mapped::Nothing;
const ZERO: Mapped = Mapped::Ram {
    write: false,
    zero: true,
    order: 0,
};

/// A mirror of all that the process has, by a device without memory of its own.
pub fn everything(space: &Space) -> Mirror<'_, PageTable> {
    let table = PageTable::new(0, EVERYTHING);
    // SAFETY: the tests touch what the device works on by pointers alone.
    unsafe { space.mirror(0, EVERYTHING, None, table) }.unwrap()
}

pub fn plain() -> Space {
    space(BUDGET, vec![])
}

pub fn at(own: &Own, page: usize) -> usize {
    own.at(page) as usize
}

/// Writes to the first byte of a page.
pub fn poke(address: usize, byte: u8) {
    // SAFETY: a mapping of the test's own.
    unsafe { (address as *mut u8).write_volatile(byte) };
}

pub fn peek(address: usize) -> u8 {
    // SAFETY: as above.
    unsafe { (address as *const u8).read_volatile() }
}

pub fn snapshot(mirror: &Mirror<'_, PageTable>, address: usize, pages: usize) -> Vec<Mapped> {
    mirror.snapshot(address, pages * PAGE_SIZE).unwrap()
}

/// Has pages in the table; returns what was found, and in how many rounds.
pub fn fault(
    mirror: &Mirror<'_, PageTable>,
    address: usize,
    pages: usize,
    need: Need,
) -> (Vec<Mapped>, usize) {
    let found = mirror.range_fault(address, pages * PAGE_SIZE, need, &[], |table, found| {
        table.set(address, found);
        found.to_vec()
    });
    found.unwrap()
}

/// A mapping of a file of so many pages, each of which is full of its number and one.
struct Mapping {
    file: File,
    address: usize,
    pages: usize,
}

impl Mapping {
    fn new(pages: usize, flags: libc::c_int) -> Self {
        let file = memory_file();
        for page in 0..pages {
            let bytes = [(page % 250) as u8 + 1; PAGE_SIZE];
            file.write_all_at(&bytes, (page * PAGE_SIZE) as u64)
                .unwrap();
        }
        let address = raw_map(pages * PAGE_SIZE, flags, file.as_raw_fd());
        Self {
            file,
            address,
            pages,
        }
    }

    fn at(&self, page: usize) -> usize {
        self.address + page * PAGE_SIZE
    }

    /// The first byte of a page of the file.
    fn in_file(&self, page: usize) -> u8 {
        let mut byte = [0];
        let at = (page * PAGE_SIZE) as u64;
        self.file.read_exact_at(&mut byte, at).unwrap();
        byte[0]
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.address..self.at(self.pages));
    }
}

#[test]
fn a_snapshot_says_what_the_kernel_has_there() {
    let _alone = alone();
    let space = plain();
    let mirror = everything(&space);
    // Never touched; read; written; then to be read only, not to be touched, and not there.
    let own = Own::map(8);
    own.advise(0..8, libc::MADV_NOHUGEPAGE);
    assert_eq!(peek(at(&own, 1)), 0);
    (2..8).for_each(|page| poke(at(&own, page), 1));
    own.protect(3..4, READ);
    own.protect(4..5, libc::PROT_NONE);
    let expected = [NOTHING, ZERO, RAM, TO_READ, Mapped::Error, RAM, RAM, RAM];
    for _ in 0..2 {
        assert_eq!(snapshot(&mirror, at(&own, 0), 8), expected);
    }
    own.advise(5..6, libc::MADV_DONTNEED);
    assert_eq!(snapshot(&mirror, at(&own, 5), 2), [NOTHING, RAM]);
    own.unmap(6..7);
    assert_eq!(
        snapshot(&mirror, at(&own, 5), 3),
        [NOTHING, Mapped::Error, RAM]
    );
    assert_eq!(
        snapshot(&mirror, 0, 2),
        [Mapped::Error; 2],
        "nobody maps that"
    );
    // Shared memory, without a file and with one; and a private mapping of a file.
    let shared = raw_map(2 * PAGE_SIZE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    assert_eq!(peek(shared), 0);
    assert_eq!(snapshot(&mirror, shared, 2), [RAM, NOTHING]);
    unmap(shared..shared + 2 * PAGE_SIZE);
    let file = Mapping::new(3, libc::MAP_SHARED);
    assert_eq!(peek(file.at(1)), 2);
    assert_eq!(snapshot(&mirror, file.at(1), 1), [RAM]);
    let private = Mapping::new(3, libc::MAP_PRIVATE);
    assert_eq!(peek(private.at(0)), 1);
    poke(private.at(1), 9);
    assert_eq!(snapshot(&mirror, private.at(0), 2), [TO_READ, RAM]);
    assert_eq!(space.statistics().ram_bytes, 0, "none of it is the space's");
}

/// The whole of a range comes in one round, to read or to write.
#[test]
fn what_is_needed_comes_in_one_round() {
    let _alone = alone();
    let space = plain();
    let mirror = everything(&space);
    let own = Own::map(1024);
    own.advise(0..1024, libc::MADV_NOHUGEPAGE);
    assert_eq!(
        fault(&mirror, at(&own, 0), 512, Need::READ),
        (vec![ZERO; 512], 1)
    );
    assert_eq!(fault(&mirror, at(&own, 0), 512, Need::READ).1, 0);
    assert_eq!(
        fault(&mirror, at(&own, 0), 1024, Need::WRITE),
        (vec![RAM; 1024], 1)
    );
    let private = Mapping::new(4, libc::MAP_PRIVATE);
    assert_eq!(fault(&mirror, private.at(0), 4, Need::READ).0, [TO_READ; 4]);
    assert_eq!(
        fault(&mirror, private.at(0), 4, Need::WRITE),
        (vec![RAM; 4], 1)
    );
    // A page that is needed among some that are only looked at.
    let own = Own::map(4);
    let each = [Need::SNAPSHOT, Need::WRITE];
    let (start, len) = (at(&own, 0), own.len());
    let found = mirror.range_fault(start, len, Need::SNAPSHOT, &each, |_, found| found.to_vec());
    assert_eq!(found, Ok((vec![NOTHING, RAM, NOTHING, NOTHING], 1)));
}

/// What the device writes the program reads, and the other way round, on every kind of memory.
#[test]
fn a_device_reads_and_writes_all_memory_of_the_process() {
    let _alone = alone();
    let space = plain();
    let mirror = everything(&space);
    let own = Own::map(300);
    let shared = Mapping::new(300, libc::MAP_SHARED);
    let private = Mapping::new(300, libc::MAP_PRIVATE);
    let mut on_the_stack = [0_u8; 3 * PAGE_SIZE];
    let mut on_the_heap = vec![0_u8; 300 * PAGE_SIZE];
    let places = [
        (at(&own, 0), own.len()),
        (shared.at(0), 300 * PAGE_SIZE),
        (private.at(0), 300 * PAGE_SIZE),
        (on_the_stack.as_mut_ptr() as usize, on_the_stack.len()),
        (on_the_heap.as_mut_ptr() as usize, on_the_heap.len()),
    ];
    for (which, (address, len)) in places.into_iter().enumerate() {
        // Not on a page's bounds.
        let (address, len) = (address + 5, len - 10);
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8 ^ which as u8).collect();
        mirror.write(address, &bytes).unwrap();
        // SAFETY: the place is there, and only the device and this thread are at it.
        let seen = unsafe { std::slice::from_raw_parts(address as *const u8, len) };
        assert!(seen == bytes, "place {which}");
        for page in (0..len).step_by(PAGE_SIZE) {
            poke(address + page, 0xa5);
        }
        let mut found = vec![0; len];
        assert_eq!(
            mirror.read(address, &mut found),
            Ok(0),
            "it is in the table"
        );
        for (i, (found, written)) in found.iter().zip(&bytes).enumerate() {
            let expected = if i % PAGE_SIZE == 0 { 0xa5 } else { *written };
            assert_eq!(*found, expected, "place {which}, byte {i}");
        }
    }
    // What is shared is the file's, and what is not is not.
    assert_eq!(
        [shared.in_file(1), private.in_file(1)],
        [peek(shared.at(1)), 2]
    );
}

#[test]
fn what_the_program_may_not_do_with_its_own_memory_the_device_may_not() {
    let _alone = alone();
    let space = plain();
    let mirror = everything(&space);
    let own = Own::map(6);
    (0..6).for_each(|page| poke(at(&own, page), page as u8));
    own.protect(2..3, READ);
    own.protect(3..4, libc::PROT_NONE);
    own.unmap(4..5);
    let number = |page| PageNo::containing(at(&own, page));
    let mut byte = [9];
    for (page, error) in [
        (3, MirrorError::NoAccess(number(3))),
        (4, MirrorError::NoAccess(number(4))),
    ] {
        assert_eq!(in_the_way(mirror.read(at(&own, page), &mut byte)), error);
        assert_eq!(in_the_way(mirror.write(at(&own, page), &byte)), error);
    }
    let error = MirrorError::NotWritable(number(2));
    assert_eq!(in_the_way(mirror.write(at(&own, 2), &byte)), error);
    mirror.read(at(&own, 2), &mut byte).unwrap();
    assert_eq!(byte, [2]);
    // Up to the page in the way.
    let written = mirror.write(at(&own, 0), &[7; 3 * PAGE_SIZE]);
    assert_eq!(in_the_way(written), error);
    let seen: Vec<_> = (0..3).map(|page| peek(at(&own, page))).collect();
    assert_eq!(seen, [7, 7, 2]);
    // Nor may it have any of it alone, which nobody could give back.
    let alone = mirror.make_exclusive(at(&own, 0), PAGE_SIZE, |_, _| ());
    assert_eq!(alone, Err(uhmm::RangeError::Foreign.into()));
    // A file may end before its mapping does.
    let file = Mapping::new(4, libc::MAP_SHARED);
    file.file.set_len(2 * PAGE_SIZE as u64).unwrap();
    let mut all = vec![0; 4 * PAGE_SIZE];
    let error = MirrorError::NoAccess(PageNo::containing(file.at(2)));
    assert_eq!(in_the_way(mirror.read(file.at(0), &mut all)), error);
    assert_eq!(
        all[..2 * PAGE_SIZE],
        [[1; PAGE_SIZE], [2; PAGE_SIZE]].concat()
    );
    // The kernel's own code may be read: it is at this address, if there is some.
    // SAFETY: only asks.
    let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) } as usize;
    if vdso != 0 {
        let mut elf = [0; 4];
        mirror.read(vdso, &mut elf).unwrap();
        assert_eq!(&elf, b"\x7fELF");
    }
}

/// What is in the pool is somebody's page, wherever it lies: no device gets at it by address.
#[test]
fn the_frame_pool_is_nobodys_to_read() {
    let _alone = alone();
    let space = plain();
    let mirror = everything(&space);
    // It is served, and nothing in it is tracked; all of the rest that is served is.
    let is_pool = |flags: &str| {
        let has = |flag| flags.split(' ').any(|has| has == flag);
        has("um") && !has("uw")
    };
    let pools: Vec<_> = vmas()
        .into_iter()
        .filter(|(_, flags)| is_pool(flags))
        .collect();
    assert!(!pools.is_empty(), "no pool is found");
    let start = pools[0].0.start;
    assert_eq!(snapshot(&mirror, start, 2), [Mapped::Error; 2]);
    let error = MirrorError::NoAccess(PageNo::containing(start));
    assert_eq!(in_the_way(mirror.read(start, &mut [0])), error);
}
