//! `cargo xtask bench linux-boot`: the instructions from Linux's first to its prompt, in a domain and directly in QEMU.
//!
//! QEMU records the run, and so knows how many instructions all CPUs have executed: those of idle CPUs are none.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::Options;
use crate::compile;
use crate::image;
use crate::linux::{self, Changes};
use crate::machine::{Equipment, Event, Kind, Machine, Site};
use crate::progress::Step;
use crate::provision::packages;
use crate::workspace::Workspace;

/// QEMU records machines with one CPU only.
const CPUS: u32 = 1;
/// As in the machine file of the machine `linux`.
const LINUX_MEMORY: u32 = 256;
const COMMAND_LINE: &str = "console=ttyS0 panic=1";
/// Memory in MiB of the machine on which the domain runs.
const MEMORY: u32 = 1024;
/// What the initramfs says before it gives a prompt.
const PROMPT: &str = "plinth-init: ready";
/// What QEMU's firmware says last.
const FIRMWARE_ENDS: &str = "Booting from ROM";
/// What the control guest says before it loads the kernel.
const DOMAIN_STARTS: &str = "linux starts:";
const CONTROL_PROMPT: &str = "plinth> ";
/// Recording is slow.
const PATIENCE: Duration = Duration::from_secs(900);

/// Measures and prints both, and their ratio.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    let permission = options.install.permission();
    let tools = packages::provide(Kind::QemuSvm, permission)?;
    let wishes = linux::Options::default();
    let machines = linux::machines(&workspace, &[linux::Kind::Cloud], &wishes, permission)?;
    let changes = Changes {
        vcpus: Some(CPUS),
        autostart: Some(false),
        ..Changes::default()
    };
    let machines = machines
        .iter()
        .map(|machine| machine.with(&changes))
        .collect::<Result<Vec<_>, _>>()?;
    let [linux] = machines.as_slice() else {
        anyhow::bail!("there is no Linux to measure");
    };
    let build = compile::build(&workspace, permission)?;
    let equipment = |memory| Equipment {
        kind: Kind::QemuSvm,
        smp: CPUS,
        threads: 1,
        memory,
        display: false,
        gdb: None,
        instruction_ns: Some(1),
        recorded: true,
        predictions: false,
    };

    let step = Step::start("Linux in QEMU".to_owned());
    let site = Site::new(&workspace.machines())?;
    let machine =
        Machine::start_linux(site, &equipment(LINUX_MEMORY), &tools, linux, COMMAND_LINE)?;
    let direct = Watched::new(machine, &step).between(None, FIRMWARE_ENDS)?;
    step.done(&format!("{direct} instructions"));

    let step = Step::start("Linux in a domain".to_owned());
    let site = Site::new(&workspace.machines())?;
    image::write(&site.disk(), &build, "", Some(&["linux"]), &machines)?;
    let machine = Machine::start(site, &equipment(MEMORY), &tools)?;
    let domain = Watched::new(machine, &step).between(Some("run linux\r"), DOMAIN_STARTS)?;
    step.done(&format!("{domain} instructions"));

    println!("Linux with {COMMAND_LINE:?}, one CPU, to its prompt");
    println!("directly in QEMU  {direct:>12} instructions");
    println!("in a domain       {domain:>12} instructions");
    println!("ratio             {:>12.3}", domain as f64 / direct as f64);
    Ok(ExitCode::SUCCESS)
}

/// A machine, and what it has said.
struct Watched<'a> {
    machine: Machine,
    said: String,
    step: &'a Step,
    start: Instant,
}

impl<'a> Watched<'a> {
    fn new(machine: Machine, step: &'a Step) -> Self {
        Self {
            machine,
            said: String::new(),
            step,
            start: Instant::now(),
        }
    }

    /// The instructions from the text to Linux's prompt; types something first at the control guest's prompt.
    fn between(mut self, typed: Option<&str>, from: &str) -> anyhow::Result<u64> {
        if let Some(typed) = typed {
            self.until(CONTROL_PROMPT)?;
            self.machine.write(typed.as_bytes());
        }
        self.until(from)?;
        let first = self.machine.monitor()?.instructions()?;
        self.until(PROMPT)?;
        let last = self.machine.monitor()?.instructions()?;
        self.machine.kill();
        Ok(last.saturating_sub(first))
    }

    fn until(&mut self, text: &str) -> anyhow::Result<()> {
        loop {
            if let Some(at) = self.said.find(text) {
                self.said.drain(..at + text.len());
                return Ok(());
            }
            anyhow::ensure!(
                self.start.elapsed() < PATIENCE,
                "it has not said {text:?} in {} s",
                PATIENCE.as_secs()
            );
            match self.machine.next(Duration::from_millis(100)) {
                Event::Output(bytes) => {
                    let text = String::from_utf8_lossy(&bytes);
                    if let Some(line) = text.lines().next_back() {
                        self.step.detail(line);
                    }
                    self.said.push_str(&text);
                }
                Event::Idle => {}
                Event::Ended => anyhow::bail!(
                    "the machine ended before it said {text:?}: {}",
                    self.machine.messages(1).join("")
                ),
            }
        }
    }
}
