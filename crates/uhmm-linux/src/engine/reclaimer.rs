//! The reclaimer's thread, which every engine has beside whatever serves its faults.

use super::crew::Duty;
use crate::mmu::LinuxMmu;
use std::sync::atomic::AtomicBool;
use uhmm_core::Space;

/// What the threads of an engine share.
pub(crate) trait Stoppable {
    /// The space that the engine serves.
    fn space(&self) -> &Space<LinuxMmu>;

    /// Set when the engine is to stop.
    fn stop(&self) -> &AtomicBool;
}

/// Runs reclaim until the engine stops.
pub(crate) struct Reclaimer;

impl<S: Stoppable> Duty<S> for Reclaimer {
    fn run(shared: &S) {
        shared.space().run_reclaimer(shared.stop());
    }
}
