//! What is in the pages, and the order in which they are touched. Both come back from a number, so
//! nothing has to be kept to check against.
//!
//! A page begins with a *word* of its own; that is what a touch reads or writes. Half of the page
//! is random and half of it zeros, in turns of 64 bytes: a compressor halves it.

use crate::error::Error;
use uhmm_core::addr::PAGE_SIZE;

/// Bytes of a turn.
const TURN: usize = 64;

/// Random numbers (splitmix64). Not for secrets.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

/// The word of `page` in its `version`: never zero.
pub(crate) fn word(page: usize, version: u64) -> u64 {
    Random::new((page as u64) << 24 ^ version).next() | 1
}

fn fill_page(to: &mut [u8], page: usize, version: u64) {
    let mut random = Random::new(!(page as u64));
    for (i, turn) in to.chunks_mut(TURN).enumerate() {
        if i % 2 == 0 {
            for bytes in turn.chunks_exact_mut(8) {
                bytes.copy_from_slice(&random.next().to_le_bytes());
            }
        } else {
            turn.fill(0);
        }
    }
    to[..8].copy_from_slice(&word(page, version).to_le_bytes());
}

/// Fills pages with their content; `version` is that of their words.
pub(crate) fn fill(memory: &mut [u8], version: u64) {
    for (page, to) in memory.chunks_mut(PAGE_SIZE).enumerate() {
        fill_page(to, page, version);
    }
}

/// Checks every byte of what [`fill`] wrote.
pub(crate) fn check(memory: &[u8], version: u64) -> Result<(), Error> {
    let mut expected = [0; PAGE_SIZE];
    let mut wrong = memory.chunks(PAGE_SIZE).enumerate().filter(|(page, data)| {
        fill_page(&mut expected, *page, version);
        *data != expected
    });
    match wrong.next() {
        None => Ok(()),
        Some((page, _)) => Err(Error::WrongContent { page }),
    }
}

/// Checks every byte of pages that have their words, of `version`, and zeros otherwise.
pub(crate) fn check_words(memory: &[u8], version: u64) -> Result<(), Error> {
    let mut expected = [0; PAGE_SIZE];
    let mut wrong = memory.chunks(PAGE_SIZE).enumerate().filter(|(page, data)| {
        expected[..8].copy_from_slice(&word(*page, version).to_le_bytes());
        *data != expected
    });
    match wrong.next() {
        None => Ok(()),
        Some((page, _)) => Err(Error::WrongContent { page }),
    }
}

/// Touches pages in `order`: reads the word of each, which has to be `expected(page)`.
pub(crate) fn read_words(
    memory: &[u8],
    order: &[u32],
    expected: impl Fn(usize) -> u64,
) -> Result<(), Error> {
    for &page in order {
        let page = page as usize;
        if read_word(memory, page) != expected(page) {
            return Err(Error::WrongContent { page });
        }
    }
    Ok(())
}

/// Touches pages in `order`: writes the word of each, of `version`.
pub(crate) fn write_words(memory: &mut [u8], order: &[u32], version: u64) {
    for &page in order {
        let page = page as usize;
        write_word(memory, page, word(page, version));
    }
}

/// Touches pages in `order`: reads the word of each, which has to be that of `version`, and writes
/// that of the next one. The first page of `memory` is page `first`.
pub(crate) fn change_words(
    memory: &mut [u8],
    first: usize,
    order: &[u32],
    version: u64,
) -> Result<(), Error> {
    for &page in order {
        let (at, page) = (page as usize, first + page as usize);
        if read_word(memory, at) != word(page, version) {
            return Err(Error::WrongContent { page });
        }
        write_word(memory, at, word(page, version + 1));
    }
    Ok(())
}

fn read_word(memory: &[u8], page: usize) -> u64 {
    let at = page * PAGE_SIZE;
    let bytes = memory[at..at + PAGE_SIZE].first_chunk().copied();
    u64::from_le_bytes(bytes.unwrap_or_default())
}

fn write_word(memory: &mut [u8], page: usize, word: u64) {
    let at = page * PAGE_SIZE;
    memory[at..at + 8].copy_from_slice(&word.to_le_bytes());
}

/// The pages from the first to the last.
pub(crate) fn in_order(pages: usize) -> Vec<u32> {
    (0..pages as u32).collect()
}

/// All pages, each once, in an order that `seed` brings back.
pub(crate) fn shuffled(pages: usize, seed: u64) -> Vec<u32> {
    let mut order = in_order(pages);
    let mut random = Random::new(seed);
    for i in (1..pages).rev() {
        order.swap(i, (random.next() % (i as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_is_found() {
        let mut memory = vec![0xff; 4 * PAGE_SIZE];
        fill(&mut memory, 3);
        check(&memory, 3).unwrap();
        assert!(check(&memory, 4).is_err());
        memory[2 * PAGE_SIZE + 100] ^= 1;
        let error = check(&memory, 3).unwrap_err();
        assert!(matches!(error, Error::WrongContent { page: 2 }));
    }

    #[test]
    fn words_follow_their_versions() {
        let mut memory = vec![0; 8 * PAGE_SIZE];
        let order = shuffled(8, 1);
        write_words(&mut memory, &order, 0);
        check_words(&memory, 0).unwrap();
        read_words(&memory, &order, |page| word(page, 0)).unwrap();
        change_words(&mut memory, 0, &order, 0).unwrap();
        check_words(&memory, 1).unwrap();
        let half = &mut memory[4 * PAGE_SIZE..];
        change_words(half, 4, &in_order(4), 1).unwrap();
        assert!(change_words(half, 4, &[2], 1).is_err());
        assert!(check_words(&memory, 1).is_err());
    }

    #[test]
    fn a_shuffle_has_every_page_once() {
        let mut order = shuffled(1000, 7);
        assert_ne!(order, in_order(1000));
        assert_ne!(order, shuffled(1000, 8));
        order.sort_unstable();
        assert_eq!(order, in_order(1000));
    }

    #[test]
    fn half_of_a_page_is_zeros() {
        let mut page = [0; PAGE_SIZE];
        fill_page(&mut page, 9, 0);
        let zeros = page.iter().filter(|byte| **byte == 0).count();
        assert!(
            (PAGE_SIZE / 2..PAGE_SIZE * 5 / 9).contains(&zeros),
            "{zeros}"
        );
    }
}
