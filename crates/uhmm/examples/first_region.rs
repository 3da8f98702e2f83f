//! The first program: a slice four times as large as the RAM it gets, filled, and added up.
//! `cargo run --release -p uhmm --example first_region`
use uhmm::devices::Lz4Device;
use uhmm::{Builder, Event};

const MIB: usize = 1 << 20;
const NUMBERS: usize = 64 * MIB / size_of::<u64>();

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // 16 MiB of RAM, and up to 256 MiB of compressed pages beside it.
    let lz4 = Lz4Device::new(256 * MIB as u64);
    let space = Builder::new(16 * MIB as u64)
        .device(Box::new(lz4))
        .build()?;
    let mut events = space.events();

    // Ordinary memory from here on: what is cold leaves RAM, and comes back when it is touched.
    let mut numbers = space.slice::<u64>(NUMBERS)?;
    for (i, number) in numbers.iter_mut().enumerate() {
        *number = i as u64;
    }
    let sum: u64 = numbers.iter().sum();
    assert_eq!(
        sum,
        NUMBERS as u64 * (NUMBERS as u64 - 1) / 2,
        "a number was lost"
    );
    println!("the sum of {NUMBERS} numbers is {sum}");

    // A part of it has a name, to ask about it or to send it somewhere.
    let half = numbers.range(..NUMBERS / 2)?.usage()?;
    let [ram, device] = [half.ram, half.devices[0]];
    println!("of the first half {ram} pages are in RAM, and {device} on the device");

    let statistics = space.statistics();
    println!("{statistics}");
    assert!(statistics.ram_peak_bytes <= statistics.ram_budget_bytes);
    assert_eq!(statistics.poisoned_pages, 0);

    let mut pushed_out = 0;
    while let Some(told) = events.try_next() {
        match told.event {
            Event::ReclaimEnded { pages } => pushed_out += pages,
            Event::ReclaimBegan => {}
            _ => println!("{told}"),
        }
    }
    println!("{pushed_out} pages were pushed out, each time when RAM was short");
    Ok(())
}
