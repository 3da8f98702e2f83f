//! Mirrors on real faults: a device in software, with threads of its own, reads and writes the program's
//! memory by the program's addresses, while the program does to it whatever programs do.

mod changes;
mod copies;
mod endurance;
mod everything;
#[path = "../common/file.rs"]
mod file;
mod foreign;
mod foreign_changes;
mod forks;
mod gpu;
#[path = "../common/heap.rs"]
mod heap;
mod huge;
mod looks;
mod lost;
mod misuse;
mod notifiers;
mod own;
#[path = "../adopt/own.rs"]
#[allow(dead_code, reason = "it is of another test, which uses all of it")]
mod own_memory;
mod tables;
#[path = "../world/mod.rs"]
mod world;

use file::memory_file;
use std::time::Instant;
use uhmm::DeviceId;
use uhmm::mirror::{Mirror, MirrorError, PageTable};
use uhmm_core::addr::PageNo;
use uhmm_core::mirror;
use world::{SOON, World, is_for_now};

impl World {
    /// A mirror of all of it, for a device without memory of its own.
    fn mirror(&self) -> Mirror<'_, PageTable> {
        self.mirror_by(None, PageTable::new(self.address, self.len()))
    }

    fn mirror_by(&self, device: Option<DeviceId>, table: PageTable) -> Mirror<'_, PageTable> {
        // SAFETY: pages of a test, which are touched by pointers alone while a device is at them.
        unsafe { self.space.mirror(self.address, self.len(), device, table) }.unwrap()
    }

    fn number(&self, page: usize) -> PageNo {
        PageNo::containing(self.at(page))
    }
}

/// Again and again, as drivers do where pages do not come to rest: machines may be slow.
fn until_done<R>(mut step: impl FnMut() -> Result<R, MirrorError>) -> Result<R, MirrorError> {
    let begin = Instant::now();
    loop {
        match step() {
            Err(error) if is_for_now(&error) && begin.elapsed() < SOON => {}
            done => return done,
        }
    }
}

/// Why a device does not get at a page.
fn in_the_way<T: std::fmt::Debug>(result: Result<T, MirrorError>) -> mirror::MirrorError {
    match result.unwrap_err() {
        MirrorError::Mirror(error) => error,
        other => panic!("{other:?}"),
    }
}
