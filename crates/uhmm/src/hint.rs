//! Hints: what a program wants of a range.
//!
//! A hint never changes what a program reads, and a wrong one costs time alone. Some last, until they are
//! taken back or the range is unmapped; they go along with pages that migrate, with `mremap` and with
//! `fork`, after which each side changes its own. The others are followed at once. `docs/hmm.md` says what
//! each does, and its names in CUDA, GMEM and `madvise`.

use crate::build::Space;
use crate::device_memory::DeviceId;
use crate::migrate::{MigrateError, Migrated, Place};
use crate::range::RangeError;
use crate::region::Region;
use crate::span::{BoundsError, Span};
use std::fmt;
use std::io::ErrorKind;
use std::ops::RangeBounds;
use uhmm_core::AllocError;
use uhmm_core::addr::{PAGE_SIZE, PageRange};
use uhmm_core::fault::Scratch;
use uhmm_core::hints::{Hints, Preferred};
use uhmm_linux::signals::Blocked;

/// What a program wants of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// Lasting: the pages should be at this place. Nothing moves now. Pages that prefer a device go there
    /// when they leave RAM, if the CPU does not map its memory, and it has room. Pages that prefer RAM leave
    /// it after all others.
    Prefer(Place),
    /// Takes [`Hint::Prefer`] back.
    NoPreference,
    /// Lasting: the device uses the pages, wherever they are. Nothing moves for it. When the device meets
    /// a fault on one of them in its own page table, the pages around go along
    /// ([`Mirror::fault_around`](crate::mirror::Mirror::fault_around)): it takes one fault for all of them,
    /// also after they have moved. [`Space::hints_at`] tells drivers.
    AccessedBy(DeviceId),
    /// Takes [`Hint::AccessedBy`] of that device back.
    NotAccessedBy(DeviceId),
    /// Lasting: the pages are mostly read. Then a device keeps its copy of what is read there, and to push
    /// an unmodified page out again copies nothing; the first write to such a page costs one more fault.
    ReadMostly,
    /// Takes [`Hint::ReadMostly`] back.
    NotReadMostly,
    /// Now: the pages migrate to this place, or without one to where each prefers to be, else to RAM. To
    /// a device goes also what was never touched, as zeros, and one that is full makes room. To RAM they
    /// go as far as any is free.
    Prefetch(Option<Place>),
    /// Now: the pages will be needed. They come to the device that they prefer, which makes room if it is
    /// full, else to RAM, as far as nothing has to leave RAM for them; what is there is spared by reclaim
    /// once. What was never touched stays so.
    WillNeed,
    /// Now: the pages are not needed soon. Those in RAM go to devices, as reclaim would choose them, hot or
    /// cold; their contents are kept. What devices have no room for stays.
    DoNotNeed,
}

/// Why a hint was not taken. Nothing has changed; of a hint that is followed at once, what has moved by
/// then has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HintError {
    /// Something is wrong with the range.
    Range(RangeError),
    /// The range is not within the region.
    Bounds(BoundsError),
    /// The space has no such device.
    NoSuchDevice,
    /// The device was removed, or has failed for good.
    DeviceRemoved,
    /// The device's memory is of a type that does not migrate.
    DoesNotMigrate,
    /// The calling thread's stack is managed memory, which might itself be migrated.
    ManagedStack,
}

impl fmt::Display for HintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(error) => error.fmt(f),
            Self::Bounds(error) => error.fmt(f),
            Self::NoSuchDevice => {
                f.write_str("the space has no such device: use the number that add_device returned")
            }
            Self::DeviceRemoved => f.write_str("the device was removed: name another"),
            Self::DoesNotMigrate => f.write_str(
                "pages of that type of device memory do not migrate: name another device",
            ),
            Self::ManagedStack => MigrateError::ManagedStack.fmt(f),
        }
    }
}

impl std::error::Error for HintError {}

impl From<RangeError> for HintError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl From<uhmm_core::error::RangeError> for HintError {
    fn from(error: uhmm_core::error::RangeError) -> Self {
        Self::Range(error.into())
    }
}

fn place(preferred: Option<Preferred>) -> Option<Place> {
    Some(match preferred? {
        Preferred::Ram => Place::Ram,
        Preferred::Device(device) => Place::Device(DeviceId(device)),
    })
}

