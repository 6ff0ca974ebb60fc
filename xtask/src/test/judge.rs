//! Judges a machine's run: what it said on its serial console, and how it ended.

use std::collections::BTreeSet;

use regex::Regex;

use super::TestResult;
use super::scenarios::{Pattern, Scenario};
use crate::serial::{self, Report};

/// How a machine's run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With Plinth's last word.
    Status(u32),
    /// Off, without it.
    Died,
    /// Killed, because its time was over or it wrote without end.
    Killed,
}

/// All results of a run; `prefix` is `MACHINE/SCENARIO`.
pub fn judge(
    prefix: &str,
    scenario: &Scenario,
    lines: &[String],
    ending: Ending,
) -> Vec<TestResult> {
    let mut results = vec![judge_ending(prefix, scenario.status, ending)];
    for expectation in scenario.expectations {
        let name = format!("{prefix}/{}", expectation.name);
        let failure = check(&expectation.pattern, lines, ending).err();
        results.push(TestResult { name, failure });
    }
    results.extend(reported(prefix, scenario.speaker(), scenario.suites, lines));
    results
}

fn judge_ending(prefix: &str, expected: u32, ending: Ending) -> TestResult {
    let name = format!("{prefix}/end");
    match ending {
        Ending::Status(status) if status == expected => TestResult::ok(name),
        Ending::Status(status) => {
            TestResult::failed(name, format!("status {status}, not {expected}"))
        }
        Ending::Died => TestResult::failed(name, "the machine went off without its last line"),
        Ending::Killed => TestResult::failed(name, "the machine hung and was killed"),
    }
}

/// Whether the lines are as the pattern says; if not, why.
fn check(pattern: &Pattern, lines: &[String], ending: Ending) -> Result<(), String> {
    match pattern {
        Pattern::Has(text) => match lines.iter().any(|line| line.contains(text)) {
            true => Ok(()),
            false => Err(format!("no line with {text:?}")),
        },
        Pattern::Matches(pattern) => {
            let pattern = Regex::new(pattern).map_err(|error| format!("a bad pattern: {error}"))?;
            match lines.iter().any(|line| pattern.is_match(line)) {
                true => Ok(()),
                false => Err(format!("no line matches {pattern}")),
            }
        }
        Pattern::Ordered(texts) => {
            let mut rest = lines.iter();
            match texts
                .iter()
                .find(|text| !rest.any(|line| line.contains(**text)))
            {
                None => Ok(()),
                Some(text) => Err(format!("no line with {text:?} in its place")),
            }
        }
        Pattern::Never(text) => match (lines.iter().find(|line| line.contains(text)), ending) {
            (Some(line), _) => Err(format!("there is {line:?}")),
            (None, Ending::Status(_)) => Ok(()),
            // What did not happen yet could still have happened.
            (None, _) => Err("the machine did not get to its end".to_owned()),
        },
        Pattern::Only(text, known) => {
            let mut such = lines.iter().filter(|line| line.contains(text)).peekable();
            if such.peek().is_none() {
                return Err(format!("no line with {text:?}"));
            }
            match such.find(|line| !known.iter().any(|known| line.contains(known))) {
                Some(line) => Err(format!("there is {line:?}")),
                None if matches!(ending, Ending::Status(_)) => Ok(()),
                None => Err("the machine did not get to its end".to_owned()),
            }
        }
    }
}

/// What is known of one source of reports: a guest, or the kernel.
#[derive(Default)]
struct Source {
    name: String,
    suites: BTreeSet<String>,
    announced: usize,
    results: Vec<TestResult>,
}

