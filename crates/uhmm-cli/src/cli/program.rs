//! Finding the program to run, and refusing those that no library can be loaded into.
//!
//! What would run unmanaged without a word is refused here, with the reason.

use super::elf::{self, Kind};
use super::failure::Failure;
use rustix::fs::Access;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where programs are looked for when PATH is not set.
const DEFAULT_PATH: &str = "/usr/local/bin:/bin:/usr/bin";

/// How many interpreters of interpreters Linux follows.
const MAX_DEPTH: usize = 5;

/// How much of a script Linux reads to find its interpreter.
const FIRST_LINE: usize = 256;

const SET_UID: u32 = 0o4000;
const SET_GID_AND_RUN: u32 = 0o2010;

/// Finds `command` as a shell does: a name with a slash is a path, another is looked up in PATH.
///
/// # Errors
///
/// It is not there (127), or cannot be executed (126).
pub fn find(command: &OsStr) -> Result<PathBuf, Failure> {
    if command.as_bytes().contains(&b'/') {
        let path = PathBuf::from(command);
        executable(&path)?;
        return Ok(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let mut refused = None;
    for directory in std::env::split_paths(&path).filter(|_| !command.is_empty()) {
        // An empty entry means the current directory.
        let directory = if directory.as_os_str().is_empty() {
            ".".into()
        } else {
            directory
        };
        let candidate = directory.join(command);
        if candidate.is_file() {
            match executable(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(failure) => refused = refused.or(Some(failure)),
            }
        }
    }
    Err(refused
        .unwrap_or_else(|| Failure::not_found(format!("{command:?}: no such command in PATH"))))
}

/// Whether `path` is a file that this user may execute.
fn executable(path: &Path) -> Result<(), Failure> {
    let metadata = path.metadata().map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Failure::not_executable(format!("{path:?}: {error}")),
        _ => Failure::not_found(format!("{path:?}: {error}")),
    })?;
    if metadata.is_dir() {
        return Err(Failure::not_executable(format!(
            "{path:?} is a directory, not a program"
        )));
    }
    if !metadata.is_file() || rustix::fs::access(path, Access::EXEC_OK).is_err() {
        return Err(Failure::not_executable(format!(
            "{path:?} is not executable by this user (`chmod +x` makes a program of a file)"
        )));
    }
    Ok(())
}

/// Checks that the library can be loaded into the program at `path`, or into the interpreter of
/// the script that is there.
///
/// # Errors
///
/// It cannot, or the file is no program; the line says why.
pub fn check(path: &Path) -> Result<(), Failure> {
    let mut path = path.to_owned();
    let mut who = format!("{path:?}");
    for _ in 0..MAX_DEPTH {
        let Ok(file) = File::open(&path) else {
            // It may be executable without being readable. Then the loader judges.
            return Ok(());
        };
        let mut first = [0; FIRST_LINE];
        let first = read_up_to(&file, &mut first)
            .map_err(|error| Failure::not_executable(format!("{who} cannot be read: {error}")))?;
        if first.starts_with(elf::MAGIC) {
            return check_elf(&path, &file, &who);
        }
        path = match interpreter(first) {
            Some(interpreter) => real_interpreter(interpreter)?,
            // What Linux does not know, the C library and every shell run as a shell script.
            None if first.contains(&0) => {
                return Err(Failure::not_executable(format!(
                    "{who} is neither a program for this machine nor a script"
                )));
            }
            None => "/bin/sh".into(),
        };
        if let Err(error) = path.metadata() {
            return Err(Failure::not_found(format!(
                "{who} needs the interpreter {path:?}: {error}"
            )));
        }
        executable(&path)?;
        who = format!("{path:?}, the interpreter of {who},");
    }
    Err(Failure::not_executable(format!(
        "{who} is one of too many interpreters in a row"
    )))
}

fn read_up_to<'a>(file: &File, into: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let mut len = 0;
    while len < into.len() {
        match file.read_at(&mut into[len..], len as u64) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(&into[..len])
}

/// An interpreter and its argument, as the first line of a script names them.
#[derive(Debug, PartialEq, Eq)]
struct Interpreter<'a> {
    path: &'a OsStr,
    argument: &'a str,
}

/// Reads `#!` lines as Linux does: the interpreter, and all the rest as one argument.
fn interpreter(first: &[u8]) -> Option<Interpreter<'_>> {
    let line = first
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?
        .trim_ascii();
    let end = line
        .iter()
        .position(|byte| b" \t".contains(byte))
        .unwrap_or(line.len());
    let (path, argument) = line.split_at(end);
    let argument = std::str::from_utf8(argument.trim_ascii()).unwrap_or_default();
    (!path.is_empty()).then(|| Interpreter {
        path: OsStr::from_bytes(path),
        argument,
    })
}

