//! Running a program plainly and under `uhmm run`, and comparing the two.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod stats;
pub mod tools;
pub mod tree;
pub mod watch;

use stats::Stats;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use watch::Watch;

/// One at a time: the programs are large, and they are timed.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A run that takes longer than this hangs.
const PLAIN_LIMIT: Duration = Duration::from_secs(60);
const MANAGED_LIMIT: Duration = Duration::from_secs(240);

const MIB: u64 = 1 << 20;

/// The RAM that a process with a budget of `budget` bytes may have mapped at any moment.
pub fn allowance(budget: u64) -> u64 {
    budget + budget / 50 + 4 * MIB
}

/// The device that the programs run on: `lz4`, unless `UHMM_TEST_DEVICE` names another.
pub fn device() -> String {
    std::env::var("UHMM_TEST_DEVICE").unwrap_or_else(|_| "lz4".into())
}

/// A program that has to behave the same under `uhmm run` as without it.
pub struct Case {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    envs: Vec<(&'static str, String)>,
    ram_mib: u64,
    fits: bool,
    output_varies: bool,
}

/// One run of a [`Case`].
struct Run {
    status: ExitStatus,
    time: Duration,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Case {
    /// The case `name` runs `program` within `ram_mib` MiB of RAM, of which it needs several times
    /// as much.
    pub fn new(name: &str, program: impl AsRef<Path>, ram_mib: u64) -> Self {
        Self {
            name: name.into(),
            program: program.as_ref().into(),
            args: Vec::new(),
            envs: vec![("LC_ALL", "C".into())],
            ram_mib,
            fits: false,
            output_varies: false,
        }
    }

    /// A program of `tests/programs`, compiled now. `None` if there is no compiler.
    pub fn c_program(name: &str, ram_mib: u64) -> Option<Self> {
        let program = tools::compile(name, &[])?;
        Some(Self::new(name, program, ram_mib))
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<Path>) -> Self {
        self.args.push(arg.as_ref().display().to_string());
        self
    }

    /// Adds arguments, separated by spaces.
    pub fn args(mut self, args: &str) -> Self {
        self.args.extend(args.split_whitespace().map(String::from));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.envs.push((name, value.into()));
        self
    }

    /// The program needs no more memory than its budget, so no page has to go to the device.
    pub fn fits(mut self) -> Self {
        self.fits = true;
        self
    }

    /// What the program prints differs from run to run; only its exit status is compared, and that
    /// it does not speak of failure.
    pub fn output_varies(mut self) -> Self {
        self.output_varies = true;
        self
    }

    /// Runs the program both ways, and panics at any difference, any byte of RAM over the budget,
    /// any page lost, and if no page went to the device and came back.
    pub fn compare(&self) {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let plain = self.run("plain", self.plain_command(), None);
        assert_ne!(
            plain.status.code(),
            Some(99),
            "{}: plain run fails",
            self.name
        );

        let device = device();
        let stats_file = self.file("stats.json");
        let mut watch = Watch::new(allowance(self.ram_mib * MIB));
        let managed = self.managed_command(&device, &stats_file);
        let managed = self.run(&device, managed, Some(&mut watch));

        self.same_end(&plain, &managed);
        let stats = Stats::read(&stats_file);
        self.judge_stats(&stats, &managed);
        watch.judge(&self.name, !self.fits);
        self.report(&plain, &managed, &stats, &watch);
        for file in [
            &plain.stdout,
            &plain.stderr,
            &managed.stdout,
            &managed.stderr,
        ] {
            // Only to keep the disk free; what failed above stays for inspection.
            let _ = std::fs::remove_file(file);
        }
    }

    fn plain_command(&self) -> Command {
        let mut command = with_default_signals(&self.program);
        command.args(&self.args);
        command
    }

    fn managed_command(&self, device: &str, stats: &Path) -> Command {
        // An old file must not be taken for what this run wrote.
        let _ = std::fs::remove_file(stats);
        let mut command = with_default_signals(env!("CARGO_BIN_EXE_uhmm").as_ref());
        command.args(["run", "--quiet", "--device", device]);
        command.arg("--ram").arg(format!("{}M", self.ram_mib));
        command.arg("--stats").arg(stats);
        command.arg("--").arg(&self.program).args(&self.args);
        command
    }

    fn file(&self, kind: &str) -> PathBuf {
        tools::scratch().join(format!("{}.{kind}", self.name))
    }

    /// Runs `command` to its end, or to the limit, sampling its memory if `watch` is given.
    fn run(&self, kind: &str, mut command: Command, mut watch: Option<&mut Watch>) -> Run {
        let kind = kind.replace(':', "-");
        let stdout = self.file(&format!("{kind}.out"));
        let stderr = self.file(&format!("{kind}.err"));
        let create = |path| File::create(path).expect("a file in the scratch folder");
        command
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(create(&stdout))
            .stderr(create(&stderr))
            .process_group(0);
        let limit = if watch.is_some() {
            MANAGED_LIMIT
        } else {
            PLAIN_LIMIT
        };
        let start = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|why| {
            panic!("{}: {}: {why}", self.name, command.get_program().display())
        });
        let status = loop {
            if let Some(status) = child.try_wait().expect("waiting for a child") {
                break status;
            }
            if start.elapsed() > limit {
                let state = tree::describe(child.id());
                tree::kill(child.id());
                child.wait().expect("waiting for a killed child");
                panic!(
                    "{}, {kind}: hangs after {limit:?}\n{state}{}",
                    self.name,
                    tail(&stderr)
                );
            }
            std::thread::sleep(match watch.as_mut() {
                Some(watch) => watch.sample(child.id()),
                None => Duration::from_millis(2),
            });
        };
        Run {
            status,
            time: start.elapsed(),
            stdout,
            stderr,
        }
    }

