//! `uhmm devices` and `uhmm doctor`.

use super::failure::{Failure, print};
use std::fmt::Write;
use std::process::ExitCode;
use uhmm::size::{self, Bytes};
use uhmm::spec::KINDS;
use uhmm_core::stats::MAX_DEVICES;
use uhmm_linux::probe::{self, Verdict, facts::machine_memory};

/// Lists the kinds of devices.
pub fn devices() -> Result<ExitCode, Failure> {
    let mut text = String::from("Devices, named by --device KIND or --device KIND:SIZE:\n");
    let memory = machine_memory();
    for kind in KINDS {
        let _ = writeln!(text, "\n  {:<8}{}", kind.name, kind.summary);
        for (option, meaning) in kind.options {
            let _ = writeln!(text, "          {option}: {meaning}");
        }
        let default = kind.default_size;
        if let Ok(bytes) = size::parse(default, memory) {
            let bytes = Bytes(bytes);
            let _ = writeln!(
                text,
                "          without SIZE: {default} of the machine's memory, {bytes}"
            );
        }
    }
    let _ = write!(
        text,
        "\nSIZE is a number of bytes with K, M, G or T (powers of 1024), or N% of the machine's \
         memory.\nUp to {MAX_DEVICES} devices can be used at once, in the order in which they are \
         given.\n"
    );
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Checks the machine: success if it can run uhmm, else exit code 2.
pub fn doctor() -> Result<ExitCode, Failure> {
    let report = probe::probe();
    let mut text = String::new();
    for check in &report.checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Missing => "MISSING",
        };
        let _ = writeln!(text, "{verdict:<8}{}: {}", check.name, check.detail);
        if let Some(mend) = &check.mend {
            let _ = writeln!(text, "        mend: {mend}");
        }
    }
    let usable = report.usable().is_ok();
    text += match (usable, report.has_signal_engine()) {
        (true, _) => "\nThis machine and this user can run uhmm.\n",
        (false, true) => {
            "\n`uhmm run` cannot run here until what is MISSING is mended. Programs that use the library \
             can, with the signal engine.\n"
        }
        (false, false) => "\nuhmm cannot run here until what is MISSING is mended.\n",
    };
    print(&text)?;
    Ok(ExitCode::from(if usable { 0 } else { 2 }))
}
