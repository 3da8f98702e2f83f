//! Running commands one after the other, with a heading, a time and a summary.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
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
        self.step(name, || match command.status() {
            Ok(status) if status.success() => End::Passed,
            Ok(status) => End::Failed(status.to_string()),
            Err(why) => End::Failed(format!("{}: {why}", command.get_program().display())),
        });
    }

    /// Runs `work` as the step `name`.
    pub fn work(&mut self, name: &str, work: impl FnOnce() -> crate::Outcome) {
        self.step(name, || match work() {
            Ok(true) => End::Passed,
            Ok(false) => End::Failed("see above".into()),
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

    /// Prints what ran, and says whether nothing failed.
    pub fn finish(self) -> crate::Outcome {
        println!("\n=== summary");
        for (name, end, time) in &self.0 {
            let seconds = time.as_secs_f64();
            match end {
                End::Passed => println!("passed   {seconds:7.1} s  {name}"),
                End::Failed(why) => println!("FAILED   {seconds:7.1} s  {name}: {why}"),
                End::Skipped(why) => println!("SKIPPED             {name}: {why}"),
            }
        }
        Ok(!self
            .0
            .iter()
            .any(|(_, end, _)| matches!(end, End::Failed(_))))
    }
}
