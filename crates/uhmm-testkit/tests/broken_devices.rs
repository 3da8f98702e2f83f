//! The conformance suite passes a device that is right, and names the rule that a wrong one breaks.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{CopyInError, CopyOutError, Device, DeviceInfo};
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
}

struct Table {
    bug: Bug,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pages: HashMap<u32, PageData>,
    /// What was stored under each number before.
    old: HashMap<u32, PageData>,
    /// How often each page was read.
    reads: HashMap<u32, u32>,
    leaked: u64,
}

const ROOM: usize = 300;

impl Table {
    fn new(bug: Bug) -> Self {
        Self {
            bug,
            state: Mutex::default(),
        }
    }
}

impl Device for Table {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("table", 400)
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
        if self.bug == Bug::SecondReadFails && *reads == 2 {
            return Err(CopyOutError::Lost);
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
}

/// The message of the rule that a device with `bug` breaks.
fn broken_rule(bug: Bug) -> String {
    let run = AssertUnwindSafe(|| conformance(&Table::new(bug)));
    let panic = catch_unwind(run).expect_err("the suite sees nothing wrong");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[track_caller]
fn assert_breaks(bug: Bug, rule: &str) {
    let message = broken_rule(bug);
    assert!(message.contains(rule), "not {rule:?} but {message:?}");
}

#[test]
fn a_right_device_passes() {
    conformance(&Table::new(Bug::None));
}

#[test]
fn the_suite_keeps_the_promises_to_devices() {
    conformance(&FlakyDevice::new(Table::new(Bug::None)));
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
}

#[test]
fn old_data_under_a_freed_number_is_caught() {
    // Seen wherever a number is used twice, which the first rule does already.
    assert_breaks(Bug::OldData, "what goes in comes out");
}
