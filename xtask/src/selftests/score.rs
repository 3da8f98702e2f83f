//! How often each test passed, in all runs of one program on one engine, and the table of it.

use super::tap::{End, Tap};
use std::fmt::Write;

/// The runs of one kernel's program.
pub struct Score {
    /// The kernel's version.
    pub kernel: &'static str,
    tests: Vec<Test>,
    runs: usize,
}

struct Test {
    name: String,
    passed: usize,
    failed: usize,
    skipped: Vec<String>,
}

impl Test {
    fn absent(&self, runs: usize) -> usize {
        runs - self.passed - self.failed - self.skipped.len()
    }

    /// The last part of the name: what the test is called in the source.
    fn short(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// What sets apart the variants of a fixture: the kind of device.
    fn kind(&self) -> &str {
        let variant = self.name.split('.').nth(1).unwrap_or_default();
        variant.rsplit('_').next().unwrap_or_default()
    }

    /// What the table says of it.
    fn cell(&self, runs: usize) -> String {
        match (self.failed, self.skipped.len(), self.absent(runs)) {
            (0, 0, 0) if runs == 1 => "ok".into(),
            (0, 0, 0) => format!("ok {runs}"),
            (failed @ 1.., _, _) => format!("FAILED {failed}"),
            (_, skipped @ 1.., _) => format!("SKIPPED {skipped}"),
            (_, _, absent) => format!("ABSENT {absent}"),
        }
    }

    /// What is wrong with it, if anything is.
    fn complaint(&self, runs: usize) -> Option<String> {
        let mut parts = Vec::new();
        if self.failed > 0 {
            parts.push(format!("failed in {} of {runs} runs", self.failed));
        }
        if let Some(why) = self.skipped.first() {
            let times = self.skipped.len();
            parts.push(format!("was skipped in {times} of {runs} runs: {why}"));
        }
        let absent = self.absent(runs);
        if absent > 0 {
            parts.push(format!("did not run in {absent} of {runs} runs"));
        }
        (!parts.is_empty()).then(|| format!("{}: {}", self.name, parts.join("; ")))
    }
}

impl Score {
    /// None has run yet of `tests`.
    pub fn new(kernel: &'static str, tests: Vec<String>) -> Self {
        let test = |name| Test {
            name,
            passed: 0,
            failed: 0,
            skipped: Vec::new(),
        };
        Self {
            kernel,
            tests: tests.into_iter().map(test).collect(),
            runs: 0,
        }
    }

    /// Counts one run; says what is wrong with it, if anything is.
    pub fn count(&mut self, tap: &Tap) -> Result<(), String> {
        self.runs += 1;
        let mut passed = 0;
        for test in &mut self.tests {
            match tap.end(&test.name) {
                Some(End::Passed) => {
                    test.passed += 1;
                    passed += 1;
                }
                Some(End::Failed) => test.failed += 1,
                Some(End::Skipped(why)) => test.skipped.push(why.clone()),
                None => {}
            }
        }
        let all = self.tests.len();
        if passed < all {
            return Err(format!("{passed} of {all} tests passed"));
        }
        match tap.plan {
            // A test that is in no list of ours.
            Some(plan) if plan != all => Err(format!(
                "the program plans {plan} tests, and its source declares {all}"
            )),
            None => Err("the program has printed no plan".into()),
            Some(_) => Ok(()),
        }
    }

