//! The machine tests: which machine boots with what, and what must be seen.
//!
//! A boot is expensive, so a scenario checks as much as one boot can show. To add one, add an entry to [`ALL`].

use crate::image;
use crate::machine::Kind;
use crate::script::Step;

/// One boot of one machine.
#[derive(Debug)]
pub struct Scenario {
    /// Its name in test names.
    pub name: &'static str,
    /// The machines it runs on. What runs on `qemu-svm` runs on `qemu-kvm`, too, where that is asked for.
    pub machines: &'static [Kind],
    /// The number of CPUs.
    pub smp: u32,
    /// Memory in MiB; less where the machine cannot have so much.
    pub memory: u32,
    /// The kernel command line.
    pub command_line: &'static str,
    /// The guests in the image, besides that of the first domain; all of them if `None`.
    pub guests: Option<&'static [&'static str]>,
    /// What is typed at the control guest.
    pub script: &'static [Step<'static>],
    /// The machine is killed after so many seconds.
    pub timeout: u64,
    /// The status in the machine's last line.
    pub status: u32,
    /// Who must announce and report suites of tests: guests, or `kernel`.
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

    /// Whose reports of tests have no prefix: those of the guest that has the machine to itself, or else the kernel's.
    pub fn speaker(&self) -> &'static str {
        image::option(self.command_line, "root").unwrap_or("kernel")
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
    script: &[],
    timeout: 400,
    status: 0,
    suites: &[],
    expectations: &[],
};

/// What every machine that fails on purpose must and must not say.
const fn failing(
    name: &'static str,
    command_line: &'static str,
    machines: &'static [Kind],
    expectations: &'static [Expectation],
) -> Scenario {
    Scenario {
        name,
        command_line,
        machines,
        expectations,
        guests: Some(&[]),
        status: 101,
        ..DEFAULT
    }
}

