//! A space on the simulated MMU with the device in it, and a program that touches its memory.

use super::witness::Witness;
use super::{Make, SLACK};
use crate::Oracle;
use std::fmt::Display;
use std::time::{Duration, Instant};
use uhmm_core::addr::{PageNo, PageRange};
use uhmm_core::device::{Device, Owner};
use uhmm_core::entry::State;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::migrate::{MigrateVma, Select};
use uhmm_core::stats::MAX_DEVICES;
use uhmm_core::{AllocError, MIN_BUDGET_PAGES, Space};
use uhmm_sim::{Fault, SimMmu};

/// The number of the device that is judged.
pub(super) const DEVICE: u8 = 0;
/// Pages that the program uses. They fit in RAM: what goes to the device was sent there.
pub(super) const PAGES: usize = 160;
/// How long anything may take. Only what never ends takes so long.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

const BASE: PageNo = PageNo(1 << 20);
const ON_DEVICES: [Select; 2] = [Select::DEVICE_PRIVATE, Select::DEVICE_COHERENT];

/// See the module's head.
pub(super) struct World {
    /// The rule that is checked.
    pub rule: &'static str,
    pub space: Space<SimMmu>,
    pub device: Witness,
    pub oracle: Oracle,
    empty_bytes: u64,
}

pub(super) fn range(first: usize, len: usize) -> PageRange {
    PageRange::new(BASE.plus(first), len)
}

impl World {
    pub fn new(make: Make<'_>, rule: &'static str) -> Self {
        let device = Witness::new(make());
        let empty_bytes = device.stored_bytes();
        let all = range(0, PAGES);
        let mmu = SimMmu::new(all, MIN_BUDGET_PAGES);
        let devices: Vec<Box<dyn Device>> = vec![Box::new(device.clone())];
        let space = match Space::new(mmu, all, MIN_BUDGET_PAGES, devices) {
            Ok(space) => space,
            Err(error) => panic!("a space takes the device: {error}"),
        };
        assert!(
            device.chunks() == 1,
            "a new device has memory for its first chunk"
        );
        Self {
            rule,
            space,
            device,
            oracle: Oracle::new(PAGES as u64, PAGES),
            empty_bytes,
        }
    }

    /// A world whose program has written all of its pages.
    pub fn written(make: Make<'_>, rule: &'static str) -> Self {
        let world = Self::new(make, rule);
        (0..PAGES).for_each(|page| world.write(page));
        world
    }

    /// A rule is broken: the device's first complaint says more than what came of it later.
    pub fn fail(&self, what: impl Display) -> ! {
        let rule = self.rule;
        match self.device.complaint() {
            Some(complaint) => panic!("{complaint}; in a space, {rule}: {what}"),
            None => panic!("in a space, {rule}: {what}"),
        }
    }

    pub fn expect<T, E: Display>(&self, what: &str, result: Result<T, E>) -> T {
        result.unwrap_or_else(|error| self.fail(format_args!("{what}: {error}")))
    }

    pub fn assert(&self, holds: bool, what: impl Display) {
        if !holds {
            self.fail(what);
        }
    }

    pub fn state(&self, page: usize) -> State {
        self.space.state(BASE.plus(page))
    }

    /// How many pages of the program are on each device.
    pub fn on_devices(&self) -> [usize; MAX_DEVICES] {
        self.space.usage(range(0, PAGES)).devices
    }

    pub fn on_device(&self) -> usize {
        self.on_devices()[usize::from(DEVICE)]
    }
}

/// What the program does.
impl World {
    /// Touches a page as a CPU does: again after each fault.
    pub fn touch(
        &self,
        page: usize,
        kind: Access,
        access: impl Fn(&SimMmu, PageNo) -> Result<(), Fault>,
    ) {
        let (mut scratch, begin) = (None, Instant::now());
        loop {
            let met = match access(self.space.mmu(), BASE.plus(page)) {
                Ok(()) => return,
                Err(Fault::Missing) => kind,
                Err(Fault::Tracked) => Access::Tracked,
                Err(Fault::Poisoned) => self.fail(format_args!("page {page} is lost")),
                Err(fault) => self.fail(format_args!("page {page} is {fault:?}")),
            };
            self.assert(
                begin.elapsed() < PATIENCE,
                format_args!("the touch of page {page} does not end"),
            );
            let scratch = scratch.get_or_insert_with(Scratch::default);
            self.space.fault(BASE.plus(page), met, scratch);
        }
    }

