//! Device views: a range made resident on a device, and held there while the device works on it.
//!
//! # Protocol
//!
//! - A view holds a reference on the device page of each of its pages. So none of them migrates, is
//!   evicted to make room, or is freed (R7); removal and suspension of the device wait for it. Of memory
//!   that the CPU does not map, a touch waits until the view is released, and then sees what the device
//!   has written. Of memory that it maps, both see the same bytes all the time.
//! - It is made page by page: what is there is held first, so that room for the rest is not made of it;
//!   the rest is brought in batches, by the migrations that a driver would make, and held at once. What
//!   was just brought stays long enough for that (R20), and what has left all the same is brought again.
//! - All or nothing: where a page cannot be had, all are released, and the error says why. Each step that
//!   comes to nothing is followed by a short rest, and there is a limit to those (R19).
//! - A view does not keep the range mapped. Pages that the program unmaps, discards or moves meanwhile
//!   leave the view their device pages, which are no page's memory any more: [`View::check`] tells.
//!
//! For threads that touch no managed memory while a view is made. It may be dropped on any thread.

use crate::addr::{DeviceAddr, DevicePage, PageNo, PageRange};
use crate::entry::State;
use crate::hold::{Hold, HoldError, PageRef};
use crate::migrate::{MigrateError, MigrateVma, Select};
use crate::mmu::Mmu;
use crate::pagemap::AllocError;
use crate::space::Space;
use std::fmt;

/// Pages that are brought together, and end where a multiple of it does: 2 MiB.
const BATCH: usize = 512;

/// Rests of a millisecond for pages that are in other hands.
const NAPS: usize = 20;

/// Why a page could not be made resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The device is full, and can make no room: what is on it is held, or has nowhere to go.
    Full,
    /// The device has no memory for the page's bytes, or the page lies in a range that is not writable and
    /// cannot be mapped there.
    Refused,
    /// Somebody holds the page where it is: it is pinned, or in another device's view.
    Held,
    /// Somebody is migrating it, and does not end.
    InFlight,
    /// Its bytes are lost.
    Lost,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => {
                "the device is full, and what is on it is held or has nowhere to go: release views, \
                 or give more RAM"
            }
            Self::Refused => {
                "it does not go there: the device has no memory for its bytes, or the range is not \
                 writable"
            }
            Self::Held => "somebody holds it elsewhere: release pins and views of it first",
            Self::InFlight => "it is being migrated: try again",
            Self::Lost => "its bytes are lost",
        })
    }
}

/// Why there is no view, or none any more. Nothing is held, and nothing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewError {
    /// Some of the range is not managed by this space.
    NotManaged,
    /// The space has no such device.
    NoSuchDevice,
    /// The device's memory is of a type that does not migrate.
    DoesNotMigrate,
    /// The device never has so many pages.
    TooLarge {
        /// Pages of the view.
        pages: usize,
        /// Pages of the device.
        capacity: usize,
    },
    /// The device was removed, or has failed.
    Removed,
    /// The device is suspended.
    Suspended,
    /// The process is forking, and the fork does not end; try again.
    Forking,
    /// Called from a notifier, which must not call the space.
    InNotifier,
    /// Not all pages could be made resident.
    NotResident {
        /// How many are missing.
        missing: usize,
        /// The first of them.
        first: PageNo,
        /// Why that one is.
        why: Why,
    },
    /// The program has unmapped, discarded or moved pages of the view.
    Gone {
        /// How many.
        pages: usize,
    },
    /// The device gives no addresses, only numbers of pages.
    NoAddresses,
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotManaged => f.write_str("the range is not managed by this space"),
            Self::NoSuchDevice => f.write_str("the space has no such device"),
            Self::DoesNotMigrate => AllocError::DoesNotMigrate.fmt(f),
            Self::TooLarge { pages, capacity } => write!(
                f,
                "a view of {pages} pages is larger than the device, which has {capacity}: view a \
                 part at a time"
            ),
            Self::Removed => f.write_str("the device was removed, or has failed"),
            Self::Suspended => AllocError::Suspended.fmt(f),
            Self::Forking => AllocError::Forking.fmt(f),
            Self::InNotifier => AllocError::InNotifier.fmt(f),
            Self::NotResident {
                missing,
                first,
                why,
            } => write!(
                f,
                "{missing} pages are not on the device; the first, at {:#x}: {why}",
                first.address()
            ),
            Self::Gone { pages } => write!(
                f,
                "{pages} pages of the view were unmapped, discarded or moved meanwhile: release it"
            ),
            Self::NoAddresses => {
                f.write_str("the device gives no addresses: use the numbers of its pages")
            }
        }
    }
}

impl std::error::Error for ViewError {}

/// A range that is resident on a device, and stays until this is dropped. See the module's head.
pub struct View<'a, M: Mmu> {
    space: &'a Space<M>,
    device: u8,
    pages: PageRange,
    /// One for each page.
    held: Vec<PageRef<'a, M>>,
}

