//! R8 to R10 and R13: eviction, lost pages, what the next owner of memory sees, and who has business
//! with mapped device memory.

use super::table::{Mutant, edit, rules};

const CLEAN: &str = "crates/uhmm-core/src/reclaim/clean.rs";
const COPY: &str = "crates/uhmm-core/src/migrate/copy.rs";
const EVICT: &str = "crates/uhmm-core/src/evict.rs";
const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const FINALIZE: &str = "crates/uhmm-core/src/migrate/finalize.rs";
const HOLD: &str = "crates/uhmm-core/src/hold.rs";
const PAGEMAP: &str = "crates/uhmm-core/src/pagemap/mod.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";
const WALK: &str = "crates/uhmm-core/src/walk.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R8",
        what: "a moved page keeps its old owner",
        edits: &[edit(
            RANGES,
            "                    space.device(at.device).set_owner(at.page, to);\n                    1\n",
            "                    let _ = at;\n                    1\n",
        )],
        tests: rules("r8_a_page_that_moves"),
    },
    Mutant {
        rule: "R8",
        what: "a page that migrates to a device has no owner there",
        edits: &[edit(
            FINALIZE,
            "        space.device(to.device).set_owner(to.page, claimed.page());\n",
            "",
        )],
        tests: rules("r8_a_range_of_a_device"),
    },
    Mutant {
        rule: "R8",
        what: "a page that reclaim stores has no owner",
        edits: &[edit(
            CLEAN,
            "                memory.set_owner(page, claimed.page());\n",
            "",
        )],
        tests: rules("r1_device_pages"),
    },
    Mutant {
        rule: "R9",
        what: "a lost page counts as read",
        edits: &[edit(
            FAULT,
            "                if let Err(error) = result {",
            "                if let Err(error @ CopyOutError::Retry) = result {",
        )],
        tests: rules("r9_a_lost_page_is"),
    },
    Mutant {
        rule: "R9",
        what: "`Retry` counts as lost",
        edits: &[edit(
            FAULT,
            "                if let Err(error) = result {",
            "                if let Err(error) = result.map_err(|_| CopyOutError::Lost) {",
        )],
        tests: rules("r9_a_device_that_says_retry_is"),
    },
    Mutant {
        rule: "R9",
        what: "a page without memory counts as lost",
        edits: &[edit(
            FAULT,
            "        let present = progress.pages == 0 && progress.stop == Some(Stop::Present);",
            "        if progress.pages == 0 && progress.stop == Some(Stop::NoMemory) {
            for (i, (reference, at)) in held.into_iter().enumerate() {
                let stats = self.device_stats(at.device);
                if i == 0 {
                    reference.leave(stats);
                } else {
                    reference.end(stats);
                }
            }
            return self.lost(run);
        }
        let present = progress.pages == 0 && progress.stop == Some(Stop::Present);",
        )],
        tests: rules("r9_a_machine_without"),
    },
    Mutant {
        rule: "R9",
        what: "a touch of a poisoned page is served zeros",
        edits: &[edit(
            FAULT,
            "                self.mmu.poison(page);\n                self.served(page)",
            "                let _ = self.mmu.copy(&ZEROS[..1], page, Tracking::Off);\n                self.served(page)",
        )],
        tests: rules("r9_a_lost_page_is"),
    },
    Mutant {
        rule: "R9",
        what: "an eviction takes `Retry` for lost",
        edits: &[edit(
            COPY,
            "Err(CopyOutError::Retry) => Copied::No,",
            "Err(CopyOutError::Retry) => Copied::Lost,",
        )],
        tests: rules("r9_a_device_that_says_retry_keeps"),
    },
    Mutant {
        rule: "R9",
        what: "an eviction brings a lost page home as whatever was in its buffer",
        edits: &[edit(
            COPY,
            "Err(CopyOutError::Lost) => Copied::Lost,",
            "Err(CopyOutError::Lost) => Copied::ToBuffer {
                        buffer: number,
                        index,
                    },",
        )],
        tests: rules("r9_a_page_that_its_device"),
    },
    Mutant {
        rule: "R9",
        what: "a page that was lost in a migration reads as zeros",
        edits: &[edit(
            FINALIZE,
            "        space.mmu.poison(page);\n        claimed.settle(State::Poisoned);",
            "        claimed.settle(State::None);",
        )],
        tests: rules("r9_a_page_that_its_device"),
    },
    Mutant {
        rule: "R9",
        what: "an eviction gives up at the first shortage of RAM",
        edits: &[edit(
            EVICT,
            "            if start.elapsed() > patience {",
            "            if left_ram || start.elapsed() > patience {",
        )],
        tests: rules("r9_eviction_waits"),
    },
    Mutant {
        rule: "R9",
        what: "an eviction does not see the free frames",
        edits: &[edit(
            EVICT,
            "            let room = self.pool.available();",
            "            let room = self.pool.budget().saturating_sub(self.pool.charged());",
        )],
        tests: rules("r9_eviction_uses"),
    },
    Mutant {
        rule: "R9",
        what: "a dead device goes on being used",
        edits: &[edit(
            PAGEMAP,
            "        if error == CopyInError::Dead && self.kill() {",
            "        if false && error == CopyInError::Dead && self.kill() {",
        )],
        tests: rules("r9_the_copies"),
    },
    Mutant {
        rule: "R10",
        what: "a warm frame is given out for a first touch as it is",
        edits: &[edit(
            FAULT,
            "                self.mmu
                    .with_frame(&frame, &mut |data| data.0.copy_from_slice(&from[0].0));",
            "                if from.as_ptr() != ZEROS.as_ptr() {
                    self.mmu
                        .with_frame(&frame, &mut |data| data.0.copy_from_slice(&from[0].0));
                }",
        )],
        tests: rules("r10_a_warm_frame"),
    },
    Mutant {
        rule: "R10",
        what: "a first touch gets what its handler copied last",
        edits: &[edit(
            FAULT,
            "            &ZEROS[..]\n",
            "            &scratch.pages[..]\n",
        )],
        tests: rules("r10_a_first_touch"),
    },
    Mutant {
        rule: "R10",
        what: "a driver is handed what the last owner left",
        edits: &[edit(
            HOLD,
            "                    if !memory_type.keeps_bytes() {",
            "                    if false {",
        )],
        tests: rules("r10_a_driver_is_handed"),
    },
    Mutant {
        rule: "R10",
        what: "a file's page is cleared for its next owner",
        edits: &[edit(
            HOLD,
            "                    if !memory_type.keeps_bytes() {",
            "                    if true {",
        )],
        tests: rules("r10_the_next_owner_of_a_page"),
    },
    Mutant {
        rule: "R10",
        what: "a hole goes to a device as what a buffer held",
        edits: &[edit(
            COPY,
            "                    _ => &ZEROS[0],",
            "                    _ => self.buffers.first().map_or(&ZEROS[0], |buffer| &buffer[0]),",
        )],
        tests: rules("r10_a_hole"),
    },
    Mutant {
        rule: "R10",
        what: "a page is dropped after its claim has ended",
        edits: &[edit(
            RANGES,
            "            if was.iter().any(marks) {
                space.mmu.discard(run.pages());
            }
            run.settle(len, |_| State::None);",
            "            let pages = run.pages();
            run.settle(len, |_| State::None);
            if was.iter().any(marks) {
                space.mmu.discard(pages);
            }",
        )],
        tests: rules("r10_what_was_discarded"),
    },
    Mutant {
        rule: "R13",
        what: "reclaim stores to memory that the CPU maps",
        edits: &[edit(
            CLEAN,
            "            memory.memory_type() == MemoryType::Private && memory.is_open()",
            "            memory.is_open()",
        )],
        tests: rules("r13_pressure r13_reclaim_never_takes"),
    },
    Mutant {
        rule: "R13",
        what: "a walk finds mapped device pages",
        edits: &[edit(
            WALK,
            "                State::Private(_) | State::Coherent(_) => passed += 1,
                State::System { .. } => {
                    let is_system = |state| matches!(state, State::System { .. });",
            "                State::Private(_) => passed += 1,
                State::System { .. } | State::Coherent(_) => {
                    let is_system = State::is_mapped;",
        )],
        tests: rules("r13_a_walk"),
    },
    Mutant {
        rule: "R13",
        what: "what a walk finds may go to a device meanwhile",
        edits: &[edit(
            WALK,
            "                each(PageRange::new(first.page(), run.len()));\n            }\n            run.clear();",
            "                let found = PageRange::new(first.page(), run.len());
                run.clear();
                each(found);
            }",
        )],
        tests: rules("r13_what_a_walk_finds"),
    },
    Mutant {
        rule: "R13",
        what: "a mapped device page is ordinary memory to who looks it up",
        edits: &[edit(
            WALK,
            "            State::System { .. } => Ok(()),
            State::None | State::Limbo(_) | State::Exclusive { .. } => Err(NotOrdinary::Missing),
            State::Private(at) | State::Coherent(at) =>",
            "            State::System { .. } | State::Coherent(_) => Ok(()),
            State::None | State::Limbo(_) | State::Exclusive { .. } => Err(NotOrdinary::Missing),
            State::Private(at) =>",
        )],
        tests: rules("r13_a_lookup"),
    },
];
