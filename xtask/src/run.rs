//! Boots Plinth in a machine and connects the terminal to its serial console.
//!
//! The exit code says how the machine ended: the status that Plinth gave, [`TIMED_OUT`], or [`DIED`]. Ctrl-A X is the
//! user's own wish and counts as success.

use std::net::TcpListener;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use crate::Install;
use crate::compile;
use crate::console::{Console, Input};
use crate::image;
use crate::machine::choose::{Host, choose};
use crate::machine::{Choice, Equipment, Event, Machine, Site};
use crate::provision::packages;
use crate::script::Script;
use crate::serial::{self, Lines, Report};
use crate::workspace::Workspace;

/// The exit code when the time was over, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// The exit code when the machine went off without a last word.
const DIED: u8 = 125;
/// The exit code of an error before the machine was on.
pub const NOT_RUN: u8 = 126;
/// How long a machine may take to go off after its last word.
const GRACE: Duration = Duration::from_secs(3);
/// How often the keyboard is looked at.
const TICK: Duration = Duration::from_millis(15);
/// Where gdb looks by habit.
const GDB_PORT: u16 = 1234;

/// The options of `cargo xtask run`.
#[derive(Debug, Args)]
pub struct Options {
    /// The machine: auto, qemu-svm, qemu-kvm, bochs-vmx or bochs-svm
    #[arg(long, value_name = "MACHINE", default_value = "auto")]
    pub on: Choice,
    /// The number of CPUs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub smp: u32,
    /// Memory in MiB, at least 128
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(128..))]
    pub memory: u32,
    /// End the machine after so many seconds, with exit code 124
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Command lines for the control guest, separated by `;`, each typed when it prompts
    #[arg(long, value_name = "COMMANDS", default_value = "")]
    pub script: String,
    /// The kernel command line, such as 'log=debug maxcpus=1'
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub append: String,
    /// Open a window for the screen
    #[arg(long)]
    pub display: bool,
    /// Wait for gdb before the first instruction (QEMU)
    #[arg(long)]
    pub gdb: bool,
    #[command(flatten)]
    pub install: Install,
}

/// How a machine's run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// With Plinth's last word.
    Status(u32),
    /// The time was over.
    TimedOut,
    /// Off, without a last word.
    Died,
    /// Ctrl-A X.
    Quit,
}

impl Outcome {
    fn code(self) -> u8 {
        match self {
            Self::Status(status) => u8::try_from(status).unwrap_or(u8::MAX),
            Self::TimedOut => TIMED_OUT,
            Self::Died => DIED,
            Self::Quit => 0,
        }
    }
}

/// `cargo xtask run`.
pub fn main(options: &Options) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    let (kind, why) = choose(options.on, &Host::look());
    eprintln!("machine: {kind} ({why})");
    let gdb = options
        .gdb
        .then(free_port)
        .transpose()
        .context("no port for gdb")?;
    let equipment = Equipment {
        kind,
        smp: options.smp,
        memory: options.memory,
        display: options.display,
        gdb,
        counts_instructions: false,
    };
    equipment.check()?;
    image::check_guests(&workspace, &options.append)?;
    let permission = options.install.permission();
    let tools = packages::provide(kind, permission)?;
    let build = compile::build(&workspace, permission)?;
    let site = Site::new(&workspace.machines())?;
    image::write(&site.disk(), &build, &options.append, None)?;
    if kind.is_bochs() && options.display {
        eprintln!(
            "display: connect a VNC viewer to 127.0.0.1, port 5900 or the next that Bochs found free"
        );
    }
    let mut machine = Machine::start(site, &equipment, &tools)?;
    if let Some(port) = gdb {
        eprintln!(
            "gdb: the machine waits for: gdb {} -ex 'target remote :{port}'",
            build.kernel.display()
        );
    }
    let mut console = Console::open().context("cannot set the terminal's mode")?;
    if console.is_interactive() {
        eprintln!("Ctrl-A X ends the machine");
    }
    let limit = options.timeout.map(Duration::from_secs);
    let outcome = attend(
        &mut machine,
        &mut console,
        Script::new(&options.script),
        limit,
    );
    let status = machine.exit_status();
    machine.kill();
    drop(console);
    eprintln!();
    match outcome {
        Outcome::Status(status) => eprintln!("the machine ended with status {status}"),
        Outcome::TimedOut => eprintln!(
            "the machine was ended after {} s",
            limit.unwrap_or_default().as_secs()
        ),
        Outcome::Quit => eprintln!("the machine was ended by Ctrl-A X"),
        Outcome::Died => {
            let how = status.map_or_else(
                || "closed its console".to_owned(),
                |status| format!("ended ({status})"),
            );
            eprintln!(
                "error: the machine {how} without its last line; the emulator's last messages:"
            );
            for line in machine.messages(20) {
                eprintln!("  | {line}");
            }
            eprintln!("  try: cargo xtask run --append log=debug, or another machine (--on)");
        }
    }
    Ok(ExitCode::from(outcome.code()))
}

