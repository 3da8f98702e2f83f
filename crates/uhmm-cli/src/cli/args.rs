//! The command line, and its help.

use super::failure::say;
use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run programs that need more memory than they may have: the pages that they do not touch live
/// on a device, such as memory compressed with LZ4, and come back when they do.
#[derive(Debug, Parser)]
#[command(name = "uhmm", version, max_term_width = 100, after_long_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  uhmm doctor
      say whether this machine and this user can run it, and how to mend what is missing
  uhmm run --ram 64M --device lz4 -- sort -S 1G big.txt
      sort in 64 MiB of RAM, with the rest compressed
  uhmm run --ram 25% --device lz4:8G --device mirror:1G -- python3 job.py
      two devices: pages go to the second when the first is full
  uhmm dmirror -- ./hmm-tests
      the kernel's tests of HMM, on devices that are software";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Run(RunArgs),
    Dmirror(DmirrorArgs),
    /// List the kinds of devices and their options
    Devices,
    /// Check what this machine and this user can do, and say how to mend what is missing
    Doctor,
    Bench(BenchArgs),
}

/// Run a program with a limit on its RAM, and its cold pages on devices
///
/// The program is not changed, and sees nothing of it: its memory (malloc and private anonymous
/// mmap) is managed by a library that is loaded into it, and into the programs that it starts.
/// It must be dynamically linked with glibc.
#[derive(Debug, clap::Args)]
#[command(after_long_help = RUN_HELP, override_usage = RUN_USAGE)]
pub struct RunArgs {
    /// RAM that each process may use for managed memory: bytes with K, M, G or T (powers of
    /// 1024), or N% of the machine's memory
    #[arg(long, value_name = "SIZE", default_value = "50%")]
    pub ram: String,

    /// Where cold pages go: KIND or KIND:SIZE, such as lz4 or lz4:8G; given several times, the
    /// devices are used in this order [default: lz4]
    ///
    /// `uhmm devices` lists the kinds, and what SIZE is when it is not given.
    #[arg(long = "device", value_name = "SPEC")]
    pub devices: Vec<String>,

    /// Write what was counted to FILE, as JSON, once the program has ended
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,

    /// Say nothing when the program has ended
    #[arg(long)]
    pub quiet: bool,

    /// The program, looked up in PATH as a shell does, and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

const RUN_USAGE: &str =
    "uhmm run [--ram SIZE] [--device SPEC]... [--stats FILE] [--quiet] -- COMMAND [ARG...]";

const RUN_HELP: &str = "\
Exit status:
  that of the program, or 128 + N if signal N ended it; 127 if the program is not found, 126 if
  it cannot be executed; 2 for wrong use, or a machine or program for which it cannot be done

Signals:
  SIGINT and SIGQUIT are left to the program; SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on

Examples:
  uhmm run --ram 64M --device lz4 -- sort -S 1G big.txt
  uhmm run --ram 1G --device lz4:50% --stats stats.json --quiet -- ./server --port 80";

/// Run a program that has the devices of the kernel's HMM test driver, in software
///
/// The program is not changed. It finds /dev/hmm_dmirror0 and 1, with memory of their own that the CPU
/// cannot map, /dev/hmm_dmirror2 and 3, whose memory it can, and /sys/kernel/debug/gup_test: opens them,
/// and asks them by ioctl to read, write and migrate its memory. So the kernel's hmm-tests run as they
/// are, without its module test_hmm. UHMM_ENGINE says who serves the faults: thread or signal.
#[derive(Debug, clap::Args)]
#[command(after_long_help = DMIRROR_HELP, override_usage = DMIRROR_USAGE)]
pub struct DmirrorArgs {
    /// Memory of each of the two private devices: bytes with K, M, G or T (powers of 1024), or N% of
    /// the machine's memory
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub private: String,

    /// Memory of each of the two coherent devices
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub coherent: String,

    /// The program, looked up in PATH as a shell does, and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

const DMIRROR_USAGE: &str = "uhmm dmirror [--private SIZE] [--coherent SIZE] -- COMMAND [ARG...]";

const DMIRROR_HELP: &str = "\
Exit status:
  as of `uhmm run`

Examples:
  uhmm dmirror -- ./hmm-tests
  UHMM_ENGINE=signal uhmm dmirror --private 256M -- ./hmm-tests -t migrate";

/// Measure what page faults and migration cost here, each beside its floor
///
/// A floor is what the bare primitive costs (the kernel's own fault, the smallest userfaultfd loop,
/// memcpy), measured in turns with ours in the same run. Figures are medians; `ratio` is value over
/// floor, and `spread` is the distance between the quartiles as a share of the value. What is read
/// back is checked.
#[derive(Debug, clap::Args)]
#[command(after_long_help = BENCH_HELP)]
pub struct BenchArgs {
    /// The benchmarks to run [default: all]
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(uhmm_bench::choices()))]
    pub names: Vec<String>,

    /// Print one JSON object a line: name, unit, value, floor, ratio, spread
    #[arg(long)]
    pub json: bool,

    /// Use less memory and fewer repeats: for a look, not for figures to keep
    #[arg(long)]
    pub quick: bool,
}

const BENCH_HELP: &str = "\
Exit status:
  0; 1 if a page is read back with wrong content; 2 for wrong use, or a machine that cannot do it

Examples:
  uhmm bench --quick
  uhmm bench fault_private_mirror fault_private_lz4
  uhmm bench dmirror
  uhmm bench --json > figures.json";

/// Prints the help that was asked for, or says in one line what is wrong with the arguments.
pub fn explain(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            say(one_line(&error.to_string()));
            ExitCode::from(2)
        }
    }
}

/// The complaint and its tips, without the usage that follows them.
fn one_line(error: &str) -> String {
    let said = error
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"));
    let mut line = String::new();
    for part in said.filter(|part| !part.is_empty() && !part.starts_with("For more information")) {
        let between = match line.chars().last() {
            None => "",
            Some(':') => " ",
            Some(_) => "; ",
        };
        line += between;
        line += part.strip_prefix("error: ").unwrap_or(part);
    }
    line + "; --help says more"
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_follows_the_command_is_its_own() {
        let line = [
            "uhmm", "run", "--ram", "64M", "--", "sort", "--quiet", "--", "-S", "1G",
        ];
        let Verb::Run(run) = Args::try_parse_from(line).unwrap().verb else {
            panic!("not run")
        };
        assert_eq!((run.ram.as_str(), run.quiet), ("64M", false));
        assert_eq!(run.command, ["sort", "--quiet", "--", "-S", "1G"]);
    }

    #[test]
    fn wrong_arguments_get_one_line() {
        for (arguments, says) in [
            (&["run"][..], "<COMMAND>"),
            (&["run", "--rem", "1M", "--", "true"], "'--rem'"),
            (&["run", "--ram"], "'--ram <SIZE>'"),
            (&["walk"], "'walk'"),
            (&["bench", "frist_touch"], "'first_touch'"),
        ] {
            let error = Args::try_parse_from([&["uhmm"], arguments].concat()).unwrap_err();
            let line = one_line(&error.to_string());
            assert!(line.lines().count() == 1 && line.contains(says), "{line}");
        }
    }
}
