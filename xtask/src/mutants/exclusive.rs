//! R17: a device that has a page alone is off it before anybody else sees the page.

use super::table::{Mutant, edit, rules};

const EXCLUSIVE: &str = "crates/uhmm-core/src/mirror/exclusive.rs";
const FAILURE: &str = "crates/uhmm-core/src/failure.rs";
const MIRROR: &str = "crates/uhmm-core/src/mirror/mod.rs";
const PROTECTION: &str = "crates/uhmm-core/src/protection.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";
const TABLE: &str = "crates/uhmm-core/src/mirror/table.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R17",
        what: "a device's table keeps pages that it has alone",
        edits: &[edit(
            EXCLUSIVE,
            "        self.notify(run.pages(), Event::Exclusive);\n",
            "",
        )],
        tests: rules("r17_what_a_device_has_alone"),
    },
    Mutant {
        rule: "R17",
        what: "a device is not told that its page is wanted",
        edits: &[edit(
            EXCLUSIVE,
            "        self.notify_one(holder, page, Event::EndExclusive);\n",
            "",
        )],
        tests: rules("r17_its_device"),
    },
    Mutant {
        rule: "R17",
        what: "a device is told after its page was mapped again",
        edits: &[
            edit(
                EXCLUSIVE,
                "        self.notify_one(holder, page, Event::EndExclusive);\n",
                "",
            ),
            edit(
                EXCLUSIVE,
                "        let back = match put.stop {",
                "        self.notify_one(holder, page, Event::EndExclusive);\n        let back = match put.stop {",
            ),
        ],
        tests: rules("r17_its_device"),
    },
    Mutant {
        rule: "R17",
        what: "a page is dropped under the device that has gone back to it",
        edits: &[edit(
            RANGES,
            "                    space.notify_one(*holder, page.plus(i), Event::Clear);",
            "                    let _ = (holder, i);",
        )],
        tests: rules("r17_a_discard_waits"),
    },
    Mutant {
        rule: "R17",
        what: "a fork leaves pages to devices",
        edits: &[edit(
            EXCLUSIVE,
            "        self.end_exclusive_in(self.range());\n",
            "",
        )],
        tests: rules("r17_a_fork"),
    },
    Mutant {
        rule: "R17",
        what: "a page becomes exclusive although a fork has begun",
        edits: &[edit(
            EXCLUSIVE,
            "        if notifier.interval.is_active() {",
            "        if notifier.interval.is_active() && false {",
        )],
        tests: rules("r17_a_fork_at_any"),
    },
    Mutant {
        rule: "R17",
        what: "a device keeps what the program may no longer write to",
        edits: &[edit(
            PROTECTION,
            "        self.end_exclusive_in(pages);\n",
            "",
        )],
        tests: rules("r17_it_ends"),
    },
    Mutant {
        rule: "R17",
        what: "a device gets at what another has alone",
        edits: &[edit(
            TABLE,
            "            if holder == interval.number\n",
            "            if holder < u16::MAX\n",
        )],
        tests: rules("r17_a_device_does_not"),
    },
    Mutant {
        rule: "R17",
        what: "a mirror that ends keeps what it has alone",
        edits: &[edit(
            MIRROR,
            "        self.notifier.space.end_exclusive_of(&self.notifier, pages);",
            "        let _ = pages;",
        )],
        tests: rules("r17_a_device_gets"),
    },
    Mutant {
        rule: "R17",
        what: "a mirror that ends in a notifier waits for the notifier's caller",
        edits: &[edit(
            EXCLUSIVE,
            "        if in_notifier() {\n            return;\n        }\n",
            "",
        )],
        tests: rules("r17_a_mirror_that_ends"),
    },
    Mutant {
        rule: "R17",
        what: "the end of one mirror ends what others have alone",
        edits: &[edit(
            EXCLUSIVE,
            "                    State::Exclusive { holder, .. } if holder == number => {\n                        if",
            "                    State::Exclusive { holder, .. } if holder <= number.max(holder) => {\n                        if",
        )],
        tests: rules("r17_a_device_does_not"),
    },
    Mutant {
        rule: "R17",
        what: "a page that cannot be mapped holds a fork up for ever",
        edits: &[edit(
            EXCLUSIVE,
            "any(|page| within(&page)) && start.elapsed() <= PATIENCE",
            "any(|page| within(&page)) && start.elapsed() <= 100 * PATIENCE",
        )],
        tests: rules("r17_a_frame_that_fits"),
    },
    Mutant {
        rule: "R17",
        what: "what comes back by its bytes comes back as zeros",
        edits: &[edit(
            EXCLUSIVE,
            "            Some(Stop::Protected) => self.copy_back(frame, page),",
            "            Some(Stop::Protected) => {\n                self.drop_frame(frame);\n                true\n            }",
        )],
        tests: rules("r17_an_exclusive_page"),
    },
    Mutant {
        rule: "R17",
        what: "the frame of a page that was mapped behind our back is lost",
        edits: &[edit(
            EXCLUSIVE,
            "            Some(Stop::Present) => {\n                self.drop_frame(frame);\n                true",
            "            Some(Stop::Present) => {\n                true",
        )],
        tests: rules("r17_a_page_that_was_mapped"),
    },
    Mutant {
        rule: "R17",
        what: "a page that cannot be mapped now is lost",
        edits: &[edit(
            EXCLUSIVE,
            "            Some(_) => false,",
            "            Some(_) => true,",
        )],
        tests: rules("r17_a_way_back"),
    },
    Mutant {
        rule: "R17",
        what: "the slot of a page that came back stays taken",
        edits: &[edit(
            EXCLUSIVE,
            "            None => {\n                self.pool.moved_out(frame, 1);\n                true",
            "            None => {\n                true",
        )],
        tests: rules("r17_what_is_tracked r17_its_device"),
    },
    Mutant {
        rule: "R17",
        what: "a page that is dropped stays charged",
        edits: &[edit(
            EXCLUSIVE,
            "        self.pool.uncharge(1, self.stats());\n",
            "",
        )],
        tests: rules("r17_its_device"),
    },
    Mutant {
        rule: "R17",
        what: "an exclusive page that fails keeps its frame",
        edits: &[edit(
            FAILURE,
            "                self.poison(claimed);\n                self.drop_exclusive(frame);",
            "                self.poison(claimed);\n                let _ = frame;",
        )],
        tests: rules("r17_its_device"),
    },
    Mutant {
        rule: "R17",
        what: "a shared page does not become exclusive",
        edits: &[edit(
            EXCLUSIVE,
            "                Some(Stop::Busy) if !unshared => {",
            "                Some(Stop::Busy) if !unshared && false => {",
        )],
        tests: rules("r17_what_is_tracked"),
    },
    Mutant {
        rule: "R17",
        what: "a page is taken alone with its duplicate",
        edits: &[edit(
            EXCLUSIVE,
            "matches!(state, State::System { .. }) && !state.is_tracked();",
            "matches!(state, State::System { .. });",
        )],
        tests: rules("r17_what_is_tracked"),
    },
    Mutant {
        rule: "R17",
        what: "what a device has alone is taken anew",
        edits: &[edit(
            EXCLUSIVE,
            "                State::Exclusive { holder, .. } if holder == number => at = at.plus(1),\n",
            "",
        )],
        tests: rules("r17_what_is_tracked"),
    },
    Mutant {
        rule: "R17",
        what: "a lost page is waited for",
        edits: &[edit(
            EXCLUSIVE,
            "                State::Poisoned => return Err(MirrorError::Poisoned(at)),\n",
            "                State::Poisoned => at = at.plus(1),\n",
        )],
        tests: rules("r17_what_is_tracked"),
    },
    Mutant {
        rule: "R17",
        what: "what is not taken in the end stays counted",
        edits: &[edit(
            EXCLUSIVE,
            "        self.keep_no_more(len - done);\n",
            "",
        )],
        tests: rules("r17_a_device_gets r17_exclusive_pages"),
    },
];
