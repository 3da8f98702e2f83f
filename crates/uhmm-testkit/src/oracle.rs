//! The flat-memory oracle: what each page must hold, known without asking uhmm.

use crate::content::{content, first_difference};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use uhmm_core::addr::PageData;

/// Remembers how often each page was written, and from that knows every byte that must be in it.
///
/// Shared between threads. One page has one writer at a time, and is not checked meanwhile.
#[derive(Debug)]
pub struct Oracle {
    seed: u64,
    versions: Box<[AtomicU32]>,
}

impl Oracle {
    /// An oracle over `pages` pages, never written: all zeros.
    pub fn new(seed: u64, pages: usize) -> Self {
        Self {
            seed,
            versions: (0..pages).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// How many pages it knows.
    pub fn pages(&self) -> usize {
        self.versions.len()
    }

    /// Writes to `page`: fills `to` with its next content, and remembers that it is there.
    pub fn write(&self, page: usize, to: &mut PageData) {
        let version = self.versions[page].fetch_add(1, SeqCst) + 1;
        content(self.seed, page as u64, version, to);
    }

    /// Remembers that `page` was discarded: it is zeros again.
    pub fn discard(&self, page: usize) {
        self.versions[page].store(0, SeqCst);
    }

    /// Fills `to` with what `page` must hold.
    pub fn expected(&self, page: usize, to: &mut PageData) {
        content(self.seed, page as u64, self.versions[page].load(SeqCst), to);
    }

    /// Compares `found` with what `page` must hold.
    ///
    /// # Errors
    ///
    /// They differ; the error says where, and what `found` is if that can be told.
    pub fn compare(&self, page: usize, found: &PageData) -> Result<(), Mismatch> {
        let version = self.versions[page].load(SeqCst);
        let mut expected = PageData::ZERO;
        content(self.seed, page as u64, version, &mut expected);
        let Some(offset) = first_difference(&expected, found) else {
            return Ok(());
        };
        let older = (0..version).rev().take(64).find(|&older| {
            content(self.seed, page as u64, older, &mut expected);
            expected.0 == found.0
        });
        Err(Mismatch {
            seed: self.seed,
            page,
            version,
            offset,
            older,
        })
    }

    /// As [`Oracle::compare`].
    ///
    /// # Panics
    ///
    /// They differ.
    pub fn check(&self, page: usize, found: &PageData) {
        if let Err(mismatch) = self.compare(page, found) {
            panic!("{mismatch}");
        }
    }
}

/// A page does not hold what was written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The oracle's seed.
    pub seed: u64,
    /// The page's number in the oracle.
    pub page: usize,
    /// How often the page was written.
    pub version: u32,
    /// The first byte that differs.
    pub offset: usize,
    /// The older version whose bytes these are, all of them, if they are (one of the last 64).
    pub older: Option<u32>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            page,
            version,
            offset,
            older,
        } = self;
        write!(
            f,
            "page {page} is not its version {version} (seed {seed}): "
        )?;
        match older {
            Some(0) => write!(f, "it is zeros"),
            Some(older) => write!(f, "it is version {older}, old bytes"),
            None => write!(f, "the first wrong byte is at {offset}"),
        }
    }
}

impl std::error::Error for Mismatch {}
