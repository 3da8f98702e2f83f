//! `cargo xtask soak`: the same again until the time is up, or something breaks.

use crate::step::{Steps, cargo};
use crate::{Outcome, programs};
use std::process::Command;
use std::time::{Duration, Instant};

/// The longest that the stress tests run before the programs have their turn.
const STRESS_SLICE: Duration = Duration::from_secs(120);

/// Runs rounds of stress tests and programs for `minutes`, each round on the next device.
pub fn soak(minutes: u64) -> Outcome {
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let left = || end.saturating_duration_since(Instant::now());
    let mut steps = Steps::default();
    for device in programs::DEVICES.iter().cycle() {
        let slice = left().min(STRESS_SLICE);
        steps.command(
            &format!("stress for {} s", slice.as_secs()),
            &mut stress(slice),
        );
        if steps.last_failed() || left().is_zero() {
            break;
        }
        steps.command(
            &format!("programs on {device}"),
            &mut programs::suite(device),
        );
        if steps.last_failed() || left().is_zero() {
            break;
        }
    }
    steps.finish()
}

/// The stress tests of the library, for about `time`.
fn stress(time: Duration) -> Command {
    let mut command = cargo(&["test", "--release", "--package", "uhmm", "--test", "stress"]);
    command.args(["--", "--nocapture", "--test-threads=1"]);
    command.env("UHMM_STRESS_SECONDS", time.as_secs().max(1).to_string());
    command
}