/// All scenarios.
pub static ALL: &[Scenario] = &[
    // The fixed list of guests, two at a time, each ending as it should.
    Scenario {
        name: "boot",
        suites: &["privileged", "realmode", "trespass"],
        expectations: &[
            has(
                "all-as-expected",
                "all guests have ended, 0 of them otherwise than expected",
            ),
            Expectation {
                name: "no-panic",
                pattern: Pattern::Never("panic at"),
            },
            Expectation {
                name: "no-unexpected-exit",
                pattern: Pattern::Never("unexpected exit"),
            },
            Expectation {
                name: "loader-tells-its-steps",
                pattern: Pattern::Ordered(&[
                    "boot volume",
                    "kernel.elf, ",
                    "modules.tar, ",
                    "physical memory mapped with pages of up to",
                    "leaving firmware",
                    "Plinth",
                ]),
            },
            Expectation {
                name: "both-cpus-are-listed",
                pattern: Pattern::Ordered(&[
                    "2 CPUs, ",
                    "cpu0 has APIC id 0",
                    "cpu1 has APIC id 1",
                ]),
            },
            matches("tsc-is-calibrated", r"TSC [1-9]\d*\.\d{3} MHz by "),
            matches(
                "capabilities-are-shown",
                r"(VMX|SVM) is used; what this CPU offers:",
            ),
            has("lacks-are-told-in-words", "  -- "),
            Expectation {
                name: "two-guests-at-a-time",
                pattern: Pattern::Ordered(&[
                    r#""hello" starts"#,
                    r#""hello" ended"#,
                    r#""privileged" starts"#,
                ]),
            },
            has("hello-prints", "[hello] Hello from a guest of Plinth."),
            matches("hello-ends-by-itself", r#""hello" ended: status 0, rip 0x"#),
            matches(
                "hello-sees-the-hypervisor",
                r"\[hello\] hypervisor PlinthPlinth",
            ),
            has(
                "spin-reaches-interrupts-off",
                "[spin] spinning with interrupts off",
            ),
            matches(
                "spin-ends-by-its-budget",
                r#""spin" ended: time budget used up"#,
            ),
            matches(
                "spin-is-preempted",
                r#""spin" ran \d+ ms, was preempted [1-9]\d* times"#,
            ),
            matches(
                "crash-is-a-triple-fault",
                r#""crash" ended: triple fault, rip 0x"#,
            ),
            matches(
                "trespass-is-a-nested-fault",
                r#""trespass" ended: write to unmapped guest-physical 0x400000, rip 0x"#,
            ),
            has("memory-comes-back", "guests' memory left: 0 frames"),
        ],
        ..DEFAULT
    },
    // One CPU for two guests: the one that never yields must not keep the other from its end.
    Scenario {
        name: "one-cpu",
        smp: 1,
        command_line: "guests=spin,hello",
        guests: Some(&["spin", "hello"]),
        expectations: &[
            Expectation {
                name: "hello-ends-beside-spin",
                pattern: Pattern::Ordered(&[
                    r#""spin" starts"#,
                    r#""hello" ended: status 0"#,
                    r#""spin" ended: time budget"#,
                ]),
            },
            has("one-cpu-is-listed", "1 CPU, "),
        ],
        ..DEFAULT
    },
    // What the user got wrong is said, and costs nothing else.
    Scenario {
        name: "wrong-guest",
        machines: &[Kind::QemuSvm],
        command_line: "guests=hello,nobody nonsense=1",
        guests: Some(&["hello"]),
        status: 1,
        expectations: &[
            has(
                "missing-module-is-named",
                "the module archive has no guests/nobody",
            ),
            has("unknown-word-is-named", "`nonsense=1` is not known"),
            matches("the-other-guest-runs", r#""hello" ended: status 0"#),
        ],
        ..DEFAULT
    },
    Scenario {
        name: "kernel",
        command_line: "test=cpu",
        guests: Some(&["hello"]),
        suites: &["kernel"],
        expectations: &[
            Expectation {
                name: "no-panic",
                pattern: Pattern::Never("panic at"),
            },
            Expectation {
                name: "shows-the-state-of-a-refused-entry",
                pattern: Pattern::Ordered(&["as it was when it left for good:", "[hello] Hello"]),
            },
        ],
        ..DEFAULT
    },
    failing(
        "panic",
        "test=panic",
        &[Kind::QemuSvm],
        &[
            Expectation {
                name: "says-why",
                pattern: Pattern::Matches(
                    r"ERROR cpu1 panic at kernel/src/selftest/fatal.rs:\d+: a panic on purpose, at depth 3$",
                ),
            },
            Expectation {
                name: "names-callers-in-order",
                pattern: Pattern::Ordered(&[
                    "fatal::panics_innermost+0x",
                    "fatal::panics_between+0x",
                    "fatal::panics_outermost+0x",
                    "launch::other_cpu+0x",
                    "smp::entry+0x",
                ]),
            },
        ],
    ),
    failing(
        "fault",
        "test=fault",
        &[Kind::QemuSvm],
        &[
            Expectation {
                name: "decodes-the-error",
                pattern: Pattern::Has(
                    "page fault: write to 0xdeadbeef008, which is not mapped (error code 0x2)",
                ),
            },
            Expectation {
                name: "shows-registers",
                pattern: Pattern::Ordered(&["cr2 00000deadbeef008", " rax ", " r15 "]),
            },
            Expectation {
                name: "names-the-function",
                pattern: Pattern::Ordered(&[
                    "fatal::faults+0x",
                    "launch::other_cpu+0x",
                    "smp::entry+0x",
                ]),
            },
        ],
    ),
    failing(
        "stack",
        "test=stack",
        &[Kind::QemuSvm, Kind::BochsVmx],
        &[
            Expectation {
                name: "says-that-the-stack-overflowed",
                pattern: Pattern::Ordered(&["double fault", "the stack has overflowed"]),
            },
            Expectation {
                name: "names-the-function",
                pattern: Pattern::Ordered(&[
                    "fatal::overflows_deeper+0x",
                    " times more",
                    "fatal::overflows+0x",
                    "smp::entry+0x",
                ]),
            },
        ],
    ),
    failing(
        "again",
        "test=again",
        &[Kind::QemuSvm],
        &[Expectation {
            name: "says-so",
            pattern: Pattern::Has("plinth: panic during a panic: a second panic on purpose"),
        }],
    ),
    Scenario {
        name: "reboot",
        command_line: "test=end end=reboot",
        guests: Some(&[]),
        machines: &[Kind::QemuSvm],
        ..DEFAULT
    },
];

const fn has(name: &'static str, text: &'static str) -> Expectation {
    Expectation {
        name,
        pattern: Pattern::Has(text),
    }
}

const fn matches(name: &'static str, regex: &'static str) -> Expectation {
    Expectation {
        name,
        pattern: Pattern::Matches(regex),
    }
}

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
