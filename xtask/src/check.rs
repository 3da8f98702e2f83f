//! `cargo xtask check`: what rustc and clippy cannot see.

use crate::{Outcome, layers, roots, sources, step};

/// Checks the tree, and prints what is wrong with it.
pub fn check() -> Outcome {
    let metadata = metadata()?;
    let found = sources::files(&step::root())?;
    let mut errors = layers::wrong_arrows(&metadata);
    errors.extend(roots::wrong(&metadata)?);
    errors.extend(found.errors);

    for note in &found.notes {
        println!("note: {note}");
    }
    let crates = metadata["packages"].as_array().map_or(0, Vec::len);
    println!(
        "check: {crates} crates, {} errors, {} notes",
        errors.len(),
        found.notes.len()
    );
    if errors.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the tree is not as it should be\n{}",
        errors.join("\n")
    ))
}

fn metadata() -> Result<serde_json::Value, String> {
    let out = step::cargo(&["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .map_err(|why| format!("cargo metadata: {why}"))?;
    if !out.status.success() {
        return Err(format!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&out.stderr)
        ));
    }
    serde_json::from_slice(&out.stdout).map_err(|why| format!("cargo metadata: {why}"))
}
