//! R11 and R12: what is pinned stays, and how it comes to be pinned.

use super::table::{Mutant, edit, rules};

const CLAIMS: &str = "crates/uhmm-core/src/claims.rs";
const COLLECT: &str = "crates/uhmm-core/src/migrate/collect.rs";
const ENTRY: &str = "crates/uhmm-core/src/entry.rs";
const EVICT: &str = "crates/uhmm-core/src/evict.rs";
const EXCLUSIVE: &str = "crates/uhmm-core/src/mirror/exclusive.rs";
const FAILURE: &str = "crates/uhmm-core/src/failure.rs";
const FORK: &str = "crates/uhmm-core/src/fork.rs";
const PIN: &str = "crates/uhmm-core/src/pin.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R11",
        what: "an ordinary pin takes a page off its device",
        edits: &[edit(
            PIN,
            "State::Coherent(at) if self.holding(at, flags) == Holding::AfterMigrating => {",
            "State::Coherent(at) if self.device(at.device).memory_type().migrates() => {",
        )],
        tests: rules("r11_an_ordinary"),
    },
    Mutant {
        rule: "R11",
        what: "a long-term pin leaves a page on its device",
        edits: &[edit(
            PIN,
            "State::Coherent(at) if self.holding(at, flags) == Holding::AfterMigrating => {",
            "State::Coherent(at) if false && self.holding(at, flags) == Holding::AfterMigrating => {",
        )],
        tests: rules("r11_a_long_term"),
    },
    Mutant {
        rule: "R11",
        what: "a fast pin to write ends tracking",
        edits: &[edit(
            PIN,
            "                    if flags.fast {\n                        return Err(PinError::WouldFault(page));\n                    }\n                    self.end_tracking(page)?;",
            "                    self.end_tracking(page)?;",
        )],
        tests: rules("r11_a_fast_pin_to_write"),
    },
    Mutant {
        rule: "R11",
        what: "a fast pin brings what is missing",
        edits: &[edit(
            PIN,
            "                _ if flags.fast => return Err(PinError::WouldFault(page)),\n",
            "",
        )],
        tests: rules("r11_a_fast_pin_neither"),
    },
    Mutant {
        rule: "R11",
        what: "a fast pin for long migrates",
        edits: &[edit(
            PIN,
            "Holding::AfterMigrating if flags.fast => Some(PinError::MigrateFirst(page)),",
            "Holding::AfterMigrating if false => None,",
        )],
        tests: rules("r11_each_type r11_a_fast_pin_neither"),
    },
    Mutant {
        rule: "R11",
        what: "a fast pin for long of a private page reports a fault",
        edits: &[edit(
            PIN,
            "            State::Private(_) if flags.fast && flags.longterm => Some(PinError::MigrateFirst(page)),\n",
            "",
        )],
        tests: rules("r11_a_fast_pin_neither"),
    },
    Mutant {
        rule: "R11",
        what: "a file's page is pinned for long",
        edits: &[edit(
            PIN,
            "Holding::Nobody => Some(PinError::NeverLongterm(page)),",
            "Holding::Nobody => None,",
        )],
        tests: rules("r11_each_type"),
    },
    Mutant {
        rule: "R11",
        what: "a peer's window is pinned by who does not ask for it",
        edits: &[edit(
            PIN,
            "Holding::Peers if !flags.peer => Some(PinError::PeersOnly(page)),",
            "Holding::Peers if !flags.peer => None,",
        )],
        tests: rules("r11_each_type"),
    },
    Mutant {
        rule: "R11",
        what: "pages are migrated before it is said that others can never be pinned",
        edits: &[edit(
            PIN,
            "            if let Some(error) = self.never(page, self.entries.state(page), flags) {\n                return Err(error);\n            }\n        }\n        let limit",
            "            let _ = self.never(page, self.entries.state(page), flags);\n        }\n        let limit",
        )],
        tests: rules("r11_what_can_never_be"),
    },
    Mutant {
        rule: "R11",
        what: "a pin that fails part way keeps what it has",
        edits: &[edit(
            PIN,
            "            if self.take_one(page, flags, scratch)? {",
            "            let first = match self.take_one(page, flags, scratch) {\n                Ok(first) => first,\n                Err(error) => {\n                    std::mem::forget(pinned);\n                    return Err(error);\n                }\n            };\n            if first {",
        )],
        tests: rules("r11_a_page_that_does_not_come"),
    },
    Mutant {
        rule: "R11",
        what: "runs of pages are taken although some are pinned",
        edits: &[edit(
            CLAIMS,
            "seen.state() == State::Migrating || seen.pins() > 0 || !select(",
            "seen.state() == State::Migrating || !select(",
        )],
        tests: rules("r11_a_pinned_page_stays"),
    },
    Mutant {
        rule: "R11",
        what: "a single page is taken although it is pinned",
        edits: &[edit(
            CLAIMS,
            "|seen| seen.pins() == 0 && select(seen.state())",
            "|seen| select(seen.state())",
        )],
        tests: rules("r11_a_pinned_page_stays"),
    },
    Mutant {
        rule: "R11",
        what: "a discard drops what comes before a pinned page",
        edits: &[edit(
            RANGES,
            "        self.check_unpinned(pages)?;\n        let _changing = self.space.invalidating(pages, Event::Clear);",
            "        let _changing = self.space.invalidating(pages, Event::Clear);",
        )],
        tests: rules("r11_a_pinned_page_stays"),
    },
    Mutant {
        rule: "R11",
        what: "a pinned page is moved by a remap",
        edits: &[edit(RANGES, "        self.check_unpinned(from)?;\n", "")],
        tests: rules("r11_a_pinned_page_stays"),
    },
    Mutant {
        rule: "R11",
        what: "pages that are pinned count as the space's own when a device is emptied",
        edits: &[edit(
            EVICT,
            "memory.count(page) > 1 || self.is_pinned(owner)",
            "memory.count(page) > 1",
        )],
        tests: rules("r11_a_pinned_page_stays"),
    },
    Mutant {
        rule: "R11",
        what: "all of the budget is pinned",
        edits: &[edit(
            EXCLUSIVE,
            ".filter(|kept| *kept <= limit)",
            ".filter(|_| limit > 0)",
        )],
        tests: rules("r11_no_more_is_pinned"),
    },
    Mutant {
        rule: "R11",
        what: "a page takes more pins than can be counted",
        edits: &[edit(
            PIN,
            "                    if seen.pins() == MAX_PINS {",
            "                    if false && seen.pins() == MAX_PINS {",
        )],
        tests: rules("r11_a_page_takes_only"),
    },
    Mutant {
        rule: "R11",
        what: "a pin to write leaves a page shared after a fork",
        edits: &[edit(
            PIN,
            "        if flags.write {\n            self.mmu.unshare(pages);",
            "        if false {\n            self.mmu.unshare(pages);",
        )],
        tests: rules("r11_a_pin_to_write"),
    },
    Mutant {
        rule: "R11",
        what: "a pin to write leaves writes tracked",
        edits: &[edit(
            PIN,
            "                } if flags.write => {",
            "                } if flags.write && false => {",
        )],
        tests: rules("r11_a_pin_to_write"),
    },
    Mutant {
        rule: "R11",
        what: "a pinned page whose memory fails goes to its device",
        edits: &[edit(
            FAILURE,
            "                    if claimed.is_pinned() {",
            "                    if false && claimed.is_pinned() {",
        )],
        tests: rules("r11_a_pinned_page_whose"),
    },
    Mutant {
        rule: "R11",
        what: "a pinned page that fails and has no copy left reads as zero",
        edits: &[edit(
            FAILURE,
            "        let failure = if loaded.is_ok() {",
            "        let failure = if loaded.is_ok() || true {",
        )],
        tests: rules("r11_a_pinned_page_whose"),
    },
    Mutant {
        rule: "R11",
        what: "a pinned page keeps the duplicate that is to be given up",
        edits: &[edit(
            COLLECT,
            "Single::claim_in_place(space, page, names_it)",
            "Single::claim(space, page, names_it)",
        )],
        tests: rules("r11_a_device_goes"),
    },
    Mutant {
        rule: "R11",
        what: "a reference is held for long",
        edits: &[edit(
            PIN,
            "        if flags.longterm {\n            return Err(PinError::NotForLong);",
            "        if false {\n            return Err(PinError::NotForLong);",
        )],
        tests: rules("r11_bad_use"),
    },
    Mutant {
        rule: "R11",
        what: "pages without RAM are busy",
        edits: &[edit(
            PIN,
            "state if self.lacks_ram(state) => PinError::NoRam(page),",
            "state if self.lacks_ram(state) && false => PinError::NoRam(page),",
        )],
        tests: rules("r11_where_there_is_no_ram"),
    },
    Mutant {
        rule: "R12",
        what: "a change of a pinned page forgets its pins",
        edits: &[edit(
            ENTRY,
            "                Some(settled.pinned(pins).0)",
            "                Some(settled.0)",
        )],
        tests: rules("r11_a_pinned_page_whose r11_a_device_goes"),
    },
    Mutant {
        rule: "R12",
        what: "a release is not counted",
        edits: &[edit(
            PIN,
            "        counter.add(pages.len as u64);",
            "        counter.add(0);",
        )],
        tests: rules("r12_whatever r11_a_page_that_does_not_come"),
    },
    Mutant {
        rule: "R12",
        what: "the room of what is released is not given back",
        edits: &[edit(
            PIN,
            "                space.stats().pinned_pages.sub(1);\n                space.keep_no_more(1);",
            "                space.stats().pinned_pages.sub(1);",
        )],
        tests: rules("r12_whatever r11_no_more_is_pinned"),
    },
    Mutant {
        rule: "R12",
        what: "a page pinned twice is counted as two",
        edits: &[edit(
            PIN,
            "                    let first = seen.pins() == 0;",
            "                    let first = true;",
        )],
        tests: rules("r11_no_more_is_pinned r12_whatever"),
    },
    Mutant {
        rule: "R16",
        what: "the child of a fork has its parent's pins",
        edits: &[edit(FORK, "        self.forget_pins();\n", "")],
        tests: rules("r16_the_child_of_a_fork_has_no_pins"),
    },
];
