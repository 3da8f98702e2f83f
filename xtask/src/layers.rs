//! The direction of the arrows between our crates (`docs/decisions/0001-workspace-layers.md`).
//!
//! The table says which crates of the workspace each of them may import. What is not in it is an
//! error, a crate without a line included.

use serde_json::Value;

/// One line of the table.
struct Layer {
    /// A crate, or [`DEVICES`].
    name: &'static str,
    /// What it may import.
    imports: &'static [&'static str],
    /// What its tests may import besides.
    tests: &'static [&'static str],
}

/// Stands for every crate in `crates/devices`.
const DEVICES: &str = "devices/*";

const LAYERS: &[Layer] = &[
    layer("uhmm-core", &[]).tested_with(TESTKIT),
    layer("uhmm-linux", &["uhmm-core"]).tested_with(TESTKIT),
    // Both are for tests only; the kit's conformance suite runs devices in a space on the simulator.
    layer("uhmm-sim", &["uhmm-core"]).tested_with(&["uhmm-testkit", DEVICES]),
    layer("uhmm-testkit", &["uhmm-core", "uhmm-sim"]).tested_with(&[DEVICES]),
    layer(DEVICES, &["uhmm-core"]).tested_with(TESTKIT),
    layer("uhmm", &["uhmm-core", "uhmm-linux", DEVICES]).tested_with(TESTKIT),
    layer("uhmm-dmirror", &["uhmm"]).tested_with(TESTKIT),
    layer(
        "uhmm-bench",
        &["uhmm", "uhmm-dmirror", "uhmm-linux", "uhmm-core"],
    )
    .tested_with(TESTKIT),
    layer(
        "uhmm-cli",
        &[
            "uhmm",
            "uhmm-bench",
            "uhmm-dmirror",
            "uhmm-linux",
            "uhmm-core",
        ],
    )
    .tested_with(TESTKIT),
    layer("xtask", &[]),
];

const TESTKIT: &[&str] = &["uhmm-testkit"];

const fn layer(name: &'static str, imports: &'static [&'static str]) -> Layer {
    Layer {
        name,
        imports,
        tests: &[],
    }
}

impl Layer {
    const fn tested_with(self, tests: &'static [&'static str]) -> Self {
        Self { tests, ..self }
    }
}

/// The name under which a crate stands in the table.
fn place<'a>(name: &'a str, manifest: &str) -> &'a str {
    if manifest.contains("/crates/devices/") {
        DEVICES
    } else {
        name
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Every arrow in `metadata` (of `cargo metadata --no-deps`) that is not in the table.
pub fn wrong_arrows(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let place_of = |name: &str| {
        let package = packages
            .iter()
            .find(|package| text(&package["name"]) == name)?;
        Some(place(name, text(&package["manifest_path"])).to_owned())
    };

    let mut wrong = Vec::new();
    for package in packages {
        let name = text(&package["name"]);
        let Some(layer) = LAYERS
            .iter()
            .find(|l| place_of(name).as_deref() == Some(l.name))
        else {
            wrong.push(format!(
                "{name}: no place in the layers; give it one in xtask/layers.rs"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = text(&dependency["name"]);
            let Some(target_place) = place_of(target) else {
                continue;
            };
            let for_tests = dependency["kind"] == "dev";
            let allowed = layer.imports.contains(&target_place.as_str())
                || for_tests && layer.tests.contains(&target_place.as_str());
            if !allowed {
                let kind = if for_tests {
                    "its tests import"
                } else {
                    "imports"
                };
                wrong.push(format!("{name}: {kind} {target}, which is not below it"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workspace(of: &str, imports: &str, kind: Value) -> Value {
        let package = |name: &str, folder: &str, dependencies: Value| {
            json!({
                "name": name,
                "manifest_path": format!("/w/crates/{folder}/Cargo.toml"),
                "dependencies": dependencies,
            })
        };
        let mut packages: Vec<Value> = ["uhmm-core", "uhmm-testkit", "uhmm-linux", "uhmm"]
            .iter()
            .filter(|name| **name != of)
            .map(|name| package(name, name, json!([])))
            .collect();
        packages.push(package("uhmm-lz4", "devices/lz4", json!([])));
        let folder = if of == "uhmm-gpu" { "devices/gpu" } else { of };
        packages.push(package(
            of,
            folder,
            json!([{ "name": imports, "kind": kind }]),
        ));
        json!({ "packages": packages })
    }

    #[test]
    fn arrows_of_the_table_pass() {
        for (of, imports, kind) in [
            ("uhmm", "uhmm-lz4", Value::Null),
            ("uhmm-linux", "uhmm-core", Value::Null),
            ("uhmm-gpu", "uhmm-core", Value::Null),
            ("uhmm-gpu", "uhmm-testkit", json!("dev")),
            ("uhmm-core", "bitflags", Value::Null),
        ] {
            let wrong = wrong_arrows(&workspace(of, imports, kind));
            assert!(wrong.is_empty(), "{of} -> {imports}: {wrong:?}");
        }
    }

    #[test]
    fn every_other_arrow_is_reported() {
        for (of, imports, kind) in [
            ("uhmm-core", "uhmm-linux", Value::Null),
            ("uhmm-core", "uhmm-linux", json!("dev")),
            ("uhmm-core", "uhmm-linux", json!("build")),
            ("uhmm-gpu", "uhmm-lz4", Value::Null),
            ("uhmm-gpu", "uhmm-testkit", Value::Null),
            ("uhmm-linux", "uhmm", Value::Null),
            ("uhmm-newcomer", "uhmm-core", Value::Null),
        ] {
            let wrong = wrong_arrows(&workspace(of, imports, kind));
            assert_eq!(wrong.len(), 1, "{of} -> {imports}: {wrong:?}");
        }
    }
}
