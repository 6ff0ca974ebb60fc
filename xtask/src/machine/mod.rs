//! Machines that Plinth boots on: what kinds there are, and one of them running.
//!
//! Every file of a machine lies in a private directory and no port is fixed, so that any number of them can run at
//! once. A machine ends with the value that stands for it.

pub mod bochs;
pub mod choose;
pub mod qemu;

pub use qemu::{MachineCheck, Monitor};

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::guard::{Child, PrivateDirectory};
use crate::linux;
use crate::provision::packages::Tools;

/// A kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// QEMU's own emulation of an AMD CPU with SVM.
    QemuSvm,
    /// QEMU on nested KVM, with this computer's CPU.
    QemuKvm,
    /// Bochs with an Intel CPU that has VMX.
    BochsVmx,
    /// Bochs with an AMD CPU that has SVM.
    BochsSvm,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::QemuSvm, Self::QemuKvm, Self::BochsVmx, Self::BochsSvm];

    /// The name on the command line and in test names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QemuSvm => "qemu-svm",
            Self::QemuKvm => "qemu-kvm",
            Self::BochsVmx => "bochs-vmx",
            Self::BochsSvm => "bochs-svm",
        }
    }

    /// Whether Bochs runs it.
    pub const fn is_bochs(self) -> bool {
        matches!(self, Self::BochsVmx | Self::BochsSvm)
    }

    /// The most memory that it can have, in MiB.
    pub const fn most_memory(self) -> u32 {
        if self.is_bochs() {
            bochs::MOST_MEMORY
        } else {
            u32::MAX
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("no such machine; there are {names}")
            })
    }
}

/// What `--on` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The best that works here.
    Auto,
    /// This one.
    Exactly(Kind),
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse()
            .map(Self::Exactly)
            .map_err(|error: String| format!("{error}, auto"))
    }
}

/// How a machine is equipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Equipment {
    /// The kind of machine.
    pub kind: Kind,
    /// The number of CPUs, at least 1.
    pub smp: u32,
    /// How many of them are threads of one core.
    pub threads: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Whether there is a window for the screen.
    pub display: bool,
    /// The TCP port on which the machine waits for a debugger before it starts.
    pub gdb: Option<u16>,
    /// QEMU's time is counted in instructions of that many nanoseconds, a power of two; with 1 a tick of the TSC is an
    /// instruction, as it always is in Bochs. QEMU is slower then.
    pub instruction_ns: Option<u32>,
    /// Whether QEMU records the run, for [`qemu::Monitor::instructions`].
    pub recorded: bool,
    /// Whether the CPU announces the registers against speculative execution, which have no effect on either emulator.
    pub predictions: bool,
}

impl Equipment {
    /// Whether the machine can be equipped like that: to be asked before anything that takes long.
    pub fn check(&self) -> Result<(), MachineError> {
        if self.threads == 0 || !self.smp.is_multiple_of(self.threads) {
            Err(MachineError::Equipment {
                kind: self.kind,
                why: "has cores with the same number of threads each",
                advice: "--smp with a multiple of --threads",
            })
        } else if self.kind.is_bochs() {
            bochs::check(self)
        } else {
            Ok(())
        }
    }
}

/// Why a machine does not start.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A file in its directory, or the emulator itself.
    #[error("cannot start the machine: {0}: {1}\n  try: cargo xtask doctor")]
    Io(String, io::Error),
    /// The emulator cannot be equipped like that.
    #[error("{kind} {why}\n  try: {advice}")]
    Equipment {
        /// The kind of machine.
        kind: Kind,
        /// What it cannot.
        why: &'static str,
        /// What can be done.
        advice: &'static str,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> MachineError {
    let what = what.into();
    move |error| MachineError::Io(what, error)
}

/// What a machine did last.
#[derive(Debug)]
pub enum Event {
    /// It wrote to its serial port.
    Output(Vec<u8>),
    /// Nothing, for the time that was waited.
    Idle,
    /// It is off.
    Ended,
}

/// The disk image's name inside a machine's directory.
pub const DISK: &str = "disk.img";

