//! The lz4 device obeys the rules of devices, and takes no more memory than it should.

use std::time::Instant;
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{CopyInError, Device};
use uhmm_lz4::Lz4Device;
use uhmm_testkit::{PageKind, Rng, Shared, conformance};

const MIB: u64 = 1 << 20;

fn make(kind: PageKind, seed: u64) -> PageData {
    let mut page = PageData::ZERO;
    kind.fill(&mut Rng::new(seed), &mut page);
    page
}

/// A page of which the first `random` bytes are random and the rest zeros.
fn sized(random: usize, seed: u64) -> PageData {
    let mut page = PageData::ZERO;
    Rng::new(seed).fill(&mut page.0[..random]);
    page
}

#[track_caller]
fn assert_holds(device: &Lz4Device, page: u32, expected: &PageData) {
    let mut found = PageData([0xa5; _]);
    device.copy_out(DevicePage(page), &mut found).unwrap();
    assert!(found.0 == expected.0, "page {page}");
}

#[test]
fn conforms() {
    conformance(|| Lz4Device::new(4 * MIB));
}

#[test]
fn conforms_when_small() {
    conformance(|| Lz4Device::new(MIB));
}

#[test]
fn conforms_after_it_was_trimmed() {
    let device = Shared::new(Lz4Device::new(2 * MIB));
    conformance(|| device.clone());
    device.0.trim();
    assert_eq!(device.0.held_bytes(), 0);
    conformance(|| device.clone());
}

#[test]
fn a_large_device_is_made_at_once() {
    let begin = Instant::now();
    let device = Lz4Device::new(1 << 40);
    // To touch a byte for each page of it takes far longer.
    assert!(begin.elapsed().as_millis() < 100);
    assert_eq!(device.info().capacity_pages, 1 << 28);
    assert_eq!((device.stored_bytes(), device.held_bytes()), (0, 0));
}

#[test]
fn every_size_comes_back() {
    let device = Lz4Device::new(64 * MIB);
    let pages: Vec<_> = (0..=4096).map(|size| sized(size, size as u64)).collect();
    for (number, page) in pages.iter().enumerate() {
        device.copy_in(DevicePage(number as u32), page).unwrap();
    }
    for (number, page) in pages.iter().enumerate() {
        assert_holds(&device, number as u32, page);
    }
}

#[test]
fn repeated_values_take_no_memory() {
    let device = Lz4Device::new(0);
    for page in 0..1000 {
        let value = u64::from(page).wrapping_mul(0x0123_4567_89ab_cdef);
        let mut data = PageData::ZERO;
        data.0.as_chunks_mut().0.fill(value.to_ne_bytes());
        device.copy_in(DevicePage(page), &data).unwrap();
        assert_holds(&device, page, &data);
    }
    assert_eq!((device.stored_bytes(), device.held_bytes()), (0, 0));
    assert_eq!(
        device.copy_in(DevicePage(1000), &make(PageKind::Random, 0)),
        Err(CopyInError::Full)
    );
}

#[test]
fn a_page_that_almost_repeats_a_value_is_not_taken_for_one() {
    let device = Lz4Device::new(MIB);
    for byte in [0, 7, 8, 4087, 4088, 4095] {
        let mut data = PageData([7; _]);
        data.0[byte] = 8;
        device.copy_in(DevicePage(0), &data).unwrap();
        assert_holds(&device, 0, &data);
        device.free(DevicePage(0));
    }
}

#[test]
fn capacity_bounds_the_memory_and_is_used() {
    for (kind, least_pages) in [
        (PageKind::Random, 2048),
        (PageKind::Half, 3000),
        (PageKind::Text, 3000),
    ] {
        let device = Lz4Device::new(8 * MIB);
        let pages = (0..)
            .find(|&page| {
                device
                    .copy_in(DevicePage(page), &make(kind, page.into()))
                    .is_err()
            })
            .unwrap();
        assert!(pages >= least_pages, "{pages} pages of {kind:?}");
        assert!(device.held_bytes() <= 8 * MIB && device.stored_bytes() == 8 * MIB);
    }
}

/// What does not fit into any slab of its own size goes into larger slots while there are some.
#[test]
fn room_in_larger_slots_is_used_when_there_is_no_other() {
    let device = Lz4Device::new(MIB);
    let full = (0..)
        .find(|&page| {
            device
                .copy_in(DevicePage(page), &make(PageKind::Random, 1))
                .is_err()
        })
        .unwrap();
    device.free(DevicePage(3));
    let small = sized(200, 1);
    device.copy_in(DevicePage(full), &small).unwrap();
    assert_holds(&device, full, &small);
    device.free(DevicePage(full));
    let large = make(PageKind::Random, 2);
    device.copy_in(DevicePage(3), &large).unwrap();
    assert_holds(&device, 3, &large);
}

