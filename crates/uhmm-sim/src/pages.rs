//! The space: what is mapped where, and what the program sees of it.

use crate::memory::Memory;
use std::collections::BTreeMap;
use uhmm_core::addr::{PageData, PageNo, PageRange};
use uhmm_core::mmu::Stop;

/// What a touch meets instead of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No page is there: for the core's fault handler.
    Missing,
    /// A page is there, but its writes are tracked, and this is one: for the core's fault handler.
    Tracked,
    /// The program may not write here.
    Protected,
    /// The page is lost: SIGBUS.
    Poisoned,
    /// Nothing is mapped here: SIGSEGV.
    Unmapped,
}

/// A physical page.
pub(crate) struct Physical {
    pub bytes: Box<PageData>,
    /// It is memory of an arena, and no RAM.
    pub arena: bool,
}

/// One page of the space. What is said of the place stays when the page in it goes.
#[derive(Default)]
pub(crate) struct Page {
    pub data: Option<Physical>,
    /// Of the page: a write is a fault.
    pub tracked: bool,
    /// Of the page: pins for I/O.
    pub pins: u32,
    /// Of the page: another process maps it too, since a fork.
    pub shared: bool,
    /// Of the place: the program may not write to it.
    pub protected: bool,
    /// Of the place: a touch is a SIGBUS.
    pub poisoned: bool,
    /// Of the place: not mapped.
    pub unmapped: bool,
}

impl Page {
    /// Takes the page out of its place, if the kernel would. It is tracked no longer.
    pub fn take(&mut self) -> Result<Physical, Stop> {
        if self.protected {
            return Err(Stop::Protected);
        }
        if self.data.is_some() && (self.pins > 0 || self.shared) {
            return Err(Stop::Busy);
        }
        let taken = self.data.take().ok_or(Stop::Absent)?;
        self.tracked = false;
        Ok(taken)
    }

    /// Whether the place can be filled, by moving a page to it (`moved`) or with a new one.
    pub fn can_be_filled(&mut self, moved: bool) -> Result<(), Stop> {
        if self.unmapped {
            Err(Stop::Unmapped)
        } else if self.protected && moved {
            Err(Stop::Protected)
        } else if self.data.is_some() || self.poisoned && moved {
            Err(Stop::Present)
        } else {
            // The kernel copies over poison, which is gone then: it is for the core not to do so.
            self.poisoned = false;
            Ok(())
        }
    }

    /// Drops the page and the poison; returns the page if there was one.
    pub fn discard(&mut self) -> Option<Physical> {
        self.pins = 0;
        self.shared = false;
        self.poisoned = false;
        self.tracked = false;
        self.data.take()
    }

    /// Whether a write would wait for the core, which must not make one itself: not to a page that it
    /// has claimed.
    pub fn assert_not_tracked(&self, page: PageNo) {
        assert!(
            !self.tracked,
            "{page:?} is tracked: populating it for writing would wait for itself"
        );
    }

    /// A write comes to the page. One that is shared after a fork is copied first, by the kernel, and the
    /// copy is ordinary memory, whatever the page was.
    pub fn own(&mut self, memory: &mut Memory) {
        if let Some(page) = &mut self.data
            && std::mem::take(&mut self.shared)
            && std::mem::take(&mut page.arena)
        {
            memory.uncharge(true);
            memory.charge(false).expect("memory for a copy");
        }
    }

    /// What the program meets here: memory, or a fault.
    pub fn touch(&mut self, write: bool) -> Result<&mut PageData, Fault> {
        if self.unmapped {
            return Err(Fault::Unmapped);
        }
        if write && self.protected {
            return Err(Fault::Protected);
        }
        if self.poisoned {
            return Err(Fault::Poisoned);
        }
        if write && self.tracked {
            return Err(Fault::Tracked);
        }
        let present = self.data.as_mut().ok_or(Fault::Missing)?;
        Ok(&mut present.bytes)
    }
}

/// All pages of the space that anything is known of.
pub(crate) struct Pages {
    pub range: PageRange,
    map: BTreeMap<PageNo, Page>,
}

impl Pages {
    pub fn new(range: PageRange) -> Self {
        Self {
            range,
            map: BTreeMap::new(),
        }
    }

    /// The page.
    ///
    /// # Panics
    ///
    /// It is outside of the space.
    pub fn at(&mut self, page: PageNo) -> &mut Page {
        assert!(
            self.range.contains(page),
            "{page:?} is outside of the space, {:?}",
            self.range
        );
        self.map.entry(page).or_default()
    }

    /// Those of `pages` that are present, in ascending order.
    pub fn present(&mut self, pages: PageRange) -> impl Iterator<Item = (PageNo, &mut Page)> {
        let present = |(&page, found)| (page, found);
        self.map
            .range_mut(pages.start..pages.end())
            .map(present)
            .filter(|(_, page): &(_, &mut Page)| page.data.is_some())
    }
}
