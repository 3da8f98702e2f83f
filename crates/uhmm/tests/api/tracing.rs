//! Events on their way to the `tracing` crate.

use crate::{FIRST, PAGE, SOON, space};
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};

static TOLD: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());

/// Keeps the messages.
struct Keeper;

struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "uhmm"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut message = String::new();
        event.record(&mut Message(&mut message));
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        told.push((*event.metadata().level(), message));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn events_are_handed_on_until_the_space_ends() {
    tracing::subscriber::set_global_default(Keeper).expect("the only one");
    let space = space();
    let thread = space.trace_events().expect("a thread");
    let mut region = space.region(PAGE).unwrap();
    region.as_mut_slice()[0] = 1;
    space.suspend_device(FIRST, SOON).unwrap();
    space.memory_failure(region.as_ptr() as usize).unwrap();
    drop((space, region));
    thread.join().unwrap();
    let told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    let has = |level, text: &str| told.iter().any(|(l, t)| *l == level && t.contains(text));
    assert!(has(Level::DEBUG, "4096 bytes at 0x"), "{told:?}");
    assert!(has(Level::INFO, "device 0 was suspended"), "{told:?}");
    assert!(has(Level::WARN, " is lost"), "{told:?}");
    assert!(has(Level::DEBUG, " were unmapped"), "{told:?}");
}
