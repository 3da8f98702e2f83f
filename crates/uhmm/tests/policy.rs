//! Policy walks on a real machine: huge pages and NUMA nodes for RAM, and never for devices (R13).

use uhmm::devices::MirrorDevice;
use uhmm::{Builder, Place, PolicyError, RangeError, Space};
use uhmm_core::memory_type::MemoryType;

const HUGE: usize = 2 << 20;
const PAGE: usize = 4096;

fn space() -> Space {
    Builder::new(64 << 20)
        .device(Box::new(MirrorDevice::with_memory(
            16 << 20,
            MemoryType::Coherent,
        )))
        .build()
        .expect("a space")
}

/// KiB of huge pages in the mapping that holds `address`.
fn huge_kib(address: usize) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut here = false;
    for line in smaps.lines() {
        if let Some((range, _)) = line.split_once(' ')
            && let Some((start, end)) = range.split_once('-')
            && let (Ok(start), Ok(end)) = (
                usize::from_str_radix(start, 16),
                usize::from_str_radix(end, 16),
            )
        {
            here = (start..end).contains(&address);
        } else if here && let Some(rest) = line.strip_prefix("AnonHugePages:") {
            return rest.trim().trim_end_matches(" kB").parse().unwrap();
        }
    }
    panic!("no mapping holds {address:#x}");
}

#[test]
fn r13_collapse_makes_huge_pages_of_ram_and_passes_devices_by() {
    let space = space();
    let mut region = space.region(3 * HUGE).unwrap();
    for (i, page) in region.as_mut_slice().chunks_mut(PAGE).enumerate() {
        page.fill(i as u8);
    }
    let address = region.as_ptr() as usize;
    // One page of the middle huge page is a device's.
    let moved = space.migrate(address + HUGE, PAGE, Place::Device(uhmm::DeviceId(0)));
    assert_eq!(moved.unwrap().migrated, 1);
    let applied = space.collapse(address, 3 * HUGE).unwrap();
    assert_eq!(applied.passed, 1, "the device's page is passed by");
    if applied.pages == 0 {
        println!("NOT CHECKED: this machine has no huge page to give, or has them switched off");
    } else {
        assert_eq!(applied.pages % 512, 0);
        assert!(applied.pages <= 2 * 512, "the middle one is not all RAM");
        assert_eq!(huge_kib(address) * 1024, applied.pages * PAGE);
    }
    assert_eq!(space.usage(address, 3 * HUGE).unwrap().devices[0], 1);
    for (i, page) in region.as_slice().chunks(PAGE).enumerate() {
        assert!(page.iter().all(|&byte| byte == i as u8), "page {i}");
    }
    // A huge page migrates like others, in pieces.
    let moved = space.migrate(address, HUGE, Place::Device(uhmm::DeviceId(0)));
    assert_eq!(moved.unwrap().migrated, 512);
    assert!(region.as_slice()[..PAGE].iter().all(|&byte| byte == 0));
}

#[test]
fn r13_balancing_moves_ram_and_passes_devices_by() {
    let space = space();
    let mut region = space.region(64 * PAGE).unwrap();
    region.as_mut_slice().fill(9);
    let address = region.as_ptr() as usize;
    let moved = space.migrate(address, 8 * PAGE, Place::Device(uhmm::DeviceId(0)));
    assert_eq!(moved.unwrap().migrated, 8);
    match space.balance(address, 64 * PAGE, 0) {
        // A page that the kernel has in its hands at the moment stays.
        Ok(applied) => {
            assert_eq!(applied.passed, 8);
            assert!((40..=56).contains(&applied.pages), "{applied:?}");
        }
        Err(error) => println!("NOT CHECKED: no NUMA calls here: {error}"),
    }
    assert!(matches!(
        space.balance(address, 64 * PAGE, 1000),
        Err(PolicyError::Kernel(_))
    ));
    assert!(matches!(
        space.balance(address + 1, PAGE, 0),
        Err(PolicyError::Range(RangeError::Unaligned))
    ));
    assert!(region.as_slice().iter().all(|&byte| byte == 9));
}
