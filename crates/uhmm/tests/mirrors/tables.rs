//! The page table in software, told of changes wherever they are made: R18 holds for it.

use crate::heap::heap_calls;
use uhmm::mirror::{DeviceTable, Event, Invalidation, Mapped, PageTable};
use uhmm_core::addr::PAGE_SIZE;

#[test]
fn a_table_is_told_without_a_call_of_the_heap() {
    const EVERYTHING: usize = 1 << 47;
    const APART: usize = 37 << 21;
    let mut table = PageTable::new(0, EVERYTHING);
    let ranges = [
        5 * APART..5 * APART + PAGE_SIZE,
        6 * APART + 100 * PAGE_SIZE..300 * APART,
        0..EVERYTHING,
    ];
    for range in ranges {
        let entries = [Mapped::ram(true); 600];
        (0..500).for_each(|part| table.set(part * APART, &entries));
        let what = Invalidation {
            address: range.start,
            len: range.len(),
            event: Event::Fork,
        };
        let calls = heap_calls(|| table.invalidate(&what));
        assert_eq!(calls, 0);
        for part in 0..500 {
            for page in [0, 99, 100, 599] {
                let at = part * APART + page * PAGE_SIZE;
                let expected = match range.contains(&at) {
                    true => Mapped::Nothing,
                    false => Mapped::ram(true),
                };
                assert_eq!(table.at(at), expected, "{at:#x} in {range:x?}");
            }
        }
    }
}
