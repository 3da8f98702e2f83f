//! The kernel's word on how much managed memory is in RAM while a program runs.
//!
//! Managed are the mappings that are registered with a userfaultfd (the space and the frame
//! pool), which `smaps` marks with `um`; where the kernel supports names, those are taken too.
//!
//! `smaps` is read mapping by mapping while pages move between mappings, so a page may be counted
//! twice. A sample above the limit is therefore taken again with the process stopped: then it
//! counts. Samples that only seemed to be above have to be rare.

use super::tree;
use rustix::process::Signal;
use std::fs;
use std::time::{Duration, Instant};

const NAMES: &[&str] = &["[anon:uhmm-space]", "[anon:uhmm-frames]"];
const FLAGS: &[&str] = &["um", "uw", "ui"];

/// Samples of one run.
pub struct Watch {
    limit: u64,
    samples: u64,
    torn: u64,
    most: u64,
    breach: Option<String>,
}

impl Watch {
    /// A watch that allows each process `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            samples: 0,
            torn: 0,
            most: 0,
            breach: None,
        }
    }

    /// Samples every process of the tree of `root`. Returns how long to wait for the next sample,
    /// so that sampling takes a fifth of the time at most.
    pub fn sample(&mut self, root: u32) -> Duration {
        let start = Instant::now();
        self.sample_all(root);
        (start.elapsed() * 4).clamp(Duration::from_millis(3), Duration::from_millis(50))
    }

    fn sample_all(&mut self, root: u32) {
        for pid in tree::members(root) {
            let seen = managed_bytes(pid);
            if seen == 0 {
                continue;
            }
            self.samples += 1;
            if seen <= self.limit {
                self.most = self.most.max(seen);
                continue;
            }
            match while_stopped(pid, || managed_bytes(pid)) {
                Some(exact) if exact > self.limit => {
                    self.most = self.most.max(exact);
                    self.breach.get_or_insert_with(|| {
                        format!("process {pid} has {exact} bytes in RAM, {seen} when it ran")
                    });
                }
                _ => self.torn += 1,
            }
        }
    }

    /// The most bytes seen in one process.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// How often a process with managed memory was looked at.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Panics if any sample was above the limit, or if none could tell although `must_see`.
    pub fn judge(&self, name: &str, must_see: bool) {
        let Self {
            limit,
            samples,
            torn,
            breach,
            ..
        } = self;
        if let Some(breach) = breach {
            panic!("{name}: the kernel says that {breach}; {limit} are allowed");
        }
        assert!(
            *torn <= 3 + samples / 20,
            "{name}: {torn} of {samples} samples above {limit} bytes, none of them when stopped"
        );
        assert!(
            *samples > 0 || !must_see,
            "{name}: no mapping of it was ever seen registered with a userfaultfd"
        );
    }
}

/// Resident bytes of the managed mappings of `pid`; 0 if it has gone.
fn managed_bytes(pid: u32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/smaps")).map_or(0, |smaps| managed_in(&smaps))
}

fn managed_in(smaps: &str) -> u64 {
    let (mut total, mut resident, mut named) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") => resident = words.next().and_then(|kb| kb.parse().ok()).unwrap_or(0),
            // The last line of each mapping.
            Some("VmFlags:") if named || words.any(|flag| FLAGS.contains(&flag)) => {
                total += resident * 1024;
            }
            Some(first) if !first.ends_with(':') => {
                named = words.next_back().is_some_and(|name| NAMES.contains(&name));
            }
            _ => {}
        }
    }
    total
}

/// Calls `look` while no thread of `pid` runs. `None` if they could not be stopped.
fn while_stopped<T>(pid: u32, look: impl FnOnce() -> T) -> Option<T> {
    tree::signal(pid, Signal::STOP);
    let end = Instant::now() + Duration::from_millis(200);
    while !tree::is_stopped(pid) && Instant::now() < end {
        std::thread::sleep(Duration::from_micros(200));
    }
    let seen = tree::is_stopped(pid).then(look);
    tree::signal(pid, Signal::CONT);
    seen
}

#[test]
fn managed_mappings_are_told_from_others() {
    let smaps = "\
7f00-7f10 rw-p 00000000 00:00 0 
Size:               1024 kB
Rss:                 512 kB
VmFlags: rd wr mr mw me um ac 
7f10-7f20 rw-p 00000000 00:00 0                          [anon:uhmm-frames]
Rss:                 256 kB
VmFlags: rd wr mr mw me ac 
7f20-7f30 rw-p 00000000 00:00 0                          [heap]
Rss:                 128 kB
VmFlags: rd wr mr mw me ac 
";
    assert_eq!(managed_in(smaps), (512 + 256) * 1024);
}
