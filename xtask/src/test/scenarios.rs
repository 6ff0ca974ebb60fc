//! The machine tests: which machine boots with what, and what must be seen.
//!
//! A boot is expensive, so a scenario checks as much as one boot can show. To add one, add an entry to [`ALL`].

use crate::machine::Kind;

/// One boot of one machine.
#[derive(Debug)]
pub struct Scenario {
    /// Its name in test names.
    pub name: &'static str,
    /// The machines it runs on. What runs on `qemu-svm` runs on `qemu-kvm`, too, where that is asked for.
    pub machines: &'static [Kind],
    /// The number of CPUs.
    pub smp: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// The kernel command line.
    pub command_line: &'static str,
    /// The guests in the image; all of them if `None`.
    pub guests: Option<&'static [&'static str]>,
    /// The machine is killed after so many seconds.
    pub timeout: u64,
    /// The status in the machine's last line.
    pub status: u32,
    /// Who must announce and report a suite of tests: guests, or `kernel`.
    pub suites: &'static [&'static str],
    /// What must be seen on the serial console.
    pub expectations: &'static [Expectation],
}

/// Something that must be seen; a test of its own.
#[derive(Debug)]
pub struct Expectation {
    /// The test's name.
    pub name: &'static str,
    /// What it looks for.
    pub pattern: Pattern,
}

/// What is looked for in the lines of the serial console.
#[derive(Debug)]
#[allow(
    dead_code,
    reason = "the vocabulary of scenarios, all of it under test in `judge`"
)]
pub enum Pattern {
    /// A line contains this.
    Has(&'static str),
    /// A line matches this regular expression.
    Matches(&'static str),
    /// One line after the other contains these, in this order.
    Ordered(&'static [&'static str]),
    /// No line contains this, and the machine got to its end.
    Never(&'static str),
}

impl Scenario {
    /// Whether it runs on a kind of machine.
    pub fn runs_on(&self, kind: Kind) -> bool {
        let like = if kind == Kind::QemuKvm {
            Kind::QemuSvm
        } else {
            kind
        };
        self.machines.contains(&like)
    }

    /// Whether a test of this scenario, called `job` on its machine, can have a name that contains `filter`.
    pub fn may_match(&self, job: &str, filter: &str) -> bool {
        let prefix = format!("{job}/");
        if prefix.contains(filter) || filter.starts_with(&prefix) {
            return true;
        }
        let known = self
            .expectations
            .iter()
            .map(|expectation| expectation.name)
            .chain(["end"]);
        if known
            .map(|name| format!("{prefix}{name}"))
            .any(|name| name.contains(filter))
        {
            return true;
        }
        // The names of the tests inside are known only afterwards.
        let inner = filter.rsplit('/').next().unwrap_or_default();
        let outer = filter.strip_suffix(inner).unwrap_or_default();
        !self.suites.is_empty() && prefix.ends_with(outer)
    }
}

/// What most scenarios have in common.
pub const DEFAULT: Scenario = Scenario {
    name: "",
    machines: &[Kind::QemuSvm, Kind::BochsVmx, Kind::BochsSvm],
    smp: 2,
    memory: 1024,
    command_line: "",
    guests: None,
    timeout: 180,
    status: 0,
    suites: &[],
    expectations: &[],
};

/// All scenarios.
pub static ALL: &[Scenario] = &[Scenario {
    name: "boot",
    expectations: &[
        Expectation {
            name: "last-line",
            pattern: Pattern::Has("plinth: machine ends, status 0"),
        },
        Expectation {
            name: "no-panic",
            pattern: Pattern::Never("panicked at"),
        },
    ],
    ..DEFAULT
}];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_fit_for_files() {
        let mut names = BTreeSet::new();
        for scenario in ALL {
            assert!(names.insert(scenario.name), "{} twice", scenario.name);
            assert!(
                scenario
                    .name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-'),
                "{}",
                scenario.name
            );
            assert!(!scenario.machines.is_empty() && scenario.smp > 0 && scenario.timeout > 0);
            let expectations: BTreeSet<_> = scenario
                .expectations
                .iter()
                .map(|expectation| expectation.name)
                .collect();
            assert_eq!(
                expectations.len(),
                scenario.expectations.len(),
                "{}",
                scenario.name
            );
            for expectation in scenario.expectations {
                if let Pattern::Matches(pattern) = expectation.pattern {
                    regex::Regex::new(pattern).unwrap();
                }
            }
        }
    }

    #[test]
    fn kvm_stands_in_for_svm() {
        let scenario = Scenario {
            machines: &[Kind::QemuSvm],
            ..DEFAULT
        };
        assert!(scenario.runs_on(Kind::QemuKvm) && !scenario.runs_on(Kind::BochsVmx));
    }

    #[test]
    fn filters_match_what_can_come() {
        let plain = Scenario {
            expectations: &[Expectation {
                name: "speaks",
                pattern: Pattern::Has("x"),
            }],
            ..DEFAULT
        };
        for (filter, good) in [
            ("", true),
            ("boot", true),
            ("m/boot/speaks", true),
            ("speaks", true),
            ("hello", false),
            ("host/", false),
        ] {
            assert_eq!(plain.may_match("m/boot", filter), good, "{filter}");
        }
        let suite = Scenario {
            suites: &["hello"],
            ..DEFAULT
        };
        for (filter, good) in [
            ("hello::a", true),
            ("m/boot/hello::a", true),
            ("boot/hello", true),
            ("n/boot/hello", false),
        ] {
            assert_eq!(suite.may_match("m/boot", filter), good, "{filter}");
        }
    }
}
