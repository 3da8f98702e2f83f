//! `uhmm dmirror`: a program with the devices of the kernel's HMM test driver.

use super::args::DmirrorArgs;
use super::failure::Failure;
use super::launch::{Launch, exit_code};
use std::process::ExitCode;
use uhmm::Engine;
use uhmm::size::{self, Bytes};
use uhmm_linux::probe::facts::machine_memory;

/// The least that a device can have, in bytes: one page.
const LEAST: u64 = 4096;

/// Runs the program; returns the code to exit with.
pub fn dmirror(args: &DmirrorArgs) -> Result<ExitCode, Failure> {
    let private = size("--private", &args.private)?;
    let coherent = size("--coherent", &args.coherent)?;
    let engine = Engine::of_environment().map_err(Failure::refused)?;
    let mut launch = Launch::new(&args.command, engine)?;
    let sizes = format!("{private},{coherent}");
    launch.command.env("UHMM_DMIRROR", sizes);
    Ok(ExitCode::from(exit_code(launch.run()?)))
}

fn size(option: &str, text: &str) -> Result<u64, Failure> {
    let memory = machine_memory();
    let bytes = size::parse(text, memory)
        .map_err(|error| Failure::refused(format!("{option}: {error}")))?;
    if bytes < LEAST {
        let (given, least) = (Bytes(bytes), Bytes(LEAST));
        return Err(Failure::refused(format!(
            "{option}: {given} is less than a page: give at least {least}"
        )));
    }
    if bytes > memory {
        let (given, memory) = (Bytes(bytes), Bytes(memory));
        return Err(Failure::refused(format!(
            "{option}: {given} is more than the {memory} of the machine, in which the devices' memory is"
        )));
    }
    Ok(bytes)
}
