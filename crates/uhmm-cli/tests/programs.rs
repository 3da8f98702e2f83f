//! Real programs under `uhmm run`, each compared with its plain run: what it prints, how it ends,
//! and that the kernel never saw more of it in RAM than its budget.
//!
//! `UHMM_TEST_DEVICE` names another device than lz4. Those in C stand in `programs/`, each for one
//! thing that a program does with memory.

#![forbid(unsafe_code)]

mod common;

use common::{Case, tools};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

fn python() -> Option<PathBuf> {
    tools::tool("python3")
}

/// A test of one C program, with the RAM it is given in MiB.
macro_rules! c_programs {
    ($($name:ident $ram:literal)*) => {$(
        #[test]
        fn $name() {
            if let Some(case) = Case::c_program(stringify!($name), $ram) {
                case.compare();
            }
        }
    )*};
}

c_programs! {
    threads 64
    malloc 16
    mmap 32
    mremap 32
    madvise 32
    mprotect 32
    fork 24
    spawn 24
    signals 32
    stacks 24
    io 16
    mlock 32
    brk 16
}

#[test]
fn dlopen() {
    let Some(plugin) = tools::compile("plugin", &["-shared", "-fPIC"]) else {
        return;
    };
    if let Some(case) = Case::c_program("dlopen", 24) {
        case.arg(plugin).compare();
    }
}

#[test]
fn exits() {
    let Some(program) = tools::compile("exits", &[]) else {
        return;
    };
    for mode in [
        "return",
        "exit",
        "_exit",
        "quick_exit",
        "abort",
        "trap",
        "null",
        "overflow",
        "kill2",
        "kill9",
        "kill15",
        "thread",
        "pthread_exit",
        "crowd",
    ] {
        Case::new(&format!("exits-{mode}"), &program, 16)
            .args(mode)
            .compare();
    }
}

/// Lines of 100 bytes in no order, the same in every run; `bytes` in all.
fn write_lines(path: &Path, bytes: usize) {
    let mut file = BufWriter::new(File::create(path).expect("a file of lines"));
    let mut state = 1u64;
    for number in 0..bytes / 100 {
        // A step of a 64-bit linear congruential generator, of which the upper half is used.
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        writeln!(file, "{:08x} {number:09} {:080}", state >> 32, state >> 40).expect("a line");
    }
    file.flush().expect("all lines");
}

#[test]
fn sort() {
    let Some(sort) = tools::tool("sort") else {
        return;
    };
    let lines = tools::scratch().join("lines");
    write_lines(&lines, 200_000_000);
    Case::new("sort", sort, 64)
        .args("-S 400M --parallel=2")
        .arg(&lines)
        .compare();
    std::fs::remove_file(lines).expect("the file of lines");
}

#[test]
fn python_objects() {
    let Some(python) = python() else { return };
    let script = tools::source("objects.py");
    Case::new("python", python, 48)
        .arg(script)
        .env("PYTHONHASHSEED", "0")
        .compare();
}

/// The same with each object from malloc, instead of Python's own arenas.
#[test]
fn python_malloc() {
    let Some(python) = python() else { return };
    Case::new("python-malloc", python, 48)
        .arg(tools::source("objects.py"))
        .env("PYTHONHASHSEED", "0")
        .env("PYTHONMALLOC", "malloc")
        .compare();
}

#[test]
fn python_processes() {
    let Some(python) = python() else { return };
    Case::new("python-procs", python, 24)
        .arg(tools::source("processes.py"))
        .compare();
}

#[test]
fn sqlite_in_memory() {
    let Some(sqlite) = tools::tool("sqlite3") else {
        return;
    };
    let script = format!(".read {}", tools::source("memory.sql").display());
    Case::new("sqlite", sqlite, 28)
        .args("-batch -bail :memory:")
        .arg(script)
        .compare();
}

#[test]
fn bash_forks() {
    let Some(bash) = tools::tool("bash") else {
        return;
    };
    Case::new("bash", bash, 64)
        .arg(tools::source("forks.sh"))
        .fits()
        .compare();
}

/// A chain of programs in one process, of which only the last is large.
#[test]
fn exec_chain() {
    let (Some(sh), Some(python)) = (tools::tool("sh"), python()) else {
        return;
    };
    let script = format!(
        "echo first; exec env A=1 {sh} -c 'echo $A; exec {python} -c \"{last}\"'",
        sh = sh.display(),
        python = python.display(),
        last = "import os; os.environ.pop(str(), None); \
                b = [bytes([i & 255]) * 4096 for i in range(20000)]; \
                print(sum(x[i & 4095] for i, x in enumerate(b))); os._exit(33)",
    );
    Case::new("exec", sh, 24).args("-c").arg(script).compare();
}

#[test]
fn exit_codes() {
    let Some(sh) = tools::tool("sh") else { return };
    for (name, script) in [
        ("true", "exit 0"),
        ("code", "exit 42"),
        ("most", "exit 255"),
        ("term", "kill -TERM $$"),
        ("segv", "kill -SEGV $$"),
        ("missing", "exec /nonexistent/program 2>/dev/null"),
    ] {
        Case::new(&format!("sh-{name}"), &sh, 64)
            .args("-c")
            .arg(script)
            .fits()
            .compare();
    }
}

#[test]
fn stress_ng_vm() {
    let Some(stress) = tools::tool("stress-ng") else {
        return;
    };
    Case::new("stress-ng", stress, 32)
        .args(
            "--vm 2 --vm-bytes 256M --vm-ops 60000 --vm-method all --verify --oomable --timeout 20",
        )
        .output_varies()
        .compare();
}

/// memtester locks its memory, and its mask leaves out the tests with hundreds of passes.
#[test]
fn memtester() {
    let Some(memtester) = tools::tool("memtester") else {
        return;
    };
    Case::new("memtester", memtester, 16)
        .env("MEMTESTER_TEST_MASK", "0x180ff")
        .args("64M 1")
        .compare();
}
