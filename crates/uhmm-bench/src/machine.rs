//! The machine's memory before the clock starts.

use crate::error::Error;
use crate::floor::Pages;
use uhmm_core::addr::PAGE_SIZE;

const MIB: u64 = 1 << 20;

/// Touches as much memory as the benchmarks will use, and gives it back.
///
/// A virtual machine's memory that was never touched costs several times as much the first time
/// as ever after, which is the worst noise of all. What is given back here is what the kernel hands
/// out next.
pub(crate) fn warm_up(quick: bool) -> Result<(), Error> {
    let needed = if quick { 384 * MIB } else { 1536 * MIB };
    if let Some(free) = free_memory()
        && free < needed
    {
        return Err(Error::Memory { needed, free });
    }
    let pages = (needed as usize / PAGE_SIZE) * 3 / 4;
    let mut memory = Pages::new(pages)?;
    for page in memory.as_mut_slice().chunks_mut(PAGE_SIZE) {
        page[0] = 1;
    }
    Ok(())
}

/// Bytes of memory that could be had without swapping, where the kernel tells.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_how_much_memory_is_free() {
        assert!(free_memory().unwrap() > MIB);
    }
}