    fn same_end(&self, plain: &Run, managed: &Run) {
        let name = &self.name;
        let context = || {
            format!(
                "{name}: plain {}, managed {}\nstdout:\n{}stderr:\n{}",
                plain.status,
                managed.status,
                tail(&managed.stdout),
                tail(&managed.stderr)
            )
        };
        assert_eq!(
            Some(shell_code(plain.status)),
            managed.status.code(),
            "{}",
            context()
        );
        if self.output_varies {
            for file in [&managed.stdout, &managed.stderr] {
                let text = std::fs::read_to_string(file).expect("what the program wrote");
                assert!(!text.contains("fail"), "{}", context());
            }
            return;
        }
        if let Some(difference) = first_difference(&plain.stdout, &managed.stdout) {
            panic!("{}standard output: {difference}", context());
        }
        if let Some(difference) = first_difference(&plain.stderr, &managed.stderr) {
            panic!("{}standard error: {difference}", context());
        }
    }

    fn judge_stats(&self, stats: &Stats, managed: &Run) {
        let name = &self.name;
        let processes = stats.count("processes").max(1);
        let peak = stats.count("ram_peak_bytes");
        let allowed = processes * allowance(self.ram_mib * MIB);
        assert_eq!(
            stats.count("exit_code"),
            shell_code(managed.status) as u64,
            "{name}: {stats}"
        );
        assert_eq!(stats.count("poisoned_pages"), 0, "{name}: {stats}");
        assert!(
            peak <= allowed,
            "{name}: peak of {peak}, and {allowed} allowed: {stats}"
        );
        if !self.fits {
            assert!(
                stats.count("pages_to_device") > 0,
                "{name}: nothing went out: {stats}"
            );
            assert!(
                stats.count("device_faults") > 0,
                "{name}: nothing came back: {stats}"
            );
        }
    }

    fn report(&self, plain: &Run, managed: &Run, stats: &Stats, watch: &Watch) {
        let (plain, managed) = (plain.time.as_secs_f64(), managed.time.as_secs_f64());
        println!(
            "{:18} {:9} plain {plain:6.2} s, managed {managed:6.2} s ({:5.1} x); \
             {:8} pages out, {:8} faults; {} of {} MiB mapped at most, {} samples",
            self.name,
            device(),
            managed / plain,
            stats.count("pages_to_device"),
            stats.count("device_faults"),
            watch.most() / MIB,
            self.ram_mib,
            watch.samples(),
        );
    }
}

/// The exit code by which a shell knows `status`.
pub fn shell_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .expect("an end")
}

/// Where two files first differ, in words.
fn first_difference(plain: &Path, managed: &Path) -> Option<String> {
    let open = |path| BufReader::with_capacity(1 << 20, File::open(path).expect("an output file"));
    let (mut plain, mut managed) = (open(plain), open(managed));
    let mut done = 0;
    loop {
        let a = plain.fill_buf().expect("reading the plain output");
        let b = managed.fill_buf().expect("reading the managed output");
        let common = a.len().min(b.len());
        if let Some(at) = (0..common).find(|&i| a[i] != b[i]) {
            let around = |s: &[u8]| s[at..(at + 60).min(s.len())].escape_ascii().to_string();
            return Some(format!(
                "byte {}: plain \"{}\", managed \"{}\"",
                done + at,
                around(a),
                around(b)
            ));
        }
        if common == 0 {
            let rest = |s: &[u8]| if s.is_empty() { "ends" } else { "goes on" };
            let differs = a.len() != b.len();
            return differs.then(|| format!("byte {done}: plain {}, managed {}", rest(a), rest(b)));
        }
        plain.consume(common);
        managed.consume(common);
        done += common;
    }
}

/// The last lines of a file.
fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned();
    text.lines().map(|line| format!("  | {line}\n")).collect()
}

/// A program that finds no signal ignored. Whoever runs the tests may ignore some: a shell's job in the
/// background does.
fn with_default_signals(program: &Path) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(program);
    command
}
