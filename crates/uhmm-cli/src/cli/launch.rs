//! Running a program with the library in it: all is checked before it starts.

use super::failure::Failure;
use super::{library, program};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use uhmm::Engine;
use uhmm_linux::{child, probe};

/// What tells the library what to do, in the environment. A program gets those that are meant for it,
/// and none of a `uhmm` that this one runs under.
const VARIABLES: [&str; 4] = ["UHMM_RAM", "UHMM_DEVICES", "UHMM_STATS", "UHMM_DMIRROR"];

/// A program that can be run with the library.
pub struct Launch {
    program: PathBuf,
    /// To be given variables for the library.
    pub command: Command,
}

impl Launch {
    /// Checks that the program and its arguments can be run, with a space on `engine`.
    ///
    /// # Errors
    ///
    /// They cannot; the line says why, and what to do about it.
    pub fn new(words: &[OsString], engine: Engine) -> Result<Self, Failure> {
        let (name, arguments) = words
            .split_first()
            .ok_or_else(|| Failure::refused("no COMMAND is given"))?;
        let program = program::find(name)?;
        program::check(&program)?;
        probe::probe().usable_on(engine).map_err(Failure::refused)?;
        let library = library::find()?;
        let preload = library::preload(&library, std::env::var_os("LD_PRELOAD"));
        let mut command = Command::new(&program);
        command
            .arg0(name)
            .args(arguments)
            .env("LD_PRELOAD", preload);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        Ok(Self { program, command })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    ///
    /// It cannot be started after all.
    pub fn run(mut self) -> Result<ExitStatus, Failure> {
        let program = self.program;
        child::run(&mut self.command).map_err(|error| {
            let line = format!("{program:?} cannot be run: {error}");
            match error.kind() {
                io::ErrorKind::NotFound => Failure::not_found(line),
                _ => Failure::not_executable(line),
            }
        })
    }
}

/// The program's own code, or 128 + the number of the signal that ended it.
pub fn exit_code(status: ExitStatus) -> u8 {
    let signal = || {
        status
            .signal()
            .map_or(u8::MAX.into(), |signal| 128 + signal)
    };
    status.code().unwrap_or_else(signal).to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        for (raw, code) in [
            (0, 0),
            (3 << 8, 3),
            (255 << 8, 255),
            (11, 139),
            (0x80 | 6, 134),
        ] {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), code);
        }
    }
}
