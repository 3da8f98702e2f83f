//! Which spaces have a signal engine, for a handler that knows nothing but an address.
//!
//! # Protocol
//!
//! A place holds a pointer to what a space's engine shares, or null. A handler counts itself in (`inside`)
//! and then loads the pointer; who takes an engine out stores null and then waits until nobody is inside.
//! All of it is sequentially consistent, so one of the two sees the other: either the handler sees null,
//! or it is waited for, and the engine lives until it has gone. A handler waits for nobody who takes an
//! engine out, and its waits are for the reclaimer and others that still run then.
//!
//! A count belongs to the place, not to the engine in it: the next engine may come to the place while a
//! handler is on its way out of it.

use super::Shared;
use crate::abi::futex;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::*};
use std::time::Duration;

/// The most spaces with a signal engine in a process at a time. Its addresses have room for some twenty.
pub(super) const PLACES: usize = 16;

#[repr(align(64))]
struct Place {
    engine: AtomicPtr<Shared>,
    inside: AtomicU64,
}

static ALL: [Place; PLACES] = [const {
    Place {
        engine: AtomicPtr::new(null_mut()),
        inside: AtomicU64::new(0),
    }
}; PLACES];

/// No place from here on was ever used.
static USED: AtomicUsize = AtomicUsize::new(0);

/// An engine that handlers find.
pub(super) struct Registered {
    place: &'static Place,
    /// Alive for as long as handlers may use it.
    _engine: Arc<Shared>,
}

impl Registered {
    /// Lets handlers find `engine`; `None` where there is no place for another one.
    pub(super) fn new(engine: &Arc<Shared>) -> Option<Self> {
        let pointer = Arc::as_ptr(engine).cast_mut();
        let index = ALL.iter().position(|place| {
            let is_free = place
                .engine
                .compare_exchange(null_mut(), pointer, SeqCst, Relaxed);
            is_free.is_ok()
        })?;
        USED.fetch_max(index + 1, SeqCst);
        Some(Self {
            place: &ALL[index],
            _engine: Arc::clone(engine),
        })
    }
}

/// Forgets, in the child of a fork that still has one thread, the handlers of other threads: they were
/// counted in every place that they looked at, vacant ones too.
pub(super) fn forget_handlers() {
    for place in &ALL {
        place.inside.store(0, SeqCst);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.place.engine.store(null_mut(), SeqCst);
        loop {
            let inside = self.place.inside.load(SeqCst);
            if inside == 0 {
                return;
            }
            futex::wait(&self.place.inside, inside, Duration::from_millis(10));
        }
    }
}

/// Asks the engines in turn, until one gives an answer. For signal handlers.
pub(super) fn find<R>(mut ask: impl FnMut(&Shared) -> Option<R>) -> Option<R> {
    let used = USED.load(SeqCst);
    ALL[..used].iter().find_map(|place| {
        let _inside = Inside::enter(place);
        // SAFETY: whoever takes the engine out waits for us, since we were counted before the load.
        let engine = unsafe { place.engine.load(SeqCst).as_ref() };
        engine.and_then(&mut ask)
    })
}

/// Being counted in a place.
struct Inside(&'static Place);

impl Inside {
    fn enter(place: &'static Place) -> Self {
        place.inside.fetch_add(1, SeqCst);
        Self(place)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let left = self.0.inside.fetch_sub(1, SeqCst) - 1;
        if left == 0 && self.0.engine.load(SeqCst).is_null() {
            futex::wake(&self.0.inside);
        }
    }
}
