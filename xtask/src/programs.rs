//! `cargo xtask programs`: real programs under `uhmm run`, each compared with its plain run.
//!
//! The suite itself is `crates/uhmm-cli/tests/programs.rs`.

use crate::Outcome;
use crate::step::{Steps, cargo};
use std::process::Command;

/// The devices that the programs run on, as `--device` takes them.
pub const DEVICES: &[&str] = &["lz4", "mirror:4G"];

/// The suite on `device`.
pub fn suite(device: &str) -> Command {
    let mut command = cargo(&[
        "test",
        "--release",
        "--package",
        "uhmm-cli",
        "--test",
        "programs",
    ]);
    command
        .args(["--", "--nocapture", "--test-threads=1"])
        .env("UHMM_TEST_DEVICE", device);
    command
}

/// Runs the suite on each of `devices`, or on all if none is named.
pub fn programs(devices: &[String]) -> Outcome {
    let all: Vec<&str> = match devices {
        [] => DEVICES.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    let mut steps = Steps::default();
    for device in all {
        steps.command(&format!("programs on {device}"), &mut suite(device));
    }
    steps.finish()
}
