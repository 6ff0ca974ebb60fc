//! QEMU's command line.
//!
//! The serial port is QEMU's standard input and output. Files are named relative to the machine's directory.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::{DISK, Equipment, Kind, MachineError, failed};
use crate::linux;
use crate::provision::packages::Tools;

/// The private copy of the firmware's variables.
const VARIABLES: &str = "vars.fd";
/// A recorded machine's record, and where a machine's monitor is reached.
const RECORD: &str = "record";
const CONTROL: &str = "qmp";
/// Linux's files where it runs without Plinth.
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd";

/// The usual CPU, with what an EPYC announces by its later microcode. TCG has none of it and would take it away again: WRMSR has no
/// effect there.
const PREDICTIONS: &str = "EPYC,+svm,+ibpb,+ibrs,+amd-stibp,+amd-ssbd,x-force-features=on";

/// Writes the machine's files and gives the command that starts it.
pub fn prepare(
    directory: &Path,
    equipment: &Equipment,
    tools: &Tools,
) -> Result<Command, MachineError> {
    let firmware = &tools.firmware;
    if let Some(variables) = &firmware.variables {
        // Read and written, not copied: the original may be read-only, and the copy must not be.
        let template = fs::read(variables).map_err(failed(variables.display().to_string()))?;
        fs::write(directory.join(VARIABLES), template).map_err(failed(VARIABLES))?;
    }
    let mut command = Command::new(&tools.emulator);
    command.args(arguments(
        equipment,
        &firmware.code,
        firmware.variables.is_some(),
    ));
    Ok(command)
}

/// As [`prepare`], for Linux without Plinth. Its firmware speaks on the serial port, too.
pub fn prepare_linux(
    directory: &Path,
    equipment: &Equipment,
    tools: &Tools,
    linux: &linux::Machine,
    command_line: &str,
) -> Result<Command, MachineError> {
    fs::write(directory.join(KERNEL), &linux.kernel).map_err(failed(KERNEL))?;
    fs::write(directory.join(INITRD), &linux.initrd).map_err(failed(INITRD))?;
    let mut command = Command::new(&tools.emulator);
    command
        .args(hardware(equipment, ",mux=on"))
        .args(["-device", "isa-debugcon,iobase=0x402,chardev=com1"])
        .args([
            "-kernel",
            KERNEL,
            "-initrd",
            INITRD,
            "-append",
            command_line,
        ]);
    Ok(command)
}

/// A running machine's monitor (QMP). There is one at a time.
#[derive(Debug)]
pub struct Monitor {
    socket: UnixStream,
    answers: Lines<BufReader<UnixStream>>,
}

impl Monitor {
    /// That of the machine whose files are in `directory`.
    pub fn connect(directory: &Path) -> anyhow::Result<Self> {
        let socket = UnixStream::connect(directory.join(CONTROL)).context("cannot reach QEMU")?;
        let answers = socket.try_clone().context("cannot reach QEMU")?;
        let mut monitor = Self {
            socket,
            answers: BufReader::new(answers).lines(),
        };
        // It greets first, and wants to be asked for what it can do.
        monitor.hear()?;
        monitor.ask(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(monitor)
    }

    fn hear(&mut self) -> anyhow::Result<Value> {
        let line = self.answers.next().context("QEMU says nothing")?;
        let line = line.context("QEMU says nothing")?;
        serde_json::from_str(&line).context("QEMU's answer is no JSON")
    }

    /// What a command returns.
    fn ask(&mut self, command: &Value) -> anyhow::Result<Value> {
        writeln!(self.socket, "{command}").context("cannot ask QEMU")?;
        loop {
            let mut answer = self.hear()?;
            // What happens meanwhile is told, too.
            if answer.get("event").is_some() {
                continue;
            }
            if let Some(why) = answer.get("error") {
                bail!("QEMU refuses {command}: {why}");
            }
            return Ok(answer["return"].take());
        }
    }

    /// How many instructions a recorded machine has executed.
    pub fn instructions(&mut self) -> anyhow::Result<u64> {
        count(&self.ask(&json!({ "execute": "query-replay" }))?)
    }

    /// An NMI at every CPU.
    pub fn inject_nmi(&mut self) -> anyhow::Result<()> {
        self.ask(&json!({ "execute": "inject-nmi" }))?;
        Ok(())
    }

    /// A machine check at this CPU: what a bank's status and address become, and the CPU's `MCG_STATUS`. One that is corrected raises no
    /// exception.
    pub fn inject_machine_check(&mut self, cpu: u32, check: &MachineCheck) -> anyhow::Result<()> {
        let MachineCheck {
            bank,
            status,
            mcg_status,
            address,
        } = check;
        self.tell(&format!(
            "mce {cpu} {bank} {status:#x} {mcg_status:#x} {address:#x} 0"
        ))
    }

    /// Writes a line for each instruction to a file in the machine's directory from now on, instead of the file before.
    pub fn trace(&mut self, file: &str) -> anyhow::Result<()> {
        self.tell(&format!("logfile {file}"))?;
        // A block of code is one instruction then, and each goes by the loop that logs it.
        self.tell("singlestep on")?;
        self.tell("log exec,nochain")
    }

    /// Says a line to the monitor for people, which has no errors but words.
    fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let said = self.ask(&json!({
            "execute": "human-monitor-command",
            "arguments": { "command-line": line },
        }))?;
        let said = said.as_str().context("QEMU does not obey")?.trim();
        ensure!(said.is_empty(), "QEMU says to {line:?}: {said}");
        Ok(())
    }
}

