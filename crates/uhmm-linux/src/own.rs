//! Which memory of the process is uhmm's own, by address: what serves faults lives there, so it is never
//! managed, whoever asks for it (R18).
//!
//! Every [`Mapping`](crate::mapping::Mapping) is on the list for as long as it lives, and so are counters; others
//! put what they have there for good. (The names of mappings would say the same, but many kernels keep none.) The list is of a
//! fixed size and takes no lock and no memory, because the mappings of an allocator are on it too. One that
//! finds no place is not protected: there are some for every mapping of a few dozen spaces.
//!
//! # Protocol
//!
//! | `start` | means | written by |
//! | --- | --- | --- |
//! | 0 | free | who takes the range off |
//! | 1 | somebody is writing `end` | who has found it free |
//! | else | from here to `end` is ours | the same, after `end` |

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::*};

const PLACES: usize = 512;
const FREE: usize = 0;
const TAKEN: usize = 1;

struct Place {
    start: AtomicUsize,
    end: AtomicUsize,
}

static OWN: [Place; PLACES] = [const {
    Place {
        start: AtomicUsize::new(FREE),
        end: AtomicUsize::new(0),
    }
}; PLACES];

/// Puts a range on the list.
pub fn add(range: Range<usize>) {
    let take = |place: &&Place| {
        let free = place.start.load(Relaxed) == FREE;
        free && place
            .start
            .compare_exchange(FREE, TAKEN, Acquire, Relaxed)
            .is_ok()
    };
    if let Some(place) = OWN.iter().find(take) {
        place.end.store(range.end, Relaxed);
        place.start.store(range.start, Release);
    }
}

/// Takes the range that begins here off the list.
pub(crate) fn remove(start: usize) {
    if let Some(place) = OWN.iter().find(|place| place.start.load(Relaxed) == start) {
        place.start.store(FREE, Release);
    }
}

/// All of them.
fn all() -> impl Iterator<Item = Range<usize>> {
    OWN.iter().filter_map(|place| {
        let start = place.start.load(Acquire);
        (start > TAKEN).then(|| start..place.end.load(Relaxed))
    })
}

/// Whether any byte of a range is ours.
pub fn overlaps(range: &Range<usize>) -> bool {
    all().any(|own| range.start < own.end && own.start < range.end)
}

/// The parts of a range that are not ours, in order.
pub fn outside(range: Range<usize>) -> Vec<Range<usize>> {
    let mut parts = vec![range];
    for own in all() {
        let of = |part: Range<usize>| {
            let within = |at: usize| at.clamp(part.start, part.end);
            [part.start..within(own.start), within(own.end)..part.end]
        };
        let left = parts.into_iter().flat_map(of);
        parts = left.filter(|part| !part.is_empty()).collect();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Mapping;

    /// Addresses that no mapping of this process has.
    const BASE: usize = 1 << 60;

    #[test]
    fn what_is_left_of_a_range_is_around_what_is_ours() {
        for own in [10..20, 30..40, 40..50] {
            add(BASE + own.start..BASE + own.end);
        }
        let left = |range: Range<usize>| -> Vec<_> {
            let parts = outside(BASE + range.start..BASE + range.end).into_iter();
            parts
                .map(|part| (part.start - BASE, part.end - BASE))
                .collect()
        };
        assert_eq!(left(0..60), [(0, 10), (20, 30), (50, 60)]);
        assert_eq!(left(0..10), [(0, 10)]);
        assert_eq!(left(12..18), []);
        assert_eq!(left(15..35), [(20, 30)]);
        assert_eq!(left(30..50), []);
        let is_ours = |range: Range<usize>| overlaps(&(BASE + range.start..BASE + range.end));
        assert!(is_ours(9..11) && is_ours(49..60) && !is_ours(20..30) && !is_ours(50..60));
        [10, 30, 40]
            .into_iter()
            .for_each(|start| remove(BASE + start));
        assert_eq!(left(0..60), [(0, 60)]);
    }

    #[test]
    fn mappings_are_on_it_while_they_live() {
        let mapping = Mapping::anonymous(3 << 12, c"uhmm-test").unwrap();
        let range = mapping.address()..mapping.address() + mapping.len();
        assert!(overlaps(&(range.end - 1..range.end)));
        drop(mapping);
        // Another test's mapping may be there by now.
        let same = |place: &Place| place.start.load(Relaxed) == range.start;
        assert!(OWN.iter().filter(|place| same(place)).count() <= 1);
    }

    #[test]
    fn threads_take_places_of_their_own() {
        let range = |n: usize| BASE + (n << 20)..BASE + (n << 20) + 4096;
        std::thread::scope(|scope| {
            for thread in 1..5 {
                scope.spawn(move || {
                    for _ in 0..1000 {
                        (1..9).for_each(|n| add(range(thread * 100 + n)));
                        assert!((1..9).all(|n| overlaps(&range(thread * 100 + n))));
                        (1..9).for_each(|n| remove(range(thread * 100 + n).start));
                        assert!(!(1..9).any(|n| overlaps(&range(thread * 100 + n))));
                    }
                });
            }
        });
    }
}