/// The program that comes to run a script: `env` only looks for another one.
fn real_interpreter(interpreter: Interpreter<'_>) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(interpreter.path);
    match env_target(interpreter.argument) {
        Some(target) if path.file_name() == Some(OsStr::new("env")) => find(target),
        _ => Ok(path),
    }
}

/// The program that `env` runs, given its argument in a `#!` line; `None` if that is not plain.
fn env_target(argument: &str) -> Option<&OsStr> {
    let target = match argument.strip_prefix("-S") {
        Some(words) => words
            .split_ascii_whitespace()
            .find(|word| !word.contains('='))?,
        None => argument,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    (!target.starts_with('-') && target.chars().all(plain) && !target.is_empty())
        .then_some(OsStr::new(target))
}

fn check_elf(path: &Path, file: &File, who: &str) -> Result<(), Failure> {
    let kind = elf::inspect(|into, offset| file.read_exact_at(into, offset));
    let loader = match kind {
        Ok(Kind::Dynamic(loader)) => loader,
        Ok(Kind::Static) => {
            return Err(Failure::refused(format!(
                "{who} is statically linked, so its memory cannot be managed: use a dynamically \
                 linked build of it"
            )));
        }
        Ok(Kind::Foreign(what)) => {
            return Err(Failure::refused(format!(
                "{who} is {what}: only 64-bit programs for {} can be managed here",
                std::env::consts::ARCH
            )));
        }
        Err(elf::Error::Malformed(what)) => {
            return Err(Failure::not_executable(format!(
                "{who} is no working program: {what}"
            )));
        }
        Err(elf::Error::Io(error)) => {
            return Err(Failure::not_executable(format!(
                "{who} cannot be read: {error}"
            )));
        }
    };
    check_loader(&loader, who)?;
    let mode = file.metadata().map_or(0, |metadata| metadata.mode());
    let gains = if mode & SET_UID != 0 {
        "is a setuid program"
    } else if mode & SET_GID_AND_RUN == SET_GID_AND_RUN {
        "is a setgid program"
    } else if rustix::fs::getxattr(path, c"security.capability", &mut [0u8; 64][..]).is_ok() {
        "has file capabilities"
    } else {
        return Ok(());
    };
    Err(Failure::refused(format!(
        "{who} {gains}, and Linux loads no library of ours into those: run uhmm inside of it, or \
         use a copy without the privilege"
    )))
}

/// The loader must be glibc's: the library is linked with glibc.
fn check_loader(loader: &OsString, who: &str) -> Result<(), Failure> {
    let name = Path::new(loader)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    if !["ld-linux", "ld-2."]
        .iter()
        .any(|glibc| name.starts_with(glibc))
    {
        let libc = if name.starts_with("ld-musl") {
            "musl"
        } else {
            "another C library"
        };
        return Err(Failure::refused(format!(
            "{who} is linked with {libc} (its loader is {loader:?}): use a build for glibc"
        )));
    }
    if let Err(error) = Path::new(loader).metadata() {
        return Err(Failure::not_found(format!(
            "{who} needs the loader {loader:?}: {error}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_read_as_linux_reads_them() {
        let read = |line| interpreter(line).map(|i| (i.path.to_str().unwrap(), i.argument));
        assert_eq!(read(b"#!/bin/sh\necho"), Some(("/bin/sh", "")));
        assert_eq!(read(b"#! \t/bin/sh  -e -u \nx"), Some(("/bin/sh", "-e -u")));
        assert_eq!(
            read(b"#!/usr/bin/env python3"),
            Some(("/usr/bin/env", "python3"))
        );
        assert_eq!(read(b"#!\n/bin/sh"), None);
        assert_eq!(read(b"echo"), None);
        assert_eq!(read(b""), None);
    }

    #[test]
    fn env_is_looked_through_where_it_is_plain() {
        for (argument, target) in [
            ("python3", Some("python3")),
            ("-S python3 -u", Some("python3")),
            ("-Spython3", Some("python3")),
            ("-S A=1 B=2 perl -w", Some("perl")),
            ("-i", None),
            ("-S -u A perl", None),
            ("-S 'quoted'", None),
            ("python3 -u", None),
            ("", None),
        ] {
            assert_eq!(env_target(argument), target.map(OsStr::new), "{argument}");
        }
    }

    #[test]
    fn loaders_other_than_those_of_glibc_are_refused() {
        let line = |loader: &str| check_loader(&loader.into(), "\"p\"").unwrap_err();
        assert!(format!("{:?}", line("/lib/ld-musl-x86_64.so.1")).contains("musl"));
        assert!(format!("{:?}", line("/system/bin/linker64")).contains("another C library"));
        assert!(
            format!("{:?}", line("/nowhere/ld-linux-x86-64.so.2")).contains("needs the loader")
        );
    }
}
