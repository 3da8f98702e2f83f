//! Users without privilege: the signal engine needs none.

use crate::{End, World, alone, builder, child, wait};
use uhmm::Engine;

const NOBODY: libc::uid_t = 65534;

/// Gives all privilege up, if there is any.
fn become_nobody() {
    // SAFETY: changes what this process may do, which is a child of its own.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
            assert_eq!(libc::setresgid(NOBODY, NOBODY, NOBODY), 0);
            assert_eq!(libc::setresuid(NOBODY, NOBODY, NOBODY), 0);
        }
        // As after an `exec` by such a user: it may look at its own memory.
        libc::prctl(libc::PR_SET_DUMPABLE, 1);
    }
}

fn faults_of_the_kernel_are_open_to_all() -> bool {
    let setting = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    setting.is_ok_and(|setting| setting.trim() == "1")
}

#[test]
fn a_user_without_privilege_has_the_signal_engine_and_is_pointed_to_it() {
    let _alone = alone();
    let end = wait(child(|| {
        become_nobody();
        let world = World::new(4000);
        world.write_all();
        world.check_all();
        match builder(Engine::Thread).build() {
            Ok(_) => assert!(faults_of_the_kernel_are_open_to_all()),
            Err(error) => {
                let line = error.to_string();
                assert!(line.contains("UHMM_ENGINE=signal"), "{line}");
                assert_eq!(line.lines().count(), 1, "{line}");
            }
        }
        // Its children have it too, opened anew by the same user.
        let pid = child(|| {
            world.check_all();
            world.write_all();
            world.check_all();
            0
        });
        world.write_all();
        assert_eq!(wait(pid), End::Exit(0));
        world.check_all();
        0
    }));
    assert_eq!(end, End::Exit(0));
}

/// A space that root has built goes on in the children of a user without privilege.
#[test]
fn a_process_that_gives_its_privilege_up_can_fork_on() {
    let _alone = alone();
    let world = World::new(2000);
    world.write_all();
    let end = wait(child(|| {
        become_nobody();
        let pid = child(|| {
            world.check_all();
            world.write_all();
            world.check_all();
            0
        });
        i32::from(wait(pid) != End::Exit(0))
    }));
    assert_eq!(end, End::Exit(0));
}