    /// The tests that did not pass in every run, a line each; one line if none ever ran.
    pub fn complaints(&self) -> Vec<String> {
        if self
            .tests
            .iter()
            .all(|test| test.absent(self.runs) == self.runs)
        {
            return vec![format!("none of its {} tests ran", self.tests.len())];
        }
        let complaints = self.tests.iter();
        complaints
            .filter_map(|test| test.complaint(self.runs))
            .collect()
    }
}

/// A line for each test, and columns for the kernels and the kinds of device.
pub fn table(scores: &[Score]) -> String {
    let mut rows: Vec<&str> = Vec::new();
    let mut columns: Vec<(&str, &str)> = Vec::new();
    for score in scores {
        for test in &score.tests {
            if !rows.contains(&test.short()) {
                rows.push(test.short());
            }
            let column = (score.kernel, test.kind());
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
    }
    let mut text = format!("{:<26}", "test");
    for (kernel, kind) in &columns {
        let _ = write!(text, "{:<16}", format!("{kernel} {kind}"));
    }
    for row in rows {
        let _ = write!(text, "\n{row:<26}");
        for (kernel, kind) in &columns {
            let cell = scores.iter().find_map(|score| {
                let test = |test: &&Test| test.short() == row && test.kind() == *kind;
                let test = score.tests.iter().find(test)?;
                (score.kernel == *kernel).then(|| test.cell(score.runs))
            });
            let _ = write!(text, "{:<16}", cell.unwrap_or_else(|| "-".into()));
        }
    }
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(kernel: &'static str, tests: &[&str]) -> Score {
        Score::new(kernel, tests.iter().map(|&test| test.into()).collect())
    }

    #[test]
    fn every_run_has_to_be_whole() {
        let mut score = score("6.12", &["hmm.d_private.a", "hmm.d_coherent.a"]);
        let all = "1..2\nok 1 hmm.d_private.a\nok 2 hmm.d_coherent.a\n";
        assert_eq!(score.count(&Tap::parse(all)), Ok(()));
        assert!(score.complaints().is_empty());

        let one = "1..2\nok 1 hmm.d_private.a\n";
        assert!(
            score
                .count(&Tap::parse(one))
                .unwrap_err()
                .contains("1 of 2")
        );
        let skipped = "1..2\nok 1 hmm.d_private.a\nok 2 hmm.d_coherent.a # SKIP none\n";
        assert!(score.count(&Tap::parse(skipped)).is_err());
        let failed = "1..2\nnot ok 1 hmm.d_private.a\nok 2 hmm.d_coherent.a\n";
        assert!(score.count(&Tap::parse(failed)).is_err());
        assert_eq!(
            score.complaints(),
            [
                "hmm.d_private.a: failed in 1 of 4 runs",
                "hmm.d_coherent.a: was skipped in 1 of 4 runs: none; did not run in 1 of 4 runs",
            ]
        );
    }

    #[test]
    fn a_program_that_runs_nothing_gets_one_line() {
        let mut score = score("6.1", &["hmm.d_private.a", "hmm.d_private.b"]);
        assert!(score.count(&Tap::parse("")).is_err());
        assert_eq!(score.complaints(), ["none of its 2 tests ran"]);
    }

    #[test]
    fn a_test_that_nobody_declared_is_a_failure() {
        let more = "1..2\nok 1 hmm.d_private.a\nok 2 hmm.d_private.b\n";
        let mut known = score("6.12", &["hmm.d_private.a"]);
        let error = known.count(&Tap::parse(more)).unwrap_err();
        assert!(error.contains("plans 2"), "{error}");
        let mut known = score("6.12", &["hmm.d_private.a"]);
        let error = known.count(&Tap::parse("ok 1 hmm.d_private.a\n"));
        assert!(error.unwrap_err().contains("no plan"));
    }

    #[test]
    fn the_table_has_kernels_beside_each_other() {
        let mut new = score(
            "6.12",
            &["hmm.d_private.a", "hmm.d_coherent.a", "hmm.d_private.b"],
        );
        let _ = new.count(&Tap::parse(
            "1..3\nok 1 hmm.d_private.a\nnot ok 2 hmm.d_coherent.a\n",
        ));
        let mut old = score("6.1", &["hmm.d_private.a"]);
        for _ in 0..2 {
            let _ = old.count(&Tap::parse("1..1\nok 1 hmm.d_private.a\n"));
        }
        assert_eq!(
            table(&[new, old]),
            "\
test                      6.12 private    6.12 coherent   6.1 private
a                         ok              FAILED 1        ok 2
b                         ABSENT 1        -               -"
        );
    }
}
