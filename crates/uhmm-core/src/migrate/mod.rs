//! Migration by request: pages of a range, or of a device, in named phases.
//!
//! The phases are those of Linux' `migrate_vma_*` and `migrate_device_*`, and so are their names. A
//! type for each phase makes it impossible to call them out of order, and a migration that is dropped
//! puts everything back (R5):
//!
//! | call | phase it ends | what holds afterwards |
//! | --- | --- | --- |
//! | [`Space::migrate_vma`], [`Space::migrate_device_range`] | collect, unmap | each selected page is claimed; nothing of it is mapped; a touch of it waits |
//! | [`allocate`], [`to_system`], [`set_destination`], [`skip`] | | each page that is to migrate has a destination |
//! | [`copy`] | copy | the bytes are at the destination, or on their way there |
//! | [`pages`] | install | what others hold has been put back (R7); the rest is decided |
//! | [`finalize`] | finalize | copies have ended; each page is where it went, or where it was; waiters are woken |
//!
//! It is best effort, page by page: whatever cannot be claimed, taken, given a page or copied stays
//! what it was, and is no error.
//!
//! Where a page's bytes are between collect and finalize is its *origin*; every origin can be put
//! back without fail, or waits in a state that a touch resolves:
//!
//! | was | origin | put back as |
//! | --- | --- | --- |
//! | None | a hole | None |
//! | System, Limbo | a frame in the pool | System; Limbo where the mapping does not take it now |
//! | System, not writable | its bytes | System |
//! | Private | the device page, with a reference | Private |
//! | Coherent | the device page, its frame at home in the arena | Coherent; Private where the mapping does not take it now |
//! | Coherent, not writable | its bytes | System |
//!
//! Nobody waits for a page that is in other hands, with claims of its own: such pages are *missed*, and a
//! request looks at them again afterwards ([`Space::migrate_vma_again`]).
//!
//! For internal threads, and for threads of a program that do not touch managed memory meanwhile. The
//! thread must not fork before the migration has ended.
//!
//! [`allocate`]: Migration::allocate
//! [`to_system`]: Migration::to_system
//! [`set_destination`]: Migration::set_destination
//! [`skip`]: Migration::skip
//! [`copy`]: Migration::copy
//! [`pages`]: Migration::pages
//! [`finalize`]: Migration::finalize

mod again;
mod buffers;
mod collect;
mod copy;
mod finalize;

use crate::addr::{DeviceAddr, DevicePage, PageData, PageNo, PageRange};
use crate::claims::Single;
use crate::device::Owner;
use crate::entry::State;
use crate::events::Event;
use crate::frames::Frame;
use crate::gate::Pass;
use crate::gate::{Refused, takes_refusals};
use crate::memory_type::MemoryType;
use crate::mmu::Mmu;
use crate::pagemap::{AllocError, Held, MAX_ORDER, Started};
use crate::space::Space;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{BitOr, RangeInclusive};

pub use again::Patience;
pub(crate) use buffers::Buffers;
pub use collect::MigrateVma;

use buffers::Buffer;

/// Which kinds of pages a migration selects (R6), as `MIGRATE_VMA_SELECT_*` in Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Select(u8);

impl Select {
    /// Pages in RAM, and pages that were never touched.
    pub const SYSTEM: Self = Self(1);
    /// Pages on devices that the CPU does not map.
    pub const DEVICE_PRIVATE: Self = Self(2);
    /// Pages on devices that the CPU maps.
    pub const DEVICE_COHERENT: Self = Self(4);

    /// Whether all of `other` is selected.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Select {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a selected page was: its source word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where it was.
    pub from: From,
    /// The page is to migrate ([`Migration::skip`] ends that).
    pub migrate: bool,
    /// The program may write to it.
    pub write: bool,
}

/// Where a selected page was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Nowhere: never touched. It reads as zeros at its destination.
    Hole,
    /// In RAM.
    System,
    /// On a device.
    Device(DeviceAddr),
}

/// Where a page goes: its destination word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To RAM.
    System,
    /// To this device page, which the migration has a reference on.
    Device(DeviceAddr),
}

