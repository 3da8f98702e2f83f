//! Memory that the space does not manage, in plain memory: a map from pages to what is mapped there.

use crate::SimMmu;
use crate::failure::Call;
use crate::mmu::lock;
use crate::pages::Physical;
use std::collections::BTreeMap;
use uhmm_core::addr::{PAGE_SIZE, PageData, PageNo, PageRange};
use uhmm_core::foreign::{Foreign, ForeignMemory, ForeignPage, Refusal};
use uhmm_core::mirror::Permission;
use uhmm_core::mmu::Stop;

/// What a page is mapped as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Zeros, this process's own.
    Private,
    /// Zeros, of whoever maps the same.
    Shared,
    /// A private mapping of a file whose bytes are all this one.
    File(u8),
    /// Reserved huge pages of 2 to this power pages.
    Huge(u8),
}

struct Place {
    mapping: Mapping,
    allowed: Permission,
    page: Option<(Box<PageData>, ForeignPage)>,
    /// A touch of it does not end well.
    refused: Option<Refusal>,
}

impl Place {
    /// Has the page there, as a read or a write would.
    fn populate(&mut self, write: bool) -> Result<&mut PageData, Refusal> {
        let may = self.allowed.read && (self.allowed.write || !write);
        if let Some(refusal) = self.refused.or((!may).then_some(Refusal::Deadly)) {
            return Err(refusal);
        }
        let mapping = self.mapping;
        let (bytes, is) = self.page.get_or_insert_with(|| {
            let bytes = match mapping {
                Mapping::File(byte) => PageData([byte; PAGE_SIZE]),
                _ => PageData::ZERO,
            };
            let is = ForeignPage {
                copied_on_write: matches!(mapping, Mapping::File(_) | Mapping::Private),
                zero: mapping == Mapping::Private,
                order: match mapping {
                    Mapping::Huge(order) => order,
                    _ => 0,
                },
            };
            (Box::new(bytes), is)
        });
        if write {
            (is.copied_on_write, is.zero) = (false, false);
        }
        Ok(bytes)
    }
}

#[derive(Default)]
pub(crate) struct Places(BTreeMap<PageNo, Place>);

/// What the program has, and does with it.
impl SimMmu {
    /// Maps pages that the space does not manage: nothing is there yet.
    pub fn map_foreign(&self, pages: PageRange, mapping: Mapping, allowed: Permission) {
        let place = |page| {
            let place = Place {
                mapping,
                allowed,
                page: None,
                refused: None,
            };
            (page, place)
        };
        lock(&self.foreign).0.extend(pages.iter().map(place));
    }

    /// Says what the program may do with mapped pages.
    pub fn protect_foreign(&self, pages: PageRange, allowed: Permission) {
        let mut foreign = lock(&self.foreign);
        let places = foreign.0.range_mut(pages.start..pages.end());
        places.for_each(|(_, place)| place.allowed = allowed);
    }

    /// Touches of mapped pages are refused from now on, or no more.
    pub fn refuse_foreign(&self, pages: PageRange, refusal: Option<Refusal>) {
        let mut foreign = lock(&self.foreign);
        let places = foreign.0.range_mut(pages.start..pages.end());
        places.for_each(|(_, place)| {
            place.page = None;
            place.refused = refusal;
        });
    }

    /// Unmaps pages, and whatever is in them: they are the space's, or nobody's.
    pub fn unmap_foreign(&self, pages: PageRange) {
        let mut foreign = lock(&self.foreign);
        foreign.0.retain(|page, _| !pages.contains(*page));
    }

    /// The space serves the faults of mapped pages from now on, and what is in them stays.
    pub fn serve_foreign(&self, pages: PageRange) -> Result<(), Stop> {
        for page in pages.iter() {
            let place = lock(&self.foreign).0.remove(&page);
            let place = place.unwrap_or_else(|| panic!("{page:?} is not mapped"));
            if let Some((bytes, _)) = place.page {
                let own: Physical = self.new_page(*bytes, false)?;
                lock(&self.pages).at(page).data = Some(own);
            }
        }
        Ok(())
    }

