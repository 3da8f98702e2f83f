//! `cargo xtask engines`: the tests and examples of the library and of the software device on the signal
//! engine, as root and as a user without privilege. (`cargo test` runs them on the thread engine.)

use crate::Outcome;
use crate::step::{Steps, cargo, root};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The user and group that have no privilege, on every system.
const NOBODY: u32 = 65534;

/// Tests that say nothing without privilege, and why.
const ROOT_ONLY: &[(&str, &str)] = &[("compaction", "only root may have memory compacted")];

/// Runs the tests of `uhmm` twice, and says at the end which failed.
pub fn engines() -> Outcome {
    let built = build()?;
    let own = fs::metadata("/proc/self").map_err(|why| format!("/proc/self: {why}"))?;
    let mut steps = Steps::default();
    let who = if own.uid() == 0 {
        "as root"
    } else {
        "as this user, who is not root"
    };
    for test in &built.tests {
        let mut command = Command::new(test);
        // Where `cargo test` runs them.
        command.current_dir(root().join("crates/uhmm"));
        steps.command(&title(test, who), on_signals(&mut command));
    }
    if own.uid() != 0 {
        return steps.finish();
    }
    let home = Home::new(&built)?;
    for test in &built.tests {
        let title = title(test, "without privilege");
        if let Some((_, why)) = ROOT_ONLY.iter().find(|(name, _)| *name == plain(test)) {
            steps.skip(&title, why);
            continue;
        }
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={NOBODY}"))
            .arg(format!("--regid={NOBODY}"))
            .args(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
            .arg(home.deps().join(name(test)))
            .env("TMPDIR", &home.0)
            .current_dir(&home.0);
        steps.command(&title, on_signals(&mut command));
    }
    steps.finish()
}

fn title(test: &Path, who: &str) -> String {
    format!("signal engine, {who}: {}", plain(test))
}

fn on_signals(command: &mut Command) -> &mut Command {
    command.arg("--quiet").env("UHMM_ENGINE", "signal")
}

fn name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("?")
}

/// The name without the hash that cargo puts behind it.
fn plain(path: &Path) -> &str {
    let is_hash = |hash: &str| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    match name(path).rsplit_once('-') {
        Some((plain, hash)) if is_hash(hash) => plain,
        _ => name(path),
    }
}

/// What cargo has built.
struct Built {
    tests: Vec<PathBuf>,
    examples: Vec<PathBuf>,
}

fn build() -> Result<Built, String> {
    let output = cargo(&[
        "test",
        "--release",
        "--package",
        "uhmm",
        "--package",
        "uhmm-dmirror",
        "--no-run",
        "--message-format=json",
    ])
    .stderr(Stdio::inherit())
    .output()
    .map_err(|why| format!("cargo test: {why}"))?;
    if !output.status.success() {
        return Err("the tests of `uhmm` or of `uhmm-dmirror` do not build".into());
    }
    let built = artifacts(&String::from_utf8_lossy(&output.stdout));
    if built.tests.is_empty() || built.examples.is_empty() {
        return Err("cargo names no tests or no examples of `uhmm`".into());
    }
    Ok(built)
}

/// The programs of these packages in cargo's messages.
fn artifacts(messages: &str) -> Built {
    let mut built = Built {
        tests: Vec::new(),
        examples: Vec::new(),
    };
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let Some(program) = message["executable"].as_str() else {
            continue;
        };
        match message["target"]["kind"][0].as_str() {
            Some("example") => built.examples.push(program.into()),
            _ => built.tests.push(program.into()),
        }
    }
    built
}

/// A folder of the user without privilege, with copies of the programs; gone at the end.
struct Home(PathBuf);

impl Home {
    fn new(built: &Built) -> Result<Self, String> {
        let home = Self(std::env::temp_dir().join(format!("uhmm-engines-{}", std::process::id())));
        home.fill(built)
            .map_err(|why| format!("{}: {why}", home.0.display()))?;
        Ok(home)
    }

    /// Where the tests are; the examples are beside it, where the tests look for them.
    fn deps(&self) -> PathBuf {
        self.0.join("deps")
    }

    fn fill(&self, built: &Built) -> std::io::Result<()> {
        let examples = self.0.join("examples");
        for folder in [&self.0, &self.deps(), &examples] {
            fs::create_dir_all(folder)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        chown(&self.0, Some(NOBODY), Some(NOBODY))?;
        for test in &built.tests {
            fs::copy(test, self.deps().join(name(test)))?;
        }
        for example in &built.examples {
            fs::copy(example, examples.join(plain(example)))?;
        }
        Ok(())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":"/t/deps/fork-12"}
{"reason":"compiler-artifact","target":{"kind":["example"]},"executable":"/t/examples/one-34"}
not json
{"reason":"build-finished","success":true}"#;
        let built = artifacts(messages);
        assert_eq!(built.tests, [PathBuf::from("/t/deps/fork-12")]);
        assert_eq!(built.examples, [PathBuf::from("/t/examples/one-34")]);
    }

    #[test]
    fn names_lose_their_hash_and_nothing_else() {
        let plain = |path: &'static str| plain(Path::new(path));
        assert_eq!(plain("/t/examples/one-0123456789abcdef"), "one");
        assert_eq!(plain("/t/examples/one-by-one"), "one-by-one");
        assert_eq!(plain("/t/examples/one"), "one");
    }
}
