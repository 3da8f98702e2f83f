//! Accounting follows a page wherever it migrates, by range and for the whole space.

use crate::types::{device, range};
use crate::world::{BASE, BUDGET, World, with_reclaimer};
use uhmm_core::addr::PageRange;
use uhmm_core::device::CopyInError;
use uhmm_core::failure::Failure;
use uhmm_core::fault::Scratch;
use uhmm_core::hints::Hints;
use uhmm_core::memory_type::MemoryType;
use uhmm_core::migrate::{MigrateVma, Select};
use uhmm_core::usage::Usage;
use uhmm_testkit::Rng;

/// `count` pages, and all of them on this device.
fn on_device(device: usize, count: usize) -> Usage {
    let mut usage = Usage::default();
    usage.devices[device] = count;
    usage
}

fn in_ram(ram: usize) -> Usage {
    Usage {
        ram,
        ..Usage::default()
    }
}

/// What the ranges say is what the space says.
fn adds_up(world: &World) {
    world.space.check_invariants();
    let all = world.space.usage(range(0, 4 * BUDGET));
    let stats = world.space.stats();
    let on_devices: usize = all.devices.iter().sum();
    let counted: u64 = stats.devices.iter().map(|device| device.pages.get()).sum();
    assert_eq!((on_devices + all.duplicates) as u64, counted);
    assert_eq!(all.duplicates as u64, stats.duplicate_pages.get());
    let ram = stats.ram_bytes.get() as usize / 4096;
    assert!(all.ram <= ram, "{} pages of {ram}", all.ram);
    assert_eq!(ram, world.mmu().resident());
    let mut parts = Usage::default();
    for part in 0..4 {
        let part = world.space.usage(range(part * BUDGET, BUDGET));
        parts.ram += part.ram;
        parts.duplicates += part.duplicates;
        parts.migrating += part.migrating;
        parts.poisoned += part.poisoned;
        for (sum, part) in parts.devices.iter_mut().zip(part.devices) {
            *sum += part;
        }
    }
    assert_eq!(parts, all);
}

#[test]
fn a_pages_charge_follows_it_everywhere() {
    let world = World::new(4 * BUDGET);
    for memory in [MemoryType::Coherent, MemoryType::Generic] {
        world.space.add_device(device(memory)).unwrap();
    }
    let usage = || {
        adds_up(&world);
        world.space.usage(range(8, 8))
    };
    let move_to = |device: u8, select| {
        let args = MigrateVma {
            pages: range(8, 8),
            select,
            owner: None,
            except: None,
            fault_page: None,
        };
        let mut migration = world.space.migrate_vma(&args).unwrap();
        assert_eq!(world.space.usage(range(8, 8)).migrating, 8);
        assert_eq!(migration.allocate(device), Ok(8));
        assert_eq!(migration.copy().pages().finalize().migrated, 8);
    };
    assert_eq!(usage(), Usage::default());
    // Neighbours do not matter.
    world.write_all(0..24);
    assert_eq!(usage(), in_ram(8));
    world.push_out();
    assert_eq!(usage(), on_device(0, 8));
    let inside = world.space.inside().unwrap();
    inside.set_hints(range(8, 8), Hints::READ_MOSTLY).unwrap();
    drop(inside);
    (8..16).rev().for_each(|page| world.check(page));
    let kept = Usage {
        duplicates: 8,
        ..in_ram(8)
    };
    assert_eq!(usage(), kept);
    world.write(9);
    assert_eq!(usage().duplicates, 7);
    move_to(1, Select::SYSTEM);
    assert_eq!(usage(), on_device(1, 8));
    assert_eq!(world.mmu().resident(), 0, "none of it is RAM");
    move_to(0, Select::DEVICE_COHERENT);
    assert_eq!(usage(), on_device(0, 8));
    move_to(1, Select::DEVICE_PRIVATE);
    assert_eq!(usage(), on_device(1, 8));
    let mut scratch = Scratch::default();
    let patience = std::time::Duration::from_secs(9);
    world.space.evict_device(1, patience, &mut scratch).unwrap();
    assert_eq!(usage(), in_ram(8));
    // In limbo it is still RAM.
    world.device.fail_copy_in_after(0, CopyInError::Full);
    world.push_out();
    assert_eq!(usage(), in_ram(8));
    world.device.heal();
    let failed = world.space.memory_failure(BASE.plus(12));
    assert_eq!(failed, Ok(Failure::Poisoned));
    let lost = Usage {
        poisoned: 1,
        ..in_ram(7)
    };
    assert_eq!(usage(), lost);
    world.discard(8, 8);
    assert_eq!(usage(), Usage::default());
    let block = world.space.alloc_device_pages(2, 3).unwrap();
    assert_eq!(world.space.usage(range(0, 4 * BUDGET)).devices[2], 0);
    world.space.map_device_pages(block, BASE.plus(8)).unwrap();
    assert_eq!(usage(), on_device(2, 8));
    world.discard(8, 8);
    assert_eq!(usage(), Usage::default());
    // What was beside it is as it was.
    (0..8).chain(16..24).for_each(|page| world.check(page));
    adds_up(&world);
}

#[test]
fn accounts_add_up_after_anything() {
    for seed in 0..3 {
        let world = World::new(4 * BUDGET);
        let inside = world.space.inside().unwrap();
        inside
            .set_hints(range(0, BUDGET), Hints::READ_MOSTLY)
            .unwrap();
        drop(inside);
        let mut rng = Rng::new(seed);
        for _ in 0..4 {
            with_reclaimer(&world.space, || {
                for _ in 0..2_000 {
                    let page = rng.below(4 * BUDGET as u64 - 8) as usize;
                    match rng.below(16) {
                        0 => world.discard(page, 8),
                        1..6 => world.write(page),
                        _ => world.check(page),
                    }
                }
            });
            adds_up(&world);
        }
        let end = PageRange::new(BASE.plus(4 * BUDGET - 4), 1000);
        let tail = world.space.usage(range(4 * BUDGET - 4, 4));
        assert_eq!(world.space.usage(end), tail, "what is beyond has no pages");
        let outside = PageRange::new(uhmm_core::addr::PageNo(0), 1000);
        assert_eq!(world.space.usage(outside), Usage::default());
        world.discard(0, 4 * BUDGET);
        assert_eq!(world.space.usage(range(0, 4 * BUDGET)), Usage::default());
        adds_up(&world);
    }
}
