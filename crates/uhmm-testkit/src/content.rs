//! Contents of pages, brought back by their seed.

use uhmm_core::addr::{PAGE_SIZE, PageData};

/// Random numbers that a seed brings back (xorshift64*). Not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`; any seed will do.
    pub fn new(seed: u64) -> Self {
        // Mixed (splitmix64), so that seeds next to each other begin far apart.
        let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((x ^ (x >> 31)).max(1))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// `true` once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`, which is not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Fills `bytes` with random ones.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// What a page looks like to something that compresses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Zeros.
    Zero,
    /// One byte, `u32` or `u64`, repeated.
    Same,
    /// Words of a small vocabulary.
    Text,
    /// Random in one half, the other half zeros, in runs of 16 to 128 bytes.
    Half,
    /// Random.
    Random,
}

impl PageKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Zero, Self::Same, Self::Text, Self::Half, Self::Random];

    /// Fills `page` with content of this kind.
    pub fn fill(self, rng: &mut Rng, page: &mut PageData) {
        match self {
            Self::Zero => page.0.fill(0),
            Self::Same => {
                let value = rng.next_u64();
                let value = match rng.below(3) {
                    0 => (value & 0xff) * 0x0101_0101_0101_0101,
                    1 => (value & 0xffff_ffff) * 0x1_0000_0001,
                    _ => value,
                };
                page.0.as_chunks_mut().0.fill(value.to_le_bytes());
            }
            Self::Text => fill_text(rng, &mut page.0),
            Self::Half => {
                let (mut at, mut random) = (0, true);
                while at < PAGE_SIZE {
                    let end = PAGE_SIZE.min(at + 16 + rng.below(113) as usize);
                    let run = &mut page.0[at..end];
                    if random {
                        rng.fill(run)
                    } else {
                        run.fill(0)
                    }
                    (at, random) = (end, !random);
                }
            }
            Self::Random => rng.fill(&mut page.0),
        }
    }
}

fn fill_text(rng: &mut Rng, page: &mut [u8; PAGE_SIZE]) {
    const WORDS: [&[u8]; 16] = [
        b"the ",
        b"page ",
        b"of ",
        b"memory ",
        b"a ",
        b"device ",
        b"moves ",
        b"to ",
        b"and ",
        b"fault ",
        b"is ",
        b"when ",
        b"touched, ",
        b"frame ",
        b"migrates.\n",
        b"address ",
    ];
    let mut at = 0;
    while at < PAGE_SIZE {
        let word = rng.pick(&WORDS);
        let len = word.len().min(PAGE_SIZE - at);
        page[at..at + len].copy_from_slice(&word[..len]);
        at += len;
        // Numbers keep the text from being all repetition.
        if rng.one_in(8) && at + 9 < PAGE_SIZE {
            page[at..at + 9].copy_from_slice(format!("{:08x} ", rng.next_u64() as u32).as_bytes());
            at += 9;
        }
    }
}

/// Fills `to` with the content of one version of one page. The same three numbers give the same
/// bytes, of any [`PageKind`]; version 0 is zeros, as memory is before anyone writes.
pub fn content(seed: u64, page: u64, version: u32, to: &mut PageData) {
    if version == 0 {
        return to.0.fill(0);
    }
    let mut rng = Rng::new(Rng::new(seed ^ page.rotate_left(24)).next_u64() ^ u64::from(version));
    let kind = rng.pick(&PageKind::ALL);
    kind.fill(&mut rng, to);
}

/// The first byte in which two pages differ.
pub(crate) fn first_difference(a: &PageData, b: &PageData) -> Option<usize> {
    if a.0 == b.0 {
        return None;
    }
    (0..PAGE_SIZE).find(|&i| a.0[i] != b.0[i])
}
