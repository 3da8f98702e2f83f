//! What a device may map for each page of a range, brought there first where that is asked for
//! (`hmm_range_fault` in Linux).

use super::notifier::{in_notifier, patience};
use super::{MirrorError, NotifierError};
use crate::addr::{DeviceAddr, PageNo, PageRange};
use crate::device::Owner;
use crate::entry::State;
use crate::fault::Scratch;
use crate::mmu::Mmu;
use crate::space::Space;
use std::time::Instant;

/// What a device needs of a page (`HMM_PFN_REQ_FAULT`, `HMM_PFN_REQ_WRITE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// That it is there: it is faulted in. Without this, the page is only looked at.
    pub fault: bool,
    /// That it can be written to as well, once it is faulted in.
    pub write: bool,
}

impl Need {
    /// Only a look; nothing is faulted, nothing waited for.
    pub const SNAPSHOT: Self = Self {
        fault: false,
        write: false,
    };
    /// To read.
    pub const READ: Self = Self {
        fault: true,
        write: false,
    };
    /// To read and write.
    pub const WRITE: Self = Self {
        fault: true,
        write: true,
    };

    fn or(self, other: Self) -> Self {
        Self {
            fault: self.fault || other.fault,
            write: self.write || other.write,
        }
    }
}

/// Which pages a device wants to see, and what it needs of them.
#[derive(Clone, Copy, Debug)]
pub struct RangeFault<'a> {
    /// The pages.
    pub pages: PageRange,
    /// What it needs of all of them.
    pub default: Need,
    /// What it needs of each besides, in order; pages past the end of this need nothing more.
    pub each: &'a [Need],
}

impl RangeFault<'_> {
    /// The same need of all pages.
    pub const fn all(pages: PageRange, need: Need) -> Self {
        Self {
            pages,
            default: need,
            each: &[],
        }
    }
}

/// What the program may do with a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permission {
    /// Read it.
    pub read: bool,
    /// Write to it.
    pub write: bool,
}

/// What a device may map for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// Nothing: it is not there, or where this device does not reach it. Only where it was not needed.
    Nothing,
    /// Nothing ever: not mapped, no access, or lost. Only where it was not needed.
    Error,
    /// The page in RAM that the CPU has mapped.
    Ram {
        /// It may be written to.
        write: bool,
        /// It is the kernel's page of zeros, which many mappings share.
        zero: bool,
        /// Of the mapping that it is part of, which begins on a multiple of its size: 2 to this power
        /// pages. 0, but for huge pages: 9 is 2 MiB, 18 is 1 GiB.
        order: u8,
    },
    /// A page of a device: of the mirror's owner, or one that the CPU maps, whose ever it is.
    Device {
        /// Which.
        at: DeviceAddr,
        /// It may be written to.
        write: bool,
    },
}

impl Mapped {
    /// An ordinary page in RAM.
    pub const fn ram(write: bool) -> Self {
        Self::Ram {
            write,
            zero: false,
            order: 0,
        }
    }
}

/// What one look at a page came to.
enum Look {
    Is(Mapped),
    /// A fault would bring it.
    Fault,
    /// Its writes are tracked, and it is to be written to.
    Tracked,
    /// Somebody has it in hand.
    Wait,
}

impl<M: Mmu> Space<M> {
    /// Fills `found` with what a device of `owner` may map for each page, and faults in what it needs.
    /// `allowed` says what the program may do with parts of the range. Returns in how many rounds over
    /// the range pages had to be faulted in.
    ///
    /// What it says is out of date at once: it counts only if [`IntervalNotifier::read_retry`] says so.
    ///
    /// [`IntervalNotifier::read_retry`]: super::IntervalNotifier::read_retry
    ///
    /// # Errors
    /// [`MirrorError`], of the first page that cannot be had.
    pub fn range_fault(
        &self,
        request: &RangeFault<'_>,
        allowed: &[(PageRange, Permission)],
        owner: Option<Owner>,
        scratch: &mut Scratch,
        found: &mut Vec<Mapped>,
    ) -> Result<usize, MirrorError> {
        if in_notifier() {
            return Err(NotifierError::InNotifier.into());
        }
        if !self.range().covers(request.pages) {
            return Err(NotifierError::NotManaged.into());
        }
        let start = Instant::now();
        let mut rounds = 0;
        loop {
            found.clear();
            let mut whole = true;
            for (i, page) in request.pages.iter().enumerate() {
                let need = request.each.get(i).copied().unwrap_or_default();
                let need = need.or(request.default);
                let is = allowed.iter().find(|(range, _)| range.contains(page));
                let permission = is.map_or_else(Permission::default, |(_, is)| *is);
                match self.look_for(page, need, permission, owner)? {
                    Look::Is(mapped) => found.push(mapped),
                    other => {
                        found.push(Mapped::Nothing);
                        whole = false;
                        self.bring_for(page, need, &other, scratch)?;
                        if start.elapsed() > patience(request.pages.len) {
                            return Err(match self.state(page) {
                                state if self.lacks_ram(state) => MirrorError::NoRam(page),
                                _ => NotifierError::Busy.into(),
                            });
                        }
                    }
                }
            }
            if whole {
                return Ok(rounds);
            }
            rounds += 1;
        }
    }

    fn look_for(
        &self,
        page: PageNo,
        need: Need,
        permission: Permission,
        owner: Option<Owner>,
    ) -> Result<Look, MirrorError> {
        if !permission.read && !need.fault {
            return Ok(Look::Is(Mapped::Error));
        }
        if !permission.read {
            return Err(MirrorError::NoAccess(page));
        }
        let to_write = need.fault && need.write;
        if to_write && !permission.write {
            return Err(MirrorError::NotWritable(page));
        }
        let write = permission.write;
        let device = |at: DeviceAddr| {
            // The device is about to work with it: it is not cold.
            self.device(at.device).set_used(at.page);
            Look::Is(Mapped::Device { at, write })
        };
        Ok(match self.state(page) {
            State::Poisoned if need.fault => return Err(MirrorError::Poisoned(page)),
            State::Poisoned => Look::Is(Mapped::Error),
            State::System {
                duplicate: Some(_), ..
            } if to_write => Look::Tracked,
            State::System { duplicate, .. } => Look::Is(Mapped::ram(write && duplicate.is_none())),
            State::Coherent(at) => device(at),
            State::Private(at) if owner.is_some() && self.owner(at.device) == owner => device(at),
            _ if !need.fault => Look::Is(Mapped::Nothing),
            State::Migrating => Look::Wait,
            State::None | State::Limbo(_) | State::Private(_) | State::Exclusive { .. } => {
                Look::Fault
            }
        })
    }

    fn bring_for(
        &self,
        page: PageNo,
        need: Need,
        look: &Look,
        scratch: &mut Scratch,
    ) -> Result<(), MirrorError> {
        match look {
            Look::Is(_) => {}
            Look::Wait => self.entries.wait(page, &self.mmu),
            Look::Fault => self.bring(page, need.write, scratch)?,
            Look::Tracked => self.end_tracking(page)?,
        }
        Ok(())
    }
}
