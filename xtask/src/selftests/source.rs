//! The kernel's selftest program, from the distribution's package of the kernel's source.
//!
//! The source is the kernel's and under its licence. It is unpacked into the build directory, no more of
//! it than the program needs, and compiled there as it is; nothing of it is part of this tree.

use super::listed;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The test program, without `.c`.
const PROGRAM: &str = "hmm-tests";

/// Says which package the unpacked files are from, once all is there and compiled.
const ORIGIN: &str = "origin";

/// A kernel whose test program is run.
pub struct Kernel {
    /// As the name of the package ends.
    pub version: &'static str,
    /// Where the program's source is, below `tools/testing/selftests`.
    folder: &'static str,
}

/// The kernels that Debian 12 has source packages of.
pub const KERNELS: &[Kernel] = &[
    Kernel {
        version: "6.12",
        folder: "mm",
    },
    Kernel {
        version: "6.1",
        folder: "vm",
    },
];

/// A compiled test program.
pub struct Program {
    pub path: PathBuf,
    /// The package that its source is from.
    pub origin: String,
    /// All of its tests, as its source has them.
    pub tests: Vec<String>,
    /// Whether it runs single tests when asked to (`-t NAME`).
    pub selects: bool,
}

impl Kernel {
    /// Unpacks and compiles the program in a folder of `build`, unless that has been done before.
    pub fn program(&self, build: &Path) -> Result<Program, String> {
        let folder = build.join(self.version);
        let origin_file = folder.join(ORIGIN);
        let source = folder.join(self.source());
        let path = folder.join(PROGRAM);
        let origin = match fs::read_to_string(&origin_file) {
            Ok(origin) => origin,
            Err(_) => {
                let origin = self.unpack(&folder)?;
                compile(&folder, &source, &path)?;
                fs::write(&origin_file, &origin).map_err(|why| at(&origin_file, why))?;
                origin
            }
        };
        let tests = listed::tests(&text(&source)?);
        if tests.is_empty() {
            return Err(format!("{}: no test is declared there", source.display()));
        }
        let harness = text(&folder.join(HARNESS))?;
        Ok(Program {
            path,
            origin,
            tests,
            selects: harness.contains("getopt("),
        })
    }

    /// The name of the package, and of the folder in its archive.
    fn package(&self) -> String {
        format!("linux-source-{}", self.version)
    }

    fn source(&self) -> String {
        format!("tools/testing/selftests/{}/{PROGRAM}.c", self.folder)
    }

    /// The files that the program is compiled from.
    fn files(&self) -> [String; 5] {
        [
            self.source(),
            HARNESS.into(),
            "tools/testing/selftests/kselftest.h".into(),
            "lib/test_hmm_uapi.h".into(),
            "mm/gup_test.h".into(),
        ]
    }

    /// Unpacks what the program needs into `folder`; returns what it is from.
    fn unpack(&self, folder: &Path) -> Result<String, String> {
        fs::create_dir_all(folder).map_err(|why| at(folder, why))?;
        let package = self.package();
        let archive = format!("{package}.tar.xz");
        let installed = Path::new("/usr/src").join(&archive);
        println!("kernel-selftests: unpacking {package}, which takes a while");
        if installed.is_file() {
            let file = File::open(&installed).map_err(|why| at(&installed, why))?;
            let tar = self.untar(folder, file.into())?;
            finish([("tar", tar)], &installed)?;
            return Ok(installed.display().to_string());
        }
        let downloaded = download(&package, folder)?;
        let outer = piped(
            Command::new("dpkg-deb")
                .arg("--fsys-tarfile")
                .arg(&downloaded),
            Stdio::null(),
        );
        let (outer, files) = outer?;
        let inner = piped(
            Command::new("tar")
                .args(["--extract", "--to-stdout"])
                .arg(format!("./usr/src/{archive}")),
            files,
        );
        let (inner, compressed) = inner?;
        let tar = self.untar(folder, compressed)?;
        finish(
            [("dpkg-deb", outer), ("tar", inner), ("tar", tar)],
            &downloaded,
        )?;
        let _ = fs::remove_file(&downloaded);
        let name = downloaded.file_name().unwrap_or_default();
        Ok(name.to_string_lossy().into_owned())
    }

