//! A program that has to end within a time.
//!
//! What it says is kept once where it says the same line over and over: a test of Linux 6.1 that fails may
//! close its file again and again, and says so millions of times before its time is over.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is asked whether the program has ended.
const PAUSE: Duration = Duration::from_millis(5);

/// What a program said, and how it ended.
pub struct Ran {
    /// Both outputs, in the order in which they were written.
    pub output: String,
    /// `None`: it took too long, and was killed with all that it had started.
    pub status: Option<ExitStatus>,
}

/// Runs `command` for at most `limit`; prints what it says as it says it if `show`.
pub fn run(command: &mut Command, limit: Duration, show: bool) -> Result<Ran, String> {
    let failed = |why: io::Error| format!("{}: {why}", command.get_program().display());
    let (reader, writer) = io::pipe().map_err(failed)?;
    let both = writer.try_clone().map_err(failed)?;
    let spawned = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(both)
        .spawn();
    // The command's copies of the pipe's end would keep its output from ending.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let failed = |why: io::Error| format!("{}: {why}", command.get_program().display());
    let mut child = spawned.map_err(failed)?;
    let output = thread::spawn(move || read(reader, show));

    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break Some(status);
        }
        if start.elapsed() > limit {
            kill(&family(child.id()));
            child.wait().map_err(failed)?;
            break None;
        }
        thread::sleep(PAUSE);
    };
    let output = output.join().map_err(|_| "its output cannot be read")?;
    Ok(Ran { output, status })
}

fn read(from: impl Read, show: bool) -> String {
    let (mut from, mut all) = (BufReader::new(from), String::new());
    let (mut last, mut line) = (Vec::new(), Vec::new());
    let mut again = 0_u64;
    let mut say = |text: &str| {
        all.push_str(text);
        if show {
            let mut to = io::stdout().lock();
            let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
        }
    };
    while let Ok(1..) = from.read_until(b'\n', &mut line) {
        if line == last {
            again += 1;
        } else {
            say_again(&mut say, &mut again);
            say(&String::from_utf8_lossy(&line));
            std::mem::swap(&mut last, &mut line);
        }
        line.clear();
    }
    say_again(&mut say, &mut again);
    all
}

fn say_again(say: &mut impl FnMut(&str), times: &mut u64) {
    match std::mem::take(times) {
        0 => {}
        times => say(&format!("(the same {times} times more)\n")),
    }
}

/// `root` and all processes that descend from it.
fn family(root: u32) -> Vec<u32> {
    let all: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(
            all.iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| pid),
        );
        next += 1;
    }
    family
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may itself hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

fn kill(pids: &[u32]) {
    let mut command = Command::new("sh");
    command.args(["-c", "kill -KILL \"$@\" 2>/dev/null", "kill"]);
    let _ = command.args(pids.iter().map(u32::to_string)).status();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Ran {
        run(Command::new("sh").args(["-c", script]), limit, false).unwrap()
    }

    #[test]
    fn both_outputs_come_in_order_with_the_status() {
        let ran = shell(
            "echo one; echo two >&2; echo three; exit 3",
            Duration::from_secs(60),
        );
        assert_eq!(ran.output, "one\ntwo\nthree\n");
        assert_eq!(ran.status.unwrap().code(), Some(3));
    }

    #[test]
    fn what_is_said_over_and_over_is_kept_once() {
        let ran = shell(
            "echo one; yes two | head -n 100000; echo three; echo three; printf four",
            Duration::from_secs(60),
        );
        let expected =
            "one\ntwo\n(the same 99999 times more)\nthree\n(the same 1 times more)\nfour";
        assert_eq!(ran.output, expected);
    }

    #[test]
    fn what_takes_too_long_is_killed_with_its_children() {
        let start = Instant::now();
        let ran = shell(
            "echo $$; setsid sh -c 'echo $$; sleep 100; echo' & wait",
            Duration::from_millis(500),
        );
        assert!(start.elapsed() < Duration::from_secs(60));
        assert!(ran.status.is_none());
        let pids: Vec<u32> = ran.output.lines().map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(pids.len(), 2, "{}", ran.output);
        for pid in pids {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            assert!(state.is_empty() || state.contains(") Z "), "{state}");
        }
    }

    #[test]
    fn what_cannot_be_started_is_named() {
        let error = run(&mut Command::new("there-is-no-such-program"), PAUSE, false);
        assert!(error.is_err_and(|why| why.starts_with("there-is-no-such-program: ")));
    }
}
