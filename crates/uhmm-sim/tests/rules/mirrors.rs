//! R14, the whole loop: a device's page table never says what is not so. A device in software reads and
//! writes through it while everything moves.

use crate::hook::{HookedMmu, Op};
use crate::rig::{DEVICE_COHERENT, DEVICE_PRIVATE, Three, number};
use crate::types::range;
use crate::watcher::{Book, Listener, Locked, READ, all, device, pages, pin, populate};
use crate::world::{BUDGET, SimSpace, or_abort, touch, with_reclaimer};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use uhmm_core::addr::{PageData, PageRange};
use uhmm_core::device::Owner;
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::mirror::{
    Event, Mapped, MirrorError, Need, NotifierError, Permission, Permissions, RangeFault,
};
use uhmm_sim::Fault;
use uhmm_testkit::Rng;

const RAM: Mapped = Mapped::ram(true);
/// The owner of the private device of [`Three`].
const OWNER: Owner = Owner(7);

/// What may come between two lines of the loop, for page 2 of four.
fn change(three: &Three, which: usize) {
    match which {
        0 => _ = three.to_device(2, 1, DEVICE_PRIVATE),
        1 => _ = three.to_device(2, 1, DEVICE_COHERENT),
        2 => three.discard(2, 1),
        3 => _ = three.push_out(),
        4 => three.protect(2, 1, true),
        _ => drop(three.space.begin_fork()),
    }
}

/// The loop by hand, with a change between each two of its lines: it is only taken for done when it is.
#[test]
fn r14_a_change_at_any_line_of_the_loop_sends_it_round_again() {
    for which in 0..6 {
        // After: the sequence is read; the pages are looked at; the lock is taken; it is checked.
        for line in 0..4 {
            let three = Three::new(4 * BUDGET);
            three.write_all(0..4);
            let (_, notifier) = Listener::on(&three.space, 0, 4);
            let request = RangeFault::all(range(0, 4), Need::SNAPSHOT);
            let allowed = all(range(0, 4)).unwrap();
            let look = || {
                let (found, scratch) = (&mut Vec::new(), &mut Scratch::default());
                let done = three
                    .space
                    .range_fault(&request, &allowed, None, scratch, found);
                assert_eq!(done, Ok(0));
            };
            let step = |at: usize| {
                if at == line {
                    change(&three, which);
                }
            };
            let sequence = notifier.read_begin().unwrap();
            step(0);
            look();
            step(1);
            // The device's lock would be taken here: its notifier is not in the way of this one.
            step(2);
            let again = notifier.read_retry(sequence);
            assert_eq!(again, line < 3, "change {which} at line {line}");
            step(3);
            // Had the table been written, the notifier would have struck it out again.
            assert!(
                notifier.read_retry(sequence),
                "change {which} at line {line}"
            );
            let sequence = notifier.read_begin().unwrap();
            look();
            assert!(!notifier.read_retry(sequence), "nothing changes any more");
            three.check_all();
        }
    }
}

/// A change that comes after the look and before the lock: another thread has the lock meanwhile.
#[test]
fn r14_what_was_found_before_a_change_is_not_installed_after_it() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..4);
    let (listener, mirror) = device(&three.space, 0, 4);
    let (asker, changer) = thread::scope(|scope| {
        let table = mirror.lock().unwrap();
        let asker = scope.spawn(|| populate(&mirror, 0, 4, Need::SNAPSHOT));
        // It has looked by now, and waits for the lock.
        thread::sleep(Duration::from_millis(50));
        assert!(!asker.is_finished());
        let changer = scope.spawn(|| three.discard(2, 1));
        thread::sleep(Duration::from_millis(50));
        assert!(
            !changer.is_finished(),
            "what the table says is so while it is locked"
        );
        drop(table);
        (asker.join(), changer.join())
    });
    changer.unwrap();
    // Either the discard was seen, or the entry was struck out.
    let found = asker.unwrap().unwrap();
    let table = mirror.lock().unwrap();
    assert_eq!(
        table
            .entries
            .get(&number(2))
            .copied()
            .unwrap_or(Mapped::Nothing),
        Mapped::Nothing
    );
    assert!(found[2] == Mapped::Nothing || listener.take().len() == 1);
    drop(table);
    three.check_all();
}

