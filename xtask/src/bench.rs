//! `cargo xtask bench`: what exits cost, measured by the guest `bench`.
//!
//! The machine is one whose TSC counts executed instructions, so the figures are exact and repeatable: QEMU with `-icount
//! shift=0`, or Bochs.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::Install;
use crate::compile;
use crate::image;
use crate::machine::choose::{Host, choose};
use crate::machine::{Choice, Equipment, Machine, Site};
use crate::progress::Step;
use crate::provision::packages;
use crate::script::Script;
use crate::test::drive::watch;
use crate::test::judge::Ending;
use crate::workspace::Workspace;

/// The guest that measures; it has the machine to itself.
const GUEST: &str = "bench";
/// Memory in MiB: for five hundred domains of 2 MiB.
const MEMORY: u32 = 2048;
/// Counting instructions is slow, and so is the firmware then.
const PATIENCE: Duration = Duration::from_secs(900);
/// Lines that are shown of a machine that did not get to its end.
const LAST_WORDS: usize = 12;

/// The options of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct Options {
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
    let workspace = Workspace::load()?;
    let (kind, why) = choose(options.on, &Host::look());
    eprintln!("machine: {kind} ({why})");
    let permission = options.install.permission();
    let tools = packages::provide(kind, permission)?;
    let build = compile::build(&workspace, permission)?;
    let site = Site::new(&workspace.machines())?;
    let command_line = format!("root={GUEST}");
    image::write(&site.disk(), &build, &command_line, Some(&[]), &[])?;
    let equipment = Equipment {
        kind,
        smp: 1,
        memory: MEMORY,
        display: false,
        gdb: None,
        counts_instructions: true,
    };
    let step = Step::start(format!("measuring on {kind}"));
    let mut machine = Machine::start(site, &equipment, &tools)?;
    let mut script = Script::default();
    let (lines, ending) = watch(
        &mut machine,
        &mut script,
        PATIENCE,
        std::io::sink(),
        |line| step.detail(line),
    );
    machine.kill();
    let figures: Vec<_> = lines.iter().filter_map(|line| figure(line)).collect();
    if ending != Ending::Status(0) || figures.is_empty() {
        step.done("FAILED");
        for line in lines.iter().rev().take(LAST_WORDS).rev() {
            eprintln!("  {line}");
        }
        anyhow::bail!(
            "the machine did not get to its end ({ending:?})\n  try: cargo xtask run --on {kind} --append '{command_line}'"
        );
    }
    step.done(&format!("{} operations", figures.len()));
    table(&mut std::io::stdout().lock(), &figures).context("cannot print the table")?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the figures.
fn table(out: &mut impl Write, figures: &[Figure<'_>]) -> std::io::Result<()> {
    writeln!(out, "{:<20} {:>8}  least to most", "operation", "median")?;
    for Figure {
        name,
        median,
        range,
    } in figures
    {
        writeln!(out, "{name:<20} {median:>8}  {range}")?;
    }
    Ok(())
}

/// The figure in a line such as `bench cpuid: 170 (168 to 410)`, behind `[bench] ` where the control guest passes it on.
fn figure(line: &str) -> Option<Figure<'_>> {
    let line = line.strip_prefix("[bench] ").unwrap_or(line);
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
