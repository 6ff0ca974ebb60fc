//! `cargo xtask bench`: what exits and domains cost, measured by the guests `bench` and `pcbench`, and compared with the baseline.
//!
//! The machine is one whose TSC counts executed instructions, so the figures are exact and repeatable: QEMU with `-icount
//! shift=0`, or Bochs.

mod baseline;
mod figures;
mod linux_boot;
mod mitigations;
mod plot;
mod profile;

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use elf::ElfBytes;
use elf::endian::LittleEndian;

use crate::Install;
use crate::compile::{self, Build};
use crate::image;
use crate::machine::choose::{Host, choose};
use crate::machine::{Choice, Equipment, Kind, Machine, Site};
use crate::progress::Step;
use crate::provision::packages::{self, Tools};
use crate::script::Script;
use crate::test::TestResult;
use crate::test::drive::watch;
use crate::test::judge::Ending;
use crate::workspace::Workspace;
use baseline::Baseline;
use figures::Figure;

/// What runs on a machine, and measures.
struct Run<'a> {
    /// What its log is called.
    name: &'a str,
    /// The kernel's command line.
    command_line: &'a str,
    /// The guests that the control guest finds.
    guests: &'a [&'a str],
    /// Memory in MiB; less where the machine cannot have so much.
    memory: u32,
    /// Whether the CPU announces the registers against speculative execution.
    predictions: bool,
}

/// A guest that has the machine to itself, and a PC beside the control guest.
const RUNS: [Run<'_>; 2] = [
    Run {
        name: "bench",
        command_line: "root=bench",
        guests: &[],
        memory: MEMORY,
        predictions: false,
    },
    Run {
        name: "pcbench",
        command_line: "guests=pcbench apic=cpu",
        guests: &["pcbench"],
        memory: MEMORY,
        predictions: false,
    },
];
/// Memory in MiB: for a thousand domains of 2 MiB. Where there is less, the guest makes fewer.
const MEMORY: u32 = 4096;
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
    /// What each mitigation of speculative execution adds to exits and switches
    Mitigations,
    /// The functions on which an operation's instructions are spent; on qemu-svm
    Profile,
}

/// The options of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// What is measured
    #[arg(value_enum, default_value_t = What::Exits)]
    pub what: What,
    /// The operation that is profiled, by the name that `cargo xtask bench` prints
    #[arg(value_name = "NAME")]
    pub operation: Option<String>,
    /// The machine: qemu-svm, bochs-vmx or bochs-svm; on qemu-kvm the figures are cycles
    #[arg(long, value_name = "MACHINE", default_value = "qemu-svm")]
    pub on: Choice,
    /// Compare with the baseline, bench/MACHINE.json: fails when a figure has grown by more than 5 %, or is missing, or new
    #[arg(long, conflicts_with = "save")]
    pub check: bool,
    /// Make these figures the baseline
    #[arg(long)]
    pub save: bool,
    /// Where the figures go as JSON (default: bench/MACHINE.json in the target directory)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where a picture of how costs grow with domains goes (default: bench/MACHINE.svg in the target directory)
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    #[command(flatten)]
    pub install: Install,
}

/// `cargo xtask bench`.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    if options.what != What::Exits {
        anyhow::ensure!(
            !options.check && !options.save && options.json.is_none() && options.svg.is_none(),
            "only exits have a baseline, the others are printed only\n  \
             try: cargo xtask bench"
        );
    }
    anyhow::ensure!(
        options.what == What::Profile || options.operation.is_none(),
        "one operation alone is not measured, but profiled\n  try: cargo xtask bench profile NAME"
    );
    match options.what {
        What::Exits => {}
        What::LinuxBoot => return linux_boot::main(options),
        What::Mitigations => return mitigations::main(options),
        What::Profile => return profile::main(options),
    }
    let workspace = Workspace::load()?;
    let (kind, why) = choose(options.on, &Host::look());
    eprintln!("machine: {kind} ({why})");
    let baseline_path = Baseline::path(&workspace.root, kind);
    // What cannot be compared is said at once, not minutes later.
    let baseline = options
        .check
        .then(|| Baseline::read(&baseline_path))
        .transpose()?;
    let permission = options.install.permission();
    let tools = packages::provide(kind, permission)?;
    let build = compile::build(&workspace, permission)?;
    let figures = measure(kind, &workspace, &build, &tools)?;
    let mut out = std::io::stdout().lock();
    figures::table(&mut out, &figures).context("cannot print the table")?;
    let file = |asked: &Option<PathBuf>, extension| {
        let usual = || {
            let directory = workspace.target.join("bench");
            directory.join(format!("{kind}.{extension}"))
        };
        asked.clone().unwrap_or_else(usual)
    };
    let json = file(&options.json, "json");
    baseline::write(&json, &figures::to_json(kind.name(), &figures)?)?;
    eprintln!("written: {}", json.display());
    if let Some(picture) = plot::svg(kind.name(), &figures)? {
        let svg = file(&options.svg, "svg");
        baseline::write(&svg, &picture)?;
        eprintln!("written: {}", svg.display());
    }
    if options.save {
        Baseline::new(&figures).write(&baseline_path)?;
        eprintln!("written: {}", baseline_path.display());
    }
    let is_good = match baseline {
        None => true,
        Some(baseline) => {
            let compared = baseline.compare(&figures);
            baseline::tell_gains(&mut out, &compared, &baseline_path).context("cannot print")?;
            baseline::tell(&mut out, &compared, &baseline_path).context("cannot print")?
        }
    };
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The machine on which `cargo xtask test` compares: it is the faster one.
pub const TESTED: Kind = Kind::QemuSvm;

