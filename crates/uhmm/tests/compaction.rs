//! The kernel moves physical pages about (memory compaction) while we move them between mappings.
//!
//! On Linux 6.18 a `UFFDIO_MOVE` that races with it can say that the destination is occupied, by the
//! very page that it has just moved. Taken at its word, that page is lost: it is in the frame pool
//! while its entry says that it is mapped, and reads as zero. Seen with a run of random touches
//! while memory was being compacted, a few times a second.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use uhmm::Builder;
use uhmm::devices::MirrorDevice;

const PAGE: usize = 4096;
const COMPACT: &str = "/proc/sys/vm/compact_memory";

#[test]
fn no_page_is_lost_while_memory_is_compacted() {
    if let Err(error) = std::fs::write(COMPACT, "1") {
        eprintln!("NOT CHECKED: {COMPACT} cannot be written ({error}); run this as root");
        return;
    }
    let space = Builder::new(16 << 20)
        .device(Box::new(MirrorDevice::new(256 << 20)))
        .build()
        .unwrap();
    let mut region = space.region(64 << 20).unwrap();
    let pages = region.len() / PAGE;
    let mut versions = vec![0u64; pages];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let _ = std::fs::write(COMPACT, "1");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let memory = region.as_mut_slice();
        let start = Instant::now();
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut result = Ok(());
        while result.is_ok() && start.elapsed() < Duration::from_secs(6) {
            for _ in 0..1000 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let page = (random % pages as u64) as usize;
                let words = &mut memory[page * PAGE..][..8];
                let seen = u64::from_ne_bytes(words[..8].try_into().unwrap());
                if seen != versions[page] {
                    result = Err((page, seen, versions[page]));
                    break;
                }
                versions[page] += 1 + (random >> 40);
                words[..8].copy_from_slice(&versions[page].to_ne_bytes());
            }
        }
        done.store(true, Relaxed);
        assert_eq!(result, Ok(()), "(page, what it holds, what was written)");
    });
}
