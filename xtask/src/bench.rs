//! `cargo xtask bench`: what exits cost, measured by the guest `bench`.
//!
//! The machine is one whose TSC counts executed instructions, so the figures are exact and repeatable: QEMU with `-icount
//! shift=0`, or Bochs.

mod linux_boot;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::Install;
use crate::compile::{self, Build};
use crate::image;
use crate::machine::choose::{Host, choose};
use crate::machine::{Choice, Equipment, Kind, Machine, Site};
use crate::progress::Step;
use crate::provision::packages::{self, Tools};
use crate::script::Script;
use crate::test::drive::watch;
use crate::test::judge::Ending;
use crate::workspace::Workspace;

/// What runs on a machine, and measures.
struct Run {
    /// The kernel's command line.
    command_line: &'static str,
    /// The guests that the control guest finds.
    guests: &'static [&'static str],
}

/// A guest that has the machine to itself, and a PC beside the control guest.
const RUNS: [Run; 2] = [
    Run {
        command_line: "root=bench",
        guests: &[],
    },
    Run {
        command_line: "guests=pcbench",
        guests: &["pcbench"],
    },
];
/// Memory in MiB: for five hundred domains of 2 MiB.
const MEMORY: u32 = 2048;
/// Counting instructions is slow, and so is the firmware then.
const PATIENCE: Duration = Duration::from_secs(900);
/// Lines that are shown of a machine that did not get to its end.
const LAST_WORDS: usize = 12;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// What exits and domains cost
    Exits,
    /// Instructions from Linux's first to its prompt, in a domain and directly in QEMU; on qemu-svm
    LinuxBoot,
}

/// The options of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// What is measured
    #[arg(value_enum, default_value_t = What::Exits)]
    pub what: What,
    /// The machine: qemu-svm, bochs-vmx or bochs-svm; on qemu-kvm the figures are cycles
    #[arg(long, value_name = "MACHINE", default_value = "qemu-svm")]
    pub on: Choice,
    #[command(flatten)]
    pub install: Install,
}

/// A line of the guest's.
#[derive(Debug, PartialEq, Eq)]
struct Figure<'a> {
    name: &'a str,
    median: u64,
    range: &'a str,
}

/// `cargo xtask bench`.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    if options.what == What::LinuxBoot {
        return linux_boot::main(options);
    }
    let workspace = Workspace::load()?;
    let (kind, why) = choose(options.on, &Host::look());
    eprintln!("machine: {kind} ({why})");
    let permission = options.install.permission();
    let tools = packages::provide(kind, permission)?;
    let build = compile::build(&workspace, permission)?;
    let mut lines = Vec::new();
    for run in &RUNS {
        lines.extend(measure(run, kind, &workspace, &build, &tools)?);
    }
    let figures: Vec<_> = lines.iter().filter_map(|line| figure(line)).collect();
    table(&mut std::io::stdout().lock(), &figures).context("cannot print the table")?;
    Ok(ExitCode::SUCCESS)
}

/// The lines of a machine that measures.
fn measure(
    run: &Run,
    kind: Kind,
    workspace: &Workspace,
    build: &Build,
    tools: &Tools,
) -> anyhow::Result<Vec<String>> {
    let site = Site::new(&workspace.machines())?;
    image::write(&site.disk(), build, run.command_line, Some(run.guests), &[])?;
    let equipment = Equipment {
        kind,
        smp: 1,
        memory: MEMORY,
        display: false,
        gdb: None,
        instruction_ns: Some(1),
        recorded: false,
    };
    let step = Step::start(format!("measuring on {kind}, {}", run.command_line));
    let mut machine = Machine::start(site, &equipment, tools)?;
    let mut script = Script::default();
    let (lines, ending) = watch(
        &mut machine,
        &mut script,
        PATIENCE,
        std::io::sink(),
        |line| step.detail(line),
    );
    machine.kill();
    let count = lines.iter().filter_map(|line| figure(line)).count();
    if ending != Ending::Status(0) || count == 0 {
        step.done("FAILED");
        for line in lines.iter().rev().take(LAST_WORDS).rev() {
            eprintln!("  {line}");
        }
        anyhow::bail!(
            "the machine did not get to its end ({ending:?})\n  try: cargo xtask run --on {kind} --append '{}'",
            run.command_line
        );
    }
    step.done(&format!("{count} operations"));
    Ok(lines)
}

/// Prints the figures.
fn table(out: &mut impl Write, figures: &[Figure<'_>]) -> std::io::Result<()> {
    writeln!(out, "{:<24} {:>8}  least to most", "operation", "median")?;
    for Figure {
        name,
        median,
        range,
    } in figures
    {
        writeln!(out, "{name:<24} {median:>8}  {range}")?;
    }
    Ok(())
}

/// The figure in a line such as `bench cpuid: 170 (168 to 410)`, behind the guest's name where others speak, too.
fn figure(line: &str) -> Option<Figure<'_>> {
    let line = ["[bench] ", "[pcbench] "]
        .iter()
        .find_map(|speaker| line.strip_prefix(speaker))
        .unwrap_or(line);
    let (name, rest) = line.strip_prefix("bench ")?.split_once(": ")?;
    let (median, range) = rest.split_once(" (")?;
    Some(Figure {
        name,
        median: median.parse().ok()?,
        range: range.strip_suffix(')')?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_guests_lines() {
        for line in [
            "bench cpuid: 170 (168 to 410)",
            "[bench] bench cpuid: 170 (168 to 410)",
            "[pcbench] bench cpuid: 170 (168 to 410)",
        ] {
            assert_eq!(
                figure(line),
                Some(Figure {
                    name: "cpuid",
                    median: 170,
                    range: "168 to 410"
                })
            );
        }
        for other in [
            "[hello] bench cpuid: 170 (1 to 2)",
            "[bench] bench cpuid",
            "[bench] bench cpuid: many (1 to 2)",
        ] {
            assert_eq!(figure(other), None, "{other}");
        }
    }
}
