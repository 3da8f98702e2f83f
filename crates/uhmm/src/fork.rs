//! Keeps spaces right across `fork` (R16), by the C library's own hooks.
//!
//! The hooks run for every `fork` of the C library, whoever calls it. A child made by a raw `clone`
//! system call does not run them and finds pages missing; `vfork`, `posix_spawn` and threads share
//! the address space and need none.
//!
//! *prepare*: signals are blocked, and each space's gate is closed. *parent*: the gates open. *child*:
//! locks of the other threads are void; the registrations and threads are made anew; then the gates
//! open. See `uhmm_core::fork` for what happens to pages meanwhile.

use crate::build::Inner;
use std::sync::{Arc, Once, Weak};
use uhmm_core::lock::{Guard, Lock, new_generation};
use uhmm_core::mirror::Invalidating;
use uhmm_linux::signals::Blocked;

static SPACES: Lock<Vec<Weak<Inner>>> = Lock::new(Vec::new());

/// What the forking thread holds from *prepare* to *parent* or *child*. The gates are closed, so
/// there is one forking thread at a time.
static FORKING: Lock<Option<Forking>> = Lock::new(None);

struct Forking {
    spaces: Vec<Arc<Inner>>,
    /// Devices do not look at pages until it is over.
    devices: Vec<Invalidating>,
    /// Nobody is in the middle of registering another one when the process is copied.
    all: Guard<'static, Vec<Weak<Inner>>>,
    signals: Blocked,
}

pub(crate) fn register(space: &Arc<Inner>) {
    static HOOKS: Once = Once::new();
    HOOKS.call_once(|| {
        uhmm_linux::files::prepare();
        // SAFETY: the three hooks are functions of this library, which is never unloaded.
        unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    });
    // A handler that forks would wait for the lock.
    let _signals = Blocked::all();
    let mut spaces = SPACES.lock();
    spaces.retain(|space| space.strong_count() > 0);
    spaces.push(Arc::downgrade(space));
}

extern "C" fn prepare() {
    let signals = Blocked::all();
    let alive =
        |all: &Vec<Weak<Inner>>| -> Vec<_> { all.iter().filter_map(Weak::upgrade).collect() };
    // Without the lock: a notifier may wait for a thread that is registering a space.
    let known = alive(&SPACES.lock());
    let mut devices: Vec<_> = known.iter().map(|space| space.core.begin_fork()).collect();
    let all = SPACES.lock();
    let spaces = alive(&all);
    let is_new = |space: &&Arc<Inner>| !known.iter().any(|other| Arc::ptr_eq(other, space));
    devices.extend(
        spaces
            .iter()
            .filter(is_new)
            .map(|space| space.core.begin_fork()),
    );
    for space in &spaces {
        space.core.close_for_fork();
    }
    // In all spaces nothing leaves RAM any more: what is touched now stays.
    for space in &spaces {
        space.memory.hold_for_fork();
    }
    for space in &spaces {
        space.core.seal_for_fork();
    }
    *FORKING.lock() = Some(Forking {
        spaces,
        devices,
        all,
        signals,
    });
}

extern "C" fn parent() {
    let Some(forking) = FORKING.lock().take() else {
        return;
    };
    for space in &forking.spaces {
        space.core.open_in_parent();
    }
    drop(forking.devices);
    drop(forking.all);
    drop(forking.signals);
}

extern "C" fn child() {
    // What other threads of the parent hold is held by nobody here.
    new_generation();
    let Some(forking) = FORKING.lock().take() else {
        return;
    };
    for space in &forking.spaces {
        if let Err(error) = take_over(space) {
            uhmm_linux::end::die_plainly(&format!(
                "uhmm: cannot manage the child of a fork ({error}); it is killed, rather than \
                 left to read zeros\n"
            ));
        }
    }
    drop(forking.devices);
    drop(forking.all);
    drop(forking.signals);
}

fn take_over(space: &Inner) -> Result<(), Box<dyn std::error::Error>> {
    space.core.begin_in_child();
    space.core.mmu().set_up_in_child()?;
    let mut managed = space.memory.register_all()?;
    managed.extend(space.core.mmu().register_adopted()?);
    let engine = &mut *space
        .engine
        .try_lock()
        .map_err(|_| "the engine is being stopped")?;
    engine.restart_in_child()?;
    space.core.open_in_child(&managed);
    space.memory.wipe_in_child()?;
    Ok(())
}
