//! The conformance suite passes a device that is right, and names the rule that a wrong one breaks.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{
    CopyFailed, CopyIn, CopyInError, CopyOut, CopyOutError, Device, DeviceInfo, Fence,
};
use uhmm_core::memory_type::MemoryType;
use uhmm_testkit::{FlakyDevice, conformance};

#[derive(Clone, Copy, PartialEq)]
enum Bug {
    None,
    WrongByte,
    OldData,
    SecondReadFails,
    NeighbourOverwritten,
    LeaksMemory,
    DropsPagesWhenFull,
    StoresWhatItRefuses,
    AlwaysFull,
    Dies,
    Panics,
    OddChunks,
    BatchOutOfOrder,
    BatchIsAllOrNothing,
    BatchSaysNothing,
    FenceFails,
    ChunkDoesNotComeAgain,
    ChunkTakesTheOthersAlong,
    ChunkStaysFull,
}

struct Table {
    bug: Bug,
    memory: MemoryType,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pages: HashMap<u32, PageData>,
    /// What was stored under each number before.
    old: HashMap<u32, PageData>,
    /// How often each page was read.
    reads: HashMap<u32, u32>,
    /// How many chunks have come.
    chunks: u32,
    leaked: u64,
}

const ROOM: usize = 300;
const CHUNK: u32 = 512;

impl Table {
    fn new(bug: Bug) -> Self {
        Self::with_memory(bug, MemoryType::Private)
    }

    fn with_memory(bug: Bug, memory: MemoryType) -> Self {
        Self {
            bug,
            memory,
            state: Mutex::default(),
        }
    }
}

/// Copies that have ended already, well or not.
struct Ended(Result<(), CopyFailed>);

impl Fence for Ended {
    fn wait(&mut self) -> Result<(), CopyFailed> {
        self.0
    }
}

impl Device for Table {
    fn info(&self) -> DeviceInfo {
        let chunk = if self.bug == Bug::OddChunks {
            600
        } else {
            CHUNK
        };
        DeviceInfo::new("table", 2 * CHUNK)
            .memory(self.memory)
            .chunk_pages(chunk)
            .batch_pages(16)
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        let State {
            pages,
            reads,
            leaked,
            ..
        } = &mut *self.state.lock().unwrap();
        let room = if self.bug == Bug::AlwaysFull { 0 } else { ROOM };
        if pages.len() >= room {
            match self.bug {
                Bug::DropsPagesWhenFull => drop(pages.remove(&1)),
                Bug::StoresWhatItRefuses => *leaked += 8192,
                _ => {}
            }
            return Err(CopyInError::Full);
        }
        let mut data = from.clone();
        match self.bug {
            Bug::Dies => return Err(CopyInError::Dead),
            Bug::WrongByte => data.0[4095] |= 1,
            Bug::NeighbourOverwritten => {
                if let Some(next) = pages.get_mut(&(page.0 + 1)) {
                    next.0[0] ^= from.0[0] | 1;
                }
            }
            Bug::LeaksMemory => *leaked += 4096,
            _ => {}
        }
        pages.insert(page.0, data);
        reads.insert(page.0, 0);
        Ok(())
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        let State {
            pages, old, reads, ..
        } = &mut *self.state.lock().unwrap();
        let reads = reads.entry(page.0).or_default();
        *reads += 1;
        match self.bug {
            Bug::SecondReadFails if *reads == 2 => return Err(CopyOutError::Lost),
            Bug::Panics => panic!("no such page"),
            _ => {}
        }
        let data = match (self.bug, old.get(&page.0)) {
            (Bug::OldData, Some(old)) => old,
            _ => pages.get(&page.0).ok_or(CopyOutError::Lost)?,
        };
        to.0 = data.0;
        Ok(())
    }

    fn free(&self, page: DevicePage) {
        let State { pages, old, .. } = &mut *self.state.lock().unwrap();
        if let Some(data) = pages.remove(&page.0) {
            old.insert(page.0, data);
        }
    }

    fn stored_bytes(&self) -> u64 {
        let state = self.state.lock().unwrap();
        state.pages.len() as u64 * 4096 + state.leaked
    }

    fn copy_in_batch(&self, copies: &mut [CopyIn<'_>]) -> Option<Box<dyn Fence>> {
        let room = ROOM - self.state.lock().unwrap().pages.len();
        let fits = copies.len() <= room;
        for copy in copies {
            let result = match self.bug {
                // It says that it has stored what it has no room for.
                Bug::BatchIsAllOrNothing if !fits => Ok(()),
                _ => self.copy_in(copy.page, copy.from),
            };
            if self.bug != Bug::BatchSaysNothing {
                copy.result = result;
            }
        }
        Some(Box::new(Ended(match self.bug {
            Bug::FenceFails => Err(CopyFailed),
            _ => Ok(()),
        })))
    }

    fn copy_out_batch(&self, copies: &mut [CopyOut<'_>]) -> Option<Box<dyn Fence>> {
        let pages: Vec<_> = copies.iter().map(|copy| copy.page).collect();
        let mut order: Vec<_> = (0..pages.len()).collect();
        if self.bug == Bug::BatchOutOfOrder {
            order.sort_by_key(|&i| pages[i].0);
        }
        for (copy, from) in copies.iter_mut().zip(order) {
            copy.result = self.copy_out(pages[from], copy.to);
        }
        None
    }

    fn add_chunk(&self, _first: DevicePage, _pages: u32) -> bool {
        let chunks = &mut self.state.lock().unwrap().chunks;
        *chunks += 1;
        self.bug != Bug::ChunkDoesNotComeAgain || *chunks <= 2
    }

    fn remove_chunk(&self, first: DevicePage, pages: u32) {
        let state = &mut *self.state.lock().unwrap();
        let held = state.pages.keys().any(|page| page - first.0 < pages);
        assert!(!held, "pages of a chunk are in use at its end");
        match self.bug {
            Bug::ChunkTakesTheOthersAlong => panic!("there is no such chunk"),
            Bug::ChunkStaysFull => state.leaked += u64::from(pages) * 4096,
            _ => {}
        }
    }
}

/// The message of the rule that the devices of `make` break.
fn broken_rule(make: impl Fn() -> Table) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| conformance(make)));
    let panic = panic.expect_err("the suite sees nothing wrong");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| Some(panic.downcast_ref::<&str>()?.to_string()))
        .unwrap_or_default()
}

