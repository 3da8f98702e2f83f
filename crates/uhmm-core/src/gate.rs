//! The gate: who changes pages passes it, and a fork closes it.
//!
//! Around a `fork` nothing may be half done, since the child gets a copy of the core's own memory
//! but none of the threads that work on it. So every operation that changes entries, frames or
//! device pages runs between [`Gate::enter`] and the drop of its [`Pass`], and [`Gate::close`] waits
//! until nobody is inside.
//!
//! # Protocol
//!
//! A fork closes the gate in two steps, because application threads may fault while they are inside
//! (their stacks may be managed), and internal threads may not:
//!
//! | phase | application threads | internal threads | ends when |
//! | --- | --- | --- | --- |
//! | open | enter | enter | a fork begins |
//! | closing | are refused | enter, and serve those still inside | no application thread is inside |
//! | draining | are refused | are refused | nobody is inside |
//! | closed | are refused | are refused | the fork is done |
//!
//! The phase and the counts are a store-then-load pair on both sides (sequentially consistent):
//! who enters counts itself in and then looks at the phase; who closes sets the phase and then looks
//! at the counts. So one of the two sees the other. Counts are spread over cache lines, so that
//! threads on different CPUs do not share one.
//!
//! Nobody waits for another page while inside, except for the end of a migration, whose owner is inside
//! too and needs nothing from the waiter; and nobody waits for memory, except to put bytes back that are
//! nowhere else.

use crate::mirror::in_notifier;
use crate::mmu::Mmu;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

const SHARDS: usize = 16;

/// Why somebody does not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// A fork is going on, and does not end.
    Forking,
    /// The caller is in a notifier, whose caller may have in its hands what this one would wait for; or
    /// it has a mirror's table locked, which a notifier may wait for.
    InNotifier,
}

impl Refused {
    pub(crate) const FORKING: &str = "the process is forking; try again";
    pub(crate) const IN_NOTIFIER: &str =
        "called from a notifier, or with a mirror's table locked: call the space after that";
}

/// How long a driver's thread waits for a fork to end.
const DRIVER_PATIENCE: Duration = Duration::from_secs(1);

/// Lets a call whose error is of this type say by `?` why it was not let in: the error has variants of
/// the same names.
macro_rules! takes_refusals {
    ($error:ty) => {
        impl std::convert::From<$crate::gate::Refused> for $error {
            fn from(refused: $crate::gate::Refused) -> Self {
                match refused {
                    $crate::gate::Refused::Forking => Self::Forking,
                    $crate::gate::Refused::InNotifier => Self::InNotifier,
                }
            }
        }
    };
}
pub(crate) use takes_refusals;

#[derive(Default)]
#[repr(align(64))]
struct Shard(AtomicU64);

type Shards = [Shard; SHARDS];

const OPEN: u64 = 0;
const CLOSING: u64 = 1;
const DRAINING: u64 = 2;
const CLOSED: u64 = 3;

/// See the module's head.
#[derive(Default)]
pub(crate) struct Gate {
    /// Internal threads inside.
    internal: Shards,
    /// Application threads inside.
    applications: Shards,
    phase: AtomicU64,
}

/// A shard that is likely another one for another thread: stacks lie apart.
fn shard(shards: &Shards) -> &AtomicU64 {
    let here = 0u8;
    let stack = std::ptr::from_ref(&here) as usize;
    &shards[(stack >> 14 ^ stack >> 21) % SHARDS].0
}

