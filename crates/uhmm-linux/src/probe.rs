//! What this kernel and this user may do, and how to mend what is missing.
//!
//! [`facts::gather`] asks the machine; [`judge`] is a pure function of the answers, so that what
//! is said about machines that one does not have can be tested.

pub mod facts;

use crate::engine::Kind;
use facts::Facts;
use linux_raw_sys::general::{
    UFFD_FEATURE_EVENT_FORK, UFFD_FEATURE_EVENT_REMAP, UFFD_FEATURE_EVENT_REMOVE,
    UFFD_FEATURE_EVENT_UNMAP, UFFD_FEATURE_MOVE, UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    UFFD_FEATURE_POISON, UFFD_FEATURE_SIGBUS, UFFD_FEATURE_WP_ASYNC,
};
use rustix::io::Errno;
use std::fmt;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// uhmm works, but something may be slower, or may fail.
    Warning,
    /// uhmm cannot work.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it, in one line; `None` where nothing need be done.
    pub mend: Option<String>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name, detail, mend, ..
        } = self;
        write!(f, "{name}: {detail}")?;
        mend.as_ref()
            .map_or(Ok(()), |mend| write!(f, "; to mend it, {mend}"))
    }
}

/// Every check, those first without which nothing works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether this machine and this user can run uhmm.
    ///
    /// # Errors
    ///
    /// The first thing that is missing, and its mend, in one line.
    pub fn usable(&self) -> Result<(), String> {
        match self
            .checks
            .iter()
            .find(|check| check.verdict == Verdict::Missing)
        {
            Some(check) => Err(check.to_string()),
            None => Ok(()),
        }
    }

    /// Whether this machine and this user can have a space on `engine`.
    ///
    /// # Errors
    ///
    /// The first thing that is missing, and its mend, in one line.
    pub fn usable_on(&self, engine: Kind) -> Result<(), String> {
        let signal = || self.checks.iter().find(|check| check.name == SIGNAL_ENGINE);
        match engine {
            Kind::Thread => self.usable(),
            Kind::Signal if self.has_signal_engine() => Ok(()),
            Kind::Signal => Err(signal().map_or_else(String::new, Check::to_string)),
        }
    }

    /// Whether programs that use the library can have a space with the signal engine, which takes less.
    pub fn has_signal_engine(&self) -> bool {
        let mut checks = self.checks.iter();
        checks.any(|check| check.name == SIGNAL_ENGINE && check.verdict == Verdict::Ok)
    }
}

const SIGNAL_ENGINE: &str = "signal engine";

/// Looks at this machine.
pub fn probe() -> Report {
    judge(&facts::gather())
}

/// Says what `facts` mean.
pub fn judge(facts: &Facts) -> Report {
    let feature = |name, bit, since| self::feature(facts, name, bit, since);
    let mut checks = vec![
        kernel(facts),
        userfaultfd(facts),
        feature("moving pages", UFFD_FEATURE_MOVE, "UFFDIO_MOVE, Linux 6.8"),
        feature(
            "poisoning pages",
            UFFD_FEATURE_POISON,
            "UFFDIO_POISON, Linux 6.6",
        ),
        feature(
            "write protection",
            UFFD_FEATURE_PAGEFAULT_FLAG_WP,
            "UFFD_FEATURE_PAGEFAULT_FLAG_WP, Linux 5.7 (6.10 on arm64)",
        ),
        pagemap_scan(facts),
        feature(
            "fork events",
            UFFD_FEATURE_EVENT_FORK,
            "UFFD_FEATURE_EVENT_FORK, Linux 4.11",
        ),
        feature(
            "mremap events",
            UFFD_FEATURE_EVENT_REMAP,
            "UFFD_FEATURE_EVENT_REMAP, Linux 4.11",
        ),
        feature(
            "discard events",
            UFFD_FEATURE_EVENT_REMOVE,
            "UFFD_FEATURE_EVENT_REMOVE, Linux 4.11",
        ),
        feature(
            "munmap events",
            UFFD_FEATURE_EVENT_UNMAP,
            "UFFD_FEATURE_EVENT_UNMAP, Linux 4.11",
        ),
        feature(
            "signal faults",
            UFFD_FEATURE_SIGBUS,
            "UFFD_FEATURE_SIGBUS, Linux 4.14",
        ),
        feature(
            "asynchronous write protection",
            UFFD_FEATURE_WP_ASYNC,
            "UFFD_FEATURE_WP_ASYNC, Linux 6.7",
        ),
    ];
    checks.extend([
        huge_pages(facts),
        mappings(facts),
        overcommit(facts),
        address_space(facts),
    ]);
    let thread = thread_engine(&checks);
    checks.extend([thread, signal_engine(facts, &checks)]);
    Report { checks }
}

