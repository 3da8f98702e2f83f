//! R1 to R4: device pages and pagemaps.

use super::table::{Mutant, edit, rules};

const CLEAN: &str = "crates/uhmm-core/src/reclaim/clean.rs";
const EVICT: &str = "crates/uhmm-core/src/evict.rs";
const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const PAGEMAP: &str = "crates/uhmm-core/src/pagemap.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";
const RECLAIM: &str = "crates/uhmm-core/src/reclaim/mod.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R1",
        what: "a page that leaves the device keeps its entry's reference",
        edits: &[edit(
            PAGEMAP,
            "        self.pagemap.put(self.page, stats);\n        self.end(stats);",
            "        self.end(stats);",
        )],
        tests: rules("r1_"),
    },
    Mutant {
        rule: "R1",
        what: "a page that is dropped stays on the device",
        edits: &[edit(
            RANGES,
            "State::Private(at) => space.devices[usize::from(at.device)].bury(at.page),",
            "",
        )],
        tests: rules("r1_"),
    },
    Mutant {
        rule: "R2",
        what: "the removal does not look at the count",
        edits: &[edit(EVICT, "if pagemap.references() == 0 {", "if true {")],
        tests: rules("r2_a_device"),
    },
    Mutant {
        rule: "R2",
        what: "a page that is freed keeps its reference on the pagemap",
        edits: &[edit(
            PAGEMAP,
            "        stats.pages.sub(1);\n        self.put_pagemap();",
            "        stats.pages.sub(1);",
        )],
        tests: rules("r2_a_device"),
    },
    Mutant {
        rule: "R2",
        what: "a killed pagemap still hands out pages",
        edits: &[
            edit(
                PAGEMAP,
                "        if self.dying.load(SeqCst) {\n            self.put_pagemap();",
                "        if false {\n            self.put_pagemap();",
            ),
            edit(CLEAN, "if device.is_dying() {", "if false {"),
        ],
        tests: rules("r2_a_device"),
    },
    Mutant {
        rule: "R3",
        what: "a page is read before it is claimed and referenced",
        edits: &[edit(
            FAULT,
            "        let fresh = self.state(page) == State::None;",
            "        if let State::Private(at) = self.state(page) {
            let device = self.devices[usize::from(at.device)].device();
            let _ = device.copy_out(at.page, &mut scratch.pages[0]);
        }
        let fresh = self.state(page) == State::None;",
        )],
        tests: rules("r3_a_fault").tried(3),
    },
    Mutant {
        rule: "R3",
        what: "pages that could not be installed are freed",
        edits: &[edit(
            FAULT,
            "Some((reference, at)) => reference.end(self.device_stats(at.device)),",
            "Some((reference, at)) => reference.leave(self.device_stats(at.device)),",
        )],
        tests: rules("r3_a_page"),
    },
    Mutant {
        rule: "R4",
        what: "the driver is told twice of a free page",
        edits: &[edit(
            PAGEMAP,
            "self.device.free(page);",
            "self.device.free(page);\n        self.device.free(page);",
        )],
        tests: rules("r4_"),
    },
    Mutant {
        rule: "R4",
        what: "the driver is not told of a free page",
        edits: &[edit(PAGEMAP, "self.device.free(page);", "")],
        tests: rules("r4_"),
    },
    Mutant {
        rule: "R4",
        what: "nobody frees what application threads have buried",
        edits: &[edit(RECLAIM, "        self.free_buried();\n", "")],
        tests: rules("r4_"),
    },
];
