//! `cargo xtask mutants`: breaks the rules of `docs/rules.md` on purpose, one at a time, and shows
//! that the rule's tests fail.
//!
//! A mutant is a row of the tables below: a change of the source, and the tests that must see it. The
//! change is made in a copy of the workspace under `target/mutants`, never in the tree itself. A test
//! that fails, aborts or hangs has caught the mutant; one that does not compile, or whose text is no
//! longer found in the source, is an error of the table.
//!
//! A mutant that no test has seen is tried a few times more, and the report says so: a test that sees
//! it only when threads happen to meet fails somewhere else, on fewer CPUs or on busier ones. Give such
//! a test a step at the very call (`crates/uhmm-sim/tests/rules/hook.rs`).
//!
//! Mutants that change only bodies of functions share a build ([`weave`]). Others have a build each,
//! and one of those takes about as long as the tests of fifty.
//!
//! To add one: a row in the file of its subject. Look for a change of a line or two that breaks the
//! rule and nothing else, and for the narrowest filter: a mutant may make other tests hang.

mod adopt;
mod batch;
mod cow;
mod devices;
mod duplicates;
mod exclusive;
mod failure;
mod fault_here;
mod faults;
mod foreign;
mod fork;
mod hints;
mod holds;
mod lifetimes;
mod migration;
mod mirrors;
mod oversubscribe;
mod pagemap;
mod pieces;
mod pins;
mod pressure;
mod request;
mod runner;
mod table;
mod tree;
mod weave;

use crate::{Outcome, step};
use batch::{Batch, End};
use runner::Runner;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use table::Mutant;
use tree::Tree;

/// All mutants, in the order of the rules.
const TABLES: &[&[Mutant]] = &[
    lifetimes::MUTANTS,
    pagemap::MUTANTS,
    migration::MUTANTS,
    request::MUTANTS,
    holds::MUTANTS,
    pins::MUTANTS,
    mirrors::MUTANTS,
    foreign::MUTANTS,
    exclusive::MUTANTS,
    devices::MUTANTS,
    failure::MUTANTS,
    faults::MUTANTS,
    fault_here::MUTANTS,
    duplicates::MUTANTS,
    fork::MUTANTS,
    cow::MUTANTS,
    hints::MUTANTS,
    adopt::MUTANTS,
    pressure::MUTANTS,
    oversubscribe::MUTANTS,
];

/// Runs the mutants that `filters` choose (all, if there is none), or only lists them.
pub fn run(filters: &[String], list: bool) -> Outcome {
    let chosen = choose(filters)?;
    if list {
        return show(&chosen);
    }
    let begin = Instant::now();
    let folder = target_folder().join("mutants");
    let tree = Tree::copy(&step::root(), &folder.join("tree"))?;
    let runner = Runner::new(&tree, &folder.join("build"));
    let ends = Mutex::new(Vec::new());
    let tell = |mutant: &Mutant, end: &End, took: Duration| {
        // One line at a time.
        let mut ends = ends.lock().expect("nothing panics while it is held");
        let (word, text) = (word(end), text(mutant, end));
        let (rule, seconds) = (mutant.rule, took.as_secs_f64());
        println!("{rule:10} {word:8} {seconds:5.1} s  {text}");
        let short = text.lines().next().unwrap_or_default();
        ends.push((word, format!("{rule:10} {word:8} {short}")));
    };
    let targets: BTreeSet<_> = chosen.iter().map(|mutant| mutant.tests.target).collect();
    for target in targets {
        let rows = (1..).zip(chosen.iter().copied());
        let rows: BTreeMap<_, _> = rows.filter(|(_, row)| row.tests.target == target).collect();
        Batch::new(&tree, &runner, target, rows).run(tell)?;
    }
    let ends = ends.into_inner().expect("nothing panics while it is held");
    let count = |word| ends.iter().filter(|(end, _)| *end == word).count();
    let counts = format!(
        "{} caught, {} survived, {} errors, {:.0} s",
        count(CAUGHT),
        count(SURVIVED),
        count(ERROR),
        begin.elapsed().as_secs_f64()
    );
    if count(CAUGHT) == chosen.len() {
        println!("mutants: {counts}");
        return Ok(());
    }
    let others = ends.iter().filter(|(end, _)| *end != CAUGHT);
    let others: Vec<_> = others.map(|(_, line)| line.as_str()).collect();
    Err(format!("mutants: {counts}\n{}", others.join("\n")))
}

const CAUGHT: &str = "caught";
const SURVIVED: &str = "SURVIVED";
const ERROR: &str = "ERROR";

