//! The table of a mirror, locked, and what its device does by it: reads and writes memory that the CPU
//! maps, and works on pages that it has alone.

use super::MirrorError;
use super::notifier::{Barred, Interval};
use crate::addr::{DeviceAddr, FrameNo, PAGE_SIZE, PageData, PageNo};
use crate::entry::State;
use crate::mmu::Mmu;
use crate::space::Space;
use std::ops::{Deref, DerefMut, Range};
use std::sync::MutexGuard;

/// The table of a mirror, locked: what it says is so for as long as this lives.
pub struct Table<'a, M: Mmu, T> {
    space: &'a Space<M>,
    interval: &'a Interval,
    table: MutexGuard<'a, T>,
    _barred: Barred,
}

/// The slot of the frame of `page`, if the mirror with this interval has it alone.
pub(super) fn alone_in<M: Mmu>(
    space: &Space<M>,
    interval: &Interval,
    page: PageNo,
) -> Option<FrameNo> {
    match space.state(page) {
        State::Exclusive { frame, holder }
            if holder == interval.number
                && interval.pages.contains(page)
                && !interval.is_removed() =>
        {
            Some(frame)
        }
        _ => None,
    }
}

/// Who maps a page for the CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// The space: it stays for as long as the table is locked.
    Space,
    /// Nobody: it is at home in device memory that the CPU maps elsewhere, and its device reads it there.
    Home(DeviceAddr),
    /// Somebody else, who may take it away unseen.
    Others,
}

impl<M: Mmu, T> Deref for Table<'_, M, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.table
    }
}

impl<M: Mmu, T> DerefMut for Table<'_, M, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.table
    }
}

impl<'a, M: Mmu, T> Table<'a, M, T> {
    pub(super) fn new(
        space: &'a Space<M>,
        interval: &'a Interval,
        table: MutexGuard<'a, T>,
    ) -> Self {
        Self {
            space,
            interval,
            table,
            _barred: Barred::new(),
        }
    }

    /// Reads bytes of pages that the table has as mapped by the CPU, from `offset` in `page` on and past
    /// its end where there are more, the way a device reads memory: while the program may be writing to it.
    ///
    /// # Errors
    /// [`MirrorError::NotInTable`]: one of them cannot be, since the CPU does not map it.
    /// [`MirrorError::Gone`]. What comes before it has been read.
    pub fn read(&self, page: PageNo, offset: usize, to: &mut [u8]) -> Result<(), MirrorError> {
        let mmu = &self.space.mmu;
        let mapped = |page| self.mapped_by(page);
        self.runs(page, offset, to.len(), mapped, |by, page, offset, part| {
            let to = &mut to[part];
            match by {
                By::Home(at) => {
                    mmu.read_arena(at, offset, to);
                    to.len()
                }
                By::Space => {
                    mmu.read_mapped(page, offset, to);
                    to.len()
                }
                By::Others => mmu.try_read(page, offset, to),
            }
        })
    }

    /// Writes to pages that the table has as mapped by the CPU and writable.
    ///
    /// # Errors
    /// As [`Table::read`].
    pub fn write(&mut self, page: PageNo, offset: usize, from: &[u8]) -> Result<(), MirrorError> {
        let mmu = &self.space.mmu;
        let mapped = |page| match self.mapped_by(page)? {
            By::Home(_) => Err(MirrorError::NotInTable(page)),
            by => Ok(by),
        };
        self.runs(
            page,
            offset,
            from.len(),
            mapped,
            |by, page, offset, part| {
                let from = &from[part];
                if by == By::Others {
                    return mmu.try_write(page, offset, from);
                }
                mmu.write_mapped(page, offset, from);
                from.len()
            },
        )
    }

    /// Gives the bytes of a page that the device has alone to `with`. See [`Mirror::with_exclusive`].
    ///
    /// [`Mirror::with_exclusive`]: super::Mirror::with_exclusive
    ///
    /// # Errors
    /// [`MirrorError::NotInTable`]: the device does not have it alone (any more).
    pub fn with_exclusive<R>(
        &mut self,
        page: PageNo,
        with: impl FnOnce(&mut T, &mut PageData) -> R,
    ) -> Result<R, MirrorError> {
        // The lock is held: who ends it waits in the notifier, before the frame is touched.
        let frame = alone_in(self.space, self.interval, page);
        let frame = frame.ok_or(MirrorError::NotInTable(page))?;
        let frame = self.space.pool.claim_limbo(frame);
        let (mut with, mut result) = (Some(with), None);
        self.space.mmu.with_frame(&frame, &mut |data| {
            let with = with.take().expect("called once");
            result = Some(with(&mut self.table, data));
        });
        Ok(result.expect("the frame's bytes were given"))
    }

    /// Calls `each` for the bytes of each page that the space maps, and of each run of pages that others
    /// do: first page, offset there, and place in the range. It says how many of them it has done.
    fn runs(
        &self,
        first: PageNo,
        offset: usize,
        len: usize,
        mapped: impl Fn(PageNo) -> Result<By, MirrorError>,
        mut each: impl FnMut(By, PageNo, usize, Range<usize>) -> usize,
    ) -> Result<(), MirrorError> {
        let place = |done: usize| {
            let at = offset + done;
            (first.plus(at / PAGE_SIZE), at % PAGE_SIZE)
        };
        let mut done = 0;
        while done < len {
            let (page, offset) = place(done);
            let by = mapped(page)?;
            let mut end = done + (PAGE_SIZE - offset);
            while by == By::Others && end < len && mapped(place(end).0) == Ok(by) {
                end += PAGE_SIZE;
            }
            let part = done..end.min(len);
            done += each(by, page, offset, part.clone());
            if done < part.end {
                return Err(MirrorError::Gone(place(done).0));
            }
        }
        Ok(())
    }

    /// A table that was told of everything has no page that is not mapped. One that is in somebody's
    /// hands is mapped still: they wait in the notifier for the lock that we hold. One that the space
    /// does not serve stays so for as long as we hold it: who adopts it tells us first.
    fn mapped_by(&self, page: PageNo) -> Result<By, MirrorError> {
        let space = self.space;
        if !self.interval.pages.contains(page) {
            return Err(MirrorError::NotInTable(page));
        }
        if !space.mmu.manages(page) {
            return Ok(By::Others);
        }
        match space.state(page) {
            State::System { .. } | State::Coherent(_) => Ok(By::Space),
            State::Migrating if space.is_present(page) => Ok(By::Space),
            State::Private(at) if space.device(at.device).memory_type().is_mapped() => {
                Ok(By::Home(at))
            }
            // Something else is mapped over a part of the space.
            State::None if space.is_present(page) => Ok(By::Others),
            _ => Err(MirrorError::NotInTable(page)),
        }
    }
}
