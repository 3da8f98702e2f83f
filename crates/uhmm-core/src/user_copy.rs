//! Bytes of any memory of the process, read and written as the kernel does for a system call
//! (`copy_from_user`, `copy_to_user`): an error, and not a signal, where the program could not.
//!
//! The copy is made by the MMU, which stops at a page that it cannot have. If the space manages that page it is
//! brought, with those that follow it, and the copy goes on: so it does not matter whether the engine
//! serves faults that are met inside a system call. For the other pages a look says what is wrong. The
//! buffer at this end may be managed memory too, and is touched before the copy goes on, here, where a
//! fault is like any other.

use crate::addr::{PAGE_SIZE, PageNo, PageRange};
use crate::fault::Scratch;
use crate::foreign::ForeignMemory;
use crate::mirror::{MirrorError, Need, NotifierError, Permissions, RangeFault, in_notifier};
use crate::mmu::Mmu;
use crate::space::Space;
use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};

/// The most pages that are brought at a time: they have to be there together, for a moment.
const BATCH: usize = 64;

/// How long a page is tried that is there and goes again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why bytes were not read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyError {
    /// Bytes that were, before the one that could not be.
    pub done: usize,
    /// What is in the way of that one.
    pub error: MirrorError,
}

/// The bytes at this end of a copy.
enum Buffer<'a> {
    To(&'a mut [u8]),
    From(&'a [u8]),
}

impl Buffer<'_> {
    fn len(&self) -> usize {
        match self {
            Self::To(to) => to.len(),
            Self::From(from) => from.len(),
        }
    }

    fn need(&self) -> Need {
        match self {
            Self::To(_) => Need::READ,
            Self::From(_) => Need::WRITE,
        }
    }

    /// Copies `part` of them; returns how many were.
    fn copy(
        &mut self,
        mmu: &impl ForeignMemory,
        page: PageNo,
        offset: usize,
        part: Range<usize>,
    ) -> usize {
        match self {
            Self::To(to) => mmu.try_read(page, offset, &mut to[part]),
            Self::From(from) => mmu.try_write(page, offset, &from[part]),
        }
    }

    /// Has `part` of them present, as the copy is going to use them.
    fn touch(&mut self, part: Range<usize>) {
        let pages = part.clone().step_by(PAGE_SIZE).chain(part.last());
        match self {
            Self::To(to) => pages.for_each(|at| to[at] = black_box(to[at])),
            Self::From(from) => pages.for_each(|at| _ = black_box(from[at])),
        }
    }
}

impl<M: Mmu> Space<M> {
    /// Reads bytes from `offset` in `page` on, of whatever memory the program may read. `look` says which
    /// pages of a range the space manages, and what the program may do with them. For threads that touch
    /// no managed memory but `to`, and have no mirror's table locked.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn read_bytes(
        &self,
        page: PageNo,
        offset: usize,
        to: &mut [u8],
        look: impl FnMut(PageRange) -> Result<Permissions, MirrorError>,
    ) -> Result<(), CopyError> {
        self.copy_user(page, offset, Buffer::To(to), look)
    }

    /// Writes bytes in the same way.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn write_bytes(
        &self,
        page: PageNo,
        offset: usize,
        from: &[u8],
        look: impl FnMut(PageRange) -> Result<Permissions, MirrorError>,
    ) -> Result<(), CopyError> {
        self.copy_user(page, offset, Buffer::From(from), look)
    }

    fn copy_user(
        &self,
        first: PageNo,
        offset: usize,
        mut buffer: Buffer<'_>,
        mut look: impl FnMut(PageRange) -> Result<Permissions, MirrorError>,
    ) -> Result<(), CopyError> {
        if in_notifier() {
            let error = NotifierError::InNotifier.into();
            return Err(CopyError { done: 0, error });
        }
        let len = buffer.len();
        let place = |done: usize| {
            let at = offset + done;
            (first.plus(at / PAGE_SIZE), at % PAGE_SIZE)
        };
        let mut done = 0;
        // Since when there was no progress; memory for what has to be brought, if anything has.
        let (mut stuck, mut scratch) = (None::<Instant>, None);
        while done < len {
            let (page, offset) = place(done);
            let copied = buffer.copy(&self.mmu, page, offset, done..len);
            done += copied;
            if done == len {
                break;
            }
            if copied > 0 {
                stuck = None;
            }
            let (page, offset) = place(done);
            let failed = |error| CopyError { done, error };
            if stuck.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                return Err(failed(NotifierError::Busy.into()));
            }
            let rest = (offset + len - done).div_ceil(PAGE_SIZE).min(BATCH);
            let scratch = scratch.get_or_insert_with(Scratch::default);
            let (rest, need) = (PageRange::new(page, rest), buffer.need());
            let brought = self.bring_some(rest, need, &mut look, scratch);
            brought.map_err(failed)?;
            buffer.touch(done..len.min(done + rest.bytes()));
        }
        Ok(())
    }

    /// Brings the first of `pages`, and those after it that the space manages too.
    fn bring_some(
        &self,
        pages: PageRange,
        need: Need,
        look: &mut impl FnMut(PageRange) -> Result<Permissions, MirrorError>,
        scratch: &mut Scratch,
    ) -> Result<(), MirrorError> {
        let managed = look(pages)?;
        let here = managed.iter().find(|(run, _)| run.contains(pages.start));
        let end = here.map_or(pages.start.plus(1), |(run, _)| run.end().min(pages.end()));
        let len = (end.0 - pages.start.0) as usize;
        let mut bring = |len| {
            let request = RangeFault::all(PageRange::new(pages.start, len), need);
            self.range_fault(&request, &managed, None, scratch, &mut Vec::new())
        };
        // What is wrong with a later one does not matter yet.
        bring(len).or_else(|_| bring(1)).map(drop)
    }
}