/// A private directory in which a machine can be started; the caller writes the image to [`Site::disk`] first.
#[derive(Debug)]
pub struct Site(PrivateDirectory);

impl Site {
    /// Makes one below `machines`.
    pub fn new(machines: &Path) -> Result<Self, MachineError> {
        PrivateDirectory::new(machines)
            .map(Self)
            .map_err(failed(machines.display().to_string()))
    }

    /// Where the machine's disk image belongs.
    pub fn disk(&self) -> PathBuf {
        self.0.path().join(DISK)
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    input: Option<File>,
    output: Receiver<Vec<u8>>,
    /// The machine's end of the serial line, kept open so that ours does not report an error before it is opened.
    line: Option<OwnedFd>,
    site: Site,
}

impl Machine {
    /// Starts the machine. It is bound to the calling thread: it ends when that ends.
    pub fn start(site: Site, equipment: &Equipment, tools: &Tools) -> Result<Self, MachineError> {
        let directory = site.0.path();
        if equipment.kind.is_bochs() {
            let messages = File::create(directory.join(MESSAGES)).map_err(failed(MESSAGES))?;
            let copy = messages.try_clone().map_err(failed(MESSAGES))?;
            let serial = Serial::open().map_err(failed("a pseudo-terminal"))?;
            let mut command = bochs::prepare(directory, equipment, tools, &serial.name)?;
            command
                .current_dir(directory)
                .stdin(Stdio::null())
                .stdout(messages)
                .stderr(copy);
            let child = start(&mut command)?;
            let input = serial
                .ours
                .try_clone()
                .map_err(failed("a pseudo-terminal"))?;
            let output = pump(serial.ours);
            Ok(Self {
                child,
                input: Some(input),
                output,
                line: Some(serial.theirs),
                site,
            })
        } else {
            let command = qemu::prepare(directory, equipment, tools)?;
            Self::start_qemu(site, command)
        }
    }

    /// Starts Linux on QEMU's own machine, without Plinth and by QEMU's own loader.
    pub fn start_linux(
        site: Site,
        equipment: &Equipment,
        tools: &Tools,
        linux: &linux::Machine,
        command_line: &str,
    ) -> Result<Self, MachineError> {
        let command = qemu::prepare_linux(site.0.path(), equipment, tools, linux, command_line)?;
        Self::start_qemu(site, command)
    }

    fn start_qemu(site: Site, mut command: Command) -> Result<Self, MachineError> {
        let directory = site.0.path();
        let messages = File::create(directory.join(MESSAGES)).map_err(failed(MESSAGES))?;
        command
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(messages);
        let mut child = start(&mut command)?;
        let pipes = child.pipes();
        let input = pipes
            .stdin
            .take()
            .map(|pipe| File::from(OwnedFd::from(pipe)));
        let output = pipes
            .stdout
            .take()
            .map(|pipe| pump(File::from(OwnedFd::from(pipe))));
        let output = output.unwrap_or_else(|| mpsc::channel().1);
        Ok(Self {
            child,
            input,
            output,
            line: None,
            site,
        })
    }

    /// The monitor of a machine in QEMU.
    pub fn monitor(&self) -> anyhow::Result<Monitor> {
        Monitor::connect(self.directory())
    }

    /// The machine's private directory.
    pub fn directory(&self) -> &Path {
        self.site.0.path()
    }

    /// Starts any program as a machine whose serial port is its standard input and output.
    #[cfg(test)]
    pub fn pretend(site: Site, command: &mut Command) -> Result<Self, MachineError> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = start(command)?;
        let pipes = child.pipes();
        let input = pipes
            .stdin
            .take()
            .map(|pipe| File::from(OwnedFd::from(pipe)));
        let output = pump(File::from(OwnedFd::from(pipes.stdout.take().unwrap())));
        Ok(Self {
            child,
            input,
            output,
            line: None,
            site,
        })
    }

