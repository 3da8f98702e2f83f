//! R9: memory failure.

use super::table::{Mutant, edit, rules};

const CHUNK: &str = "crates/uhmm-core/src/pagemap/chunk.rs";
const FAILURE: &str = "crates/uhmm-core/src/failure.rs";
const FINALIZE: &str = "crates/uhmm-core/src/migrate/finalize.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R9",
        what: "a page whose memory has failed reads as zeros",
        edits: &[edit(
            FAILURE,
            "        self.mmu.poison(page);\n        claimed.settle(State::Poisoned);",
            "        claimed.settle(State::None);",
        )],
        tests: rules("r9_a_page_whose_memory"),
    },
    Mutant {
        rule: "R9",
        what: "a device page whose memory has failed is handed out again",
        edits: &[edit(CHUNK, "        if !dead.bad {", "        if true {")],
        tests: rules("r9_a_mapped_device_page_that_fails a_free_device_page"),
    },
    Mutant {
        rule: "R9",
        what: "a device page is not marked as failed",
        edits: &[edit(
            FAILURE,
            "                memory.set_bad(at.page);\n                self.mmu.discard(one);",
            "                self.mmu.discard(one);",
        )],
        tests: rules("r9_a_page_whose_memory r9_a_mapped_device_page_that_fails r9_a_private"),
    },
    Mutant {
        rule: "R9",
        what: "the frame of a device page that has failed stays in its arena",
        edits: &[edit(
            FAILURE,
            "                    self.mmu.drop_arena(at, 1);",
            "",
        )],
        tests: rules("r9_the_frame_of"),
    },
    Mutant {
        rule: "R9",
        what: "a frame in limbo that has failed serves the next fault",
        edits: &[edit(
            FAILURE,
            "                self.mmu.drop_frames(slot, 1);
                self.pool.moved_out(slot, 1);
                self.pool.uncharge(1, self.stats());",
            "                self.pool.put_free(self.pool.claim_limbo(slot));",
        )],
        tests: rules("r9_the_frame_of"),
    },
    Mutant {
        rule: "R9",
        what: "RAM that has failed stays charged",
        edits: &[edit(
            FAILURE,
            "                self.poison(claimed);\n                self.pool.uncharge(1, self.stats());",
            "                self.poison(claimed);",
        )],
        tests: rules("r9_a_page_whose_memory"),
    },
    Mutant {
        rule: "R9",
        what: "a page that a device has a duplicate of is lost",
        edits: &[edit(
            FAILURE,
            "                if let Some(at) = duplicate {",
            "                if let Some(at) = duplicate.filter(|_| false) {",
        )],
        tests: rules("r9_a_page_with_a_duplicate"),
    },
    Mutant {
        rule: "R9",
        what: "a duplicate that has failed takes its page along",
        edits: &[edit(
            FAILURE,
            "                Some(claimed) if matches!(claimed.was(), State::System { .. }) => {",
            "                Some(claimed) if false && matches!(claimed.was(), State::System { .. }) => {",
        )],
        tests: rules("r9_a_duplicate_that_fails"),
    },
    Mutant {
        rule: "R9",
        what: "a page goes to memory that has failed before it is installed",
        edits: &[
            edit(
                FINALIZE,
                "            if self.space.device(to.device).is_bad(to.page));",
                "            if self.space.device(to.device).is_bad(to.page) && false);",
            ),
            edit(FINALIZE, "        self.leave_bad_destinations();\n", ""),
        ],
        tests: rules("r9_a_page_does_not_go"),
    },
    Mutant {
        rule: "R9",
        what: "a page goes to memory that has failed once it was installed",
        edits: &[edit(
            FINALIZE,
            "        self.leave_bad_destinations();\n",
            "",
        )],
        tests: rules("r9_a_page_does_not_go"),
    },
    Mutant {
        rule: "R9",
        what: "a free page whose memory has failed is not taken out of use",
        edits: &[edit(
            FAILURE,
            "                    memory.set_bad(at.page);\n                    self.put_page(at);",
            "                    self.put_page(at);",
        )],
        tests: rules("a_free_device_page"),
    },
    Mutant {
        rule: "R9",
        what: "a driver's page whose memory has failed is not taken out of use",
        edits: &[edit(
            FAILURE,
            "                memory.set_bad(at.page);\n                held.end",
            "                held.end",
        )],
        tests: rules("a_page_that_a_driver_has"),
    },
];
