//! `cargo xtask bench profile NAME`: the functions on which an operation's instructions are spent.
//!
//! QEMU takes one instruction after the other and logs each, while the guest measures. In the log of the operation a typical round is
//! looked for, and told by function. The kernel and the guests are built once more for that, with the source lines of their
//! instructions.

mod functions;
mod rounds;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::baseline::Baseline;
use super::figures::Figure;
use super::{Options, RUNS, Run};
use crate::compile::{self, Build};
use crate::machine::choose::{Host, choose};
use crate::machine::qemu::Monitor;
use crate::machine::{Event, Kind};
use crate::progress::Step;
use crate::provision::packages::{self, Tools};
use crate::serial::{self, Lines, Report};
use crate::workspace::Workspace;
use functions::{Program, Programs, table};
use rounds::{Rounds, is_kernel};

/// Where guests that are PCs print, letter by letter.
const PRINTING: &str = "guests/pc/src/com1.rs";
/// Logging each instruction is slower than counting them.
const PATIENCE: Duration = Duration::from_secs(3600);
/// A log that is longer, in bytes, is laid aside for the next one; so at most twice as much of an operation is kept.
const LONG: u64 = 256 << 20;

/// Profiles the operation that the options name.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    let (kind, _) = choose(options.on, &Host::look());
    anyhow::ensure!(
        kind == Kind::QemuSvm,
        "{kind} does not log each instruction that it executes\n  try: --on {}",
        Kind::QemuSvm
    );
    let baseline = Baseline::read(&Baseline::path(&workspace.root, kind))?;
    let operation = wanted(options.operation.as_deref(), &baseline)?;
    let permission = options.install.permission();
    let tools = packages::provide(kind, permission)?;
    let guests: Vec<_> = RUNS.iter().flat_map(Run::programs).collect();
    let build = compile::build_with_lines(&workspace, permission, &guests)?;
    for run in &RUNS {
        // Where the name is not in its file, the guest has no such operation; where it is, it may be part of another's.
        let file = compile::read(elf(&build, run.name)?)?;
        let name = operation.as_bytes();
        if !file.windows(name.len()).any(|part| part == name) {
            continue;
        }
        if let Some((figure, addresses)) = trace(run, operation, &workspace, &build, &tools)? {
            tell(run, &figure, &addresses, &workspace, &build)?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    anyhow::bail!("no guest measures {operation} any more\n  try: cargo xtask bench --save")
}

/// The operation, if there is one of that name. Beside other domains it is the same; and to make a thousand of them, each instruction
/// logged, would take an hour.
fn wanted<'a>(name: Option<&'a str>, baseline: &Baseline) -> anyhow::Result<&'a str> {
    let names = baseline.operations();
    let wrong = match name {
        Some(name) if names.contains(&name) => return Ok(name),
        Some(name) => format!("there is no operation {name}"),
        None => "a profile is that of an operation".to_owned(),
    };
    anyhow::bail!(
        "{wrong}\n  try: cargo xtask bench profile NAME, with one of these names:\n  {}",
        names.join(" ")
    )
}

/// A guest's ELF file.
fn elf<'a>(build: &'a Build, name: &str) -> anyhow::Result<&'a Path> {
    let guest = build.guests.iter().find(|guest| guest.name == name);
    guest
        .map(|guest| guest.elf.as_path())
        .with_context(|| format!("there is no guest {name}"))
}

/// The figure of an operation, and the instructions that were executed until it was told; none if the guest has no such operation.
fn trace(
    run: &Run<'_>,
    operation: &str,
    workspace: &Workspace,
    build: &Build,
    tools: &Tools,
) -> anyhow::Result<Option<(Figure, Vec<u64>)>> {
    let step = Step::start(format!("tracing {operation}, {}", run.command_line));
    let mut machine = run.start(Kind::QemuSvm, workspace, build, tools)?;
    let mut log: Option<Log> = None;
    let mut lines = Lines::default();
    let start = Instant::now();
    loop {
        let bytes = match machine.next(Duration::from_millis(100)) {
            Event::Output(bytes) => bytes,
            Event::Idle => Vec::new(),
            Event::Ended => anyhow::bail!(
                "the machine ended before it had measured {operation}: {}",
                machine.messages(1).join("")
            ),
        };
        for line in lines.push(&bytes) {
            step.detail(&line);
            match (Figure::parse(&line), &mut log) {
                (Some(figure), Some(log)) if figure.name == operation => {
                    machine.kill();
                    let addresses = log.read()?;
                    step.done(&format!("{} instructions", addresses.len()));
                    return Ok(Some((figure, addresses)));
                }
                // What comes now is of the next operation.
                (Some(_), Some(log)) => log.begin()?,
                (None, None) if line.contains(run.name) && line.contains(" starts") => {
                    log = Some(Log::start(machine.monitor()?, machine.directory())?);
                }
                _ => {}
            }
            if let Some(Report::End(_)) = serial::parse(&line) {
                step.done("not measured there");
                return Ok(None);
            }
        }
        if let Some(log) = &mut log {
            log.limit()?;
        }
        anyhow::ensure!(
            start.elapsed() < PATIENCE,
            "{operation} has not been measured in {} s",
            PATIENCE.as_secs()
        );
    }
}

/// QEMU's log of executed instructions. It is in a file of the machine's directory, and may go on in a second one.
struct Log {
    monitor: Monitor,
    directory: PathBuf,
    /// Of the file that is written.
    number: u32,
    /// The file that is full.
    before: Option<PathBuf>,
}

impl Log {
    /// Logs from now on.
    fn start(monitor: Monitor, directory: &Path) -> anyhow::Result<Self> {
        let mut log = Self {
            monitor,
            directory: directory.to_path_buf(),
            number: 0,
            before: None,
        };
        log.monitor.trace(&name(log.number))?;
        Ok(log)
    }