/// A mutant is chosen by its rule (`R1` is not `R10`) or by a word of what it breaks.
fn choose(filters: &[String]) -> Result<Vec<&'static Mutant>, String> {
    let fits = |mutant: &Mutant, filter: &String| {
        mutant.rule.eq_ignore_ascii_case(filter)
            || mutant.what.to_lowercase().contains(&filter.to_lowercase())
    };
    for filter in filters {
        if !mutants().any(|mutant| fits(mutant, filter)) {
            return Err(format!("no mutant has `{filter}`; see `mutants --list`"));
        }
    }
    let chosen = |mutant: &&Mutant| filters.is_empty() || filters.iter().any(|f| fits(mutant, f));
    Ok(mutants().filter(chosen).collect())
}

/// Prints the rows, and looks whether each still fits the source.
fn show(chosen: &[&Mutant]) -> Outcome {
    let mut stale = Vec::new();
    for mutant in chosen {
        println!("{:10} {}", mutant.rule, mutant.what);
        if let Err(why) = tree::changed(&step::root(), mutant.edits) {
            stale.push(format!("{}: {why}", mutant.what));
        }
    }
    let rules = step::root().join("docs/rules.md");
    let rules = std::fs::read_to_string(&rules).map_err(|why| format!("docs/rules.md: {why}"))?;
    let bare = rules_of(&rules).filter(|rule| mutants().all(|mutant| mutant.rule != *rule));
    for rule in bare {
        println!("note: no mutant breaks {rule}");
    }
    println!("mutants: {}, {} errors", chosen.len(), stale.len());
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!("mutants\n{}", stale.join("\n")))
}

/// The rules that have a row in `docs/rules.md`.
fn rules_of(table: &str) -> impl Iterator<Item = &str> {
    let first_cells = table.lines().filter_map(|line| {
        let (cell, _) = line.strip_prefix("| ")?.split_once(" |")?;
        Some(cell)
    });
    first_cells.filter(|cell| {
        let number = cell.strip_prefix('R').unwrap_or_default();
        number.parse::<u32>().is_ok()
    })
}

/// All of them.
fn mutants() -> impl Iterator<Item = &'static Mutant> {
    TABLES.iter().copied().flatten()
}

fn word(end: &End) -> &'static str {
    match end {
        End::Caught { .. } => CAUGHT,
        End::Survived { .. } => SURVIVED,
        End::Error(_) => ERROR,
    }
}

fn text(mutant: &Mutant, end: &End) -> String {
    let how = match end {
        End::Caught { by, tries: 1 } => by.to_string(),
        End::Caught { by, tries } => format!("{by}, at try {tries}"),
        End::Survived {
            asserted: Some(test),
        } => format!("only a debug assertion sees it: {test}"),
        End::Survived { asserted: None } => {
            format!("{} `{}`", mutant.tests.target, mutant.tests.filter)
        }
        End::Error(why) => why.clone(),
    };
    format!("{}: {how}", mutant.what)
}

/// Where cargo builds.
fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || step::root().join("target"),
        |folder| Path::new(&folder).to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_words_choose() {
        let chosen = |filter: &str| choose(&[filter.into()]);
        assert!(chosen("r1").unwrap().iter().all(|m| m.rule == "R1"));
        assert!(chosen("R10").unwrap().iter().all(|m| m.rule == "R10"));
        assert!(!chosen("poisoned").unwrap().is_empty());
        assert!(chosen("R99").is_err());
        assert!(choose(&[]).unwrap().len() > chosen("R5").unwrap().len());
    }

    #[test]
    fn rules_are_read_from_their_table() {
        let table = "| rule | in one line |\n| --- | --- |\n| R1 | A page. |\n| R15 | A write. |\n| What | |";
        assert_eq!(rules_of(table).collect::<Vec<_>>(), ["R1", "R15"]);
    }

    #[test]
    fn rows_are_told_apart_and_change_something() {
        let all = choose(&[]).unwrap();
        let whats: std::collections::BTreeSet<_> = all.iter().map(|m| m.what).collect();
        assert_eq!(whats.len(), all.len(), "two rows say the same");
        for mutant in all {
            assert!(!mutant.edits.is_empty(), "{}", mutant.what);
            for edit in mutant.edits {
                assert_ne!(edit.find, edit.replace, "{}", mutant.what);
            }
        }
    }

    #[test]
    fn the_table_fits_the_source() {
        let root = step::root();
        let stale: Vec<_> = mutants()
            .filter_map(|mutant| {
                let why = tree::changed(&root, mutant.edits).err()?;
                Some(format!("{}: {}: {why}", mutant.rule, mutant.what))
            })
            .collect();
        assert!(stale.is_empty(), "{}", stale.join("\n"));
    }
}
