//! The command: arguments are parsed first ([`args`]), then something is done with them.

mod args;
mod dmirror;
mod elf;
mod failure;
mod info;
mod launch;
mod library;
mod program;
mod report;
mod run;

use args::{Args, BenchArgs, Verb};
use clap::Parser;
use failure::{Failure, print, say};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use uhmm_bench::{Error, Event, Figure};
use uhmm_linux::probe;

/// Does what the command line says.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return args::explain(&error),
    };
    let result = match args.verb {
        Verb::Run(args) => run::run(&args),
        Verb::Dmirror(args) => dmirror::dmirror(&args),
        Verb::Devices => info::devices(),
        Verb::Doctor => info::doctor(),
        Verb::Bench(args) => bench(&args),
    };
    result.unwrap_or_else(|failure| failure.report())
}

/// `uhmm bench`: prints each figure as soon as there is one.
fn bench(args: &BenchArgs) -> Result<ExitCode, Failure> {
    probe::probe().usable().map_err(Failure::refused)?;
    let options = uhmm_bench::Options {
        names: args.names.clone(),
        quick: args.quick,
    };
    let terminal = io::stderr().is_terminal();
    let progress = |what: &str| {
        if terminal {
            let _ = write!(io::stderr(), "\r\x1b[K{what}");
        }
    };
    let mut printed = if args.json {
        Ok(())
    } else {
        print(&Figure::head())
    };
    let mut watch = |event: Event<'_>| match event {
        Event::Progress(what) => progress(what),
        Event::Figure(figure) if printed.is_ok() => {
            progress("");
            printed = print(&if args.json {
                figure.json()
            } else {
                figure.row()
            });
        }
        Event::Figure(_) => {}
    };
    let result = uhmm_bench::run(&options, &mut watch);
    progress("");
    printed?;
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error @ Error::WrongContent { .. }) => {
            say(error);
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(Failure::refused(error)),
    }
}
