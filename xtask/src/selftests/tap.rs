//! What a kernel selftest says of its tests: TAP, the Test Anything Protocol, as `kselftest.h` prints it.

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Passed,
    Failed,
    /// It did not run, or not to its end; why.
    Skipped(String),
}

/// What a program has said in its output.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// How many tests the program meant to run.
    pub plan: Option<usize>,
    /// Each test that it named, with its end. Linux 6.1 names no test that it skips.
    pub results: Vec<(String, End)>,
}

impl Tap {
    /// Reads the lines that are results, and the plan; all others are comments.
    pub fn parse(output: &str) -> Self {
        let mut tap = Self::default();
        for line in output.lines() {
            if let Some(plan) = plan(line) {
                tap.plan = Some(plan);
            } else if let Some(result) = result(line) {
                tap.results.push(result);
            }
        }
        tap
    }

    /// How the test `name` ended: the worst, if it is named more than once.
    pub fn end(&self, name: &str) -> Option<&End> {
        let ends = self.results.iter().filter(|(known, _)| known == name);
        ends.map(|(_, end)| end).max_by_key(|end| match end {
            End::Passed => 0,
            End::Skipped(_) => 1,
            End::Failed => 2,
        })
    }
}

/// `1..58`, with a reason behind it where there is nothing to run.
fn plan(line: &str) -> Option<usize> {
    let count = line.strip_prefix("1..")?.split_whitespace().next()?;
    count.parse().ok()
}

/// `ok 3 NAME`, `not ok 3 NAME`, and behind the name perhaps `# DIRECTIVE why`.
fn result(line: &str) -> Option<(String, End)> {
    let (ok, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    number.parse::<usize>().ok()?;
    let (name, directive) = match rest.split_once('#') {
        Some((name, directive)) => (name, directive.trim()),
        None => (rest, ""),
    };
    let (word, why) = directive.split_once(' ').unwrap_or((directive, ""));
    let end = match (ok, word) {
        (true, "SKIP") => End::Skipped(why.trim().into()),
        // A failure that the kernel's people expect is still one here, and so is its absence.
        (_, "XFAIL" | "XPASS") | (false, _) => End::Failed,
        (true, _) => End::Passed,
    };
    Some((name.trim().into(), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(why: &str) -> End {
        End::Skipped(why.into())
    }

    #[test]
    fn results_are_told_from_comments() {
        let tap = Tap::parse(
            "TAP version 13\n1..4\n# Starting 4 tests from 2 test cases.\n\
             #  RUN           hmm.private.open ...\n#            OK  hmm.private.open\n\
             ok 1 hmm.private.open\n\
             # program.c:3:read:Expected ret (-1) == 0 (0)\n\
             not ok 2 hmm.private.read\n\
             ok 3 hmm.coherent.open # SKIP DEVICE_COHERENT not available\n\
             ok 4 hmm.coherent.read #  by the way\n\
             okay 5 no\nok then\nnot ok\n\
             # Totals: pass:2 fail:1 xfail:0 xpass:0 skip:1 error:0\n",
        );
        assert_eq!(tap.plan, Some(4));
        assert_eq!(
            tap.results,
            [
                ("hmm.private.open".into(), End::Passed),
                ("hmm.private.read".into(), End::Failed),
                (
                    "hmm.coherent.open".into(),
                    skipped("DEVICE_COHERENT not available")
                ),
                ("hmm.coherent.read".into(), End::Passed),
            ]
        );
    }

    #[test]
    fn a_skip_without_a_name_is_nobodys_result() {
        // As Linux 6.1 prints it.
        let tap = Tap::parse("1..2\nok 1 a.b.c\nok 2 # SKIP Huge page could not be allocated\n");
        assert_eq!(tap.end("a.b.c"), Some(&End::Passed));
        assert_eq!(tap.end("a.b.d"), None);
        let why = skipped("Huge page could not be allocated");
        assert_eq!(tap.end(""), Some(&why));
    }

    #[test]
    fn what_is_expected_to_fail_fails() {
        let tap =
            Tap::parse("ok 1 a # XFAIL known\nok 2 b # XPASS unknown\nnot ok 3 c # SKIP no\n");
        for name in ["a", "b", "c"] {
            assert_eq!(tap.end(name), Some(&End::Failed), "{name}");
        }
        assert_eq!(tap.plan, None);
    }

    #[test]
    fn of_two_ends_the_worse_counts() {
        let tap = Tap::parse("ok 1 a\nok 2 a # SKIP no\nok 3 b\nnot ok 4 b\nok 5 b\n");
        assert_eq!(tap.end("a"), Some(&skipped("no")));
        assert_eq!(tap.end("b"), Some(&End::Failed));
    }
}