    /// Waits at most `limit` for something to happen.
    pub fn next(&mut self, limit: Duration) -> Event {
        match self.output.recv_timeout(limit) {
            Ok(bytes) => Event::Output(bytes),
            Err(RecvTimeoutError::Timeout) => {
                // Only a machine that is off lets go of its end of the line; then what it wrote last still comes.
                if matches!(self.child.ended(), Ok(Some(_))) {
                    self.line = None;
                }
                Event::Idle
            }
            Err(RecvTimeoutError::Disconnected) => Event::Ended,
        }
    }

    /// Types bytes at the machine's serial port. A machine that is already off ignores them.
    pub fn write(&mut self, bytes: &[u8]) {
        if !bytes.is_empty()
            && let Some(input) = &mut self.input
            && input.write_all(bytes).and_then(|()| input.flush()).is_err()
        {
            self.input = None;
        }
    }

    /// Switches the machine off.
    pub fn kill(&mut self) {
        self.child.kill();
        self.line = None;
    }

    /// How the emulator ended, if it did by itself.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.ended().ok().flatten()
    }

    /// The last of what the emulator itself had to say.
    pub fn messages(&self, lines: usize) -> Vec<String> {
        let directory = self.directory();
        let mut all = Vec::new();
        for name in [bochs::LOG, MESSAGES] {
            if let Ok(bytes) = std::fs::read(directory.join(name)) {
                all.extend(String::from_utf8_lossy(&bytes).lines().map(str::to_owned));
            }
        }
        // What both emulators say at every start.
        let boring = [
            "TCG doesn't support requested feature",
            "lt_dlhandle is",
            "loaded plugin libbx_",
        ];
        all.retain(|line| boring.iter().all(|text| !line.contains(text)));
        all.split_off(all.len().saturating_sub(lines))
    }
}

/// Where the emulator's own messages go.
const MESSAGES: &str = "emulator.txt";

fn start(command: &mut Command) -> Result<Child, MachineError> {
    let program = command.get_program().to_string_lossy().into_owned();
    Child::start(command).map_err(failed(program))
}

/// Reads in a thread of its own until the other side is closed.
fn pump(mut source: File) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    if sender
                        .send(buffer.get(..count).unwrap_or_default().to_vec())
                        .is_err()
                    {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A pseudo-terminal reports the end as an I/O error.
                Err(_) => break,
            }
        }
    });
    receiver
}

/// A pseudo-terminal as a serial line.
struct Serial {
    ours: File,
    theirs: OwnedFd,
    name: String,
}

impl Serial {
    fn open() -> io::Result<Self> {
        use rustix::fs::{Mode, OFlags};
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = ptsname(&ours, Vec::new())?.to_string_lossy().into_owned();
        let theirs = rustix::fs::open(
            name.as_str(),
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut mode = tcgetattr(&theirs)?;
        mode.make_raw();
        tcsetattr(&theirs, OptionalActions::Now, &mode)?;
        Ok(Self {
            ours: ours.into(),
            theirs,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        assert!("pc".parse::<Choice>().unwrap_err().contains("bochs-vmx"));
    }

    #[test]
    fn a_machine_talks_and_listens_and_ends() {
        let parent = tempfile::tempdir().unwrap();
        let site = Site::new(parent.path()).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "read x; echo got $x"]);
        let mut machine = Machine::pretend(site, &mut command).unwrap();
        assert!(matches!(
            machine.next(Duration::from_millis(50)),
            Event::Idle
        ));
        machine.write(b"hello\n");
        let mut output = Vec::new();
        loop {
            match machine.next(Duration::from_secs(10)) {
                Event::Output(bytes) => output.extend(bytes),
                Event::Ended => break,
                Event::Idle => panic!("the machine hangs"),
            }
        }
        assert_eq!(output, b"got hello\n");
        drop(machine);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_serial_line_carries_bytes_unchanged() {
        let mut serial = Serial::open().unwrap();
        let mut theirs = File::from(serial.theirs);
        theirs.write_all(b"a\nb\x03").unwrap();
        let mut buffer = [0; 4];
        serial.ours.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"a\nb\x03");
        serial.ours.write_all(b"\r\x01").unwrap();
        theirs.read_exact(&mut buffer[..2]).unwrap();
        assert_eq!(&buffer[..2], b"\r\x01");
    }
}