    /// Writes the next content of `page`.
    pub fn write(&self, page: usize) {
        self.touch(page, Access::Write, |mmu, at| {
            mmu.touch_write(at, |data| self.oracle.write(page, data))
        });
    }

    /// Compares every byte of `page`.
    pub fn check(&self, page: usize) {
        self.touch(page, Access::Read, |mmu, at| {
            let found = mmu.touch_read(at)?;
            match self.oracle.compare(page, &found) {
                Ok(()) => Ok(()),
                Err(mismatch) => self.fail(mismatch),
            }
        });
    }

    pub fn check_all(&self) {
        (0..PAGES).for_each(|page| self.check(page));
    }

    /// Writes to every third page: what is on the device of them is old from then on.
    pub fn write_some(&self) {
        (0..PAGES).step_by(3).for_each(|page| self.write(page));
    }

    pub fn discard(&self, first: usize, len: usize) {
        let inside = self.expect("the space is open", self.space.inside());
        self.expect("pages are dropped", inside.discard(range(first, len)));
        (first..first + len).for_each(|page| self.oracle.discard(page));
    }
}

/// What drivers do.
impl World {
    pub fn args(&self, first: usize, len: usize, select: Select) -> MigrateVma {
        MigrateVma {
            pages: range(first, len),
            select,
            owner: None,
            except: None,
            fault_page: None,
        }
    }

    /// Migrates what is selected to `device`; returns how many pages went there.
    pub fn migrate(&self, args: &MigrateVma, device: u8) -> usize {
        let migration = self.space.migrate_vma(args);
        let mut migration = self.expect("the range can be migrated", migration);
        match migration.allocate(device) {
            Ok(_) => migration.copy().pages().finalize().migrated,
            Err(AllocError::Full | AllocError::Suspended | AllocError::DoesNotMigrate) => 0,
            Err(error) => self.fail(error),
        }
    }

    /// Migrates pages in RAM to the device; returns how many went.
    pub fn push(&self, first: usize, len: usize) -> usize {
        self.migrate(&self.args(first, len, Select::SYSTEM), DEVICE)
    }

    /// [`World::push`] of all pages to an empty device, which takes some.
    pub fn push_all(&self) -> usize {
        let went = self.push(0, PAGES);
        self.assert(went > 0, "an empty device takes a page at least");
        went
    }

    /// Migrates pages that are on devices of `owner`, or of anybody, to RAM; returns how many came.
    pub fn pull(&self, first: usize, len: usize, owner: Option<Owner>) -> usize {
        let mut args = self.args(first, len, ON_DEVICES[0] | ON_DEVICES[1]);
        args.owner = owner;
        let migration = self.space.migrate_vma(&args);
        let mut migration = self.expect("the range can be migrated", migration);
        migration.to_system();
        migration.copy().pages().finalize().migrated
    }

    pub fn evict(&self) {
        let evicted = self
            .space
            .evict_device(DEVICE, PATIENCE, &mut Scratch::default());
        self.expect("every page leaves the device", evicted);
    }

    /// The device holds nothing, and says so.
    pub fn assert_empty(&self) {
        self.assert(self.on_device() == 0, "pages are left on the device");
        let (empty, now) = (self.empty_bytes, self.device.stored_bytes());
        self.assert(
            now <= empty + SLACK,
            format_args!("an empty device takes nothing: {empty} bytes when new, now {now}"),
        );
    }

    /// Every byte is right, everything can leave the device, and nothing stays behind.
    pub fn end(self) {
        self.check_all();
        self.evict();
        self.end_empty();
    }

    /// [`World::end`] where the device has been emptied.
    pub fn end_empty(self) {
        self.check_all();
        self.space.check_invariants();
        self.assert_empty();
        self.assert(
            self.device.complaint().is_none(),
            "the core got by, but it should not have to",
        );
    }
}
