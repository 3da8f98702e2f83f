//! The rules that every device obeys.

use crate::content::{PageKind, Rng, first_difference};
use std::thread;
use uhmm_core::addr::{DevicePage, PageData};
use uhmm_core::device::{CopyInError, Device};

/// Pages that a rule uses where their number does not matter.
const SOME: u32 = 64;
/// The most pages that are stored to fill a device.
const MANY: u32 = 2048;
/// Bytes that an empty device may say it takes more than when it was new.
const SLACK: u64 = 64 << 10;

/// Checks that `device`, which is empty, obeys the rules of devices; it is empty again afterwards.
///
/// # Panics
///
/// It breaks a rule; the message says which.
pub fn conformance(device: &dyn Device) {
    let capacity = device.info().capacity_pages;
    assert!(
        capacity > 0,
        "a device holds a page at least: its capacity is 0"
    );
    let suite = Suite {
        device,
        capacity,
        new_bytes: device.stored_bytes(),
    };
    suite.the_answer_of_info_never_changes();
    suite.what_goes_in_comes_out();
    suite.a_freed_number_holds_what_is_stored_next();
    suite.the_last_number_is_as_good_as_any();
    suite.pages_do_not_disturb_each_other();
    suite.threads_do_not_disturb_each_other();
    suite.a_full_device_refuses_and_keeps_what_it_has();
}

struct Suite<'a> {
    device: &'a dyn Device,
    capacity: u32,
    new_bytes: u64,
}

impl Suite<'_> {
    fn the_answer_of_info_never_changes(&self) {
        let info = self.device.info();
        assert!(!info.kind.is_empty(), "a device says of what kind it is");
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
        let last = self.capacity - 1;
        self.store(last, PageKind::Half, 7);
        self.check(last, PageKind::Half, 7, "the last number is as good as any");
        self.free(last);
        self.assert_empty();
    }

    /// Pages come and go in random order; all of the others keep their bytes.
    fn pages_do_not_disturb_each_other(&self) {
        let rule = "pages do not disturb each other";
        let mut rng = Rng::new(1);
        let mut held = vec![None; SOME.min(self.capacity) as usize];
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
        let pages = (4 * SOME).min(self.capacity);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    let mut rng = Rng::new(thread.into());
                    for round in 0..10 {
                        let held: Vec<_> = (thread..pages)
                            .step_by(THREADS as usize)
                            .map(|page| (page, rng.pick(&PageKind::ALL)))
                            .filter(|&(page, kind)| self.try_store(page, kind, round))
                            .collect();
                        for _ in 0..2 {
                            for &(page, kind) in &held {
                                let rule = "threads do not disturb each other";
                                self.check(page, kind, round, rule);
                            }
                        }
                        held.iter().for_each(|&(page, _)| self.free(page));
                    }
                });
            }
        });
        self.assert_empty();
    }

    /// Twice, so that the second time meets what the first has left behind.
    fn a_full_device_refuses_and_keeps_what_it_has(&self) {
        for round in 0..2 {
            let pages = MANY.min(self.capacity);
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

    /// Stores a page; `false` if the device is full.
    fn try_store(&self, page: u32, kind: PageKind, seed: u64) -> bool {
        match self.device.copy_in(DevicePage(page), &make(kind, seed)) {
            Ok(()) => true,
            Err(CopyInError::Full) => false,
            Err(CopyInError::Dead) => panic!("a device that nothing happened to is not dead"),
        }
    }

    fn store(&self, page: u32, kind: PageKind, seed: u64) {
        let stored = self.try_store(page, kind, seed);
        assert!(
            stored,
            "a device with room is not full: page {page}, {kind:?}, seed {seed}"
        );
    }

    fn check(&self, page: u32, kind: PageKind, seed: u64, rule: &str) {
        // What was there before must not shine through.
        let mut found = PageData([0xa5; _]);
        if let Err(error) = self.device.copy_out(DevicePage(page), &mut found) {
            panic!("{rule}: page {page}, {kind:?}, seed {seed}: {error}");
        }
        if let Some(offset) = first_difference(&found, &make(kind, seed)) {
            panic!("{rule}: page {page}, {kind:?}, seed {seed}: byte {offset} is wrong");
        }
    }

    fn free(&self, page: u32) {
        self.device.free(DevicePage(page));
    }

    fn assert_empty(&self) {
        let (new, now) = (self.new_bytes, self.device.stored_bytes());
        assert!(
            now <= new + SLACK,
            "an empty device takes nothing: {new} bytes when new, now {now}"
        );
    }
}

fn make(kind: PageKind, seed: u64) -> PageData {
    let mut data = PageData::ZERO;
    kind.fill(&mut Rng::new(seed), &mut data);
    data
}
