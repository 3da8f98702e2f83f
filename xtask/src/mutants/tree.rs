//! The copy of the workspace in which mutants are made.

use super::table::Edit;
use crate::sources;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// A copy of the workspace's sources.
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Makes `to` a copy of the sources of `from`. A file that is the same there already is left
    /// alone, so that cargo builds only what has changed since the last time.
    pub fn copy(from: &Path, to: &Path) -> Result<Self, String> {
        fs::create_dir_all(to).map_err(failed("cannot make", to))?;
        let mut files = sources::walk(from)?;
        files.push(from.join("Cargo.lock"));
        for old in sources::walk(to)? {
            let name = old.strip_prefix(to).unwrap_or(&old);
            if !files.contains(&from.join(name)) {
                fs::remove_file(&old).map_err(failed("cannot remove", &old))?;
            }
        }
        for file in files {
            let copy = to.join(file.strip_prefix(from).unwrap_or(&file));
            let bytes = fs::read(&file).map_err(failed("cannot read", &file))?;
            if fs::read(&copy).is_ok_and(|there| there == bytes) {
                continue;
            }
            if let Some(folder) = copy.parent() {
                fs::create_dir_all(folder).map_err(failed("cannot make", folder))?;
            }
            fs::write(&copy, bytes).map_err(failed("cannot write", &copy))?;
        }
        // A relative path would be another one to cargo, which runs inside.
        let root = to.canonicalize().map_err(failed("cannot find", to))?;
        Ok(Self { root })
    }

    /// Where the copy is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the files these. They last as long as what is returned.
    pub fn write<'a>(
        &self,
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Applied, String> {
        let mut applied = Applied(Vec::new());
        for (file, text) in files {
            let path = self.root.join(file);
            let original = fs::read(&path).map_err(failed("cannot read", &path))?;
            applied.0.push((path.clone(), original));
            fs::write(&path, text).map_err(failed("cannot write", &path))?;
        }
        Ok(applied)
    }
}

/// A file that edits change.
pub struct Changed {
    /// From the root of the workspace.
    pub file: &'static str,
    /// Its text as it is.
    pub from: String,
    /// Its text with the edits.
    pub to: String,
}

/// What `edits` make of the files under `root`, one after the other; or why they cannot be made.
pub fn changed(root: &Path, edits: &[Edit]) -> Result<Vec<Changed>, String> {
    let mut changed: Vec<Changed> = Vec::new();
    for edit in edits {
        let known = changed.iter().position(|change| change.file == edit.file);
        let change = match known {
            Some(known) => &mut changed[known],
            None => {
                let text = read(&root.join(edit.file), edit)?;
                changed.push(Changed {
                    file: edit.file,
                    from: text.clone(),
                    to: text,
                });
                changed.last_mut().expect("one was pushed")
            }
        };
        change.to = edited(&change.to, edit)?;
    }
    Ok(changed)
}

/// Files as they were before they were edited; put back in the end.
pub struct Applied(Vec<(PathBuf, Vec<u8>)>);

impl Drop for Applied {
    fn drop(&mut self) {
        // The last first: a file may have been edited twice.
        for (path, original) in self.0.drain(..).rev() {
            // The next run would put it right, but the next mutant would be two in one.
            fs::write(&path, original).expect("an edited file can be written again");
        }
    }
}

fn read(path: &Path, edit: &Edit) -> Result<String, String> {
    fs::read_to_string(path).map_err(|why| match why.kind() {
        io::ErrorKind::NotFound => stale(edit, "(there is no such file) this text is not there"),
        _ => failed("cannot read", path)(why),
    })
}

/// `text` with `edit` made, or why it cannot be made.
fn edited(text: &str, edit: &Edit) -> Result<String, String> {
    match text.matches(edit.find).count() {
        1 => Ok(text.replacen(edit.find, edit.replace, 1)),
        0 => Err(stale(edit, "this text is not there")),
        times => Err(stale(edit, &format!("this text is there {times} times"))),
    }
}

fn stale(edit: &Edit, why: &str) -> String {
    format!(
        "stale: in {} {why}; the source has moved on: mend the mutant\n{}",
        edit.file,
        indented(edit.find)
    )
}

fn indented(text: &str) -> String {
    let lines = text.lines().map(|line| format!("    | {line}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    move |why| format!("{what} {}: {why}", path.display())
}

#[cfg(test)]
mod tests {
    use super::super::table::edit;
    use super::*;

    /// A tree of one file, removed in the end.
    struct Scratch(Tree);

    const FILE: &str = "src/lib.rs";
    const TEXT: &str = "let a = 1;\nlet b = 2;\nlet b = 2;\n";

    impl Scratch {
        fn new(name: &str) -> Self {
            let folder = format!("xtask-mutants-{}-{name}", std::process::id());
            let root = std::env::temp_dir().join(folder);
            fs::create_dir_all(root.join("src")).unwrap();
            fs::write(root.join(FILE), TEXT).unwrap();
            Self(Tree { root })
        }

        fn text(&self) -> String {
            fs::read_to_string(self.0.root().join(FILE)).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.root());
        }
    }

    #[test]
    fn an_edit_lasts_as_long_as_it_is_held() {
        let scratch = Scratch::new("lasts");
        let edits = [
            edit(FILE, "a = 1", "a = 3"),
            edit(FILE, "a = 3;\n", "a = 4;\n"),
        ];
        let changed = changed(scratch.0.root(), &edits).unwrap();
        let texts = changed.iter().map(|change| (change.file, &*change.to));
        let applied = scratch.0.write(texts).unwrap();
        assert_eq!(scratch.text(), TEXT.replace("a = 1", "a = 4"));
        drop(applied);
        assert_eq!(scratch.text(), TEXT);
    }

    #[test]
    fn text_that_is_not_there_just_once_is_an_error() {
        let scratch = Scratch::new("once");
        let root = scratch.0.root();
        for (find, why) in [("let c", "is not there"), ("let b = 2;", "2 times")] {
            let good = edit(FILE, "a = 1", "a = 3");
            let error = changed(root, &[good, edit(FILE, find, "")]).err();
            let error = error.expect("an error of the table");
            for part in [why, FILE, find, "mend the mutant"] {
                assert!(error.contains(part), "{error}");
            }
        }
        let error = changed(root, &[edit("src/gone.rs", "x", "y")]).err();
        assert!(error.unwrap().contains("no such file"));
    }

    #[test]
    fn a_copy_follows_its_original() {
        let scratch = Scratch::new("copy");
        let (from, to) = (scratch.0.root(), scratch.0.root().join("target/tree"));
        fs::write(from.join("Cargo.lock"), "").unwrap();
        let copy = Tree::copy(from, &to).unwrap();
        drop(fs::write(
            copy.root().join(FILE),
            "spoilt by a run that was killed",
        ));
        fs::write(copy.root().join("src/gone.rs"), "").unwrap();
        Tree::copy(from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join(FILE)).unwrap(), TEXT);
        assert!(!to.join("src/gone.rs").exists());
    }
}