/// What serves the faults of `uhmm run`, and of the library unless told otherwise.
fn thread_engine(checks: &[Check]) -> Check {
    let name = "thread engine";
    match checks
        .iter()
        .find(|check| check.verdict == Verdict::Missing)
    {
        None => ok(name, "can be used: faults of system calls are served too"),
        Some(missing) => Check {
            name,
            verdict: Verdict::Missing,
            detail: format!("cannot be used, for want of {}", missing.name),
            mend: missing.mend.clone(),
        },
    }
}

/// What serves the faults of programs that build their space so. It lacks nothing for want of a right to
/// the kernel's own faults.
fn signal_engine(facts: &Facts, checks: &[Check]) -> Check {
    let opens = facts.user_mode_only.is_ok() || facts.device_node.is_ok();
    let has_signals = facts
        .features
        .is_some_and(|bits| bits & u64::from(UFFD_FEATURE_SIGBUS) != 0);
    let mut missing = checks
        .iter()
        .filter(|check| check.verdict == Verdict::Missing);
    let other = missing.find(|check| check.name != USERFAULTFD);
    match other {
        None if opens && has_signals => ok(
            SIGNAL_ENGINE,
            "can be used: by the library, with UHMM_ENGINE=signal or Builder::engine",
        ),
        None if opens => warning(
            SIGNAL_ENGINE,
            "cannot be used: this kernel does not report faults by signals",
            NEWER_KERNEL,
        ),
        None => warning(
            SIGNAL_ENGINE,
            "cannot be used while userfaultfd cannot be opened",
            "mend userfaultfd first",
        ),
        Some(other) => {
            let detail = format!("cannot be used, for want of {}", other.name);
            warning(SIGNAL_ENGINE, detail, NEWER_KERNEL)
        }
    }
}

fn ok(name: &'static str, detail: impl Into<String>) -> Check {
    Check {
        name,
        verdict: Verdict::Ok,
        detail: detail.into(),
        mend: None,
    }
}

fn warning(name: &'static str, detail: impl Into<String>, mend: &str) -> Check {
    Check {
        name,
        verdict: Verdict::Warning,
        detail: detail.into(),
        mend: Some(mend.into()),
    }
}

fn missing(name: &'static str, detail: impl Into<String>, mend: &str) -> Check {
    Check {
        name,
        verdict: Verdict::Missing,
        detail: detail.into(),
        mend: Some(mend.into()),
    }
}

/// The oldest kernel that can do it: the first with `UFFDIO_MOVE`.
const OLDEST: (u32, u32) = (6, 8);
const NEWER_KERNEL: &str = "boot Linux 6.8 or newer (6.10 on arm64)";

fn kernel(facts: &Facts) -> Check {
    let name = "kernel";
    let release = &facts.release;
    let has_move = facts
        .features
        .is_some_and(|bits| bits & u64::from(UFFD_FEATURE_MOVE) != 0);
    match version(release) {
        Some(version) if version >= OLDEST => ok(name, format!("Linux {release}")),
        // A distribution's kernel may have what its number does not promise, and the reverse.
        _ if has_move => ok(
            name,
            format!("Linux {release}, which can move pages as 6.8 can"),
        ),
        Some(_) => missing(
            name,
            format!("Linux {release} is older than 6.8"),
            NEWER_KERNEL,
        ),
        None => warning(
            name,
            format!("{release:?} is no known version"),
            NEWER_KERNEL,
        ),
    }
}

/// The first two numbers of a kernel release such as `6.18.44-generic`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

const USERFAULTFD: &str = "userfaultfd";

