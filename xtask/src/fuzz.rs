//! Fuzzing: the targets of `fuzz/` under libFuzzer, by the pinned compiler.
//!
//! The compiler counts edges by LLVM's own pass, which needs no nightly flag; libFuzzer's runtime comes with the crate
//! `libfuzzer-sys` and is compiled by `c++`. One program has all targets. What it finds worth keeping stays in
//! `target/fuzz/corpus/TARGET`, so that the next run goes on from there; an input that breaks something is a file in
//! `target/fuzz/artifacts/TARGET`.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use std::{fs, io};

use anyhow::Context;
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::Install;
use crate::progress::{self, CommandError, Output, Step};
use crate::provision::Permission;
use crate::provision::packages::{self, Part};
use crate::provision::targets::Compiler;
use crate::workspace::{Workspace, cargo};
use targets::TARGETS;

/// The options of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub struct Options {
    /// The target; without one, all of them one after the other
    #[arg(value_name = "TARGET", value_parser = PossibleValuesParser::new(TARGETS.map(|(name, _)| name)), hide_possible_values = true)]
    target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Run the target with this input alone, such as one that broke something
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// Name the targets and what they check
    #[arg(long, conflicts_with_all = ["target", "input"])]
    list: bool,
    #[command(flatten)]
    install: Install,
}

/// The package and its program.
pub const PACKAGE: &str = "plinth-fuzz";
/// The compiler's flags: count each edge in a byte, keep a table of the edges, and tell what is compared with what.
const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// An input that takes longer, in seconds, is one that breaks something.
const SLOW: u32 = 20;
/// Memory in MiB that an input may take.
const MEMORY: u32 = 2048;

