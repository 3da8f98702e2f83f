//! What a row of the tables says.

use std::fmt;

/// One rule, broken in one way.
#[derive(Debug)]
pub struct Mutant {
    /// The rule's name in `docs/rules.md`; a word, for what is not a rule of the design.
    pub rule: &'static str,
    /// What is wrong with the changed core, in one line.
    pub what: &'static str,
    /// The change; most need one edit.
    pub edits: &'static [Edit],
    /// The tests that must fail.
    pub tests: Tests,
}

/// A change of one file.
#[derive(Debug)]
pub struct Edit {
    /// From the root of the workspace.
    pub file: &'static str,
    /// Text that is there exactly once, line breaks and indentation included.
    pub find: &'static str,
    /// What stands there instead.
    pub replace: &'static str,
}

/// A shorter way to write an [`Edit`].
pub const fn edit(file: &'static str, find: &'static str, replace: &'static str) -> Edit {
    Edit {
        file,
        find,
        replace,
    }
}

/// One of the workspace's test programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The package that has it.
    pub package: &'static str,
    /// Its name: `NAME` of `tests/NAME.rs` or `tests/NAME/main.rs`.
    pub test: &'static str,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.test, self.package)
    }
}

/// Some tests of one test program.
#[derive(Clone, Copy, Debug)]
pub struct Tests {
    /// The program.
    pub target: Target,
    /// Parts of the tests' names: one that has any of these words is run.
    pub filter: &'static str,
}

/// Tests of the core on the simulated MMU, by parts of their names.
pub const fn rules(filter: &'static str) -> Tests {
    Tests {
        target: Target {
            package: "uhmm-sim",
            test: "rules",
        },
        filter,
    }
}
