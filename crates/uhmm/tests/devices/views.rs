//! Device views, and the room that a full device makes for them, on real faults.

use crate::{BUDGET, FIRST, SECOND, SHORT, SOON, World, alone, device};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;
use uhmm::device::{CopyInError, CopyOutError, Device, DeviceInfo, DevicePage, PageData};
use uhmm::{BoundsError, PinFlags, Place, RangeError, RemoveError, View, ViewError, Why};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType::{Coherent, Generic, Private};
use uhmm_testkit::Rng;

/// A device that computes where it stores.
struct Computer {
    memory: Box<[Mutex<PageData>]>,
}

#[derive(Clone)]
struct Driver(Arc<Computer>);

impl Computer {
    fn driver(pages: usize) -> Driver {
        let memory = (0..pages).map(|_| Mutex::new(PageData::ZERO)).collect();
        Driver(Arc::new(Self { memory }))
    }

    fn page<R>(&self, page: DevicePage, work: impl FnOnce(&mut PageData) -> R) -> R {
        let memory = &self.memory[page.0 as usize];
        work(&mut memory.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Device for Driver {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("computer", self.0.memory.len() as u32).chunk_pages(512)
    }

    fn copy_in(&self, page: DevicePage, from: &PageData) -> Result<(), CopyInError> {
        self.0.page(page, |to| to.0 = from.0);
        Ok(())
    }

    fn copy_out(&self, page: DevicePage, to: &mut PageData) -> Result<(), CopyOutError> {
        self.0.page(page, |from| to.0 = from.0);
        Ok(())
    }

    fn free(&self, page: DevicePage) {
        // Whoever still reads it there reads nonsense.
        self.0.page(page, |data| data.0.fill(0xdd));
    }

    fn stored_bytes(&self) -> u64 {
        0
    }

    fn address(&self, page: DevicePage) -> Option<u64> {
        Some(self.0.memory[page.0 as usize].lock().ok()?.0.as_ptr() as u64)
    }
}

/// A computer of `on_device` pages, and `pages` pages that go there, or to a large device beside it.
fn computing(on_device: usize, pages: usize) -> (World, Driver) {
    let driver = Computer::driver(on_device);
    let devices = vec![
        Box::new(driver.clone()) as Box<dyn Device>,
        device(Private).0,
    ];
    let world = World::within(crate::space(BUDGET, devices), pages);
    (world, driver)
}

fn view(world: &World, first: usize, len: usize) -> Result<View<'_>, ViewError> {
    let address = world.at(first) as usize;
    // SAFETY: the test touches the range by pointers alone.
    unsafe { world.space.view(address, len * PAGE_SIZE, FIRST) }
}

/// The device's own program: the next content of each page.
fn compute(world: &World, driver: &Driver, view: &View<'_>, first: usize) {
    for (i, at) in view.pages().unwrap().into_iter().enumerate() {
        driver.0.page(at, |data| {
            world.oracle.check(first + i, data);
            world.oracle.write(first + i, data);
        });
    }
}

#[test]
fn what_a_device_computes_is_what_the_program_sees() {
    let _alone = alone();
    let (world, driver) = computing(1024, 600);
    world.write_all();
    let view = view(&world, 0, 600).unwrap();
    assert_eq!((view.address(), view.len()), (world.address, world.len()));
    compute(&world, &driver, &view, 0);
    let touched = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            world.check(77);
            touched.store(true, SeqCst);
        });
        thread::sleep(SHORT);
        assert!(
            !touched.load(SeqCst),
            "a touch waits for the end of the view"
        );
        drop(view);
    });
    world.check_all();
}

#[test]
fn a_small_device_works_on_sixteen_times_its_size() {
    let _alone = alone();
    let (world, driver) = computing(1024, 16 * 1024);
    world.write_all();
    for _ in 0..2 {
        for first in (0..world.pages()).step_by(256) {
            let view = view(&world, first, 256).unwrap();
            compute(&world, &driver, &view, first);
        }
    }
    assert!(world.stats().pages_evicted.get() >= 31 * 1024);
    assert!(world.device(FIRST).pages_peak.get() <= 1024);
    world.check_all();
    let stats = world.stats();
    assert!(stats.ram_peak_bytes.get() <= stats.ram_budget_bytes.get());
}

#[test]
fn a_migration_to_a_full_device_makes_room() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let small = DeviceInfo::new("small", 512).memory(memory);
        let (small, _mood) = crate::TestDevice::boxed(small);
        let world = World::within(crate::space(BUDGET, vec![small, device(Private).0]), 1024);
        for part in 0..4 {
            let part = part * 256..(part + 1) * 256;
            part.clone().for_each(|page| world.write(page));
            let done = world.migrate(part.clone(), Place::Device(FIRST));
            assert_eq!((done.migrated, done.left), (256, 0), "{memory:?}, {part:?}");
        }
        assert_eq!(world.device(FIRST).pages.get(), 512);
        assert_eq!(world.stats().pages_evicted.get(), 512);
        world.check_all();
    }
}

