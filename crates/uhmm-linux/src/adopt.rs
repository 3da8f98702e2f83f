//! Memory that the program has mapped itself, and that is to be the space's for a while.
//!
//! What can be adopted is what every part of the MMU can do its work on: private anonymous memory. All
//! else is refused before anything is done. The facts are the kernel's ([`vmas`]), and hold for as long as
//! the program changes its mappings by way of the space.
//!
//! The order matters. A range is [`adopted`](crate::adopted) first, so that a fault can be told whose it
//! is, and is registered then. At the end pages are let go a few at a time, by who has them claimed:
//! unregistered, *then* woken, *then* taken out of what is adopted. A thread that the kernel puts to sleep
//! just before a range is unregistered sleeps on a fault that nobody may be told of any more: the wake
//! comes after that.

use crate::abi::numa;
use crate::adopted::{Coming, MAX_RANGES, NotAdded};
use crate::mmu::{LinuxMmu, bytes};
use crate::proc_files::ProcError;
use crate::stack;
use crate::vmas::{self, Vma};
use rustix::io::Errno;
use rustix::mm::{self, Advice};
use std::fmt;
use std::ops::Range;
use uhmm_core::addr::{PAGE_SIZE, PageNo, PageRange};

/// Why memory cannot be adopted. Nothing has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Some of it is uhmm's: a space, its frames, its tables, a handler's stack.
    Ours,
    /// Some of it is adopted already.
    Adopted,
    /// Some of it is not mapped.
    Hole,
    /// Some of it may not be read.
    NoAccess,
    /// Some of it may be executed.
    Executable,
    /// Some of it is a file's, a device's or the kernel's.
    NotAnonymous,
    /// Some of it is shared with other processes.
    Shared,
    /// Some of it is made of reserved huge pages (`MAP_HUGETLB`).
    HugeTlb,
    /// Some of it is locked in RAM.
    Locked,
    /// Some of it is a stack that grows by itself.
    Grows,
    /// Some of it is the stack of a thread.
    Stack,
    /// Some of it is left out of children, or is empty there.
    NotInChild,
    /// Some of it is served by another userfaultfd.
    Served,
    /// As many ranges are adopted as can be at a time.
    TooMany,
    /// The space has tables for its own memory alone: its address space was limited.
    TooLarge,
    /// The kernel does not say what is mapped.
    Proc(ProcError),
    /// The kernel does not register it.
    Register(Errno),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "some of the memory is uhmm's own: adopt what the program has mapped",
            Self::Adopted => "some of the memory is adopted already: release that first",
            Self::Hole => "some of the memory is not mapped",
            Self::NoAccess => "some of the memory may not be read: mprotect it first",
            Self::Executable => "some of the memory may be executed: mprotect it first",
            Self::NotAnonymous => {
                "some of the memory is a file's or a device's: only private anonymous memory can be \
                 adopted"
            }
            Self::Shared => {
                "some of the memory is shared with other processes: only private anonymous memory can \
                 be adopted"
            }
            Self::HugeTlb => {
                "some of the memory is of reserved huge pages: map it without MAP_HUGETLB"
            }
            Self::Locked => "some of the memory is locked in RAM: munlock it first",
            Self::Grows => "some of the memory is a stack that grows by itself",
            Self::Stack => {
                "some of the memory is a thread's stack, which goes unseen when the thread ends: use \
                 memory that the program has mapped"
            }
            Self::NotInChild => {
                "some of the memory is not for children: undo that first (MADV_DOFORK, \
                 MADV_KEEPONFORK)"
            }
            Self::Served => {
                "some of the memory is served by another userfaultfd: one program or library may serve \
                 a mapping"
            }
            Self::TooMany => {
                return write!(
                    f,
                    "{MAX_RANGES} ranges are adopted, which is the most: release one first"
                );
            }
            Self::TooLarge => {
                "the memory is too large for this space: raise the limit on virtual memory (ulimit -v \
                 unlimited) before the space is built"
            }
            Self::Proc(error) => return error.fmt(f),
            Self::Register(errno) => {
                return write!(f, "cannot register the memory with userfaultfd: {errno}");
            }
        })
    }
}

impl std::error::Error for Unfit {}

