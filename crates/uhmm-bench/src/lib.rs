//! Measurements, each beside its physical floor.
//!
//! A figure is worth little alone: the same code differs by a factor of two between two machines,
//! and by a tenth between two minutes. So each is measured in turns with its floor, what the bare
//! primitive costs, in one run; what counts is the ratio of the two. `docs/benchmarking.md` has the
//! method and the meaning of each figure.
//!
//! Every benchmark checks the bytes that it reads back: a fast wrong answer is an [`Error`].

mod bulk;
mod content;
mod cpu;
mod dmirror;
mod error;
mod faults;
mod floor;
mod machine;
mod managed;
mod oversubscribe;
mod report;
mod rounds;
mod signal_floor;

pub use error::Error;
pub use report::{Figure, Unit};

use rounds::Rounds;

/// What to measure.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The benchmarks to run, of [`choices`]; none means all.
    pub names: Vec<String>,
    /// Less memory and fewer repeats: for a look and for tests, not for figures to keep.
    pub quick: bool,
}

/// What happens while benchmarks run.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// What is being done now, for a person who waits.
    Progress(&'a str),
    /// A benchmark has ended.
    Figure(&'a Figure),
}

/// Benchmarks that are set up, and run, together.
struct Group {
    names: &'static [&'static str],
    run: fn(&mut Rounds<'_>) -> Result<(), Error>,
}

const GROUPS: &[Group] = &[
    Group {
        names: &["first_touch"],
        run: faults::first_touch,
    },
    Group {
        names: &["first_touch_uffd"],
        run: faults::first_touch_uffd,
    },
    Group {
        names: &["fault_private_mirror"],
        run: faults::private_mirror,
    },
    Group {
        names: &["fault_private_lz4"],
        run: faults::private_lz4,
    },
    Group {
        names: &["fault_signal_mirror"],
        run: faults::signal_mirror,
    },
    Group {
        names: &["fault_signal_lz4"],
        run: faults::signal_lz4,
    },
    Group {
        names: &["sequential_mirror"],
        run: faults::sequential_mirror,
    },
    Group {
        names: &["bulk_to_device", "bulk_to_system"],
        run: bulk::private,
    },
    Group {
        names: &["bulk_to_coherent", "bulk_from_coherent"],
        run: bulk::coherent,
    },
    Group {
        names: &oversubscribe::NAMES,
        run: oversubscribe::walks,
    },
    Group {
        names: &dmirror::NAMES,
        run: dmirror::commands,
    },
    Group {
        names: &["dmirror_fault_signal"],
        run: dmirror::signal_fault,
    },
];

/// Names for all benchmarks that begin with them.
const SETS: &[&str] = &["dmirror"];

/// The names of all benchmarks, in the order in which they run.
pub fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().flat_map(|group| group.names.iter().copied())
}

/// What [`Options::names`] may have: the name of a benchmark, or of a set of them.
pub fn choices() -> impl Iterator<Item = &'static str> {
    names().chain(SETS.iter().copied())
}

/// Whether `choice` is the benchmark `name`, or a set that has it.
fn is_chosen(choice: &str, name: &str) -> bool {
    let rest = name.strip_prefix(choice);
    choice == name || SETS.contains(&choice) && rest.is_some_and(|rest| rest.starts_with('_'))
}

/// Runs benchmarks, and tells `watch` of each figure as it is found.
///
/// # Errors
/// [`Error`]; figures that were found before it stand.
pub fn run(options: &Options, watch: &mut dyn FnMut(Event<'_>)) -> Result<(), Error> {
    if let Some(unknown) = options
        .names
        .iter()
        .find(|name| !choices().any(|known| known == name.as_str()))
    {
        return Err(Error::UnknownName(unknown.clone()));
    }
    let wanted = |name: &str| {
        options.names.is_empty() || options.names.iter().any(|choice| is_chosen(choice, name))
    };
    let mut rounds = Rounds::new(options.quick, &wanted, watch);
    rounds.say("warming memory up");
    machine::warm_up(options.quick)?;
    for group in GROUPS {
        if group.names.iter().any(|name| wanted(name)) {
            (group.run)(&mut rounds)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_set_has_what_begins_with_its_name() {
        let chosen = |choice| names().filter(move |name| is_chosen(choice, name)).count();
        assert_eq!(chosen("dmirror"), dmirror::NAMES.len() + 1);
        assert_eq!(chosen("dmirror_fault"), 1);
        assert_eq!(chosen("first_touch"), 1);
        assert_eq!(chosen("dmir"), 0);
        assert!(SETS.iter().all(|set| chosen(set) > 1));
    }

    #[test]
    fn an_unknown_name_is_refused_before_anything_runs() {
        let options = Options {
            names: vec!["first_touch".into(), "last_touch".into()],
            quick: true,
        };
        let error = run(&options, &mut |event| panic!("{event:?}")).unwrap_err();
        assert!(error.to_string().contains("\"last_touch\""), "{error}");
    }
}
