//! R2, and the allocator: chunks of device memory, from their beginning to their end.

use super::table::{Mutant, edit, rules};

const BUDDY: &str = "crates/uhmm-core/src/pagemap/buddy.rs";
const CHUNK: &str = "crates/uhmm-core/src/pagemap/chunk.rs";
const EVICT: &str = "crates/uhmm-core/src/evict.rs";
const HOLD: &str = "crates/uhmm-core/src/hold.rs";
const PAGEMAP: &str = "crates/uhmm-core/src/pagemap/mod.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R2",
        what: "the removal does not look at the count",
        edits: &[edit(
            CHUNK,
            "let unused = self.references.load(SeqCst) == 0;",
            "let unused = true;",
        )],
        tests: rules("r2_a_pagemap_waits"),
    },
    Mutant {
        rule: "R2",
        what: "a page that is freed keeps its reference on the pagemap",
        edits: &[edit(
            CHUNK,
            "        let was = self.references.fetch_sub(1, AcqRel);
        debug_assert!(was > 0",
            "        let was = self.references.load(Acquire);
        debug_assert!(was > 0",
        )],
        tests: rules("r1_a_page_is_in_use"),
    },
    Mutant {
        rule: "R2",
        what: "a page that is handed out takes no reference on its pagemap",
        edits: &[
            edit(
                CHUNK,
                "        self.references.fetch_add(len, SeqCst);\n",
                "",
            ),
            edit(
                CHUNK,
                "            self.references.fetch_sub(len, AcqRel);\n",
                "",
            ),
        ],
        tests: rules("r1_a_page_is_in_use"),
    },
    Mutant {
        rule: "R2",
        what: "a page that was asked for by its number takes no reference on its pagemap",
        edits: &[
            edit(
                CHUNK,
                "        self.references.fetch_add(1, SeqCst);\n        let taken",
                "        let taken",
            ),
            edit(
                CHUNK,
                "        } else {\n            self.references.fetch_sub(1, AcqRel);\n        }\n        taken",
                "        }\n        taken",
            ),
        ],
        tests: rules("a_page_is_handed_out_by_its_number"),
    },
    Mutant {
        rule: "R2",
        what: "a dying chunk still hands out pages",
        edits: &[edit(
            CHUNK,
            "            ALIVE => self.free.take(order),",
            "            ALIVE | DYING => self.free.take(order),",
        )],
        tests: rules("r2_a_chunk_that_was_killed"),
    },
    Mutant {
        rule: "R2",
        what: "a dying chunk still hands out pages by their numbers",
        edits: &[edit(
            CHUNK,
            "self.phase.load(SeqCst) == ALIVE && self.free.take_at(",
            "self.phase.load(SeqCst) <= DYING && self.free.take_at(",
        )],
        tests: rules("r2_a_chunk_that_was_killed"),
    },
    Mutant {
        rule: "R2",
        what: "a device that was removed hands out pages, and makes chunks",
        edits: &[
            edit(
                PAGEMAP,
                "        if self.is_dying() {\n            return Err(AllocError::Removed);",
                "        if false {\n            return Err(AllocError::Removed);",
            ),
            edit(
                PAGEMAP,
                "        if self.is_dying() {\n            return Err(AddChunkError::Removed);",
                "        if false {\n            return Err(AddChunkError::Removed);",
            ),
        ],
        tests: rules("r2_what_is_removed"),
    },
    Mutant {
        rule: "R2",
        what: "a chunk that comes while its device goes is alive for good",
        edits: &[
            edit(
                PAGEMAP,
                "        if self.is_dying() {\n            chunk.kill();",
                "        if false {\n            chunk.kill();",
            ),
            edit(
                EVICT,
                "                chunks().for_each(|pagemap| memory.kill_chunk(pagemap));",
                "",
            ),
        ],
        tests: rules("r2_a_chunk_that_comes"),
    },
    Mutant {
        rule: "R2",
        what: "a removal does not wait for a chunk that is being added",
        edits: &[edit(
            EVICT,
            "            if in_use == 0 && chunks().all(is_done) {",
            "            if in_use == 0 && (chunks().all(is_done) || true) {",
        )],
        tests: rules("r2_a_chunk_that_comes"),
    },
    Mutant {
        rule: "R2",
        what: "the driver is told twice that a chunk is gone",
        edits: &[edit(
            CHUNK,
            "        if !self.begin_change(DYING) {",
            "        if self.phase.swap(CHANGING, SeqCst) == ALIVE {",
        )],
        tests: rules("r2_a_chunk_is_removed"),
    },
    Mutant {
        rule: "R2",
        what: "the memory of a removed chunk is kept",
        edits: &[edit(
            EVICT,
            "            if memory.memory_type().is_mapped() {",
            "            if false {",
        )],
        tests: rules("r2_the_memory_of r2_a_removed_device"),
    },
    Mutant {
        rule: "R2",
        what: "a chunk that its driver took away comes back unasked",
        edits: &[edit(
            CHUNK,
            "self.is_released() && !self.begun.load(Acquire)",
            "self.is_released()",
        )],
        tests: rules("r2_a_chunk_is_removed"),
    },
    Mutant {
        rule: "R2",
        what: "pages are handed out before the driver knows of their chunk",
        edits: &[edit(
            CHUNK,
            "        self.begin_change(RELEASED)\n",
            "        let begun = self.begin_change(RELEASED);
        if begun {
            self.phase.store(ALIVE, SeqCst);
        }
        begun\n",
        )],
        tests: rules("r1_two_who_need"),
    },
    Mutant {
        rule: "R2",
        what: "a chunk is removed that its driver never had",
        edits: &[edit(
            PAGEMAP,
            "        chunk.end_adding(added);\n        if !added {",
            "        chunk.end_adding(true);\n        if false {",
        )],
        tests: rules("a_driver_that_has_no_memory a_device_may_have_no_memory"),
    },
    Mutant {
        rule: "R2",
        what: "a suspended device hands out pages",
        edits: &[
            edit(
                PAGEMAP,
                "        if self.suspended.load(SeqCst) {\n            return",
                "        if false {\n            return",
            ),
            edit(
                PAGEMAP,
                "        if self.suspended.load(SeqCst) {\n            (0..1",
                "        if false {\n            (0..1",
            ),
        ],
        tests: rules("nothing_comes_to_a_suspended"),
    },
    Mutant {
        rule: "R2",
        what: "a device that is suspended meanwhile hands out a page",
        edits: &[edit(
            PAGEMAP,
            "        if self.suspended.load(SeqCst) {\n            (0..1",
            "        if false {\n            (0..1",
        )],
        tests: rules("nothing_comes_to_a_device_that"),
    },
    Mutant {
        rule: "R2",
        what: "who waits for pages to be idle does not wait",
        edits: &[edit(
            HOLD,
            "while (0..len).any(|i| memory.count(first.plus(i)) > 0) {",
            "while (0..len).any(|i| memory.count(first.plus(i)) > 1) {",
        )],
        tests: rules("who_waits_for_a_page"),
    },
    Mutant {
        rule: "allocator",
        what: "a freed page is not had again",
        edits: &[edit(
            CHUNK,
            "            self.free.give((page.0 - self.first.0) as usize, 0);",
            "",
        )],
        tests: rules("r1_2_mib"),
    },
    Mutant {
        rule: "allocator",
        what: "free blocks are not merged",
        edits: &[edit(
            BUDDY,
            "        while self.merge(at, page >> at) {\n            at += 1;\n        }\n",
            "        self.set(at, page >> at);\n        at += 1;\n",
        )],
        tests: rules("r1_2_mib"),
    },
    Mutant {
        rule: "allocator",
        what: "the half of a block that was handed out stays free",
        edits: &[edit(
            BUDDY,
            "            self.set(order, (page >> order) ^ 1);",
            "            self.set(order, page >> order);\n            self.set(order, (page >> order) ^ 1);",
        )],
        tests: rules("r1_blocks_of_every_order"),
    },
    Mutant {
        rule: "allocator",
        what: "a page that was handed out by its number stays free",
        edits: &[edit(
            BUDDY,
            "let found = (0..=MAX_ORDER).find(|&order| self.clear(order, page >> order));",
            "let found = (0..=MAX_ORDER).find(|&order| {
            let (word, bit) = self.place(order, page >> order);
            word.load(Acquire) & bit != 0
        });",
        )],
        tests: rules("a_page_is_handed_out_by_its_number"),
    },
];
