//! Moving pages by request, with addresses.

use crate::build::Space;
use crate::device_memory::{DeviceId, is_on_managed_stack};
use crate::range::RangeError;
use std::fmt;
use uhmm_core::addr::{DeviceAddr, DevicePage, PageRange};
use uhmm_core::device::Owner;
use uhmm_core::migrate::{Patience, Unmapped};
use uhmm_core::{AllocError, migrate};
use uhmm_linux::mmu::LinuxMmu;
use uhmm_linux::signals::Blocked;

pub use uhmm_core::addr::Place;
pub use uhmm_core::migrate::{
    CopiedTo, Destination, From, Installed, Migrated, Page, Select, Source,
};

/// A migration under way on this machine; see [`uhmm_core::migrate`] for its phases.
pub type Migration<'a, Phase> = migrate::Migration<'a, LinuxMmu, Phase>;

/// Pages that are migrated together: what a touch may have to wait for.
const BATCH: usize = 512;

/// Why a migration could not begin. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrateError {
    /// Something is wrong with the range.
    Range(RangeError),
    /// The space has no such device, or the device no such page.
    NoSuchDevice,
    /// The device's memory is of a type that does not migrate.
    DoesNotMigrate,
    /// The page is in use by others, or in flight, or there is no RAM for it.
    Busy,
    /// The device has no page to give.
    Device(AllocError),
    /// The calling thread's stack is managed memory, which might itself be migrated.
    ManagedStack,
}

impl fmt::Display for MigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(error) => error.fmt(f),
            Self::NoSuchDevice => {
                f.write_str("the space has no such device, or the device no such page")
            }
            Self::DoesNotMigrate => migrate::MigrateError::DoesNotMigrate.fmt(f),
            Self::Busy => migrate::MigrateError::Busy.fmt(f),
            Self::Device(error) => error.fmt(f),
            Self::ManagedStack => f.write_str(
                "this thread's stack is managed memory: call from a thread whose stack is not",
            ),
        }
    }
}

impl std::error::Error for MigrateError {}

impl std::convert::From<RangeError> for MigrateError {
    fn from(error: RangeError) -> Self {
        Self::Range(error)
    }
}

impl std::convert::From<migrate::MigrateError> for MigrateError {
    fn from(error: migrate::MigrateError) -> Self {
        match error {
            migrate::MigrateError::NotManaged => Self::Range(RangeError::Foreign),
            migrate::MigrateError::NoSuchPage => Self::NoSuchDevice,
            migrate::MigrateError::DoesNotMigrate => Self::DoesNotMigrate,
            migrate::MigrateError::Busy => Self::Busy,
            migrate::MigrateError::Forking => Self::Range(RangeError::Forking),
            migrate::MigrateError::InNotifier => Self::Range(RangeError::InNotifier),
        }
    }
}

/// What to migrate: the arguments of [`Space::migrate_vma`].
#[derive(Clone, Copy, Debug)]
pub struct MigrateVma {
    /// The address of the first byte, on a page.
    pub address: usize,
    /// Bytes, a multiple of 4096.
    pub len: usize,
    /// Which kinds of pages.
    pub select: Select,
    /// Of pages on devices: only this owner's. `None`: anybody's.
    pub owner: Option<Owner>,
    /// Of pages on devices: not those of this one, which is where the rest is to go.
    pub except: Option<DeviceId>,
    /// A device page on which the caller holds a reference because it serves a fault on it.
    pub fault_page: Option<(DeviceId, DevicePage)>,
}

impl Space {
    /// Migrates a range, best effort page by page: what is pinned or held is left, and so is what there is
    /// no room for. A page that is in flight, because reclaim or a fault has it in hand, is waited for, for
    /// a moment; what is still in flight then is left. Pages that are at their place already are not
    /// counted, nor are lost ones, and pages of device memory that does not migrate. A large
    /// range is migrated 2 MiB at a time; where a part fails after others have gone, it and what comes
    /// after it is left.
    ///
    /// # Errors
    /// [`MigrateError`], with nothing migrated; [`MigrateError::Device`] when the device has not one
    /// page to give.
    pub fn migrate(&self, address: usize, len: usize, to: Place) -> Result<Migrated, MigrateError> {
        let pages = self.pages(address, len, true)?;
        self.check_stack()?;
        if let Place::Device(DeviceId(device)) = to {
            let memory = self.core().memory_type(device);
            let memory = memory.ok_or(MigrateError::NoSuchDevice)?;
            if !memory.migrates() {
                return Err(MigrateError::DoesNotMigrate);
            }
        }
        self.migrate_pages(pages, to, true)
    }