/// The results that suites inside the machine reported, and failures for all that is missing or too much. Lines without a
/// guest's prefix are `speaker`'s.
fn reported(prefix: &str, speaker: &str, expected: &[&str], lines: &[String]) -> Vec<TestResult> {
    let named = |source: Option<String>| source.unwrap_or_else(|| speaker.to_owned());
    let mut sources: Vec<Source> = expected
        .iter()
        .map(|name| Source {
            name: (*name).to_owned(),
            ..Source::default()
        })
        .collect();
    for report in lines.iter().filter_map(|line| serial::parse(line)) {
        match report {
            Report::Suite {
                source,
                name,
                tests,
            } => {
                let source = find(&mut sources, named(source));
                if source.suites.insert(name.clone()) {
                    source.announced = source.announced.saturating_add(tests);
                } else {
                    let result = format!("{prefix}/{}::suite-{name}", source.name);
                    source.announced = source.announced.saturating_add(1);
                    source
                        .results
                        .push(TestResult::failed(result, "announced twice"));
                }
            }
            Report::Test {
                source,
                name,
                failure,
            } => {
                let source = find(&mut sources, named(source));
                source.results.push(TestResult {
                    name: format!("{prefix}/{}::{name}", source.name),
                    failure,
                });
            }
            Report::End(_) => {}
        }
    }
    sources
        .into_iter()
        .flat_map(|source| close(prefix, source))
        .collect()
}

fn find(sources: &mut Vec<Source>, name: String) -> &mut Source {
    let index = sources
        .iter()
        .position(|source| source.name == name)
        .unwrap_or_else(|| {
            sources.push(Source {
                name,
                ..Source::default()
            });
            sources.len() - 1
        });
    &mut sources[index]
}

/// The most failures that one source's missing results can make; a guest must not be able to announce billions.
const MOST_MISSING: usize = 1000;