/// `cargo xtask fuzz`.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    if options.list {
        for (name, about) in TARGETS {
            println!("{name:<12}{about}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let workspace = Workspace::load()?;
    let directory = workspace.target.join("fuzz");
    let program = build(&workspace, &directory, options.install.permission())?;
    if let (Some(target), Some(input)) = (&options.target, &options.input) {
        return again(&program, target, input);
    }
    let mut broken = Vec::new();
    for (target, _) in TARGETS {
        if options.target.as_deref().is_some_and(|only| only != target) {
            continue;
        }
        if let Some(failure) = run(&program, &directory, target, options.seconds)? {
            eprintln!("{failure}");
            broken.push(target);
        }
    }
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("error: broken: {}", broken.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Builds the program that has the targets; its path.
fn build(
    workspace: &Workspace,
    directory: &Path,
    permission: Permission,
) -> anyhow::Result<PathBuf> {
    packages::provide_part("libFuzzer", Part::CxxCompiler, permission)?;
    let host = Compiler::ask()?.host;
    let place = directory.join("build");
    let step = Step::start("building the fuzz targets");
    let mut command = Command::new(cargo());
    command
        .current_dir(&workspace.root)
        .args(["build", "--package", PACKAGE, "--features", "libfuzzer"])
        // With a target named, the flags are not for build scripts and macros.
        .args(["--profile", "fuzz", "--target", &host, "--target-dir"])
        .arg(&place)
        .env("RUSTFLAGS", FLAGS);
    progress::run(&mut command, &step, None)?;
    step.done("built");
    Ok(place.join(host).join("fuzz").join(PACKAGE))
}

/// Runs a target with one input, its output as it comes.
fn again(program: &Path, target: &str, input: &Path) -> anyhow::Result<ExitCode> {
    // A directory would be a corpus to begin with.
    if !input.is_file() {
        anyhow::bail!(
            "{} is no file\n  try: one of those below target/fuzz",
            input.display()
        );
    }
    let mut command = target_command(program, target);
    let step = Step::start(format!("{target} with {}", input.display()));
    let output = progress::capture(command.arg(input), &step, None)?;
    eprint!("{}", output.all);
    let is_good = output.status.success();
    step.done(if is_good { "nothing broke" } else { "BROKEN" });
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn target_command(program: &Path, target: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("PLINTH_FUZZ_TARGET", target)
        .arg(format!("-timeout={SLOW}"))
        .arg(format!("-rss_limit_mb={MEMORY}"));
    command
}

/// Fuzzes a target; what broke, if anything did.
fn run(
    program: &Path,
    directory: &Path,
    target: &str,
    seconds: u32,
) -> anyhow::Result<Option<String>> {
    let place = |kind: &str| -> io::Result<PathBuf> {
        let place = directory.join(kind).join(target);
        fs::create_dir_all(&place)?;
        Ok(place)
    };
    let places =
        || -> io::Result<_> { Ok((place("corpus")?, place("seeds")?, place("artifacts")?)) };
    let (corpus, seeds, artifacts) = places().with_context(|| {
        format!(
            "cannot make a directory in {}\n  try: look at whose it is, and at the disk's free space",
            directory.display()
        )
    })?;
    let mut command = target_command(program, target);
    command
        .env("PLINTH_FUZZ_SEEDS", &seeds)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        // Inputs may soon be long: one step alone shows little.
        .arg("-len_control=20")
        .arg(&corpus)
        .arg(&seeds);
    let step = Step::start(format!("{target}, {seconds} s"));
    // It ends by itself; if it does not, something hangs where even its own alarm cannot end it.
    let limit = Duration::from_secs(u64::from(seconds) * 2 + 120);
    match progress::capture(&mut command, &step, Some(limit)) {
        Ok(output) if output.status.success() => {
            step.done("nothing broke");
            println!("{target:<12}{}", summary(&output.stderr));
            Ok(None)
        }
        Ok(output) => {
            step.done("BROKEN");
            Ok(Some(failure(target, &output)))
        }
        Err(error @ CommandError::Slow { .. }) => {
            step.done("BROKEN");
            Ok(Some(format!("error: {target} hangs: {error}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// What a run did, from libFuzzer's last lines.
fn summary(text: &str) -> String {
    let statistic = |name: &str| {
        text.lines()
            .rev()
            .find_map(|line| line.strip_prefix(&format!("stat::{name}:")))
            .map_or("?", str::trim)
    };
    let last = text.lines().rev().find(|line| line.contains(" cov: "));
    let of_last = |name: &str| {
        let mut words = last.unwrap_or_default().split_whitespace();
        words.find(|word| *word == name);
        // `12/34Kb` is the number of inputs and their size.
        words
            .next()
            .map_or("?", |word| word.split('/').next().unwrap_or(word))
    };
    format!(
        "{:>10} runs {:>7}/s {:>6} edges {:>5} inputs kept",
        statistic("number_of_executed_units"),
        statistic("average_exec_per_sec"),
        of_last("cov:"),
        of_last("corp:")
    )
}

/// What lines of libFuzzer's begin with that do not tell what broke: its progress, its advice, and the input's bytes.
const NOISE: [&str; 11] = [
    "#",
    "INFO: ",
    "NOTE: ",
    "WARNING: ",
    "Combine libFuzzer",
    "MS: ",
    "Base64: ",
    "stat::",
    "artifact_prefix=",
    "0x",
    "\\",
];

/// What broke, in words: the panic, the input, and how to see it again.
fn failure(target: &str, output: &Output) -> String {
    let telling = |line: &&str| {
        let line = line.trim_start();
        let is_noise = NOISE.iter().any(|start| line.starts_with(start));
        !is_noise && !line.is_empty()
    };
    let mut text = format!("error: {target} is broken ({})\n", output.status);
    for line in output.stderr.lines().filter(telling) {
        text.push_str(&format!("  | {line}\n"));
    }
    let input = output
        .stderr
        .lines()
        .rev()
        .find_map(|line| line.split_once("Test unit written to "))
        .map(|(_, path)| path);
    match input {
        Some(path) => text.push_str(&format!(
            "  the input is {path}\n  try: cargo xtask fuzz {target} --input {path}"
        )),
        None => text.push_str("  try: the target alone, and look at what it says"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &[&str]) -> Result<Options, clap::Error> {
        Line::try_parse_from(["x"].iter().chain(line)).map(|line| line.options)
    }

    #[test]
    fn names_of_targets_are_known_and_differ() {
        let names: std::collections::BTreeSet<_> = TARGETS.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), TARGETS.len());
        assert_eq!(
            options(&["decoder"]).unwrap().target.as_deref(),
            Some("decoder")
        );
        assert_eq!(options(&[]).unwrap().seconds, 60);
        for wrong in [
            &["decode"][..],
            &["--input", "x"],
            &["--seconds", "0"],
            &["ept", "--list"],
        ] {
            assert!(options(wrong).is_err(), "{wrong:?}");
        }
        assert!(options(&["ept", "--input", "x"]).is_ok());
    }

    #[test]
    fn a_run_is_summed_up() {
        let text = "#1024\tpulse  cov: 65 ft: 132 corp: 48/189b lim: 4\n#1115\tDONE   cov: 565 ft: 1332 corp: 49/193b lim: 4 exec/s: 123\n\
            Done 1115 runs in 9 second(s)\nstat::number_of_executed_units: 1115\nstat::average_exec_per_sec:     123\n";
        let words: Vec<_> = summary(text)
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        assert_eq!(words.join(" "), "1115 runs 123/s 565 edges 49 inputs kept");
        assert!(summary("").contains("? runs"));
    }

    #[test]
    fn a_failure_tells_the_panic_and_how_to_see_it_again() {
        let stderr = "INFO: Seed: 1\n#2\tINITED cov: 1\n\nthread '<unnamed>' panicked at kernel/src/x.rs:1:2:\nno\n==7== ERROR: libFuzzer: deadly signal\n\
            NOTE: libFuzzer has rudimentary signal handlers.\nSUMMARY: libFuzzer: deadly signal\nMS: 1 ChangeBit-; base unit: 0\n0x1,0x2,\n\
            artifact_prefix='/t/'; Test unit written to /t/crash-0\nBase64: AA==\n";
        let output = Output {
            status: ExitStatus::from_raw(77 << 8),
            stdout: String::new(),
            stderr: stderr.to_owned(),
            all: stderr.to_owned(),
        };
        let text = failure("ept", &output);
        assert!(
            text.contains("| thread '<unnamed>' panicked at kernel/src/x.rs:1:2:\n  | no\n"),
            "{text}"
        );
        assert!(
            text.ends_with("try: cargo xtask fuzz ept --input /t/crash-0"),
            "{text}"
        );
        assert!(
            !text.contains("INITED") && !text.contains("0x1") && !text.contains("Base64"),
            "{text}"
        );
    }
}