impl<M: Mmu> Drop for View<'_, M> {
    fn drop(&mut self) {
        PageRef::give_back(self.held.drain(..));
    }
}

impl<M: Mmu> View<'_, M> {
    /// The pages of the space.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// The address of the first byte.
    pub fn address(&self) -> usize {
        self.pages.start.address()
    }

    /// The device.
    pub fn device(&self) -> u8 {
        self.device
    }

    /// The device's pages, one for each page of the range, in order.
    ///
    /// # Errors
    /// [`ViewError::Gone`].
    pub fn device_pages(&self) -> Result<Vec<DevicePage>, ViewError> {
        self.check()?;
        Ok(self.numbers().collect())
    }

    /// The first of the device's pages, where all of them lie in one block, in order.
    ///
    /// # Errors
    /// [`ViewError::Gone`].
    pub fn contiguous(&self) -> Result<Option<DevicePage>, ViewError> {
        self.check()?;
        let Some(first) = self.numbers().next() else {
            return Ok(None);
        };
        let in_line = (0..).zip(self.numbers()).all(|(i, at)| at == first.plus(i));
        Ok(in_line.then_some(first))
    }

    /// The address of each page, for programs of the device that take pointers: what the device says, or,
    /// of memory that the CPU maps, the page's own address.
    ///
    /// # Errors
    /// [`ViewError::Gone`], [`ViewError::NoAddresses`].
    pub fn addresses(&self) -> Result<Vec<u64>, ViewError> {
        self.check()?;
        let memory = self.space.device(self.device);
        if memory.memory_type().is_mapped() {
            return Ok(self
                .pages
                .iter()
                .map(|page| page.address() as u64)
                .collect());
        }
        let address = |page| memory.driver().address(page).ok_or(ViewError::NoAddresses);
        self.numbers().map(address).collect()
    }

    /// Whether all of the device's pages still are what the range consists of. They stay that while the
    /// range stays mapped and nobody discards or moves its pages.
    ///
    /// # Errors
    /// [`ViewError::Gone`].
    pub fn check(&self) -> Result<(), ViewError> {
        let space = self.space;
        let is_gone = |(page, held): &(PageNo, &PageRef<'_, M>)| {
            // Somebody looks whether it can be taken, or what comes in its place is on its way.
            let settled = || Some(space.state(*page)).filter(|state| *state != State::Migrating);
            let state = (0..NAPS).find_map(|_| {
                settled().or_else(|| {
                    space.entries.wait(*page, &space.mmu);
                    None
                })
            });
            state.is_some_and(|state| match state {
                State::Private(now) | State::Coherent(now) => now != held.at(),
                _ => true,
            })
        };
        let gone = self.pages.iter().zip(&self.held).filter(is_gone);
        match gone.count() {
            0 => Ok(()),
            pages => Err(ViewError::Gone { pages }),
        }
    }

    fn numbers(&self) -> impl Iterator<Item = DevicePage> {
        self.held.iter().map(|held| held.at().page)
    }
}

/// A view in the making.
struct Making<'a, M: Mmu> {
    space: &'a Space<M>,
    device: u8,
    pages: PageRange,
    held: Vec<Option<PageRef<'a, M>>>,
    /// Whether, of the pages that were to go there last, some have got no page of the device, and some
    /// have not gone all the same.
    full: bool,
    refused: bool,
}

impl<M: Mmu> Space<M> {
    /// Makes `pages` resident on `device`, all of them, and holds them there. The device makes room if it
    /// has to.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn view(&self, device: u8, pages: PageRange) -> Result<View<'_, M>, ViewError> {
        let memory = self.find_device(device).ok_or(ViewError::NoSuchDevice)?;
        if !memory.memory_type().migrates() {
            return Err(ViewError::DoesNotMigrate);
        }
        if !self.range().covers(pages) {
            return Err(ViewError::NotManaged);
        }
        let capacity = memory.capacity();
        if pages.len > capacity {
            let pages = pages.len;
            return Err(ViewError::TooLarge { pages, capacity });
        }
        let mut making = Making {
            space: self,
            device,
            pages,
            held: pages.iter().map(|_| None).collect(),
            full: false,
            refused: false,
        };
        let mut naps = 0;
        let mut missing = making.hold(pages)?;
        while missing > 0 {
            making.check_device()?;
            making.bring_all()?;
            let now = making.missing();
            if now == missing {
                naps += 1;
                if making.full || making.refused || naps > NAPS {
                    return Err(making.not_resident());
                }
                self.nap();
            }
            missing = now;
        }
        making.check_device()?;
        Ok(View {
            space: self,
            device,
            pages,
            held: making.held.into_iter().flatten().collect(),
        })
    }
}

