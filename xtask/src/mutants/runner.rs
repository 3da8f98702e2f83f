//! Building a test program, running it, and what its output says.

use super::table::Target;
use super::tree::Tree;
use super::weave::VARIABLE;
use crate::step::cargo;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// How long tests may take without a mutant.
const LIMIT_UNBROKEN: Duration = Duration::from_secs(600);

/// How often tests are run before a mutant has survived.
const TRIES: u32 = 5;

/// How the tests are built. Like `cargo test --release` in all that decides what they see (no
/// debug assertions, wrapping arithmetic), but quick to build again after a small change; with less
/// optimization than this they run twice as long.
const PROFILE: &[&str] = &[
    "inherits=\"dev\"",
    "opt-level=1",
    "debug=false",
    "debug-assertions=false",
    "overflow-checks=false",
];

/// How a mutant was caught, and in which test, as far as that can be told.
#[derive(Debug, PartialEq)]
pub enum By {
    /// This one failed.
    Failed(String),
    /// The process ended in the middle of it.
    Aborted(Option<String>),
    /// It did not end.
    TimedOut(Option<String>),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (how, test) = match self {
            Self::Failed(test) => ("by", test.as_str()),
            Self::Aborted(test) => ("aborted in", test.as_deref().unwrap_or("some test")),
            Self::TimedOut(test) => ("timed out in", test.as_deref().unwrap_or("some test")),
        };
        write!(f, "{how} {test}")
    }
}

/// Whether debug assertions are built in.
#[derive(Clone, Copy, PartialEq)]
pub enum Assertions {
    Off,
    On,
}

/// Builds and runs the tests of a tree.
pub struct Runner {
    tree: PathBuf,
    build: PathBuf,
}

impl Runner {
    /// For the tests of `tree`, built in the folder `build`.
    pub fn new(tree: &Tree, build: &Path) -> Self {
        Self {
            tree: tree.root().to_owned(),
            build: build.to_owned(),
        }
    }

    /// Builds `target`; returns the test program.
    pub fn build(&self, target: Target, assertions: Assertions) -> Result<Program, Unbuilt> {
        // Two profiles, so that neither build throws the other's artifacts away.
        let profile = match assertions {
            Assertions::Off => "mutants",
            Assertions::On => "mutants-asserted",
        };
        let mut command = cargo(&["test", "--no-run", "--quiet", "--profile", profile]);
        command
            .current_dir(&self.tree)
            .args(["--message-format", "json-render-diagnostics"])
            .args(["--package", target.package, "--test", target.test])
            .arg("--target-dir")
            .arg(&self.build);
        for setting in PROFILE {
            command.args(["--config", &format!("profile.{profile}.{setting}")]);
        }
        if assertions == Assertions::On {
            command.args([
                "--config",
                &format!("profile.{profile}.debug-assertions=true"),
            ]);
        }
        let out = command
            .output()
            .map_err(|why| Unbuilt(format!("error: cargo test: {why}")))?;
        if !out.status.success() {
            return Err(Unbuilt(String::from_utf8_lossy(&out.stderr).into()));
        }
        let path = program(&String::from_utf8_lossy(&out.stdout), target.test);
        let path = path.ok_or_else(|| Unbuilt(format!("error: cargo names no {target}")))?;
        Ok(Program {
            path,
            tree: self.tree.clone(),
            target,
        })
    }
}

/// A test program that was not built: what cargo had to say.
pub struct Unbuilt(pub String);

impl Unbuilt {
    /// The first error, without the warnings around it.
    pub fn error(&self) -> String {
        format!("does not compile\n{}", first_error(&self.0))
    }
}

/// A test program.
pub struct Program {
    path: PathBuf,
    tree: PathBuf,
    target: Target,
}

impl Program {
    /// Runs tests without a mutant, which must pass; returns how long that took.
    pub fn unbroken(&self, filter: &str) -> Result<Duration, String> {
        let start = Instant::now();
        match self.run(filter, None, LIMIT_UNBROKEN)? {
            Some(by) => Err(format!("{} fails without any mutant: {by}", self.target)),
            None => Ok(start.elapsed()),
        }
    }

    /// Runs tests, with the mutant of this number if there are several in the program, until they
    /// fail or have been tried often enough; returns how they failed, and at which try.
    pub fn broken(
        &self,
        filter: &str,
        mutant: Option<usize>,
        limit: Duration,
    ) -> Result<Option<(By, u32)>, String> {
        for tries in 1..=TRIES {
            if let Some(by) = self.run(filter, mutant, limit)? {
                return Ok(Some((by, tries)));
            }
        }
        Ok(None)
    }

