//! Adopted memory counts towards the budget, by the kernel's own count.

use crate::own::vmas;
use crate::{SOON, World, alone, device, devices, space};
use std::thread;
use std::time::{Duration, Instant};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::memory_type::MemoryType::Private;
use uhmm_linux::abi::pagemap;

/// Bytes in RAM of all that is registered with a userfaultfd: the space, its frames, adopted memory.
fn resident() -> usize {
    let mut bytes = 0;
    for (range, flags) in vmas() {
        if flags.split(' ').any(|flag| flag == "um") {
            let any = pagemap::PRESENT | pagemap::SWAPPED;
            pagemap::scan(range, any, |found, _| bytes += found.len()).unwrap();
        }
    }
    bytes
}

#[test]
fn more_than_the_budget_ends_within_the_budget() {
    let _alone = alone();
    const BUDGET: usize = 1024;
    for (name, device) in devices() {
        if name == "coherent" {
            // Only its driver puts pages there (R13).
            continue;
        }
        let mut world = World::new(space(BUDGET, vec![device]), 8 * BUDGET);
        world.adopt();
        let limit = (BUDGET + BUDGET / 50) * PAGE_SIZE;
        let begin = Instant::now();
        while resident() > limit {
            assert!(begin.elapsed() < SOON, "{name}: {} bytes", resident());
            thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..2 {
            world.check_all();
            world.write_all();
            assert!(resident() <= limit + (1 << 20), "{name}: {}", resident());
        }
        world.release();
        assert!(world.charged() <= BUDGET, "{name}");
        world.check_released();
    }
}

/// What is pushed out is no longer counted anywhere, and comes back without a byte lost, over and over.
#[test]
fn adopting_and_releasing_over_and_over_leaks_nothing() {
    let _alone = alone();
    let (device, mood) = device(Private);
    let mut world = World::new(space(512, vec![device]), 1500);
    for round in 0..30 {
        world.adopt();
        (0..1500)
            .skip(round)
            .step_by(13)
            .for_each(|page| world.write(page));
        world.release();
        assert_eq!(world.on_device(), 0, "round {round}");
        // What is left of blocks stays warm until they are looked at.
        world.push_out();
        assert!(
            world.charged() <= 64,
            "round {round}: {} pages",
            world.charged()
        );
    }
    world.check_released();
    let (stored, freed) = (&mood.copies_in, &mood.frees);
    crate::wait_until("every copy is freed", || {
        use std::sync::atomic::Ordering::SeqCst;
        stored.load(SeqCst) == freed.load(SeqCst)
    });
}
