//! Memory failure: the machine, or a driver, has found that the memory of a page is bad.
//!
//! What is lost is poisoned: a touch of that page is a SIGBUS, of no other, and nobody reads zeros or
//! old bytes in its place (R9). Where a device has a duplicate of a page in RAM, nothing is lost.

use crate::addr::{DeviceAddr, PageData, PageNo, PageRange};
use crate::claims::Single;
use crate::device::CopyOutError;
use crate::entry::State;
use crate::events;
use crate::gate::{Refused, takes_refusals};
use crate::mirror::Event;
use crate::mmu::Mmu;
use crate::pagemap::DevPagemap;
use crate::space::Space;
use std::fmt;
use std::time::{Duration, Instant};

/// How long the end of a page's migration is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a failure of memory came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A good copy was there, and is used from now on.
    Recovered,
    /// The page is lost: touching it is a SIGBUS.
    Poisoned,
    /// Nobody used the memory; it is not used again.
    Retired,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recovered => "a good copy is used from now on",
            Self::Poisoned => "the page is lost",
            Self::Retired => "nobody used it",
        })
    }
}

/// Why a failure could not be dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureError {
    /// The page is not managed by this space, or the space has no such device page.
    NoSuchPage,
    /// The page has no memory that could have failed.
    NothingThere,
    /// The page is in flight and does not come to rest; try again.
    InFlight,
    /// The process is forking, and the fork does not end; try again.
    Forking,
    /// Called from a notifier, which must not call the space.
    InNotifier,
}

impl fmt::Display for FailureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchPage => "the page is not managed by this space",
            Self::NothingThere => "the page has no memory that could have failed",
            Self::InFlight => "the page is being migrated; try again",
            Self::Forking => Refused::FORKING,
            Self::InNotifier => Refused::IN_NOTIFIER,
        })
    }
}

impl std::error::Error for FailureError {}

takes_refusals!(FailureError);

impl<M: Mmu> Space<M> {
    /// The memory of `page` has failed, wherever it is. For internal threads, and for threads that
    /// touch no managed memory.
    ///
    /// # Errors
    /// [`FailureError`]; nothing has changed.
    pub fn memory_failure(&self, page: PageNo) -> Result<Failure, FailureError> {
        let outcome = self.fail_page(page)?;
        let address = page.address();
        self.events
            .tell(events::Event::MemoryFailure { address, outcome });
        Ok(outcome)
    }

    /// The memory of a device page has failed. For internal threads, and for threads that touch no
    /// managed memory.
    ///
    /// # Errors
    /// [`FailureError`]; nothing has changed.
    pub fn device_memory_failure(&self, at: DeviceAddr) -> Result<Failure, FailureError> {
        let outcome = self.fail_device_page(at)?;
        self.events
            .tell(events::Event::DeviceMemoryFailure { at, outcome });
        Ok(outcome)
    }

    fn fail_page(&self, page: PageNo) -> Result<Failure, FailureError> {
        if !self.range().contains(page) {
            return Err(FailureError::NoSuchPage);
        }
        let _pass = self.gate.enter_soon(&self.mmu)?;
        let start = Instant::now();
        let claimed = loop {
            match self.entries.state(page) {
                State::None => return Err(FailureError::NothingThere),
                State::Poisoned => return Ok(Failure::Poisoned),
                State::Migrating if start.elapsed() > PATIENCE => {
                    return Err(FailureError::InFlight);
                }
                State::Migrating => self.entries.wait(page, &self.mmu),
                seen => {
                    if let Some(claimed) = Single::claim_in_place(self, page, |state| state == seen)
                    {
                        break claimed;
                    }
                }
            }
        };
        Ok(self.fail(claimed))
    }

