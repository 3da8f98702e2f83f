//! R8 to R10: eviction, lost pages, and what the next owner of memory sees.

use super::table::{Mutant, edit, rules};

const FAULT: &str = "crates/uhmm-core/src/fault.rs";
const RANGES: &str = "crates/uhmm-core/src/ranges.rs";

pub const MUTANTS: &[Mutant] = &[
    Mutant {
        rule: "R8",
        what: "a moved page keeps its old owner",
        edits: &[edit(
            RANGES,
            "space.devices[usize::from(at.device)].change_owner(at.page, to);",
            "let _ = at;",
        )],
        tests: rules("r8_"),
    },
    Mutant {
        rule: "R9",
        what: "a lost page counts as read",
        edits: &[edit(
            FAULT,
            "retried(|| device.load(&reference, &mut scratch.pages[i]))",
            "match retried(|| device.load(&reference, &mut scratch.pages[i])) {
                    Err(CopyOutError::Lost) => Ok(()),
                    end => end,
                }",
        )],
        tests: rules("r9_a_lost r9_removal_poisons"),
    },
    Mutant {
        rule: "R9",
        what: "`Retry` counts as lost",
        edits: &[edit(
            FAULT,
            "retried(|| device.load(&reference, &mut scratch.pages[i]))",
            "retried(|| device.load(&reference, &mut scratch.pages[i]))
                    .map_err(|_| CopyOutError::Lost)",
        )],
        tests: rules("r9_a_device"),
    },
    Mutant {
        rule: "R9",
        what: "a page without memory counts as lost",
        edits: &[edit(
            FAULT,
            "        let present = progress.pages == 0 && progress.stop == Some(Stop::Present);",
            "        if progress.pages == 0 && progress.stop == Some(Stop::NoMemory) {
            for (i, slot) in held.iter_mut().enumerate() {
                match slot.take() {
                    Some((first, at)) if i == 0 => {
                        first.leave(self.device_stats(at.device));
                    }
                    Some((other, at)) => other.end(self.device_stats(at.device)),
                    None => {}
                }
            }
            return self.lost(run);
        }
        let present = progress.pages == 0 && progress.stop == Some(Stop::Present);",
        )],
        tests: rules("r9_removal_waits"),
    },
    Mutant {
        rule: "R9",
        what: "a touch of a poisoned page is served zeros",
        edits: &[edit(
            FAULT,
            "                self.mmu.poison(page);\n                self.served(page)",
            "                let _ = self.mmu.copy(&ZEROS[..1], page);\n                self.served(page)",
        )],
        tests: rules("r9_a_lost"),
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
        tests: rules("r10_"),
    },
];