/// The typical size of pages wanders, while as many are stored. What is left of each size holds
/// slabs for a while; once it is gone, so are they, and no round is worse than those before.
#[test]
fn memory_does_not_creep_when_sizes_change() {
    const PAGES: u32 = 500;
    let device = Lz4Device::new(64 * MIB);
    let mut rng = Rng::new(1);
    let mut sizes = vec![None; PAGES as usize];
    let mut stored_to_used = Vec::new();
    for round in 0..9 {
        let typical = [500, 1500, 2500][round % 3];
        for step in 0..8 * u64::from(PAGES) {
            let page = rng.below(PAGES.into()) as u32;
            if sizes[page as usize].is_some() {
                device.free(DevicePage(page));
            }
            let size = typical + rng.below(500) as usize;
            device
                .copy_in(DevicePage(page), &sized(size, step))
                .unwrap();
            sizes[page as usize] = Some(size);
        }
        let used: usize = sizes.iter().flatten().sum();
        stored_to_used.push(device.stored_bytes() as f64 / used as f64);
    }
    assert!(
        stored_to_used.iter().all(|&ratio| ratio < 2.0),
        "{stored_to_used:.2?}"
    );
    for (early, late) in stored_to_used[3..6].iter().zip(&stored_to_used[6..]) {
        assert!(*late < early * 1.1, "{stored_to_used:.2?}");
    }

    for (page, size) in sizes.iter().enumerate() {
        if size.is_some() {
            device.free(DevicePage(page as u32));
        }
    }
    assert_eq!(device.stored_bytes(), 0);
    device.trim();
    assert_eq!(device.held_bytes(), 0);
}

/// All memory serves one size, and then all of it another.
#[test]
fn empty_slabs_serve_other_sizes() {
    let device = Lz4Device::new(4 * MIB);
    let mut counts = Vec::new();
    for round in 0..6 {
        let size = [300, 2500, 1200][round % 3];
        let pages = (0..)
            .find(|&page| device.copy_in(DevicePage(page), &sized(size, 9)).is_err())
            .unwrap();
        counts.push(pages);
        (0..pages).for_each(|page| device.free(DevicePage(page)));
        assert_eq!(device.stored_bytes(), 0);
    }
    assert_eq!(counts[..3], counts[3..], "as many fit the second time");
}

#[test]
fn insertions_give_surplus_memory_back() {
    let device = Lz4Device::new(64 * MIB);
    for page in 0..4000 {
        device
            .copy_in(DevicePage(page), &make(PageKind::Half, page.into()))
            .unwrap();
    }
    let peak = device.held_bytes();
    (0..4000).for_each(|page| device.free(DevicePage(page)));
    assert_eq!(
        device.held_bytes(),
        peak,
        "free gives nothing back: it is in the fault path"
    );
    for round in 0..1000 {
        device
            .copy_in(DevicePage(0), &make(PageKind::Half, round))
            .unwrap();
        device.free(DevicePage(0));
    }
    assert!(
        device.held_bytes() <= MIB,
        "{} of {peak} bytes",
        device.held_bytes()
    );
}

/// Threads that store, read and free pages of all sizes, hard against the capacity.
#[test]
fn threads_at_the_limit_neither_lose_pages_nor_memory() {
    const THREADS: u32 = 4;
    let device = &Lz4Device::new(MIB);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut rng = Rng::new(thread.into());
                let mut held: Vec<Option<PageData>> = vec![None; 300];
                for step in 0..6_000 {
                    let slot = rng.below(held.len() as u64) as usize;
                    let page = slot as u32 * THREADS + thread;
                    if let Some(data) = held[slot].take() {
                        assert_holds(device, page, &data);
                        device.free(DevicePage(page));
                    } else {
                        let data = sized(rng.below(4097) as usize, step);
                        if device.copy_in(DevicePage(page), &data).is_ok() {
                            held[slot] = Some(data);
                        }
                    }
                    assert!(device.held_bytes() <= MIB);
                }
                for (slot, data) in held.iter().enumerate() {
                    if let Some(data) = data {
                        let page = slot as u32 * THREADS + thread;
                        assert_holds(device, page, data);
                        device.free(DevicePage(page));
                    }
                }
            });
        }
    });
    assert_eq!(device.stored_bytes(), 0);
    device.trim();
    assert_eq!(device.held_bytes(), 0);
}
