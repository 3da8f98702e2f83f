//! R15 and R18: what one fault does, and what it does not do.

use super::table::{Mutant, edit, rules};

const ENTRY: &str = "crates/uhmm-core/src/entry.rs";
const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const UNMAP: &str = "crates/uhmm-core/src/reclaim/unmap.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R15",
        what: "every other fault is answered by a wake only",
        edits: &[edit(
            FAULT,
            "        let seen = self.entries.load(page);\n        match seen.state() {",
            "        static ODD: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        if ODD.fetch_xor(true, std::sync::atomic::Ordering::SeqCst) {
            return self.served(page);
        }
        let seen = self.entries.load(page);\n        match seen.state() {",
        )],
        tests: rules("r15_a_write_is_one_fault"),
    },
    Mutant {
        rule: "R15",
        what: "a thread that meets a served fault is not woken",
        edits: &[edit(
            FAULT,
            "        self.served(page)\n    }\n\n    /// A write to a page of which",
            "        Outcome::Served\n    }\n\n    /// A write to a page of which",
        )],
        tests: rules("r15_whoever"),
    },
    Mutant {
        rule: "R15",
        what: "who met a page in flight is not woken at the end",
        edits: &[edit(ENTRY, "was.is_ok_and(|was| was & WANTED != 0)", "was.is_ok_and(|was| was & WANTED != 0 && false)")],
        tests: rules("r15_who_met"),
    },
    Mutant {
        rule: "R15",
        what: "the first write to a page with a duplicate is two faults",
        edits: &[edit(
            FAULT,
            "        self.give_duplicate_up(claimed);\n        Outcome::Served",
            "        static ODD: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        if ODD.fetch_xor(true, std::sync::atomic::Ordering::SeqCst) {
            self.give_duplicate_up(claimed);
        }
        self.served(page)",
        )],
        tests: rules("r15_the_first_write"),
    },
    Mutant {
        rule: "R18",
        what: "one `Vec` in the resolver",
        edits: &[edit(
            FAULT,
            "let mut pages = ArrayVec::<DeviceAddr, MAX_WINDOW>::new();",
            "let mut pages = Vec::with_capacity(MAX_WINDOW);",
        )],
        tests: rules("r18_faults_allocate r18_faults_on_pages"),
    },
    Mutant {
        rule: "R18",
        what: "one `Vec` when clean pages are unmapped",
        edits: &[edit(
            UNMAP,
            "let duplicates = arrayvec::ArrayVec::<_, BLOCK>::from_iter(",
            "let duplicates = Vec::from_iter(",
        )],
        tests: rules("r18_a_fault_that_unmaps"),
    },
    Mutant {
        rule: "R18",
        what: "a fault outside of the space is served",
        edits: &[edit(FAULT, "if !self.range().contains(page) {", "if false {")],
        tests: rules("r18_a_fault_ends"),
    },
];
