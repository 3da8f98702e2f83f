//! What the signal engine leaves to the program's own handler of SIGBUS, in all forms that a handler has.
//!
//! Each case is a child: a process has one handler, and some cases end by it. The process of the tests
//! itself never has a space, so that each child installs the engine's handler anew.

#[path = "../fork/child.rs"]
mod child;
mod forms;
mod handlers;
mod later;

use child::{End, child, wait};
use handlers::{Page, action, install, send, send_value};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uhmm::devices::MirrorDevice;
use uhmm::{Builder, Engine, Region, Space};

const PAGE: usize = 4096;

/// One at a time: each test forks, and a fork takes the whole process along.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn space() -> Space {
    Builder::new(4 << 20)
        .device(Box::new(MirrorDevice::new(64 << 20)))
        .engine(Engine::Signal)
        .build()
        .expect("a space")
}

/// Four times as much memory as may be in RAM, all of it written and read back.
fn use_memory(space: &Space) -> Region {
    let mut region = space.region(16 << 20).expect("a region");
    touch_all(&mut region);
    region
}

fn touch_all(region: &mut Region) {
    for (i, page) in region.as_mut_slice().chunks_mut(PAGE).enumerate() {
        page[i % PAGE] = i as u8;
    }
    for (i, page) in region.as_slice().chunks(PAGE).enumerate() {
        assert_eq!(page[i % PAGE], i as u8, "page {i}");
    }
}

/// How a process ends that has this for SIGBUS, then a space, and then does `main`.
fn ends(before: &libc::sigaction, main: impl FnOnce(&Space, &mut Region) -> i32) -> End {
    wait(child(|| {
        install(before);
        let space = space();
        let mut region = use_memory(&space);
        let status = main(&space, &mut region);
        touch_all(&mut region);
        status
    }))
}