/// A machine check as the registers of a bank have it (SDM vol. 3 17.3).
#[derive(Debug, Clone, Copy)]
pub struct MachineCheck {
    /// The bank.
    pub bank: u32,
    /// Its status.
    pub status: u64,
    /// The CPU's `MCG_STATUS`.
    pub mcg_status: u64,
    /// The bank's address.
    pub address: u64,
}

/// The count in the answer to `query-replay`.
fn count(answer: &Value) -> anyhow::Result<u64> {
    answer["icount"]
        .as_u64()
        .context("QEMU does not say how many instructions it has executed")
}

/// CPUs, memory, screen and serial port, whose line has the given properties.
fn hardware(equipment: &Equipment, serial: &str) -> Vec<String> {
    let (accelerator, cpu) = match equipment.kind {
        Kind::QemuKvm => ("kvm", "host"),
        // With a thread for each CPU, QEMU 7.2 mixes up host and guest at VMRUN and #VMEXIT now and then, and delivers
        // interrupts in the shadow of STI (docs/testing.md). Besides, only one thread can count instructions.
        _ if equipment.predictions => ("tcg,thread=single", PREDICTIONS),
        _ => ("tcg,thread=single", "EPYC,+svm"),
    };
    let mut list: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(|word| (*word).to_owned()));
    add(&[
        "-name",
        "plinth",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
    ]);
    add(&["-machine", "q35", "-accel", accelerator, "-cpu", cpu]);
    if let Some(ns) = equipment.instruction_ns
        && equipment.kind == Kind::QemuSvm
    {
        let shift = ns.max(1).ilog2();
        if equipment.recorded {
            add(&[
                "-icount",
                &format!("shift={shift},rr=record,rrfile={RECORD}"),
            ]);
        } else {
            add(&["-icount", &format!("shift={shift},sleep=off")]);
        }
    }
    add(&[
        "-smp",
        &format!("{},threads={}", equipment.smp, equipment.threads),
        "-m",
        &equipment.memory.to_string(),
    ]);
    // Without `signal=off` a terminal's Ctrl-C would end QEMU instead of reaching the guest.
    add(&[
        "-chardev",
        &format!("stdio,id=com1,signal=off{serial}"),
        "-serial",
        "chardev:com1",
    ]);
    add(&["-qmp", &format!("unix:{CONTROL},server=on,wait=off")]);
    add(&["-vga", "std"]);
    if !equipment.display {
        add(&["-display", "none"]);
    }
    list
}

/// What [`hardware`] has not: firmware and disk.
fn arguments(equipment: &Equipment, code: &Path, variables: bool) -> Vec<String> {
    let mut list = hardware(equipment, "");
    let mut add = |words: &[&str]| list.extend(words.iter().map(|word| (*word).to_owned()));
    let code = code.display().to_string();
    add(&[
        "-drive",
        &format!(
            "if=pflash,unit=0,format=raw,readonly=on,file={}",
            escape(&code)
        ),
    ]);
    if variables {
        add(&[
            "-drive",
            &format!("if=pflash,unit=1,format=raw,file={VARIABLES}"),
        ]);
    }
    add(&["-drive", &format!("if=ide,format=raw,file={DISK}")]);
    if let Some(port) = equipment.gdb {
        add(&["-gdb", &format!("tcp:127.0.0.1:{port}"), "-S"]);
    }
    list
}