#[test]
fn a_view_of_memory_that_the_cpu_maps_is_shared() {
    let _alone = alone();
    let world = World::new(&[Coherent], 64);
    world.write_all();
    let view = view(&world, 0, 64).unwrap();
    world.write_all();
    let addresses = view.addresses().unwrap();
    for (page, address) in addresses.into_iter().enumerate() {
        assert_eq!(address, world.at(page) as u64);
        // The device is a program of its own, that has the same memory mapped.
        // SAFETY: no other thread touches the page now.
        world
            .oracle
            .write(page, unsafe { &mut *(address as *mut PageData) });
    }
    assert!(view.contiguous().unwrap().is_some());
    world.check_all();
    drop(view);
    assert_eq!(world.migrate(0..64, Place::Ram).migrated, 64);
    world.check_all();
}

#[test]
fn each_bad_use_has_an_error_of_its_own() {
    let _alone = alone();
    let generic = device(Generic).0;
    let devices = vec![Box::new(Computer::driver(512)) as Box<dyn Device>, generic];
    let world = World::within(crate::space(BUDGET, devices), 600);
    let at = |offset: usize| world.address + offset;
    // SAFETY: nothing is written.
    let of = |address, len, device| unsafe { world.space.view(address, len, device) }.err();
    let range = |error| Some(ViewError::Range(error));
    assert_eq!(of(at(0), 0, FIRST), range(RangeError::Empty));
    assert_eq!(of(at(1), PAGE_SIZE, FIRST), range(RangeError::Unaligned));
    assert_eq!(of(PAGE_SIZE, PAGE_SIZE, FIRST), range(RangeError::Foreign));
    assert_eq!(of(at(0), 4 * world.len(), FIRST), range(RangeError::Hole));
    assert_eq!(
        of(at(0), PAGE_SIZE, uhmm::DeviceId(5)),
        Some(ViewError::NoSuchDevice)
    );
    assert_eq!(
        of(at(0), PAGE_SIZE, SECOND),
        Some(ViewError::DoesNotMigrate)
    );
    let (pages, capacity) = (600, 512);
    assert_eq!(
        of(at(0), world.len(), FIRST),
        Some(ViewError::TooLarge { pages, capacity })
    );
    world.space.suspend_device(FIRST, SOON).unwrap();
    assert_eq!(of(at(0), PAGE_SIZE, FIRST), Some(ViewError::Suspended));
    world.space.resume_device(FIRST);
    // More than there is room for beside another view.
    let one = view(&world, 0, 400).unwrap();
    let Err(ViewError::NotResident {
        missing,
        first,
        why,
    }) = view(&world, 400, 200)
    else {
        panic!("400 and 200 pages fit into 512");
    };
    assert_eq!((missing, why), (88, Why::Full));
    assert!(first >= at(400 * PAGE_SIZE), "{first:#x}");
    drop(one);
    drop(view(&world, 400, 200).unwrap());
    world.space.remove_device(FIRST, SOON).unwrap();
    assert_eq!(of(at(0), PAGE_SIZE, FIRST), Some(ViewError::Removed));
    world.check_all();
}

#[test]
fn a_view_kept_past_its_range_says_so_and_harms_nobody() {
    let _alone = alone();
    for memory in [Private, Coherent] {
        let world = World::new(&[memory], 64);
        world.write_all();
        let (address, len) = (world.at(8) as usize, 16 * PAGE_SIZE);
        // SAFETY: as above.
        let kept = unsafe { world.space.view(address, len, FIRST) }.unwrap();
        let memory = world.space.memory();
        // SAFETY: nobody reads there until something else is mapped.
        unsafe { memory.unmap(address, len).unwrap() };
        let gone = ViewError::Gone { pages: 16 };
        assert_eq!(kept.check(), Err(gone));
        assert_eq!(kept.pages().err(), Some(gone));
        assert_eq!(kept.addresses().err(), Some(gone));
        assert!(gone.to_string().contains("release it"));
        // Something else comes to the same address.
        let all = uhmm::memory::Protection::READ | uhmm::memory::Protection::WRITE;
        // SAFETY: nothing is there.
        unsafe { memory.map_at(address, len, all, true).unwrap() };
        (8..24).for_each(|page| world.oracle.discard(page));
        world.check_all();
        world.write_all();
        assert_eq!(kept.check(), Err(gone));
        assert!(world.device(FIRST).pages.get() >= 16);
        drop(kept);
        world.wait_empty_of_views();
        world.check_all();
    }
}

impl World {
    /// What views had is freed by the reclaimer's next tick.
    fn wait_empty_of_views(&self) {
        crate::wait_until("device pages come back", || {
            let usage = self.space.usage(self.address, self.len()).unwrap();
            self.device(FIRST).pages.get() == usage.devices[0] as u64
        });
    }
}

