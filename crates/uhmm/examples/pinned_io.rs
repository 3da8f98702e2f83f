//! A file is copied past the page cache, through a buffer four times the size of the RAM that it may
//! use. `cargo run --release -p uhmm --example pinned_io`
use std::fs::{File, OpenOptions, remove_file};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;
use uhmm::devices::MirrorDevice;
use uhmm::{Builder, PinFlags};

const MIB: usize = 1 << 20;
const BUFFER: usize = 64 * MIB;
/// What is pinned at a time. It has to fit into RAM, and leave some of it to the rest.
const WINDOW: usize = 4 * MIB;

/// A file without a name, which ends with the process. With `O_DIRECT` the disk itself reads and writes
/// our memory: it must stay where it is meanwhile, which is what a pin promises.
fn file(name: &str, flags: i32) -> io::Result<(File, File)> {
    let path = std::env::temp_dir().join(format!("uhmm-{}-{name}", std::process::id()));
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let plain = options.clone().create_new(true).open(&path)?;
    let direct = options.custom_flags(flags).open(&path);
    remove_file(path)?;
    Ok((plain, direct?))
}

/// What is at a place of the source file: no two places look the same.
fn word(place: usize) -> [u8; 8] {
    (place as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_ne_bytes()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut source, source_direct) = file("source", libc::O_DIRECT)?;
    let (copy, copy_direct) = file("copy", libc::O_DIRECT)?;
    let words: Vec<u8> = (0..BUFFER / 8).flat_map(word).collect();
    source.write_all(&words)?;

    // 16 MiB of RAM. What does not fit goes to the device, which is ordinary memory here.
    let space = Builder::new(BUFFER as u64 / 4)
        .device(Box::new(MirrorDevice::new(BUFFER as u64)))
        .build()?;
    let mut buffer = space.region(BUFFER)?;
    let start = Instant::now();
    for place in (0..BUFFER).step_by(WINDOW) {
        // Pinned to be written to, since a read writes to memory. It is released at the end of the loop,
        // and may go to the device then.
        let mut window = buffer.pin_mut(place..place + WINDOW, PinFlags::default())?;
        source_direct.read_exact_at(&mut window, place as u64)?;
    }
    for place in (0..BUFFER).step_by(WINDOW) {
        // It comes back from the device to be pinned.
        let window = buffer.pin(place..place + WINDOW, PinFlags::default())?;
        copy_direct.write_all_at(&window, place as u64)?;
    }
    let took = start.elapsed();

    let mut found = vec![0; BUFFER];
    copy.read_exact_at(&mut found, 0)?;
    assert!(found == words, "the copy is not what the source is");
    let statistics = space.statistics();
    let peak = statistics.ram_peak_bytes as usize / MIB;
    let pins = statistics.pins_acquired;
    assert_eq!(pins, statistics.pins_released, "every pin is released");
    println!(
        "{} MiB copied in {took:.2?} with {peak} MiB of RAM, and {pins} pins",
        BUFFER / MIB
    );
    Ok(())
}