    fn fail_device_page(&self, at: DeviceAddr) -> Result<Failure, FailureError> {
        let memory = self.find_device(at.device);
        let memory = memory.ok_or(FailureError::NoSuchPage)?;
        if at.page.0 as usize >= memory.capacity() {
            return Err(FailureError::NoSuchPage);
        }
        let _pass = self.gate.enter_soon(&self.mmu)?;
        let start = Instant::now();
        while start.elapsed() <= PATIENCE {
            let Some(held) = memory.get(at.page) else {
                let chunk = memory.chunk(memory.chunk_of(at.page));
                if !chunk.is_some_and(DevPagemap::is_alive) {
                    return Err(FailureError::NothingThere);
                }
                if memory.is_bad(at.page) {
                    return Ok(Failure::Retired);
                }
                // Free: it is taken out of use, if it can be had.
                self.free_buried();
                if memory.alloc_at(at.page, self.stamp(), self.device_stats(at.device)) {
                    memory.set_bad(at.page);
                    self.put_page(at);
                    return Ok(Failure::Retired);
                }
                std::thread::yield_now();
                continue;
            };
            // An entry that has let go of the page leaves it to who else holds it.
            let names_it = |state: State| state.device_page() == Some(at);
            let may_name_it = |&owner: &PageNo| {
                let state = self.state(owner);
                state == State::Migrating || names_it(state)
            };
            let Some(owner) = memory.owner(at.page).filter(may_name_it) else {
                // A driver's, or a migration's: it ends with them.
                memory.set_bad(at.page);
                held.end(self.device_stats(at.device));
                return Ok(Failure::Retired);
            };
            let claimed = Single::claim_in_place(self, owner, names_it);
            if claimed.is_some() {
                memory.set_bad(at.page);
            }
            held.end(self.device_stats(at.device));
            match claimed {
                Some(claimed) if matches!(claimed.was(), State::System { .. }) => {
                    self.give_duplicate_up(claimed);
                    return Ok(Failure::Recovered);
                }
                Some(claimed) => return Ok(self.fail(claimed)),
                None => self.entries.wait(owner, &self.mmu),
            }
        }
        Err(FailureError::InFlight)
    }

    fn fail(&self, claimed: Single<'_, M>) -> Failure {
        let page = claimed.page();
        let one = PageRange::new(page, 1);
        self.notify(one, Event::Clear);
        match claimed.was() {
            State::System { duplicate, .. } => {
                self.mmu.discard(one);
                if let Some(at) = duplicate {
                    if claimed.is_pinned() {
                        return self.renew_in_place(claimed, at);
                    }
                    claimed.settle(State::Private(at));
                    self.count_duplicates(-1);
                    self.pool.uncharge(1, self.stats());
                    return Failure::Recovered;
                }
                self.poison(claimed);
                self.pool.uncharge(1, self.stats());
            }
            State::Limbo(slot) => {
                self.poison(claimed);
                self.mmu.drop_frames(slot, 1);
                self.pool.moved_out(slot, 1);
                self.pool.uncharge(1, self.stats());
            }
            State::Exclusive { frame, .. } => {
                self.poison(claimed);
                self.drop_exclusive(frame);
            }
            State::Private(at) | State::Coherent(at) => {
                let memory = self.device(at.device);
                memory.set_bad(at.page);
                self.mmu.discard(one);
                self.poison(claimed);
                if memory.memory_type().is_mapped() {
                    self.mmu.drop_arena(at, 1);
                }
                self.put_page(at);
            }
            // Not claimed: nothing is there that could fail.
            State::None | State::Migrating | State::Poisoned => {}
        }
        Failure::Poisoned
    }

    /// A pinned page whose frame has failed and been dropped gets another one, with the bytes of its
    /// duplicate `at`, since it has to stay in RAM.
    fn renew_in_place(&self, claimed: Single<'_, M>, at: DeviceAddr) -> Failure {
        let mut data = PageData::ZERO;
        let mut loaded = self.load(at, &mut data);
        while loaded == Err(CopyOutError::Retry) {
            self.nap();
            loaded = self.load(at, &mut data);
        }
        let failure = if loaded.is_ok() {
            self.map_bytes(claimed.page(), &data);
            claimed.settle(State::system(true));
            Failure::Recovered
        } else {
            self.poison(claimed);
            self.pool.uncharge(1, self.stats());
            Failure::Poisoned
        };
        self.drop_duplicate(at);
        failure
    }

    fn poison(&self, claimed: Single<'_, M>) {
        let page = claimed.page();
        self.mmu.poison(page);
        claimed.settle(State::Poisoned);
        self.stats().poisoned_pages.add(1);
        let address = page.address();
        self.events.tell(events::Event::PagePoisoned { address });
    }
}
