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
        rule: "reclaim",
        what: "a block with a page in a fault's hands leaves the queue for good",
        edits: &[edit(
            CLEAN,
            "            queue.blocks.push_back(block);\n            return stored;",
            "            return stored;",
        )],
        tests: rules("a_program_that_fits all_of_limbo").tried(6),
    },
];