/// A selected page, with its source and destination words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The page of the space.
    pub page: PageNo,
    /// What it was.
    pub source: Source,
    /// Where it goes, if anywhere.
    pub destination: Option<Destination>,
}

/// Why a migration could not begin. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrateError {
    /// Some of the range is not managed by this space.
    NotManaged,
    /// No such device, or no such page of it.
    NoSuchPage,
    /// The device's memory is of a type that does not migrate.
    DoesNotMigrate,
    /// The page is in use by others, or in flight, or there is no room for it in RAM.
    Busy,
    /// The process is forking, and the fork does not end; try again.
    Forking,
    /// Called from a notifier, which must not call the space.
    InNotifier,
}

impl fmt::Display for MigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotManaged => "the range is not managed by this space",
            Self::NoSuchPage => "the space has no such device, or the device no such page",
            Self::DoesNotMigrate => "pages of that type of device memory do not migrate",
            Self::Busy => "the page is held by others, or there is no RAM for it; try again",
            Self::Forking => Refused::FORKING,
            Self::InNotifier => Refused::IN_NOTIFIER,
        })
    }
}

impl std::error::Error for MigrateError {}

takes_refusals!(MigrateError);

/// What a migration came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Pages that went where they were to go.
    pub migrated: usize,
    /// Pages that were to go and have not: there was no room for them, somebody holds them, or they were
    /// in other hands, and nobody could look at them. A page that is lost on the way is one of them.
    pub left: usize,
}

/// Where a page's bytes are; see the module's head.
enum Origin<'a, M: Mmu> {
    Hole,
    Frame(Frame),
    /// Charged: the page was in RAM, and its charge is still there.
    Bytes {
        data: Box<PageData>,
        charged: bool,
    },
    Device {
        at: DeviceAddr,
        held: Held<'a, M::Table>,
    },
}

/// What is known of the copy.
enum Copied {
    /// Not made, or failed.
    No,
    /// At its destination, unless the fence with this number says otherwise.
    ToDevice { fence: Option<usize> },
    /// At this place of this buffer, for RAM.
    ToBuffer { buffer: usize, index: usize },
    /// The device has lost the bytes.
    Lost,
}

struct Item<'a, M: Mmu> {
    claimed: Single<'a, M>,
    origin: Origin<'a, M>,
    migrate: bool,
    to: Option<Destination>,
    copied: Copied,
}

impl<M: Mmu> Item<'_, M> {
    /// Whether the page is to migrate, and has no destination.
    fn wants(&self) -> bool {
        self.migrate && self.to.is_none()
    }

    fn describe(&self) -> Page {
        let from = match (&self.origin, self.claimed.was()) {
            (_, State::Private(at) | State::Coherent(at)) => From::Device(at),
            (Origin::Hole, _) => From::Hole,
            _ => From::System,
        };
        Page {
            page: self.claimed.page(),
            source: Source {
                from,
                migrate: self.migrate,
                write: !matches!(self.origin, Origin::Bytes { .. }),
            },
            destination: self.to,
        }
    }
}

/// Everything that a migration has in its hands. What is left in `items` when it is dropped is put
/// back.
struct Hands<'a, M: Mmu> {
    space: &'a Space<M>,
    items: Vec<Item<'a, M>>,
    /// A driver holds one more reference on this page: that of the fault it serves (R3).
    fault_page: Option<DeviceAddr>,
    /// Pages that no device gives up to make room for this migration.
    spared: PageRange,
    /// Pages go to memory that the CPU maps also where they cannot be mapped.
    unmapped: bool,
    /// Blocks of the pool that frames were taken into.
    blocks: Vec<u32>,
    /// Bytes on their way to RAM, or from one device to another.
    buffers: Vec<Buffer>,
    fences: Vec<Started>,
    /// Pages that were in other hands. They count as left.
    missed: Vec<PageNo>,
    done: Migrated,
    pass: Pass<'a, M>,
}

/// The phase after [`Space::migrate_vma`]: pages are unmapped, and wait for their copies.
pub struct Unmapped;
/// The phase after [`Migration::copy`].
pub struct CopiedTo;
/// The phase after [`Migration::pages`].
pub struct Installed;

