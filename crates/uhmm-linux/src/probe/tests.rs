//! What is said about machines that one does not have.

use super::*;

/// A machine on which all is well.
fn healthy() -> Facts {
    Facts {
        release: "6.18.44-generic".into(),
        userfaultfd: Ok(()),
        user_mode_only: Ok(()),
        device_node: Err(Errno::ACCESS),
        features: Some(0x1ffff),
        pagemap_scan: Ok(()),
        seccomp: false,
        ptrace_capability: true,
        huge_pages: Some("madvise".into()),
        max_map_count: Some(65_530),
        overcommit: Some(0),
        address_space_limit: None,
    }
}

/// The one line about a machine that differs in what `change` does.
fn complaint(change: impl FnOnce(&mut Facts)) -> String {
    let mut facts = healthy();
    change(&mut facts);
    let line = judge(&facts).usable().unwrap_err();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("to mend it, "), "{line}");
    line
}

#[test]
fn nothing_is_said_against_a_healthy_machine() {
    let report = judge(&healthy());
    assert_eq!(report.usable(), Ok(()));
    assert!(
        report
            .checks
            .iter()
            .all(|c| c.verdict == Verdict::Ok && c.mend.is_none())
    );
}

#[test]
fn old_kernels_are_named() {
    let line = complaint(|facts| {
        facts.release = "6.1.0-18-amd64".into();
        facts.features = Some(0x1fff);
        facts.pagemap_scan = Err(Errno::NOTTY);
    });
    assert!(
        line.contains("Linux 6.1.0-18-amd64 is older than 6.8"),
        "{line}"
    );
    assert!(line.contains("6.8 or newer"));
    // Each of the things that it lacks is reason enough.
    let old = |change: fn(&mut Facts)| complaint(change);
    assert!(old(|f| f.features = Some(0xffff)).contains("lacks UFFDIO_MOVE"));
    assert!(old(|f| f.features = Some(0x1bfff)).contains("lacks UFFDIO_POISON"));
    assert!(old(|f| f.features = Some(0x1fffe)).contains("lacks UFFD_FEATURE_PAGEFAULT_FLAG_WP"));
    assert!(old(|f| f.pagemap_scan = Err(Errno::NOTTY)).contains("lacks PAGEMAP_SCAN"));
}

#[test]
fn versions_are_compared_as_numbers() {
    let usable = |release: &str| {
        let facts = Facts {
            release: release.into(),
            features: None,
            ..healthy()
        };
        judge(&facts).usable().is_ok()
    };
    assert!(usable("6.8.0") && usable("6.10.1") && usable("7.0-rc1") && usable("10.0"));
    assert!(!usable("6.7.12") && !usable("5.19") && !usable("4.8.0"));
    assert!(usable("unknown"), "no version is no proof of an old kernel");
    let backport = Facts {
        release: "5.14.0-611.el9".into(),
        ..healthy()
    };
    assert_eq!(judge(&backport).usable(), Ok(()));
}

#[test]
fn a_permission_that_is_missing_is_told_from_a_filter_and_a_kernel_without() {
    let closed = |facts: &mut Facts, errno, user_mode_only| {
        facts.userfaultfd = Err(errno);
        facts.user_mode_only = user_mode_only;
        facts.ptrace_capability = false;
    };
    let sysctl = complaint(|f| closed(f, Errno::PERM, Ok(())));
    assert!(sysctl.contains("lacks CAP_SYS_PTRACE"), "{sysctl}");
    assert!(sysctl.contains("vm.unprivileged_userfaultfd=1"), "{sysctl}");
    let namespace = complaint(|f| {
        closed(f, Errno::PERM, Ok(()));
        f.ptrace_capability = true;
    });
    assert!(namespace.contains("user namespaces"), "{namespace}");
    let docker = complaint(|f| closed(f, Errno::PERM, Err(Errno::PERM)));
    assert!(docker.contains("seccomp"), "{docker}");
    let hidden = complaint(|f| {
        closed(f, Errno::NOSYS, Err(Errno::NOSYS));
        f.seccomp = true;
    });
    assert!(hidden.contains("security filter"), "{hidden}");
    let not_built = complaint(|f| closed(f, Errno::NOSYS, Err(Errno::NOSYS)));
    assert!(not_built.contains("CONFIG_USERFAULTFD"), "{not_built}");
}

#[test]
fn the_device_node_stands_in_for_the_system_call() {
    let facts = Facts {
        userfaultfd: Err(Errno::PERM),
        device_node: Ok(()),
        ..healthy()
    };
    assert_eq!(judge(&facts).usable(), Ok(()));
}

#[test]
fn each_engine_is_judged_by_what_it_needs() {
    let engines = |change: fn(&mut Facts)| {
        let mut facts = healthy();
        change(&mut facts);
        let report = judge(&facts);
        let thread = report
            .checks
            .iter()
            .find(|check| check.name == "thread engine");
        let thread = thread.unwrap().verdict == Verdict::Ok;
        assert_eq!(thread, report.usable().is_ok(), "`uhmm run` has that one");
        (thread, report.has_signal_engine())
    };
    assert_eq!(engines(|_| ()), (true, true));
    assert_eq!(
        engines(|facts| facts.userfaultfd = Err(Errno::PERM)),
        (false, true),
        "a user without privilege"
    );
    let nothing_opens = |facts: &mut Facts| {
        facts.userfaultfd = Err(Errno::PERM);
        facts.user_mode_only = Err(Errno::PERM);
    };
    assert_eq!(engines(nothing_opens), (false, false), "a filter");
    let without_signals = |facts: &mut Facts| {
        facts.features = Some(0x1ffff & !u64::from(UFFD_FEATURE_SIGBUS));
    };
    assert_eq!(engines(without_signals), (true, false));
    let old = |facts: &mut Facts| facts.features = Some(0xffff);
    assert_eq!(engines(old), (false, false));
}

#[test]
fn settings_that_only_get_in_the_way_are_warnings() {
    let facts = Facts {
        huge_pages: Some("never".into()),
        max_map_count: Some(1000),
        overcommit: Some(2),
        address_space_limit: Some(1 << 30),
        ..healthy()
    };
    let report = judge(&facts);
    assert_eq!(report.usable(), Ok(()));
    let warnings = report
        .checks
        .iter()
        .filter(|c| c.verdict == Verdict::Warning);
    assert!(warnings.clone().all(|check| check.mend.is_some()));
    assert_eq!(warnings.count(), 4);
}

#[test]
fn this_machine_can_be_probed() {
    let facts = facts::gather();
    assert!(version(&facts.release).is_some(), "{facts:?}");
    assert!(facts::machine_memory() > 1 << 20);
}
