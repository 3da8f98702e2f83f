//! R20, room on full devices, and views.

use super::table::{Mutant, edit, rules};

const CHUNK: &str = "crates/uhmm-core/src/pagemap/chunk.rs";
const ENTRY: &str = "crates/uhmm-core/src/entry.rs";
const HAND: &str = "crates/uhmm-core/src/pagemap/hand.rs";
const ROOM: &str = "crates/uhmm-core/src/make_room.rs";
const UNMAP: &str = "crates/uhmm-core/src/reclaim/unmap.rs";
const VIEW: &str = "crates/uhmm-core/src/view.rs";
const HOLD: &str = "crates/uhmm-core/src/hold.rs";
const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const MIGRATE: &str = "crates/uhmm-core/src/migrate/mod.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R20",
        what: "the hand takes what has just come",
        edits: &[edit(
            CHUNK,
            "            1 if Stamp::from_bits(word >> STAMP_SHIFT).is_young(now) => Met::Young,\n",
            "",
        )],
        tests: rules("r20_what_has_just_come_stays"),
    },
    Mutant {
        rule: "R20",
        what: "a device page is handed out with the stamp of another time",
        edits: &[edit(
            CHUNK,
            "let word = now.bits() << STAMP_SHIFT | NOBODY",
            "let word = (now.bits() >> 1) << STAMP_SHIFT | NOBODY",
        )],
        tests: rules("r20_what_has_just_come"),
    },
    Mutant {
        rule: "R20",
        what: "a block is taken because one page of it is old",
        edits: &[edit(
            HAND,
            "    if that_are(Met::Young).next().is_some() {",
            "    if that_are(Met::Young).count() == len {",
        )],
        tests: rules("r20_a_block_with_a_young_page"),
    },
    Mutant {
        rule: "R20",
        what: "who finds only young pages is refused at once",
        edits: &[edit(
            ROOM,
            "later |= picked.young || !picked.pages.is_empty();",
            "later |= !picked.pages.is_empty();",
        )],
        tests: rules("r20_who_finds_only_young"),
    },
    Mutant {
        rule: "R20",
        what: "reclaim takes what has just come",
        edits: &[edit(
            UNMAP,
            "if young && hand.spared < effort.spare {",
            "if false && hand.spared < effort.spare {",
        )],
        tests: rules("r20_reclaim_passes_by"),
    },
    Mutant {
        rule: "R20",
        what: "reclaim never takes young pages",
        edits: &[edit(UNMAP, "                    hand.spared += 1;\n", "")],
        tests: rules("r20_reclaim_takes_young"),
    },
    Mutant {
        rule: "R20",
        what: "a page is young again whenever it is settled",
        edits: &[edit(
            ENTRY,
            "settled.stamped(if was_there { claim.was.stamp() } else { now() })",
            "settled.stamped(now())",
        )],
        tests: rules("r20_a_page_grows_old"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "what was used is not spared",
        edits: &[edit(
            CHUNK,
            "            1 if word & USED != 0 => Met::Used,\n",
            "",
        )],
        tests: rules("what_is_used_is_spared_once a_view_makes_its_pages_hot"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "what was used once is spared for ever",
        edits: &[edit(
            HAND,
            "    used.for_each(|page| chunk.clear_used(page));",
            "    used.for_each(drop);",
        )],
        tests: rules("what_is_used_is_spared_once a_small_device_works"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "a hold leaves a page cold",
        edits: &[edit(HOLD, "memory.set_used(at.page);", "")],
        tests: rules("what_is_used_is_spared_once"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "a duplicate that is read stays cold",
        edits: &[edit(FAULT, "self.device(at.device).set_used(at.page);", "")],
        tests: rules("a_duplicate_makes_room"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "the hand begins anew each time",
        edits: &[edit(
            HAND,
            "            if hand.0 >= self.capacity {",
            "            if left == 2 * self.capacity || hand.0 >= self.capacity {",
        )],
        tests: rules(
            "what_is_used_is_spared_once r20_what_has_just_come_is_passed_by a_small_device",
        ),
    },
    Mutant {
        rule: "oversubscribe",
        what: "more leaves than there has to be room for",
        edits: &[edit(
            HAND,
            "picked.pages.len() + block <= pages.max(block)",
            "picked.pages.len() < pages",
        )],
        tests: rules("no_more_leaves"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "a full device is full",
        edits: &[edit(
            ROOM,
            "!self.make_room(pass, device, &orders, pages, spared)",
            "true",
        )],
        tests: rules("a_full_device_makes_room"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "cold pages fill RAM to the last",
        edits: &[edit(
            ROOM,
            "Way::Ram(above(pressure.low))",
            "Way::Ram(above(0))",
        )],
        tests: rules("r19_with_no_room_anywhere"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "RAM is always plenty",
        edits: &[edit(
            ROOM,
            "let plenty = if above(pressure.high) >= pages.len() {",
            "let plenty = if above(0) >= pages.len() {",
        )],
        tests: rules("where_ram_is_short"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "cold pages go to the first device instead of the next",
        edits: &[edit(
            ROOM,
            ".partition(|&other| other > device)",
            ".partition(|&other| other < device)",
        )],
        tests: rules("where_ram_is_short_pages_go_to_the_next"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "what the next device refuses goes nowhere",
        edits: &[edit(
            ROOM,
            "                Some(0) => place = true,",
            "                Some(0) => return Some(0),",
        )],
        tests: rules("where_the_next_device_refuses"),
    },
    Mutant {
        rule: "oversubscribe",
        what: "reclaim fills what is freed",
        edits: &[edit(
            ROOM,
            "let _last = self.device(device).begin_emptying();",
            "",
        )],
        tests: rules("reclaim_leaves_alone"),
    },
    Mutant {
        rule: "R13",
        what: "who makes room may use coherent memory",
        edits: &[edit(
            ROOM,
            "                    .takers()\n                    .map(|(other, _)| other)",
            "                    .devices()\n                    .map(|(other, _)| other)",
        )],
        tests: rules("r13_no_page_goes_to_coherent_memory"),
    },
    Mutant {
        rule: "R16",
        what: "who makes room waits for a fork that waits for it",
        edits: &[edit(
            MIGRATE,
            "let (pass, spared) = (self.hands.pass.again(), self.hands.spared);",
            "let Some(pass) = space.gate.enter(&space.mmu) else {\n            return Err(AllocError::Forking);\n        };\n        let spared = self.hands.spared;",
        )],
        tests: rules("r16_a_fork_does_not_hold_up"),
    },
    Mutant {
        rule: "view",
        what: "a view holds nothing",
        edits: &[edit(
            VIEW,
            "            Ok(held) => Ok((there() == Some(at)).then_some(held)),",
            "            Ok(held) => {\n                space.put_page(held.at());\n                Ok((there() == Some(at)).then_some(held))\n            }",
        )],
        tests: rules("a_views_pages_stay"),
    },
    Mutant {
        rule: "view",
        what: "a view goes to a suspended device",
        edits: &[edit(VIEW, "(_, false) => Err(ViewError::Suspended),", "")],
        tests: rules("a_suspended_device_is_not_viewed"),
    },
    Mutant {
        rule: "view",
        what: "a view is given without the pages that are missing",
        edits: &[edit(VIEW, "return Err(making.not_resident());", "break;")],
        tests: rules("all_or_nothing"),
    },
    Mutant {
        rule: "view",
        what: "a page that is in flight for a moment is not waited for",
        edits: &[edit(
            VIEW,
            "making.refused || naps > NAPS",
            "making.refused || naps > 0",
        )],
        tests: rules("a_page_in_flight_for_a_moment"),
    },
    Mutant {
        rule: "view",
        what: "a view does not see that its pages are gone",
        edits: &[edit(
            VIEW,
            "State::Private(now) | State::Coherent(now) => now != held.at(),\n",
            "State::Private(now) | State::Coherent(now) => now != held.at(),\n                State::None | State::System { .. } => false,\n",
        )],
        tests: rules("a_view_kept_past_its_range"),
    },
    Mutant {
        rule: "view",
        what: "a view keeps what another device has alone",
        edits: &[edit(VIEW, "        self.end_exclusive(pages)?;\n", "")],
        tests: rules("r17_a_view_ends_exclusive_access"),
    },
];
