//! Habits of the source files: size, and nothing left over.

use std::path::{Path, PathBuf};

/// A file above this is listed.
const LONG: usize = 400;
/// A file above this is an error: by then it is two ideas.
const TOO_LONG: usize = 700;

/// Words that say that work is unfinished. In pieces, so that this file does not contain them.
const LEFTOVERS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("dbg", "!"),
    concat!("todo", "!"),
    concat!("unimplemented", "!"),
];

/// What was found in the tree.
#[derive(Default)]
pub struct Found {
    /// What has to be mended.
    pub errors: Vec<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// Judges every text file under `root`.
pub fn files(root: &Path) -> Result<Found, String> {
    let mut found = Found::default();
    for path in walk(root)? {
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let name = path
            .strip_prefix(root)
            .unwrap_or(&path)
            .display()
            .to_string();
        let is_rust = path.extension().is_some_and(|e| e == "rs");
        judge_file(&name, is_rust, &text, &mut found);
    }
    Ok(found)
}

fn judge_file(name: &str, is_rust: bool, text: &str, found: &mut Found) {
    let lines = text.lines().count();
    if is_rust && lines > TOO_LONG {
        found.errors.push(format!(
            "{name}: {lines} lines, and {TOO_LONG} is the most: split it"
        ));
    } else if is_rust && lines > LONG {
        found
            .notes
            .push(format!("{name}: {lines} lines, more than the usual {LONG}"));
    }
    for (number, line) in text.lines().enumerate() {
        for word in LEFTOVERS.iter().filter(|word| has_word(line, word)) {
            found
                .errors
                .push(format!("{name}:{}: `{word}` left over", number + 1));
        }
    }
}

/// Whether `word` stands in `line` by itself, not as the tail of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let after = line[at + word.len()..].chars().next();
        !inside(line[..at].chars().next_back()) && (word.ends_with('!') || !inside(after))
    })
}

/// Every file of the tree but what is built, hidden or binary by its name.
pub fn walk(root: &Path) -> Result<Vec<PathBuf>, String> {
    const KEPT_HIDDEN: &[&str] = &[".ci", ".cargo", ".github"];
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |why| format!("{}: {why}", folder.display());
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let skipped = name == "target"
                || name == "Cargo.lock"
                || name.starts_with('.') && !KEPT_HIDDEN.contains(&&*name);
            match entry.file_type().map_err(failed)? {
                _ if skipped => {}
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_judged_for_rust_only() {
        let mut found = Found::default();
        judge_file("long.rs", true, &"x\n".repeat(LONG + 1), &mut found);
        judge_file("fine.rs", true, &"x\n".repeat(LONG), &mut found);
        judge_file("list.txt", false, &"x\n".repeat(TOO_LONG + 1), &mut found);
        assert_eq!((found.errors.len(), found.notes.len()), (0, 1));
        judge_file("huge.rs", true, &"x\n".repeat(TOO_LONG + 1), &mut found);
        assert_eq!((found.errors.len(), found.notes.len()), (1, 1));
    }

    #[test]
    fn leftovers_are_words() {
        for word in LEFTOVERS {
            let mut found = Found::default();
            judge_file("a.rs", true, &format!("// {word} later\n"), &mut found);
            assert_eq!(found.errors.len(), 1, "{word}");
            judge_file(
                "a.rs",
                true,
                &format!("// my_{word} is another word\n"),
                &mut found,
            );
            assert_eq!(found.errors.len(), 1, "{word}");
        }
    }
}
