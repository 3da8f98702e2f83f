//! The minimum stay (R20): what was just brought somewhere is left there for a moment, so that whoever
//! asked for it gets to use it before somebody else's wish takes it away again.
//!
//! The time of arrival is kept in the words of pages, as a *stamp*: the space's time in ticks of about
//! a millisecond, of which a few bits are kept. So it comes round about twice a second, and a page that
//! has been still for a whole number of rounds looks young for a moment; it is passed by once more than
//! it had to be, and nothing else comes of it.

use std::time::Duration;

/// The least time that a page stays where it was brought, if there is another to take instead.
///
/// Long enough for whoever asked for a page to go and use it: a thread that was waiting has been woken
/// and has run. Short beside the time in which a device is filled anew (32 MiB at 4 GiB/s: 8 ms), so
/// that a program that works its way through more than fits does not wait for it.
pub const MIN_STAY: Duration = Duration::from_nanos(MIN_TICKS << TICK_SHIFT);

const MIN_TICKS: u64 = 4;
/// A tick is 2^20 ns: 1.05 ms.
const TICK_SHIFT: u32 = 20;

/// Bits of a stamp.
pub(crate) const STAMP_BITS: u32 = 9;
const MASK: u64 = (1 << STAMP_BITS) - 1;

/// The time in ticks, as far as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

impl Stamp {
    /// The stamp of a time.
    pub(crate) fn of(now: Duration) -> Self {
        Self::from_bits(now.as_nanos() as u64 >> TICK_SHIFT)
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits & MASK)
    }

    /// The low [`STAMP_BITS`] bits.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// Whether what was stamped so has not stayed for [`MIN_STAY`] at `now`.
    pub(crate) const fn is_young(self, now: Self) -> bool {
        // Of the first and the last tick only a part has passed.
        now.0.wrapping_sub(self.0) & MASK <= MIN_TICKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_young_has_stayed_for_the_minimum() {
        let step = Duration::from_micros(50);
        for start in [0, 7, 535, 536, 123_456_789].map(Duration::from_millis) {
            let stamp = Stamp::of(start);
            let ages = (0..4 * MIN_STAY.as_micros() as u32 / 50).map(|i| step * i);
            let young: Vec<_> = ages
                .filter(|&age| stamp.is_young(Stamp::of(start + age)))
                .collect();
            assert_eq!(young[0], Duration::ZERO);
            let last = *young.last().unwrap();
            let tick = Duration::from_nanos(1 << TICK_SHIFT);
            assert!(last + step > MIN_STAY && last < MIN_STAY + tick, "{last:?}");
        }
    }

    #[test]
    fn a_stamp_that_has_come_round_is_young_only_for_a_moment() {
        let stamp = Stamp::of(Duration::ZERO);
        let round = 1_u32 << STAMP_BITS;
        let tick = Duration::from_nanos(1 << TICK_SHIFT);
        let young = (0..round).filter(|&i| stamp.is_young(Stamp::of(tick * (round + i))));
        assert_eq!(young.count() as u64, MIN_TICKS + 1);
    }
}