    /// Runs tests; returns how they failed, if they did.
    fn run(
        &self,
        filter: &str,
        mutant: Option<usize>,
        limit: Duration,
    ) -> Result<Option<By>, String> {
        let start = Instant::now();
        // `timeout` puts the test and all that it starts into one process group, and kills that. It
        // does so too when we have been killed meanwhile.
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", &limit.as_secs_f64().to_string()])
            .arg(&self.path)
            // One after the other: so the output tells in which test a process died.
            .arg("--test-threads=1")
            .args(filter.split_whitespace())
            .env_remove(VARIABLE)
            .current_dir(&self.tree);
        if let Some(number) = mutant {
            command.env(VARIABLE, number.to_string());
        }
        let out = command.output().map_err(|why| format!("timeout: {why}"))?;
        judged(&out, start.elapsed() >= limit)
            .map_err(|why| format!("{} {filter}: {why}", self.target))
    }
}

/// The path of the test program `name` in cargo's messages.
fn program(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == name;
        let path = message["executable"].as_str().filter(|_| is_it)?;
        Some(path.into())
    })
}

/// The first error in the output of cargo, without the warnings around it.
fn first_error(output: &str) -> String {
    let lines = output.lines().skip_while(|line| !line.starts_with("error"));
    let lines: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    match lines[..] {
        [] => output.trim_end().to_owned(),
        _ => lines.join("\n"),
    }
}

fn judged(out: &Output, timed_out: bool) -> Result<Option<By>, String> {
    let text = String::from_utf8_lossy(&out.stdout);
    let Some(tests) = tests_run(&text) else {
        let errors = String::from_utf8_lossy(&out.stderr);
        return Err(format!("does not start: {}", errors.trim_end()));
    };
    if tests == 0 {
        return Err("there is no such test".into());
    }
    Ok(if let Some(test) = first_failed(&text) {
        Some(By::Failed(test.into()))
    } else if timed_out {
        Some(By::TimedOut(unfinished(&text).map(String::from)))
    } else if !out.status.success() {
        Some(By::Aborted(unfinished(&text).map(String::from)))
    } else {
        None
    })
}

/// How many tests a test program says it will run: `running 3 tests`.
fn tests_run(output: &str) -> Option<usize> {
    let rest = output
        .lines()
        .find_map(|line| line.strip_prefix("running "));
    rest?.split(' ').next()?.parse().ok()
}

/// A line `test NAME ... END`; the end is empty while the test runs.
fn test_line(line: &str) -> Option<(&str, &str)> {
    let (name, end) = line.strip_prefix("test ")?.split_once(" ...")?;
    Some((name.trim_end_matches(" - should panic"), end.trim()))
}

fn first_failed(output: &str) -> Option<&str> {
    let mut tests = output.lines().filter_map(test_line);
    tests
        .find(|(_, end)| *end == "FAILED")
        .map(|(name, _)| name)
}

fn unfinished(output: &str) -> Option<&str> {
    let mut tests = output.lines().filter_map(test_line);
    tests.find(|(_, end)| end.is_empty()).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn judge(stdout: &str, code: i32, timed_out: bool) -> Result<Option<By>, String> {
        let out = Output {
            status: ExitStatus::from_raw(code),
            stdout: stdout.into(),
            stderr: Vec::new(),
        };
        judged(&out, timed_out)
    }

    #[test]
    fn the_first_test_that_failed_is_named() {
        let output = "\nrunning 3 tests\n\
            test a::one ... ok\n\
            test a::two - should panic ... FAILED\n\
            test b::three ... FAILED\n\n\
            failures:\n\n---- a::two stdout ----\n";
        assert_eq!(
            judge(output, 101 << 8, false),
            Ok(Some(By::Failed("a::two".into())))
        );
    }

    #[test]
    fn a_test_that_did_not_end_is_named() {
        let output = "\nrunning 3 tests\ntest a::one ... ok\ntest b::two ... ";
        let two = || Some("b::two".into());
        assert_eq!(judge(output, 6, false), Ok(Some(By::Aborted(two()))));
        assert_eq!(judge(output, 9, true), Ok(Some(By::TimedOut(two()))));
        let output = "\nrunning 3 tests\n";
        assert_eq!(judge(output, 6, false), Ok(Some(By::Aborted(None))));
    }

    #[test]
    fn tests_that_pass_have_caught_nothing() {
        let output = "\nrunning 1 test\ntest a ... ok\n\ntest result: ok. 1 passed; 0 failed\n";
        assert_eq!(judge(output, 0, false), Ok(None));
    }

    #[test]
    fn no_test_at_all_is_an_error() {
        assert!(judge("\nrunning 0 tests\n\n", 0, false).is_err());
        assert!(judge("", 127 << 8, false).is_err());
    }

    #[test]
    fn the_error_is_found_among_the_warnings() {
        let output =
            "warning: unused\n --> a.rs:1\n\nerror[E0425]: no `x`\n --> a.rs:2\n\nerror: 1\n";
        assert_eq!(first_error(output), "error[E0425]: no `x`\n --> a.rs:2");
        assert_eq!(first_error("killed\n"), "killed");
    }

    #[test]
    fn the_test_program_is_found_in_the_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"core"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"rules"},"executable":"/b/rules-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(program(messages, "rules"), Some("/b/rules-1".into()));
        assert_eq!(program(messages, "core"), None);
    }
}