#[test]
fn a_region_lends_itself_to_its_view() {
    let _alone = alone();
    let driver = Computer::driver(1024);
    let space = crate::space(BUDGET, vec![Box::new(driver.clone())]);
    let mut region = space.region(600 * PAGE_SIZE).unwrap();
    region.as_mut_slice().fill(3);
    let part = PAGE_SIZE..3 * PAGE_SIZE;
    let view = region.view(part, FIRST).unwrap();
    assert_eq!(view.device(), FIRST);
    for (at, address) in view
        .pages()
        .unwrap()
        .into_iter()
        .zip(view.addresses().unwrap())
    {
        driver.0.page(at, |data| {
            assert_eq!(data.0.as_ptr() as u64, address);
            data.0.iter_mut().for_each(|byte| *byte += 4);
        });
    }
    // On another thread, as well as on this one.
    thread::scope(|scope| scope.spawn(move || drop(view)).join().unwrap());
    let expected = |i: usize| {
        if (PAGE_SIZE..3 * PAGE_SIZE).contains(&i) {
            7
        } else {
            3
        }
    };
    assert!(
        region
            .as_slice()
            .iter()
            .enumerate()
            .all(|(i, &byte)| byte == expected(i))
    );
    assert_eq!(region.view(.., FIRST).unwrap().len(), 600 * PAGE_SIZE);
    // What a range only touches is in the view too.
    assert_eq!(
        region
            .view(PAGE_SIZE - 1..PAGE_SIZE + 1, FIRST)
            .unwrap()
            .len(),
        2 * PAGE_SIZE
    );
    let bounds = |error| Some(ViewError::Bounds(error));
    let len = region.len();
    let past = BoundsError::PastEnd { end: len + 1, len };
    assert_eq!(region.view(..len + 1, FIRST).err(), bounds(past));
    assert_eq!(region.view(7..7, FIRST).err(), bounds(BoundsError::Empty));
    // A span knows nothing of the compiler, and looks again each time.
    let span = region.range(..PAGE_SIZE).unwrap();
    // SAFETY: the device writes nothing.
    drop(unsafe { span.view(FIRST) }.unwrap());
    drop(region);
    assert_eq!(
        // SAFETY: as above.
        unsafe { span.view(FIRST) }.err(),
        Some(ViewError::Range(RangeError::Hole))
    );
    let mut words = space.slice::<u32>(4096).unwrap();
    words.fill(1);
    let view = words.view(1024..3072, FIRST).unwrap();
    assert_eq!(view.len(), 2 * PAGE_SIZE);
    drop(view);
    assert_eq!(words.iter().sum::<u32>(), 4096);
}

#[test]
fn a_removal_waits_for_a_view() {
    let _alone = alone();
    let (world, driver) = computing(1024, 64);
    world.write_all();
    let view = view(&world, 0, 64).unwrap();
    let Err(RemoveError::StillInUse(found)) = world.space.remove_device(FIRST, SHORT) else {
        panic!("removed under a view");
    };
    assert_eq!(found.held, 64);
    compute(&world, &driver, &view, 0);
    drop(view);
    world.space.remove_device(FIRST, SOON).unwrap();
    world.check_all();
}

#[test]
fn a_pinned_page_is_named_and_the_rest_is_given_back() {
    let _alone = alone();
    let (world, _driver) = computing(1024, 64);
    world.write_all();
    let pin = world
        .space
        .pin_pages(world.at(9) as usize, PAGE_SIZE, PinFlags::default())
        .unwrap();
    let begin = Instant::now();
    let Err(ViewError::NotResident {
        missing,
        first,
        why,
    }) = view(&world, 0, 64)
    else {
        panic!("a pinned page went to the device");
    };
    assert!(begin.elapsed() < SOON);
    assert_eq!((missing, first, why), (1, world.at(9) as usize, Why::Held));
    drop(pin);
    assert_eq!(world.migrate(0..64, Place::Ram).left, 0);
    world.check_all();
}

/// Threads of the program touch pages while others launch kernels on them.
#[test]
fn programs_and_devices_take_turns() {
    const THREADS: usize = 4;
    const EACH: usize = 700;
    let _alone = alone();
    let (world, driver) = computing(1024, THREADS * EACH);
    world.write_all();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (world, driver) = (&world, &driver);
            scope.spawn(move || {
                let mut rng = Rng::new(thread as u64);
                let mut views = 0;
                while views < 60 {
                    let len = 1 + rng.below(200) as usize;
                    let first = thread * EACH + rng.below((EACH - len) as u64) as usize;
                    match rng.below(3) {
                        0 => (first..first + len).for_each(|page| world.write(page)),
                        1 => (first..first + len).for_each(|page| world.check(page)),
                        // Another thread's views may fill the device just now.
                        _ => {
                            if let Ok(view) = view(world, first, len) {
                                compute(world, driver, &view, first);
                                views += 1;
                            }
                        }
                    }
                }
            });
        }
    });
    world.check_all();
}
