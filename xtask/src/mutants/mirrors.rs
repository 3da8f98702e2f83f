//! R14: who mirrors pages is told before they change, and sees nothing that is not so.

use super::table::{Mutant, edit, rules};

const COLLECT: &str = "crates/uhmm-core/src/migrate/collect.rs";
const EXCLUSIVE: &str = "crates/uhmm-core/src/mirror/exclusive.rs";
const EVICT: &str = "crates/uhmm-core/src/evict.rs";
const FAILURE: &str = "crates/uhmm-core/src/failure.rs";
const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const FORK: &str = "crates/uhmm-core/src/fork.rs";
const GATE: &str = "crates/uhmm-core/src/gate.rs";
const MIRROR: &str = "crates/uhmm-core/src/mirror/mod.rs";
const NOTIFIER: &str = "crates/uhmm-core/src/mirror/notifier.rs";
const PROTECTION: &str = "crates/uhmm-core/src/protection.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";
const RANGE_FAULT: &str = "crates/uhmm-core/src/mirror/range_fault.rs";
const TABLE: &str = "crates/uhmm-core/src/mirror/table.rs";
const UNMAP: &str = "crates/uhmm-core/src/reclaim/unmap.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R14",
        what: "reclaim tells nobody",
        edits: &[edit(
            UNMAP,
            "        self.notify(run.pages(), Event::Migrate);\n",
            "",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "reclaim tells after the pages have gone",
        edits: &[
            edit(
                UNMAP,
                "        self.notify(run.pages(), Event::Migrate);\n",
                "        let told = run.pages();\n",
            ),
            edit(
                UNMAP,
                "        let mut out = hand.filled - before;\n",
                "        self.notify(told, Event::Migrate);\n        let mut out = hand.filled - before;\n",
            ),
        ],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a clean eviction tells nobody",
        edits: &[edit(
            UNMAP,
            "        self.notify(pages, Event::Migrate);\n",
            "",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a migration of RAM tells nobody",
        edits: &[edit(
            COLLECT,
            "        space.notify(run.pages(), Event::Migrate);\n        let (mut dealt",
            "        let (mut dealt",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a migration of private memory tells nobody",
        edits: &[edit(
            COLLECT,
            "                    space.notify(PageRange::new(page, 1), Event::Migrate);\n",
            "",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a migration of mapped memory tells nobody",
        edits: &[edit(
            COLLECT,
            "        run.truncate(held.len());\n        space.notify(run.pages(), Event::Migrate);\n",
            "        run.truncate(held.len());\n",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a touch of a private page tells nobody",
        edits: &[edit(
            FAULT,
            "        if !fresh {\n            // The device whose",
            "        if false {\n            // The device whose",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "mapped memory that was dropped behind our back is freed in silence",
        edits: &[edit(
            FAULT,
            "            self.notify(PageRange::new(page, 1), Event::Clear);\n",
            "",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a failure of memory tells nobody",
        edits: &[edit(
            FAILURE,
            "        self.notify(one, Event::Clear);\n",
            "",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a discard tells nobody",
        edits: &[edit(
            RANGES,
            "        let _changing = self.space.invalidating(pages, Event::Clear);\n        self.drop_pages(pages)",
            "        self.drop_pages(pages)",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "device pages are sent home in silence",
        edits: &[edit(
            RANGES,
            "        let _changing = self.space.invalidating(pages, Event::Clear);\n        self.space.entries",
            "        self.space.entries",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a remap tells nobody of what it moves",
        edits: &[edit(
            RANGES,
            "        let _changing = space.invalidating(from, Event::Unmap);\n",
            "",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a remap tells nobody where it moves to",
        edits: &[edit(
            RANGES,
            "        let _changing = space.invalidating(PageRange::new(to, from.len), Event::Unmap);\n",
            "",
        )],
        tests: rules("r14_who_mirrors_where"),
    },
    Mutant {
        rule: "R14",
        what: "a change of protection tells nobody",
        edits: &[edit(
            PROTECTION,
            "        let _changing = self.invalidating(pages, Event::Protect);\n",
            "",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a fork tells nobody",
        edits: &[edit(
            EXCLUSIVE,
            "self.invalidating(self.range(), Event::Fork)",
            "self.invalidating(PageRange::new(self.range().start, 0), Event::Fork)",
        )],
        tests: rules("r14_who_mirrors_pages r17_a_fork_ends"),
    },
    Mutant {
        rule: "R14",
        what: "other devices do not hear of one that wants pages alone",
        edits: &[edit(
            EXCLUSIVE,
            "        self.notify(run.pages(), Event::Exclusive);\n",
            "",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "who is told hears of pages beyond its own",
        edits: &[edit(
            NOTIFIER,
            "            pages: PageRange::new(start, (end.0 - start.0) as usize),",
            "            pages,",
        )],
        tests: rules("r14_who_mirrors_pages"),
    },
    Mutant {
        rule: "R14",
        what: "the sequence does not move",
        edits: &[edit(
            NOTIFIER,
            "        interval.sequence.fetch_add(1, SeqCst);\n",
            "",
        )],
        tests: rules("r14_a_sequence r14_a_change_at_any"),
    },
    Mutant {
        rule: "R14",
        what: "the sequence moves for pages that are others'",
        edits: &[edit(
            NOTIFIER,
            "        for interval in list.iter().filter(|at| at.pages.overlaps(pages)) {\n            self.tell(",
            "        for interval in list.iter() {\n            self.tell(",
        )],
        tests: rules("r14_a_sequence"),
    },
    Mutant {
        rule: "R14",
        what: "a device reads while a range changes",
        edits: &[edit(
            NOTIFIER,
            "            if !self.interval.is_active() {",
            "            if !self.interval.is_active() || true {",
        )],
        tests: rules("r14_nobody_reads"),
    },
    Mutant {
        rule: "R14",
        what: "who is added does not wait for what is changing",
        edits: &[edit(
            NOTIFIER,
            "        while Arc::strong_count(&old) > 1 {",
            "        while Arc::strong_count(&old) > usize::MAX / 2 {",
        )],
        tests: rules("r14_a_notifier_that_is_added r14_nobody_is_called"),
    },
    Mutant {
        rule: "R14",
        what: "a notifier that has panicked is called again",
        edits: &[edit(
            NOTIFIER,
            "            self.failed.store(true, Release);",
            "            self.failed.store(false, Release);",
        )],
        tests: rules("r14_a_notifier_that_panics"),
    },
    Mutant {
        rule: "R14",
        what: "a device whose notifier has panicked goes on reading",
        edits: &[edit(
            NOTIFIER,
            "        } else if self.interval.failed.load(Acquire) {",
            "        } else if false {",
        )],
        tests: rules("r14_a_notifier_that_panics"),
    },
    Mutant {
        rule: "R14",
        what: "what a device has found is installed whatever has happened since",
        edits: &[edit(
            MIRROR,
            "            if !self.notifier.read_retry(sequence) {",
            "            if !self.notifier.read_retry(sequence) || true {",
        )],
        tests: rules("r14_permissions_are_looked"),
    },
    Mutant {
        rule: "R14",
        what: "the sequence is read after what it is to guard",
        edits: &[edit(
            MIRROR,
            "            let sequence = self.notifier.read_begin()?;\n            let allowed = look(pages)?;",
            "            let allowed = look(pages)?;\n            let sequence = self.notifier.read_begin()?;",
        )],
        tests: rules("r14_permissions_are_looked"),
    },
    Mutant {
        rule: "R14",
        what: "a device that never gets on tries for ever",
        edits: &[edit(
            MIRROR,
            "        let is_late = || start.elapsed() > patience(pages.len);",
            "        let is_late = || start.elapsed() > 100 * patience(pages.len);",
        )],
        tests: rules("r14_a_range_that_does_not_come"),
    },
    Mutant {
        rule: "R14",
        what: "a device reads through the CPU what the CPU does not map",
        edits: &[edit(
            TABLE,
            "            _ => Err(MirrorError::NotInTable(page)),\n        }\n    }\n}",
            "            _ => Ok(By::Space),\n        }\n    }\n}",
        )],
        tests: rules("r14_what_the_cpu_does_not"),
    },
    Mutant {
        rule: "R14",
        what: "a snapshot faults",
        edits: &[edit(
            RANGE_FAULT,
            "            _ if !need.fault => Look::Is(Mapped::Nothing),\n",
            "            State::Exclusive { .. } | State::Migrating if !need.fault => {\n                Look::Is(Mapped::Nothing)\n            }\n",
        )],
        tests: rules("r14_a_snapshot"),
    },
    Mutant {
        rule: "R14",
        what: "a snapshot that would be written to ends tracking",
        edits: &[edit(
            RANGE_FAULT,
            "        let to_write = need.fault && need.write;",
            "        let to_write = need.write;",
        )],
        tests: rules("r14_needs_are"),
    },
    Mutant {
        rule: "R14",
        what: "a need of one page is not added to that of all",
        edits: &[edit(
            RANGE_FAULT,
            "            fault: self.fault || other.fault,",
            "            fault: other.fault,",
        )],
        tests: rules("r14_needs_are"),
    },
    Mutant {
        rule: "R14",
        what: "private pages are mapped whose ever they are",
        edits: &[edit(
            RANGE_FAULT,
            "            State::Private(at) if owner.is_some() && self.owner(at.device) == owner => {",
            "            State::Private(at) if owner.is_some() => {",
        )],
        tests: rules("r14_private_pages"),
    },
    Mutant {
        rule: "R14",
        what: "a look passes by what a touch has just brought",
        edits: &[edit(
            RANGE_FAULT,
            "State::Migrating if !need.fault && self.is_present(page) => Look::Wait,",
            "State::Migrating if !need.fault && self.is_present(page) => Look::Is(Mapped::Nothing),",
        )],
        tests: rules("r14_a_look_finds"),
    },
    Mutant {
        rule: "R14",
        what: "a page at home is to be written to by a mapping that it has not",
        edits: &[edit(
            RANGE_FAULT,
            "true if to_write => Look::Fault,",
            "true if to_write => device(at, true),",
        )],
        tests: rules("home::"),
    },
    Mutant {
        rule: "R14",
        what: "a tracked page is written to unseen",
        edits: &[edit(
            RANGE_FAULT,
            "Mapped::ram(write && duplicate.is_none())",
            "Mapped::ram(write || duplicate.is_none())",
        )],
        tests: rules("r14_a_tracked r14_permissions_of"),
    },
    Mutant {
        rule: "R14",
        what: "tracking goes on where a device is to write",
        edits: &[edit(
            RANGE_FAULT,
            "            } if to_write => Look::Tracked,",
            "            } if to_write && false => Look::Tracked,",
        )],
        tests: rules("r14_a_tracked"),
    },
    Mutant {
        rule: "R14",
        what: "a device writes where the program may not",
        edits: &[edit(
            RANGE_FAULT,
            "        if to_write && !permission.write {",
            "        if false {",
        )],
        tests: rules("r14_permissions_of"),
    },
    Mutant {
        rule: "R14",
        what: "a device reads where the program may not",
        edits: &[edit(
            RANGE_FAULT,
            "        if !permission.read {\n            return Err(MirrorError::NoAccess(page));\n        }\n",
            "",
        )],
        tests: rules("r14_permissions_of"),
    },
    Mutant {
        rule: "R14",
        what: "a lost page that is needed is nothing",
        edits: &[edit(
            RANGE_FAULT,
            "            State::Poisoned if need.fault => return Err(MirrorError::Poisoned(page)),\n",
            "",
        )],
        tests: rules("r14_a_lost_page"),
    },
    Mutant {
        rule: "R14",
        what: "what does not come is waited for without end",
        edits: &[edit(
            RANGE_FAULT,
            "        let is_late = || start.elapsed() > patience(pages.len);",
            "        let is_late = || start.elapsed() > 100 * patience(pages.len);",
        )],
        tests: rules("r14_what_does_not_come"),
    },
    Mutant {
        rule: "R14",
        what: "a notifier migrates",
        edits: &[edit(
            GATE,
            "        if in_notifier() {\n            return Err(Refused::InNotifier);\n        }\n        let start",
            "        let start",
        )],
        tests: rules("r14_every_call"),
    },
    Mutant {
        rule: "R14",
        what: "a notifier drops pages",
        edits: &[edit(
            GATE,
            "        if in_notifier() {\n            return Err(Refused::InNotifier);\n        }\n        self.enter_application",
            "        self.enter_application",
        )],
        tests: rules("r14_every_call"),
    },
    Mutant {
        rule: "R14",
        what: "a notifier removes a device",
        edits: &[edit(
            EVICT,
            "        if in_notifier() {\n            return Err(RemoveError::InNotifier);\n        }\n",
            "",
        )],
        tests: rules("r14_every_call"),
    },
    Mutant {
        rule: "R14",
        what: "a notifier reads",
        edits: &[edit(
            NOTIFIER,
            "        if in_notifier() {\n            Err(NotifierError::InNotifier)\n        } else if self.interval.is_removed()",
            "        if self.interval.is_removed()",
        )],
        tests: rules("r14_every_call r14_whoever"),
    },
    Mutant {
        rule: "R14",
        what: "whoever has a table locked calls the space",
        edits: &[
            edit(NOTIFIER, "        BARRED.set(BARRED.get() + 1);\n", ""),
            edit(NOTIFIER, "        BARRED.set(BARRED.get() - 1);\n", ""),
        ],
        tests: rules("r14_whoever"),
    },
    Mutant {
        rule: "R16",
        what: "the child of a fork has its parent's devices",
        edits: &[edit(FORK, "        self.notifiers.forget();\n", "")],
        tests: rules("r17_the_child"),
    },
    Mutant {
        rule: "R18",
        what: "to tell devices allocates",
        edits: &[edit(
            NOTIFIER,
            "        let list = self.notifiers.list();\n        for interval in list.iter().filter(|at| at.pages.overlaps(pages)) {\n            self.tell(",
            "        let list = self.notifiers.list().to_vec();\n        for interval in list.iter().filter(|at| at.pages.overlaps(pages)) {\n            self.tell(",
        )],
        tests: rules("r18_to_tell"),
    },
];
