//! The command itself, as its users meet it: wrong use, bad luck, signals and exit codes.
//! What happens to a program's memory is tested elsewhere.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A directory of its own for one test, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "uhmm-command-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    /// Writes a file with these permissions; returns its path as text.
    fn file(&self, name: &str, mode: u32, content: impl AsRef<[u8]>) -> String {
        let (path, source) = (self.path(name), self.path("source"));
        // Another test's child may hold a file that is being written here for a moment longer,
        // and such a file cannot be executed; so a process of its own writes it.
        fs::write(&source, content).unwrap();
        assert!(
            Command::new("cp")
                .args([&source, &path])
                .status()
                .unwrap()
                .success()
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// The command, with no signal ignored. Whoever runs the tests may ignore some (a shell's job in the
/// background does), and what a shell finds ignored it does not trap.
fn uhmm(arguments: &[&str]) -> Command {
    let mut command = Command::new("env");
    command
        .args(["--default-signal", env!("CARGO_BIN_EXE_uhmm")])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Checks that the command ends with `code`, and says why in exactly one line.
#[track_caller]
fn fails(arguments: &[&str], code: i32, says: &str) {
    let output = uhmm(arguments).output().unwrap();
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {line}");
    assert!(
        line.starts_with("uhmm: ") && line.lines().count() == 1,
        "{arguments:?}: {line}"
    );
    assert!(line.contains(says), "{arguments:?}: {line}");
    assert_eq!(text(&output.stdout), "");
}

#[track_caller]
fn run_fails(command: &[&str], code: i32, says: &str) {
    fails(&[&["run", "--"], command].concat(), code, says);
}

/// Runs a program quietly, and checks that nothing is said.
#[track_caller]
fn quiet(command: &[&str]) -> Output {
    let arguments = ["run", "--quiet", "--ram", "64M", "--"];
    let output = uhmm(&[&arguments, command].concat()).output().unwrap();
    assert_eq!(text(&output.stderr), "");
    output
}

/// A program of this machine, changed by `change`.
fn changed_program(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut program = fs::read("/bin/true").unwrap();
    change(&mut program);
    program
}

/// Where the segment that names the loader is described.
fn loader_segment(program: &[u8]) -> usize {
    let table = u64::from_le_bytes(program[32..40].try_into().unwrap()) as usize;
    (0..)
        .map(|i| table + i * 56)
        .find(|at| program[*at..][..4] == [3, 0, 0, 0])
        .unwrap()
}

#[test]
fn wrong_arguments_are_one_line() {
    fails(&["run"], 2, "<COMMAND>");
    fails(&["run", "--rem", "64M", "--", "true"], 2, "--ram");
    fails(&["walk"], 2, "walk");
    for size in [
        "",
        "12Q",
        "1.5G",
        "64 M",
        "M",
        "18446744073709551616",
        "99999999999T",
        "101%",
    ] {
        fails(
            &["run", "--ram", size, "--", "true"],
            2,
            &format!("{size:?}"),
        );
    }
    for size in ["0", "0M", "0%"] {
        fails(&["run", "--ram", size, "--", "true"], 2, "zero");
    }
    fails(&["run", "--ram", "1M", "--", "true"], 2, "at least 2.0 MiB");
    fails(
        &["run", "--ram", "2097151", "--", "true"],
        2,
        "at least 2.0 MiB",
    );
}

#[test]
fn wrong_devices_are_one_line() {
    let device = |spec| ["run", "--device", spec, "--", "true"];
    fails(&device("lz5"), 2, "did you mean lz4?");
    fails(&device(""), 2, "the kinds are lz4 and mirror");
    fails(&device("lz4:"), 2, "not a size");
    fails(&device("mirror:0"), 2, "zero");
    fails(&device("lz4:1"), 2, "one page");
    fails(
        &[&["run"], &["--device=lz4"; 9][..], &["--", "true"]].concat(),
        2,
        "at most 8",
    );
}

#[test]
fn what_is_not_there_is_127_and_what_is_no_program_is_126() {
    let dir = Dir::new();
    run_fails(&["no-such-command-anywhere"], 127, "PATH");
    run_fails(&["/no/such/program"], 127, "No such file");
    run_fails(&[""], 127, "no such command");
    run_fails(&["/"], 126, "is a directory");
    run_fails(&[&dir.file("plain", 0o644, "#!/bin/sh\n")], 126, "chmod +x");
    run_fails(
        &[&dir.file("binary", 0o755, b"\0\x01\x02binary")],
        126,
        "neither",
    );
    run_fails(&[&dir.file("cut", 0o755, b"\x7fELF")], 126, "cut short");
    // A file in PATH that cannot be executed does not hide one further on that can.
    dir.file("true", 0o644, "");
    dir.file("not-a-program", 0o644, "");
    let path = format!("{}:{}", dir.0.display(), std::env::var("PATH").unwrap());
    let run = |name| {
        uhmm(&["run", "--", name])
            .env("PATH", &path)
            .status()
            .unwrap()
            .code()
    };
    assert_eq!(run("true"), Some(0));
    assert_eq!(run("not-a-program"), Some(126));
}

#[test]
fn programs_that_cannot_be_managed_are_refused() {
    let dir = Dir::new();
    let refused =
        |name, program, says: &str| run_fails(&[&dir.file(name, 0o755, program)], 2, says);
    let statically = |program: &mut Vec<u8>| {
        let at = loader_segment(program);
        program[at] = 0;
    };
    refused("static", changed_program(statically), "statically linked");
    refused("small", changed_program(|program| program[4] = 1), "32-bit");
    refused(
        "foreign",
        changed_program(|program| program[18] = 21),
        "powerpc64",
    );
    let musl = changed_program(|program| {
        let at = loader_segment(program) + 8;
        let path = u64::from_le_bytes(program[at..][..8].try_into().unwrap()) as usize;
        program[path..][..16].copy_from_slice(b"/lib/ld-musl-x86");
    });
    refused("musl", musl, "musl");
    let program = changed_program(|_| {});
    run_fails(&[&dir.file("setuid", 0o4755, &program)], 2, "setuid");
    run_fails(&[&dir.file("setgid", 0o2755, &program)], 2, "setgid");
    assert_eq!(
        quiet(&[&dir.file("plain", 0o755, &program)]).status.code(),
        Some(0)
    );
}

#[test]
fn scripts_are_judged_by_their_interpreters() {
    let dir = Dir::new();
    let script = |name: &str, line: &str| dir.file(name, 0o755, format!("#!{line}\nexit 3\n"));
    run_fails(
        &[&script("missing", "/no/such/shell")],
        127,
        "needs the interpreter",
    );
    run_fails(&[&script("directory", "/tmp")], 126, "is a directory");
    run_fails(
        &[&script("env", "/usr/bin/env no-such-command")],
        127,
        "no-such-command",
    );
    let loop_path = dir.path("loop");
    run_fails(&[&script("loop", &loop_path)], 126, "too many interpreters");
    let setuid = dir.file("setuid", 0o4755, changed_program(|_| {}));
    run_fails(&[&script("privileged", &setuid)], 2, "setuid");
    for line in [
        "/bin/sh",
        " /bin/sh -e",
        "/usr/bin/env sh",
        "/usr/bin/env -S sh -e",
    ] {
        assert_eq!(
            quiet(&[&script("works", line)]).status.code(),
            Some(3),
            "{line}"
        );
    }
    // A script that names no interpreter is the shell's, as everywhere.
    assert_eq!(
        quiet(&[&dir.file("bare", 0o755, "exit 4\n")]).status.code(),
        Some(4)
    );
}

#[test]
fn a_stats_file_that_cannot_be_written_is_found_before_the_program_runs() {
    let dir = Dir::new();
    let marker = dir.path("marker");
    for file in [
        "/dev/full",
        "/no/such/directory/stats",
        dir.0.to_str().unwrap(),
    ] {
        let arguments = ["run", "--stats", file, "--", "touch", &marker];
        fails(&arguments, 2, "--stats");
        assert!(!Path::new(&marker).exists(), "{file}: the program was run");
    }
    // One that is there is not touched when the program cannot be run.
    let kept = dir.file("kept", 0o644, "kept");
    fails(
        &["run", "--stats", &kept, "--", "/no/such/program"],
        127,
        "No such file",
    );
    assert_eq!(fs::read_to_string(&kept).unwrap(), "kept");
}

#[test]
fn stats_are_written_as_json_whatever_the_program_returns() {
    let dir = Dir::new();
    let stats = dir.path("stats");
    let arguments = [
        "run",
        "--ram",
        "64M",
        "--device",
        "mirror:1G",
        "--device",
        "lz4",
    ];
    let rest = ["--stats", &stats, "--", "sh", "-c", "exit 7"];
    let output = uhmm(&[&arguments[..], &rest].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let block = text(&output.stderr);
    assert!(block.starts_with("uhmm: ended with status 7"), "{block}");
    assert!(block.contains("64.0 MiB budget"), "{block}");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&stats).unwrap()).unwrap();
    assert_eq!(json["command"], serde_json::json!(["sh", "-c", "exit 7"]));
    assert_eq!(json["exit_code"], 7);
    assert_eq!(json["ram_budget_bytes"], 64 << 20);
    assert_eq!(json["devices"][0]["kind"], "mirror");
    assert_eq!(json["devices"][1]["name"], "lz4");
}

#[test]
fn the_library_is_told_everything_and_nothing_is_left_behind() {
    let script = "echo $UHMM_RAM; echo $UHMM_DEVICES; echo $UHMM_STATS; test -f $UHMM_STATS";
    let arguments = [
        "run",
        "--quiet",
        "--ram",
        "64M",
        "--device",
        "lz4:8G",
        "--device=mirror:1M",
    ];
    let output = uhmm(&[&arguments[..], &["--", "sh", "-c", script]].concat())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let mut lines = text(&output.stdout).lines();
    assert_eq!(lines.next(), Some("67108864"));
    assert_eq!(lines.next(), Some("lz4:8589934592,mirror:1048576"));
    assert!(!Path::new(lines.next().unwrap()).exists());
    let preload = quiet(&["sh", "-c", "echo $LD_PRELOAD"]);
    let library = text(&preload.stdout).trim();
    assert!(Path::new(library).is_file(), "{library:?}");
    // The program keeps its own name.
    assert_eq!(
        quiet(&["cat", "/proc/self/cmdline"]).stdout,
        b"cat\0/proc/self/cmdline\0"
    );
}

#[test]
fn the_end_of_the_program_is_passed_on() {
    assert_eq!(quiet(&["true"]).status.code(), Some(0));
    assert_eq!(quiet(&["sh", "-c", "exit 255"]).status.code(), Some(255));
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("INT", 130), ("SEGV", 139)] {
        let kill = format!("ulimit -c 0; kill -{signal} $$");
        assert_eq!(
            quiet(&["sh", "-c", &kill]).status.code(),
            Some(code),
            "{signal}"
        );
    }
}

#[test]
fn signals_are_passed_on_or_left_to_the_program() {
    let script = "for s in TERM HUP USR1 USR2; do trap \"echo $s\" $s; done; trap 'exit 9' QUIT; \
                  echo ready; while :; do sleep 0.05; done";
    let mut child = uhmm(&["run", "--quiet", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let uhmm = Pid::from_child(&child);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    // Neither of these ends the command, nor reaches the program.
    kill_process(uhmm, Signal::INT).unwrap();
    kill_process(uhmm, Signal::QUIT).unwrap();
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::HUP, "HUP"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
    ] {
        kill_process(uhmm, signal).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), name);
    }
    // The program is the command's only child.
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let program: i32 = fs::read_to_string(children)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    kill_process(Pid::from_raw(program).unwrap(), Signal::QUIT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn the_program_starts_with_the_signals_that_the_command_was_given() {
    let script = "trap '' CHLD INT USR1; exec \"$@\"";
    let show = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"];
    let run = [env!("CARGO_BIN_EXE_uhmm"), "run", "--quiet", "--"];
    let with = |words: &[&str]| {
        Command::new("sh")
            .args(["-c", script, "sh"])
            .args(words)
            .output()
            .unwrap()
            .stdout
    };
    let plain = with(&show);
    let managed = with(&[&run[..], &show].concat());
    // Signals 32 and 33 are the C library's own: it sets them when a first thread is started.
    let of = |name: &str, output: &[u8]| {
        let mut fields = text(output)
            .lines()
            .filter_map(|line| line.split_once(":\t"));
        let (_, bits) = fields.find(|(field, _)| *field == name).unwrap();
        u64::from_str_radix(bits, 16).unwrap() & !(0b11 << 31)
    };
    // Which signals are caught is the library's business.
    for name in ["SigBlk", "SigIgn"] {
        assert_eq!(of(name, &plain), of(name, &managed), "{name}");
    }
}

#[test]
fn dmirror_is_used_as_run_is() {
    let dir = Dir::new();
    let with = |option: &str, size: &str, says: &str| {
        fails(&["dmirror", option, size, "--", "true"], 2, says);
    };
    for option in ["--private", "--coherent"] {
        with(option, "12Q", "\"12Q\"");
        with(option, "0", "zero");
        with(option, "4095", "less than a page");
        with(option, "1000000T", "of the machine");
        fails(&["dmirror", option], 2, option);
    }
    fails(&["dmirror"], 2, "<COMMAND>");
    fails(&["dmirror", "--"], 2, "<COMMAND>");
    fails(&["dmirror", "--ram", "1G", "--", "true"], 2, "--ram");
    let program = |program: &str, code, says| fails(&["dmirror", "--", program], code, says);
    program("no-such-command-anywhere", 127, "PATH");
    program("/no/such/program", 127, "No such file");
    program("/", 126, "is a directory");
    let statically = changed_program(|program| {
        let at = loader_segment(program);
        program[at] = 0;
    });
    program(
        &dir.file("static", 0o755, statically),
        2,
        "statically linked",
    );
    let plain = changed_program(|_| {});
    program(&dir.file("setuid", 0o4755, plain), 2, "setuid");
    let steam = uhmm(&["dmirror", "--", "true"])
        .env("UHMM_ENGINE", "steam")
        .output()
        .unwrap();
    let line = "uhmm: UHMM_ENGINE names no engine: give `thread` or `signal`\n";
    assert_eq!((steam.status.code(), text(&steam.stderr)), (Some(2), line));
}

#[test]
fn dmirror_says_nothing_and_tells_the_library_alone() {
    let show = "echo $UHMM_DMIRROR; echo $UHMM_RAM$UHMM_DEVICES$UHMM_STATS; exit 3";
    let shell = ["--", "sh", "-c", show];
    let run = ["run", "--quiet", "--"];
    let own = env!("CARGO_BIN_EXE_uhmm");
    let sizes = ["dmirror", "--private", "256M", "--coherent", "1G"];
    for command in [
        [&sizes[..], &shell].concat(),
        [&run[..], &[own], &sizes, &shell].concat(),
    ] {
        let output = uhmm(&command).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{command:?}");
        assert_eq!(text(&output.stdout), "268435456,1073741824\n\n");
        assert_eq!(text(&output.stderr), "");
    }
    let inner = [own, "run", "--quiet", "--device", "lz4:1G", "--ram", "64M"];
    let command = [&sizes[..], &["--"], &inner, &shell].concat();
    let output = uhmm(&command).output().unwrap();
    assert!(text(&output.stdout).starts_with("\n67108864lz4:1073741824"));
}

#[test]
fn nobody_needs_to_listen() {
    let run = |redirect: &str, arguments: &[&str]| {
        let script = format!("exec \"$0\" \"$@\" {redirect}");
        let command = env!("CARGO_BIN_EXE_uhmm");
        Command::new("sh")
            .args(["-c", &script, command])
            .args(arguments)
            .status()
            .unwrap()
            .code()
    };
    for redirect in ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"] {
        assert_eq!(
            run(redirect, &["run", "--", "sh", "-c", "exit 5"]),
            Some(5),
            "{redirect}"
        );
        assert_eq!(
            run(redirect, &["run", "--ram", "0", "--", "true"]),
            Some(2),
            "{redirect}"
        );
        assert_eq!(run(redirect, &["walk"]), Some(2), "{redirect}");
    }
    // A pipe whose reader has gone.
    let mut child = uhmm(&["run", "--", "sh", "-c", "sleep 0.2; exit 5"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(5));
    let mut child = uhmm(&["devices"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(run(">/dev/full 2>/dev/null", &["devices"]), Some(2));
}

#[test]
fn help_is_there_for_everything() {
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["dmirror", "--help"],
        &["devices", "-h"],
        &["doctor", "-h"],
    ] {
        let output = uhmm(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("Usage:"), "{arguments:?}");
        assert_eq!(text(&output.stderr), "");
    }
    assert_eq!(uhmm(&[]).output().unwrap().status.code(), Some(2));
    let help = uhmm(&["run", "--help"]).output().unwrap().stdout;
    for word in [
        "--ram",
        "--device",
        "--stats",
        "--quiet",
        "Exit status",
        "Examples",
    ] {
        assert!(text(&help).contains(word), "{word}");
    }
}

#[test]
fn devices_and_doctor_answer() {
    let devices = uhmm(&["devices"]).output().unwrap();
    assert_eq!(devices.status.code(), Some(0));
    for word in ["lz4", "mirror", "SIZE", "50%"] {
        assert!(text(&devices.stdout).contains(word), "{word}");
    }
    let doctor = uhmm(&["doctor"]).output().unwrap();
    let said = text(&doctor.stdout);
    for check in [
        "kernel: Linux",
        "userfaultfd: ",
        "moving pages: ",
        "address space: ",
        "thread engine: ",
        "signal engine: ",
    ] {
        assert!(said.contains(check), "{said}");
    }
    let missing = said.lines().any(|line| line.starts_with("MISSING"));
    assert_eq!(
        doctor.status.code(),
        Some(if missing { 2 } else { 0 }),
        "{said}"
    );
}