fn userfaultfd(facts: &Facts) -> Check {
    let name = USERFAULTFD;
    let Err(errno) = facts.userfaultfd else {
        return ok(
            name,
            "this user may use it, for faults taken by the kernel too",
        );
    };
    if facts.device_node.is_ok() {
        return ok(name, "this user may use it through /dev/userfaultfd");
    }
    match errno {
        Errno::NOSYS if !facts.seccomp => missing(
            name,
            "this kernel was built without it",
            "use a kernel with CONFIG_USERFAULTFD=y",
        ),
        Errno::PERM if facts.user_mode_only.is_ok() => {
            let why = if facts.ptrace_capability {
                "CAP_SYS_PTRACE counts only outside of user namespaces"
            } else {
                "vm.unprivileged_userfaultfd is 0 and this user lacks CAP_SYS_PTRACE"
            };
            missing(
                name,
                format!("this user may not use it for faults taken by the kernel: {why}"),
                "as root run `sysctl -w vm.unprivileged_userfaultfd=1`, or let this user read \
                 and write /dev/userfaultfd, or give the container CAP_SYS_PTRACE",
            )
        }
        Errno::PERM | Errno::ACCESS | Errno::NOSYS => missing(
            name,
            "a security filter blocks the system call, as Docker's default seccomp profile does",
            "start the container with `--security-opt seccomp=unconfined --cap-add SYS_PTRACE`, \
             or with a profile that allows userfaultfd, or with `--device /dev/userfaultfd`",
        ),
        Errno::MFILE | Errno::NFILE => missing(
            name,
            "no more files can be opened",
            "raise the limit with `ulimit -n`",
        ),
        errno => missing(name, format!("it cannot be opened: {errno}"), NEWER_KERNEL),
    }
}

/// Of the features that userfaultfd can have, uhmm cannot work without these.
const ESSENTIAL: [u32; 3] = [
    UFFD_FEATURE_MOVE,
    UFFD_FEATURE_POISON,
    UFFD_FEATURE_PAGEFAULT_FLAG_WP,
];

fn feature(facts: &Facts, name: &'static str, bit: u32, since: &str) -> Check {
    match facts.features {
        Some(bits) if bits & u64::from(bit) != 0 => ok(name, since),
        Some(_) if ESSENTIAL.contains(&bit) => {
            missing(name, format!("this kernel lacks {since}"), NEWER_KERNEL)
        }
        Some(_) => warning(name, format!("this kernel lacks {since}"), NEWER_KERNEL),
        None => {
            let detail = format!("not known while userfaultfd cannot be opened ({since})");
            warning(name, detail, "mend userfaultfd first")
        }
    }
}

fn pagemap_scan(facts: &Facts) -> Check {
    let name = "scanning page tables";
    match facts.pagemap_scan {
        Ok(()) => ok(name, "PAGEMAP_SCAN, Linux 6.7"),
        Err(Errno::NOTTY | Errno::INVAL) => missing(
            name,
            "this kernel lacks PAGEMAP_SCAN, Linux 6.7",
            NEWER_KERNEL,
        ),
        Err(Errno::NOENT) => missing(
            name,
            "/proc/self/pagemap is not there",
            "mount /proc, and use a kernel with CONFIG_PROC_PAGE_MONITOR=y",
        ),
        Err(errno) => missing(
            name,
            format!("/proc/self/pagemap cannot be used: {errno}"),
            "let this user read /proc/self/pagemap (a security filter may block it)",
        ),
    }
}

fn huge_pages(facts: &Facts) -> Check {
    let name = "transparent huge pages";
    match facts.huge_pages.as_deref() {
        None | Some("never") => warning(
            name,
            "never: memory is moved in small pages only, which is slower",
            "as root write `madvise` to /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some(setting) => ok(name, setting),
    }
}

/// What Linux allows unless told otherwise.
const USUAL_MAP_COUNT: u64 = 65_530;

fn mappings(facts: &Facts) -> Check {
    let name = "mappings per process";
    match facts.max_map_count {
        Some(n) if n < USUAL_MAP_COUNT => warning(
            name,
            format!("vm.max_map_count is only {n}"),
            "as root run `sysctl -w vm.max_map_count=65530`",
        ),
        Some(n) => ok(name, format!("vm.max_map_count is {n}")),
        None => ok(name, "vm.max_map_count cannot be read"),
    }
}

fn overcommit(facts: &Facts) -> Check {
    let name = "overcommit";
    match facts.overcommit {
        Some(2) => warning(
            name,
            "vm.overcommit_memory is 2: address space that uhmm reserves may be refused",
            "as root run `sysctl -w vm.overcommit_memory=0`",
        ),
        Some(n) => ok(name, format!("vm.overcommit_memory is {n}")),
        None => ok(name, "vm.overcommit_memory cannot be read"),
    }
}

fn address_space(facts: &Facts) -> Check {
    let name = "address space";
    match facts.address_space_limit {
        None => ok(name, "unlimited"),
        Some(bytes) => warning(
            name,
            format!("limited to {bytes} bytes: what uhmm reserves may not fit"),
            "run `ulimit -v unlimited` first",
        ),
    }
}

#[cfg(test)]
mod tests;
