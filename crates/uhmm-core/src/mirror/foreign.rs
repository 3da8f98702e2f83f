//! What a device may map of memory that the space does not manage: one look at a run of pages, and what has
//! to be brought before the next. [`crate::foreign`] says why that is right.

use super::range_fault::{Mapped, RangeFault};
use super::{MirrorError, NotifierError};
use crate::addr::{PageNo, PageRange};
use crate::foreign::{Foreign, ForeignMemory, Refusal};

/// Pages that are to be brought in one go.
#[derive(Default)]
pub(super) struct Wanted {
    /// Runs of them, and whether they are written to.
    runs: Vec<(PageRange, bool)>,
    /// Why the last ones have not come.
    refusal: Option<Refusal>,
}

impl Wanted {
    fn add(&mut self, page: PageNo, write: bool) {
        match self.runs.last_mut() {
            Some((run, same)) if run.end() == page && *same == write => run.len += 1,
            _ => self.runs.push((PageRange::new(page, 1), write)),
        }
    }

    /// The first of them.
    pub(super) fn first(&self) -> Option<PageNo> {
        Some(self.runs.first()?.0.start)
    }

    /// Brings them; the rest is left for the next round where some do not come.
    ///
    /// # Errors
    /// Those that were tried before cannot come.
    pub(super) fn bring(&mut self, mmu: &impl ForeignMemory) -> Result<(), MirrorError> {
        if let Some(first) = self.first() {
            match self.refusal {
                Some(Refusal::Deadly) => return Err(MirrorError::NoAccess(first)),
                Some(Refusal::Poisoned) => return Err(MirrorError::Poisoned(first)),
                Some(Refusal::Later) | None => {}
            }
        }
        let mut tried = self
            .runs
            .drain(..)
            .map(|(run, write)| mmu.populate(run, write));
        self.refusal = tried.find_map(Result::err);
        Ok(())
    }

    /// What is to be said when there is no more time.
    pub(super) fn too_late(&self, page: PageNo) -> MirrorError {
        match self.refusal {
            Some(Refusal::Later) => MirrorError::NoRam(page),
            _ => NotifierError::Busy.into(),
        }
    }
}

/// A look at pages, in ascending order.
struct Look<'a> {
    request: &'a RangeFault<'a>,
    /// The page that comes next.
    next: PageNo,
    found: &'a mut Vec<Mapped>,
    wanted: &'a mut Wanted,
    /// What is wrong with the first page that cannot be had.
    error: Option<MirrorError>,
}

impl Look<'_> {
    /// Pages up to `end` are not mapped.
    fn holes(&mut self, end: PageNo) {
        while self.next < end {
            let need = self.request.need_of(self.next);
            self.say(Mapped::Error, need.fault.then_some(MirrorError::NoAccess));
        }
    }

    fn see(&mut self, page: PageNo, is: Foreign) {
        let need = self.request.need_of(page);
        let to_write = need.fault && need.write;
        let refused = if need.fault && !is.allowed.read {
            Some(MirrorError::NoAccess as fn(_) -> _)
        } else if to_write && !is.allowed.write {
            Some(MirrorError::NotWritable as fn(_) -> _)
        } else {
            None
        };
        let missing = is.page.is_none_or(|is| to_write && is.copied_on_write);
        if need.fault && refused.is_none() && missing {
            self.wanted.add(page, need.write);
        }
        self.say(mapped(is), refused);
    }

    fn say(&mut self, mapped: Mapped, refused: Option<fn(PageNo) -> MirrorError>) {
        self.found.push(mapped);
        if let Some(refused) = refused {
            self.error.get_or_insert(refused(self.next));
        }
        self.next = self.next.plus(1);
    }
}

fn mapped(is: Foreign) -> Mapped {
    match is.page {
        _ if !is.allowed.read => Mapped::Error,
        None => Mapped::Nothing,
        Some(page) => Mapped::Ram {
            write: is.allowed.write && !page.copied_on_write,
            zero: page.zero,
            order: page.order,
        },
    }
}

/// Looks at `pages`, which the space does not manage: says what a device may map, and which are to be
/// brought for it.
///
/// # Errors
/// [`MirrorError`], of the first page that cannot be had.
pub(super) fn look(
    mmu: &impl ForeignMemory,
    request: &RangeFault<'_>,
    pages: PageRange,
    found: &mut Vec<Mapped>,
    wanted: &mut Wanted,
) -> Result<(), MirrorError> {
    let mut look = Look {
        request,
        next: pages.start,
        found,
        wanted,
        error: None,
    };
    let told = mmu.look(pages, &mut |run, is| {
        look.holes(run.start);
        run.iter().for_each(|page| look.see(page, is));
    });
    if !told {
        return Err(MirrorError::Unseen);
    }
    look.holes(pages.end());
    look.error.map_or(Ok(()), Err)
}
