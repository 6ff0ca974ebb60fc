//! The emulators and their firmware, and the C compiler for guests: where they are, and the packages that bring them.
//!
//! As root on a system with apt, missing packages are installed; anywhere else the exact command is told.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::process::geteuid;

use super::{Permission, find_program};
use crate::machine::Kind;
use crate::progress::{self, CommandError, Step};

/// UEFI firmware for QEMU, code first: Debian and Ubuntu, Fedora, Arch.
const QEMU_FIRMWARE: [(&str, &str); 6] = [
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
        "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-code.bin",
        "/usr/share/qemu/ovmf-x86_64-vars.bin",
    ),
];

/// UEFI firmware for Bochs: code and variables in one file of exactly 2 MiB.
const BOCHS_FIRMWARE: [&str; 4] = [
    "/usr/share/ovmf/OVMF.fd",
    "/usr/share/edk2/ovmf/OVMF.fd",
    "/usr/share/edk2/x64/OVMF.fd",
    "/usr/share/edk2-ovmf/x64/OVMF.fd",
];
const BOCHS_FIRMWARE_SIZE: u64 = 2 << 20;

/// Video firmware for Bochs.
const BOCHS_VIDEO: [&str; 4] = [
    "/usr/share/vgabios/vgabios.bin",
    "/usr/share/bochs/VGABIOS-lgpl-latest",
    "/usr/share/bochs/VGABIOS-lgpl-latest.bin",
    "/usr/local/share/bochs/VGABIOS-lgpl-latest",
];

/// How old apt's lists may be before they are fetched again.
const LISTS_STALE: Duration = Duration::from_hours(24 * 7);

/// UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// The code, read-only.
    pub code: PathBuf,
    /// The template of the variables, where they are in a file of their own.
    pub variables: Option<PathBuf>,
}

/// What it takes to start a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    /// The emulator.
    pub emulator: PathBuf,
    /// Its UEFI firmware.
    pub firmware: Firmware,
    /// Its video firmware, if it must be named.
    pub video: Option<PathBuf>,
}

/// A thing that a package brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `qemu-system-x86_64`.
    Qemu,
    /// UEFI firmware for QEMU.
    QemuFirmware,
    /// `bochs`.
    Bochs,
    /// UEFI firmware for Bochs.
    BochsFirmware,
    /// Video firmware for Bochs.
    BochsVideo,
    /// `cc`.
    Compiler,
    /// `c++`.
    CxxCompiler,
}

impl Part {
    /// What a kind of machine, and the image that it boots, need.
    pub fn of(kind: Kind) -> &'static [Self] {
        if kind.is_bochs() {
            &[
                Self::Bochs,
                Self::BochsFirmware,
                Self::BochsVideo,
                Self::Compiler,
            ]
        } else {
            &[Self::Qemu, Self::QemuFirmware, Self::Compiler]
        }
    }

    /// What it is, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-system-x86_64",
            Self::QemuFirmware => "UEFI firmware for QEMU",
            Self::Bochs => "bochs",
            Self::BochsFirmware => "UEFI firmware for Bochs",
            Self::BochsVideo => "video firmware for Bochs",
            Self::Compiler => "cc",
            Self::CxxCompiler => "c++",
        }
    }

    /// Where it is, if it is there.
    pub fn find(self) -> Option<PathBuf> {
        let first = |paths: &[&str]| paths.iter().map(PathBuf::from).find(|path| path.is_file());
        match self {
            Self::Qemu => find_program("qemu-system-x86_64"),
            Self::QemuFirmware => qemu_firmware().map(|firmware| firmware.code),
            Self::Bochs => find_program("bochs"),
            Self::BochsFirmware => BOCHS_FIRMWARE.iter().map(PathBuf::from).find(|path| {
                path.metadata()
                    .is_ok_and(|data| data.len() == BOCHS_FIRMWARE_SIZE)
            }),
            Self::BochsVideo => first(&BOCHS_VIDEO),
            Self::Compiler => find_program("cc"),
            Self::CxxCompiler => find_program("c++"),
        }
    }

    /// The packages that bring it.
    pub const fn packages(self, manager: Manager) -> &'static [&'static str] {
        match (self, manager) {
            (Self::Qemu, Manager::Apt) => &["qemu-system-x86"],
            (Self::Qemu, Manager::Dnf) => &["qemu-system-x86-core"],
            (Self::Qemu, Manager::Pacman) => &["qemu-system-x86"],
            (Self::QemuFirmware | Self::BochsFirmware, Manager::Apt) => &["ovmf"],
            (Self::QemuFirmware | Self::BochsFirmware, Manager::Dnf) => &["edk2-ovmf"],
            (Self::QemuFirmware | Self::BochsFirmware, Manager::Pacman) => &["edk2-ovmf"],
            // bochs-term is the smallest of the displays, one of which the package `bochs` demands.
            (Self::Bochs, Manager::Apt) => &["bochs", "bochs-term"],
            (Self::Bochs, Manager::Dnf | Manager::Pacman) => &["bochs"],
            (Self::BochsVideo, Manager::Apt) => &["vgabios"],
            (Self::BochsVideo, Manager::Dnf | Manager::Pacman) => &["bochs"],
            (Self::Compiler, _) => &["gcc"],
            (Self::CxxCompiler, Manager::Apt) => &["g++"],
            (Self::CxxCompiler, Manager::Dnf) => &["gcc-c++"],
            (Self::CxxCompiler, Manager::Pacman) => &["gcc"],
        }
    }
}

