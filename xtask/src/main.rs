//! What plain cargo cannot do for this project: `cargo xtask help`.

#![forbid(unsafe_code)]

mod check;
mod ci;
mod engines;
mod layers;
mod mutants;
mod programs;
mod roots;
mod selftests;
mod soak;
mod sources;
mod step;

use selftests::Options;
use std::process::ExitCode;

const HELP: &str = "\
What plain cargo cannot do for this project.

Usage: cargo xtask COMMAND

Commands:
  check                     arrows between crates, file sizes, lints, leftovers
  ci                        all that must pass besides `cargo test --release`
  engines                   the library's tests on the signal engine, as root and without privilege
  kernel-selftests [--runs N] [--engine thread|signal]... [--test NAME]...
                            the kernel's own tests of HMM, fetched from the distribution and
                            compiled unchanged, under `uhmm dmirror` (once, on both engines)
  mutants [--list] [FILTER]...
                            breaks each rule of docs/rules.md on purpose, and shows that its
                            tests fail (all, or those that have this rule or word)
  programs [--device SPEC]...
                            real programs under `uhmm run`, each compared with its plain run
                            (on every device kind, unless some are named)
  soak [--minutes N]        stress tests and real programs, over and over (10 minutes)
  help                      this text
";

/// What a command ends with: nothing if all was well, or else what was not. The text stands last in
/// the output, of which often only the end is kept: so it names what failed.
type Outcome = Result<(), String>;

enum Command {
    Check,
    Ci,
    Engines,
    KernelSelftests(Options),
    Mutants { filters: Vec<String>, list: bool },
    Programs { devices: Vec<String> },
    Soak { minutes: u64 },
    Help,
}

fn main() -> ExitCode {
    let command = match parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(why) => {
            eprintln!("xtask: {why}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match act(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Command, String> {
    let name = args.next().unwrap_or_else(|| "help".into());
    let mut command = match name.as_str() {
        "check" => Command::Check,
        "ci" => Command::Ci,
        "engines" => Command::Engines,
        "kernel-selftests" => Command::KernelSelftests(Options::default()),
        "mutants" => Command::Mutants {
            filters: Vec::new(),
            list: false,
        },
        "programs" => Command::Programs {
            devices: Vec::new(),
        },
        "soak" => Command::Soak { minutes: 10 },
        "help" | "--help" | "-h" => Command::Help,
        other => return Err(format!("no command `{other}`")),
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("`{arg}` wants a value"));
        match (&mut command, arg.as_str()) {
            (_, "--help" | "-h") => return Ok(Command::Help),
            (Command::KernelSelftests(options), "--runs") => options.runs(&value()?)?,
            (Command::KernelSelftests(options), "--engine") => options.engine(value()?)?,
            (Command::KernelSelftests(options), "--test") => options.tests.push(value()?),
            (Command::Mutants { list, .. }, "--list") => *list = true,
            (Command::Mutants { filters, .. }, filter) if !filter.starts_with('-') => {
                filters.push(filter.into());
            }
            (Command::Programs { devices }, "--device") => devices.push(value()?),
            (Command::Soak { minutes }, "--minutes") => {
                let given = value()?;
                *minutes = given.parse().ok().filter(|&n| n > 0).ok_or_else(|| {
                    format!("`--minutes {given}`: a whole number of minutes, at least 1")
                })?;
            }
            _ => return Err(format!("`{name}` does not know `{arg}`")),
        }
    }
    Ok(command)
}

fn act(command: Command) -> Outcome {
    match command {
        Command::Check => check::check(),
        Command::Ci => ci::ci(),
        Command::Engines => engines::engines(),
        Command::KernelSelftests(options) => selftests::run(&options),
        Command::Mutants { filters, list } => mutants::run(&filters, list),
        Command::Programs { devices } => programs::programs(&devices),
        Command::Soak { minutes } => soak::soak(minutes),
        Command::Help => {
            print!("{HELP}");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn options_belong_to_their_command() {
        assert!(matches!(
            parsed("soak --minutes 3"),
            Ok(Command::Soak { minutes: 3 })
        ));
        assert!(matches!(parsed("soak"), Ok(Command::Soak { minutes: 10 })));
        assert!(matches!(
            parsed("programs --device lz4 --device mirror:1G"),
            Ok(Command::Programs { devices }) if devices == ["lz4", "mirror:1G"]
        ));
        assert!(matches!(
            parsed("mutants R1 poisoned --list"),
            Ok(Command::Mutants { filters, list: true }) if filters == ["R1", "poisoned"]
        ));
        assert!(matches!(
            parsed("kernel-selftests --runs 10 --engine signal --test migrate --test exclusive"),
            Ok(Command::KernelSelftests(Options { runs: 10, engines, tests }))
                if engines == ["signal"] && tests == ["migrate", "exclusive"]
        ));
        assert!(matches!(parsed(""), Ok(Command::Help)));
    }

    #[test]
    fn wrong_use_is_an_error() {
        for line in [
            "nonsense",
            "soak --minutes",
            "soak --minutes 0",
            "check --device lz4",
            "mutants --fast",
            "kernel-selftests --runs none",
            "kernel-selftests --engine",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
