//! Rounds: ours and its floor in turns, several times over; medians of them.

use crate::error::Error;
use crate::report::{Figure, Unit};
use crate::{Event, cpu};
use std::time::Instant;

/// Seconds that ours took, and seconds that its floor took, in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) ours: f64,
    pub(crate) floor: f64,
}

/// What all benchmarks of one run share.
pub(crate) struct Rounds<'a> {
    quick: bool,
    wanted: &'a dyn Fn(&str) -> bool,
    watch: &'a mut dyn FnMut(Event<'_>),
    cpus: Vec<usize>,
}

impl<'a> Rounds<'a> {
    pub(crate) fn new(
        quick: bool,
        wanted: &'a dyn Fn(&str) -> bool,
        watch: &'a mut dyn FnMut(Event<'_>),
    ) -> Self {
        Self {
            quick,
            wanted,
            watch,
            cpus: cpu::allowed(),
        }
    }

    /// Tells who waits what is being done.
    pub(crate) fn say(&mut self, what: &str) {
        (self.watch)(Event::Progress(what));
    }

    pub(crate) fn wanted(&self, name: &str) -> bool {
        (self.wanted)(name)
    }

    /// The CPUs that this process may use.
    pub(crate) fn cpus(&self) -> Vec<usize> {
        self.cpus.clone()
    }

    /// `full`, or `quick` in a quick run.
    pub(crate) fn size(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// Runs `round` once to warm up, then several times, and gives the medians of the figures
    /// `names`, of which each round measures a pair, over `pages` pages.
    pub(crate) fn run<const N: usize>(
        &mut self,
        names: [&'static str; N],
        unit: Unit,
        pages: usize,
        mut round: impl FnMut(u64) -> Result<[Pair; N], Error>,
    ) -> Result<(), Error> {
        let rounds = self.size(9, 3);
        let mut pairs = Vec::with_capacity(rounds);
        for i in 0..=rounds {
            let joined = names.join(", ");
            match i {
                0 => self.say(&format!("{joined}: warming up")),
                _ => self.say(&format!("{joined}: round {i} of {rounds}")),
            }
            let pair = round(i as u64)?;
            if i > 0 {
                pairs.push(pair);
            }
        }
        for (i, name) in names.into_iter().enumerate() {
            if !self.wanted(name) {
                continue;
            }
            let sorted = |of: fn(&Pair) -> f64| {
                let mut figures: Vec<f64> = pairs
                    .iter()
                    .map(|pair| unit.of(of(&pair[i]), pages))
                    .collect();
                figures.sort_unstable_by(f64::total_cmp);
                figures
            };
            let (ours, floor) = (sorted(|pair| pair.ours), sorted(|pair| pair.floor));
            let value = quantile(&ours, 0.5);
            (self.watch)(Event::Figure(&Figure {
                name,
                unit,
                value,
                floor: quantile(&floor, 0.5),
                spread: (quantile(&ours, 0.75) - quantile(&ours, 0.25)) / value,
            }));
        }
        Ok(())
    }
}

/// The value below which a share `q` of `sorted`, which is not empty, lies.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// Seconds that `what` takes on this thread, which is kept on one CPU meanwhile.
pub(crate) fn seconds(what: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
    let _pinned = cpu::Pinned::to_last();
    let start = Instant::now();
    what()?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_values() {
        assert_eq!(quantile(&[7.0], 0.25), 7.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[1.0, 3.0], 0.5), 2.0);
    }

    #[test]
    fn the_warm_up_counts_for_nothing_and_the_median_for_all() {
        let mut found = Vec::new();
        let mut watch = |event: Event<'_>| {
            if let Event::Figure(figure) = event {
                found.push(*figure);
            }
        };
        let wanted = |name: &str| name == "b";
        let mut rounds = Rounds::new(true, &wanted, &mut watch);
        let times = [100.0, 3.0, 1.0, 2.0];
        rounds
            .run(["a", "b"], Unit::MicrosPerPage, 1_000_000, |i| {
                let ours = times[i as usize];
                Ok([Pair { ours, floor: 0.5 }; 2])
            })
            .unwrap();
        assert_eq!(found.len(), 1);
        let b = found[0];
        assert_eq!((b.name, b.value, b.floor, b.ratio()), ("b", 2.0, 0.5, 4.0));
        assert_eq!(b.spread, 0.5);
    }
}
