//! Where the preload library is, and how the dynamic loader is told.

use super::failure::Failure;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The library's file name.
const LIBRARY: &str = "libuhmm_preload.so";

/// Finds the library that belongs to this command.
///
/// # Errors
///
/// It is nowhere, or where the loader cannot be told of.
pub fn find() -> Result<PathBuf, Failure> {
    let command = std::env::current_exe()
        .map_err(|error| Failure::refused(format!("cannot find my own file: {error}")))?;
    let library = command.parent().and_then(find_from).ok_or_else(|| {
        let command = command.display();
        Failure::refused(format!(
            "{LIBRARY} is missing: put it beside {command} or into ../lib/uhmm, or build both with \
             `cargo build --release`"
        ))
    })?;
    // The loader takes both of them for the end of a name.
    if library
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|byte| b" :".contains(byte))
    {
        let library = library.display();
        return Err(Failure::refused(format!(
            "{library}: a library cannot be preloaded from a path with a space or colon: move it"
        )));
    }
    Ok(library)
}

/// Finds the library from the directory of the command.
fn find_from(directory: &Path) -> Option<PathBuf> {
    // Cargo puts it into `deps`, and links it beside the command for `build` and `run`, but not
    // for `test`; so the newer of the two is the one that was built last.
    let built = ["", "deps"].map(|place| directory.join(place).join(LIBRARY));
    let modified = |path: &PathBuf| {
        path.metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
    };
    let newest = built
        .into_iter()
        .rev()
        .filter(|p| p.is_file())
        .max_by_key(modified);
    newest.or_else(|| {
        let installed = ["../lib/uhmm", "../lib"].map(|place| directory.join(place).join(LIBRARY));
        installed
            .into_iter()
            .find_map(|path| path.canonicalize().ok())
    })
}

/// The value of `LD_PRELOAD`: the library first, then what was there before.
pub fn preload(library: &Path, before: Option<OsString>) -> OsString {
    let mut list = library.as_os_str().to_owned();
    let others = before
        .iter()
        .flat_map(|list| list.as_bytes().split(|byte| b" :".contains(byte)));
    for other in
        others.filter(|other| !other.is_empty() && *other != library.as_os_str().as_bytes())
    {
        list.push(":");
        list.push(OsStr::from_bytes(other));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::time::{Duration, SystemTime};

    #[test]
    fn the_library_is_found_built_and_installed() {
        let root = std::env::temp_dir().join(format!("uhmm-library-{}", std::process::id()));
        let put = |place: &str, age: u64| {
            let path = root.join(place).join(LIBRARY);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age);
            File::create(&path).unwrap().set_modified(time).unwrap();
            path.canonicalize().unwrap()
        };
        let bin = root.join("bin");
        fs::create_dir_all(&bin).unwrap();
        let found = || find_from(&bin).map(|path| path.canonicalize().unwrap());
        assert_eq!(found(), None);
        let lib = put("lib", 0);
        assert_eq!(found(), Some(lib));
        let own = put("lib/uhmm", 0);
        assert_eq!(found(), Some(own));
        let deps = put("bin/deps", 60);
        assert_eq!(found(), Some(deps.clone()));
        let beside = put("bin", 30);
        assert_eq!(found(), Some(beside));
        put("bin", 90);
        assert_eq!(found(), Some(deps));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_was_preloaded_before_stays_and_nothing_is_loaded_twice() {
        let library = Path::new("/l/libuhmm_preload.so");
        let with = |before: &str| preload(library, Some(before.into()));
        assert_eq!(preload(library, None), "/l/libuhmm_preload.so");
        assert_eq!(with(""), "/l/libuhmm_preload.so");
        assert_eq!(with("a.so b.so"), "/l/libuhmm_preload.so:a.so:b.so");
        assert_eq!(
            with("a.so:/l/libuhmm_preload.so"),
            "/l/libuhmm_preload.so:a.so"
        );
    }
}
