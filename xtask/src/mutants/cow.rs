//! R16: copy-on-write of coherent pages.

use super::table::{Mutant, edit, rules};

const COLLECT: &str = "crates/uhmm-core/src/migrate/collect.rs";
const COW: &str = "crates/uhmm-core/src/cow.rs";
const ENTRY: &str = "crates/uhmm-core/src/entry.rs";
const FINALIZE: &str = "crates/uhmm-core/src/migrate/finalize.rs";
const FORK: &str = "crates/uhmm-core/src/fork.rs";
const PIN: &str = "crates/uhmm-core/src/pin.rs";
const RANGE_FAULT: &str = "crates/uhmm-core/src/mirror/range_fault.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R16",
        what: "coherent pages are not tracked at a fork",
        edits: &[edit(
            FORK,
            "        self.gate.close(&self.mmu);\n        self.share_coherent();\n",
            "        self.gate.close(&self.mmu);\n",
        )],
        tests: rules("r16_a_write_after"),
    },
    Mutant {
        rule: "R16",
        what: "the child of a fork does not track its coherent pages",
        edits: &[edit(
            FORK,
            "        self.forget_pins();\n        self.share_coherent();\n",
            "        self.forget_pins();\n",
        )],
        tests: rules("r16_a_write_after"),
    },
    Mutant {
        rule: "R16",
        what: "pinned coherent pages are marked as shared",
        edits: &[edit(
            ENTRY,
            "(is_coherent(Word(now)) && Word(now).pins() == 0).then_some",
            "is_coherent(Word(now)).then_some",
        )],
        tests: rules("r11_a_pinned_page_stays_under"),
    },
    Mutant {
        rule: "R16",
        what: "a coherent page is copied though nobody else maps it",
        edits: &[edit(
            COW,
            "        if alone > 0 {\n",
            "        if false {\n",
        )],
        tests: rules("r16_what_nobody_else"),
    },
    Mutant {
        rule: "R16",
        what: "pages beside one that nobody else maps are taken for such",
        edits: &[edit(
            COW,
            "            run.truncate(alone);\n",
            "            let alone = run.pages().len;\n",
        )],
        tests: rules("r16_each_page"),
    },
    Mutant {
        rule: "R16",
        what: "a shared coherent page goes home as zeros",
        edits: &[edit(
            COW,
            "read = self.mmu.peek(page, home);",
            "{\n            let _: &mut crate::addr::PageData = home;\n            read = true;\n        };",
        )],
        tests: rules("r16_a_write_after"),
    },
    Mutant {
        rule: "R16",
        what: "a copy that was not read stays at home",
        edits: &[edit(
            COW,
            "        } else if there {\n            self.mmu.drop_arena(at, 1);\n",
            "        } else if there {\n",
        )],
        tests: rules("r16_a_copy_that_fails"),
    },
    Mutant {
        rule: "R16",
        what: "a write takes a page off its device that a driver holds",
        edits: &[edit(
            COW,
            "        if self.is_held_too(at) {\n            self.map_home",
            "        if false {\n            self.map_home",
        )],
        tests: rules("r16_a_held_page"),
    },
    Mutant {
        rule: "R14",
        what: "nobody is told of a copy on write",
        edits: &[edit(
            COW,
            "        self.notify(PageRange::new(page, 1), Event::Migrate);\n        if !self.copy_home",
            "        if !self.copy_home",
        )],
        tests: rules("r14_a_copy_on_write"),
    },
    Mutant {
        rule: "R16",
        what: "a page that could not be copied is tracked no more",
        edits: &[edit(
            ENTRY,
            "        let was = claim.was.without_pins();\n",
            "        let was = Word(claim.was.without_pins().0 & !(SHARED * u64::from(claim.was.is_shared())));\n",
        )],
        tests: rules("r16_a_machine_without"),
    },
    Mutant {
        rule: "R16",
        what: "a shared page that was put back counts as shared still",
        edits: &[edit(
            FINALIZE,
            "            claimed.settle(match mapped {",
            "            if mapped {\n                return;\n            }\n            claimed.settle(match mapped {",
        )],
        tests: rules("r16_shared_pages_go"),
    },
    Mutant {
        rule: "R16",
        what: "a migration makes a tracked page private by a write",
        edits: &[edit(
            COLLECT,
            "        if space.entries.load(page).is_shared() {\n",
            "        if false {\n",
        )],
        tests: rules("r16_shared_pages_go"),
    },
    Mutant {
        rule: "R16",
        what: "a tracked page is moved to another address as it is",
        edits: &[edit(
            RANGES,
            "            if space.entries.load(from).is_shared() {\n",
            "            if false {\n",
        )],
        tests: rules("r16_shared_pages_go"),
    },
    Mutant {
        rule: "R16",
        what: "a pin leaves a coherent page shared",
        edits: &[edit(
            PIN,
            "                State::Coherent(_) if seen.is_shared() => {",
            "                State::Coherent(_) if seen.is_shared() && false => {",
        )],
        tests: rules("r16_a_pin_makes"),
    },
    Mutant {
        rule: "R16",
        what: "a device may write to a page that is shared",
        edits: &[edit(
            RANGE_FAULT,
            "device(at, write && !seen.is_shared()),",
            "device(at, write),",
        )],
        tests: rules("r16_a_device_that_is_to_write"),
    },
    Mutant {
        rule: "R16",
        what: "a page that was copied during a fork is copied again",
        edits: &[edit(
            FORK,
            "                if self.fork_log.iter().any(|logged| logged == page) {\n                    // Another",
            "                if false {\n                    // Another",
        )],
        tests: rules("r16_what_is_written_while"),
    },
    Mutant {
        rule: "R16",
        what: "the child does not look for bytes that had just gone home",
        edits: &[edit(
            FORK,
            "            self.find_at_home(page);\n",
            "            let _ = page;\n",
        )],
        tests: rules("r16_a_fork_in_the_middle"),
    },
];