    /// Migrates pages; without `holes`, what was never touched stays so.
    pub(crate) fn migrate_pages(
        &self,
        pages: PageRange,
        to: Place,
        holes: bool,
    ) -> Result<Migrated, MigrateError> {
        let mut sum = Migrated::default();
        let skips = !holes || to == Place::Ram;
        let next = |at| match skips {
            true => self.core().next_used(at, pages.end()),
            false => Some(at).filter(|&at| at < pages.end()),
        };
        let mut patience = Patience::default();
        let mut after = pages.start;
        while let Some(at) = next(after) {
            // Batches end where 2 MiB do, so that a device can be given blocks of that size.
            let whole = BATCH - at.0 as usize % BATCH;
            let batch = PageRange::new(at, whole.min((pages.end().0 - at.0) as usize));
            let done = match self.migrate_batch(batch, pages, to, holes, &mut patience) {
                // What has gone has gone: the rest is left.
                Err(_) if sum.migrated > 0 => {
                    sum.left += (pages.end().0 - at.0) as usize;
                    break;
                }
                done => done?,
            };
            sum.migrated += done.migrated;
            sum.left += done.left;
            after = batch.end();
        }
        Ok(sum)
    }

    /// Migrates a part of `all` that was asked for.
    fn migrate_batch(
        &self,
        pages: PageRange,
        all: PageRange,
        to: Place,
        holes: bool,
        patience: &mut Patience,
    ) -> Result<Migrated, MigrateError> {
        // A handler may touch what is in hand.
        let _signals = Blocked::all();
        let devices = Select::DEVICE_PRIVATE | Select::DEVICE_COHERENT;
        let mut args = migrate::MigrateVma {
            pages,
            select: devices,
            owner: None,
            except: None,
            fault_page: None,
        };
        let Place::Device(DeviceId(device)) = to else {
            return self
                .core()
                .migrate_vma_again(&args, patience, |mut migration| {
                    migration.to_system();
                    Ok(migration.copy().pages().finalize())
                });
        };
        args.select = Select::SYSTEM | devices;
        args.except = Some(device);
        self.core()
            .migrate_vma_again(&args, patience, |mut migration| {
                migration.spare(all);
                let is_hole = |page: &Page| page.source.from == From::Hole;
                let skipped = if holes { 0 } else { migration.skip_if(is_hole) };
                if migration.selected().any(|page| page.source.migrate) {
                    migration.allocate(device).map_err(MigrateError::Device)?;
                }
                let mut done = migration.copy().pages().finalize();
                done.left -= skipped;
                Ok(done)
            })
    }

    /// Begins a migration of a range that the caller takes through its phases itself, as a driver
    /// does. Until it has ended, this thread must not touch the range, nor may a handler of a signal that
    /// it takes. All of the range must be mapped, and the program have access to it.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn migrate_vma(&self, args: &MigrateVma) -> Result<Migration<'_, Unmapped>, MigrateError> {
        Ok(self.core().migrate_vma(&self.checked(args)?)?)
    }

    /// As [`Space::migrate_vma`], for a driver on a thread of the program: `drive` takes the migration
    /// through its phases, with signals blocked, whose handlers may touch what is in hand. Pages that were
    /// in other hands (reclaim's, a fault's) are waited for, for a moment, and `drive` is called again for
    /// them. Returns the sum of what it returns; a page that stays in other hands is left.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn migrate_vma_with(
        &self,
        args: &MigrateVma,
        mut drive: impl FnMut(Migration<'_, Unmapped>) -> Migrated,
    ) -> Result<Migrated, MigrateError> {
        let args = self.checked(args)?;
        let _signals = Blocked::all();
        let mut patience = Patience::default();
        let mut drive =
            |migration: Migration<'_, _>| Ok::<_, migrate::MigrateError>(drive(migration));
        Ok(self
            .core()
            .migrate_vma_again(&args, &mut patience, &mut drive)?)
    }

    /// Begins a migration of `len` pages of a device from `first` on, wherever they are mapped.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn migrate_device_range(
        &self,
        device: DeviceId,
        first: DevicePage,
        len: usize,
    ) -> Result<Migration<'_, Unmapped>, MigrateError> {
        self.check_stack()?;
        Ok(self.core().migrate_device_range(device.0, first, len)?)
    }

    /// What to migrate, as the core calls it; all of it is mapped, and the program has access to it.
    fn checked(&self, args: &MigrateVma) -> Result<migrate::MigrateVma, MigrateError> {
        let pages = self.pages(args.address, args.len, true)?;
        self.check_stack()?;
        let fault_page = args.fault_page.map(|(device, page)| DeviceAddr {
            device: device.0,
            page,
        });
        Ok(migrate::MigrateVma {
            pages,
            select: args.select,
            owner: args.owner,
            except: args.except.map(|device| device.0),
            fault_page,
        })
    }

    /// Migrates one page of memory that the CPU maps to RAM.
    ///
    /// # Errors
    /// [`MigrateError`]; the page is where it was.
    pub fn migrate_device_coherent_page(&self, at: DeviceAddr) -> Result<(), MigrateError> {
        self.check_stack()?;
        Ok(self.core().migrate_device_coherent_page(at)?)
    }

    /// Whoever holds claims must not fault on managed memory.
    pub(crate) fn check_stack(&self) -> Result<(), MigrateError> {
        if is_on_managed_stack(self.core().mmu()) {
            return Err(MigrateError::ManagedStack);
        }
        Ok(())
    }
}
