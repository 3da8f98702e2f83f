//! `cargo xtask kernel-selftests`: the kernel's own tests of HMM, under `uhmm dmirror`.
//!
//! The program is the kernel's, compiled from the distribution's source package and not changed. What it
//! has to prove is listed in `docs/kernel-selftests.md`. A test that did not run has failed.

mod bounded;
mod hugepages;
mod listed;
mod score;
mod source;
mod tap;

use crate::Outcome;
use crate::step::cargo;
use hugepages::HugePages;
use score::Score;
use serde_json::Value;
use source::{KERNELS, Kernel, Program};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tap::Tap;

/// The engines, as `UHMM_ENGINE` takes them.
const ENGINES: [&str; 2] = ["thread", "signal"];

/// Huge pages that the tests use at once, and some for those that have not been given back yet.
const HUGE_PAGES: usize = 4;

/// A run that takes longer than this hangs. (The program itself gives each test 30 seconds.)
const LIMIT: Duration = Duration::from_secs(600);

/// What is to be run.
pub struct Options {
    /// How often.
    pub runs: usize,
    /// On these engines; on all if none is named.
    pub engines: Vec<String>,
    /// These tests alone; all if none is named.
    pub tests: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runs: 1,
            engines: Vec::new(),
            tests: Vec::new(),
        }
    }
}

impl Options {
    /// Takes the name of an engine.
    pub fn engine(&mut self, name: String) -> Result<(), String> {
        if !ENGINES.contains(&name.as_str()) {
            return Err(format!(
                "`--engine {name}`: there are {}",
                ENGINES.join(" and ")
            ));
        }
        self.engines.push(name);
        Ok(())
    }

    /// Takes a number of runs.
    pub fn runs(&mut self, text: &str) -> Result<(), String> {
        let number = text.parse().ok().filter(|&n| n > 0);
        self.runs = number.ok_or_else(|| format!("`--runs {text}`: a whole number, at least 1"))?;
        Ok(())
    }
}

/// Runs the tests of every kernel on every engine, and says at the end which did not pass.
pub fn run(options: &Options) -> Outcome {
    let uhmm = build()?;
    let folder = uhmm.ancestors().nth(2).unwrap_or(Path::new("."));
    let folder = folder.join("kernel-selftests");
    let mut complaints = Vec::new();
    let mut programs = Vec::new();
    for kernel in KERNELS {
        match kernel.program(&folder) {
            Ok(program) => programs.push((kernel, program)),
            Err(why) => complaints.push(format!("{}: {why}", kernel.version)),
        }
    }
    unknown(&options.tests, &programs)?;
    let _huge = HugePages::reserve(HUGE_PAGES).inspect_err(|why| {
        println!("\n*** NO HUGE PAGES for the tests that want some: {why} ***\n")
    });

    let engines: Vec<&str> = match &options.engines[..] {
        [] => ENGINES.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    let mut tables = String::new();
    for engine in engines {
        let mut scores = Vec::new();
        for (kernel, program) in &programs {
            let on = format!("{}, {engine} engine", kernel.version);
            if !options.tests.is_empty() && !program.selects {
                println!("\n=== {on}: left out, because this program cannot run single tests");
                continue;
            }
            let mut score = Score::new(kernel.version, wanted(program, &options.tests));
            let mut all = Runs {
                uhmm: &uhmm,
                engine,
                kernel,
                program,
                options,
                complaints: Vec::new(),
            };
            all.run(&mut score);
            let of_runs = std::mem::take(&mut all.complaints);
            let of_tests = score.complaints();
            complaints.extend(
                of_runs
                    .into_iter()
                    .chain(of_tests)
                    .map(|what| format!("{on}: {what}")),
            );
            scores.push(score);
        }
        let table = score::table(&scores);
        let _ = write!(tables, "\n=== {engine} engine\n{table}\n");
    }
    print!("{tables}");
    match complaints.len() {
        0 => Ok(()),
        n => Err(format!("{n} complaints\n{}", complaints.join("\n"))),
    }
}

/// The command, built for release.
fn build() -> Result<PathBuf, String> {
    let output = cargo(&[
        "build",
        "--release",
        "--package",
        "uhmm-cli",
        "--message-format=json-render-diagnostics",
    ])
    .stderr(Stdio::inherit())
    .output()
    .map_err(|why| format!("cargo build: {why}"))?;
    if !output.status.success() {
        return Err("`uhmm` does not build".into());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = |line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let path = message["executable"].as_str()?.into();
        (message["target"]["name"] == "uhmm").then_some(path)
    };
    let found = messages.lines().find_map(executable);
    found.ok_or_else(|| "cargo names no program `uhmm`".into())
}

/// Refuses `tests` that no program has.
fn unknown(tests: &[String], programs: &[(&Kernel, Program)]) -> Outcome {
    let known = |test: &&String| {
        programs
            .iter()
            .any(|(_, p)| p.tests.iter().any(|of| is(of, test)))
    };
    match tests.iter().find(|test| !known(test)) {
        Some(test) if !programs.is_empty() => Err(format!("no kernel selftest `{test}`")),
        _ => Ok(()),
    }
}

/// Whether `test` is what the source calls the test of this `name`.
fn is(name: &str, test: &str) -> bool {
    name.rsplit('.').next() == Some(test)
}

/// The names of those of the program's tests that are asked for.
fn wanted(program: &Program, tests: &[String]) -> Vec<String> {
    let asked = |name: &&String| tests.is_empty() || tests.iter().any(|test| is(name, test));
    program.tests.iter().filter(asked).cloned().collect()
}

/// All runs of a program on an engine.
struct Runs<'a> {
    uhmm: &'a Path,
    engine: &'a str,
    kernel: &'a Kernel,
    program: &'a Program,
    options: &'a Options,
    /// What was wrong with whole runs.
    complaints: Vec<String>,
}

