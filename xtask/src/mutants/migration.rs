//! R5 to R7: what faults, reclaim and moved ranges leave as it was, and what they do not move.

use super::table::{Mutant, edit, rules};

const PROTECTION: &str = "crates/uhmm-core/src/protection.rs";
const CLAIMS: &str = "crates/uhmm-core/src/claims.rs";
const CLEAN: &str = "crates/uhmm-core/src/reclaim/clean.rs";
const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";
const UNMAP: &str = "crates/uhmm-core/src/reclaim/unmap.rs";

/// What `unmap_some` looks for, and what it does with a page that does not fit.
const COLD: &str =
    "                        matches!(seen.state(), State::System { referenced, duplicate }
                            if (everything || !referenced) && duplicate.is_some() == clean)";
const CANDIDATE: &str = "                State::System { duplicate, .. } => {
                    let Some(block)";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R5",
        what: "a dropped run restores nothing",
        edits: &[edit(
            CLAIMS,
            "    fn drop(&mut self) {\n        self.truncate(0);",
            "    fn drop(&mut self) {\n        self.len = self.done;",
        )],
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
        tests: rules("r5_a_copy_that"),
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
            "                self.pool.put_free(frame);
                stored += 1;
            }",
            "                self.pool.put_free(frame);
                stored += 1;
            } else {
                self.pool.put_free(frame);
            }",
        )],
        tests: rules("r5_a_store"),
    },
    Mutant {
        rule: "R5",
        what: "a page that was mapped behind our back is not charged when it is touched",
        edits: &[edit(
            FAULT,
            "            self.pool.charge_existing(1, self.stats());\n            1\n",
            "            1\n",
        )],
        tests: rules("r5_a_page_that_was_mapped"),
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
            "                self.drop_run(to, 1);\n                continue;",
            "                return 1;",
        )],
        tests: rules("r5_moving_a_range_to"),
    },
    Mutant {
        rule: "R5",
        what: "a page whose bytes were copied out of its frame is not charged",
        edits: &[edit(
            RANGES,
            "        space.pool.charge_existing(1, space.stats());
        target.settle(1, |_| State::system(false));
        run.settle(1, |_| State::None);
        space.pool",
            "        target.settle(1, |_| State::system(false));
        run.settle(1, |_| State::None);
        space.pool",
        )],
        tests: rules("r5_moving_a_range"),
    },
    Mutant {
        rule: "R5",
        what: "a mapped device page whose bytes were copied elsewhere is not charged",
        edits: &[edit(
            RANGES,
            "        space.pool.charge_existing(1, space.stats());
        target.settle(1, |_| State::system(false));
        run.settle(1, |_| State::None);
        space.device",
            "        target.settle(1, |_| State::system(false));
        run.settle(1, |_| State::None);
        space.device",
        )],
        tests: rules("a_coherent_page_that_cannot_be_moved"),
    },
    Mutant {
        rule: "R5",
        what: "a mapped device page that moves stays at its old place's entry",
        edits: &[edit(
            RANGES,
            "                    if progress > 0 {
                        space.device(at.device).set_owner(at.page, to);
                    }",
            "",
        )],
        tests: rules("a_moved_coherent_page"),
    },
    Mutant {
        rule: "R6",
        what: "poisoned pages are selected",
        edits: &[
            edit(
                UNMAP,
                CANDIDATE,
                "                State::System { .. } | State::Poisoned => {
                    let duplicate = match seen.state() {
                        State::System { duplicate, .. } => duplicate,
                        _ => None,
                    };
                    let Some(block)",
            ),
            edit(
                UNMAP,
                COLD,
                "                        seen.state() == State::Poisoned
                            || matches!(seen.state(), State::System { referenced, duplicate }
                            if (everything || !referenced) && duplicate.is_some() == clean)",
            ),
        ],
        tests: rules("r6_holes_and_lost"),
    },
    Mutant {
        rule: "R6",
        what: "holes are selected",
        edits: &[
            edit(
                UNMAP,
                CANDIDATE,
                "                State::System { .. } | State::None => {
                    let duplicate = match seen.state() {
                        State::System { duplicate, .. } => duplicate,
                        _ => None,
                    };
                    let Some(block)",
            ),
            edit(
                UNMAP,
                COLD,
                "                        seen.state() == State::None
                            || matches!(seen.state(), State::System { referenced, duplicate }
                            if (everything || !referenced) && duplicate.is_some() == clean)",
            ),
            // Or the search would never end.
            edit(
                UNMAP,
                "Stop::Absent => self.forget_absent(run),",
                "Stop::Absent => false,",
            ),
        ],
        tests: rules("r6_holes_and_lost"),
    },
    Mutant {
        rule: "R6",
        what: "holes beside a page are offered with it",
        edits: &[edit(
            UNMAP,
            COLD,
            "                        seen.state() == State::None
                            || matches!(seen.state(), State::System { referenced, duplicate }
                            if (everything || !referenced) && duplicate.is_some() == clean)",
        )],
        tests: rules("r6_a_hole_beside"),
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
                PROTECTION,
                "self.mmu.is_writable(page) || !self.mmu.peek",
                "!self.mmu.peek",
            ),
        ],
        tests: rules("r7_a_pinned_page_stays_and"),
    },
    Mutant {
        rule: "R7",
        what: "a read-only page is stored as zeros",
        edits: &[edit(
            UNMAP,
            "        let Some(at) = self.store_anywhere(page, &scratch.pages[0]) else {",
            "        scratch.pages[0] = crate::addr::PageData::ZERO;
        let Some(at) = self.store_anywhere(page, &scratch.pages[0]) else {",
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
        tests: rules("r7_a_page_shared_after_a_fork_moves"),
    },
    Mutant {
        rule: "R7",
        what: "a fault brings a page in that another holds",
        edits: &[edit(
            FAULT,
            "            if reference.count() > 2 {",
            "            if false {",
        )],
        tests: rules("r7_a_held_page"),
    },
];
