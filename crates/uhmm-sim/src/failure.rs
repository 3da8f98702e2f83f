//! Failures on command: of one call, or at random by a seed.

use crate::rng::Rng;
use std::collections::HashMap;
use uhmm_core::mmu::Stop;

/// A call of the MMU that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`Mmu::table`](uhmm_core::mmu::Mmu::table): answers `None`.
    Table,
    /// [`Mmu::take`](uhmm_core::mmu::Mmu::take).
    Take,
    /// [`Mmu::put`](uhmm_core::mmu::Mmu::put).
    Put,
    /// [`Mmu::relocate`](uhmm_core::mmu::Mmu::relocate).
    Relocate,
    /// [`Mmu::copy`](uhmm_core::mmu::Mmu::copy).
    Copy,
    /// [`Mmu::peek`](uhmm_core::mmu::Mmu::peek): answers `false`.
    Peek,
    /// [`ForeignMemory::look`](uhmm_core::foreign::ForeignMemory::look): answers `false`.
    Look,
    /// [`ForeignMemory::populate`](uhmm_core::foreign::ForeignMemory::populate): not now.
    Populate,
    /// [`Mmu::add_arena`](uhmm_core::mmu::Mmu::add_arena): answers `false`.
    AddArena,
    /// [`Mmu::with_arena`](uhmm_core::mmu::Mmu::with_arena) of an empty slot: answers `false`.
    FillArena,
    /// [`Mmu::track`](uhmm_core::mmu::Mmu::track): answers `false`.
    Track,
}

impl Call {
    /// What the kernel may answer at any time, whatever the core did.
    fn excuses(self) -> &'static [Stop] {
        match self {
            Self::Take => &[Stop::Changing, Stop::Busy],
            Self::Put => &[Stop::Changing, Stop::NoMemory],
            Self::Relocate => &[Stop::Changing, Stop::Busy, Stop::NoMemory],
            Self::Copy => &[Stop::Changing, Stop::NoMemory],
            Self::FillArena => &[Stop::NoMemory],
            // No failure is expected of these in the middle of things.
            Self::Table
            | Self::Peek
            | Self::Look
            | Self::Populate
            | Self::AddArena
            | Self::Track => &[],
        }
    }
}

/// One failure of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How many calls go well first.
    pub after_calls: usize,
    /// How many pages of the call are done before it fails.
    pub after_pages: usize,
    /// Why it fails. Calls that give no reason only fail.
    pub stop: Stop,
}

impl Failure {
    /// The next call fails at its first page.
    pub const fn next(stop: Stop) -> Self {
        Self {
            after_calls: 0,
            after_pages: 0,
            stop,
        }
    }
}

/// What is to fail.
#[derive(Default)]
pub(crate) struct Failures {
    planned: HashMap<Call, Vec<Failure>>,
    random: Option<(Rng, u64)>,
}

impl Failures {
    pub fn plan(&mut self, call: Call, failure: Failure) {
        self.planned.entry(call).or_default().push(failure);
    }

    pub fn at_random(&mut self, seed: u64, one_in: u64) {
        self.random = Some((Rng::new(seed), one_in));
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether a call of `pages` pages that begins now fails, and how.
    pub fn next(&mut self, call: Call, pages: usize) -> Option<(usize, Stop)> {
        let planned = self.planned.entry(call).or_default();
        let due = planned.iter().position(|failure| failure.after_calls == 0);
        planned
            .iter_mut()
            .for_each(|left| left.after_calls = left.after_calls.saturating_sub(1));
        if let Some(due) = due {
            let failure = planned.remove(due);
            return Some((failure.after_pages, failure.stop));
        }
        let (rng, one_in) = self.random.as_mut()?;
        if call.excuses().is_empty() || !rng.one_in(*one_in) {
            return None;
        }
        Some((
            rng.below(pages.max(1) as u64) as usize,
            rng.pick(call.excuses()),
        ))
    }
}
