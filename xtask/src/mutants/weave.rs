//! Many mutants in one build, since a build takes far longer than the tests of one mutant.
//!
//! The bodies of a function with and without mutants are written side by side, and a variable of the
//! environment says, when the tests run, which is in force:
//!
//! ```text
//! fn f() { if crate::mutants::is(3) { the body as mutant 3 has it } else { the body } }
//! ```
//!
//! A mutant that changes something else (a constant, a signature), or a function that this cannot be
//! done to ([`pieces`]), has a build of its own.

use super::pieces::pieces;
use super::tree::Changed;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

/// The variable that has the number of the mutant.
pub const VARIABLE: &str = "UHMM_MUTANT";

/// The crate that mutants are woven into.
pub const CRATE: &str = "crates/uhmm-core";

/// The file of its root module.
pub const ROOT: &str = "crates/uhmm-core/src/lib.rs";

/// What is written behind the crate's root module.
const MODULE: &str = "
mod mutants {
    pub(crate) fn is(number: usize) -> bool {
        static CHOSEN: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
        let chosen = || std::env::var(VARIABLE).ok()?.parse().ok();
        *CHOSEN.get_or_init(chosen) == Some(number)
    }
}
";

/// Mutants that go together, by number.
#[derive(Default)]
pub struct Weave(BTreeMap<&'static str, Source>);

/// A file, and other bodies of its functions.
struct Source {
    text: String,
    /// The piece of the file, the mutant, and what it has there.
    others: BTreeMap<(usize, usize), String>,
}

/// A file with its mutants.
pub struct Woven {
    pub file: &'static str,
    pub text: String,
    /// The lines that are a mutant's.
    lines: Vec<(Range<usize>, usize)>,
}

impl Weave {
    /// Adds the mutant `number`. `false`: it must be built alone.
    pub fn add(&mut self, number: usize, changes: &[Changed]) -> bool {
        let Some(others) = changes.iter().map(bodies).collect::<Option<Vec<_>>>() else {
            return false;
        };
        for (change, bodies) in changes.iter().zip(others) {
            let source = self.0.entry(change.file).or_insert_with(|| Source {
                text: change.from.clone(),
                others: BTreeMap::new(),
            });
            let bodies = bodies
                .into_iter()
                .map(|(piece, body)| ((piece, number), body));
            source.others.extend(bodies);
        }
        true
    }

    /// Takes the mutant `number` out.
    pub fn remove(&mut self, number: usize) {
        for source in self.0.values_mut() {
            source.others.retain(|&(_, mutant), _| mutant != number);
        }
    }

    /// All files as they are to be built; `root` is the text of the crate's root module.
    pub fn files(&self, root: &str) -> Vec<Woven> {
        let mut files: Vec<_> = self
            .0
            .iter()
            .map(|(file, found)| found.woven(file))
            .collect();
        if files.iter().all(|woven| woven.file != ROOT) {
            files.push(Woven {
                file: ROOT,
                text: root.into(),
                lines: Vec::new(),
            });
        }
        let module = MODULE.replace("VARIABLE", &format!("{VARIABLE:?}"));
        let roots = files.iter_mut().filter(|woven| woven.file == ROOT);
        roots.for_each(|woven| woven.text.push_str(&module));
        files
    }
}

/// The bodies that a change changes, if it changes nothing else.
fn bodies(change: &Changed) -> Option<Vec<(usize, String)>> {
    let (from, to) = (pieces(&change.from), pieces(&change.to));
    if !change.file.starts_with(CRATE) || from.len() != to.len() {
        return None;
    }
    let differ: Vec<_> = (0..from.len()).filter(|&i| from[i] != to[i]).collect();
    let all_bodies = differ.iter().all(|i| i % 2 == 1);
    all_bodies.then(|| differ.into_iter().map(|i| (i, to[i].to_owned())).collect())
}

impl Source {
    fn woven(&self, file: &'static str) -> Woven {
        let mut woven = Woven {
            file,
            text: String::new(),
            lines: Vec::new(),
        };
        for (i, piece) in pieces(&self.text).into_iter().enumerate() {
            let others: Vec<_> = self.others.range((i, 0)..(i + 1, 0)).collect();
            if !others.is_empty() {
                woven.text.push_str("{ ");
            }
            for ((_, number), body) in &others {
                let first = woven.line();
                let _ = write!(woven.text, "if crate::mutants::is({number}) {body} else ");
                woven.lines.push((first..woven.line() + 1, *number));
            }
            woven.text.push_str(piece);
            if !others.is_empty() {
                woven.text.push_str(" }");
            }
        }
        woven
    }
}

impl Woven {
    /// The line that is being written.
    fn line(&self) -> usize {
        1 + self.text.matches('\n').count()
    }
}

/// The mutants that the errors of a build are about, each with the error's text.
pub fn blamed(errors: &str, files: &[Woven]) -> BTreeMap<usize, String> {
    let mut blamed = BTreeMap::new();
    let paragraphs = errors.split("\n\n").filter(|text| {
        let mut lines = text.lines();
        lines.any(|line| line.starts_with("error"))
    });
    for text in paragraphs {
        for number in text.lines().filter_map(|line| mutant_at(line, files)) {
            blamed.entry(number).or_insert_with(|| text.to_owned());
        }
    }
    blamed
}

/// The mutant whose lines a line like `  --> src/lib.rs:3:4` names.
fn mutant_at(line: &str, files: &[Woven]) -> Option<usize> {
    let place = line.trim_start().strip_prefix("--> ")?;
    let mut parts = place.split(':');
    let (file, line) = (parts.next()?, parts.next()?.parse().ok()?);
    let woven = files.iter().find(|woven| woven.file == file)?;
    let (_, number) = woven
        .lines
        .iter()
        .find(|(lines, _)| lines.contains(&line))?;
    Some(*number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "crates/uhmm-core/src/a.rs";
    const TEXT: &str = "const A: u8 = 1;\nfn a() {\n    1\n}\nfn b() { 2 }\n";

    fn changed(file: &'static str, find: &str, replace: &str) -> Changed {
        Changed {
            file,
            from: TEXT.into(),
            to: TEXT.replace(find, replace),
        }
    }

    #[test]
    fn bodies_stand_side_by_side() {
        let mut weave = Weave::default();
        assert!(weave.add(1, &[changed(FILE, "    1\n", "    3\n")]));
        assert!(weave.add(2, &[changed(FILE, "    1\n", "    4\n")]));
        assert!(weave.add(5, &[changed(FILE, "2", "5")]));
        let files = weave.files("mod a;\n");
        assert_eq!(
            files[0].text,
            "const A: u8 = 1;\nfn a() { if crate::mutants::is(1) {\n    3\n} else \
             if crate::mutants::is(2) {\n    4\n} else {\n    1\n} }\n\
             fn b() { if crate::mutants::is(5) { 5 } else { 2 } }\n"
        );
        assert!(files[1].text.starts_with("mod a;\n"));
        assert!(files[1].text.contains("\"UHMM_MUTANT\""));

        weave.remove(1);
        weave.remove(2);
        weave.remove(5);
        assert_eq!(weave.files("")[0].text, TEXT);
    }

    #[test]
    fn what_is_not_a_body_is_built_alone() {
        let mut weave = Weave::default();
        assert!(!weave.add(1, &[changed(FILE, "1;", "2;")]));
        assert!(!weave.add(1, &[changed(FILE, "fn b() { 2 }\n", "")]));
        assert!(!weave.add(1, &[changed("crates/uhmm-sim/src/a.rs", "2", "5")]));
        let both = [changed(FILE, "2", "5"), changed(ROOT, "1;", "2;")];
        assert!(!weave.add(1, &both), "all of it, or none");
        assert!(weave.0.is_empty());
    }

    #[test]
    fn an_error_is_the_mutants_in_whose_lines_it_is() {
        let mut weave = Weave::default();
        weave.add(1, &[changed(FILE, "    1\n", "    3\n")]);
        weave.add(2, &[changed(FILE, "2", "5")]);
        let errors = format!(
            "warning: w\n --> {FILE}:3:1\n\nerror[E1]: e\n --> {FILE}:7:4\n\nerror: 1 more\n"
        );
        let files = weave.files("");
        let blamed: Vec<_> = blamed(&errors, &files).into_iter().collect();
        let error = format!("error[E1]: e\n --> {FILE}:7:4");
        assert_eq!(blamed, [(2, error)]);
    }
}
