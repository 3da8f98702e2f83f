//! The events of a space, handed on to the `tracing` crate: with the cargo feature `tracing`.

use crate::build::Space;
use crate::events::{Event, Told};
use std::io;
use std::thread::{Builder, JoinHandle};
use tracing::{debug, info, warn};

impl Space {
    /// Hands what happens from now on to `tracing`, under the target `uhmm`, from a thread of its own,
    /// which ends with the space: nothing of it is in the way of a fault. What is lost is a warning,
    /// what comes and goes is for information, and what is ordinary for debugging. The child of a fork
    /// has no such thread; it may call this again.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub fn trace_events(&self) -> io::Result<JoinHandle<()>> {
        let events = self.events();
        let thread = Builder::new().name("uhmm-events".to_owned());
        thread.spawn(move || events.for_each(|told| hand_on(&told)))
    }
}

fn hand_on(Told { at, event }: &Told) {
    let at = at.as_secs_f64();
    match event {
        Event::Lost(_)
        | Event::DeviceFailed(_)
        | Event::PagePoisoned { .. }
        | Event::MemoryFailure { .. }
        | Event::DeviceMemoryFailure { .. }
        | Event::ReclaimStuck
        | Event::OutOfMemoryNear => warn!(target: "uhmm", at, ?event, "{event}"),
        Event::Migrated { .. }
        | Event::ReclaimBegan
        | Event::ReclaimEnded { .. }
        | Event::Mapped { .. }
        | Event::Unmapped { .. } => debug!(target: "uhmm", at, ?event, "{event}"),
        _ => info!(target: "uhmm", at, ?event, "{event}"),
    }
}
