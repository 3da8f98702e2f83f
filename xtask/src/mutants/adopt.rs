//! Memory that is adopted, and handed back.

use super::table::{Mutant, edit, rules};

const ADOPT: &str = "crates/uhmm-core/src/adopt.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "adopt",
        what: "what is there is adopted without a charge",
        edits: &[edit(
            ADOPT,
            "                self.pool.charge_existing(1, self.stats());
                claimed.settle(State::system(false));
                return;",
            "                claimed.settle(State::system(false));
                return;",
        )],
        tests: rules("adopted_pages_are"),
    },
    Mutant {
        rule: "adopt",
        what: "a page that a fault has for a moment is not adopted",
        edits: &[edit(
            ADOPT,
            "                    self.entries.wait(page, &self.mmu);
                    continue;",
            "                    return;",
        )],
        tests: rules("a_fault_that_looks_around"),
    },
    Mutant {
        rule: "adopt",
        what: "pages that were not let go of are forgotten",
        edits: &[edit(
            ADOPT,
            "if gone { State::None } else { now[i] }",
            "if gone { State::None } else { let _ = now[i]; State::None }",
        )],
        tests: rules("what_is_not_let_go_of"),
    },
    Mutant {
        rule: "adopt",
        what: "pages that were handed back stay charged",
        edits: &[edit(
            ADOPT,
            "            space.pool.uncharge(mapped, space.stats());",
            "            let _ = mapped;",
        )],
        tests: rules("pages_in_every_state_are"),
    },
    Mutant {
        rule: "adopt",
        what: "a page that its device does not give now is handed back empty",
        edits: &[edit(
            ADOPT,
            "                Err(CopyOutError::Retry) => None,",
            "                Err(CopyOutError::Retry) => Some(State::None),",
        )],
        tests: rules("r7_what_does_not_come"),
    },
    Mutant {
        rule: "adopt",
        what: "writes to a page that was handed back are tracked",
        edits: &[edit(
            ADOPT,
            "                    self.space.mmu.untrack(page);\n",
            "",
        )],
        tests: rules("pages_in_every_state_are"),
    },
    Mutant {
        rule: "adopt",
        what: "a page in limbo is handed back without its frame",
        edits: &[edit(
            ADOPT,
            "            State::Limbo(slot) => self.space.bring_frame(page, slot, &mut scratch.pages[0]),",
            "            State::Limbo(_) => Some(State::None),",
        )],
        tests: rules("pages_in_limbo_and_on_mapped"),
    },
    Mutant {
        rule: "adopt",
        what: "what pages leave behind stays in use",
        edits: &[edit(
            ADOPT,
            "            space.put_page(at);",
            "            let _ = at;",
        )],
        tests: rules("pages_in_every_state_are"),
    },
    Mutant {
        rule: "R7",
        what: "a page that a driver holds is handed back",
        edits: &[edit(
            ADOPT,
            "        let others = held.count() > 2;",
            "        let others = held.count() > u16::MAX - 1;",
        )],
        tests: rules("r7_what_does_not_come"),
    },
    Mutant {
        rule: "R9",
        what: "a page that is found to be lost is handed back as zeros",
        edits: &[edit(
            ADOPT,
            "                    space.mmu.poison(page);\n",
            "",
        )],
        tests: rules("r9_a_page_that_is_found"),
    },
];