/// While pages are brought for a device, those that it has found already go again.
#[test]
fn r14_a_page_that_goes_while_others_are_brought_is_not_installed() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..4);
    three.to_device(3, 1, DEVICE_PRIVATE);
    let (listener, mirror) = device(&three.space, 0, 4);
    let space = three.space.clone();
    three.mmu().before(Op::Copy, move || {
        let mut migration = space
            .migrate_vma(&crate::rig::args(0, 2, crate::rig::SYSTEM))
            .unwrap();
        migration.allocate(DEVICE_PRIVATE).unwrap();
        assert_eq!(migration.copy().pages().finalize().migrated, 2);
    });
    assert_eq!(populate(&mirror, 0, 4, Need::READ), Ok(vec![RAM; 4]));
    assert_eq!(three.mmu().steps_left(), 0);
    let heard = listener.take();
    assert!(heard.contains(&(0, 2, Event::Migrate)), "{heard:?}");
    let table = mirror.lock().unwrap();
    let mut byte = [0];
    (0..4).for_each(|page| table.read(number(page), 0, &mut byte).unwrap());
    drop(table);
    three.check_all();
}

#[test]
fn r14_a_table_that_panics_is_not_used_again() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..4);
    let (listener, mirror) = device(&three.space, 0, 4);
    assert_eq!(crate::watcher::alone(&mirror, 0, 1), Ok(vec![true]));
    assert_eq!(populate(&mirror, 1, 3, Need::READ), Ok(vec![RAM; 3]));
    listener.in_next(|| resume_unwind(Box::new("a driver's own")));
    three.to_device(1, 1, DEVICE_PRIVATE);
    let failed = Some(NotifierError::Failed);
    assert_eq!(mirror.lock().err(), failed);
    assert_eq!(
        populate(&mirror, 0, 4, Need::READ).err(),
        failed.map(MirrorError::from)
    );
    let read = mirror.with_exclusive(number(0), |_, _| ());
    assert_eq!(read.err(), failed.map(MirrorError::from));
    // What it had alone comes back all the same.
    three.check(0);
    drop(mirror);
    three.check_all();
    three.check_invariants();
}

/// Every page says whose it is and how often it was written: 512 times `page << 32 | version`. A page
/// that was discarded has an even version, and reads as zero.
struct Versions {
    /// Nothing older than this is there.
    oldest: Vec<AtomicU32>,
    /// Nothing newer is.
    newest: Vec<AtomicU32>,
}

impl Versions {
    fn new(pages: usize) -> Self {
        let zeros = || (0..pages).map(|_| AtomicU32::new(0)).collect();
        Self {
            oldest: zeros(),
            newest: zeros(),
        }
    }

    /// Changes a page, to what `change` is given. For the one who writes this page.
    fn change(&self, page: usize, discard: bool, change: impl FnOnce(&PageData)) {
        let now = self.newest[page].load(SeqCst);
        let next = if discard {
            (now + 2) & !1
        } else {
            (now + 1) | 1
        };
        let mut data = PageData::ZERO;
        if !discard {
            let word = (page as u64) << 32 | u64::from(next);
            data.0
                .chunks_mut(8)
                .for_each(|to| to.copy_from_slice(&word.to_le_bytes()));
        }
        self.newest[page].store(next, SeqCst);
        change(&data);
        self.oldest[page].store(next, SeqCst);
    }

    /// Reads a page by `read`, and whether what it says was so meanwhile.
    fn check(&self, who: &str, page: usize, read: impl FnOnce(&mut PageData)) {
        let mut data = PageData::ZERO;
        let oldest = self.oldest[page].load(SeqCst);
        read(&mut data);
        let newest = self.newest[page].load(SeqCst);
        let word = |i: usize| u64::from_le_bytes(data.0[i * 8..][..8].try_into().unwrap());
        let found = word(0);
        assert!(
            (0..512).all(|i| word(i) == found),
            "{who}: page {page} is torn"
        );
        if found == 0 {
            let discarded = (oldest..=newest).any(|version| version % 2 == 0);
            assert!(
                discarded,
                "{who}: page {page} is zero, not of {oldest} to {newest}"
            );
        } else {
            let (whose, version) = ((found >> 32) as usize, found as u32);
            assert_eq!(whose, page, "{who}: another page's bytes");
            assert!(
                (oldest..=newest).contains(&version),
                "{who}: page {page} is of version {version}, not of {oldest} to {newest}"
            );
        }
    }
}