/// A migration under way. See the module's head.
pub struct Migration<'a, M: Mmu, Phase> {
    hands: Hands<'a, M>,
    phase: PhantomData<Phase>,
}

impl<'a, M: Mmu, Phase> Migration<'a, M, Phase> {
    fn then<Next>(self) -> Migration<'a, M, Next> {
        Migration {
            hands: self.hands,
            phase: PhantomData,
        }
    }

    /// The pages that are in the migration's hands, in the order in which they were collected.
    pub fn selected(&self) -> impl Iterator<Item = Page> {
        self.hands.items.iter().map(Item::describe)
    }

    /// The pages that were in other hands when it was their turn: reclaim's, a fault's, another
    /// migration's. They are not selected, and count as [left](Migrated::left); whoever wants them looks
    /// again once this migration has ended, as [`Space::migrate_vma_again`] does.
    pub fn missed(&self) -> &[PageNo] {
        &self.hands.missed
    }
}

impl<'a, M: Mmu> Migration<'a, M, Unmapped> {
    /// Clears the migrate mark of `page`: it is put back.
    pub fn skip(&mut self, page: PageNo) {
        self.skip_if(|selected| selected.page == page);
    }

    /// Clears the migrate mark of the pages that `which` names; returns of how many.
    pub fn skip_if(&mut self, which: impl Fn(&Page) -> bool) -> usize {
        let mut skipped = 0;
        for item in &mut self.hands.items {
            if item.migrate && which(&item.describe()) {
                item.migrate = false;
                skipped += 1;
            }
        }
        skipped
    }

    /// Says that no device is to give up any of `pages` to make room for this migration: for a request
    /// that takes several, which must not push out what it has just brought.
    pub fn spare(&mut self, pages: PageRange) {
        self.hands.spared = pages;
    }

    /// Lets pages of a range that is not writable go to memory that the CPU maps, although they cannot be
    /// mapped there: they are on the device, which reads them, and come to RAM when they are touched.
    /// Without this they stay.
    pub fn allow_unmapped(&mut self) {
        self.hands.unmapped = true;
    }

    /// Hands out pages of `device` as the destinations of all pages that have none; runs of pages get
    /// blocks as large as there are. A device that is full makes room first, of its coldest pages.
    /// Returns how many pages have got one.
    ///
    /// # Errors
    /// [`AllocError`] when not one page could be had; nothing is lost, and another device may do.
    pub fn allocate(&mut self, device: u8) -> Result<usize, AllocError> {
        let space = self.hands.space;
        let (pass, spared) = (self.hands.pass.again(), self.hands.spared);
        self.allocate_by(device, |orders, rest| {
            let pages = rest.iter().filter(|item| item.wants()).count();
            space.alloc_with_room(&pass, device, orders, pages, spared)
        })
    }

    /// As [`Migration::allocate`], but only of what `device` has free, or can grow by: nothing leaves it to
    /// make room. For a driver that chooses itself what leaves.
    ///
    /// # Errors
    /// As [`Migration::allocate`].
    pub fn allocate_free(&mut self, device: u8) -> Result<usize, AllocError> {
        let space = self.hands.space;
        self.allocate_by(device, |orders, _| space.alloc_largest(device, orders))
    }

