//! Faults that are served by the thread that meets them.
//!
//! A fault engine with threads of its own calls [`Space::fault`], and the kernel keeps the faulting
//! thread asleep until somebody wakes it. Where the fault arrives as a signal there is nobody to wake:
//! the thread is here, in [`Space::fault_here`], and repeats its touch as soon as that returns. Three
//! things are different:
//!
//! - A page in flight has to be waited for, or the thread would fault on it over and over. The wait is
//!   on the entry's word, which the end of the claim wakes; no claim is held meanwhile, and the gate is
//!   not passed, so whoever has the page can go on, and so can a fork.
//! - A page that is lost is told from one that is there: the touch will not succeed either.
//! - What was mapped over the space by somebody else is not to be served, and no touch of it succeeds
//!   by being repeated: the caller is told.
//!
//! # Who may call it where
//!
//! The thread may be an application thread *inside* the gate (a call of ours that touches the program's
//! memory). Serving passes the gate as an internal thread does, which is let in until the last application
//! thread is out, so a fork that waits for the call does not keep its fault from being served.
//!
//! The thread may be the one that forks, between the closing of the gate and its opening. Its faults go to
//! the log like all others. Once the log is sealed it waits for the end of the fork, which it is itself, for
//! as long as the seal's bound, and is served then; what it is known to touch is brought in before.
//!
//! The thread must not hold a claim on the page, nor a lock of the fault path: what is claimed by an
//! application thread is not touched by it until it is settled (`docs/locking.md`).

use crate::addr::PageNo;
use crate::entry::State;
use crate::fault::{Access, Scratch};
use crate::mmu::Mmu;
use crate::space::Space;

/// What a fault came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The touch is to be repeated.
    Yes,
    /// The page's bytes are lost, and it is marked so.
    Lost,
    /// Something else is mapped over the space there: the fault is its owner's.
    NotOurs,
}

impl<M: Mmu> Space<M> {
    /// Serves a fault of the calling thread itself on `page`. When it returns the page is there, or
    /// has gone again meanwhile.
    pub fn fault_here(&self, page: PageNo, access: Access, scratch: &mut Scratch) -> Served {
        if !self.serve(page, access, scratch) {
            return Served::NotOurs;
        }
        loop {
            match self.state(page) {
                State::Migrating => self.entries.wait(page, &self.mmu),
                State::Poisoned => return Served::Lost,
                _ => return Served::Yes,
            }
        }
    }
}
