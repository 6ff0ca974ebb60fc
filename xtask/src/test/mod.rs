//! Tests everything, on the host and in machines. A line a test; the last line is `N passed, N failed`.
//!
//! Whatever goes wrong on the way (a build, a missing package) counts as a failed test, so that the last line always
//! comes and never lies.

mod disturb;
pub mod drive;
pub mod host;
pub mod judge;
mod libtest;
mod scenarios;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread::ScopedJoinHandle;

use clap::Args;

use crate::Install;
use crate::bench;
use crate::compile::{self, Build};
use crate::linux;
use crate::machine::Kind;
use crate::provision::packages::{self, Tools};
use crate::workspace::Workspace;
use scenarios::Scenario;

/// The options of `cargo xtask test`.
#[derive(Debug, Args)]
pub struct Options {
    /// Use only this machine for the machine tests; may be given several times
    #[arg(long, value_name = "MACHINE")]
    on: Vec<Kind>,
    /// Run only tests whose name contains this, such as host/plinth-abi, bochs-vmx/boot or kernel::frames
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Try the properties of the host's tests with so many random cases, other ones in each run; without this, the same few
    /// hundred each time
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    cases: Option<u32>,
    #[command(flatten)]
    install: Install,
}

/// The machines that are tested unless `--on` names others.
const MACHINES: [Kind; 3] = [Kind::QemuSvm, Kind::BochsVmx, Kind::BochsSvm];
/// How many machines run at once.
const AT_ONCE: usize = 2;

/// One test and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestResult {
    /// The full name, such as `bochs-vmx/boot/hello::prints`.
    pub name: String,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

impl TestResult {
    /// A test that passed.
    pub fn ok(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            failure: None,
        }
    }

    /// A test that failed.
    pub fn failed(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            failure: Some(why.into()),
        }
    }

    /// The line that tells it.
    fn line(&self) -> String {
        match &self.failure {
            None => format!("test {} ... ok", self.name),
            Some(why) => format!("test {} ... FAILED: {}", self.name, why.replace('\n', " ")),
        }
    }
}

/// The results so far.
#[derive(Debug, Default)]
struct Tally {
    names: BTreeSet<String>,
    passed: usize,
    /// The lines of those that failed.
    failures: Vec<String>,
}

impl Tally {
    /// Counts a result; the line to print. A name that was there before makes it a failure.
    fn count(&mut self, result: TestResult) -> String {
        let result = if self.names.insert(result.name.clone()) {
            result
        } else {
            TestResult::failed(result.name, "a second result of this name")
        };
        let line = result.line();
        if result.failure.is_none() {
            self.passed += 1;
        } else {
            self.failures.push(line.clone());
        }
        line
    }

    /// What failed, once more: thousands of lines may have come since.
    fn summary(&self) -> String {
        let mut summary = String::new();
        for line in &self.failures {
            summary.push_str(line);
            summary.push('\n');
        }
        summary + &self.last_line()
    }

    fn last_line(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failures.len())
    }

    fn is_good(&self) -> bool {
        self.failures.is_empty() && self.passed > 0
    }
}

/// Prints results as they come, from any thread.
struct Reporter<'a> {
    filter: &'a str,
    tally: Mutex<Tally>,
}

impl Reporter<'_> {
    /// Counts and prints the results that the filter lets through.
    fn report(&self, results: Vec<TestResult>) {
        let mut tally = self
            .tally
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        for result in results
            .into_iter()
            .filter(|result| result.name.contains(self.filter))
        {
            println!("{}", tally.count(result));
        }
    }

    /// Counts and prints a failure outside any test; no filter hides it.
    fn trouble(&self, name: &str, error: &anyhow::Error) {
        eprintln!("error: {error:#}");
        let why = error
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned();
        let mut tally = self
            .tally
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        println!("{}", tally.count(TestResult::failed(name, why)));
    }
}

