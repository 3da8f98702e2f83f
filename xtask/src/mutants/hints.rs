//! Hints: each has the effect that it says, and no other.

use super::table::{Mutant, edit, rules};

const CLEAN: &str = "crates/uhmm-core/src/reclaim/clean.rs";
const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const HINTS: &str = "crates/uhmm-core/src/hints.rs";
const RANGE: &str = "crates/uhmm-core/src/reclaim/range.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";
const UNMAP: &str = "crates/uhmm-core/src/reclaim/unmap.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "hints",
        what: "cold pages go by the order of the space, whatever they prefer",
        edits: &[edit(CLEAN, "if self.hints.were_given() {", "if false {")],
        tests: rules("a_cold_page_goes_to"),
    },
    Mutant {
        rule: "hints",
        what: "a page that cannot be written goes by the order of the space",
        edits: &[edit(
            CLEAN,
            "preferred == Some(*device)",
            "preferred == Some(*device) && false",
        )],
        tests: rules("a_page_that_cannot_be_written_goes"),
    },
    Mutant {
        rule: "R13",
        what: "pressure fills coherent memory that pages prefer",
        edits: &[edit(
            CLEAN,
            "            .preferable()
            .map(",
            "            .devices()
            .map(",
        )],
        tests: rules("r13_a_preference"),
    },
    Mutant {
        rule: "hints",
        what: "pages that prefer RAM are taken like others",
        edits: &[edit(
            UNMAP,
            "            if prefers_ram && (",
            "            if false && prefers_ram && (",
        )],
        tests: rules("pages_that_prefer_ram_leave"),
    },
    Mutant {
        rule: "R19",
        what: "pages that prefer RAM are never taken",
        edits: &[edit(UNMAP, "hand.may_find_others()", "true")],
        tests: rules("r19_pages_that_prefer r19_what_cannot_leave"),
    },
    Mutant {
        rule: "hints",
        what: "pages that prefer RAM are taken while others are in limbo",
        edits: &[
            edit(
                UNMAP,
                " || self.reclaim.limbo_slots.load(Relaxed) > 0)",
                ")",
            ),
            edit(
                UNMAP,
                "self.turns < Self::PATIENT || self.others",
                "self.turns < Self::PATIENT",
            ),
        ],
        tests: rules("pages_that_prefer_ram_leave"),
    },
    Mutant {
        rule: "hints",
        what: "the hand goes page by page over what prefers RAM",
        edits: &[edit(
            UNMAP,
            "                hand.passed = true;
                hand.at = end;",
            "                hand.passed = true;
                hand.at = page.plus(1);",
        )],
        tests: rules("a_chunk_that_prefers_ram"),
    },
    Mutant {
        rule: "R19",
        what: "what cannot leave RAM counts as found, and keeps what prefers RAM there",
        edits: &[edit(UNMAP, "if left > 0 {", "if left < usize::MAX {")],
        tests: rules("r19_what_cannot_leave"),
    },
    Mutant {
        rule: "hints",
        what: "hot pages stay although they are not needed",
        edits: &[edit(UNMAP, "} if !everything => {", "} => {")],
        tests: rules("what_is_not_needed_soon"),
    },
    Mutant {
        rule: "hints",
        what: "pages behind what is not needed go along",
        edits: &[edit(
            UNMAP,
            "room.min((hand.range.end().0 - page.0) as usize)",
            "room.min(BLOCK)",
        )],
        tests: rules("what_is_not_needed_soon"),
    },
    Mutant {
        rule: "hints",
        what: "each call for what is not needed loses a block of the pool",
        edits: &[edit(
            RANGE,
            "                self.end_block(block);",
            "                let _ = block;",
        )],
        tests: rules("what_is_not_needed_stays"),
    },
    Mutant {
        rule: "hints",
        what: "what will be needed pushes others out",
        edits: &[edit(RANGE, "self.pool.available() > enough", "enough > 0")],
        tests: rules("what_will_be_needed_pushes"),
    },
    Mutant {
        rule: "hints",
        what: "what will be needed is not spared by reclaim",
        edits: &[edit(RANGE, "self.entries.set_referenced(page);", "")],
        tests: rules("what_will_be_needed"),
    },
    Mutant {
        rule: "hints",
        what: "what will be needed and is on its way out goes on",
        edits: &[edit(
            RANGE,
            "State::Limbo(_) => true,",
            "State::Limbo(_) => false,",
        )],
        tests: rules("what_will_be_needed_comes_back"),
    },
    Mutant {
        rule: "hints",
        what: "what is cooled is as hot as before",
        edits: &[edit(
            RANGES,
            "                entries.clear_referenced(page, seen);",
            "                let _ = (page, entries);",
        )],
        tests: rules("what_was_cooled"),
    },
    Mutant {
        rule: "hints",
        what: "a hint for a page takes those of its neighbours away",
        edits: &[edit(
            HINTS,
            "four.store(all, Relaxed)",
            "four.store(all & 0, Relaxed)",
        )],
        tests: rules("what_is_wanted_of_a_page"),
    },
    Mutant {
        rule: "hints",
        what: "pages that are brought in ahead lose their copies at the edge of a hint",
        edits: &[edit(
            FAULT,
            "kept(page.plus(i), state) == keep)",
            "!keep || kept(page.plus(i), state))",
        )],
        tests: rules("what_will_be_needed_comes_back"),
    },
];
