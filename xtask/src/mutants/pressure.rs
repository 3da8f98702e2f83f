//! R19, and what the reclaimer keeps besides.

use super::table::{Mutant, edit, rules};

const CLEAN: &str = "crates/uhmm-core/src/reclaim/clean.rs";
const RECLAIM: &str = "crates/uhmm-core/src/reclaim/mod.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R19",
        what: "nobody is told that there is no room",
        edits: &[edit(RECLAIM, "self.mmu.out_of_memory();", "")],
        tests: rules("r19_with_no_device"),
    },
    Mutant {
        rule: "R19",
        what: "no room is told at every pause",
        edits: &[edit(
            RECLAIM,
            "if in_vain > PATIENCE {",
            "if in_vain >= PAUSE {",
        )],
        tests: rules("r19_no_ram"),
    },
    Mutant {
        rule: "R19",
        what: "no room is told although nobody waits for any",
        edits: &[edit(
            RECLAIM,
            "                    if pressure.waiters.load(SeqCst) > 0 {",
            "                    if true {",
        )],
        tests: rules("r19_nobody_is_told"),
    },
    Mutant {
        rule: "R19",
        what: "duplicates keep a full device from taking anything",
        edits: &[edit(
            RECLAIM,
            "no_room && self.shed_duplicates()",
            "no_room && false",
        )],
        tests: rules("r19_reclaim_sheds"),
    },
    Mutant {
        rule: "reclaim",
        what: "a block with a page in a fault's hands leaves the queue for good",
        edits: &[edit(
            CLEAN,
            "            queue.blocks.push_back(block);\n            return cleaned;",
            "            return cleaned;",
        )],
        tests: rules("a_program_that_fits all_of_limbo"),
    },
];
