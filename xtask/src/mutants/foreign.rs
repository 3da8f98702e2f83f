//! R14 and R17 for memory that the space does not manage, and copies of any memory.

use super::table::{Mutant, Target, Tests, edit, rules};

const ADOPTED: &str = "crates/uhmm/src/memory/adopted.rs";
const EXCLUSIVE: &str = "crates/uhmm-core/src/mirror/exclusive.rs";
const LINUX: &str = "crates/uhmm-linux/src/foreign.rs";
const LOOK: &str = "crates/uhmm-core/src/mirror/foreign.rs";
const MIRROR: &str = "crates/uhmm-core/src/mirror/mod.rs";
const PAGE_TABLE: &str = "crates/uhmm/src/mirror/page_table.rs";
const RANGE_FAULT: &str = "crates/uhmm-core/src/mirror/range_fault.rs";
const TABLE: &str = "crates/uhmm-core/src/mirror/table.rs";
const USER_COPY: &str = "crates/uhmm-core/src/user_copy.rs";

/// Tests on real faults.
const fn mirrors(filter: &'static str) -> Tests {
    let target = Target {
        package: "uhmm",
        test: "mirrors",
    };
    Tests { target, filter }
}

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R14",
        what: "a page that a write copies is mapped to write",
        edits: &[edit(
            LOOK,
            "            write: is.allowed.write && !page.copied_on_write,",
            "            write: is.allowed.write,",
        )],
        tests: rules("r14_a_snapshot_of_foreign"),
    },
    Mutant {
        rule: "R14",
        what: "a page that a write copies is not copied for a write",
        edits: &[edit(
            LOOK,
            "is_none_or(|is| to_write && is.copied_on_write);",
            "is_none_or(|is| false && to_write && is.copied_on_write);",
        )],
        tests: rules("r14_a_need_to_write"),
    },
    Mutant {
        rule: "R14",
        what: "a snapshot brings what is not there",
        edits: &[edit(
            LOOK,
            "        if need.fault && refused.is_none() && missing {",
            "        if refused.is_none() && missing {",
        )],
        tests: rules("r14_a_snapshot_of_foreign r14_foreign_pages_are"),
    },
    Mutant {
        rule: "R14",
        what: "a hole among foreign pages may be read",
        edits: &[edit(
            LOOK,
            "need.fault.then_some(MirrorError::NoAccess)",
            "(need.fault && false).then_some(MirrorError::NoAccess)",
        )],
        tests: rules("r14_what_the_program_may_not_do_with_foreign"),
    },
    Mutant {
        rule: "R14",
        what: "a device writes where the program may only read",
        edits: &[edit(
            LOOK,
            "        } else if to_write && !is.allowed.write {",
            "        } else if false {",
        )],
        tests: rules("r14_what_the_program_may_not_do_with_foreign"),
    },
    Mutant {
        rule: "R14",
        what: "the last page that cannot be had is named",
        edits: &[edit(
            LOOK,
            "            self.error.get_or_insert(refused(self.next));",
            "            self.error = Some(refused(self.next));",
        )],
        tests: rules("r14_what_the_program_may_not_do_with_foreign"),
    },
    Mutant {
        rule: "R14",
        what: "a page whose touch would be deadly is tried for a second",
        edits: &[edit(
            LOOK,
            "                Some(Refusal::Deadly) => return Err(MirrorError::NoAccess(first)),\n",
            "                Some(Refusal::Deadly) => {}\n",
        )],
        tests: rules("r14_foreign_pages_that_do_not"),
    },
    Mutant {
        rule: "R14",
        what: "foreign pages are brought one by one",
        edits: &[edit(
            LOOK,
            "            Some((run, same)) if run.end() == page && *same == write => run.len += 1,",
            "            Some((run, same)) if false && run.end() == page && *same == write => run.len += 1,",
        )],
        tests: rules("r14_foreign_pages_come"),
    },
    Mutant {
        rule: "R14",
        what: "a refusal counts although the page has changed",
        edits: &[edit(
            MIRROR,
            "                Err(_) if self.notifier.read_retry(sequence) && !is_late() => continue,\n",
            "",
        )],
        tests: rules("r14_a_refusal_counts"),
    },
    Mutant {
        rule: "R14",
        what: "a foreign page is read as if the space kept it there",
        edits: &[edit(
            TABLE,
            "        if !space.mmu.manages(page) {\n            return Ok(By::Others);",
            "        if !space.mmu.manages(page) {\n            return Ok(By::Space);",
        )],
        tests: rules("r14_a_foreign_page_that_goes"),
    },
    Mutant {
        rule: "R14",
        what: "what others map is read a page at a time",
        edits: &[edit(
            TABLE,
            "            while by == By::Others && end < len",
            "            while false && by == By::Others && end < len",
        )],
        tests: rules("r14_a_range_may_be_managed"),
    },
    Mutant {
        rule: "R14",
        what: "a page that has gone is passed over",
        edits: &[edit(
            TABLE,
            "            if done < part.end {\n                return Err(MirrorError::Gone(place(done).0));\n            }\n",
            "            done = part.end;\n",
        )],
        tests: rules("r14_a_foreign_page_that_goes"),
    },
    Mutant {
        rule: "R14",
        what: "a part of a huge page is told as all of it",
        edits: &[edit(
            RANGE_FAULT,
            "            let start = part.start.0.next_multiple_of(HUGE);\n            let end = part.end().0 / HUGE * HUGE;",
            "            let start = part.start.0 / HUGE * HUGE;\n            let end = part.end().0;",
        )],
        tests: rules("r14_huge_pages"),
    },
    Mutant {
        rule: "R17",
        what: "a device has a foreign page alone",
        edits: &[edit(
            EXCLUSIVE,
            "            if !self.mmu.manages(at) {\n                return Err(MirrorError::NotManaged(at));\n            }\n",
            "",
        )],
        tests: rules("r17_no_device_has_a_foreign"),
    },
    Mutant {
        rule: "copies",
        what: "a copy does not come as far as it can",
        edits: &[edit(
            USER_COPY,
            "        bring(len).or_else(|_| bring(1)).map(drop)",
            "        bring(len).map(drop)",
        )],
        tests: rules("what_cannot_be_copied"),
    },
    Mutant {
        rule: "copies",
        what: "a page that goes and comes is copied for ever",
        edits: &[edit(
            USER_COPY,
            "            if stuck.get_or_insert_with(Instant::now).elapsed() > PATIENCE {",
            "            if stuck.get_or_insert_with(Instant::now).elapsed() > 100 * PATIENCE {",
        )],
        tests: rules("a_page_that_does_not_come_is"),
    },
    Mutant {
        rule: "copies",
        what: "whoever has a table locked copies",
        edits: &[edit(
            USER_COPY,
            "        if in_notifier() {\n            let error = NotifierError::InNotifier.into();\n            return Err(CopyError { done: 0, error });\n        }\n",
            "",
        )],
        tests: rules("a_page_that_does_not_come_is"),
    },
    Mutant {
        rule: "R14",
        what: "what is adopted leaves no table",
        edits: &[edit(
            ADOPTED,
            "        let _changing = call.inside.invalidating(pages, Event::Adopt);\n",
            "        let _ = (pages, Event::Adopt);\n",
        )],
        tests: mirrors("what_is_adopted_leaves_the_table"),
    },
    Mutant {
        rule: "R14",
        what: "a table forgets only what begins within a range",
        edits: &[edit(
            PAGE_TABLE,
            "self.parts.range_mut(place(start).0..end)",
            "self.parts.range_mut(start..end)",
        )],
        tests: mirrors("the_table_forgets_what_the_program"),
    },
    Mutant {
        rule: "R14",
        what: "a file's page in a private mapping is mapped to write",
        edits: &[edit(
            LINUX,
            "zero || is(pagemap::FILE) && !mapping.shared,",
            "zero,",
        )],
        tests: mirrors("a_snapshot_says_what_the_kernel"),
    },
    Mutant {
        rule: "R14",
        what: "a page of shared memory is taken for one that a write copies",
        edits: &[edit(
            LINUX,
            "zero || is(pagemap::FILE) && !mapping.shared,",
            "zero || is(pagemap::FILE),",
        )],
        tests: mirrors("a_snapshot_says_what_the_kernel"),
    },
    Mutant {
        rule: "R14",
        what: "what may not be touched is told as there",
        edits: &[edit(
            LINUX,
            "            read: mapping.read && !frames,",
            "            read: !frames,",
        )],
        tests: mirrors("a_snapshot_says_what_the_kernel"),
    },
];
