//! What must hold while nothing is in flight, checked. For tests.

use crate::addr::DeviceAddr;
use crate::entry::State;
use crate::mmu::Mmu;
use crate::space::Space;
use std::collections::BTreeMap;

impl<M: Mmu> Space<M> {
    /// Checks everything that must hold while nothing is in flight, and panics where it does not.
    /// For tests: it walks all that is in use, and nobody else may use the space meanwhile.
    ///
    /// - each device page in use has one reference, and the entry of its owner names it (R1), or it is
    ///   one of the `held` pages that a driver has;
    /// - each pagemap's references are its pages in use, and its own while it is alive (R2);
    /// - each page in limbo has a frame of its own, in use and not free;
    /// - the charge is the number of pages mapped, in limbo, exclusive and free;
    /// - pins acquired are pins released and pins in entries (R12).
    pub fn check_invariants_but(&self, held: usize) {
        self.free_buried();
        let (mut system, mut limbo, mut duplicates) = (0, 0, 0);
        let (mut exclusive, mut pins, mut pinned) = (0, 0, 0);
        let mut named = BTreeMap::<DeviceAddr, _>::new();
        self.entries.for_each_used(self.range(), |page, word| {
            let state = word.state();
            pins += u64::from(word.pins());
            pinned += u64::from(word.pins() > 0);
            match state {
                State::System { duplicate, .. } => {
                    system += 1;
                    duplicates += usize::from(duplicate.is_some());
                }
                State::Limbo(slot) => {
                    limbo += 1;
                    assert_eq!(self.pool.claim_limbo(slot).slot(), slot);
                }
                State::Exclusive { frame, .. } => {
                    exclusive += 1;
                    assert_eq!(self.pool.claim_limbo(frame).slot(), frame);
                }
                State::Migrating => panic!("{page:?} is in flight while nothing should be"),
                State::None | State::Private(_) | State::Coherent(_) | State::Poisoned => {}
            }
            if let Some(at) = state.device_page() {
                let other = named.insert(at, page);
                assert_eq!(other, None, "{at:?} is {page:?}'s and another's");
            }
        });
        assert_eq!(
            self.entries.mapped(),
            system,
            "the counts of mapped pages add up"
        );
        assert_eq!(
            self.duplicates.load(std::sync::atomic::Ordering::Acquire),
            duplicates,
            "the count of duplicates adds up"
        );
        let stats = self.stats();
        assert_eq!(
            stats.pins_acquired.get() + stats.page_gets.get(),
            stats.pins_released.get() + stats.page_puts.get() + pins,
            "what was pinned and not released is pinned (R12)"
        );
        assert_eq!(stats.pinned_pages.get(), pinned, "pinned pages add up");
        assert_eq!(
            self.kept(),
            pinned as usize + exclusive,
            "what is kept from reclaim is pinned or exclusive"
        );
        assert_eq!(
            self.pool.exclusive_frames(),
            exclusive,
            "a frame that was made exclusive is some page's"
        );
        let in_limbo: u32 = self
            .pool
            .blocks()
            .map(|block| self.pool.in_limbo(block).count_ones())
            .sum();
        assert_eq!(in_limbo, limbo, "a frame is held by no page");
        assert_eq!(
            self.pool.charged(),
            system + limbo as usize + exclusive + self.pool.free_frames(),
            "the charge is what exists"
        );
        let mut held_by_drivers = 0;
        for (device, memory) in self.devices() {
            for page in memory.used() {
                let at = DeviceAddr { device, page };
                match memory.owner(page) {
                    Some(owner) if named.get(&at) == Some(&owner) => {
                        named.remove(&at);
                        assert_eq!(memory.count(page), 1, "{at:?} is held by its entry alone");
                    }
                    // A driver's, or one that its entry has let go of and that somebody holds.
                    _ => held_by_drivers += 1,
                }
            }
            for chunk in memory.chunks() {
                assert_eq!(
                    chunk.references(),
                    chunk.used().count() + usize::from(chunk.is_alive()),
                    "references are pages in use"
                );
            }
            assert_eq!(
                self.device_stats(device).pages.get() as usize,
                memory.used().count(),
                "the pages of device {device} are accounted for"
            );
        }
        assert_eq!(named, BTreeMap::new(), "entries name device pages in use");
        assert_eq!(held_by_drivers, held, "device pages that no entry names");
    }

    /// [`Space::check_invariants_but`], with no page in a driver's hands.
    pub fn check_invariants(&self) {
        self.check_invariants_but(0);
    }
}
