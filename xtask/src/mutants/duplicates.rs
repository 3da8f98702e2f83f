//! Duplicates: pages in RAM whose bytes a device still has.

use super::table::{Mutant, edit, rules};

const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const PAGEMAP: &str = "crates/uhmm-core/src/pagemap/mod.rs";
const GRIP: &str = "crates/uhmm-core/src/grip.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";
const UNMAP: &str = "crates/uhmm-core/src/reclaim/unmap.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "duplicates",
        what: "a page that was written keeps its duplicate",
        edits: &[edit(
            FAULT,
            "        claimed.settle(State::system(true));
        if let Some(at) = duplicate {
            self.drop_duplicate(at);
        }",
            "        claimed.settle(State::System {
            referenced: false,
            duplicate,
        });",
        )],
        tests: rules("a_write_while r15_the_first_write"),
    },
    Mutant {
        rule: "duplicates",
        what: "a duplicate is kept of a page that is written to",
        edits: &[edit(
            FAULT,
            "let keep = access == Access::Read && kept(page, seen);",
            "let _ = access;\n        let keep = kept(page, seen);",
        )],
        tests: rules("r15_a_write_to_a_missing"),
    },
    Mutant {
        rule: "duplicates",
        what: "the hint is not looked at, and all pages have it",
        edits: &[edit(
            FAULT,
            "            self.hints.of(page).read_mostly && at.is_some_and(|at| self.keeps(at))",
            "            let _ = page;\n            at.is_some_and(|at| self.keeps(at))",
        )],
        tests: rules("only_hinted_pages"),
    },
    Mutant {
        rule: "duplicates",
        what: "the hint is not looked at, and no page has it",
        edits: &[edit(
            FAULT,
            "            self.hints.of(page).read_mostly && at.is_some_and(|at| self.keeps(at))",
            "            let _ = page;\n            at.is_some_and(|at| self.keeps(at)) && false",
        )],
        tests: rules("what_was_only_read"),
    },
    Mutant {
        rule: "duplicates",
        what: "pages that are brought in ahead have the hint of the first",
        edits: &[edit(
            FAULT,
            "(access != Access::Read || kept(page.plus(i), state) == keep)",
            "(access != Access::Read || i < usize::MAX && kept(page, state) == keep)",
        )],
        tests: rules("only_hinted_pages"),
    },
    Mutant {
        rule: "duplicates",
        what: "writes to a page that is to be kept are not tracked",
        edits: &[edit(FAULT, "            Tracking::Writes\n", "            Tracking::Off\n")],
        tests: rules("a_write_while_a_page_comes_in r15_the_first_write"),
    },
    Mutant {
        rule: "duplicates",
        what: "a page that is to be kept is moved in, where writes are not tracked",
        edits: &[edit(
            FAULT,
            "            Ram::Warm(frame) if keep => self.make_new(frame),\n",
            "",
        )],
        tests: rules("a_warm_frame_is_not"),
    },
    Mutant {
        rule: "duplicates",
        what: "duplicates are not counted as they come",
        edits: &[edit(
            FAULT,
            "            self.count_duplicates(installed as isize);",
            "",
        )],
        tests: rules("what_was_only_read"),
    },
    Mutant {
        rule: "duplicates",
        what: "duplicates are not counted as they go",
        edits: &[edit(
            UNMAP,
            "        self.count_duplicates(-(progress.pages as isize));\n",
            "",
        )],
        tests: rules("what_was_only_read"),
    },
    Mutant {
        rule: "duplicates",
        what: "a page that is dropped leaves its duplicate behind",
        edits: &[edit(
            GRIP,
            "                    self.count_duplicates(-1);
                    self.device(at.device).bury(at.page);",
            "                    self.count_duplicates(-1);
                    let _ = at;",
        )],
        tests: rules("discarded_pages_take"),
    },
    Mutant {
        rule: "duplicates",
        what: "a page that moves takes its duplicate to where writes are not tracked",
        edits: &[
            edit(
                RANGES,
                "                duplicate: Some(_), ..
            } = first
            {",
                "                duplicate: Some(_), ..
            } = first
                && false
            {",
            ),
            edit(
                RANGES,
                "(State::System { .. }, State::System { duplicate, .. }) => duplicate.is_none(),",
                "(State::System { .. }, State::System { .. }) => state == first,",
            ),
            edit(
                RANGES,
                "                State::Limbo(_) | State::System { .. } => State::system(false),",
                "                State::Limbo(_) => State::system(false),",
            ),
        ],
        tests: rules("r5_a_page_that_is_moved"),
    },
    Mutant {
        rule: "duplicates",
        what: "the bytes of a page that was dropped behind our back come back",
        edits: &[edit(
            FAULT,
            "            claimed.settle(State::system(true));
            match was {",
            "            if !matches!(was, State::Coherent(_)) {
                return self.served(page);
            }
            claimed.settle(State::system(true));
            match was {",
        )],
        tests: rules("a_duplicate_does_not_come_back_whatever"),
    },
    Mutant {
        rule: "R7",
        what: "a pinned page with a duplicate is dropped",
        edits: &[edit(
            UNMAP,
            "            // Pinned, shared after a fork, or not writable: from now on it is a page like others.
            self.give_duplicate_up(odd);",
            "            let at = odd.was().device_page().expect(\"a duplicate\");
            self.mmu.discard(crate::addr::PageRange::new(odd.page(), 1));
            odd.settle(State::Private(at));
            self.count_duplicates(-1);
            self.pool.uncharge(1, self.stats());",
        )],
        tests: rules("r7_a_pinned_page_with"),
    },
    Mutant {
        rule: "R9",
        what: "duplicates on a device that pages are to leave are relied on",
        edits: &[edit(
            PAGEMAP,
            "        self.is_open() && self.at(page).is_alive()",
            "        let _ = page;\n        true",
        )],
        tests: rules("r9_the_copies r9_a_suspended"),
    },
];
