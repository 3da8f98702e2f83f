//! Memory that is adopted, and handed back.

use super::table::{Mutant, edit, rules};

const ADOPT: &str = "crates/uhmm-core/src/adopt.rs";
const GRIP: &str = "crates/uhmm-core/src/grip.rs";

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
    Mutant {
        rule: "grip",
        what: "what was unmapped stays in use",
        edits: &[edit(
            GRIP,
            "            self.space.free_dropped(was);",
            "            let _ = was;",
        )],
        tests: rules("pages_of_every_kind_are_gone"),
    },
    Mutant {
        rule: "grip",
        what: "pages are let go of when nobody has them in hand any more",
        edits: &[edit(
            GRIP,
            "        let_go(self.pages);
        for claim in std::mem::take(&mut self.claims) {
            let was = claim.was();
            self.settle(claim, State::None);
            self.space.free_dropped(was);
        }
",
            "        for claim in std::mem::take(&mut self.claims) {
            let was = claim.was();
            self.settle(claim, State::None);
            self.space.free_dropped(was);
        }
        let_go(self.pages);
",
        )],
        tests: rules("pages_of_every_kind_are_gone"),
    },
    Mutant {
        rule: "grip",
        what: "after a call that has failed pages are nowhere",
        edits: &[edit(
            GRIP,
            "            self.space.entries.restore(claim, &self.space.mmu);",
            "            let space = self.space;
            space.entries.settle(claim, State::None, || space.stamp(), &space.mmu);",
        )],
        tests: rules("pages_of_every_kind_are_what_they_were"),
    },
    Mutant {
        rule: "R11",
        what: "pinned pages are taken in hand to be unmapped",
        edits: &[
            edit(GRIP, "        self.check_unpinned(pages)?;\n", ""),
            edit(
                GRIP,
                "                _ if seen.pins() > 0 => return Err(RangeError::Pinned),\n",
                "",
            ),
        ],
        tests: rules("r11_what_is_pinned_is_not_gripped"),
    },
    Mutant {
        rule: "grip",
        what: "a page that is on a device is handed over as it is",
        edits: &[edit(
            GRIP,
            "        if !are_home || !let_go(self.pages) {",
            "        if !are_home && false || !let_go(self.pages) {",
        )],
        tests: rules("only_what_is_at_home"),
    },
    Mutant {
        rule: "adopt",
        what: "a page that nobody manages is given to a device",
        edits: &[edit(
            "crates/uhmm-core/src/migrate/collect.rs",
            "                Some(claimed) if space.mmu.manages(at) => self.add(claimed, Origin::Hole),",
            "                Some(claimed) => self.add(claimed, Origin::Hole),",
        )],
        tests: rules("a_hole_that_is_nobodys"),
    },
];