/// A hint is best effort: what there is no room for is left, and so is what is held or in flight.
fn left(pages: PageRange, done: Result<Migrated, MigrateError>) -> Result<Migrated, HintError> {
    let nothing = Migrated {
        migrated: 0,
        left: pages.len,
    };
    match done {
        Ok(done) => Ok(done),
        Err(MigrateError::Device(AllocError::Removed)) => Err(HintError::DeviceRemoved),
        Err(MigrateError::Device(AllocError::NoSuchDevice) | MigrateError::NoSuchDevice) => {
            Err(HintError::NoSuchDevice)
        }
        Err(MigrateError::Device(AllocError::DoesNotMigrate) | MigrateError::DoesNotMigrate) => {
            Err(HintError::DoesNotMigrate)
        }
        Err(MigrateError::Device(_) | MigrateError::Busy) => Ok(nothing),
        Err(MigrateError::Range(error)) => Err(HintError::Range(error)),
        Err(MigrateError::ManagedStack) => Err(HintError::ManagedStack),
    }
}

impl Space {
    /// Gives a range a hint; returns how many pages have moved, and how many were to and have not. For a
    /// hint that lasts nothing moves.
    ///
    /// [`Hint::Prefetch`], [`Hint::WillNeed`] and [`Hint::DoNotNeed`] call into devices, and end when they
    /// have done what they can.
    ///
    /// # Errors
    /// [`HintError`].
    pub fn advise(&self, address: usize, len: usize, hint: Hint) -> Result<Migrated, HintError> {
        match hint {
            Hint::Prefer(place) => {
                self.check_place(place)?;
                let preferred = Some(match place {
                    Place::Ram => Preferred::Ram,
                    Place::Device(DeviceId(device)) => Preferred::Device(device),
                });
                self.keep(address, len, |was| Hints { preferred, ..was })
            }
            Hint::NoPreference => self.keep(address, len, |was| Hints {
                preferred: None,
                ..was
            }),
            Hint::AccessedBy(device) => {
                self.check_device(device)?;
                self.keep(address, len, |was| Hints {
                    accessed_by: was.accessed_by | 1 << device.0,
                    ..was
                })
            }
            Hint::NotAccessedBy(device) => {
                let known = self.core().memory_type(device.0);
                known.ok_or(HintError::NoSuchDevice)?;
                self.keep(address, len, |was| Hints {
                    accessed_by: was.accessed_by & !(1 << device.0),
                    ..was
                })
            }
            Hint::ReadMostly | Hint::NotReadMostly => self.keep(address, len, |was| Hints {
                read_mostly: hint == Hint::ReadMostly,
                ..was
            }),
            Hint::Prefetch(place) => {
                place.map_or(Ok(()), |place| self.check_place(place))?;
                self.follow(address, len, |pages, preferred| {
                    let to = place.or(preferred).unwrap_or(Place::Ram);
                    left(pages, self.migrate_pages(pages, to, true))
                })
            }
            Hint::WillNeed => self.follow(address, len, |pages, preferred| match preferred {
                Some(to @ Place::Device(_)) => left(pages, self.migrate_pages(pages, to, false)),
                _ => {
                    let _signals = Blocked::all();
                    Ok(self.core().will_need(pages, &mut Scratch::default())?)
                }
            }),
            Hint::DoNotNeed => {
                let pages = self.pages(address, len, false)?;
                self.check_stack().map_err(|_| HintError::ManagedStack)?;
                let _signals = Blocked::all();
                Ok(self.core().do_not_need(pages, &mut Scratch::default())?)
            }
        }
    }