/// A comma inside a value is written twice.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn line(equipment: &Equipment) -> String {
        arguments(equipment, Path::new("/fw/a,b.fd"), true).join(" ")
    }

    fn equipment(kind: Kind) -> Equipment {
        Equipment {
            kind,
            smp: 4,
            threads: 2,
            memory: 512,
            display: false,
            gdb: None,
            instruction_ns: None,
            recorded: false,
            predictions: false,
        }
    }

    #[test]
    fn svm_is_emulated() {
        let line = line(&equipment(Kind::QemuSvm));
        assert!(
            line.contains("-accel tcg,thread=single -cpu EPYC,+svm -smp 4,threads=2 -m 512"),
            "{line}"
        );
        assert!(line.contains("-no-reboot") && line.contains("-display none"));
        assert!(line.contains("readonly=on,file=/fw/a,,b.fd"));
        assert!(!line.contains("-gdb") && !line.contains(" -S"));
    }

    #[test]
    fn instructions_are_counted_and_commands_taken() {
        let counting = Equipment {
            instruction_ns: Some(1),
            ..equipment(Kind::QemuSvm)
        };
        let line = line(&counting);
        assert!(line.contains("-icount shift=0,sleep=off"), "{line}");
        assert!(line.contains("-qmp unix:qmp,server=on,wait=off"), "{line}");
    }

    #[test]
    fn the_monitor_is_asked_and_tells() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(CONTROL)).unwrap();
        // QEMU's side, with an event between; it does not know the last command.
        let qemu = std::thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let mut asked = BufReader::new(&socket).lines();
            let said = [
                r#"{"return": {}}"#,
                r#"{"event": "RESUME"}
                {"return": {"icount": 7}}"#,
                r#"{"return": ""}"#,
                r#"{"return": "unknown command"}"#,
            ];
            writeln!(&socket, "{{\"QMP\": {{}}}}").unwrap();
            said.map(|answer| {
                let command = asked.next().unwrap().unwrap();
                writeln!(&socket, "{answer}").unwrap();
                command
            })
        });
        let mut monitor = Monitor::connect(directory.path()).unwrap();
        assert_eq!(monitor.instructions().unwrap(), 7);
        let error = monitor.trace("file").unwrap_err().to_string();
        assert!(error.contains("unknown command"), "{error}");
        let asked = qemu.join().unwrap();
        assert!(asked[0].contains("qmp_capabilities"));
        assert!(
            asked[2].contains(r#"{"command-line":"logfile file"}"#),
            "{asked:?}"
        );
        assert!(asked[3].contains("singlestep on"));
    }

    #[test]
    fn kvm_passes_the_cpu_through() {
        assert!(line(&equipment(Kind::QemuKvm)).contains("-accel kvm -cpu host"));
    }

    #[test]
    fn display_and_debugger() {
        let line = line(&Equipment {
            display: true,
            gdb: Some(4711),
            ..equipment(Kind::QemuSvm)
        });
        assert!(!line.contains("-display"));
        assert!(line.ends_with("-gdb tcp:127.0.0.1:4711 -S"), "{line}");
    }

    #[test]
    fn the_variables_are_a_private_copy() {
        let directory = tempfile::tempdir().unwrap();
        let template = directory.path().join("template.fd");
        fs::write(&template, "vars").unwrap();
        let mut permissions = fs::metadata(&template).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&template, permissions).unwrap();
        let tools = Tools {
            emulator: "/usr/bin/qemu".into(),
            firmware: crate::provision::packages::Firmware {
                code: "/fw/code.fd".into(),
                variables: Some(template),
            },
            video: None,
        };
        prepare(directory.path(), &equipment(Kind::QemuSvm), &tools).unwrap();
        let copy = directory.path().join(VARIABLES);
        assert_eq!(fs::read(&copy).unwrap(), b"vars");
        assert!(!fs::metadata(&copy).unwrap().permissions().readonly());
    }
}