    /// Gives blocks of `device` that `alloc` hands out, of one of some orders and for the first of some
    /// pages.
    fn allocate_by(
        &mut self,
        device: u8,
        alloc: impl Fn(RangeInclusive<u32>, &[Item<'a, M>]) -> Result<(DevicePage, u32), AllocError>,
    ) -> Result<usize, AllocError> {
        let space = self.hands.space;
        let memory = space.memory_type(device);
        if !memory.ok_or(AllocError::NoSuchDevice)?.migrates() {
            return Err(AllocError::DoesNotMigrate);
        }
        let wants = Item::wants;
        let (mut next, mut given) = (0, 0);
        while next < self.hands.items.len() {
            let rest = &self.hands.items[next..];
            if !wants(&rest[0]) {
                next += 1;
                continue;
            }
            let start = rest[0].claimed.page();
            let len = rest
                .iter()
                .enumerate()
                .take(1 << MAX_ORDER)
                .take_while(|(i, item)| wants(item) && item.claimed.page() == start.plus(*i))
                .count();
            let fits = len.ilog2().min(start.0.trailing_zeros()).min(MAX_ORDER);
            let (page, order) = match alloc(0..=fits, rest) {
                Ok(block) => block,
                Err(error) if given == 0 => return Err(error),
                Err(_) => break,
            };
            let at = DeviceAddr { device, page };
            for i in 0..1 << order {
                self.hands.items[next + i].to = Some(Destination::Device(at.plus(i)));
            }
            given += 1 << order;
            next += 1 << order;
        }
        Ok(given)
    }

    /// Makes RAM the destination of all pages that have none, and are not there.
    pub fn to_system(&mut self) {
        self.send_to_system(usize::MAX);
    }

    /// As [`Migration::to_system`], of the first `most` of them; returns of how many.
    pub(crate) fn send_to_system(&mut self, most: usize) -> usize {
        let away = |item: &&mut Item<'_, M>| match item.origin {
            Origin::Device { .. } => item.wants(),
            Origin::Bytes { charged, .. } => item.wants() && !charged,
            Origin::Hole | Origin::Frame(_) => false,
        };
        let items = self.hands.items.iter_mut().filter(away).take(most);
        items
            .map(|item| item.to = Some(Destination::System))
            .count()
    }

    /// Makes a page that the caller was given by [`Space::alloc_device_pages`] the destination of
    /// `page`. The migration has it from then on, and frees it if it is not needed. `false`: `page` is
    /// not in the migration, or has a destination, or `to` is more than a page, of a type that does
    /// not migrate, or another space's; then `to` is freed.
    pub fn set_destination(&mut self, page: PageNo, to: crate::DevicePages<'a, M>) -> bool {
        let memory = self.hands.space.memory_type(to.first().device);
        if !to.is_of(self.hands.space) || !memory.is_some_and(MemoryType::migrates) {
            return false;
        }
        let items = self.hands.items.iter_mut();
        let mut fitting = items.filter(|item| item.claimed.page() == page && item.to.is_none());
        match (fitting.next(), to.order()) {
            (Some(item), 0) if item.migrate => {
                item.to = Some(Destination::Device(to.into_first()));
                true
            }
            _ => false,
        }
    }

    /// Copies the bytes of all pages that have a destination: by their devices, several pages a call,
    /// and for memory that the CPU maps by the CPU.
    pub fn copy(mut self) -> Migration<'a, M, CopiedTo> {
        self.hands.copy();
        self.then()
    }
}

impl<'a, M: Mmu> Migration<'a, M, CopiedTo> {
    /// Decides which pages go (install): those whose copy was made, and that nobody else has come to
    /// hold (R7). The others are put back now.
    pub fn pages(mut self) -> Migration<'a, M, Installed> {
        self.hands.install();
        self.then()
    }
}

impl<M: Mmu> Migration<'_, M, Installed> {
    /// Waits for the copies that have not ended, and makes the pages what they have become.
    pub fn finalize(mut self) -> Migrated {
        let first = self.selected().next();
        self.hands.finalize();
        self.hands.tell(first);
        self.hands.done
    }
}

impl<M: Mmu> Hands<'_, M> {
    /// Tells what the migration came to, the first of whose pages was `first`.
    fn tell(&self, first: Option<Page>) {
        if let Some(event) = Event::migrated(first, self.done) {
            self.space.events.tell(event);
        }
    }
}

impl<M: Mmu> Space<M> {
    /// Whether pages of `device` belong to `owner`; without an owner, to whom does not matter.
    fn is_owned_by(&self, device: u8, owner: Option<Owner>) -> bool {
        owner.is_none_or(|owner| self.owner(device) == Some(owner))
    }

    /// Whose the pages of `device` are: what the device says, or a name that no other device has.
    pub fn owner(&self, device: u8) -> Option<Owner> {
        let own = Owner(u64::MAX - u64::from(device));
        Some(self.find_device(device)?.info().owner.unwrap_or(own))
    }
}