    /// Frees a range eagerly: its contents are not needed any more, and are dropped at once, in RAM and
    /// on devices. It reads as zero then. It stays mapped, with the hints that it has.
    ///
    /// # Errors
    /// [`HintError::Range`].
    ///
    /// # Safety
    /// Nothing in the range is borrowed, as a reference or a slice.
    pub unsafe fn free_eagerly(&self, address: usize, len: usize) -> Result<(), HintError> {
        let pages = self.pages(address, len, false)?;
        if !self.core().mmu().space_range().covers(pages) {
            self.core().inside()?.discard(pages)?;
            self.core().wake_reclaimer();
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let dropped = unsafe { self.memory().discard(address, len) };
        // What devices have of it is freed by the reclaimer.
        self.core().wake_reclaimer();
        dropped.map_err(|error| {
            HintError::Range(match error.kind() {
                ErrorKind::WouldBlock => RangeError::Forking,
                ErrorKind::Deadlock => RangeError::InNotifier,
                ErrorKind::ResourceBusy => RangeError::Pinned,
                _ => RangeError::Hole,
            })
        })
    }

    /// The hints that last of the page at `address`.
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn hints_at(&self, address: usize) -> Result<Vec<Hint>, RangeError> {
        let page = self
            .pages(address & !(PAGE_SIZE - 1), PAGE_SIZE, false)?
            .start;
        let Hints {
            read_mostly,
            preferred,
            accessed_by,
        } = self.core().hints(page);
        let devices = (0..8).filter(|device| accessed_by >> device & 1 != 0);
        let accessed = devices.map(|device| Hint::AccessedBy(DeviceId(device)));
        let read = read_mostly.then_some(Hint::ReadMostly);
        let prefer = place(preferred).map(Hint::Prefer);
        Ok(prefer.into_iter().chain(accessed).chain(read).collect())
    }

    /// A hint that lasts.
    fn keep(
        &self,
        address: usize,
        len: usize,
        change: impl Fn(Hints) -> Hints,
    ) -> Result<Migrated, HintError> {
        let pages = self.pages(address, len, false)?;
        self.memory().hint(pages, change)?;
        Ok(Migrated::default())
    }

    /// A hint that is followed at once: does `work` for each part of a range with one preference, if it can
    /// still be followed.
    fn follow(
        &self,
        address: usize,
        len: usize,
        work: impl Fn(PageRange, Option<Place>) -> Result<Migrated, HintError>,
    ) -> Result<Migrated, HintError> {
        let pages = self.pages(address, len, true)?;
        self.check_stack().map_err(|_| HintError::ManagedStack)?;
        let mut sum = Migrated::default();
        let runs = self.core().inside()?.hints(pages)?;
        for (piece, hints) in runs {
            let preferred = place(hints.preferred);
            let done = work(
                piece,
                preferred.filter(|&place| self.check_place(place).is_ok()),
            )?;
            sum.migrated += done.migrated;
            sum.left += done.left;
        }
        Ok(sum)
    }

    fn check_device(&self, DeviceId(device): DeviceId) -> Result<(), HintError> {
        self.core()
            .memory_type(device)
            .ok_or(HintError::NoSuchDevice)?;
        if self.core().is_removed(device) {
            return Err(HintError::DeviceRemoved);
        }
        Ok(())
    }

    /// Whether pages can go to a place at all.
    fn check_place(&self, place: Place) -> Result<(), HintError> {
        let Place::Device(device) = place else {
            return Ok(());
        };
        self.check_device(device)?;
        match self.core().memory_type(device.0) {
            Some(memory) if memory.migrates() => Ok(()),
            _ => Err(HintError::DoesNotMigrate),
        }
    }
}

impl Span {
    /// Gives the pages that the span touches a hint: see [`Space::advise`].
    ///
    /// # Errors
    /// [`HintError`].
    pub fn advise(&self, hint: Hint) -> Result<Migrated, HintError> {
        let pages = self.pages();
        self.space().advise(pages.address(), pages.len(), hint)
    }
}

impl Region {
    /// Gives all of it a hint: see [`Space::advise`]; for a part, give it to that part's
    /// [span](Region::range).
    ///
    /// # Errors
    /// [`HintError`].
    pub fn advise(&self, hint: Hint) -> Result<Migrated, HintError> {
        self.span().advise(hint)
    }

    /// Drops the contents of some of its bytes at once, in RAM and on devices; they read as zero then. They
    /// must begin and end on a page (4096 bytes).
    ///
    /// # Errors
    /// [`HintError`].
    pub fn free_eagerly(&mut self, bytes: impl RangeBounds<usize>) -> Result<(), HintError> {
        let part = self.range(bytes).map_err(HintError::Bounds)?;
        // SAFETY: the bytes are this region's, which is borrowed mutably.
        unsafe { self.space().free_eagerly(part.address(), part.len()) }
    }
}