    /// Starts unpacking the compressed archive that comes in.
    fn untar(&self, folder: &Path, archive: Stdio) -> Result<Child, String> {
        let package = self.package();
        let mut command = Command::new("tar");
        command
            .args(["--extract", "--xz", "--strip-components=1", "--directory"])
            .arg(folder)
            .args(self.files().map(|file| format!("{package}/{file}")))
            .stdin(archive);
        command.spawn().map_err(|why| format!("tar: {why}"))
    }
}

const HARNESS: &str = "tools/testing/selftests/kselftest_harness.h";

fn at(path: &Path, why: std::io::Error) -> String {
    format!("{}: {why}", path.display())
}

fn text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|why| at(path, why))
}

/// Starts `command`; returns it with its output.
fn piped(command: &mut Command, input: Stdio) -> Result<(Child, Stdio), String> {
    let started = command.stdin(input).stdout(Stdio::piped()).spawn();
    let mut child = started.map_err(|why| format!("{}: {why}", command.get_program().display()))?;
    let output = child.stdout.take().expect("it was asked for");
    Ok((child, output.into()))
}

/// Waits for all of a pipeline that reads `from`; the first that has failed is the reason.
fn finish<const N: usize>(children: [(&str, Child); N], from: &Path) -> Result<(), String> {
    let ends = children.map(|(name, mut child)| (name, child.wait()));
    for (name, end) in ends {
        let status = end.map_err(|why| format!("{name}: {why}"))?;
        if !status.success() {
            return Err(format!(
                "{name}: {status}: cannot unpack {} (is there room on the disk, and `xz`?)",
                from.display()
            ));
        }
    }
    Ok(())
}

/// Fetches a package into `folder` without installing it.
fn download(package: &str, folder: &Path) -> Result<PathBuf, String> {
    let apt = |args: &[&str]| {
        let done = Command::new("apt-get")
            .args(args)
            .current_dir(folder)
            .stdin(Stdio::null())
            .status();
        done.is_ok_and(|status| status.success())
    };
    // An interrupted try may have left a part of one.
    for old in packages(folder)? {
        fs::remove_file(&old).map_err(|why| at(&old, why))?;
    }
    // Old lists name packages that the archive no longer has.
    let fetch = || apt(&["download", "--quiet=2", package]);
    if !(fetch() || apt(&["update", "--quiet=2"]) && fetch()) {
        return Err(format!(
            "the kernel's source cannot be fetched: install the package {package}, or put \
             {package}.tar.xz into /usr/src"
        ));
    }
    let found = packages(folder)?.pop();
    found.ok_or_else(|| format!("apt-get has left no package in {}", folder.display()))
}

/// The package files in `folder`.
fn packages(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|why| at(folder, why))?;
    Ok(entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

/// Compiles `source` as the kernel's own makefile does.
fn compile(folder: &Path, source: &Path, to: &Path) -> Result<(), String> {
    let mut command = Command::new("cc");
    command
        .args(["-O2", "-Wall", "-D_GNU_SOURCE=", "-pthread", "-I"])
        .args([folder, source])
        .arg("-o")
        .arg(to);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!(
            "cc: {status}: {} does not compile",
            source.display()
        )),
        Err(why) => Err(format!("cc: {why}: install a C compiler")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive as the packages have it is unpacked: what is needed and nothing else.
    #[test]
    fn only_what_the_program_needs_is_unpacked() {
        let kernel = &KERNELS[0];
        let root = std::env::temp_dir().join(format!("uhmm-source-{}", std::process::id()));
        let tree = root.join(kernel.package());
        let mut files = kernel.files().to_vec();
        files.push("mm/memory.c".into());
        for file in &files {
            let path = tree.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        let archive = root.join("archive.tar.xz");
        let mut tar = Command::new("tar");
        tar.arg("--create").arg("--xz").arg("--file").arg(&archive);
        tar.arg("--directory").arg(&root).arg(kernel.package());
        assert!(tar.status().unwrap().success());

        let folder = root.join("out");
        fs::create_dir_all(&folder).unwrap();
        let tar = kernel.untar(&folder, File::open(&archive).unwrap().into());
        finish([("tar", tar.unwrap())], &archive).unwrap();
        for file in kernel.files() {
            assert_eq!(text(&folder.join(&file)).unwrap(), file);
        }
        assert!(!folder.join("mm/memory.c").exists());

        fs::write(&archive, "no archive").unwrap();
        let tar = kernel.untar(&folder, File::open(&archive).unwrap().into());
        let error = finish([("tar", tar.unwrap())], &archive).unwrap_err();
        assert!(error.contains("cannot unpack"), "{error}");
        fs::remove_dir_all(root).unwrap();
    }
}
