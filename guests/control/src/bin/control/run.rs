//! Running machines to their ends: their consoles as lines, and a report of each end.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use embassy_time::{Duration, Instant, Timer};
use plinth_guest_control::batch::{Options, status};
use plinth_guest_control::format;
use plinth_guest_control::plain::Lines;
use plinth_guest_control::report::account;

use crate::control::Control;
use crate::guest::vcpu_infos;
use crate::kernel_log::KernelLog;

/// Bytes of a console that are shown before another one's turn comes.
const TURN: usize = 4096;
/// How often the kernel's log is looked at.
const LOG: Duration = Duration::from_millis(100);

/// A domain that runs to its end.
struct Runner<'a> {
    control: &'a Control,
    number: u32,
    name: String,
    /// Stream position of what is shown next.
    position: u64,
    lines: Lines,
}

impl<'a> Runner<'a> {
    /// Makes and starts a domain of a machine.
    fn start(control: &'a Control, machine: &str) -> Result<Self, String> {
        let name = free_name(control, machine);
        let number = control.create(machine, &name)?;
        control.with(number, |guest| guest.is_run = true);
        let runner = Self {
            control,
            number,
            name,
            position: 0,
            lines: Lines::default(),
        };
        control.start(number)?;
        let memory = control.with(number, |guest| {
            guest.config().map_or(0, |machine| machine.memory.0)
        });
        runner.say(&alloc::format!(
            "starts: {} of memory",
            format::size(memory.unwrap_or(0))
        ));
        Ok(runner)
    }

    fn say(&self, what: &str) {
        self.control
            .terminal
            .line(&alloc::format!("{} {what}", self.name));
    }

    fn show(&self, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            self.control
                .terminal
                .line(&alloc::format!("[{}] {line}", self.name));
        }
    }

    /// Shows new output, a turn's worth; whether there is more.
    fn show_output(&mut self) -> bool {
        let read = self.control.with(self.number, |guest| {
            (guest.console.read(self.position, TURN), guest.console.end())
        });
        let Some(((missed, bytes), end)) = read else {
            return false;
        };
        if missed > 0 {
            let note = alloc::format!("({missed} bytes of output came too fast to be shown)");
            self.show([note]);
        }
        let lines = self.lines.feed(&bytes);
        self.show(lines);
        self.position += missed + bytes.len() as u64;
        self.position < end
    }

    /// Tells of the end, if it has come; whether it was as expected.
    fn end(&mut self) -> Option<bool> {
        let seen = self.control.with(self.number, |guest| {
            let ending = guest.ending?;
            let expected = guest
                .config()
                .is_none_or(|machine| machine.expect.0.matches(&ending));
            Some((ending, expected, guest.domain))
        });
        let Some(seen) = seen else {
            self.say("is gone: somebody else destroyed it");
            return Some(false);
        };
        let (ending, expected, domain) = seen?;
        let rest = self.lines.finish();
        self.show(rest);
        let note = if expected { "" } else { " (not expected)" };
        self.say(&alloc::format!(
            "ended: {ending}, rip {:#x}{note}",
            ending.rip
        ));
        if let Ok((_, vcpus)) = vcpu_infos(domain)
            && let Some(vcpu) = vcpus.first()
        {
            self.say(&account(vcpu));
        }
        Some(expected)
    }
}

impl Drop for Runner<'_> {
    /// Also where the operator broke off: then the domain runs on as any other.
    fn drop(&mut self) {
        self.control.with(self.number, |guest| guest.is_run = false);
    }
}

/// A name for a domain of this machine: the machine's, or that with a number.
fn free_name(control: &Control, machine: &str) -> String {
    if control.number_of(machine).is_none() {
        return machine.into();
    }
    (2..)
        .map(|number: u32| alloc::format!("{machine}-{number}"))
        .find(|name| control.number_of(name).is_none())
        .unwrap_or_else(|| machine.into())
}

/// Runs machines to their ends, `parallel` of them at a time, in order; how many did not end as expected. With `log`, the kernel's
/// log is shown as well, and what is left of the domains is taken back.
async fn run(
    control: &Control,
    machines: &[String],
    parallel: usize,
    mut log: Option<KernelLog>,
) -> usize {
    let mut waiting: VecDeque<&String> = machines.iter().collect();
    let mut running: Vec<Runner<'_>> = Vec::new();
    let mut surprises = 0;
    let mut changes = control.changes();
    loop {
        while running.len() < parallel
            && let Some(machine) = waiting.pop_front()
        {
            match Runner::start(control, machine) {
                Ok(runner) => running.push(runner),
                Err(why) => {
                    control.terminal.line(&alloc::format!("error: {why}"));
                    surprises += 1;
                }
            }
        }
        let mut more = false;
        let mut ended = Vec::new();
        for runner in &mut running {
            if runner.show_output() {
                more = true;
            } else if let Some(expected) = runner.end() {
                surprises += usize::from(!expected);
                ended.push(runner.number);
            }
            control.terminal.room().await;
        }
        running.retain(|runner| !ended.contains(&runner.number));
        if let Some(log) = &mut log {
            show_log(control, log).await;
            for number in &ended {
                take_back(control, *number);
            }
        }
        if running.is_empty() && waiting.is_empty() {
            return surprises;
        }
        if !more && ended.is_empty() {
            let pause = if log.is_some() {
                Instant::now() + LOG
            } else {
                Instant::MAX
            };
            changes.until(pause).await;
        }
    }
}

fn take_back(control: &Control, number: u32) {
    // It may be gone already, which was told.
    if control.guests.borrow().contains_key(&number)
        && let Err(why) = control.destroy(number)
    {
        control.terminal.line(&alloc::format!("error: {why}"));
    }
}

async fn show_log(control: &Control, log: &mut KernelLog) {
    while let Ok(lines) = log.next_lines()
        && !lines.is_empty()
    {
        for line in lines {
            control.terminal.line(&line);
        }
        control.terminal.room().await;
    }
}

/// The command `run`.
pub async fn command(control: &Control, machines: &[String]) -> Result<(), String> {
    for machine in machines {
        // What is left of the last run makes room.
        if let Some(number) = control.number_of(machine)
            && control.with(number, |guest| guest.ending.is_some()) == Some(true)
        {
            control.destroy(number)?;
        }
        control.archive.machine(machine)?;
    }
    match run(control, machines, machines.len(), None).await {
        0 => Ok(()),
        surprises => Err(alloc::format!(
            "{} did not end as expected",
            format::counted(surprises, "machine")
        )),
    }
}

/// Batch mode: runs the machines that the command line names, and ends the machine.
pub async fn batch(control: &Control, options: &Options, machines: &[String]) -> ! {
    let memory = || control.system.info().map_or(0, |info| info.memory_frames);
    let before = memory();
    let log = KernelLog::from_now(control.system);
    let surprises = run(control, machines, options.parallel, Some(log)).await;
    // Frames go back in steps.
    for _ in 0..100 {
        if memory() <= before {
            break;
        }
        Timer::after(Duration::from_millis(10)).await;
    }
    let left = memory().saturating_sub(before);
    control
        .terminal
        .line(&alloc::format!("guests' memory left: {left} frames"));
    control.terminal.line(&alloc::format!(
        "all guests have ended, {surprises} of them otherwise than expected"
    ));
    control.power(options.end, status(surprises)).await
}
