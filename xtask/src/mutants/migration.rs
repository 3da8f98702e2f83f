//! R5 to R7: what a migration leaves as it was, and what is not moved at all.

use super::table::{Mutant, edit, rules};

const CLEAN: &str = "crates/uhmm-core/src/reclaim/clean.rs";
const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const MIGRATE: &str = "crates/uhmm-core/src/migrate.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";
const UNMAP: &str = "crates/uhmm-core/src/reclaim/unmap.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R5",
        what: "a dropped run restores nothing",
        edits: &[edit(MIGRATE, "        self.truncate(0);\n", "")],
        tests: rules("r5_an_installation"),
    },
    Mutant {
        rule: "R5",
        what: "marks of emptied slots come back with the next part of a batch",
        edits: &[edit(
            UNMAP,
            "            self.pool.moved_in(first, pages.start, progress.pages);",
            "            let parts = hand.filled - before;
            let start = PageNo(pages.start.0 - parts as u64);
            let slot = first_slot(block).plus(before);
            self.pool.moved_in(slot, start, parts + progress.pages);",
        )],
        tests: rules("r5_a_page_touched"),
    },
    Mutant {
        rule: "R5",
        what: "pages behind one that could not be read are installed with it",
        edits: &[edit(
            FAULT,
            "Err((copied, _)) => run.truncate(copied),",
            "Err(_) => {}",
        )],
        tests: rules("r5_a_copy"),
    },
    Mutant {
        rule: "R5",
        what: "a frame that did not move back counts as gone",
        edits: &[edit(
            FAULT,
            "        self.pool.moved_out(first, progress.pages);",
            "        self.pool.moved_out(first, run.pages().len);",
        )],
        tests: rules("r5_a_return"),
    },
    Mutant {
        rule: "R5",
        what: "a page without room on a device gives its frame up",
        edits: &[edit(
            CLEAN,
            "        let Ok(at) = stored else { return false };",
            "        let Ok(at) = stored else {
            self.pool.put_free(frame);
            return false;
        };",
        )],
        tests: rules("r5_a_store"),
    },
    Mutant {
        rule: "R5",
        what: "a page found present while it is discarded is not charged",
        edits: &[edit(
            FAULT,
            "            self.pool.charge_existing(1, self.stats());\n            1\n",
            "            1\n",
        )],
        tests: rules("r5_a_fault_in"),
    },
    Mutant {
        rule: "R5",
        what: "a relocation skips a page that it cannot move",
        edits: &[edit(
            RANGES,
            "            if moved > 0 {",
            "            if true {",
        )],
        tests: rules("r5_moving_a_range_survives"),
    },
    Mutant {
        rule: "R5",
        what: "a relocation skips a page whose place was filled ahead",
        edits: &[edit(
            RANGES,
            "                self.drop_pages(PageRange::new(to, 1));\n                continue;",
            "                return 1;",
        )],
        tests: rules("r5_moving_a_range_to"),
    },
    Mutant {
        rule: "R5",
        what: "a page whose bytes were copied out of its frame is not charged",
        edits: &[edit(
            RANGES,
            "        space.pool.charge_existing(1, space.stats());\n        target.settle",
            "        target.settle",
        )],
        tests: rules("r5_moving_a_range"),
    },
    Mutant {
        rule: "R6",
        what: "poisoned pages are selected",
        edits: &[
            edit(
                UNMAP,
                "                State::System { referenced: false } => {",
                "                State::Poisoned | State::System { referenced: false } => {",
            ),
            edit(
                UNMAP,
                "let cold = |_, state| state == State::System { referenced: false };",
                "let cold = |_, state| {
                        matches!(state, State::Poisoned | State::System { referenced: false })
                    };",
            ),
        ],
        tests: rules("r6_"),
    },
    Mutant {
        rule: "R6",
        what: "holes are selected",
        edits: &[
            edit(
                UNMAP,
                "                State::System { referenced: false } => {",
                "                State::None | State::System { referenced: false } => {",
            ),
            edit(
                UNMAP,
                "let cold = |_, state| state == State::System { referenced: false };",
                "let cold = |_, state| {
                        matches!(state, State::None | State::System { referenced: false })
                    };",
            ),
            // Or the search would never end.
            edit(
                UNMAP,
                "Stop::Absent => self.forget_absent(run),",
                "Stop::Absent => false,",
            ),
        ],
        tests: rules("r6_"),
    },
    Mutant {
        rule: "R7",
        what: "a busy page is copied out and dropped, as a read-only one is",
        edits: &[
            edit(
                UNMAP,
                "            Stop::Protected => scratch",
                "            Stop::Busy | Stop::Protected => scratch",
            ),
            edit(
                UNMAP,
                "self.mmu.is_writable(page) || !self.mmu.peek",
                "!self.mmu.peek",
            ),
        ],
        tests: rules("r7_a_pinned"),
    },
    Mutant {
        rule: "R7",
        what: "a read-only page is stored as zeros",
        edits: &[edit(
            UNMAP,
            "        let Ok(at) = self.store(page, &scratch.pages[0]) else {",
            "        scratch.pages[0] = crate::addr::PageData::ZERO;
        let Ok(at) = self.store(page, &scratch.pages[0]) else {",
        )],
        tests: rules("r7_a_page_that_may_not"),
    },
    Mutant {
        rule: "R7",
        what: "a page shared after a fork is never unshared",
        edits: &[edit(
            UNMAP,
            "Some(Stop::Busy) if !unshared => {",
            "Some(Stop::Busy) if !unshared && false => {",
        )],
        tests: rules("r7_a_page_shared"),
    },
];
