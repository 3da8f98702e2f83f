//! Calls of the space from where it must not be called: an error of its own each, nothing has changed,
//! and nobody waits for himself.

use crate::world::{ALL, FIRST, SECOND, SHORT, World, alone, space_with};
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use uhmm::device::{Device, PAGE_SIZE};
use uhmm::devices::MirrorDevice;
use uhmm::migrate::{MigrateVma, Select};
use uhmm::mirror::{Invalidation, Notifier, PageTable};
use uhmm::{DevicePages, Hold, PinFlags, Place, Space};
use uhmm_core::memory_type::MemoryType::{Coherent, Generic, Private};

const PAGES: usize = 16;

/// What came of each call.
type Results = Vec<(&'static str, Option<String>)>;

/// Where calls go to, and what came of each.
struct Calls<'a> {
    space: &'a Space,
    address: usize,
    results: Results,
}

impl Calls<'_> {
    fn add<T, E: Display>(&mut self, name: &'static str, result: Result<T, E>) {
        let error = result.err().map(|error| error.to_string());
        self.results.push((name, error));
    }

    /// Every call of the space that may wait for a page or change one.
    fn all(&mut self) {
        let (space, at, len) = (self.space, self.address, PAGES * PAGE_SIZE);
        let flags = PinFlags::default();
        self.add("pin_pages", space.pin_pages(at, len, flags));
        self.add("get_pages", space.get_pages(at, len, flags));
        self.add("migrate", space.migrate(at, len, Place::Device(FIRST)));
        let args = MigrateVma {
            address: at,
            len,
            select: Select::SYSTEM,
            owner: None,
            except: None,
            fault_page: None,
        };
        self.add("migrate_vma", space.migrate_vma(&args).map(drop));
        let first = FIRST.page(0);
        let range = space.migrate_device_range(FIRST, first.page, 1);
        self.add("migrate_device_range", range.map(drop));
        let coherent = SECOND.page(0);
        let one = space.migrate_device_coherent_page(coherent);
        self.add("migrate_device_coherent_page", one);
        self.add("usage", space.usage(at, len));
        self.add("collapse", space.collapse(at & !((2 << 20) - 1), 2 << 20));
        self.add("balance", space.balance(at, len, 0));
        self.add("memory_failure", space.memory_failure(at));
        let failed = space.device_memory_failure(first);
        self.add("device_memory_failure", failed);
        let device: Box<dyn Device> = Box::new(MirrorDevice::new(1 << 20));
        self.add("add_device", space.add_device(device));
        self.add("remove_device", space.remove_device(FIRST, SHORT));
        self.add("evict_device", space.evict_device(FIRST, SHORT));
        self.add("suspend_device", space.suspend_device(FIRST, SHORT));
        self.add("evict_chunk", space.evict_chunk(FIRST, 0, SHORT));
        self.add("remove_chunk", space.remove_chunk(FIRST, 0, SHORT));
        self.add("add_chunk", space.add_chunk(FIRST, 1));
        let pages = space.alloc_device_pages(FIRST, 0);
        self.add("alloc_device_pages", pages.map(drop));
        let page = space.alloc_device_page_at(FIRST.page(99));
        self.add("alloc_device_page_at", page.map(drop));
        let held = space.hold_device_page(coherent, Hold::default());
        self.add("hold_device_page", held.map(drop));
        let table = PageTable::new(at, len);
        // SAFETY: none is made.
        let mirror = unsafe { space.mirror(at, len, None, table) };
        self.add("mirror", mirror.map(drop));
        let notifier = space.add_notifier(at, len, Box::new(Nobody));
        self.add("add_notifier", notifier.map(drop));
        self.add("region", space.region(len).map(drop));
        let memory = space.memory();
        self.add("map", memory.map(len, ALL));
        // SAFETY: all of them are refused, and nothing refers to the range.
        unsafe {
            self.add("map_at", memory.map_at(at, len, ALL, false));
            let foreign = memory.map_foreign(at, len, || Ok(()));
            self.add("map_foreign", foreign);
            self.add("unmap", memory.unmap(at, len));
            self.add("protect", memory.protect(at, len, ALL));
            self.add("discard", memory.discard(at, len));
            let moved = memory.remap(at, len, 2 * len, true, None, false);
            self.add("remap", moved);
            self.add("wipe_on_fork", memory.wipe_on_fork(at, len, true));
            let leave = memory.leave_out_of_fork(at, len, true);
            self.add("leave_out_of_fork", leave);
        }
        self.add("read_mostly", memory.read_mostly(at, len, true));
        self.add("contents", memory.contents(at, len));
    }

    fn check(self) {
        assert!(self.results.len() >= 35, "{} calls", self.results.len());
        for (name, error) in self.results {
            let refused = error
                .as_ref()
                .is_some_and(|error| error.contains("notifier"));
            assert!(refused, "{name}: {error:?}");
        }
    }
}

