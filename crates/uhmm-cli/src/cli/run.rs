//! `uhmm run`: everything is checked first, then the program runs, then it is reported.

use super::args::RunArgs;
use super::failure::{Failure, say};
use super::launch::Launch;
use super::report::Outcome;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use uhmm::Engine;
use uhmm::size::{self, Bytes};
use uhmm::spec::{self, DeviceSpec};
use uhmm_linux::probe::facts::machine_memory;
use uhmm_linux::shared_stats::{StatsFile, Total};

/// The least RAM that a program can be run in, in bytes.
const MIN_RAM: u64 = 2 << 20;

/// The devices where none is named.
const DEFAULT_DEVICES: &str = "lz4";

/// Runs the program; returns the code to exit with.
pub fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    let ram = ram(&args.ram)?;
    let devices = devices(&args.devices)?;
    // Programs give their memory to system calls, which the signal engine does not serve.
    let mut launch = Launch::new(&args.command, Engine::Thread)?;
    let stats_to = args.stats.as_deref().map(StatsTo::open).transpose()?;
    let counted = StatsFile::create_anywhere().map_err(|error| {
        Failure::refused(format!(
            "no file for counters in /dev/shm nor in TMPDIR: {error}"
        ))
    })?;

    launch
        .command
        .env("UHMM_RAM", ram.to_string())
        .env("UHMM_DEVICES", spec::join(&devices))
        .env("UHMM_STATS", counted.path());
    let start = Instant::now();
    let status = launch.run()?;
    let wall = start.elapsed();

    let total = counted.sum().unwrap_or_else(|error| {
        say(format_args!("what was counted cannot be read: {error}"));
        Total::default()
    });
    let outcome = Outcome {
        command: &args.command,
        status,
        wall,
        ram,
        devices: &devices,
        total,
    };
    if !args.quiet {
        say(outcome.text());
    }
    if let Some(to) = stats_to {
        to.write(&outcome.json());
    }
    Ok(ExitCode::from(outcome.exit_code()))
}

fn ram(text: &str) -> Result<u64, Failure> {
    let bytes = size::parse(text, machine_memory())
        .map_err(|error| Failure::refused(format!("--ram: {error}")))?;
    if bytes < MIN_RAM {
        let (given, least) = (Bytes(bytes), Bytes(MIN_RAM));
        return Err(Failure::refused(format!(
            "--ram: {given} is too little for any program: give at least {least}"
        )));
    }
    Ok(bytes)
}

fn devices(specs: &[String]) -> Result<Vec<DeviceSpec>, Failure> {
    let list = if specs.is_empty() {
        DEFAULT_DEVICES.to_owned()
    } else {
        specs.join(",")
    };
    DeviceSpec::parse_list(&list, machine_memory())
        .map_err(|error| Failure::refused(format!("--device: {error}")))
}

/// The file that `--stats` names, open before the program runs.
struct StatsTo<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> StatsTo<'a> {
    fn open(path: &'a Path) -> Result<Self, Failure> {
        let writable = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)?;
            // A write of nothing fails on a device that takes nothing, and leaves no trace.
            let _ = file.write(&[])?;
            // Room is kept where a file system can keep it; only having none is an error.
            match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 4096) {
                Err(error @ (Errno::NOSPC | Errno::DQUOT)) => Err(error.into()),
                _ => Ok(file),
            }
        };
        writable()
            .map(|file| Self { path, file })
            .map_err(|error: io::Error| {
                Failure::refused(format!("--stats: {path:?} cannot be written to: {error}"))
            })
    }

    fn write(mut self, json: &str) {
        let write = self.file.write_all(json.as_bytes());
        // Gives back what was kept and not used; not every file has a length.
        let _ = self.file.set_len(json.len() as u64);
        if let Err(error) = write {
            say(format_args!(
                "--stats: {:?} could not be written: {error}",
                self.path
            ));
        }
    }
}
