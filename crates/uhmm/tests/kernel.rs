//! The kernel touches managed memory on a program's behalf, and one touch of a page is one fault. In the
//! signal engine the kernel says `EFAULT` where it would have to wait.

#[path = "common/calls.rs"]
mod calls;
#[path = "common/faults.rs"]
mod faults;
#[path = "common/file.rs"]
mod file;

use calls::{read_missing, write_missing};
use faults::{counting, faults};
use file::memory_file;
use std::io::{Read, Seek};
use std::sync::{Mutex, PoisonError};
use uhmm::Builder;
use uhmm::device::Device;
use uhmm::devices::{Lz4Device, MirrorDevice};
use uhmm_core::addr::{PAGE_SIZE, PageNo};
use uhmm_core::entry::State;
use uhmm_core::fault::Scratch;
use uhmm_testkit::Rng;

const BUDGET: usize = 4 << 20;

static ALONE: Mutex<()> = Mutex::new(());

fn devices() -> [Box<dyn Device>; 2] {
    [
        Box::new(Lz4Device::new(64 << 20)),
        Box::new(MirrorDevice::new(64 << 20)),
    ]
}

/// Whole regions of four times the budget go through `write` and `read` in one call: most of their
/// pages are missing when the kernel comes to them.
#[test]
fn system_calls_read_and_write_missing_pages() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for device in devices() {
        let space = Builder::new(BUDGET as u64).device(device).build().unwrap();
        let mut from = space.region(4 * BUDGET).unwrap();
        let mut to = space.region(4 * BUDGET).unwrap();
        let mut rng = Rng::new(4);
        for page in from.as_mut_slice().chunks_mut(PAGE_SIZE).step_by(3) {
            rng.fill(&mut page[100..900]);
        }
        let mut file = memory_file();
        write_missing(&space, &file, from.as_slice());
        file.rewind().unwrap();
        // Into pages that were never touched, then into pages on the device.
        for _ in 0..2 {
            read_missing(&space, &file, to.as_mut_slice());
            file.rewind().unwrap();
            assert!(from.as_slice() == to.as_slice());
            space.internals().push_out(&mut Scratch::default());
        }
        // And what the program wrote with no system call in between.
        to.as_mut_slice()[PAGE_SIZE * 7] ^= 1;
        write_missing(&space, &file, to.as_slice());
        let mut back = vec![0; to.len()];
        file.rewind().unwrap();
        file.read_exact(&mut back).unwrap();
        assert!(back == to.as_slice());
    }
}

/// R15: whatever a touch brings in is writable and dirty at once.
#[test]
fn r15_a_touched_page_takes_a_write_without_another_fault() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for device in devices() {
        let space = Builder::new(BUDGET as u64).device(device).build().unwrap();
        let region = space.region(64 * PAGE_SIZE).unwrap();
        let at = |page: usize| region.as_ptr().wrapping_add(page * PAGE_SIZE);
        let state = |page: usize| {
            space
                .internals()
                .state(PageNo::containing(at(page) as usize))
        };
        for page in [9, 5, 1] {
            // SAFETY: within the region.
            unsafe { at(page).write_volatile(1) };
        }
        // A page just touched may still be in the hands of the handler that brought it in.
        let is_out = |&page: &usize| matches!(state(page), State::Private(_));
        while ![1, 5, 9].iter().all(is_out) {
            space.internals().push_out(&mut Scratch::default());
        }
        let _counting = counting(&space);
        for page in [1, 5, 9, 20, 30, 40] {
            let was = state(page);
            assert_eq!(is_out(&page), page < 10, "{was:?}");
            let before = faults();
            // SAFETY: within the region.
            let value = unsafe { at(page).read_volatile() };
            let read = faults();
            // SAFETY: within the region.
            unsafe { at(page).write_volatile(value + 1) };
            let written = faults();
            assert_eq!(written, read, "page {page}, {was:?}: a second fault");
            assert!(read > before, "page {page}: there was no fault at all");
            assert_eq!(value, u8::from(page < 10));
        }
    }
}
