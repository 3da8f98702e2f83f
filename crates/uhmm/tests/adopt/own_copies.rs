//! Private mappings of files: the pages that the program has written to can be managed, if nobody writes
//! there meanwhile; the file's own pages stay what they are.

use crate::child::{End, child, wait};
use crate::file::memory_file;
use crate::{FIRST, alone, device, space};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use uhmm::Place;
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType;

const PAGES: usize = 16;
/// Those that the program writes to.
const WRITTEN: [usize; 7] = [2, 3, 4, 9, 10, 11, 12];

/// A private mapping of a file whose pages are full of their numbers, some of them written to.
struct Mapped {
    file: File,
    address: usize,
}

impl Mapped {
    fn new() -> Self {
        let mut file = memory_file();
        for page in 0..PAGES {
            file.write_all(&[page as u8; PAGE_SIZE]).unwrap();
        }
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a fresh mapping.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGES * PAGE_SIZE,
                protection,
                libc::MAP_PRIVATE,
                fd,
                0,
            )
        };
        assert_ne!(address, libc::MAP_FAILED);
        let mapped = Self {
            file,
            address: address as usize,
        };
        mapped.check(|page| page as u8);
        WRITTEN.iter().for_each(|&page| mapped.fill(page, 100));
        mapped
    }

    fn at(&self, page: usize) -> usize {
        self.address + page * PAGE_SIZE
    }

    fn fill(&self, page: usize, byte: u8) {
        // SAFETY: within the mapping, which only this test uses.
        unsafe { std::ptr::write_bytes(self.at(page) as *mut u8, byte, PAGE_SIZE) };
    }

    fn check(&self, expected: impl Fn(usize) -> u8) {
        for page in 0..PAGES {
            // SAFETY: within the mapping; nobody writes there now.
            let bytes =
                unsafe { std::slice::from_raw_parts(self.at(page) as *const u8, PAGE_SIZE) };
            let byte = expected(page);
            assert!(bytes.iter().all(|is| *is == byte), "page {page}");
        }
    }

    fn check_file(&self) {
        let mut bytes = vec![0; PAGES * PAGE_SIZE];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        let pages = bytes.chunks(PAGE_SIZE).enumerate();
        for (page, bytes) in pages {
            assert!(
                bytes.iter().all(|is| *is == page as u8),
                "the file's {page}"
            );
        }
    }

    fn manage(&self, space: &uhmm::Space) -> Vec<std::ops::Range<usize>> {
        // SAFETY: the mapping stays until the process ends.
        unsafe { space.manage(self.address, PAGES * PAGE_SIZE) }.unwrap()
    }
}

fn after(page: usize) -> u8 {
    if WRITTEN.contains(&page) {
        100
    } else {
        page as u8
    }
}

#[test]
fn what_the_program_has_written_goes_to_a_device_and_back() {
    let _alone = alone();
    for memory in [MemoryType::Private, MemoryType::Coherent] {
        let (device, _) = device(memory);
        let space = space(2048, vec![device]);
        let mapped = Mapped::new();
        // A child has one thread.
        let pid = child(|| {
            let parts = mapped.manage(&space);
            let expected = [2..5, 9..13].map(|is| mapped.at(is.start)..mapped.at(is.end));
            assert_eq!(parts, expected);
            assert_eq!(mapped.manage(&space), parts, "once more changes nothing");
            for part in &parts {
                let done = space.migrate(part.start, part.len(), Place::Device(FIRST));
                assert_eq!(done.unwrap().migrated, part.len() / PAGE_SIZE);
            }
            mapped.check(after);
            mapped.fill(3, 7);
            // The file's pages are the file's still, and its changes are seen there.
            let sixth = 6 * PAGE_SIZE as u64;
            mapped.file.write_all_at(&[5; 4], sixth).unwrap();
            // SAFETY: within the mapping.
            assert_eq!(unsafe { *(mapped.at(6) as *const u8) }, 5);
            mapped.file.write_all_at(&[6; 4], sixth).unwrap();
            mapped.check(|page| if page == 3 { 7 } else { after(page) });
            mapped.check_file();
            0
        });
        assert_eq!(wait(pid), End::Exit(0), "{memory:?}");
        mapped.check(after);
    }
}

#[test]
fn with_other_threads_they_stay_what_they_are() {
    let _alone = alone();
    let (device, _) = device(MemoryType::Private);
    let space = space(2048, vec![device]);
    let mapped = Mapped::new();
    // The harness has a thread of its own.
    assert_eq!(mapped.manage(&space), []);
    mapped.check(after);
    mapped.check_file();
}
