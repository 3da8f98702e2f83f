//! A process and all that descend from it.

use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write;
use std::fs;

struct Process {
    pid: u32,
    parent: u32,
    group: u32,
}

/// `root`, its descendants, and what is left in its process group.
pub fn members(root: u32) -> Vec<u32> {
    let all: Vec<Process> = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .collect();
    let mut members = vec![root];
    members.extend(
        all.iter()
            .filter(|p| p.group == root && p.pid != root)
            .map(|p| p.pid),
    );
    let mut next = 0;
    while let Some(&parent) = members.get(next) {
        let children = all.iter().filter(|p| p.parent == parent).map(|p| p.pid);
        let new: Vec<u32> = children.filter(|pid| !members.contains(pid)).collect();
        members.extend(new);
        next += 1;
    }
    members
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = after_name(&stat)?.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some(Process { pid, parent, group })
}

/// The fields of a `stat` line after the name, which may itself hold spaces and parentheses.
fn after_name(stat: &str) -> Option<&str> {
    Some(stat.rsplit_once(") ")?.1)
}

/// Sends `signal` to `pid`; it may have gone already.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, signal);
    }
}

/// Kills `root` and all that descend from it.
pub fn kill(root: u32) {
    for pid in members(root) {
        signal(pid, Signal::KILL);
    }
}

/// Whether every thread of `pid` has stopped.
pub fn is_stopped(pid: u32) -> bool {
    threads(pid).iter().all(|thread| {
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat"));
        // A thread that has gone does not run either.
        stat.map_or(true, |stat| {
            after_name(&stat).is_some_and(|rest| rest.starts_with(['T', 't']))
        })
    })
}

fn threads(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// What each thread of the tree is doing, for a report of a run that hangs.
pub fn describe(root: u32) -> String {
    let mut text = String::new();
    for pid in members(root) {
        let read = |path: String| fs::read_to_string(path).unwrap_or_default();
        let command = read(format!("/proc/{pid}/cmdline")).replace('\0', " ");
        let _ = writeln!(text, "process {pid}: {command}");
        for thread in threads(pid) {
            let at = format!("/proc/{pid}/task/{thread}");
            let name = read(format!("{at}/comm"));
            let state = read(format!("{at}/stat"));
            let state = after_name(&state)
                .and_then(|rest| rest.chars().next())
                .unwrap_or('?');
            let place = read(format!("{at}/wchan"));
            let call = read(format!("{at}/syscall"));
            let _ = writeln!(
                text,
                "  thread {thread} {}: {state} in {place}, system call {}",
                name.trim_end(),
                call.trim_end()
            );
            for line in read(format!("{at}/stack")).lines().take(12) {
                let _ = writeln!(text, "    {line}");
            }
        }
    }
    text
}