impl<'a, M: Mmu> Making<'a, M> {
    fn check_device(&self) -> Result<(), ViewError> {
        let memory = self.space.device(self.device);
        match (memory.is_dying(), memory.is_open()) {
            (true, _) => Err(ViewError::Removed),
            (_, false) => Err(ViewError::Suspended),
            _ => Ok(()),
        }
    }

    fn missing(&self) -> usize {
        self.held.iter().filter(|held| held.is_none()).count()
    }

    fn index(&self, page: PageNo) -> usize {
        (page.0 - self.pages.start.0) as usize
    }

    /// Holds what of `pages` is on the device; returns how many are not.
    fn hold(&mut self, pages: PageRange) -> Result<usize, ViewError> {
        let mut missing = 0;
        for page in pages.iter() {
            let index = self.index(page);
            if self.held[index].is_none() {
                self.held[index] = self.hold_page(page)?;
                missing += usize::from(self.held[index].is_none());
            }
        }
        Ok(missing)
    }

    fn hold_page(&self, page: PageNo) -> Result<Option<PageRef<'a, M>>, ViewError> {
        let space = self.space;
        let on_device = |at: &DeviceAddr| at.device == self.device;
        // What the CPU could map and does not cannot be reached by its address.
        let reached = !space.device(self.device).memory_type().is_mapped();
        let there = || match space.state(page) {
            State::Private(at) if reached => Some(at).filter(on_device),
            State::Coherent(at) => Some(at).filter(on_device),
            _ => None,
        };
        let Some(at) = there() else { return Ok(None) };
        match space.hold_device_page(at, Hold::default()) {
            // It may have become another page's before it was held.
            Ok(held) => Ok((there() == Some(at)).then_some(held)),
            Err(HoldError::Forking) => Err(ViewError::Forking),
            Err(HoldError::InNotifier) => Err(ViewError::InNotifier),
            Err(_) => Ok(None),
        }
    }

    /// Brings what is missing, once.
    fn bring_all(&mut self) -> Result<(), ViewError> {
        (self.full, self.refused) = (false, false);
        let mut at = self.pages.start;
        while at < self.pages.end() {
            let whole = BATCH - at.0 as usize % BATCH;
            let batch = PageRange::new(at, whole.min((self.pages.end().0 - at.0) as usize));
            let first = self.index(at);
            if self.held[first..first + batch.len]
                .iter()
                .any(Option::is_none)
            {
                self.bring(batch)?;
                self.hold(batch)?;
            }
            at = batch.end();
        }
        Ok(())
    }

    fn bring(&mut self, pages: PageRange) -> Result<(), ViewError> {
        self.end_exclusive(pages)?;
        let args = MigrateVma {
            pages,
            select: Select::SYSTEM | Select::DEVICE_PRIVATE | Select::DEVICE_COHERENT,
            owner: None,
            except: Some(self.device),
            fault_page: None,
        };
        let migration = self.space.migrate_vma(&args);
        let mut migration = migration.map_err(gate_error)?;
        let selected = migration.selected().count();
        if selected == 0 {
            return Ok(());
        }
        let given = match migration.allocate(self.device) {
            Ok(given) => given,
            Err(AllocError::Full) => 0,
            Err(AllocError::Suspended) => return Err(ViewError::Suspended),
            Err(_) => return Err(ViewError::Removed),
        };
        let done = migration.copy().pages().finalize();
        self.full |= given < selected;
        self.refused |= done.migrated < given;
        Ok(())
    }

    /// What a device has for itself alone comes back first (R17).
    fn end_exclusive(&self, pages: PageRange) -> Result<(), ViewError> {
        let space = self.space;
        let is_exclusive = |page: &PageNo| matches!(space.state(*page), State::Exclusive { .. });
        if pages.iter().any(|page| is_exclusive(&page)) {
            let pass = space.pass().map_err(gate_error)?;
            pages.iter().filter(is_exclusive).for_each(|page| {
                space.end_exclusive(page);
            });
            drop(pass);
        }
        Ok(())
    }

    fn not_resident(&self) -> ViewError {
        let first = self.held.iter().position(Option::is_none);
        let first = self.pages.start.plus(first.expect("some page is missing"));
        let why = match self.space.state(first) {
            State::Poisoned => Why::Lost,
            State::Private(at) if at.device == self.device => Why::Refused,
            _ if self.full => Why::Full,
            _ if self.refused => Why::Refused,
            State::Migrating => Why::InFlight,
            _ => Why::Held,
        };
        ViewError::NotResident {
            missing: self.missing(),
            first,
            why,
        }
    }
}

/// Why a migration of pages of the space does not begin.
fn gate_error(error: MigrateError) -> ViewError {
    match error {
        MigrateError::Forking => ViewError::Forking,
        MigrateError::InNotifier => ViewError::InNotifier,
        _ => ViewError::NotManaged,
    }
}
