//! `cargo xtask coverage`: the lines that the host tests run, of those that are built for them.
//!
//! The pinned compiler counts how often code runs; LLVM's own programs tell that by line. What is only for tests is no line here. It says
//! what no test on the host runs, not what the others check.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;

use crate::Install;
use crate::compile::KERNEL_PACKAGE;
use crate::progress::{self, Step};
use crate::provision::targets::{self, Compiler};
use crate::stats::{by_directory, code_lines};
use crate::test::host;
use crate::workspace::Workspace;

/// What makes the compiler count.
const FLAGS: &str = "-Cinstrument-coverage";

/// `cargo xtask coverage`.
pub fn main(install: &Install) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    let tools = targets::llvm_tools(install.permission())?;
    let place = workspace.target.join("coverage");
    let runs = place.join("runs");
    // What was counted before is not of these programs.
    if runs.exists() {
        fs::remove_dir_all(&runs).with_context(|| format!("cannot remove {}", runs.display()))?;
    }
    let programs = run(&workspace, &place, &runs)?;
    let reported = report(&workspace, &tools, &runs, &programs)?;
    let mut kernel = Vec::new();
    let mut packages = Vec::new();
    for package in &workspace.packages {
        let files: BTreeMap<_, _> = code_lines(&package.roots)?
            .into_iter()
            .map(|(path, code)| {
                let count = Count::of(&code, reported.get(&path));
                (path, count)
            })
            .collect();
        if package.name == KERNEL_PACKAGE {
            kernel = by_directory(&files);
        }
        packages.push((package.name.clone(), sum(files.values())));
    }
    packages.sort_by(|(a, _), (b, _)| a.cmp(b));
    print!("{}", table("kernel", &kernel));
    println!();
    print!("{}", table("package", &packages));
    Ok(ExitCode::SUCCESS)
}

/// Runs the host tests, which write what they counted to `runs`; the tests' programs.
fn run(workspace: &Workspace, place: &Path, runs: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let host = Compiler::ask()?.host;
    let mut programs = BTreeSet::new();
    for (package, mut command) in host::commands(workspace) {
        command
            // With a target named, the flags are not for build scripts and macros.
            .args(["--target", &host, "--target-dir"])
            .arg(place.join("build"))
            .env("RUSTFLAGS", FLAGS)
            .env("LLVM_PROFILE_FILE", runs.join("%p-%m.profraw"));
        let step = Step::start(format!("host tests of {package}, counted"));
        let output = progress::capture(&mut command, &step, None)?;
        if !output.status.success() {
            step.done("FAILED");
            anyhow::bail!(
                "the tests of {package} failed ({})\n  try: cargo xtask test --filter host/{package}/",
                output.status
            );
        }
        step.done("passed");
        let run = output.stderr.lines().filter_map(program);
        programs.extend(run.map(|program| workspace.root.join(program)));
    }
    Ok(programs)
}

/// The program in a line of cargo's such as `Running unittests src/lib.rs (target/debug/deps/name-0123)`.
fn program(line: &str) -> Option<&Path> {
    let (_, program) = line
        .trim_start()
        .strip_prefix("Running ")?
        .rsplit_once(" (")?;
    program.strip_suffix(')').map(Path::new)
}

/// How often each line ran, by file.
type Reported = BTreeMap<PathBuf, BTreeMap<usize, u64>>;

/// Has LLVM's programs tell what was counted.
fn report(
    workspace: &Workspace,
    tools: &Path,
    runs: &Path,
    programs: &BTreeSet<PathBuf>,
) -> anyhow::Result<Reported> {
    let step = Step::start("lines that were run");
    let merged = runs.join("all.profdata");
    let mut merge = Command::new(tools.join("llvm-profdata"));
    merge
        .args(["merge", "--sparse", "--output"])
        .arg(&merged)
        .arg(runs);
    progress::run(&mut merge, &step, None)?;
    let mut export = Command::new(tools.join("llvm-cov"));
    export
        .args(["export", "--format=lcov", "--instr-profile"])
        .arg(&merged);
    for program in programs {
        export.arg("--object").arg(program);
    }
    export.arg("--sources").arg(&workspace.root);
    let text = progress::run(&mut export, &step, None)?;
    let reported = parse(&text);
    step.done(&format!("{} files", reported.len()));
    anyhow::ensure!(
        !reported.is_empty(),
        "llvm-cov tells nothing of {}\n  try: cargo clean, then this again",
        workspace.root.display()
    );
    Ok(reported)
}

