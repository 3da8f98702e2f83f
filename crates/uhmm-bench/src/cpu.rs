//! Keeping threads on CPUs.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this thread may run on; at least one.
pub(crate) fn allowed() -> Vec<usize> {
    let cpus: Vec<usize> = match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect(),
        Err(_) => Vec::new(),
    };
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Keeps the calling thread on `cpu`. A CPU that has gone away costs precision only.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let _ = sched_setaffinity(None, &set);
}

/// Keeps the calling thread on one CPU, until it is dropped.
pub(crate) struct Pinned(Option<CpuSet>);

impl Pinned {
    /// On the last CPU: the first one often has the machine's interrupts.
    pub(crate) fn to_last() -> Self {
        let before = sched_getaffinity(None).ok();
        if let Some(&cpu) = allowed().last() {
            pin(cpu);
        }
        Self(before)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = sched_setaffinity(None, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_is_free_again_afterwards() {
        let before = allowed();
        let pinned = Pinned::to_last();
        assert_eq!(allowed(), before[before.len() - 1..]);
        drop(pinned);
        assert_eq!(allowed(), before);
    }
}