fn qemu_firmware() -> Option<Firmware> {
    let (code, variables) = QEMU_FIRMWARE
        .iter()
        .find(|(code, variables)| Path::new(code).is_file() && Path::new(variables).is_file())?;
    Some(Firmware {
        code: code.into(),
        variables: Some(variables.into()),
    })
}

/// A package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Debian, Ubuntu.
    Apt,
    /// Fedora.
    Dnf,
    /// Arch.
    Pacman,
}

impl Manager {
    /// The one this system has.
    pub fn find() -> Option<Self> {
        let all = [
            (Self::Apt, "apt-get"),
            (Self::Dnf, "dnf"),
            (Self::Pacman, "pacman"),
        ];
        all.into_iter()
            .find(|(_, program)| find_program(program).is_some())
            .map(|(manager, _)| manager)
    }

    /// The command that brings packages.
    pub fn command(self, packages: &[&str], root: bool) -> String {
        let install = match self {
            Self::Apt => "apt-get install -y --no-install-recommends",
            Self::Dnf => "dnf install -y",
            Self::Pacman => "pacman -S --needed",
        };
        let sudo = if root { "" } else { "sudo " };
        format!("{sudo}{install} {}", packages.join(" "))
    }
}

/// The packages for some parts, each once.
pub fn packages_for(parts: &[Part], manager: Manager) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for package in parts.iter().flat_map(|part| part.packages(manager)) {
        if !packages.contains(package) {
            packages.push(*package);
        }
    }
    packages
}

/// What to do about missing parts, in one line.
pub fn advice(parts: &[Part]) -> String {
    match Manager::find() {
        Some(manager) => manager.command(&packages_for(parts, manager), geteuid().is_root()),
        None => "install QEMU, OVMF or Bochs with this system's package manager".to_owned(),
    }
}

/// Why tools are not there.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// They are missing and this program must not or cannot install them.
    #[error("{what} needs what is missing here: {missing}\n  {why}\n  try: {advice}")]
    Missing {
        /// What needs them.
        what: String,
        /// The parts.
        missing: String,
        /// Why they are not installed right away.
        why: &'static str,
        /// The command to type.
        advice: String,
    },
    /// apt failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// The missing parts of a kind of machine.
pub fn missing(kind: Kind) -> Vec<Part> {
    Part::of(kind)
        .iter()
        .copied()
        .filter(|part| part.find().is_none())
        .collect()
}

/// Finds or installs what a kind of machine needs.
pub fn provide(kind: Kind, permission: Permission) -> Result<Tools, PackageError> {
    bring(kind.name(), &missing(kind), permission)?;
    tools(kind).ok_or_else(|| refusal(kind.name(), &missing(kind), MISPLACED))
}

/// Finds or installs a part that `what` needs.
pub fn provide_part(what: &str, part: Part, permission: Permission) -> Result<(), PackageError> {
    if part.find().is_none() {
        bring(what, &[part], permission)?;
    }
    match part.find() {
        Some(_) => Ok(()),
        None => Err(refusal(what, &[part], MISPLACED)),
    }
}

const MISPLACED: &str = "The packages do not hold it where it is looked for.";