/// Reads lcov's format: `SF:FILE`, then `DA:LINE,TIMES` for each of its lines.
fn parse(text: &str) -> Reported {
    let mut reported = Reported::new();
    let mut file = None;
    for line in text.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            file = Some(reported.entry(PathBuf::from(path)).or_default());
        } else if let Some((line, times)) =
            line.strip_prefix("DA:").and_then(|da| da.split_once(','))
            && let (Ok(line), Ok(times)) = (line.parse(), times.parse::<u64>())
            && let Some(file) = &mut file
        {
            let before = file.entry(line).or_default();
            *before = times.max(*before);
        }
    }
    reported
}

/// What is counted of a file, or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    files: usize,
    /// Files of which nothing is built for the host's tests.
    elsewhere: usize,
    /// Lines with code that can run, in what is built for the host's tests.
    lines: usize,
    /// Those of them that ran.
    run: usize,
}

impl Count {
    /// A file with its lines of code, and how often its lines ran, if any is built.
    fn of(code: &BTreeSet<usize>, reported: Option<&BTreeMap<usize, u64>>) -> Self {
        let lines = || {
            let all = reported.into_iter().flatten();
            all.filter(|(line, _)| code.contains(line))
        };
        Self {
            files: 1,
            elsewhere: usize::from(reported.is_none()),
            lines: lines().count(),
            run: lines().filter(|(_, times)| **times > 0).count(),
        }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.elsewhere += other.elsewhere;
        self.lines += other.lines;
        self.run += other.run;
    }
}

fn sum<'a>(counts: impl IntoIterator<Item = &'a Count>) -> Count {
    let mut sum = Count::default();
    counts.into_iter().for_each(|&count| sum += count);
    sum
}

/// A table with a last line for the sum.
fn table(what: &str, rows: &[(String, Count)]) -> String {
    let mut table = format!(
        "{what:<26}{:>7}{:>11}{:>8}{:>8}{:>9}\n",
        "files", "elsewhere", "lines", "run", "share"
    );
    let total = ("total".to_owned(), sum(rows.iter().map(|(_, count)| count)));
    for (name, count) in rows.iter().chain([&total]) {
        let Count {
            files,
            elsewhere,
            lines,
            run,
        } = count;
        let share = match lines {
            0 => "-".to_owned(),
            _ => format!("{:.1} %", *run as f64 * 100.0 / *lines as f64),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{name:<26}{files:>7}{elsewhere:>11}{lines:>8}{run:>8}{share:>9}"
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_programs_are_those_that_cargo_runs() {
        let line = "     Running unittests src/lib.rs (target/debug/deps/plinth_abi-0123)";
        assert_eq!(
            program(line),
            Some(Path::new("target/debug/deps/plinth_abi-0123"))
        );
        assert_eq!(
            program("   Compiling plinth-abi v0.1.0 (/plinth/abi)"),
            None
        );
        assert_eq!(program("     Running something"), None);
    }

    #[test]
    fn lines_are_read_from_lcov_s_format() {
        let text = "SF:/p/a.rs\nFN:1,f\nFNDA:2,f\nDA:1,2\nDA:3,0\nend_of_record\nSF:/p/b.rs\nDA:7,1\nend_of_record\n";
        let file = |path: &str, lines: &[(usize, u64)]| {
            (PathBuf::from(path), lines.iter().copied().collect())
        };
        assert_eq!(
            parse(text),
            Reported::from([
                file("/p/a.rs", &[(1, 2), (3, 0)]),
                file("/p/b.rs", &[(7, 1)])
            ])
        );
        // A file that two programs have.
        let twice = format!("{text}SF:/p/a.rs\nDA:1,0\nDA:3,4\n");
        assert_eq!(
            parse(&twice)[Path::new("/p/a.rs")],
            BTreeMap::from([(1, 2), (3, 4)])
        );
    }

    #[test]
    fn what_is_only_for_tests_is_no_line() {
        let code = BTreeSet::from([1, 2, 3]);
        let ran = BTreeMap::from([(1, 5), (3, 0), (9, 1)]);
        let count = Count::of(&code, Some(&ran));
        assert_eq!((count.files, count.elsewhere), (1, 0));
        assert_eq!((count.lines, count.run), (2, 1));
        let count = Count::of(&code, None);
        assert_eq!((count.files, count.elsewhere), (1, 1));
        assert_eq!((count.lines, count.run), (0, 0));
    }

    #[test]
    fn the_table_ends_with_the_sum() {
        let count = |elsewhere, lines, run| Count {
            files: 2,
            elsewhere,
            lines,
            run,
        };
        let rows = [
            ("a".to_owned(), count(0, 200, 150)),
            ("b".to_owned(), count(2, 0, 0)),
        ];
        assert_eq!(
            table("package", &rows),
            "package                     files  elsewhere   lines     run    share\n\
             a                               2          0     200     150   75.0 %\n\
             b                               2          2       0       0        -\n\
             total                           4          2     200     150   75.0 %\n"
        );
    }
}
