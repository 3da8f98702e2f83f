//! Running mutants: as many as can be in one build, several at a time.

use super::runner::{Assertions, By, Program, Runner};
use super::table::{Mutant, Target};
use super::tree::{self, Tree};
use super::weave::{self, ROOT, Weave};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long tests may take with a mutant: so many times what they take without it, and not less
/// than this. On a loaded machine, tests that are merely slow must not pass for tests that hang.
const LIMIT: (u32, Duration) = (8, Duration::from_secs(15));

/// What became of a mutant.
#[derive(Debug)]
pub enum End {
    /// A test has seen it, at this try.
    Caught { by: By, tries: u32 },
    /// No test has seen it; with debug assertions, which the ordinary tests do without, this does.
    Survived { asserted: Option<By> },
    /// The mutant is not as it should be: an error of the table.
    Error(String),
}

/// Mutants of the code that one test program tests, by number.
pub struct Batch<'a> {
    tree: &'a Tree,
    runner: &'a Runner,
    target: Target,
    rows: BTreeMap<usize, &'static Mutant>,
    /// How long the tests of a filter may take, or why they cannot show anything.
    limits: BTreeMap<&'static str, Result<Duration, String>>,
}

impl<'a> Batch<'a> {
    /// `rows` of `target`.
    pub fn new(
        tree: &'a Tree,
        runner: &'a Runner,
        target: Target,
        rows: BTreeMap<usize, &'static Mutant>,
    ) -> Self {
        Self {
            tree,
            runner,
            target,
            rows,
            limits: BTreeMap::new(),
        }
    }

    /// Runs all of them; `tell` is told of each.
    ///
    /// # Errors
    /// What is wrong without any mutant.
    pub fn run(mut self, tell: impl Fn(&Mutant, &End, Duration) + Sync) -> Result<(), String> {
        let mut weave = Weave::default();
        let (mut woven, mut alone) = (Vec::new(), Vec::new());
        for (&number, mutant) in &self.rows {
            match tree::changed(self.tree.root(), mutant.edits) {
                Err(why) => tell(mutant, &End::Error(why), Duration::ZERO),
                Ok(changes) if weave.add(number, &changes) => woven.push(number),
                Ok(_) => alone.push(number),
            }
        }
        let start = Instant::now();
        let errors;
        let program;
        (program, errors) = self.build(&mut weave, Assertions::Off)?;
        for (number, why) in &errors {
            tell(self.rows[number], &End::Error(why.clone()), Duration::ZERO);
        }
        woven.retain(|number| !errors.contains_key(number));
        println!(
            "{}: {} mutants in one build ({:.0} s), {} in builds of their own",
            self.target,
            woven.len(),
            start.elapsed().as_secs_f64(),
            alone.len()
        );
        self.set_limits(&program);
        let survived = side_by_side(&woven, |&number| {
            let (start, mutant) = (Instant::now(), self.rows[&number]);
            let end = match self.broken(&program, mutant, Some(number)) {
                Ok(None) => return true,
                Ok(Some((by, tries))) => End::Caught { by, tries },
                Err(why) => End::Error(why),
            };
            tell(mutant, &end, start.elapsed());
            false
        });
        let survivors: Vec<_> = woven
            .iter()
            .zip(survived)
            .filter_map(|(&number, survived)| survived.then_some(number))
            .collect();
        self.look_again(&mut weave, &survivors, &tell)?;
        for number in alone {
            let (start, mutant) = (Instant::now(), self.rows[&number]);
            let end = self.alone(mutant).unwrap_or_else(End::Error);
            tell(mutant, &end, start.elapsed());
        }
        Ok(())
    }

