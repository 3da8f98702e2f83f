//! A page that is dropped is claimed until its memory is gone. If its entry said None before that, a
//! migration could take it for a hole, bring it back and take it again, and its old bytes with it.

use crate::hook::{HookedMmu, Op};
use std::sync::Arc;
use uhmm_core::addr::{PageNo, PageRange};
use uhmm_core::fault::{Access, Scratch};
use uhmm_core::migrate::{MigrateVma, Select};
use uhmm_core::{MIN_BUDGET_PAGES, Space};
use uhmm_mirror::MirrorDevice;
use uhmm_sim::SimMmu;

const PAGE: PageNo = PageNo(1 << 20);

fn migrate(space: &Space<HookedMmu>, select: Select) {
    let args = MigrateVma {
        pages: PageRange::new(PAGE, 1),
        select,
        owner: None,
        except: None,
        fault_page: None,
    };
    let mut migration = space.migrate_vma(&args).unwrap();
    if select == Select::SYSTEM {
        let _ = migration.allocate(0);
    } else {
        migration.to_system();
    }
    migration.copy().pages().finalize();
}

fn serve(space: &Space<HookedMmu>, access: Access) {
    space.fault(PAGE, access, &mut Scratch::default());
}

#[test]
fn r10_what_was_discarded_does_not_come_back_by_a_migration() {
    let all = PageRange::new(PAGE, 64);
    let mmu = HookedMmu::new(SimMmu::new(all, MIN_BUDGET_PAGES));
    let device = Box::new(MirrorDevice::new(1 << 20));
    let space = Arc::new(Space::new(mmu, all, MIN_BUDGET_PAGES, vec![device]).unwrap());
    serve(&space, Access::Write);
    space
        .mmu()
        .touch_write(PAGE, |data| data.0.fill(7))
        .unwrap();
    let migrator = Arc::clone(&space);
    space.mmu().before(Op::Discard, move || {
        migrate(&migrator, Select::SYSTEM);
        migrate(&migrator, Select::DEVICE_PRIVATE);
        migrate(&migrator, Select::SYSTEM);
    });
    let discard = PageRange::new(PAGE, 1);
    space.inside().unwrap().discard(discard).unwrap();
    while space.mmu().touch_read(PAGE).is_err() {
        serve(&space, Access::Read);
    }
    assert_eq!(space.mmu().touch_read(PAGE).unwrap().0[0], 0);
    space.check_invariants();
}
