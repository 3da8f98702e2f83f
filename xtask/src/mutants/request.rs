//! R5 to R7: migration by request, in each of its phases.

use super::table::{Mutant, edit, rules};

const AGAIN: &str = "crates/uhmm-core/src/migrate/again.rs";
const PROTECTION: &str = "crates/uhmm-core/src/protection.rs";
const COPY: &str = "crates/uhmm-core/src/migrate/copy.rs";
const COLLECT: &str = "crates/uhmm-core/src/migrate/collect.rs";
const DRIVER: &str = "crates/uhmm-core/src/pagemap/driver.rs";
const FINALIZE: &str = "crates/uhmm-core/src/migrate/finalize.rs";
const MIGRATE: &str = "crates/uhmm-core/src/migrate/mod.rs";
const STORE: &str = "crates/uhmm-core/src/store.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R5",
        what: "a migration that is dropped puts nothing back",
        edits: &[edit(
            FINALIZE,
            "        for item in std::mem::take(&mut self.items) {\n            self.put_back(item);\n        }\n",
            "",
        )],
        tests: rules("r5_a_migration_dropped"),
    },
    Mutant {
        rule: "R5",
        what: "the slot of a frame that was put back stays in use",
        edits: &[edit(
            FINALIZE,
            "                    space.pool.moved_out(slot, 1);\n",
            "",
        )],
        tests: rules("r5_a_migration_dropped"),
    },
    Mutant {
        rule: "R5",
        what: "a page whose frame could not be put back counts as mapped",
        edits: &[edit(
            FINALIZE,
            "                    claimed.settle(State::Limbo(slot));",
            "                    claimed.settle(State::system(true));",
        )],
        tests: rules("r5_a_way_back"),
    },
    Mutant {
        rule: "R5",
        what: "bytes that were read out of a page are not mapped again",
        edits: &[edit(
            FINALIZE,
            "                space.map_bytes(claimed.page(), &data);\n                if !charged",
            "                let _ = data;\n                if !charged",
        )],
        tests: rules("r5_a_migration_dropped"),
    },
    Mutant {
        rule: "R5",
        what: "bytes of a device page that come back to RAM are not charged",
        edits: &[edit(
            FINALIZE,
            "                if !charged {\n                    space.pool.charge_existing(1, space.stats());\n                }\n",
            "                let _ = charged;\n",
        )],
        tests: rules("r5_a_migration_dropped"),
    },
    Mutant {
        rule: "R5",
        what: "a mapped device page that was taken home stays there",
        edits: &[edit(
            FINALIZE,
            "                space.map_home(claimed, at);",
            "                drop(claimed);",
        )],
        tests: rules("r5_a_migration_dropped"),
    },
    Mutant {
        rule: "R5",
        what: "a device page that is put back is free",
        edits: &[edit(
            FINALIZE,
            "                held.end(space.device_stats(at.device));\n            }\n        }\n        self.done.left",
            "                held.leave(space.device_stats(at.device));\n            }\n        }\n        self.done.left",
        )],
        tests: rules("r5_a_dropped_migration_of"),
    },
    Mutant {
        rule: "R5",
        what: "a device page that could not be mapped again counts as mapped",
        edits: &[edit(
            FINALIZE,
            "                false => State::Private(at),\n",
            "                false => State::Coherent(at),\n",
        )],
        tests: rules("r5_a_way_back"),
    },
    Mutant {
        rule: "R5",
        what: "a migration that is dropped does not wait for its fences",
        edits: &[edit(
            FINALIZE,
            "        // What a copy engine still uses must not be handed to anybody else.
        self.wait_for_fences();",
            "",
        )],
        tests: rules("r5_a_dropped_migration_waits"),
    },
    Mutant {
        rule: "R5",
        what: "a destination is given up while a copy to it is under way",
        edits: &[edit(
            FINALIZE,
            "if self.items.iter().any(in_flight) {",
            "if self.items.iter().any(in_flight) && false {",
        )],
        tests: rules("r5_a_destination"),
    },
    Mutant {
        rule: "R5",
        what: "copies that are under way are taken for done",
        edits: &[edit(
            FINALIZE,
            "    pub(super) fn finalize(&mut self) {\n        self.wait_for_fences();",
            "    pub(super) fn finalize(&mut self) {",
        )],
        tests: rules("r5_a_fence_that_fails"),
    },
    Mutant {
        rule: "R5",
        what: "a batch whose fence fails counts as copied",
        edits: &[edit(
            FINALIZE,
            "if failed[fence] {",
            "if failed[fence] && false {",
        )],
        tests: rules("r5_a_fence_that_fails"),
    },
    Mutant {
        rule: "R5",
        what: "the first fence decides for all",
        edits: &[edit(
            FINALIZE,
            "if failed[fence] {",
            "if failed[fence.min(0)] {",
        )],
        tests: rules("r5_of_two_fences"),
    },
    Mutant {
        rule: "R5",
        what: "copies out whose fence fails are believed",
        edits: &[edit(
            STORE,
            "            if !failed {",
            "            if !failed || true {",
        )],
        tests: rules("r5_copies_out_are_not"),
    },
    Mutant {
        rule: "R5",
        what: "what reclaim has started to store counts as stored",
        edits: &[edit(
            STORE,
            "let failed = fence.is_some_and(|fence| fence.wait().is_err());
        let mut stored",
            "let failed = fence.is_some_and(|fence| fence.wait().is_err()) && false;
        let mut stored",
        )],
        tests: rules("r5_reclaim"),
    },
    Mutant {
        rule: "R5",
        what: "a driver's panic goes through the core",
        edits: &[edit(
            DRIVER,
            "let result = catch_unwind(AssertUnwindSafe(|| call(&*self.device)));",
            "let result: std::thread::Result<R> = Ok(call(&*self.device));",
        )],
        tests: rules("r5_a_driver_that_panics_in_a_copy_loses"),
    },
    Mutant {
        rule: "R5",
        what: "a fence's panic goes through the core",
        edits: &[edit(
            DRIVER,
            "catch_unwind(AssertUnwindSafe(|| self.0.wait())).unwrap_or(Err(CopyFailed))",
            "self.0.wait()",
        )],
        tests: rules("r5_a_fence_that_panics"),
    },
    Mutant {
        rule: "R5",
        what: "a batch whose driver panicked counts as copied",
        edits: &[edit(
            DRIVER,
            "                copy.result = Err(CopyInError::Dead);",
            "                copy.result = Ok(());",
        )],
        tests: rules("r5_a_driver_that_panics_in_a_copy_loses"),
    },
    Mutant {
        rule: "R5",
        what: "a device that panics in a copy out has lost the page at once",
        edits: &[edit(
            DRIVER,
            "            if last == CopyOutError::Lost && !self.has_panicked() {",
            "            if last == CopyOutError::Lost {",
        )],
        tests: rules("r5_a_driver_that_panics_in_a_copy_out"),
    },
    Mutant {
        rule: "R5",
        what: "pages migrate whose mark was cleared",
        edits: &[
            edit(
                FINALIZE,
                "        item.migrate && free && copied && good",
                "        free && copied && good",
            ),
            edit(
                COPY,
                "if item.migrate && self.bytes_are_here(item) => {",
                "if self.bytes_are_here(item) => {",
            ),
            edit(
                COPY,
                "(Origin::Device { at, .. }, Some(_)) if item.migrate => Some(*at),",
                "(Origin::Device { at, .. }, Some(_)) => Some(*at),",
            ),
        ],
        tests: rules("r5_a_page_whose_mark_is_cleared_late"),
    },
    Mutant {
        rule: "R5",
        what: "a page that failed in its batch goes all the same",
        edits: &[edit(
            COPY,
            "                    Err(_) => Copied::No,",
            "                    Err(_) => Copied::ToDevice { fence },",
        )],
        tests: rules("r5_each_page_of_a_batch"),
    },
    Mutant {
        rule: "R5",
        what: "the frame of a page that has left is not given back",
        edits: &[edit(
            FINALIZE,
            "            Origin::Frame(frame) => space.pool.put_free(frame),",
            "            Origin::Frame(frame) => drop(frame),",
        )],
        tests: rules("r5_a_whole_migration"),
    },
    Mutant {
        rule: "R5",
        what: "the blocks of a migration are never used again",
        edits: &[edit(
            FINALIZE,
            "            self.space.end_block(block);",
            "            let _ = block;",
        )],
        tests: rules("r5_the_blocks"),
    },
    Mutant {
        rule: "R5",
        what: "frames that a migration took are in no slot",
        edits: &[edit(
            COLLECT,
            "            space.pool.moved_in(first, pages.start, progress.pages);\n",
            "",
        )],
        tests: rules("r5_a_way_back"),
    },
    Mutant {
        rule: "R5",
        what: "a page that was mapped behind our back is not charged when it migrates",
        edits: &[edit(
            FINALIZE,
            "            self.pool.charge_existing(1, self.stats());\n            return 1;",
            "            return 1;",
        )],
        tests: rules("r5_a_page_that_was_mapped"),
    },
    Mutant {
        rule: "R6",
        what: "holes migrate although no system memory was asked for",
        edits: &[edit(
            COLLECT,
            "            State::None if system => match",
            "            State::None => match",
        )],
        tests: rules("r6_only_the_kinds"),
    },
    Mutant {
        rule: "R6",
        what: "pages in limbo migrate although no system memory was asked for",
        edits: &[edit(
            COLLECT,
            "            State::Limbo(slot) if system => match",
            "            State::Limbo(slot) => match",
        )],
        tests: rules("r6_a_page_in_limbo"),
    },
    Mutant {
        rule: "R6",
        what: "pages in RAM migrate although no system memory was asked for",
        edits: &[edit(
            COLLECT,
            "            State::System { .. } if system => return",
            "            State::System { .. } => return",
        )],
        tests: rules("r6_only_the_kinds"),
    },
    Mutant {
        rule: "R6",
        what: "poisoned pages migrate as holes",
        edits: &[edit(
            COLLECT,
            "            State::None if system => match",
            "            State::None | State::Poisoned if system => match",
        )],
        tests: rules("r6_only_the_kinds"),
    },
    Mutant {
        rule: "R6",
        what: "coherent pages are selected as private ones",
        edits: &[edit(
            COLLECT,
            "MemoryType::Coherent => Select::DEVICE_COHERENT,",
            "MemoryType::Coherent => Select::DEVICE_PRIVATE,",
        )],
        tests: rules("r6_only_the_kinds"),
    },
    Mutant {
        rule: "R6",
        what: "pages of the wrong owner are selected",
        edits: &[edit(
            COLLECT,
            "            && self.space.is_owned_by(at.device, args.owner)\n",
            "",
        )],
        tests: rules("r6_pages_of_devices"),
    },
    Mutant {
        rule: "R6",
        what: "pages of the device that is left out are selected",
        edits: &[edit(
            COLLECT,
            "            && args.except != Some(at.device)\n",
            "",
        )],
        tests: rules("r6_"),
    },
    Mutant {
        rule: "R6",
        what: "devices without an owner's name have the same owner",
        edits: &[edit(
            MIGRATE,
            "let own = Owner(u64::MAX - u64::from(device));",
            "let own = Owner(u64::MAX);",
        )],
        tests: rules("r6_pages_of_devices"),
    },
    Mutant {
        rule: "R6",
        what: "holes beside a page migrate by being taken with it",
        edits: &[edit(
            COLLECT,
            "            matches!(
                state,
                State::System {
                    duplicate: None,
                    ..
                }
            )",
            "            matches!(
                state,
                State::None | State::System {
                    duplicate: None,
                    ..
                }
            )",
        )],
        tests: rules("r6_a_hole_beside"),
    },
    Mutant {
        rule: "R7",
        what: "held pages migrate",
        edits: &[edit(COLLECT, "count <= 2 + fault", "count <= 20 + fault")],
        tests: rules("r7_a_held_device_page"),
    },
    Mutant {
        rule: "R7",
        what: "a busy page is copied and dropped, as a read-only one is, by request",
        edits: &[
            edit(
                COLLECT,
                "            Stop::Protected => self.take_bytes(claimed),
            Stop::Busy => {",
                "            Stop::Protected | Stop::Busy => self.take_bytes(claimed),
            Stop::Changing => {",
            ),
            edit(
                PROTECTION,
                "self.mmu.is_writable(page) || !self.mmu.peek",
                "!self.mmu.peek",
            ),
        ],
        tests: rules("r7_a_pinned_page_stays_with"),
    },
    Mutant {
        rule: "R7",
        what: "a page shared after a fork is not unshared by request",
        edits: &[edit(
            COLLECT,
            "                    space.mmu.unshare(run.pages());
                    unshared = true;
                }
                Some(stop) => {
                    let odd = run.pop().expect(\"what stopped the call\");
                    self.take_odd",
            "                    unshared = true;
                }
                Some(stop) => {
                    let odd = run.pop().expect(\"what stopped the call\");
                    self.take_odd",
        )],
        tests: rules("r7_a_page_shared_after_a_fork_migrates"),
    },
    Mutant {
        rule: "R7",
        what: "a mapped device page shared after a fork is not unshared",
        edits: &[edit(
            COLLECT,
            "                    space.mmu.unshare(run.pages());
                    unshared = true;
                }
                Some(stop) => {
                    let odd = run.pop().expect(\"what stopped the call\");
                    let held",
            "                    unshared = true;
                }
                Some(stop) => {
                    let odd = run.pop().expect(\"what stopped the call\");
                    let held",
        )],
        tests: rules("r7_a_page_shared_after_a_fork_migrates r16_both_sides"),
    },
    Mutant {
        rule: "R7",
        what: "a page in flight counts as partly migrated",
        edits: &[edit(
            FINALIZE,
            "        self.done.left += 1;\n    }\n\n    /// Gives back what",
            "    }\n\n    /// Gives back what",
        )],
        tests: rules("r7_partial_failure"),
    },
    Mutant {
        rule: "again",
        what: "pages in other hands count as nothing",
        edits: &[edit(
            COLLECT,
            "        self.done.left += 1;\n        self.missed.push(page);\n",
            "        self.missed.push(page);\n",
        )],
        tests: rules("a_page_in_other_hands"),
    },
    Mutant {
        rule: "again",
        what: "a request does not look again",
        edits: &[edit(AGAIN, "for _ in 0..LOOKS {", "for _ in 0..0 {")],
        tests: rules("a_request_waits_for"),
    },
    Mutant {
        rule: "again",
        what: "a request waits for ever",
        edits: &[edit(
            AGAIN,
            "            if patience.0.is_zero() {\n",
            "            if false {\n",
        )],
        tests: rules("a_request_does_not_wait"),
    },
    Mutant {
        rule: "again",
        what: "a request whose second look fails is told that nothing is wrong",
        edits: &[edit(
            AGAIN,
            "Err(error) if sum.migrated == 0 =>",
            "Err(error) if false =>",
        )],
        tests: rules("a_second_look"),
    },
    Mutant {
        rule: "R7",
        what: "a held device page is not counted as left",
        edits: &[edit(
            COLLECT,
            "                        None => self.leave_out(),\n                        Some(held)",
            "                        None => {}\n                        Some(held)",
        )],
        tests: rules("r7_a_held_device_page"),
    },
];