/// What a worker does on a machine.
#[derive(Clone, Copy)]
enum Job {
    /// A scenario.
    Scenario(Kind, &'static Scenario),
    /// The benchmark, compared with the baseline.
    Bench,
}

impl Job {
    fn name(&self) -> String {
        match self {
            Self::Scenario(kind, scenario) => format!("{kind}/{}", scenario.name),
            Self::Bench => bench::test_prefix().trim_end_matches('/').to_owned(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Scenario(kind, _) => *kind,
            Self::Bench => bench::TESTED,
        }
    }
}

/// `cargo xtask test`.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    let reporter = Reporter {
        filter: &options.filter,
        tally: Mutex::default(),
    };
    let figures = bench::test_names(&workspace);
    let jobs = jobs(scenarios::ALL, &figures, &options.on, &options.filter);
    std::thread::scope(|scope| {
        let host = scope.spawn(|| {
            host::test(&workspace, &options.filter, options.cases, |results| {
                reporter.report(results)
            });
        });
        // The images are fetched and built meanwhile: often enough one of both has nothing to do for a second CPU.
        if !jobs.is_empty() {
            machines(&workspace, jobs, options, &reporter, host);
        }
    });
    let tally = reporter
        .tally
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if tally.names.is_empty() {
        eprintln!("error: no test ran\n  try: another --filter");
    }
    println!("{}", tally.summary());
    Ok(if tally.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is to be run: the benchmark, whose tests' names are in `figures` as far as they are known, and the scenarios, on the
/// machines that were asked for and as far as the filter can match there.
fn jobs(all: &'static [Scenario], figures: &[String], on: &[Kind], filter: &str) -> Vec<Job> {
    let kinds = if on.is_empty() { &MACHINES[..] } else { on };
    let prefix = bench::test_prefix();
    let measures = kinds.contains(&bench::TESTED)
        && (prefix.contains(filter)
            || filter.starts_with(&prefix)
            || figures.iter().any(|name| name.contains(filter)));
    let pairs = all
        .iter()
        .flat_map(|scenario| kinds.iter().map(move |&kind| (kind, scenario)))
        .filter(|(kind, scenario)| {
            scenario.runs_on(*kind)
                && scenario.may_match(&format!("{kind}/{}", scenario.name), filter)
        })
        .map(|(kind, scenario)| Job::Scenario(kind, scenario));
    // First, for it is long, and nothing should have to wait for it at the end.
    measures
        .then_some(Job::Bench)
        .into_iter()
        .chain(pairs)
        .collect()
}

/// Runs the machine tests; as long as the host's tests run, one machine at a time fewer.
fn machines(
    workspace: &Workspace,
    jobs: Vec<Job>,
    options: &Options,
    reporter: &Reporter<'_>,
    host: ScopedJoinHandle<'_, ()>,
) {
    let permission = options.install.permission();
    let mut kinds: Vec<Kind> = jobs.iter().map(Job::kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut tools: Vec<(Kind, Tools)> = Vec::new();
    for kind in kinds {
        match packages::provide(kind, permission) {
            Ok(found) => tools.push((kind, found)),
            Err(error) => reporter.trouble(&format!("{kind}/provision"), &error.into()),
        }
    }
    let build = match compile::build(workspace, permission) {
        Ok(build) => build,
        Err(error) => return reporter.trouble("machine/build", &error.into()),
    };
    let kinds = linuxes(&jobs);
    let linux = match linux::machines(workspace, &kinds, &linux::Options::default(), permission) {
        Ok(linux) => linux,
        Err(error) => {
            // A failure of its own, and one of each scenario that names what is not there; the others run.
            reporter.trouble("linux/provision", &error.into());
            Vec::new()
        }
    };
    let jobs = Mutex::new(jobs.into_iter());
    let work = || worker(workspace, &build, &linux, &tools, &jobs, reporter);
    std::thread::scope(|scope| {
        for _ in 1..AT_ONCE {
            scope.spawn(work);
        }
        scope.spawn(|| {
            if let Err(panic) = host.join() {
                std::panic::resume_unwind(panic);
            }
            work();
        });
    });
}

/// The machines with Linux that scenarios name.
fn linuxes(jobs: &[Job]) -> Vec<linux::Kind> {
    let names = |job: &Job| match job {
        Job::Scenario(_, scenario) => scenario.guests.unwrap_or_default(),
        Job::Bench => &[],
    };
    let is_named = |kind: &linux::Kind| jobs.iter().any(|job| names(job).contains(&kind.name()));
    linux::Kind::ALL.into_iter().filter(is_named).collect()
}

/// Runs one job after the other. The machines are bound to this thread.
fn worker(
    workspace: &Workspace,
    build: &Build,
    linux: &[linux::Machine],
    tools: &[(Kind, Tools)],
    jobs: &Mutex<impl Iterator<Item = Job>>,
    reporter: &Reporter<'_>,
) {
    loop {
        let next = jobs
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .next();
        let Some(job) = next else { break };
        let Some((_, tools)) = tools.iter().find(|(kind, _)| *kind == job.kind()) else {
            continue;
        };
        let results = match job {
            Job::Scenario(kind, scenario) => {
                drive::run(workspace, build, linux, tools, kind, scenario)
            }
            Job::Bench => bench::test(workspace, build, tools),
        };
        match results {
            Ok(results) => reporter.report(results),
            Err(error) => reporter.trouble(&format!("{}/start", job.name()), &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut tally = Tally::default();
        assert!(!tally.is_good(), "nothing ran");
        assert_eq!(tally.count(TestResult::ok("a")), "test a ... ok");
        assert!(tally.is_good());
        assert_eq!(
            tally.count(TestResult::failed("b", "x\ny")),
            "test b ... FAILED: x y"
        );
        assert!(!tally.is_good());
        assert_eq!(
            tally.summary(),
            "test b ... FAILED: x y\n1 passed, 1 failed"
        );
    }

    #[test]
    fn a_second_result_of_a_name_fails() {
        let mut tally = Tally::default();
        tally.count(TestResult::ok("a"));
        assert!(tally.count(TestResult::ok("a")).contains("FAILED"));
        assert_eq!(tally.last_line(), "1 passed, 1 failed");
    }

    #[test]
    fn linux_is_brought_where_a_scenario_names_it() {
        static NONE: Scenario = scenarios::DEFAULT;
        static NAMED: Scenario = Scenario {
            guests: Some(&["hello", "linux-debian"]),
            ..scenarios::DEFAULT
        };
        let job = |scenario| Job::Scenario(Kind::QemuSvm, scenario);
        assert!(linuxes(&[Job::Bench, job(&NONE)]).is_empty());
        assert_eq!(linuxes(&[job(&NONE), job(&NAMED)]), [linux::Kind::Debian]);
    }

    #[test]
    fn jobs_follow_machines_and_filter() {
        let names = |on: &[Kind], filter: &str| {
            jobs(
                scenarios::ALL,
                &["bench/qemu-svm/cpuid".to_owned()],
                on,
                filter,
            )
            .iter()
            .map(Job::name)
            .collect::<Vec<_>>()
        };
        assert!(names(&[], "").contains(&"bochs-vmx/boot".to_owned()));
        assert_eq!(names(&[Kind::QemuSvm], "/boot/"), ["qemu-svm/boot"]);
        assert_eq!(names(&[], "bochs-vmx/boot/"), ["bochs-vmx/boot"]);
        assert!(names(&[], "host/").is_empty());
        let bench = "bench/qemu-svm";
        assert!(names(&[], "").contains(&bench.to_owned()));
        assert_eq!(names(&[], "bench/"), [bench]);
        assert_eq!(names(&[], "qemu-svm/cpuid"), [bench]);
        // A figure that the baseline does not have yet.
        assert_eq!(names(&[], "bench/qemu-svm/new"), [bench]);
        assert!(names(&[Kind::BochsVmx], "bench/").is_empty());
    }
}
