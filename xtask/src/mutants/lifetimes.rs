//! R1, R3 and R4: the references of device pages, and who frees.

use super::table::{Mutant, edit, rules};

const CHUNK: &str = "crates/uhmm-core/src/pagemap/chunk.rs";
const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const FINALIZE: &str = "crates/uhmm-core/src/migrate/finalize.rs";
const COLLECT: &str = "crates/uhmm-core/src/migrate/collect.rs";
const HOLD: &str = "crates/uhmm-core/src/hold.rs";
const MAP: &str = "crates/uhmm-core/src/map.rs";
const PAGEMAP: &str = "crates/uhmm-core/src/pagemap/mod.rs";
const GRIP: &str = "crates/uhmm-core/src/grip.rs";
const RECLAIM: &str = "crates/uhmm-core/src/reclaim/mod.rs";
const STORE: &str = "crates/uhmm-core/src/store.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R1",
        what: "a page that leaves the device keeps its entry's reference",
        edits: &[edit(
            PAGEMAP,
            "        self.memory.put(self.page, stats);\n        self.end(stats);",
            "        self.end(stats);",
        )],
        tests: rules("r1_device_pages"),
    },
    Mutant {
        rule: "R1",
        what: "a page that is dropped stays on the device",
        edits: &[edit(
            GRIP,
            "            State::Private(at) | State::Coherent(at) => self.device(at.device).bury(at.page),",
            "            State::Private(_) | State::Coherent(_) => {}",
        )],
        tests: rules("r1_device_pages"),
    },
    Mutant {
        rule: "R1",
        what: "a page is handed out without a reference of its own",
        edits: &[edit(
            CHUNK,
            "now.bits() << STAMP_SHIFT | NOBODY << OWNER_SHIFT | 1;",
            "now.bits() << STAMP_SHIFT | NOBODY << OWNER_SHIFT;",
        )],
        tests: rules("r1_a_page_is_in_use"),
    },
    Mutant {
        rule: "R1",
        what: "a free page can be held",
        edits: &[edit(
            CHUNK,
            "(word & COUNT != 0 && word & COUNT != COUNT).then(|| word + 1)",
            "(word & COUNT != COUNT).then(|| word + 1)",
        )],
        tests: rules("r1_a_page_is_in_use what_is_not_there"),
    },
    Mutant {
        rule: "R1",
        what: "who lets go of a page last does not free it",
        edits: &[edit(
            HOLD,
            "        self.space.device(self.at.device).bury(self.at.page);",
            "",
        )],
        tests: rules("r1_a_page_outlives"),
    },
    Mutant {
        rule: "R1",
        what: "a mapped block stays its driver's too",
        edits: &[edit(MAP, "        block.give_on(len);\n", "")],
        tests: rules("each_type_comes"),
    },
    Mutant {
        rule: "R1",
        what: "a destination that was not needed stays in use",
        edits: &[edit(
            FINALIZE,
            "            self.space.put_page(at);",
            "            let _ = at;",
        )],
        tests: rules("r1_destinations"),
    },
    Mutant {
        rule: "R3",
        what: "a page is read before it is claimed and referenced",
        edits: &[edit(
            FAULT,
            "        let fresh = seen == State::None;",
            "        if let State::Private(at) = seen {
            let device = self.device(at.device).driver();
            let _ = device.copy_out(at.page, &mut scratch.pages[0]);
        }
        let fresh = seen == State::None;",
        )],
        tests: rules("r3_an_eviction_at"),
    },
    Mutant {
        rule: "R3",
        what: "pages that could not be installed are freed",
        edits: &[edit(FAULT, "if i < installed && !keep {", "if !keep {")],
        tests: rules("r3_a_page"),
    },
    Mutant {
        rule: "R3",
        what: "a migration does not know of the fault page",
        edits: &[edit(
            COLLECT,
            "let fault = u16::from(self.fault_page == Some(at));",
            "let fault = 0;",
        )],
        tests: rules("r3_the_fault_page"),
    },
    Mutant {
        rule: "R3",
        what: "a migration for a fault takes every page for the fault page",
        edits: &[edit(
            COLLECT,
            "let fault = u16::from(self.fault_page == Some(at));",
            "let fault = u16::from(self.fault_page.is_some());",
        )],
        tests: rules("r3_the_fault_page"),
    },
    Mutant {
        rule: "R4",
        what: "the driver is told twice of a free page",
        edits: &[edit(
            PAGEMAP,
            "            self.driver.free(page);",
            "            self.driver.free(page);\n            self.driver.free(page);",
        )],
        tests: rules("r4_each_page"),
    },
    Mutant {
        rule: "R4",
        what: "the driver is not told of a free page",
        edits: &[edit(PAGEMAP, "            self.driver.free(page);", "")],
        tests: rules("r5_an_installation"),
    },
    Mutant {
        rule: "R4",
        what: "the driver is told of a page that it never stored",
        edits: &[edit(PAGEMAP, "if dead.stored {", "if true {")],
        tests: rules("r1_destinations r4_a_destination"),
    },
    Mutant {
        rule: "R4",
        what: "the driver is told of a page whose copy has failed",
        edits: &[edit(
            FINALIZE,
            "                    self.space.device(at.device).clear_stored(at.page);\n",
            "",
        )],
        tests: rules("r5_a_fence_that_fails"),
    },
    Mutant {
        rule: "R4",
        what: "the driver is told of a page that reclaim could not store",
        edits: &[edit(
            STORE,
            "                    memory.clear_stored(page);\n",
            "",
        )],
        tests: rules("r5_reclaim_stores"),
    },
    Mutant {
        rule: "R4",
        what: "the driver is not told of what was stored by a batch",
        edits: &[edit(
            STORE,
            "                Ok(()) => memory.set_stored(page),",
            "                Ok(()) => {}",
        )],
        tests: rules("r5_an_installation"),
    },
    Mutant {
        rule: "R4",
        what: "a page has its next user before its driver knows that it is free",
        edits: &[edit(
            PAGEMAP,
            "        if dead.stored {
            self.driver.free(page);
        }
        stats.pages.sub(1);
        self.at(page).end(page, dead);",
            "        stats.pages.sub(1);
        self.at(page).end(page, dead);
        if dead.stored {
            self.driver.free(page);
        }",
        )],
        tests: rules("r4_a_page_is_free_only"),
    },
    Mutant {
        rule: "R4",
        what: "nobody frees what application threads have buried",
        edits: &[edit(RECLAIM, "        self.free_buried();\n", "")],
        tests: rules("r4_each_page"),
    },
];
