//! Crate roots: what they forbid, and the lints that their packages take.

use crate::sources;
use serde_json::Value;
use std::path::Path;

/// What a crate root has to say about `unsafe`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unsafe {
    /// `forbid`: there is none.
    Forbidden,
    /// `deny`, but for the one module of this name.
    InModule(&'static str),
    /// Nothing, for this reason.
    Allowed(&'static str),
}
use Unsafe::{Allowed, Forbidden, InModule};

/// Every crate that is not [`Forbidden`]: package, target (`*` for all of them), and what holds.
const UNSAFE: &[(&str, &str, Unsafe)] = &[
    ("uhmm-core", "uhmm_core", InModule("lock")),
    ("uhmm-linux", "*", Allowed("talks to the kernel")),
    (
        "uhmm",
        "*",
        Allowed("hands out the memory of regions as slices"),
    ),
    ("uhmm-dmirror", "uhmm_dmirror", InModule("process")),
    (
        "uhmm-bench",
        "*",
        Allowed("measures bare system calls as floors"),
    ),
    (
        "uhmm-cli",
        "uhmm_preload",
        Allowed("is called by C programs in place of libc"),
    ),
];

/// Kinds of target whose roots are judged. What tests and examples do is their own affair.
const JUDGED: &[&str] = &["lib", "rlib", "cdylib", "staticlib", "proc-macro", "bin"];

/// What is wrong with the crate roots of `metadata`, and packages without the workspace's lints.
pub fn wrong(metadata: &Value) -> Result<Vec<String>, String> {
    let mut errors = Vec::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for package in list(&metadata["packages"]) {
        let name = text(&package["name"]);
        if !takes_workspace_lints(&read(Path::new(text(&package["manifest_path"])))?) {
            errors.push(format!(
                "{name}: wants `[lints]` with `workspace = true` in its manifest"
            ));
        }
        for target in list(&package["targets"]) {
            let root = Path::new(text(&target["src_path"]));
            let kinds = list(&target["kind"]);
            if !kinds.iter().any(|kind| JUDGED.contains(&text(kind))) {
                continue;
            }
            let rule = rule(name, text(&target["name"]));
            let why = broken(rule, &read(root)?);
            errors.extend(why.map(|why| format!("{}: {why}", root.display())));
            if matches!(rule, InModule(_)) {
                errors.extend(lifted_inside(root)?);
            }
        }
    }
    Ok(errors)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|why| format!("{}: {why}", path.display()))
}

fn rule(package: &str, target: &str) -> Unsafe {
    UNSAFE
        .iter()
        .find(|(p, t, _)| *p == package && (*t == "*" || *t == target))
        .map_or(Forbidden, |(_, _, rule)| *rule)
}

/// Why `root`, the text of a crate root, breaks `rule`.
fn broken(rule: Unsafe, root: &str) -> Option<String> {
    let has = |wanted: &str| root.lines().any(|line| line == wanted);
    match rule {
        Forbidden if !has("#![forbid(unsafe_code)]") => {
            Some("`#![forbid(unsafe_code)]` is missing".into())
        }
        InModule(_) if !has("#![deny(unsafe_code)]") => {
            Some("`#![deny(unsafe_code)]` is missing".into())
        }
        InModule(module) => {
            let excepted = excepted_modules(root);
            let right = matches!(excepted[..], [one] if one == module);
            (!right).then(|| format!("`unsafe` is for `{module}` alone, not for {excepted:?}"))
        }
        Forbidden | Allowed(_) => None,
    }
}

/// The modules of `root` that stand under `#[allow(unsafe_code)]`; the whole line where that is
/// above something else.
fn excepted_modules(root: &str) -> Vec<&str> {
    let lines: Vec<&str> = root.lines().map(str::trim).collect();
    let below = |at: usize| lines[at..].iter().find(|line| !line.starts_with('#'));
    (0..lines.len())
        .filter(|&at| allows_unsafe(lines[at]))
        .map(|at| {
            let line = below(at).copied().unwrap_or_default();
            line.trim_start_matches("pub ")
                .strip_prefix("mod ")
                .and_then(|rest| rest.strip_suffix(';'))
                .unwrap_or(line)
        })
        .collect()
}

fn allows_unsafe(line: &str) -> bool {
    line.starts_with('#') && line.contains("allow(unsafe_code")
}

/// Modules that lift the root's `deny` by themselves: only the root may.
fn lifted_inside(root: &Path) -> Result<Vec<String>, String> {
    let Some(folder) = root.parent() else {
        return Ok(Vec::new());
    };
    let mut errors = Vec::new();
    for file in sources::walk(folder)?.iter().filter(|file| *file != root) {
        if read(file)?.lines().any(|line| allows_unsafe(line.trim())) {
            errors.push(format!(
                "{}: only the crate root may allow `unsafe`",
                file.display()
            ));
        }
    }
    Ok(errors)
}

fn takes_workspace_lints(manifest: &str) -> bool {
    manifest
        .lines()
        .skip_while(|line| line.trim() != "[lints]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .any(|line| line.replace(' ', "") == "workspace=true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_name_a_target() {
        assert!(matches!(rule("uhmm-linux", "anything"), Allowed(_)));
        assert!(matches!(rule("uhmm-cli", "uhmm_preload"), Allowed(_)));
        assert_eq!(rule("uhmm-cli", "uhmm"), Forbidden);
        assert_eq!(rule("uhmm-lz4", "uhmm_lz4"), Forbidden);
    }

    #[test]
    fn forbid_has_to_be_there() {
        assert_eq!(
            broken(Forbidden, "//! Doc.\n#![forbid(unsafe_code)]\n"),
            None
        );
        assert!(broken(Forbidden, "// #![forbid(unsafe_code)]\n").is_some());
        assert!(broken(Forbidden, "#![deny(unsafe_code)]\n").is_some());
        assert_eq!(broken(Allowed("why"), ""), None);
    }

    #[test]
    fn one_module_is_excepted_and_no_other() {
        let deny = "#![deny(unsafe_code)]\nmod a;\n";
        let lock = "#[allow(unsafe_code)]\npub mod lock;\n";
        let rule = InModule("lock");
        assert_eq!(broken(rule, &format!("{deny}{lock}")), None);
        assert!(broken(rule, lock).is_some());
        assert!(broken(rule, &format!("{deny}#[allow(unsafe_code)]\nmod a;\n")).is_some());
        assert!(
            broken(
                rule,
                &format!("{deny}{lock}#[allow(unsafe_code)]\nmod b;\n")
            )
            .is_some()
        );
    }

    #[test]
    fn lints_are_read_from_their_own_section() {
        assert!(takes_workspace_lints("[lints]\nworkspace = true\n"));
        assert!(!takes_workspace_lints(
            "[lints]\n[package]\nworkspace = true\n"
        ));
        assert!(!takes_workspace_lints("[package]\nworkspace = true\n"));
    }
}
