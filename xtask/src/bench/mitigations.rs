//! `cargo xtask bench mitigations`: what each mitigation of speculative execution adds to exits and switches, in instructions.
//!
//! The kernel's command line has it take just that one, whatever the CPU says that it needs. The CPU of the machine announces the
//! registers that some of them write. What they cost in time is another thing: an emulator knows nothing of a predictor's or a
//! cache's being emptied.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;

use super::figures::Figure;
use super::{Options, Run};
use crate::compile;
use crate::machine::choose::{Host, choose};
use crate::provision::packages;
use crate::workspace::Workspace;

/// The choices, as on the command line; the first is what the others are compared with.
const CHOICES: [&str; 8] = ["off", "ibpb", "ibrs", "stibp", "rsb", "verw", "l1d", "all"];
/// The operations.
const OPERATIONS: [&str; 4] = ["vmcall", "cpuid", "world_switch", "event_round_trip"];
/// Memory in MiB: less than the benchmark has, so that fewer domains are made beside what is measured.
const MEMORY: u32 = 192;
/// What the kernel says of what the CPU cannot execute.
const LACKING: &str = "speculation: this CPU, or its microcode, has no ";

/// What was seen with one choice.
struct Seen {
    choice: &'static str,
    /// By operation.
    medians: [Option<u64>; OPERATIONS.len()],
    /// What the CPU cannot execute.
    lacking: Option<String>,
}

impl Seen {
    fn new(choice: &'static str, lines: &[String]) -> Self {
        let figures: Vec<_> = lines
            .iter()
            .filter_map(|line| Figure::parse(line))
            .collect();
        let median = |operation| {
            let figure = figures.iter().find(|figure| figure.name == operation)?;
            Some(figure.median)
        };
        let lacking = lines.iter().find_map(|line| line.split_once(LACKING));
        Self {
            choice,
            medians: OPERATIONS.map(median),
            lacking: lacking.map(|(_, what)| what.trim_end().to_owned()),
        }
    }
}

/// Measures and prints a line for each.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    let (kind, why) = choose(options.on, &Host::look());
    eprintln!("machine: {kind} ({why})");
    let permission = options.install.permission();
    let tools = packages::provide(kind, permission)?;
    let build = compile::build(&workspace, permission)?;
    let mut all = Vec::new();
    for choice in CHOICES {
        let run = Run {
            name: "mitigations",
            command_line: &format!("root=bench mitigations={choice}"),
            guests: &[],
            memory: MEMORY,
            predictions: true,
        };
        let lines = run.lines(kind, &workspace, &build, &tools)?;
        all.push(Seen::new(choice, &lines));
    }
    table(&mut std::io::stdout().lock(), &all).context("cannot print the table")?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what each operation costs, and how much more that is than with none.
fn table(out: &mut impl Write, all: &[Seen]) -> std::io::Result<()> {
    write!(out, "{:<12}", "mitigations")?;
    for operation in OPERATIONS {
        write!(out, " {operation:>18}")?;
    }
    writeln!(out)?;
    let bases = all
        .first()
        .map_or([None; OPERATIONS.len()], |seen| seen.medians);
    for seen in all {
        write!(out, "{:<12}", seen.choice)?;
        for (median, base) in seen.medians.iter().zip(bases) {
            let cell = match (median, base) {
                (Some(median), Some(base)) if *median != base => {
                    format!("{median} ({:+})", i128::from(*median) - i128::from(base))
                }
                (Some(median), _) => median.to_string(),
                (None, _) => "?".to_owned(),
            };
            write!(out, " {cell:>18}")?;
        }
        match &seen.lacking {
            Some(what) => writeln!(out, "  not executed, this CPU has none: {what}")?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(choice: &'static str, lines: &[&str]) -> Seen {
        let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        Seen::new(choice, &lines)
    }

    #[test]
    fn costs_are_told_with_what_they_add() {
        let all = [
            seen(
                "off",
                &[
                    "bench vmcall: 120 (120 to 121)",
                    "bench world_switch: 680 (1 to 2)",
                ],
            ),
            seen(
                "rsb",
                &[
                    "bench vmcall: 200 (1 to 2)",
                    "bench vmcall_at_1: 7 (7 to 7)",
                ],
            ),
            seen(
                "l1d",
                &[
                    "[    0.1] WARN  cpu0 speculation: this CPU, or its microcode, has no L1D flush before entries",
                    "bench vmcall: 120 (1 to 2)",
                ],
            ),
        ];
        let mut out = Vec::new();
        table(&mut out, &all).unwrap();
        let text = String::from_utf8(out).unwrap();
        let words: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words[1], ["off", "120", "?", "680", "?"]);
        assert_eq!(words[2], ["rsb", "200", "(+80)", "?", "?", "?"]);
        assert!(
            text.ends_with("not executed, this CPU has none: L1D flush before entries\n"),
            "{text}"
        );
    }
}