fn close(prefix: &str, source: Source) -> Vec<TestResult> {
    let Source {
        name,
        suites,
        announced,
        mut results,
    } = source;
    let came = results.len();
    if suites.is_empty() {
        results.push(TestResult::failed(
            format!("{prefix}/{name}::suite"),
            "no suite was announced",
        ));
    }
    for missing in (came..announced).take(MOST_MISSING) {
        results.push(TestResult::failed(
            format!("{prefix}/{name}::missing-{missing}"),
            "its result never came",
        ));
    }
    if came > announced && !suites.is_empty() {
        let why = format!("{came} results, but {announced} announced");
        results.push(TestResult::failed(format!("{prefix}/{name}::surplus"), why));
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::scenarios::Expectation;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    /// The names of the failed ones among all results.
    fn failed(results: &[TestResult]) -> Vec<&str> {
        results
            .iter()
            .filter(|result| result.failure.is_some())
            .map(|result| result.name.as_str())
            .collect()
    }

    const NOTHING: Scenario = Scenario {
        name: "s",
        suites: &[],
        expectations: &[],
        ..crate::test::scenarios::DEFAULT
    };

    #[test]
    fn the_ending_is_a_test() {
        for (ending, good) in [
            (Ending::Status(0), true),
            (Ending::Status(1), false),
            (Ending::Died, false),
            (Ending::Killed, false),
        ] {
            let results = judge("m/s", &NOTHING, &[], ending);
            assert_eq!(results.len(), 1);
            assert_eq!(
                (results[0].name.as_str(), results[0].failure.is_none()),
                ("m/s/end", good)
            );
        }
        let panics = Scenario {
            status: 101,
            ..NOTHING
        };
        assert!(failed(&judge("m/s", &panics, &[], Ending::Status(101))).is_empty());
    }

    #[test]
    fn expectations_hold_or_not() {
        const PATTERNS: &[(Pattern, bool)] = &[
            (Pattern::Has("two"), true),
            (Pattern::Has("four"), false),
            (Pattern::Matches("^t.o$"), true),
            (Pattern::Matches("^w"), false),
            (Pattern::Matches("("), false),
            (Pattern::Ordered(&["one", "three"]), true),
            (Pattern::Ordered(&["three", "one"]), false),
            (Pattern::Ordered(&["one", "one"]), false),
            (Pattern::Never("four"), true),
            (Pattern::Never("one"), false),
            (Pattern::Only("t", &["three", "tw"]), true),
            (Pattern::Only("t", &["two", "one"]), false),
            (Pattern::Only("four", &["four"]), false),
        ];
        let lines = lines("one\ntwo\nthree");
        for (pattern, good) in PATTERNS {
            assert_eq!(
                check(pattern, &lines, Ending::Status(0)).is_ok(),
                *good,
                "{pattern:?}"
            );
        }
        for pattern in [Pattern::Never("four"), Pattern::Only("t", &["t"])] {
            assert!(check(&pattern, &lines, Ending::Killed).is_err());
        }
        const SCENARIO: Scenario = Scenario {
            expectations: &[Expectation {
                name: "speaks",
                pattern: Pattern::Has("four"),
            }],
            ..NOTHING
        };
        assert_eq!(
            failed(&judge("m/s", &SCENARIO, &lines, Ending::Status(0))),
            ["m/s/speaks"]
        );
    }

    #[test]
    fn a_full_suite_passes() {
        let text = "[a] suite x: 2 tests\n[a] test one ... ok\n[a] suite y: 1 test\n[a] test two ... ok\nnoise\n\
                    [    0.5] INFO  cpu0 suite k: 1 tests\n[a] test three ... ok\n[    0.6] INFO  cpu0 test one ... ok";
        let results = reported("m/s", "kernel", &["a", "kernel"], &lines(text));
        assert!(failed(&results).is_empty(), "{results:?}");
        let names: Vec<_> = results.iter().map(|result| result.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "m/s/a::one",
                "m/s/a::two",
                "m/s/a::three",
                "m/s/kernel::one"
            ]
        );
    }

    #[test]
    fn what_has_no_prefix_is_the_speakers() {
        let text = "suite one: 1 test\ntest a ... ok\nsuite two: 1 test\ntest b ... ok";
        let results = reported("m/s", "conformance", &["conformance"], &lines(text));
        assert_eq!(
            results,
            [
                TestResult::ok("m/s/conformance::a"),
                TestResult::ok("m/s/conformance::b")
            ]
        );
    }

    #[test]
    fn results_that_never_come_fail() {
        let results = reported(
            "m/s",
            "kernel",
            &["a"],
            &lines("[a] suite x: 3 tests\n[a] test one ... ok"),
        );
        assert_eq!(failed(&results), ["m/s/a::missing-1", "m/s/a::missing-2"]);
        assert_eq!(
            failed(&reported("m/s", "kernel", &["a"], &[])),
            ["m/s/a::suite"]
        );
        let flood = reported(
            "m/s",
            "kernel",
            &[],
            &lines("[a] suite x: 99999999999999 tests"),
        );
        assert_eq!(flood.len(), MOST_MISSING);
    }

    #[test]
    fn surplus_and_unannounced_results_fail() {
        let text = "[a] suite x: 1 tests\n[a] test one ... ok\n[a] test two ... ok";
        assert_eq!(
            failed(&reported("m/s", "kernel", &[], &lines(text))),
            ["m/s/a::surplus"]
        );
        assert_eq!(
            failed(&reported(
                "m/s",
                "kernel",
                &[],
                &lines("[a] test one ... ok")
            )),
            ["m/s/a::suite"]
        );
        let twice = "[a] suite x: 1 tests\n[a] suite x: 1 tests\n[a] test one ... ok";
        assert_eq!(
            failed(&reported("m/s", "kernel", &[], &lines(twice))),
            ["m/s/a::suite-x"]
        );
    }

    #[test]
    fn a_failure_keeps_its_reason() {
        let text = "[a] suite x: 1 tests\n[a] test one ... FAILED: it is 3";
        assert_eq!(
            reported("m/s", "kernel", &[], &lines(text)),
            [TestResult::failed("m/s/a::one", "it is 3")]
        );
    }
}
