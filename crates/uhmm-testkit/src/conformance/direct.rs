//! What the five methods of a device with private memory do, page by page.

use super::calls::{Calls, make};
use super::{Make, SLACK, join};
use crate::Rng;
use crate::content::PageKind;
use std::thread;
use uhmm_core::addr::DevicePage;
use uhmm_core::device::CopyInError;

/// Pages that a rule uses where their number does not matter.
const SOME: u32 = 64;
/// The most pages that are stored to fill a device.
pub(super) const MANY: u32 = 2048;

pub(super) fn check(make: Make<'_>) {
    let calls = Calls::new(make);
    calls.the_answer_of_info_never_changes();
    calls.what_goes_in_comes_out();
    calls.a_freed_number_holds_what_is_stored_next();
    calls.the_last_number_is_as_good_as_any();
    calls.pages_do_not_disturb_each_other();
    calls.threads_do_not_disturb_each_other();
    calls.what_one_thread_stores_another_reads();
    calls.a_full_device_refuses_and_keeps_what_it_has();
    calls.end();
}

impl Calls {
    fn the_answer_of_info_never_changes(&self) {
        let info = self.device.info();
        self.store(0, PageKind::Text, 1);
        assert_eq!(info, self.device.info(), "the answer of info never changes");
        self.free(0);
        self.assert_empty();
    }

    fn what_goes_in_comes_out(&self) {
        for kind in PageKind::ALL {
            for seed in 0..40 {
                self.store(0, kind, seed);
                for time in 1..=3 {
                    self.check(
                        0,
                        kind,
                        seed,
                        &format!("what goes in comes out, time {time}"),
                    );
                }
                self.free(0);
            }
        }
        self.assert_empty();
    }

    fn a_freed_number_holds_what_is_stored_next(&self) {
        let mut before = PageKind::Random;
        for seed in 0..25 {
            for kind in PageKind::ALL {
                self.store(0, kind, seed);
                let rule = format!("a freed number, {before:?} before, holds what is stored next");
                self.check(0, kind, seed, &rule);
                self.free(0);
                before = kind;
            }
        }
        self.assert_empty();
    }

    fn the_last_number_is_as_good_as_any(&self) {
        let Some(last) = self.last else { return };
        self.store(last, PageKind::Half, 7);
        self.check(last, PageKind::Half, 7, "the last number is as good as any");
        self.free(last);
        self.assert_empty();
    }

    /// Pages come and go in random order; all of the others keep their bytes.
    fn pages_do_not_disturb_each_other(&self) {
        let rule = "pages do not disturb each other";
        let mut rng = Rng::new(1);
        let mut held = vec![None; SOME.min(self.pages) as usize];
        for seed in 0..2_000 {
            let page = rng.below(held.len() as u64) as u32;
            match held[page as usize].take() {
                Some((kind, seed)) => {
                    self.check(page, kind, seed, rule);
                    self.free(page);
                }
                None => {
                    let kind = rng.pick(&PageKind::ALL);
                    held[page as usize] = self.try_store(page, kind, seed).then_some((kind, seed));
                }
            }
        }
        for (page, held) in held.iter().enumerate() {
            if let Some((kind, seed)) = *held {
                self.check(page as u32, kind, seed, rule);
                self.free(page as u32);
            }
        }
        self.assert_empty();
    }

    /// Four threads, each with pages of its own that lie between those of the others.
    fn threads_do_not_disturb_each_other(&self) {
        const THREADS: u32 = 4;
        let pages = (4 * SOME).min(self.pages);
        let run = |thread: u32| {
            let mut rng = Rng::new(thread.into());
            for round in 0..10 {
                let held: Vec<_> = (thread..pages)
                    .step_by(THREADS as usize)
                    .map(|page| (page, rng.pick(&PageKind::ALL)))
                    .filter(|&(page, kind)| self.try_store(page, kind, round))
                    .collect();
                for _ in 0..2 {
                    for &(page, kind) in &held {
                        self.check(page, kind, round, "threads do not disturb each other");
                    }
                }
                held.iter().for_each(|&(page, _)| self.free(page));
            }
        };
        let run = &run;
        thread::scope(|scope| {
            join(
                (0..THREADS)
                    .map(|thread| scope.spawn(move || run(thread)))
                    .collect(),
            );
        });
        self.assert_empty();
    }

    /// The reclaimer stores a page, a fault on another thread reads it, and a third may free it.
    fn what_one_thread_stores_another_reads(&self) {
        let pages = SOME.min(self.pages);
        let stored: Vec<u32> = (0..pages)
            .filter(|&page| self.try_store(page, PageKind::Half, page.into()))
            .collect();
        let read = |page| {
            let rule = "what one thread stores another reads";
            self.check(page, PageKind::Half, page.into(), rule);
        };
        thread::scope(|scope| {
            join(vec![scope.spawn(|| stored.iter().copied().for_each(read))]);
            join(vec![scope.spawn(|| {
                stored.iter().for_each(|&page| self.free(page));
            })]);
        });
        self.assert_empty();
    }

    /// Twice, so that the second time meets what the first has left behind.
    fn a_full_device_refuses_and_keeps_what_it_has(&self) {
        for round in 0..2 {
            let pages = MANY.min(self.pages);
            let held = (0..pages)
                .find(|&page| !self.try_store(page, PageKind::Random, u64::from(page) + round))
                .unwrap_or(pages);
            assert!(held > 0, "an empty device is not full");
            if held < pages {
                self.refuses(held);
            }
            for page in 0..held {
                let rule = "a full device keeps what it has";
                self.check(page, PageKind::Random, u64::from(page) + round, rule);
            }
            // Every other page goes: enough that whatever was refused has room, however the
            // device groups pages.
            (0..held).step_by(2).for_each(|page| self.free(page));
            self.store(0, PageKind::Random, 99);
            self.check(
                0,
                PageKind::Random,
                99,
                "a number freed when full can be used again",
            );
            for page in (1..held).step_by(2) {
                let rule = "a full device keeps what it has when others go";
                self.check(page, PageKind::Random, u64::from(page) + round, rule);
                self.free(page);
            }
            self.free(0);
            self.assert_empty();
        }
    }

    /// `page` is refused again and again, and nothing is stored by that.
    fn refuses(&self, page: u32) {
        let before = self.device.stored_bytes();
        let data = make(PageKind::Random, 5);
        for _ in 0..10 {
            // A device may find room after all; then it is not full, and that is no error.
            match self.device.copy_in(DevicePage(page), &data) {
                Ok(()) => self.free(page),
                Err(error) => assert_eq!(error, CopyInError::Full, "a full device says so"),
            }
        }
        let after = self.device.stored_bytes();
        assert!(
            after <= before + SLACK,
            "an error stores nothing: {before} bytes, now {after}"
        );
    }
}