impl Runs<'_> {
    fn run(&mut self, score: &mut Score) {
        println!(
            "\n=== Linux {} ({}), {} engine",
            self.kernel.version, self.program.origin, self.engine
        );
        let runs = self.options.runs;
        for number in 1..=runs {
            let start = Instant::now();
            let end = self.once(score, number == 1);
            let seconds = start.elapsed().as_secs_f64();
            match end {
                Ok(()) => println!("run {number} of {runs}: all passed, {seconds:.1} s"),
                Err(why) => {
                    println!("run {number} of {runs}: FAILED, {seconds:.1} s: {why}");
                    self.complaints.push(format!("run {number}: {why}"));
                }
            }
        }
    }

    /// One run; `show` prints what it says, else only a run that fails is shown.
    fn once(&self, score: &mut Score, show: bool) -> Outcome {
        let mut command = Command::new(self.uhmm);
        command
            .args(["dmirror", "--"])
            .arg(&self.program.path)
            .env("UHMM_ENGINE", self.engine)
            .env_remove("LD_PRELOAD");
        for test in &self.options.tests {
            command.args(["-t", test]);
        }
        let ran = bounded::run(&mut command, LIMIT, show)?;
        let counted = score.count(&Tap::parse(&ran.output));
        let end = match ran.status {
            None => Err(format!("not done after {} s, and killed", LIMIT.as_secs())),
            Some(status) if counted.is_ok() && !status.success() => Err(status.to_string()),
            Some(_) => counted,
        };
        if end.is_err() && !show {
            print!("{}", ran.output);
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program {
            path: "program".into(),
            origin: "package".into(),
            tests: vec![
                "hmm.d_private.read".into(),
                "hmm.d_coherent.read_all".into(),
            ],
            selects: true,
        }
    }

    #[test]
    fn tests_are_named_as_in_the_source() {
        let names = |tests: &[&str]| {
            tests
                .iter()
                .map(|&test| test.into())
                .collect::<Vec<String>>()
        };
        assert_eq!(
            wanted(&program(), &names(&["read"])),
            ["hmm.d_private.read"]
        );
        assert_eq!(wanted(&program(), &[]).len(), 2);
        let programs = [(&KERNELS[0], program())];
        assert_eq!(unknown(&names(&["read", "read_all"]), &programs), Ok(()));
        let error = unknown(&names(&["read", "all"]), &programs).unwrap_err();
        assert!(error.contains("`all`"), "{error}");
    }

    #[test]
    fn options_are_checked() {
        let mut options = Options::default();
        assert!(options.engine("thread".into()).is_ok());
        assert!(options.engine("steam".into()).is_err());
        assert!(options.runs("10").is_ok());
        assert!(options.runs("0").is_err() && options.runs("some").is_err());
        assert_eq!(
            (options.runs, &options.engines[..]),
            (10, &["thread".into()][..])
        );
    }
}