/// Passes bytes to and fro until the machine ends.
fn attend(
    machine: &mut Machine,
    console: &mut Console,
    mut script: Script,
    limit: Option<Duration>,
) -> Outcome {
    let start = Instant::now();
    let (mut lines, mut ours) = (Lines::default(), false);
    let mut last_word: Option<(u32, Instant)> = None;
    loop {
        match machine.next(TICK) {
            Event::Output(bytes) => {
                console.show(&bytes, ours);
                let complete = lines.push(&bytes);
                for line in &complete {
                    ours |= line.to_lowercase().contains("plinth");
                    if let Some(Report::End(status)) = serial::parse(line) {
                        last_word.get_or_insert((status, Instant::now()));
                    }
                }
                if let Some(typed) = script.answer(complete.len(), &lines.partial()) {
                    machine.write(typed.as_bytes());
                }
            }
            Event::Idle => {}
            Event::Ended => {
                return last_word.map_or(Outcome::Died, |(status, _)| Outcome::Status(status));
            }
        }
        if let Some((status, when)) = last_word
            && when.elapsed() > GRACE
        {
            return Outcome::Status(status);
        }
        if limit.is_some_and(|limit| start.elapsed() > limit) {
            return last_word.map_or(Outcome::TimedOut, |(status, _)| Outcome::Status(status));
        }
        for input in console.typed() {
            match input {
                Input::Bytes(bytes) => machine.write(&bytes),
                Input::Quit => return Outcome::Quit,
            }
        }
    }
}

/// The port that gdb is used to, or any that is free.
fn free_port() -> std::io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", GDB_PORT))
        .or_else(|_| TcpListener::bind(("127.0.0.1", 0)))?;
    listener.local_addr().map(|address| address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Attends a machine that is a shell script.
    fn outcome(text: &str, script: &str, limit: Option<Duration>) -> Outcome {
        let parent = tempfile::tempdir().unwrap();
        let site = Site::new(parent.path()).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        let mut machine = Machine::pretend(site, &mut command).unwrap();
        attend(
            &mut machine,
            &mut Console::silent(),
            Script::new(script),
            limit,
        )
    }

    #[test]
    fn the_last_word_is_the_status() {
        assert_eq!(
            outcome("echo plinth: machine ends, status 7", "", None),
            Outcome::Status(7)
        );
        assert_eq!(
            outcome("echo plinth: machine ends, status 0; sleep 60", "", None),
            Outcome::Status(0)
        );
    }

    #[test]
    fn silence_is_death_and_hanging_is_a_timeout() {
        assert_eq!(outcome("echo hello", "", None), Outcome::Died);
        assert_eq!(
            outcome("sleep 60", "", Some(Duration::from_millis(300))),
            Outcome::TimedOut
        );
    }

    #[test]
    fn a_script_is_typed_at_the_prompt() {
        // The machine ends with the number that is typed second.
        let text = "printf 'plinth> '; read -r a; printf 'done\\nplinth> '; read -r b; \
                    echo; echo plinth: machine ends, status $(echo $b | tr -d '\\r')";
        let text = format!(
            "stty -icrnl 2>/dev/null; {}",
            text.replace("read -r", "IFS= read -d \"$CR\" -r")
        );
        // `read -d` is bash's; a carriage return ends a typed line.
        let text = format!(
            "exec bash -c 'CR=$(printf \"\\r\"); {}'",
            text.replace('\'', "'\\''")
        );
        assert_eq!(
            outcome(&text, "one; 42", Some(Duration::from_secs(20))),
            Outcome::Status(42)
        );
    }

    #[test]
    fn codes_fit_a_byte() {
        assert_eq!(Outcome::Status(3).code(), 3);
        assert_eq!(Outcome::Status(256).code(), 255);
        assert_eq!(
            (
                Outcome::TimedOut.code(),
                Outcome::Died.code(),
                Outcome::Quit.code()
            ),
            (124, 125, 0)
        );
    }
}