    /// The program writes to a page.
    ///
    /// # Panics
    /// It may not.
    pub fn write_foreign(&self, page: PageNo, write: impl FnOnce(&mut PageData)) {
        let mut foreign = lock(&self.foreign);
        let place = foreign.0.get_mut(&page).expect("a mapped page");
        write(place.populate(true).expect("a page that may be written to"));
    }

    /// Whether the space does not manage a page. The pages may be locked, and these may not.
    pub(crate) fn is_foreign(&self, page: PageNo) -> bool {
        lock(&self.foreign).0.contains_key(&page)
    }

    /// What the kernel says to whoever wants to move a page that the space does not manage, or to fill it.
    pub(crate) fn check_managed(&self, page: PageNo) -> Result<(), Stop> {
        match self.is_foreign(page) {
            true => Err(Stop::Unmapped),
            false => Ok(()),
        }
    }

    /// What is in a page; `None`: nothing.
    pub fn peek_foreign(&self, page: PageNo) -> Option<PageData> {
        let foreign = lock(&self.foreign);
        let (bytes, _) = foreign.0.get(&page)?.page.as_ref()?;
        Some((**bytes).clone())
    }

    /// Calls `copy` for the part of each page, until one cannot be had; returns how many bytes that is.
    fn try_copy(
        &self,
        first: PageNo,
        offset: usize,
        len: usize,
        write: bool,
        mut copy: impl FnMut(&mut [u8], usize),
    ) -> usize {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let (page, start) = (first.plus(at / PAGE_SIZE), at % PAGE_SIZE);
            let part = start..PAGE_SIZE.min(start + len - done);
            let part_len = part.len();
            let mut pages = lock(&self.pages);
            let mut foreign = lock(&self.foreign);
            let bytes = match foreign.0.get_mut(&page) {
                Some(place) => place.populate(write).ok(),
                // As in the signal engine: nobody serves a fault of the kernel's.
                None if pages.range.contains(page) => pages.at(page).touch(write).ok(),
                None => None,
            };
            let Some(bytes) = bytes else { break };
            copy(&mut bytes.0[part], done);
            done += part_len;
        }
        done
    }
}

impl ForeignMemory for SimMmu {
    fn look(&self, pages: PageRange, each: &mut dyn FnMut(PageRange, Foreign)) -> bool {
        if lock(&self.failures).next(Call::Look, pages.len).is_some() {
            return false;
        }
        let mut runs: Vec<(PageRange, Foreign)> = Vec::new();
        for (&page, place) in lock(&self.foreign).0.range(pages.start..pages.end()) {
            let is = Foreign {
                allowed: place.allowed,
                page: place.page.as_ref().map(|(_, is)| *is),
            };
            match runs.last_mut() {
                Some((run, same)) if run.end() == page && *same == is => run.len += 1,
                _ => runs.push((PageRange::new(page, 1), is)),
            }
        }
        runs.into_iter().for_each(|(run, is)| each(run, is));
        true
    }

    fn populate(&self, pages: PageRange, write: bool) -> Result<(), Refusal> {
        if lock(&self.failures)
            .next(Call::Populate, pages.len)
            .is_some()
        {
            return Err(Refusal::Later);
        }
        let mut foreign = lock(&self.foreign);
        for page in pages.iter() {
            let place = foreign.0.get_mut(&page).ok_or(Refusal::Later)?;
            place.populate(write)?;
        }
        Ok(())
    }

    fn huge(&self, pages: PageRange, each: &mut dyn FnMut(PageRange)) {
        let huge: Vec<_> = lock(&self.huge)
            .iter()
            .filter(|huge| pages.covers(**huge))
            .copied()
            .collect();
        huge.into_iter().for_each(each);
    }

    fn try_read(&self, page: PageNo, offset: usize, to: &mut [u8]) -> usize {
        self.try_copy(page, offset, to.len(), false, |bytes, done| {
            to[done..done + bytes.len()].copy_from_slice(bytes);
        })
    }

    fn try_write(&self, page: PageNo, offset: usize, from: &[u8]) -> usize {
        self.try_copy(page, offset, from.len(), true, |bytes, done| {
            bytes.copy_from_slice(&from[done..done + bytes.len()]);
        })
    }
}
