//! Faults that are served by the thread that meets them.

use super::table::{Mutant, edit, rules};

const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const FAULT_HERE: &str = "crates/uhmm-core/src/fault_here.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R9",
        what: "a lost page is said to be served, and its thread faults for ever",
        edits: &[edit(
            FAULT_HERE,
            "State::Poisoned => return Served::Lost,",
            "State::Poisoned => return Served::Yes,",
        )],
        tests: rules("r9_a_lost_page_is_told"),
    },
    Mutant {
        rule: "R18",
        what: "a thread faults over and over on a page in flight, instead of waiting",
        edits: &[edit(
            FAULT_HERE,
            "State::Migrating => self.entries.wait(page, &self.mmu),",
            "State::Migrating => return Served::Yes,",
        )],
        tests: rules("r18_the_thread_waits_until"),
    },
    Mutant {
        rule: "faults",
        what: "what others have mapped over the space is said to be served",
        edits: &[edit(
            FAULT,
            "Outcome::Foreign => break false,",
            "Outcome::Foreign => break true,",
        )],
        tests: rules("what_is_mapped_there_by_others"),
    },
];