impl From<NotAdded> for Unfit {
    fn from(error: NotAdded) -> Self {
        match error {
            NotAdded::Overlaps => Self::Adopted,
            NotAdded::TooMany => Self::TooMany,
        }
    }
}

impl Vma {
    /// What keeps it from being adopted, if anything does.
    pub fn unfit(&self) -> Option<Unfit> {
        let has = |flags: &[&str]| flags.iter().any(|flag| self.has(flag));
        let is = |wrong, unfit| if wrong { Some(unfit) } else { None };
        let name = self.given_name();
        is(
            name.is_some_and(|name| name.starts_with("uhmm-")),
            Unfit::Ours,
        )
        .or(is(self.has("ht"), Unfit::HugeTlb))
        .or(is(!self.may('p'), Unfit::Shared))
        .or(is(self.is_backed(), Unfit::NotAnonymous))
        .or(is(self.may('x'), Unfit::Executable))
        .or(is(has(&["um", "uw", "ui"]), Unfit::Served))
        .or(is(self.has("lo"), Unfit::Locked))
        .or(is(self.has("gd"), Unfit::Grows))
        .or(is(has(&["dc", "wf"]), Unfit::NotInChild))
    }

    /// Whether the program has asked for huge pages there (`MADV_HUGEPAGE`).
    pub fn wants_huge(&self) -> bool {
        self.has("hg")
    }
}

impl LinuxMmu {
    /// The kernel's mappings in a range, in ascending order. One thread at a time.
    ///
    /// # Errors
    /// [`Unfit::Proc`], [`Unfit::Hole`] if they do not cover the range.
    pub fn mappings(&self, range: &Range<usize>) -> Result<Vec<Vma>, Unfit> {
        let vmas = vmas::in_range(self.files.smaps(), range).map_err(Unfit::Proc)?;
        let mut next = range.start;
        for vma in &vmas {
            if vma.range.start > next {
                return Err(Unfit::Hole);
            }
            next = vma.range.end;
        }
        if next < range.end {
            return Err(Unfit::Hole);
        }
        Ok(vmas)
    }

    /// Those parts of `vmas` that are stacks of threads, which nobody says are unmapped when they are.
    ///
    /// # Errors
    /// [`Unfit::Proc`].
    pub fn stacks_in(&self, vmas: &[Vma]) -> Result<Vec<Range<usize>>, Unfit> {
        // Made to be a stack (Linux 6.7), or kept from huge pages by the program.
        let suspects: Vec<_> = vmas.iter().filter(|vma| vma.has("nh")).collect();
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        let stacks = stack::of_threads().map_err(Unfit::Proc)?;
        let within = |vma: &Vma, stack: &Range<usize>| {
            stack.start.max(vma.range.start)..stack.end.min(vma.range.end)
        };
        let parts = suspects
            .iter()
            .flat_map(|vma| stacks.iter().map(|stack| within(vma, stack)));
        Ok(parts.filter(|part| !part.is_empty()).collect())
    }

    /// The parts of a range that are mapped and served by a userfaultfd, in ascending order.
    ///
    /// # Errors
    /// The kernel does not say what is mapped.
    pub fn served(&self, range: &Range<usize>) -> Result<Vec<Vma>, ProcError> {
        let vmas = vmas::in_range(self.files.smaps(), range)?;
        Ok(vmas.into_iter().filter(|vma| vma.has("um")).collect())
    }

