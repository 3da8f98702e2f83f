//! Contents of pages, brought back by their seed.

use uhmm_core::addr::{PAGE_SIZE, PageData};
use uhmm_sim::Rng;

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