/// What the tests' names begin with.
pub fn test_prefix() -> String {
    format!("bench/{TESTED}/")
}

/// The names of the tests, as far as the baseline tells them; none where there is no baseline.
pub fn test_names(workspace: &Workspace) -> Vec<String> {
    let baseline = Baseline::read(&Baseline::path(&workspace.root, TESTED)).unwrap_or_default();
    let prefix = test_prefix();
    baseline
        .names()
        .map(|name| format!("{prefix}{name}"))
        .collect()
}

/// Measures, and compares with the baseline: a result for each figure.
pub fn test(
    workspace: &Workspace,
    build: &Build,
    tools: &Tools,
) -> anyhow::Result<Vec<TestResult>> {
    let path = Baseline::path(&workspace.root, TESTED);
    let baseline = Baseline::read(&path)?;
    let figures = measure(TESTED, workspace, build, tools)?;
    let compared = baseline.compare(&figures);
    // A gain fails nothing; a terminal that cannot show it is no failure either.
    let _ = baseline::tell_gains(&mut std::io::stderr().lock(), &compared, &path);
    let prefix = test_prefix();
    let result = |compared: &baseline::Compared| TestResult {
        name: format!("{prefix}{}", compared.name),
        failure: compared.failure(),
    };
    Ok(compared.iter().map(result).collect())
}

/// All figures of a machine, one emulator after the other.
fn measure(
    kind: Kind,
    workspace: &Workspace,
    build: &Build,
    tools: &Tools,
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = sizes(build)?;
    for run in &RUNS {
        figures.extend(run.measure(kind, workspace, build, tools)?);
    }
    Ok(figures)
}

/// How large the kernel is.
fn sizes(build: &Build) -> anyhow::Result<Vec<Figure>> {
    let file = compile::read(&build.kernel)?;
    Ok(vec![
        Figure::exact("kernel_file_bytes", file.len() as u64),
        Figure::exact("kernel_loaded_bytes", loaded_bytes(&file)?),
    ])
}

/// How much memory an ELF file wants for its segments.
fn loaded_bytes(file: &[u8]) -> anyhow::Result<u64> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).context("the kernel is no ELF file")?;
    let segments = elf.segments().context("the kernel has no segments")?;
    Ok(segments
        .iter()
        .filter(|segment| segment.p_type == elf::abi::PT_LOAD)
        .map(|segment| segment.p_memsz)
        .sum())
}

impl Run<'_> {
    /// The guests that run.
    fn programs(&self) -> impl Iterator<Item = &str> {
        let root = image::root(self.command_line);
        std::iter::once(root).chain(self.guests.iter().copied())
    }

    /// Starts its machine.
    fn start(
        &self,
        kind: Kind,
        workspace: &Workspace,
        build: &Build,
        tools: &Tools,
    ) -> anyhow::Result<Machine> {
        let site = Site::new(&workspace.machines())?;
        image::write(
            &site.disk(),
            build,
            self.command_line,
            Some(self.guests),
            &[],
        )?;
        let equipment = Equipment {
            kind,
            smp: 1,
            threads: 1,
            memory: self.memory.min(kind.most_memory()),
            display: false,
            gdb: None,
            instruction_ns: Some(1),
            recorded: false,
            predictions: self.predictions,
        };
        Ok(Machine::start(site, &equipment, tools)?)
    }

    /// The figures that its machine prints.
    fn measure(
        &self,
        kind: Kind,
        workspace: &Workspace,
        build: &Build,
        tools: &Tools,
    ) -> anyhow::Result<Vec<Figure>> {
        let lines = self.lines(kind, workspace, build, tools)?;
        Ok(lines
            .iter()
            .filter_map(|line| Figure::parse(line))
            .collect())
    }

    /// All that its machine prints; there are figures among it.
    fn lines(
        &self,
        kind: Kind,
        workspace: &Workspace,
        build: &Build,
        tools: &Tools,
    ) -> anyhow::Result<Vec<String>> {
        let logs = workspace.target.join("test-logs");
        let log = logs.join(format!("{kind}-{}.log", self.name));
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let step = Step::start(format!("measuring on {kind}, {}", self.command_line));
        let mut machine = self.start(kind, workspace, build, tools)?;
        let mut script = Script::default();
        let (lines, ending) = watch(
            &mut machine,
            &mut script,
            PATIENCE,
            BufWriter::new(file),
            |_, line| step.detail(line),
        );
        machine.kill();
        let figures = lines.iter().filter_map(|line| Figure::parse(line)).count();
        if ending != Ending::Status(0) || figures == 0 {
            step.done("FAILED");
            for line in lines.iter().rev().take(LAST_WORDS).rev() {
                eprintln!("  {line}");
            }
            anyhow::bail!(
                "the machine did not get to its end ({ending:?})\n  try: cargo xtask run --on {kind} --append '{}'",
                self.command_line
            );
        }
        step.done(&format!("{figures} operations"));
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaded_size_is_that_of_the_segments() {
        // This program is an ELF file as well, and says so itself.
        let file = fs::read("/proc/self/exe").unwrap();
        assert!(loaded_bytes(&file).unwrap() > 100_000);
        assert!(loaded_bytes(b"no ELF file").is_err());
    }
}
