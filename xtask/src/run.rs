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
use crate::linux;
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
    /// How many of them are threads of one core
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub threads: u32,
    /// Memory in MiB, at least 128
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(128..))]
    pub memory: u32,
    /// End the machine after so many seconds, with exit code 124
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Command lines for the control guest, separated by `;`, each typed when it prompts, as long as none fails. The exit code
    /// is the machine's status: behind the last command `shutdown` is typed, unless that is a `shutdown` or `reboot` itself;
    /// at the first line that begins with `error: `, `shutdown 1` is typed instead of what is left
    #[arg(long, value_name = "COMMANDS", default_value = "")]
    pub script: String,
    /// The kernel command line, of Plinth, such as 'log=debug maxcpus=1'; Linux's is --linux-append
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
    #[command(flatten)]
    pub linux: linux::Options,
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
        threads: options.threads,
        memory: options.memory,
        display: options.display,
        gdb,
        instruction_ns: None,
        recorded: false,
        predictions: false,
    };
    equipment.check()?;
    image::check_guests(&workspace, &options.append)?;
    let permission = options.install.permission();
    let tools = packages::provide(kind, permission)?;
    let mut linux = linux::provide(&workspace, &options.linux, &options.append, permission)?;
    if !options.script.trim().is_empty() {
        // A script says itself what starts, and is not to depend on what a machine file says.
        let changes = linux::Changes {
            autostart: Some(false),
            ..linux::Changes::default()
        };
        linux = linux
            .iter()
            .map(|machine| machine.with(&changes))
            .collect::<Result<_, _>>()?;
    }
    let build = compile::build(&workspace, permission)?;
    let site = Site::new(&workspace.machines())?;
    image::write(&site.disk(), &build, &options.append, None, &linux)?;
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
    let mut script = Script::of_commands(&options.script);
    let outcome = attend(&mut machine, &mut console, &mut script, limit);
    let status = machine.exit_status();
    machine.kill();
    drop(console);
    eprintln!();
    if let Some(wish) = script.wish() {
        eprintln!("the script still waited for {wish}");
    }
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
    script: &mut Script<'_>,
    limit: Option<Duration>,
) -> Outcome {
    let start = Instant::now();
    let (mut lines, mut ours) = (Lines::default(), false);
    let mut last_word: Option<(u32, Instant)> = None;
    loop {
        match machine.next(TICK) {
            Event::Output(bytes) => {
                console.show(&bytes, ours);
                for line in lines.push(&bytes) {
                    ours |= line.to_lowercase().contains("plinth");
                    if let Some(Report::End(status)) = serial::parse(&line) {
                        last_word.get_or_insert((status, Instant::now()));
                    }
                }
                machine.write(&script.answer(&bytes));
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
            &mut Script::of_commands(script),
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
        // A control guest that knows two commands, and ends with what it is told. Enter is a carriage return.
        let text = r#"exec bash -c '
            CR=$(printf "\r")
            while printf "plinth> "; IFS= read -d "$CR" -r command; do
                printf "%s\r\n" "$command"
                case $command in
                    list) echo nothing ;;
                    shutdown*) echo plinth: machine ends, status ${command#shutdown }; exit ;;
                    *) echo error: no such command ;;
                esac
            done'"#;
        let limit = Some(Duration::from_secs(20));
        assert_eq!(
            outcome(text, "list; shutdown 42", limit),
            Outcome::Status(42)
        );
        assert_eq!(
            outcome(text, "list; lisp; shutdown 42", limit),
            Outcome::Status(1)
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
