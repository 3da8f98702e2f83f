//! R16: both sides of a fork.

use super::table::{Mutant, edit, rules};

const FORK: &str = "crates/uhmm-core/src/fork.rs";
const GATE: &str = "crates/uhmm-core/src/gate.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R16",
        what: "pages served during a fork are not put on the log",
        edits: &[edit(
            FORK,
            "        self.fork_log.len.store(next + 1, Release);\n",
            "",
        )],
        tests: rules("r16_faults_during"),
    },
    Mutant {
        rule: "R16",
        what: "a tracked write during a fork is not put on the log",
        edits: &[edit(
            FORK,
            "        self.fork_log.len.store(next + 1, Release);\n",
            "        if !matches!(from, From::Untracked) {
            self.fork_log.len.store(next + 1, Release);
        }\n",
        )],
        tests: rules("r16_a_tracked_write_during"),
    },
    Mutant {
        rule: "R16",
        what: "faults are served while threads are still inside, and the log emptied after",
        edits: &[
            edit(
                GATE,
                "(self.phase.load(SeqCst) < DRAINING).then_some(pass)",
                "(self.phase.load(SeqCst) == OPEN).then_some(pass)",
            ),
            edit(FORK, "if !self.gate.is_drained() || ", "if "),
            edit(
                FORK,
                "        self.gate.close(&self.mmu);\n",
                "        self.gate.close(&self.mmu);\n        self.end_log();\n",
            ),
        ],
        tests: rules("r16_a_fault_while"),
    },
    Mutant {
        rule: "R16",
        what: "a page served during a fork stays on its device as well",
        edits: &[edit(
            FORK,
            "            State::Private(at) | State::Coherent(at) => self.device(at.device).bury(at.page),",
            "            State::Coherent(at) => self.device(at.device).bury(at.page),",
        )],
        tests: rules("r16_faults_during"),
    },
    Mutant {
        rule: "R16",
        what: "a mapped device page that is served zeros during a fork stays in use",
        edits: &[edit(
            FORK,
            "            State::Private(at) | State::Coherent(at) => self.device(at.device).bury(at.page),",
            "            State::Private(at) => self.device(at.device).bury(at.page),",
        )],
        tests: rules("r16_both_sides"),
    },
    Mutant {
        rule: "R16",
        what: "a fault during a fork is served zeros for a page of a device",
        edits: &[edit(
            FORK,
            "                From::Scratch\n            }\n            State::Limbo(slot) | State::Exclusive { frame: slot, .. } => {",
            "                From::Zeros\n            }\n            State::Limbo(slot) | State::Exclusive { frame: slot, .. } => {",
        )],
        tests: rules("r16_faults_during"),
    },
    Mutant {
        rule: "R16",
        what: "the child keeps what the kernel filled with zeros",
        edits: &[edit(
            FORK,
            "                    self.mmu.discard(PageRange::new(page, 1));\n",
            "",
        )],
        tests: rules("r16_pages_that"),
    },
    Mutant {
        rule: "R16",
        what: "the child relies on duplicates that it was not told of writes to",
        edits: &[edit(FORK, "        self.forget_duplicates();\n", "")],
        tests: rules("r16_the_child_forgets"),
    },
    Mutant {
        rule: "R16",
        what: "programs change their ranges while the gate is closed",
        edits: &[edit(
            GATE,
            "            if self.phase.load(SeqCst) == OPEN {\n                return Ok(pass);",
            "            if true {\n                return Ok(pass);",
        )],
        tests: rules("r16_a_closed"),
    },
    Mutant {
        rule: "R16",
        what: "a fork does not wait for migrations",
        edits: &[edit(GATE, "        wait_out(&self.internal, mmu);\n", "")],
        tests: rules("r16_a_fork_waits"),
    },
];
