//! What happens in a space, as it happens: a stream of events for logs, dashboards and tests.
//!
//! ```no_run
//! # fn example(space: &uhmm::Space) {
//! let events = space.events();
//! std::thread::spawn(|| events.for_each(|told| println!("{told}")));
//! # }
//! ```
//!
//! Whoever moves pages, a fault handler included, never waits for who listens, and does nothing at all
//! while nobody does. A listener that looks too seldom (1024 events are kept) is told how many it has
//! lost, as [`Event::Lost`]. How often things happen is in [`Space::statistics`]: faults, and the
//! pages that they and reclaim move, are too many to be events.

use crate::build::{Inner, Space};
use std::iter::FusedIterator;
use std::sync::Weak;
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::events::Listener;
use uhmm_core::mmu::Mmu;
use uhmm_linux::mmu::LinuxMmu;

pub use uhmm_core::events::{Event, Told};
pub use uhmm_core::failure::Failure;

/// How long a listener that waits sleeps between two looks: longer and longer, up to the last.
const NAPS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(16)];

/// The events of a space from the moment on when [`Space::events`] was called. Each stream has all of
/// them.
///
/// As an iterator it waits for the next event, and ends with the space. It does not keep the space.
pub struct Events {
    listener: Listener<<LinuxMmu as Mmu>::Table>,
    space: Weak<Inner>,
}

impl Space {
    /// What happens in the space from now on.
    pub fn events(&self) -> Events {
        Events {
            listener: Listener::new(self.core().events()),
            space: std::sync::Arc::downgrade(&self.inner),
        }
    }
}

impl Events {
    /// The next event, if there is one now.
    pub fn try_next(&mut self) -> Option<Told> {
        self.listener.try_next()
    }

    /// The next event, if there is one within `patience`, to a few milliseconds. `None` too when the
    /// space has ended, without a wait.
    pub fn next_timeout(&mut self, patience: Duration) -> Option<Told> {
        let start = Instant::now();
        let [mut nap, longest] = NAPS;
        loop {
            // What is told while the space ends is there when it has ended.
            let over = self.space.strong_count() == 0;
            let told = self.try_next();
            let left = patience.saturating_sub(start.elapsed());
            if told.is_some() || over || left.is_zero() {
                return told;
            }
            thread::sleep(nap.min(left));
            nap = (nap * 2).min(longest);
        }
    }
}

impl Iterator for Events {
    type Item = Told;

    fn next(&mut self) -> Option<Told> {
        self.next_timeout(Duration::MAX)
    }
}

impl FusedIterator for Events {}
