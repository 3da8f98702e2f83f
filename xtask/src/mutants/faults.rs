//! R15 and R18: what one fault does, and what it does not do.

use super::table::{Mutant, edit, rules};

const FAULT: &str = "crates/uhmm-core/src/fault.rs";

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
        tests: rules("r15_"),
    },
    Mutant {
        rule: "R15",
        what: "a thread that meets a served fault is not woken",
        edits: &[edit(
            FAULT,
            "        drop(run);\n        self.served(page)\n    }\n\n    /// From nowhere",
            "        drop(run);\n        Outcome::Served\n    }\n\n    /// From nowhere",
        )],
        tests: rules("r15_whoever"),
    },
    Mutant {
        rule: "R18",
        what: "one `Vec` in the resolver",
        edits: &[edit(
            FAULT,
            "let mut held = [const { None }; MAX_WINDOW];",
            "let mut held: Vec<_> = (0..MAX_WINDOW).map(|_| None).collect();",
        )],
        tests: rules("r18_faults"),
    },
    Mutant {
        rule: "R18",
        what: "a fault outside of the space is served",
        edits: &[edit(FAULT, "if !self.range().contains(page) {", "if false {")],
        tests: rules("r18_a_fault"),
    },
];
