//! A request looks again at pages that were in other hands.
//!
//! Reclaim has up to a block of pages in hand at a time, and a fault a few: without a second look a
//! request would pass them by, though they are its own a moment later. Nobody waits for a page with claims
//! of its own (the other side may wait for one of those), so the migration ends first; then the missed
//! pages are waited for, with nothing in hand, and what has been let go is migrated by a migration of its
//! own.
//!
//! Both are bounded: each page gets a few more looks, and a request has one [`Patience`] for all pages
//! that are not let go, which may be in the hands of a driver that takes its time.

use super::{MigrateError, MigrateVma, Migrated, Migration, Unmapped};
use crate::addr::{PageNo, PageRange};
use crate::entry::State;
use crate::mmu::Mmu;
use crate::space::Space;
use std::time::{Duration, Instant};

/// How often a page is looked at again. Each look found it let go, and in other hands once more.
const LOOKS: usize = 8;

/// How long a request still waits for pages that are not let go.
#[derive(Clone, Copy, Debug)]
pub struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(Duration::from_millis(100))
    }
}

impl<M: Mmu> Space<M> {
    /// As [`Space::migrate_vma`], and `go` takes the migration through its phases; then again for the
    /// pages that were in other hands, once those have let go. What they do not let go within `patience`
    /// counts as left.
    ///
    /// For threads that have nothing in hand.
    ///
    /// # Errors
    /// [`MigrateError`], and those of `go`: with nothing migrated. Where some pages have gone, the others
    /// are left.
    pub fn migrate_vma_again<E: From<MigrateError>>(
        &self,
        args: &MigrateVma,
        patience: &mut Patience,
        mut go: impl FnMut(Migration<'_, M, Unmapped>) -> Result<Migrated, E>,
    ) -> Result<Migrated, E> {
        let mut migrate = |pages| -> Result<_, E> {
            let mut migration = self.migrate_vma(&MigrateVma { pages, ..*args })?;
            let missed = std::mem::take(&mut migration.hands.missed);
            Ok((go(migration)?, missed))
        };
        let (mut sum, mut missed) = migrate(args.pages)?;
        for _ in 0..LOOKS {
            missed.retain(|&page| self.is_let_go(page, patience));
            let mut again = Vec::new();
            for run in missed.chunk_by(|a, b| a.plus(1) == *b) {
                match migrate(PageRange::new(run[0], run.len())) {
                    Ok((done, missed)) => {
                        sum.migrated += done.migrated;
                        sum.left = sum.left - run.len() + done.left;
                        again.extend(missed);
                    }
                    Err(error) if sum.migrated == 0 => return Err(error),
                    // They count as left already.
                    Err(_) => return Ok(sum),
                }
            }
            if again.is_empty() {
                break;
            }
            missed = again;
        }
        Ok(sum)
    }

    /// Waits for a page in other hands; `false`: the patience is over first.
    fn is_let_go(&self, page: PageNo, patience: &mut Patience) -> bool {
        while self.entries.state(page) == State::Migrating {
            if patience.0.is_zero() {
                return false;
            }
            let start = Instant::now();
            self.entries.wait(page, &self.mmu);
            // A wait that came to something costs nothing.
            if self.entries.state(page) == State::Migrating {
                patience.0 = patience.0.saturating_sub(start.elapsed());
            }
        }
        true
    }
}
