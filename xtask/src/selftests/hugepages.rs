//! Huge pages for the tests that want some, reserved from the machine and given back.
//!
//! Who gives them back is a shell that waits for us: it reads from a pipe that nobody writes to, so it
//! goes on when we are gone, however we went. It is in a process group of its own, where an interrupt
//! from the terminal does not reach it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

/// Reserved pages; dropping this gives back what was not reserved before.
pub struct HugePages {
    guard: Option<Child>,
    before: usize,
}

impl HugePages {
    /// Sees to it that `wanted` huge pages are free, of the size that the kernel takes by default.
    ///
    /// # Errors
    ///
    /// They are not, and cannot be made so; how to mend it.
    pub fn reserve(wanted: usize) -> Result<Self, String> {
        let mend = format!("reserve them as root: `sysctl vm.nr_hugepages={wanted}`");
        let free = free()?;
        let before = number(RESERVED)?;
        let mut pages = Self {
            guard: None,
            before,
        };
        if free >= wanted {
            return Ok(pages);
        }
        pages.guard = Some(guard(before)?);
        let more = (before + wanted - free).to_string();
        fs::write(RESERVED, more).map_err(|why| format!("{RESERVED}: {why}; {mend}"))?;
        let now = self::free()?;
        if now < wanted {
            return Err(format!(
                "only {now} huge pages are free, and {wanted} are wanted: memory is too scattered; {mend}"
            ));
        }
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let Some(mut guard) = self.guard.take() else {
            return;
        };
        // The pipe's end is what it waits for.
        drop(guard.stdin.take());
        let _ = guard.wait();
        match number(RESERVED) {
            Ok(now) if now == self.before => {}
            _ => println!(
                "\n*** huge pages: {RESERVED} was {} before; set it again by hand ***\n",
                self.before
            ),
        }
    }
}

/// Starts the shell that writes `before` back once this process closes the pipe, or ends.
fn guard(before: usize) -> Result<Child, String> {
    Command::new("sh")
        .args([
            "-c",
            "trap '' INT TERM HUP QUIT; cat >/dev/null; echo \"$0\" >\"$1\"",
        ])
        .args([&before.to_string(), RESERVED])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|why| format!("sh: {why}"))
}

fn number(path: &str) -> Result<usize, String> {
    let text = fs::read_to_string(path).map_err(|why| format!("{path}: {why}"))?;
    text.trim()
        .parse()
        .map_err(|why| format!("{path}: {text:?}: {why}"))
}

/// How many reserved pages nobody uses or has been promised.
fn free() -> Result<usize, String> {
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path).map_err(|why| format!("{path}: {why}"))?;
    Ok(count(&text, "HugePages_Free:").saturating_sub(count(&text, "HugePages_Rsvd:")))
}

/// The number behind `name`; none where the kernel has no huge pages.
fn count(meminfo: &str, name: &str) -> usize {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_kernels_list() {
        let meminfo = "MemTotal:       24 kB\nHugePages_Free:        7\nHugePages_Rsvd:        2\n";
        assert_eq!(count(meminfo, "HugePages_Free:"), 7);
        assert_eq!(count(meminfo, "HugePages_Rsvd:"), 2);
        assert_eq!(count("MemTotal: 24 kB\n", "HugePages_Free:"), 0);
    }

    #[test]
    fn what_was_reserved_is_given_back() {
        let before = number(RESERVED).unwrap();
        match HugePages::reserve(free().unwrap() + 1) {
            Ok(pages) => {
                assert_eq!(number(RESERVED).unwrap(), before + 1);
                drop(pages);
            }
            // Who may not reserve any is told how to mend it.
            Err(why) => assert!(why.contains("sysctl vm.nr_hugepages="), "{why}"),
        }
        assert_eq!(number(RESERVED).unwrap(), before);
    }
}