    fn path(&self) -> PathBuf {
        self.directory.join(name(self.number))
    }

    /// Forgets what was logged.
    fn begin(&mut self) -> anyhow::Result<()> {
        self.lay_aside()?;
        remove(self.before.take())
    }

    /// Forgets the older half, where there is too much.
    fn limit(&mut self) -> anyhow::Result<()> {
        let path = self.path();
        let length = fs::metadata(&path).map_or(0, |data| data.len());
        if length > LONG {
            self.lay_aside()?;
        }
        Ok(())
    }

    /// Goes on in another file; the one before is kept, and none that is older.
    fn lay_aside(&mut self) -> anyhow::Result<()> {
        let full = self.path();
        self.number += 1;
        self.monitor.trace(&name(self.number))?;
        remove(self.before.replace(full))
    }

    /// The addresses in the files, the oldest first.
    fn read(&self) -> anyhow::Result<Vec<u64>> {
        let mut addresses = Vec::new();
        for path in self.before.iter().chain([&self.path()]) {
            let context = || format!("cannot read {}", path.display());
            let mut file = BufReader::new(File::open(path).with_context(context)?);
            let mut line = String::new();
            while file.read_line(&mut line).with_context(context)? > 0 {
                rounds::take(&line, &mut addresses);
                line.clear();
            }
        }
        Ok(addresses)
    }
}

/// The name of a log.
fn name(number: u32) -> String {
    format!("trace-{number}")
}

fn remove(file: Option<PathBuf>) -> anyhow::Result<()> {
    match file {
        Some(file) => {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
        }
        None => Ok(()),
    }
}

/// Finds the typical round, and prints it by function.
fn tell(
    run: &Run<'_>,
    figure: &Figure,
    addresses: &[u64],
    workspace: &Workspace,
    build: &Build,
) -> anyhow::Result<()> {
    let names: Vec<_> = run.programs().collect();
    let files = names
        .iter()
        .map(|name| Ok(compile::read(elf(build, name)?)?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let guests = names.iter().zip(&files);
    let guests = guests.map(|(name, file)| Program::new(name, file));
    let kernel = compile::read(&build.kernel)?;
    let programs = Programs::new(
        Program::new("kernel", &kernel)?,
        guests.collect::<anyhow::Result<_>>()?,
        &workspace.root,
    );
    // Printing repeats itself, too.
    let foreign = |place| programs.is_from(PRINTING, run.name, place);
    // What the guest does around the operation comes on top, but a figure may be the mean of many rounds, with an interrupt in one.
    let least = figure.median - figure.median / 20;
    let rounds = rounds::find(addresses, least, foreign).with_context(|| {
        format!(
            "{} does not enter the kernel again and again\n  try: another operation",
            figure.name
        )
    })?;
    let round = &addresses[rounds.typical.clone()];
    let counts = programs.count(round);
    let mut out = std::io::stdout().lock();
    summary(&mut out, figure, &rounds, round)
        .and_then(|()| table(&mut out, &counts))
        .context("cannot print the profile")
}

/// What comes before the table.
fn summary(
    out: &mut impl Write,
    figure: &Figure,
    rounds: &Rounds,
    round: &[u64],
) -> std::io::Result<()> {
    let Figure {
        name,
        median,
        least,
        most,
    } = figure;
    let kernel = round.iter().filter(|address| is_kernel(**address)).count();
    let Rounds {
        alike,
        all,
        least: shortest,
        most: longest,
        ..
    } = rounds;
    writeln!(
        out,
        "{name} as the guest measures it: {median} ({least} to {most})"
    )?;
    writeln!(
        out,
        "a round: {} instructions, {kernel} of them the kernel's; {alike} of {all} rounds ({shortest} to {longest}) have as many",
        round.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_one_that_is_measured() {
        let names = ["cpuid", "cpuid_at_10", "kernel_file_bytes"];
        let baseline = Baseline::new(&names.map(|name| Figure::exact(name, 1)));
        assert_eq!(wanted(Some("cpuid"), &baseline).unwrap(), "cpuid");
        // It is not in the baseline, for it is not compared.
        assert_eq!(wanted(Some("mov_to_cr4"), &baseline).unwrap(), "mov_to_cr4");
        for wrong in [
            None,
            Some("cpu"),
            Some("cpuid_at_10"),
            Some("kernel_file_bytes"),
        ] {
            let error = wanted(wrong, &baseline).unwrap_err().to_string();
            assert!(error.ends_with("  cpuid mov_to_cr4"), "{error}");
        }
    }

    #[test]
    fn where_guests_print_is_a_file() {
        assert!(crate::workspace::source_root().join(PRINTING).is_file());
    }

    #[test]
    fn the_guests_of_a_run_are_known() {
        let programs = RUNS
            .each_ref()
            .map(|run| run.programs().collect::<Vec<_>>());
        assert_eq!(programs, [vec!["bench"], vec!["control", "pcbench"]]);
    }

    #[test]
    fn the_summary_tells_the_kernel_s_part() {
        let figure = Figure {
            name: "cpuid".to_owned(),
            median: 145,
            least: 145,
            most: 4274,
        };
        let rounds = Rounds {
            typical: 0..3,
            alike: 200,
            all: 202,
            least: 3,
            most: 90,
        };
        let mut out = Vec::new();
        let round = [0xffff_ffff_8000_1000, 0xffff_ffff_8000_1004, 0x10_1000];
        summary(&mut out, &figure, &rounds, &round).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "cpuid as the guest measures it: 145 (145 to 4274)\n\
             a round: 3 instructions, 2 of them the kernel's; 200 of 202 rounds (3 to 90) have as many\n"
        );
    }
}
