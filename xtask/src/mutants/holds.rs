//! R7, and the types of device memory: who may hold, map and migrate which pages.

use super::table::{Mutant, edit, rules};

const COLLECT: &str = "crates/uhmm-core/src/migrate/collect.rs";
const EVICT: &str = "crates/uhmm-core/src/evict.rs";
const HOLD: &str = "crates/uhmm-core/src/hold.rs";
const MAP: &str = "crates/uhmm-core/src/map.rs";
const MIGRATE: &str = "crates/uhmm-core/src/migrate/mod.rs";
const USAGE: &str = "crates/uhmm-core/src/usage.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R7",
        what: "a page in flight is held",
        edits: &[edit(
            HOLD,
            "            Some(State::Migrating) => Some(HoldError::InFlight),",
            "            Some(State::Migrating) => None,",
        )],
        tests: rules("r7_a_page_in_flight"),
    },
    Mutant {
        rule: "R7",
        what: "a page whose entry has let go of it is held anew",
        edits: &[edit(
            HOLD,
            "            Some(_) => Some(HoldError::Free),",
            "            Some(_) => None,",
        )],
        tests: rules("r1_a_page_outlives what_is_not_there"),
    },
    Mutant {
        rule: "types",
        what: "a page that migrates is held for long where it is",
        edits: &[edit(
            HOLD,
            "            Holding::AfterMigrating => return Err(HoldError::MigrateFirst),",
            "            Holding::AfterMigrating => {}",
        )],
        tests: rules("each_type_is_held"),
    },
    Mutant {
        rule: "types",
        what: "a peer's window and a file's page are held for long",
        edits: &[edit(
            HOLD,
            "            Holding::Nobody => return Err(HoldError::NeverLongterm),",
            "            Holding::Nobody => {}",
        )],
        tests: rules("each_type_is_held"),
    },
    Mutant {
        rule: "types",
        what: "a peer's window is held by who does not ask for it",
        edits: &[edit(
            HOLD,
            "            Holding::Peers => return Err(HoldError::PeersOnly),",
            "            Holding::Peers => {}",
        )],
        tests: rules("each_type_is_held"),
    },
    Mutant {
        rule: "types",
        what: "mapped memory that does not migrate is selected",
        edits: &[edit(
            COLLECT,
            "MemoryType::Generic | MemoryType::FsDax | MemoryType::PeerToPeer => return false,",
            "MemoryType::Generic | MemoryType::FsDax | MemoryType::PeerToPeer => {
                Select::DEVICE_COHERENT
            }",
        )],
        tests: rules("r6_what_does_not_migrate"),
    },
    Mutant {
        rule: "types",
        what: "memory that does not migrate is migrated by its device pages",
        edits: &[edit(
            COLLECT,
            "        if !memory.memory_type().migrates() {",
            "        if false {",
        )],
        tests: rules("r6_what_does_not_migrate what_does_not_migrate"),
    },
    Mutant {
        rule: "types",
        what: "memory that does not migrate is a destination",
        edits: &[edit(
            MIGRATE,
            "        if !memory.ok_or(AllocError::NoSuchDevice)?.migrates() {",
            "        if memory.is_none() {",
        )],
        tests: rules("what_does_not_migrate"),
    },
    Mutant {
        rule: "types",
        what: "memory that does not migrate is evicted",
        edits: &[edit(
            EVICT,
            "        if !self.device(device).memory_type().migrates() {",
            "        if false {",
        )],
        tests: rules("r2_memory_that_does_not_migrate"),
    },
    Mutant {
        rule: "types",
        what: "memory that migrates is mapped",
        edits: &[edit(
            MAP,
            "        if memory.memory_type().migrates() {",
            "        if false {",
        )],
        tests: rules("each_type_comes"),
    },
    Mutant {
        rule: "types",
        what: "device pages are mapped over what is there",
        edits: &[edit(
            MAP,
            "Single::claim(self, page, |state| state == State::None)",
            "Single::claim(self, page, |_| true)",
        )],
        tests: rules("what_is_not_in_the_mapping"),
    },
    Mutant {
        rule: "types",
        what: "a mapping that fails part way is half there",
        edits: &[edit(
            MAP,
            "let home = self.mmu.take(back, Home::Arena(first)).pages;",
            "let home = back.len;",
        )],
        tests: rules("a_mapping_that_fails"),
    },
    Mutant {
        rule: "types",
        what: "a page that cannot go home is left when a mapping fails",
        edits: &[edit(
            MAP,
            "            (home..back.len).for_each(|i| self.drop_mapped(to.plus(i), first.plus(i)));",
            "            let _ = home;",
        )],
        tests: rules("a_mapping_that_fails"),
    },
    Mutant {
        rule: "types",
        what: "pages of another space are mapped",
        edits: &[edit(
            MAP,
            "        if !block.is_of(self) {",
            "        if false {",
        )],
        tests: rules("a_driver_cannot_map"),
    },
    Mutant {
        rule: "types",
        what: "a page of another space is a destination",
        edits: &[edit(
            MIGRATE,
            "if !to.is_of(self.hands.space) || !memory",
            "if !memory",
        )],
        tests: rules("a_page_of_another_space"),
    },
    Mutant {
        rule: "types",
        what: "a file's page that cannot be moved home loses its bytes",
        edits: &[edit(
            MAP,
            "        while keeps && !self.mmu.with_arena",
            "        while keeps && false && !self.mmu.with_arena",
        )],
        tests: rules("a_files_bytes"),
    },
    Mutant {
        rule: "bad use",
        what: "a range outside of the space is migrated",
        edits: &[edit(
            COLLECT,
            "        if !self.range().covers(pages) {",
            "        if false {",
        )],
        tests: rules("bad_ranges bad_use"),
    },
    Mutant {
        rule: "bad use",
        what: "a range past the end of a device is migrated",
        edits: &[edit(
            COLLECT,
            "if end.is_none_or(|end| end > memory.capacity()) {",
            "if end.is_none() {",
        )],
        tests: rules("no_more_of_a_device"),
    },
    Mutant {
        rule: "bad use",
        what: "a page past the end of a device is held",
        edits: &[edit(
            HOLD,
            "        if at.page.0 as usize >= memory.capacity() {
            return Err(HoldError::NoSuchPage);
        }",
            "",
        )],
        tests: rules("what_is_not_there"),
    },
    Mutant {
        rule: "usage",
        what: "pages in limbo are charged to nobody",
        edits: &[edit(
            USAGE,
            "State::Limbo(_) | State::Exclusive { .. } => usage.ram += 1,",
            "State::Limbo(_) | State::Exclusive { .. } => {}",
        )],
        tests: rules("a_pages_charge"),
    },
    Mutant {
        rule: "usage",
        what: "a duplicate is charged as its page",
        edits: &[edit(
            USAGE,
            "usage.duplicates += usize::from(duplicate.is_some());",
            "usage.devices[0] += usize::from(duplicate.is_some());",
        )],
        tests: rules("a_pages_charge"),
    },
];