    /// Builds the test program with what is woven; what does not compile is taken out and returned.
    fn build(
        &self,
        weave: &mut Weave,
        assertions: Assertions,
    ) -> Result<(Program, BTreeMap<usize, String>), String> {
        let root = self.tree.root().join(ROOT);
        let root = std::fs::read_to_string(&root).map_err(|why| format!("{ROOT}: {why}"))?;
        let mut errors = BTreeMap::new();
        loop {
            let files = weave.files(&root);
            let texts = files.iter().map(|woven| (woven.file, &*woven.text));
            let _written = self.tree.write(texts)?;
            let unbuilt = match self.runner.build(self.target, assertions) {
                Ok(program) => return Ok((program, errors)),
                Err(unbuilt) => unbuilt,
            };
            let blamed = weave::blamed(&unbuilt.0, &files);
            if blamed.is_empty() {
                return Err(format!("{} {}", self.target, unbuilt.error()));
            }
            blamed.keys().for_each(|&number| weave.remove(number));
            errors.extend(blamed);
        }
    }

    /// The tests as they are must pass.
    fn set_limits(&mut self, program: &Program) {
        let filters: BTreeSet<_> = self.rows.values().map(|row| row.tests.filter).collect();
        let filters: Vec<_> = filters.into_iter().collect();
        let (times, least) = LIMIT;
        let limits = side_by_side(&filters, |filter| {
            let took = program.unbroken(filter)?;
            Ok(least.max(took * times))
        });
        self.limits = filters.into_iter().zip(limits).collect();
    }

    /// How `program` catches the mutant, if it does, and at which try.
    fn broken(
        &self,
        program: &Program,
        mutant: &Mutant,
        number: Option<usize>,
    ) -> Result<Option<(By, u32)>, String> {
        let limit = self.limits[mutant.tests.filter].clone()?;
        program.broken(mutant.tests.filter, number, limit)
    }

    /// What debug assertions say to mutants that no test has seen.
    fn look_again(
        &self,
        weave: &mut Weave,
        survivors: &[usize],
        tell: impl Fn(&Mutant, &End, Duration),
    ) -> Result<(), String> {
        if survivors.is_empty() {
            return Ok(());
        }
        let (program, _) = self.build(weave, Assertions::On)?;
        for number in survivors {
            let (start, mutant) = (Instant::now(), self.rows[number]);
            let end = match self.broken(&program, mutant, Some(*number)) {
                Ok(seen) => End::Survived {
                    asserted: seen.map(|(by, _)| by),
                },
                Err(why) => End::Error(why),
            };
            tell(mutant, &end, start.elapsed());
        }
        Ok(())
    }

    /// Runs a mutant that has a build of its own.
    fn alone(&self, mutant: &Mutant) -> Result<End, String> {
        let changes = tree::changed(self.tree.root(), mutant.edits)?;
        let texts = changes.iter().map(|change| (change.file, &*change.to));
        let _written = self.tree.write(texts)?;
        let run = |assertions| {
            let program = self.runner.build(self.target, assertions);
            let program = program.map_err(|unbuilt| unbuilt.error())?;
            self.broken(&program, mutant, None)
        };
        Ok(match run(Assertions::Off)? {
            Some((by, tries)) => End::Caught { by, tries },
            None => End::Survived {
                asserted: run(Assertions::On)?.map(|(by, _)| by),
            },
        })
    }
}

/// Does `work` for each of `items`, as many at a time as there are CPUs.
fn side_by_side<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let one_by_one = || {
        let mine = std::iter::from_fn(|| {
            let index = next.fetch_add(1, Relaxed);
            Some((index, work(items.get(index)?)))
        });
        mine.collect::<Vec<_>>()
    };
    let mut done = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(one_by_one)).collect();
        let ended = all.into_iter().map(|thread| thread.join());
        ended
            .flat_map(|mine| mine.expect("the work does not panic"))
            .collect::<Vec<_>>()
    });
    done.sort_by_key(|&(index, _)| index);
    done.into_iter().map(|(_, end)| end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_once_and_keeps_its_order() {
        let items: Vec<_> = (0..100).collect();
        let done = side_by_side(&items, |item| item * 2);
        assert_eq!(done, (0..100).map(|item| item * 2).collect::<Vec<_>>());
        assert!(side_by_side(&[(); 0], |()| ()).is_empty());
    }
}
