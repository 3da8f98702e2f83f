//! `uhmm dmirror`, as a program meets it: this one.
//!
//! Each test runs this program again, under `uhmm dmirror` and for that test alone, on each engine. What the
//! devices do with memory is tested with them (`crates/uhmm-dmirror`); here it is that a program which knows
//! nothing of us finds them, and that whatever it does to descriptors, mappings and processes is seen.

#![allow(clippy::undocumented_unsafe_blocks, reason = "a C program in Rust")]

mod device;
mod files;
mod mappings;
mod processes;
#[path = "../common/tree.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod tree;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A run that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the body in a process that has the devices.
#[macro_export]
macro_rules! with_devices {
    ($(#[doc = $doc:literal])* fn $name:ident() $body:block) => {
        $(#[doc = $doc])*
        #[test]
        fn $name() {
            $crate::with_devices(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    };
}

/// Runs `body`, if this process has the devices; else the test `path` in processes that have them.
fn with_devices(path: &str, body: fn()) {
    if std::env::var_os("UHMM_DMIRROR").is_some() {
        return body();
    }
    let (_, test) = path.split_once("::").unwrap();
    for engine in ["thread", "signal"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uhmm"));
        command
            .args(["dmirror", "--private", "64M", "--coherent", "64M", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env("UHMM_ENGINE", engine)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > LIMIT {
                let state = tree::describe(child.id());
                tree::kill(child.id());
                panic!("{test}, {engine} engine: hangs after {LIMIT:?}\n{state}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(
            output.status.success() && out.contains("1 passed"),
            "{test}, {engine} engine: {}\n{out}{err}",
            output.status
        );
    }
}
