//! Running commands one after the other, with a heading, a time and a summary.

use crate::Outcome;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The root of the workspace.
pub fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
    PathBuf::from(here).join("..")
}

/// The cargo that runs us, at the root of the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(args);
    command
}

/// How one step ended.
enum End {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Steps that have run, each with its end and its time. All run, whatever failed before.
#[derive(Default)]
pub struct Steps(Vec<(String, End, Duration)>);

impl Steps {
    /// Runs `command` as the step `name`.
    pub fn command(&mut self, name: &str, command: &mut Command) {
        self.work(name, || run(command));
    }

    /// Runs `work` as the step `name`.
    pub fn work(&mut self, name: &str, work: impl FnOnce() -> Outcome) {
        self.step(name, || match work() {
            Ok(()) => End::Passed,
            Err(why) => End::Failed(why),
        });
    }

    /// Notes that the step `name` could not run, so that nobody takes it for passed.
    pub fn skip(&mut self, name: &str, why: &str) {
        self.step(name, || {
            println!("SKIPPED: {why}");
            End::Skipped(why.into())
        });
    }

    fn step(&mut self, name: &str, run: impl FnOnce() -> End) {
        println!("\n=== {name}");
        let start = Instant::now();
        let end = run();
        self.0.push((name.into(), end, start.elapsed()));
    }

    /// Whether the last step failed.
    pub fn last_failed(&self) -> bool {
        matches!(self.0.last(), Some((_, End::Failed(_), _)))
    }

    /// Prints what ran, and says what failed.
    pub fn finish(self) -> Outcome {
        println!("\n=== summary");
        let mut failed = Vec::new();
        for (name, end, time) in self.0 {
            let seconds = time.as_secs_f64();
            match end {
                End::Passed => println!("passed   {seconds:7.1} s  {name}"),
                End::Skipped(why) => println!("SKIPPED             {name}: {why}"),
                End::Failed(why) => {
                    println!("FAILED   {seconds:7.1} s  {name}");
                    failed.push(format!("\nFAILED {name}: {why}"));
                }
            }
        }
        match failed.len() {
            0 => Ok(()),
            1 => Err(format!("a step failed{}", failed.concat())),
            steps => Err(format!("{steps} steps failed{}", failed.concat())),
        }
    }
}

/// Runs `command`; what fails has the names of the tests that did, if it is of tests.
fn run(command: &mut Command) -> Outcome {
    let child = command.stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|why| format!("{}: {why}", command.get_program().display()))?;
    let output = child.stdout.take().expect("it was asked for");
    let output = show(output).map_err(|why| format!("its output: {why}"))?;
    let status = child.wait().map_err(|why| format!("no status: {why}"))?;
    if status.success() {
        return Ok(());
    }
    let tests = failed_tests(&String::from_utf8_lossy(&output));
    Err(format!("{status}{tests}"))
}

/// Prints what comes as soon as it comes, and returns it.
fn show(mut output: impl Read) -> io::Result<Vec<u8>> {
    let (mut all, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let len = output.read(&mut part)?;
        if len == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&part[..len]);
        let mut to = io::stdout().lock();
        to.write_all(&part[..len])?;
        to.flush()?;
    }
}

/// The tests that failed, in a line each: those that a test program lists at its end.
fn failed_tests(output: &str) -> String {
    let mut tests = String::new();
    let mut lists = false;
    for line in output.lines() {
        lists = line == "failures:" || lists && line.starts_with("    ");
        if lists && line != "failures:" {
            tests.push('\n');
            tests.push_str(line);
        }
    }
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_says_what_failed() {
        let mut steps = Steps::default();
        steps.work("good", || Ok(()));
        steps.skip("absent", "it is not there");
        assert!(!steps.last_failed());
        steps.work("bad", || Err("this\nand that".into()));
        assert!(steps.last_failed());
        steps.command("worse", &mut Command::new("false"));
        steps.command("none", &mut Command::new("there-is-no-such-program"));
        steps.work("also good", || Ok(()));
        let error = steps.finish().unwrap_err();
        for part in [
            "3 steps failed\n",
            "\nFAILED bad: this\nand that\n",
            "\nFAILED worse: exit status: 1\n",
            "\nFAILED none: there-is-no-such-program: No such file",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("good") && !error.contains("absent"));
        assert_eq!(Steps::default().finish(), Ok(()));
    }

    #[test]
    fn tests_that_failed_are_named() {
        let output = "test a ... FAILED\ntest b ... ok\n\nfailures:\n\n---- a stdout ----\n    text\n\
            \n\nfailures:\n    a\n    c::d\n\ntest result: FAILED. 1 passed; 2 failed\n    more\n";
        assert_eq!(failed_tests(output), "\n    a\n    c::d");
        assert_eq!(failed_tests("test b ... ok\n    failures:\n"), "");
    }

    #[test]
    fn a_command_fails_as_its_status_says() {
        assert_eq!(run(&mut Command::new("true")), Ok(()));
        let error = run(Command::new("sh").args(["-c", "exit 3"]));
        assert_eq!(error, Err("exit status: 3".into()));
    }
}