#[track_caller]
fn assert_breaks(bug: Bug, rule: &str) {
    let message = broken_rule(|| Table::new(bug));
    assert!(message.contains(rule), "not {rule:?} but {message:?}");
}

/// The same with a bug that the device has only in a space: the devices made first are right.
#[track_caller]
fn assert_breaks_in_a_space(bug: Bug, memory: MemoryType, rule: &str) {
    let called_directly = if memory.is_mapped() { 2 } else { 4 };
    let made = Cell::new(0);
    let message = broken_rule(|| {
        made.set(made.get() + 1);
        let in_a_space = made.get() > called_directly;
        Table::with_memory(if in_a_space { bug } else { Bug::None }, memory)
    });
    assert!(message.contains(rule), "not {rule:?} but {message:?}");
    assert!(message.contains("in a space"), "{message:?}");
}

#[test]
fn a_right_device_passes() {
    conformance(|| Table::new(Bug::None));
    conformance(|| Table::with_memory(Bug::None, MemoryType::Coherent));
    conformance(|| Table::with_memory(Bug::None, MemoryType::FsDax));
}

#[test]
fn the_suite_keeps_the_promises_to_devices() {
    conformance(|| FlakyDevice::new(Table::new(Bug::None)));
    // Of what the core copies itself the device hears nothing, not even that it is free.
    conformance(|| FlakyDevice::new(Table::with_memory(Bug::None, MemoryType::Coherent)));
}

/// The core keeps the frames of memory that the CPU maps, and copies them itself.
#[test]
fn a_device_that_the_cpu_maps_is_never_asked_to_copy() {
    conformance(|| Table::with_memory(Bug::Panics, MemoryType::Coherent));
    conformance(|| Table::with_memory(Bug::Dies, MemoryType::Coherent));
}

#[test]
fn broken_devices_are_caught() {
    assert_breaks(Bug::WrongByte, "what goes in comes out");
    assert_breaks(Bug::SecondReadFails, "time 2");
    assert_breaks(Bug::NeighbourOverwritten, "do not disturb each other");
    assert_breaks(Bug::LeaksMemory, "an empty device takes nothing");
    assert_breaks(Bug::DropsPagesWhenFull, "a full device keeps what it has");
    assert_breaks(Bug::StoresWhatItRefuses, "an error stores nothing");
    assert_breaks(Bug::AlwaysFull, "a device with room is not full");
    assert_breaks(Bug::Dies, "is not dead");
    assert_breaks(Bug::OddChunks, "a chunk is a power of two");
}

#[test]
fn old_data_under_a_freed_number_is_caught() {
    // Seen wherever a number is used twice, which the first rule does already.
    assert_breaks(Bug::OldData, "what goes in comes out");
}

#[test]
fn broken_batches_are_caught() {
    assert_breaks(
        Bug::BatchOutOfOrder,
        "a batch reads what single copies stored",
    );
    assert_breaks(Bug::BatchIsAllOrNothing, "a page of a batch fails alone");
    assert_breaks(Bug::BatchSaysNothing, "an empty device takes nothing");
    assert_breaks(Bug::FenceFails, "the fence of a batch ends");
}

#[test]
fn broken_chunks_are_caught() {
    assert_breaks(
        Bug::ChunkDoesNotComeAgain,
        "a chunk that comes again is as good as new",
    );
    assert_breaks(Bug::ChunkTakesTheOthersAlong, "there is no such chunk");
    assert_breaks(Bug::ChunkStaysFull, "an empty device takes nothing");
}

#[test]
fn what_is_broken_only_in_a_space_is_caught() {
    let private = MemoryType::Private;
    for (bug, rule) in [
        (Bug::WrongByte, "the first wrong byte is at 4095"),
        (Bug::SecondReadFails, "loses nothing"),
        (Bug::LeaksMemory, "an empty device takes nothing"),
        (Bug::AlwaysFull, "pressure fills private memory"),
        (Bug::Dies, "a device that nothing happened to is not dead"),
        (Bug::Panics, "a device does not panic: copy_out"),
        (Bug::FenceFails, "the fence of a batch ends"),
        (Bug::ChunkDoesNotComeAgain, "has memory for what it has"),
        (Bug::ChunkTakesTheOthersAlong, "remove_chunk did"),
    ] {
        assert_breaks_in_a_space(bug, private, rule);
    }
}

#[test]
fn broken_coherent_devices_are_caught() {
    let coherent = MemoryType::Coherent;
    for (bug, rule) in [
        (Bug::ChunkDoesNotComeAgain, "has memory for what it has"),
        (Bug::ChunkTakesTheOthersAlong, "remove_chunk did"),
        (Bug::ChunkStaysFull, "an empty device takes nothing"),
    ] {
        assert_breaks_in_a_space(bug, coherent, rule);
    }
}
