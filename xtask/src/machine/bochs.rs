//! Bochs's configuration file and command line.
//!
//! The serial port is a pseudo-terminal (`mode=term`), which carries both directions. Files are named relative to the
//! machine's directory.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::{DISK, Equipment, Kind, MachineError, failed};
use crate::provision::packages::Tools;

/// Bochs's log inside the machine's directory.
pub const LOG: &str = "bochs.log";
const CONFIGURATION: &str = "bochsrc";
const DEBUGGER_COMMANDS: &str = "continue.rc";

/// The most CPUs that Bochs 2.7 runs; it crashes with 16.
const MOST_CPUS: u32 = 8;
/// The most memory in MiB that Bochs 2.7 takes from the host.
pub const MOST_MEMORY: u32 = 2048;

/// Whether Bochs can be equipped like that.
pub fn check(equipment: &Equipment) -> Result<(), MachineError> {
    let refuse = |why, advice| {
        Err(MachineError::Equipment {
            kind: equipment.kind,
            why,
            advice,
        })
    };
    if equipment.gdb.is_some() {
        refuse("has no port for gdb", "--gdb with --on qemu-svm")
    } else if equipment.smp > MOST_CPUS {
        refuse("runs at most 8 CPUs", "--smp 8, or --on qemu-svm")
    } else if equipment.memory > MOST_MEMORY {
        refuse("takes at most 2048 MiB", "--memory 2048, or --on qemu-svm")
    } else {
        Ok(())
    }
}

/// Writes the machine's files and gives the command that starts it. `serial` is the path of a terminal device.
pub fn prepare(
    directory: &Path,
    equipment: &Equipment,
    tools: &Tools,
    serial: &str,
) -> Result<Command, MachineError> {
    check(equipment)?;
    let write =
        |name: &str, text: &str| fs::write(directory.join(name), text).map_err(failed(name));
    write(CONFIGURATION, &configuration(equipment, tools, serial))?;
    // Debian's Bochs starts in its debugger, which waits for this.
    write(DEBUGGER_COMMANDS, "c\n")?;
    let mut command = Command::new(&tools.emulator);
    command.args(["-q", "-f", CONFIGURATION, "-rc", DEBUGGER_COMMANDS]);
    Ok(command)
}

/// The configuration file.
fn configuration(equipment: &Equipment, tools: &Tools, serial: &str) -> String {
    let model = match equipment.kind {
        Kind::BochsSvm => "ryzen",
        _ if equipment.predictions => "corei7_icelake_u",
        _ => "corei7_skylake_x",
    };
    let Equipment {
        smp,
        threads,
        memory,
        ..
    } = equipment;
    // A package each: with two cores in one, the firmware of a Ryzen ends in an exception.
    let packages = smp / threads;
    let firmware = tools.firmware.code.display();
    let mut text = String::new();
    let mut add = |line: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    // A remote frame buffer needs no window system; `timeout=0` lets it start without a viewer.
    add(format_args!("display_library: rfb, options=\"timeout=0\""));
    add(format_args!("romimage: file=\"{firmware}\""));
    if let Some(video) = &tools.video {
        add(format_args!("vgaromimage: file=\"{}\"", video.display()));
    }
    // `ips` is how fast the clock runs against instructions; with `sync=none` it is exact, not the speed of this host.
    add(format_args!(
        "cpu: model={model}, count={packages}:1:{threads}, ips=50000000, reset_on_triple_fault=0"
    ));
    add(format_args!("memory: guest={memory}, host={memory}"));
    add(format_args!("pci: enabled=1, chipset=i440fx"));
    add(format_args!(
        "vga: extension=vbe, update_freq=1, realtime=0"
    ));
    add(format_args!("clock: sync=none, time0=946681200"));
    add(format_args!("com1: enabled=1, mode=term, dev={serial}"));
    add(format_args!(
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14"
    ));
    add(format_args!(
        "ata0-master: type=disk, path=\"{DISK}\", mode=flat"
    ));
    add(format_args!("boot: disk"));
    add(format_args!("sound: waveoutdrv=dummy"));
    add(format_args!("speaker: enabled=0"));
    // A port that reads its own number: by it the kernel knows Bochs.
    add(format_args!("port_e9_hack: enabled=1"));
    add(format_args!("log: {LOG}"));
    add(format_args!("panic: action=report"));
    for level in ["error", "info", "debug"] {
        add(format_args!("{level}: action=ignore"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::packages::Firmware;

    fn tools() -> Tools {
        Tools {
            emulator: "/usr/bin/bochs".into(),
            firmware: Firmware {
                code: "/fw/OVMF.fd".into(),
                variables: None,
            },
            video: Some("/v/vgabios.bin".into()),
        }
    }

    fn equipment(kind: Kind) -> Equipment {
        Equipment {
            kind,
            smp: 2,
            threads: 1,
            memory: 1024,
            display: false,
            gdb: None,
            instruction_ns: None,
            recorded: false,
            predictions: false,
        }
    }

    #[test]
    fn the_cpu_follows_the_kind() {
        let text = configuration(&equipment(Kind::BochsVmx), &tools(), "/dev/pts/7");
        assert!(
            text.contains("cpu: model=corei7_skylake_x, count=2:1:1,"),
            "{text}"
        );
        assert!(text.contains("memory: guest=1024, host=1024\n"));
        assert!(text.contains("com1: enabled=1, mode=term, dev=/dev/pts/7\n"));
        assert!(text.contains("romimage: file=\"/fw/OVMF.fd\"\n"));
        assert!(
            configuration(&equipment(Kind::BochsSvm), &tools(), "x")
                .contains("model=ryzen, count=2:1:1,")
        );
    }

    #[test]
    fn the_debugger_is_told_to_continue() {
        let directory = tempfile::tempdir().unwrap();
        let command = prepare(directory.path(), &equipment(Kind::BochsVmx), &tools(), "x").unwrap();
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments, ["-q", "-f", "bochsrc", "-rc", "continue.rc"]);
        assert_eq!(
            fs::read(directory.path().join("continue.rc")).unwrap(),
            b"c\n"
        );
    }

    #[test]
    fn what_bochs_cannot_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let refused = |equipment: Equipment| {
            matches!(
                prepare(directory.path(), &equipment, &tools(), "x"),
                Err(MachineError::Equipment { .. })
            )
        };
        assert!(refused(Equipment {
            gdb: Some(1),
            ..equipment(Kind::BochsVmx)
        }));
        assert!(refused(Equipment {
            smp: 9,
            ..equipment(Kind::BochsVmx)
        }));
        assert!(refused(Equipment {
            memory: 2049,
            ..equipment(Kind::BochsVmx)
        }));
        assert!(!refused(Equipment {
            smp: 8,
            memory: 2048,
            ..equipment(Kind::BochsVmx)
        }));
    }
}
