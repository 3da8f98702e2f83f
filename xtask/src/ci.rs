//! `cargo xtask ci`: all that must pass besides the tests.

use crate::step::{Steps, cargo};
use crate::{Outcome, check, engines, mutants, programs, selftests};
use std::process::Stdio;

/// Runs every step, and says at the end which failed.
pub fn ci() -> Outcome {
    let mut steps = Steps::default();
    steps.command("format", &mut cargo(&["fmt", "--all", "--check"]));
    steps.work("check", check::check);
    steps.command(
        "clippy",
        &mut cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    );
    steps.command(
        "clippy with features",
        &mut cargo(&[
            "clippy",
            "--package",
            "uhmm",
            "--all-features",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    );
    steps.command(
        "tests with features",
        &mut cargo(&[
            "test",
            "--release",
            "--package",
            "uhmm",
            "--all-features",
            "--test",
            "api",
        ]),
    );
    steps.command(
        "documentation",
        // The protocols stand at the head of private modules too.
        cargo(&[
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .env("RUSTDOCFLAGS", "-D warnings"),
    );
    steps.command(
        "tests of xtask",
        &mut cargo(&["test", "--release", "--package", "xtask"]),
    );
    steps.work("mutants", || mutants::run(&[], false));
    // `cargo test` has run them on the thread engine.
    steps.work("signal engine", engines::engines);
    // `cargo test` has run the programs on lz4; here it is the other device's turn.
    for device in programs::DEVICES.iter().filter(|device| **device != "lz4") {
        steps.command(
            &format!("programs on {device}"),
            &mut programs::suite(device),
        );
    }
    steps.work("kernel selftests", || {
        selftests::run(&selftests::Options::default())
    });
    if has_cargo_deny() {
        steps.command("dependencies", &mut cargo(&["deny", "check"]));
    } else {
        steps.skip(
            "dependencies",
            "cargo-deny is not installed: `cargo install cargo-deny`",
        );
    }
    steps.finish()
}

fn has_cargo_deny() -> bool {
    cargo(&["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