/// Installs the parts, which are missing.
fn bring(what: &str, absent: &[Part], permission: Permission) -> Result<(), PackageError> {
    if !absent.is_empty() {
        let refuse = |why| Err(refusal(what, absent, why));
        match (permission, Manager::find(), geteuid().is_root()) {
            (Permission::Refused, ..) => return refuse("--no-install forbids to install it."),
            (_, Some(Manager::Apt), true) => install(&packages_for(absent, Manager::Apt))?,
            (_, Some(Manager::Apt), false) => return refuse("Only root can install it."),
            _ => return refuse("It is not installed automatically on this system."),
        }
    }
    Ok(())
}

fn refusal(what: &str, parts: &[Part], why: &'static str) -> PackageError {
    let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
    PackageError::Missing {
        what: what.to_owned(),
        missing: names.join(", "),
        why,
        advice: advice(parts),
    }
}

/// The tools of a kind of machine, if all are there.
fn tools(kind: Kind) -> Option<Tools> {
    if kind.is_bochs() {
        let firmware = Firmware {
            code: Part::BochsFirmware.find()?,
            variables: None,
        };
        Some(Tools {
            emulator: Part::Bochs.find()?,
            firmware,
            video: Some(Part::BochsVideo.find()?),
        })
    } else {
        Some(Tools {
            emulator: Part::Qemu.find()?,
            firmware: qemu_firmware()?,
            video: None,
        })
    }
}

/// Installs Debian packages as root.
fn install(packages: &[&str]) -> Result<(), CommandError> {
    if lists_are_stale(Path::new("/var/lib/apt/lists"), SystemTime::now()) {
        let step = Step::start("apt-get update");
        progress::run(apt().arg("update"), &step, None)?;
        step.done("fetched");
    }
    let what = format!("apt-get install {}", packages.join(" "));
    let install = |step: &Step| {
        progress::run(
            apt()
                .args(["install", "-y", "--no-install-recommends"])
                .args(packages),
            step,
            None,
        )
    };
    let step = Step::start(what.clone());
    match install(&step) {
        Ok(_) => step.done("installed"),
        Err(_) => {
            // The lists may be younger than the limit and yet name files that the mirror has replaced.
            drop(step);
            let step = Step::start("apt-get update, and once more");
            progress::run(apt().arg("update"), &step, None)?;
            install(&step)?;
            step.done("installed");
        }
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    // Two checkouts may install at the same time: wait for the other's lock.
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=600"]);
    command
}

/// Whether apt's lists are missing or old.
fn lists_are_stale(lists: &Path, now: SystemTime) -> bool {
    let newest = std::fs::read_dir(lists)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        .filter_map(|entry| entry.metadata().ok()?.modified().ok())
        .max();
    newest.is_none_or(|newest| {
        now.duration_since(newest)
            .is_ok_and(|age| age > LISTS_STALE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_manager_has_its_command() {
        let parts = Part::of(Kind::BochsVmx);
        assert_eq!(
            packages_for(parts, Manager::Apt),
            ["bochs", "bochs-term", "ovmf", "vgabios", "gcc"]
        );
        assert_eq!(
            packages_for(parts, Manager::Dnf),
            ["bochs", "edk2-ovmf", "gcc"]
        );
        assert_eq!(
            Manager::Apt.command(&packages_for(Part::of(Kind::QemuSvm), Manager::Apt), true),
            "apt-get install -y --no-install-recommends qemu-system-x86 ovmf gcc"
        );
        assert_eq!(
            Manager::Pacman.command(&["bochs"], false),
            "sudo pacman -S --needed bochs"
        );
    }

    #[test]
    fn a_machine_needs_only_its_own() {
        assert!(!Part::of(Kind::QemuSvm).contains(&Part::Bochs));
        assert!(!Part::of(Kind::BochsSvm).contains(&Part::Qemu));
        let error = refusal("qemu-svm", &[Part::Qemu], "why").to_string();
        assert!(
            error.contains("qemu-system-x86_64") && error.contains("try: "),
            "{error}"
        );
    }

    #[test]
    fn lists_are_stale_when_missing_or_old() {
        let lists = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        assert!(lists_are_stale(lists.path(), now));
        std::fs::write(lists.path().join("lock"), "").unwrap();
        assert!(lists_are_stale(lists.path(), now));
        std::fs::write(
            lists
                .path()
                .join("mirror_dists_main_binary-amd64_Packages.lz4"),
            "",
        )
        .unwrap();
        assert!(!lists_are_stale(lists.path(), now));
        assert!(lists_are_stale(lists.path(), now + 2 * LISTS_STALE));
    }
}