/// The program writes to the first half of the pages, a device to the second; both read all.
const PAGES: usize = 96;
/// How often the device writes.
const WRITES: usize = 300;

struct Run {
    three: Three,
    versions: Versions,
    /// The program may not write to the second half of its pages now.
    protected: AtomicBool,
    done: AtomicBool,
}

impl Run {
    fn space(&self) -> &SimSpace {
        &self.three.space
    }

    fn program(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        for _ in 0..6_000 {
            let page = rng.below(PAGES as u64) as usize;
            if page >= PAGES / 2 || rng.one_in(2) {
                let read = |to: &mut PageData| {
                    let touch_it = |mmu: &HookedMmu, at| {
                        to.0 = mmu.touch_read(at)?.0;
                        Ok(())
                    };
                    touch(self.space(), page, Access::Read, touch_it).unwrap();
                };
                self.versions.check("the program", page, read);
            } else if rng.one_in(20) {
                // A pin or a fork that is in the way is not, the next time.
                let Ok(inside) = self.space().inside() else {
                    continue;
                };
                if inside.check_unpinned(range(page, 1)).is_ok() {
                    self.versions.change(page, true, |_| {
                        while inside.discard(range(page, 1)).is_err() {
                            thread::yield_now();
                        }
                    });
                }
            } else {
                self.versions.change(page, false, |data| {
                    let write = |mmu: &HookedMmu, at| mmu.touch_write(at, |to| to.0 = data.0);
                    touch(self.space(), page, Access::Write, write).unwrap();
                });
            }
        }
    }

    /// What the program may do with pages, as a device finds it out.
    fn look(&self, pages: PageRange) -> Result<Permissions, MirrorError> {
        let write = !self.protected.load(SeqCst);
        let may = |write| Permission { read: true, write };
        assert!(range(0, PAGES).covers(pages));
        Ok(vec![
            (range(0, PAGES / 2), may(true)),
            (range(PAGES / 2, PAGES / 2), may(write)),
        ])
    }

