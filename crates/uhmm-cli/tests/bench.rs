//! `uhmm bench`, as its users meet it. How fast anything is is not tested: the machine may be busy.

use serde_json::Value;
use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

const NAMES: [&str; 21] = [
    "first_touch",
    "first_touch_uffd",
    "fault_private_mirror",
    "fault_private_lz4",
    "fault_signal_mirror",
    "fault_signal_lz4",
    "sequential_mirror",
    "bulk_to_device",
    "bulk_to_system",
    "bulk_to_coherent",
    "bulk_from_coherent",
    "oversubscribe_seq_1t",
    "oversubscribe_seq_2t",
    "oversubscribe_random_1t",
    "oversubscribe_random_2t",
    "dmirror_read_cold",
    "dmirror_read_warm",
    "dmirror_to_device",
    "dmirror_to_system",
    "dmirror_fault",
    "dmirror_fault_signal",
];

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_uhmm"))
        .arg("bench")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn succeeded(output: &Output) -> &str {
    let said = text(&output.stderr);
    assert!(output.status.success(), "{:?}: {said}", output.status);
    assert_eq!(said, "", "progress is for terminals only");
    text(&output.stdout)
}

#[test]
fn every_benchmark_gives_one_line_of_json() {
    let output = bench(&["--quick", "--json"]);
    let mut names = Vec::new();
    for line in succeeded(&output).lines() {
        let figure: Value = serde_json::from_str(line).unwrap();
        let name = figure["name"].as_str().unwrap().to_owned();
        let keys: BTreeSet<_> = figure.as_object().unwrap().keys().cloned().collect();
        let promised = ["name", "unit", "value", "floor", "ratio", "spread"];
        assert_eq!(keys, promised.map(String::from).into(), "{name}");

        let unit = if name.starts_with("bulk_") {
            "GB/s"
        } else {
            "us/page"
        };
        assert_eq!(figure["unit"], unit, "{name}");
        let number = |key: &str| figure[key].as_f64().unwrap();
        let (value, floor, ratio) = (number("value"), number("floor"), number("ratio"));
        assert!(value > 0.0 && floor > 0.0 && ratio > 0.0, "{line}");
        assert!((ratio - value / floor).abs() <= 0.01 * ratio, "{line}");
        assert!(number("spread") >= 0.0, "{line}");
        names.push(name);
    }
    assert_eq!(names, NAMES);
}

#[test]
fn the_table_has_what_was_asked_for() {
    let output = bench(&["--quick", "bulk_to_system", "first_touch"]);
    let rows: Vec<Vec<&str>> = succeeded(&output)
        .lines()
        .map(|row| row.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        ["name", "value", "unit", "floor", "ratio", "spread"]
    );
    let names: Vec<_> = rows[1..].iter().map(|row| row[0]).collect();
    assert_eq!(names, ["first_touch", "bulk_to_system"]);
    assert!(rows.iter().all(|row| row.len() == 6), "{rows:?}");
}

#[test]
fn a_set_is_all_that_begins_with_its_name() {
    let output = bench(&["--quick", "--json", "dmirror"]);
    let name = |line| serde_json::from_str::<Value>(line).unwrap()["name"].clone();
    let names: Vec<Value> = succeeded(&output).lines().map(name).collect();
    let expected: Vec<&str> = NAMES
        .into_iter()
        .filter(|name| name.starts_with("dmirror_"))
        .collect();
    assert_eq!(names, expected);
}

#[test]
fn an_unknown_name_is_refused_in_one_line() {
    let output = bench(&["--quick", "frist_touch"]);
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("'frist_touch'") && line.contains("oversubscribe_random_2t"));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn the_help_says_what_a_ratio_is() {
    let output = bench(&["--help"]);
    let help = succeeded(&output);
    for part in ["floor", "ratio", "--json", "--quick", "fault_private_lz4"] {
        assert!(help.contains(part), "{help}");
    }
}