struct Nobody;

impl Notifier for Nobody {
    fn invalidate(&self, _what: &Invalidation) {}
}

/// Half of it on a device, half in RAM; and a space that has what each call needs.
fn world() -> World {
    let world = World::new(&[Private, Coherent, Generic], PAGES);
    world.write_all();
    world.migrate(0..4, Place::Device(FIRST));
    world.migrate(4..8, Place::Device(SECOND));
    world
}

fn is_what_it_was(world: &World) {
    world.check_all();
    world.write_all();
    world.send(Place::Device(FIRST));
    world.send(Place::Ram);
    world.check_all();
    world.is_at_rest();
}

/// Calls back into the space, and writes down what comes of it.
struct Caller {
    space: Space,
    address: usize,
    results: Arc<Mutex<Results>>,
}

impl Notifier for Caller {
    fn invalidate(&self, _what: &Invalidation) {
        let mut calls = Calls {
            space: &self.space,
            address: self.address,
            results: Vec::new(),
        };
        calls.all();
        *self.results.lock().unwrap() = calls.results;
    }
}

#[test]
fn a_notifier_that_calls_the_space_is_refused() {
    let _alone = alone();
    let world = world();
    let results = Arc::default();
    let caller = Caller {
        space: world.space.clone(),
        address: world.address,
        results: Arc::clone(&results),
    };
    let (address, len) = (world.address, world.len());
    let notifier = world.space.add_notifier(address, len, Box::new(caller));
    let changes: [(&str, &dyn Fn()); 3] = [
        ("in a migration", &|| {
            assert_eq!(world.migrate(12..14, Place::Device(FIRST)).migrated, 2);
        }),
        ("in a fault", &|| world.check(12)),
        ("in a call of the program", &|| {
            world.protect(0..PAGES, ALL).unwrap();
        }),
    ];
    for (_where, change) in changes {
        change();
        let calls = Calls {
            space: &world.space,
            address,
            results: std::mem::take(&mut *results.lock().unwrap()),
        };
        calls.check();
    }
    drop(notifier);
    is_what_it_was(&world);
}

/// The same holds for a thread that has a table locked: a notifier may wait for it.
#[test]
fn who_has_a_table_locked_is_refused() {
    let _alone = alone();
    let world = world();
    let (mirror, other) = (world.mirror(), world.mirror());
    let table = mirror.lock().unwrap();
    let mut calls = Calls {
        space: &world.space,
        address: world.address,
        results: Vec::new(),
    };
    calls.all();
    calls.add("lock", mirror.lock().map(drop));
    calls.add("lock of another", other.lock().map(drop));
    let snapshot = mirror.snapshot(world.address, PAGE_SIZE);
    calls.add("snapshot", snapshot);
    let read = other.read(world.address, &mut [0]);
    calls.add("read", read);
    let alone = mirror.make_exclusive(world.address, PAGE_SIZE, |_, _| ());
    calls.add("make_exclusive", alone);
    let alone = mirror.exclusively(world.address, |_, _| ());
    calls.add("exclusively", alone);
    drop(table);
    calls.check();
    drop(mirror.lock().unwrap());
    drop((mirror, other));
    is_what_it_was(&world);
}

/// What is given back is given back, also there.
#[test]
fn what_a_driver_has_is_given_back_with_a_table_locked() {
    let _alone = alone();
    let world = world();
    let mirror = world.mirror();
    let pin = world
        .space
        .pin_pages(world.at(8), PAGE_SIZE, PinFlags::default());
    let pages: DevicePages<'_> = world.space.alloc_device_pages(FIRST, 1).unwrap();
    let coherent = world.state(4).device_page().unwrap();
    let held = world.space.hold_device_page(coherent, Hold::default());
    let region = world.space.region(PAGE_SIZE).unwrap();
    let table = mirror.lock().unwrap();
    drop((pin, pages, held));
    drop(table);
    drop((mirror, region));
    is_what_it_was(&world);
}

/// A space outlives a mirror of it that outlives its region; all of it ends.
#[test]
fn spaces_end_after_their_mirrors() {
    let _alone = alone();
    for _ in 0..3 {
        let space = space_with(&[Private]);
        let region = space.region(PAGES * PAGE_SIZE).unwrap();
        let (address, len) = (region.as_ptr() as usize, region.len());
        // SAFETY: no device works there.
        let mirror = unsafe { space.mirror(address, len, None, PageTable::new(address, len)) };
        drop(region);
        drop(mirror);
    }
}
