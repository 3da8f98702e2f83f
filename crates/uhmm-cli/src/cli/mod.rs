//! The command: arguments are parsed first ([`args`]), then something is done with them.

mod args;
mod elf;
mod failure;
mod info;
mod library;
mod program;
mod report;
mod run;

use args::{Args, Verb};
use clap::Parser;
use std::process::ExitCode;

/// Does what the command line says.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return args::explain(&error),
    };
    let result = match args.verb {
        Verb::Run(args) => run::run(&args),
        Verb::Devices => info::devices(),
        Verb::Doctor => info::doctor(),
    };
    result.unwrap_or_else(|failure| failure.report())
}
