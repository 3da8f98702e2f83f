//! The counters that processes share through a file, with real processes.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use uhmm_core::addr::PAGE_SIZE;
use uhmm_core::stats::Stats;
use uhmm_linux::shared_stats::{MAX_SLOTS, Slot, StatsFile};

/// A directory of its own for one test, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn claim(path: &Path) -> std::io::Result<Slot> {
    Slot::claim(&CString::new(path.as_os_str().as_bytes()).unwrap())
}

/// Runs `child` in a child process, which ends with status 0 if it returns `true`.
fn in_child(child: impl FnOnce() -> bool) {
    // SAFETY: the child only makes system calls and touches mapped memory, and then ends.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let status = i32::from(!child());
        // SAFETY: ends the process here, so that it runs nothing of the test harness.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: `status` is there to be written to.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
}

#[test]
fn counters_of_all_processes_are_summed_even_of_those_that_ended() {
    let dir = Dir::new("uhmm-sum");
    let file = StatsFile::create(&dir.0).unwrap();
    assert_eq!(file.sum().unwrap().processes, 0);
    let slot = claim(file.path()).unwrap();
    slot.device_faults.add(5);
    slot.ram_peak_bytes.raise(100);
    slot.devices[1].pages.add(7);

    for _ in 0..3 {
        in_child(|| {
            let stats: &Stats = &slot;
            if slot.reclaim_after_fork().is_err() || stats.device_faults.get() != 0 {
                return false;
            }
            stats.device_faults.add(10);
            stats.ram_peak_bytes.raise(50);
            slot.mark_unmanaged();
            true
        });
    }
    assert_eq!(slot.device_faults.get(), 5);
    let total = file.sum().unwrap();
    assert_eq!(
        (total.processes, total.unmanaged, total.uncounted),
        (4, 3, 0)
    );
    assert_eq!(total.stats.device_faults.get(), 35);
    assert_eq!(total.stats.ram_peak_bytes.get(), 250);
    assert_eq!(total.stats.devices[1].pages.get(), 7);
}

#[test]
fn a_process_with_two_images_adds_its_events_but_not_its_peaks() {
    let dir = Dir::new("uhmm-images");
    let file = StatsFile::create(&dir.0).unwrap();
    for (faults, peak, held) in [(3, 70, 9), (4, 60, 2)] {
        // What the first image holds is gone once the second runs, as after `exec`.
        let image = claim(file.path()).unwrap();
        image.limbo_faults.add(faults);
        image.ram_peak_bytes.raise(peak);
        image.devices[0].pages.set(held);
    }
    let total = file.sum().unwrap();
    assert_eq!(total.processes, 1);
    assert_eq!(total.stats.limbo_faults.get(), 7);
    assert_eq!(total.stats.ram_peak_bytes.get(), 70);
    assert_eq!(total.stats.devices[0].pages.get(), 2);
}

#[test]
fn a_child_needs_neither_the_path_nor_the_file_again() {
    let dir = Dir::new("uhmm-unlinked");
    let file = StatsFile::create(&dir.0).unwrap();
    let slot = claim(file.path()).unwrap();
    std::fs::remove_file(file.path()).unwrap();
    in_child(|| {
        slot.reclaim_after_fork().is_ok() && {
            slot.busy_pages.add(1);
            true
        }
    });
    assert_eq!(file.sum().unwrap().stats.busy_pages.get(), 1);
}

#[test]
fn processes_beyond_the_last_slot_run_uncounted() {
    let dir = Dir::new("uhmm-full");
    let file = StatsFile::create(&dir.0).unwrap();
    // Leaves room for one slot: the file is what says how many there are.
    let open = std::fs::OpenOptions::new()
        .write(true)
        .open(file.path())
        .unwrap();
    open.set_len(2 * PAGE_SIZE as u64).unwrap();
    let first = claim(file.path()).unwrap();
    let second = claim(file.path()).unwrap();
    first.device_faults.add(1);
    second.device_faults.add(1);
    assert_eq!(
        (first.device_faults.get(), second.device_faults.get()),
        (1, 1)
    );
    open.set_len((MAX_SLOTS + 1) * PAGE_SIZE as u64).unwrap();
    let total = file.sum().unwrap();
    assert_eq!((total.processes, total.uncounted), (1, 1));
    assert_eq!(total.stats.device_faults.get(), 1);
}

#[test]
fn private_counters_are_zeroed_in_a_child() {
    let slot = Slot::private().unwrap();
    slot.device_faults.add(3);
    in_child(|| slot.reclaim_after_fork().is_ok() && slot.device_faults.add(1) == 1);
    assert_eq!(slot.device_faults.get(), 3);
}

#[test]
fn files_are_private_sparse_removed_and_cleaned_up_after_killed_commands() {
    use std::os::unix::fs::MetadataExt;
    let dir = Dir::new("uhmm-stale");
    let stale = dir.0.join("uhmm-stats-1-1");
    std::fs::write(&stale, "left behind").unwrap();
    let file = StatsFile::create(&dir.0).unwrap();
    assert!(!stale.exists());
    let metadata = file.path().metadata().unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert!(metadata.blocks() * 512 <= 2 * PAGE_SIZE as u64);
    // A second command leaves the first one's file alone.
    let second = StatsFile::create(&dir.0).unwrap();
    assert!(file.path().exists() && second.path().exists());
    let path = file.path().to_owned();
    drop(file);
    assert!(!path.exists());
}

#[test]
fn what_is_no_stats_file_is_refused() {
    let dir = Dir::new("uhmm-wrong");
    let path = dir.0.join("wrong");
    for content in [vec![], vec![0; PAGE_SIZE], vec![1; 3 * PAGE_SIZE]] {
        std::fs::write(&path, content).unwrap();
        assert_eq!(
            claim(&path).unwrap_err().kind(),
            std::io::ErrorKind::InvalidData
        );
    }
    assert!(claim(&dir.0.join("missing")).is_err());
}
