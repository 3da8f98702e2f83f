//! What a device may map for each page of a range, brought there first where that is asked for
//! (`hmm_range_fault` in Linux).

use super::foreign::{self, Wanted};
use super::notifier::{in_notifier, patience};
use super::{MirrorError, NotifierError};
use crate::addr::{DeviceAddr, PageNo, PageRange};
use crate::device::Owner;
use crate::entry::State;
use crate::fault::Scratch;
use crate::mmu::Mmu;
use crate::space::Space;
use std::time::Instant;

/// The order of the huge pages that the space itself may have.
const HUGE_ORDER: u8 = 9;
const HUGE: u64 = 1 << HUGE_ORDER;

/// What a device needs of a page (`HMM_PFN_REQ_FAULT`, `HMM_PFN_REQ_WRITE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// That it is there: it is faulted in. Without this, the page is only looked at.
    pub fault: bool,
    /// That it can be written to as well, once it is faulted in.
    pub write: bool,
}

impl Need {
    /// Only a look: nothing is faulted, and nothing waited for that is not there.
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
    /// What it needs of `page`, which is one of them.
    pub(super) fn need_of(&self, page: PageNo) -> Need {
        let place = (page.0 - self.pages.start.0) as usize;
        let own = self.each.get(place).copied().unwrap_or_default();
        own.or(self.default)
    }

    /// The same need of all pages.
    pub const fn all(pages: PageRange, need: Need) -> Self {
        Self {
            pages,
            default: need,
            each: &[],
        }
    }
}

/// The parts of `pages` in order: with what the program may do if they are named, and with nothing if
/// they are not.
fn parts(
    pages: PageRange,
    named: &[(PageRange, Permission)],
) -> impl Iterator<Item = (PageRange, Option<Permission>)> {
    let mut at = pages.start;
    std::iter::from_fn(move || {
        if at >= pages.end() {
            return None;
        }
        let here = named.iter().find(|(range, _)| range.contains(at));
        let later = named.iter().map(|(range, _)| range.start);
        let end = match here {
            Some((range, _)) => range.end(),
            None => later
                .filter(|start| *start > at)
                .min()
                .unwrap_or(pages.end()),
        };
        let len = (end.min(pages.end()).0 - at.0) as usize;
        let part = PageRange::new(at, len);
        at = part.end();
        Some((part, here.map(|(_, permission)| *permission)))
    })
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
    /// `allowed` says which parts of the range the space manages, and what the program may do with
    /// them; of what it does not name, the MMU is asked. Returns in how many rounds over the range pages
    /// had to be faulted in.
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
        let pages = request.pages;
        if !self.range().covers(pages) {
            return Err(NotifierError::NotManaged.into());
        }
        let start = Instant::now();
        let is_late = || start.elapsed() > patience(pages.len);
        let mut wanted = Wanted::default();
        let mut rounds = 0;
        loop {
            found.clear();
            let mut whole = true;
            for (part, permission) in parts(pages, allowed) {
                let Some(permission) = permission else {
                    foreign::look(&self.mmu, request, part, found, &mut wanted)?;
                    continue;
                };
                for page in part.iter() {
                    let need = request.need_of(page);
                    match self.look_for(page, need, permission, owner)? {
                        Look::Is(mapped) => found.push(mapped),
                        other => {
                            found.push(Mapped::Nothing);
                            whole = false;
                            self.bring_for(page, need, &other, scratch)?;
                            if is_late() {
                                return Err(match self.state(page) {
                                    state if self.lacks_ram(state) => MirrorError::NoRam(page),
                                    _ => NotifierError::Busy.into(),
                                });
                            }
                        }
                    }
                }
            }
            if let Some(first) = wanted.first() {
                if is_late() {
                    return Err(wanted.too_late(first));
                }
                whole = false;
                wanted.bring(&self.mmu)?;
            }
            if whole {
                self.find_huge(pages, allowed, found);
                return Ok(rounds);
            }
            rounds += 1;
        }
    }

    /// Says which of the managed pages that were found are mapped as huge ones. Only where the request
    /// has a whole one: it is a question more to the kernel.
    fn find_huge(
        &self,
        pages: PageRange,
        allowed: &[(PageRange, Permission)],
        found: &mut [Mapped],
    ) {
        let managed = parts(pages, allowed).filter(|(_, permission)| permission.is_some());
        for (part, _) in managed {
            let start = part.start.0.next_multiple_of(HUGE);
            let end = part.end().0 / HUGE * HUGE;
            if start >= end {
                continue;
            }
            let part = PageRange::new(PageNo(start), (end - start) as usize);
            self.mmu.huge(part, &mut |run| {
                let first = (run.start.0 - pages.start.0) as usize;
                for mapped in &mut found[first..first + run.len] {
                    if let Mapped::Ram { order, .. } = mapped {
                        *order = HUGE_ORDER;
                    }
                }
            });
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
        let device = |at: DeviceAddr, write| {
            // The device is about to work with it: it is not cold.
            self.device(at.device).set_used(at.page);
            Look::Is(Mapped::Device { at, write })
        };
        let seen = self.entries.load(page);
        Ok(match seen.state() {
            State::Poisoned if need.fault => return Err(MirrorError::Poisoned(page)),
            State::Poisoned => Look::Is(Mapped::Error),
            State::System {
                duplicate: Some(_), ..
            } if to_write => Look::Tracked,
            State::System { duplicate, .. } => Look::Is(Mapped::ram(write && duplicate.is_none())),
            State::Coherent(_) if seen.is_shared() && to_write => Look::Tracked,
            State::Coherent(at) => device(at, write && !seen.is_shared()),
            State::Private(at) if owner.is_some() && self.owner(at.device) == owner => {
                match self.device(at.device).memory_type().is_mapped() {
                    false => device(at, write),
                    // Memory that the CPU maps, and does not now: its device reads it at home.
                    true if to_write => Look::Fault,
                    true => device(at, false),
                }
            }
            // Mapped, and not settled yet: who has just brought it wakes those who wait before that, and
            // they may be here already. What is unmapped is not waited for.
            State::Migrating if !need.fault && self.is_present(page) => Look::Wait,
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