    /// A device: it reads what its table has, writes to its pages where it may, and faults in the rest.
    fn device(&self, seed: u64, writes: bool) {
        let mut rng = Rng::new(seed);
        let mut scratch = Scratch::default();
        let owner = Some(OWNER);
        let mirror = self
            .space()
            .mirror(pages(0, PAGES), owner, Book::default())
            .unwrap();
        let mut written = 0;
        let enough = |written| match writes {
            true => written == WRITES,
            false => self.done.load(SeqCst),
        };
        while !enough(written) {
            let mut table = mirror.lock().unwrap();
            for _ in 0..8 {
                self.read_one(&table, &mut rng);
            }
            if writes && self.write_one(&mut table, &mut rng) {
                written += 1;
            }
            drop(table);
            let first = rng.below(PAGES as u64 - 8) as usize;
            let need = rng.pick(&[Need::SNAPSHOT, Need::READ, Need::WRITE]);
            let request = RangeFault::all(range(first, 1 + rng.below(8) as usize), need);
            let install = |table: &mut Locked<'_>, found: &[Mapped]| {
                table
                    .entries
                    .extend(request.pages.iter().zip(found.iter().copied()));
            };
            match mirror.range_fault(&request, |pages| self.look(pages), &mut scratch, install) {
                Ok(_)
                | Err(
                    MirrorError::NotWritable(_)
                    | MirrorError::Forking
                    | MirrorError::Notifier(NotifierError::Busy),
                ) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    fn read_one(&self, table: &Locked<'_>, rng: &mut Rng) {
        let page = rng.below(PAGES as u64) as usize;
        match table.entries.get(&number(page)) {
            // Its own memory, which the CPU does not map: it reads it there.
            Some(Mapped::Device { at, .. }) if at.device == DEVICE_PRIVATE => {
                let read = |to: &mut PageData| to.0 = self.three.private.peek(at.page).0;
                self.versions.check("a device, in its memory", page, read);
            }
            Some(Mapped::Ram { .. } | Mapped::Device { .. }) => {
                let read = |to: &mut PageData| table.read(number(page), 0, &mut to.0).unwrap();
                self.versions.check("a device", page, read);
            }
            _ => {}
        }
    }

    fn write_one(&self, table: &mut Locked<'_>, rng: &mut Rng) -> bool {
        let page = PAGES / 2 + rng.below(PAGES as u64 / 2) as usize;
        let may = match table.entries.get(&number(page)) {
            Some(Mapped::Ram { write, .. }) => *write,
            Some(Mapped::Device { at, write }) => *write && at.device != DEVICE_PRIVATE,
            _ => false,
        };
        if may {
            self.versions.change(page, false, |data| {
                table.write(number(page), 0, &data.0).unwrap();
            });
        }
        may
    }

    fn disturb(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        let three = &self.three;
        while !self.done.load(SeqCst) {
            let (first, len) = (
                rng.below(PAGES as u64 - 8) as usize,
                1 + rng.below(8) as usize,
            );
            match rng.below(12) {
                0 => _ = three.push_out(),
                1 => _ = three.to_system(first, len),
                2..5 => _ = three.to_device(first, len, DEVICE_PRIVATE),
                5..8 => _ = three.to_device(first, len, DEVICE_COHERENT),
                8 => drop(pin(self.space(), first, len, READ)),
                9 => {
                    let half = range(PAGES / 2, PAGES / 2);
                    let writable = self.protected.load(SeqCst);
                    self.space().change_protection(half, || {
                        self.protected.store(!writable, SeqCst);
                        three.mmu().protect(half, writable);
                    });
                }
                10 => {
                    let forking = self.space().begin_fork();
                    self.space().close_for_fork();
                    three.mmu().share(range(0, PAGES));
                    self.space().open_in_parent();
                    drop(forking);
                }
                _ => thread::sleep(Duration::from_micros(rng.below(300))),
            }
        }
    }
}

/// Seeds as in `random.rs`: `UHMM_SIM_SEEDS` is how many.
#[test]
fn r14_a_device_never_reads_a_stale_byte_nor_loses_one() {
    let seeds = std::env::var("UHMM_SIM_SEEDS").map_or(3, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let run = Run {
            three: Three::new(4 * BUDGET),
            versions: Versions::new(PAGES),
            protected: AtomicBool::new(false),
            done: AtomicBool::new(false),
        };
        if seed % 2 == 1 {
            run.three.mmu().fail_at_random(seed, 30);
        }
        with_reclaimer(run.space(), || {
            thread::scope(|scope| {
                let run = &run;
                let program = scope.spawn(move || or_abort(|| run.program(seed)));
                let writer = scope.spawn(move || or_abort(|| run.device(seed ^ 1, true)));
                scope.spawn(move || or_abort(|| run.device(seed ^ 2, false)));
                scope.spawn(move || or_abort(|| run.disturb(seed ^ 3)));
                program.join().unwrap();
                writer.join().unwrap();
                run.done.store(true, SeqCst);
            });
        });
        run.three.mmu().heal();
        run.space().check_invariants();
    }
}

/// Its table is locked while the device uses it; and nothing that the program may not do is done there.
#[test]
fn r14_what_may_not_be_written_is_not_written_by_a_device() {
    let three = Three::new(4 * BUDGET);
    three.write_all(0..2);
    let (_, mirror) = device(&three.space, 0, 2);
    assert_eq!(populate(&mirror, 0, 2, Need::WRITE), Ok(vec![RAM; 2]));
    three.protect(0, 2, false);
    assert_eq!(
        mirror.lock().unwrap().entries.len(),
        0,
        "it was struck out before"
    );
    assert_eq!(three.try_write(0), Err(Fault::Protected));
    let request = RangeFault::all(range(0, 2), Need::WRITE);
    let read_only = |pages| {
        let may = Permission {
            read: true,
            write: false,
        };
        Ok(vec![(pages, may)])
    };
    let install = |_: &mut Locked<'_>, _: &[Mapped]| ();
    let refused = mirror.range_fault(&request, read_only, &mut Scratch::default(), install);
    assert_eq!(refused.err(), Some(MirrorError::NotWritable(number(0))));
}