    /// Takes memory that fits for adopted. From inside the gate. No page of it is taken for untouched until
    /// the result is dropped, which is when the core knows of those that are present.
    ///
    /// # Errors
    /// [`Unfit::Adopted`], [`Unfit::TooMany`], [`Unfit::TooLarge`], with nothing done.
    pub fn take_in(&self, range: &Range<usize>) -> Result<Coming<'_>, Unfit> {
        let pages = pages(range);
        if !self.range().covers(pages) {
            return Err(Unfit::TooLarge);
        }
        Ok(self.adopted.add(pages)?)
    }

    /// Registers memory that was taken in: from now on a touch of a missing page is a fault of the space's.
    ///
    /// # Errors
    /// [`Unfit::Served`], [`Unfit::Register`]. A part of it may be registered then, and is to be let go
    /// with the rest.
    pub fn serve(&self, range: Range<usize>) -> Result<(), Unfit> {
        match self.uffd.register(range.clone(), true) {
            Ok(_) => self.keep_the_kernel_away(range),
            Err(Errno::BUSY) => return Err(Unfit::Served),
            Err(errno) => return Err(Unfit::Register(errno)),
        }
        Ok(())
    }

    /// What is adopted, in no order.
    pub fn adopted(&self) -> impl IntoIterator<Item = PageRange> {
        self.adopted.all()
    }

    /// Whether any byte of `range` is adopted.
    pub fn is_adopted(&self, range: &Range<usize>) -> bool {
        self.adopted.overlap(pages(range))
    }

    /// How many of the pages of `range` are in RAM or in the kernel's swap.
    pub fn count_present(&self, range: Range<usize>) -> usize {
        let mut bytes = 0;
        self.scan_present(range, |found| bytes += found.len());
        bytes / PAGE_SIZE
    }

    /// Makes a range of adopted pages begin with `page`, if one goes across it. `false`: there are as many
    /// as can be. From inside the gate.
    #[must_use]
    pub fn cut(&self, page: PageNo) -> bool {
        self.adopted.cut(page)
    }

    /// Lets go of adopted pages, which the caller has claimed, and which are as they are to stay: they are
    /// the program's. `false`: the kernel has no memory to do it now, or there are too many ranges to make
    /// two of one, and nothing has changed. From inside the gate.
    pub fn let_go(&self, pages: PageRange) -> bool {
        if !self.adopted.cut_after(pages) {
            return false;
        }
        let range = bytes(pages);
        match self.uffd.unregister(range.clone()) {
            // Unmapped behind our back: there is nothing to let go of.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(_) => return false,
        }
        self.forget(pages);
        true
    }

    /// Forgets adopted pages, which the caller has claimed, which are not in the middle of a range, and
    /// which are not registered any more: the kernel has unmapped them. From inside the gate.
    pub fn forget(&self, pages: PageRange) {
        // Who fell asleep before that is told of by nobody else.
        let _ = self.uffd.wake(bytes(pages));
        self.adopted.remove(pages);
    }

    /// Registers what is adopted again, in the child of a fork; returns what that is.
    ///
    /// # Errors
    /// What `UFFDIO_REGISTER` returns.
    pub fn register_adopted(&self) -> Result<Vec<PageRange>, Errno> {
        self.adopted.forget_coming();
        let register = |pages| {
            self.uffd.register(bytes(pages), true)?;
            Ok(pages)
        };
        self.adopted.all().into_iter().map(register).collect()
    }

    /// Keeps the kernel's own ways with pages away from memory where frames of devices may be mapped
    /// (R13): it would copy them to RAM to make a huge page, or move them between nodes. Where there are
    /// none, nothing is changed of what the program has set.
    pub(crate) fn keep_the_kernel_away(&self, range: Range<usize>) {
        if self.arenas().next().is_none() {
            return;
        }
        advise(&range, Advice::LinuxNoHugepage);
        let bound = self.arenas().any(|arena| arena.is_bound());
        if bound && numa::is_default(range.start) {
            let _ = numa::prefer_local(range);
        }
    }

    /// Makes the kernel treat memory that was let go as the program has asked for, with huge pages or
    /// not. (Huge pages that it has not asked for, but that the system is set to give, stay off where
    /// devices' frames were mapped: there is no call that says so.)
    pub fn let_the_kernel_at(&self, pages: PageRange, huge: bool) {
        if self.arenas().next().is_none() {
            return;
        }
        let range = bytes(pages);
        if huge {
            advise(&range, Advice::LinuxHugepage);
        }
        if self.arenas().any(|arena| arena.is_bound()) && numa::is_local(range.start) {
            let _ = numa::take_back(range);
        }
    }
}

fn pages(range: &Range<usize>) -> PageRange {
    PageRange::new(
        PageNo::containing(range.start),
        range.len().div_ceil(PAGE_SIZE),
    )
}

fn advise(range: &Range<usize>, advice: Advice) {
    // SAFETY: memory that the program has handed over; this changes no bytes of it.
    let _ = unsafe { mm::madvise(range.start as *mut _, range.len(), advice) };
}