impl Gate {
    fn pass<'a, M: Mmu>(&'a self, shards: &'a Shards, mmu: &'a M) -> Pass<'a, M> {
        let shard = shard(shards);
        shard.fetch_add(1, SeqCst);
        Pass {
            shard,
            gate: self,
            mmu,
        }
    }

    /// Enters, unless the gate is closed to internal threads.
    pub(crate) fn enter<'a, M: Mmu>(&'a self, mmu: &'a M) -> Option<Pass<'a, M>> {
        let pass = self.pass(&self.internal, mmu);
        (self.phase.load(SeqCst) < DRAINING).then_some(pass)
    }

    /// Enters as an internal thread does, on a driver's thread.
    ///
    /// The wait is bounded because the driver may be inside already, with a migration in its hands that
    /// a fork waits for.
    pub(crate) fn enter_soon<'a, M: Mmu>(&'a self, mmu: &'a M) -> Result<Pass<'a, M>, Refused> {
        if in_notifier() {
            return Err(Refused::InNotifier);
        }
        let start = Instant::now();
        loop {
            if let Some(pass) = self.enter(mmu) {
                return Ok(pass);
            }
            let rest = DRIVER_PATIENCE.checked_sub(start.elapsed());
            self.wait_open(mmu, rest.ok_or(Refused::Forking)?);
        }
    }

    /// Enters to give something back, on whatever thread: as an application thread does, whose faults are
    /// still served while it is inside.
    pub(crate) fn enter_to_give_back<'a, M: Mmu>(&'a self, mmu: &'a M) -> Option<Pass<'a, M>> {
        // In a notifier too: it waits for nobody's page.
        self.enter_application(mmu, DRIVER_PATIENCE).ok()
    }

    /// Enters as an application thread, waiting at most `patience` for the gate to open.
    ///
    /// The wait is bounded because the forking thread takes locks of the C library after it has
    /// closed the gate: a thread that holds one of them and waits here must give up for the fork
    /// to go on.
    pub(crate) fn enter_within<'a, M: Mmu>(
        &'a self,
        mmu: &'a M,
        patience: Duration,
    ) -> Result<Pass<'a, M>, Refused> {
        if in_notifier() {
            return Err(Refused::InNotifier);
        }
        self.enter_application(mmu, patience)
    }

    fn enter_application<'a, M: Mmu>(
        &'a self,
        mmu: &'a M,
        patience: Duration,
    ) -> Result<Pass<'a, M>, Refused> {
        let start = Instant::now();
        loop {
            let pass = self.pass(&self.applications, mmu);
            if self.phase.load(SeqCst) == OPEN {
                return Ok(pass);
            }
            drop(pass);
            let rest = patience.checked_sub(start.elapsed());
            self.wait_open(mmu, rest.ok_or(Refused::Forking)?);
        }
    }

    /// Waits at most `patience` for the gate to open; returns whether it has.
    pub(crate) fn wait_open<M: Mmu>(&self, mmu: &M, patience: Duration) -> bool {
        let start = Instant::now();
        loop {
            let seen = self.phase.load(SeqCst);
            if seen == OPEN {
                return true;
            }
            let Some(rest) = patience.checked_sub(start.elapsed()) else {
                return false;
            };
            mmu.wait(&self.phase, seen, rest);
        }
    }

    /// Whether internal threads are refused.
    pub(crate) fn is_closed(&self) -> bool {
        self.phase.load(SeqCst) >= DRAINING
    }

    /// Whether the gate is closed and nobody is inside.
    pub(crate) fn is_drained(&self) -> bool {
        self.phase.load(SeqCst) == CLOSED
    }

    /// Closes the gate and waits until nobody is inside. One closer at a time: a second one waits
    /// for the first to open.
    pub(crate) fn close<M: Mmu>(&self, mmu: &M) {
        while let Err(seen) = self.phase.compare_exchange(OPEN, CLOSING, SeqCst, SeqCst) {
            mmu.wait(&self.phase, seen, Duration::from_millis(10));
        }
        wait_out(&self.applications, mmu);
        self.phase.store(DRAINING, SeqCst);
        wait_out(&self.internal, mmu);
        self.phase.store(CLOSED, SeqCst);
    }

    /// Opens the gate again.
    pub(crate) fn open<M: Mmu>(&self, mmu: &M) {
        self.phase.store(OPEN, SeqCst);
        mmu.wake_waiters(&self.phase);
    }

    /// Forgets, in the child of a fork that still has one thread, who was counted while trying to
    /// enter: they are not there.
    pub(crate) fn forget_threads(&self) {
        for Shard(count) in self.internal.iter().chain(&self.applications) {
            count.store(0, SeqCst);
        }
    }
}

/// Waits until nobody is inside whom `shards` count.
fn wait_out<M: Mmu>(shards: &Shards, mmu: &M) {
    for Shard(count) in shards {
        loop {
            let inside = count.load(SeqCst);
            if inside == 0 {
                break;
            }
            mmu.wait(count, inside, Duration::from_millis(1));
        }
    }
}

/// Being inside the gate.
pub(crate) struct Pass<'a, M: Mmu> {
    shard: &'a AtomicU64,
    gate: &'a Gate,
    mmu: &'a M,
}

impl<M: Mmu> Pass<'_, M> {
    /// Another pass, for who is inside: whoever closes the gate waits for both.
    pub(crate) fn again(&self) -> Self {
        self.shard.fetch_add(1, SeqCst);
        Self { ..*self }
    }
}

impl<M: Mmu> Drop for Pass<'_, M> {
    fn drop(&mut self) {
        let left = self.shard.fetch_sub(1, SeqCst) - 1;
        if left == 0 && self.gate.phase.load(SeqCst) != OPEN {
            self.mmu.wake_waiters(self.shard);
        }
    }
}
