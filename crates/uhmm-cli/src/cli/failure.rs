//! What goes wrong, in one line, and what is said on the way.
//!
//! Nothing here fails when standard error is closed: who cannot listen is told nothing.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Why the command does not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    line: String,
}

impl Failure {
    /// Wrong use, or a machine that cannot do it: exit code 2.
    pub fn refused(line: impl Display) -> Self {
        Self {
            code: 2,
            line: line.to_string(),
        }
    }

    /// The program is there, but is none: exit code 126, as in a shell.
    pub fn not_executable(line: impl Display) -> Self {
        Self {
            code: 126,
            line: line.to_string(),
        }
    }

    /// The program is not there: exit code 127, as in a shell.
    pub fn not_found(line: impl Display) -> Self {
        Self {
            code: 127,
            line: line.to_string(),
        }
    }

    /// Says it, and gives the code to exit with.
    pub fn report(&self) -> ExitCode {
        say(&self.line);
        ExitCode::from(self.code)
    }
}

/// Says something on standard error.
pub fn say(what: impl Display) {
    // One write, so that what the program's other processes say does not come in between.
    let _ = io::stderr().write_all(format!("uhmm: {what}\n").as_bytes());
}

/// Prints what was asked for on standard output.
///
/// # Errors
///
/// It cannot be written. That the reader has gone is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::refused(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}
