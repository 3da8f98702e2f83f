//! The programs that the tests run: where they are, and those that are compiled first.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder for the files of the tests.
pub fn scratch() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    std::fs::create_dir_all(&folder).expect("a scratch folder");
    folder
}

/// A file of `tests/programs`.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs")
        .join(name)
}

/// The system's own `name`, before anything else of that name on the path.
///
/// Where there is none, says so on standard error whatever the test runner captures, and panics
/// under `CI=true`: there, nothing may be skipped.
pub fn tool(name: &str) -> Option<PathBuf> {
    let system = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = system
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    if found.is_none() {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(
            !ci,
            "`{name}` is not installed, and CI=true: nothing may be skipped"
        );
        let mut stderr = std::io::stderr();
        let _ = writeln!(
            stderr,
            "\n*** SKIPPED: `{name}` is not installed; its tests did NOT run\n"
        );
    }
    found
}

/// Compiles `tests/programs/NAME.c`. `None` if there is no compiler.
pub fn compile(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let gcc = tool("gcc")?;
    let program = scratch().join(name);
    let out = Command::new(gcc)
        .args([
            "-std=gnu11",
            "-O2",
            "-g",
            "-pthread",
            "-Wall",
            "-Wextra",
            "-Werror",
        ])
        .args(flags)
        .arg(source(&format!("{name}.c")))
        .arg("-o")
        .arg(&program)
        .output()
        .expect("running the compiler");
    assert!(
        out.status.success(),
        "{name}.c: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Some(program)
}
