//! Linux as a domain: which kernels go into an image, and as which machines.
//!
//! The machine `linux` has Debian's kernel for virtual machines, `linux-debian` the one for any computer; both have the initramfs
//! of [`crate::initramfs`]. An image carries them only where they are wanted, for they are larger than all the rest of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::image;
use crate::initramfs;
use crate::provision::Permission;
use crate::provision::linux::{self, LinuxError, Package};
use crate::workspace::Workspace;

/// The directory, under the workspace's, of the machine files and the first program.
const DIRECTORY: &str = "guests/linux";
/// The longest command line that a machine file may have.
const LONGEST: usize = 2048;

/// The options that say which Linux goes into an image, and with what.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Linux as a domain")]
// Each task that has these flattens them beside options of its own, and groups are named after the type.
#[group(skip)]
pub struct Options {
    /// Debian's kernels in the image: `cloud` is the machine linux, `debian` the machine linux-debian. Without this option it is
    /// `cloud`, if it can be had. What `guests=` names comes besides
    #[arg(long, value_name = "KERNELS")]
    linux: Option<Kernels>,
    /// A kernel for the machine linux, instead of Debian's: a bzImage. It is not Plinth's own kernel
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// An initrd or initramfs for the machine linux, instead of the one with busybox
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// More of Linux's command line, behind `console=ttyS0 panic=1`; for example plinth.run=COMMANDS, which the initramfs runs instead
    /// of a shell, `%20` standing for a blank in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    linux_append: String,
    /// How many vCPUs each Linux has, instead of what its machine file says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    linux_vcpus: Option<u32>,
}

/// A choice of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kernels {
    /// No Linux
    None,
    /// The kernel for virtual machines
    Cloud,
    /// The kernel for any computer
    Debian,
    /// Both
    Both,
}

/// A machine that runs Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `linux`
    Cloud,
    /// `linux-debian`
    Debian,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Cloud, Self::Debian];

    /// The machine's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cloud => "linux",
            Self::Debian => "linux-debian",
        }
    }

    /// The machine of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The package of its kernel.
    const fn package(self) -> Package {
        match self {
            Self::Cloud => Package::CloudKernel,
            Self::Debian => Package::Kernel,
        }
    }
}

/// What goes into an image for a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name, and that of its directory in the archive.
    pub name: &'static str,
    /// The text of its machine file.
    pub description: String,
    /// The kernel, a bzImage.
    pub kernel: Vec<u8>,
    /// The initramfs.
    pub initrd: Vec<u8>,
}

/// What of a machine file is to be otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes<'a> {
    /// More of Linux's command line.
    pub append: &'a str,
    /// The number of vCPUs.
    pub vcpus: Option<u32>,
    /// Whether the machine starts with the control guest.
    pub autostart: Option<bool>,
}

impl Machine {
    /// This machine with changes to its file.
    pub fn with(&self, changes: &Changes<'_>) -> Result<Self, MachineError> {
        Ok(Self {
            description: change(&self.description, changes)?,
            ..self.clone()
        })
    }
}

/// Why there is no such machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Debian's files cannot be had.
    #[error(transparent)]
    Provision(#[from] LinuxError),
    /// A file cannot be read.
    #[error("cannot read {0}: {1}\n  try: look at whether the file is there, and whose it is")]
    Read(PathBuf, io::Error),
    /// It is no kernel.
    #[error(
        "{0} is no kernel in the format bzImage\n  try: arch/x86/boot/bzImage of a kernel's build, or a distribution's /boot/vmlinuz"
    )]
    NoKernel(PathBuf),
    /// A command line that cannot be.
    #[error(
        "Linux's command line {0}\n  try: words separated by blanks, in ASCII, {LONGEST} bytes at most"
    )]
    CommandLine(&'static str),
    /// The machine file has no line for it.
    #[error(
        "a machine file of Linux has no line `{0} = ...`\n  try: write one in {DIRECTORY}, for its value is to be changed"
    )]
    NoLine(&'static str),
    /// An option for a Linux that is not wanted.
    #[error("{0} has no Linux to go to\n  try: without --linux none")]
    Useless(&'static str),
}

/// The machines of an image for a person. Where Linux was not asked for and cannot be had, there is none, and it is said.
pub fn provide(
    workspace: &Workspace,
    options: &Options,
    command_line: &str,
    permission: Permission,
) -> Result<Vec<Machine>, MachineError> {
    let kinds = options.kinds(command_line);
    if kinds.is_empty() {
        if !options.linux_append.is_empty() {
            return Err(MachineError::Useless("--linux-append"));
        }
        if options.linux_vcpus.is_some() {
            return Err(MachineError::Useless("--linux-vcpus"));
        }
    }
    match machines(workspace, &kinds, options, permission) {
        Err(MachineError::Provision(error)) if !options.is_explicit(command_line) => {
            eprintln!("the image goes without Linux: {error}");
            Ok(Vec::new())
        }
        result => result,
    }
}

/// These machines, as `options` want them.
pub fn machines(
    workspace: &Workspace,
    kinds: &[Kind],
    options: &Options,
    permission: Permission,
) -> Result<Vec<Machine>, MachineError> {
    // What the user gave is looked at before anything is fetched.
    let given = |file: &Option<PathBuf>| file.as_deref().map(read).transpose();
    let (kernel, initrd) = (given(&options.kernel)?, given(&options.initrd)?);
    if let (Some(path), Some(bytes)) = (&options.kernel, &kernel)
        && !is_kernel(bytes)
    {
        return Err(MachineError::NoKernel(path.clone()));
    }
    let directory = workspace.root.join(DIRECTORY);
    let descriptions = kinds
        .iter()
        .map(|kind| {
            describe(
                &directory.join(format!("{}.toml", kind.name())),
                &options.changes(),
            )
        })
        .collect::<Result<Vec<_>, _>>()?;

    linux::provide(&options.packages(kinds), permission)?;
    let mut machines = Vec::new();
    for (&kind, description) in kinds.iter().zip(descriptions) {
        // What is given is the machine `linux`'s.
        let (kernel, initrd) = match kind {
            Kind::Cloud => (kernel.clone(), initrd.clone()),
            Kind::Debian => (None, None),
        };
        machines.push(Machine {
            name: kind.name(),
            description,
            kernel: match kernel {
                Some(kernel) => kernel,
                None => debian_kernel(kind.package())?,
            },
            initrd: match initrd {
                Some(initrd) => initrd,
                None => initramfs::build(
                    &cached(Package::Busybox)?.1,
                    &read(&directory.join("init"))?,
                ),
            },
        });
    }
    Ok(machines)
}

impl Options {
    /// The machines that are wanted.
    fn kinds(&self, command_line: &str) -> Vec<Kind> {
        let wanted = |kind: Kind| {
            let chosen = match self.linux {
                None | Some(Kernels::Cloud) => kind == Kind::Cloud,
                Some(Kernels::Debian) => kind == Kind::Debian,
                Some(Kernels::Both) => true,
                Some(Kernels::None) => false,
            };
            let given = kind == Kind::Cloud && (self.kernel.is_some() || self.initrd.is_some());
            chosen || given || is_named(kind, command_line)
        };
        Kind::ALL.into_iter().filter(|&kind| wanted(kind)).collect()
    }

    /// Whether Linux was asked for, so that an image without it would not do.
    fn is_explicit(&self, command_line: &str) -> bool {
        self.linux.is_some()
            || self.kernel.is_some()
            || self.initrd.is_some()
            || !self.linux_append.is_empty()
            || self.linux_vcpus.is_some()
            || Kind::ALL.iter().any(|&kind| is_named(kind, command_line))
    }

    /// What they change in machine files.
    fn changes(&self) -> Changes<'_> {
        Changes {
            append: &self.linux_append,
            vcpus: self.linux_vcpus,
            autostart: None,
        }
    }

    /// The packages that some machines take files from.
    fn packages(&self, kinds: &[Kind]) -> Vec<Package> {
        let is_given = |kind: Kind, file: &Option<PathBuf>| kind == Kind::Cloud && file.is_some();
        let mut packages: Vec<_> = kinds
            .iter()
            .filter(|&&kind| !is_given(kind, &self.kernel))
            .map(|kind| kind.package())
            .collect();
        if kinds.iter().any(|&kind| !is_given(kind, &self.initrd)) {
            packages.push(Package::Busybox);
        }
        packages
    }
}

/// Whether the kernel's command line names a machine to be run.
fn is_named(kind: Kind, command_line: &str) -> bool {
    let guests = image::option(command_line, "guests").unwrap_or_default();
    guests.split(',').any(|name| name == kind.name())
}

/// The text of a machine file, with changes.
fn describe(path: &Path, changes: &Changes<'_>) -> Result<String, MachineError> {
    let text =
        fs::read_to_string(path).map_err(|error| MachineError::Read(path.to_path_buf(), error))?;
    change(&text, changes)
}

/// A machine file's text with changes.
fn change(text: &str, changes: &Changes<'_>) -> Result<String, MachineError> {
    let mut text = extend(text, changes.append)?;
    if let Some(vcpus) = changes.vcpus {
        text = replace(&text, "vcpus", &vcpus.to_string())?;
    }
    if let Some(autostart) = changes.autostart {
        text = replace(&text, "autostart", &autostart.to_string())?;
    }
    Ok(text)
}

/// Whether a line of a machine file is that of a key.
fn is_of(line: &str, key: &str) -> bool {
    line.split('=').next().map(str::trim) == Some(key)
}

/// A machine file's text with another value of a key, which stands on a line of its own.
fn replace(text: &str, key: &'static str, value: &str) -> Result<String, MachineError> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let line = lines.iter_mut().find(|line| is_of(line, key));
    *line.ok_or(MachineError::NoLine(key))? = format!("{key} = {value}");
    lines.push(String::new());
    Ok(lines.join("\n"))
}

/// A machine file's text with more behind its command line.
fn extend(text: &str, more: &str) -> Result<String, MachineError> {
    const KEY: &str = "command-line";
    let more = more.trim();
    if more.is_empty() {
        return Ok(text.to_owned());
    }
    if more.chars().any(|c| c.is_control() || !c.is_ascii()) {
        return Err(MachineError::CommandLine(
            "holds a control character, or one beyond ASCII",
        ));
    }
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let line = lines.iter_mut().find(|line| is_of(line, KEY));
    let line = line.ok_or(MachineError::NoLine(KEY))?;
    let end = line.rfind('"').ok_or(MachineError::NoLine(KEY))?;
    // The value is a basic string: what would end it, or begin an escape, is escaped.
    let escaped = more.replace('\\', r"\\").replace('"', r#"\""#);
    line.insert_str(end, &format!(" {escaped}"));
    if line.len() > LONGEST {
        return Err(MachineError::CommandLine("is too long"));
    }
    lines.push(String::new());
    Ok(lines.join("\n"))
}

/// Debian's kernel from the cache.
fn debian_kernel(package: Package) -> Result<Vec<u8>, MachineError> {
    let (path, bytes) = cached(package)?;
    if is_kernel(&bytes) {
        Ok(bytes)
    } else {
        Err(MachineError::NoKernel(path))
    }
}

/// A package's file from the cache.
fn cached(package: Package) -> Result<(PathBuf, Vec<u8>), MachineError> {
    let path = package.find().ok_or(LinuxError::NoCache)?;
    let bytes = read(&path)?;
    Ok((path, bytes))
}

fn read(path: &Path) -> Result<Vec<u8>, MachineError> {
    fs::read(path).map_err(|error| MachineError::Read(path.to_path_buf(), error))
}

/// Whether this is a kernel that a boot loader can start: Linux's boot protocol 2.00 or later (`Documentation/arch/x86/boot.rst`).
fn is_kernel(bytes: &[u8]) -> bool {
    bytes.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && bytes.get(0x202..0x206) == Some(b"HdrS")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::source_root;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &str) -> Options {
        let words = std::iter::once("x").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().options
    }

    fn workspace() -> Workspace {
        Workspace {
            root: source_root(),
            target: "/".into(),
            guests: vec![],
            packages: vec![],
            c_guests: vec![],
        }
    }

    /// The smallest thing that is taken for a kernel.
    fn kernel() -> Vec<u8> {
        let mut bytes = vec![0; 0x240];
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes
    }

    #[test]
    fn the_options_say_which_machines() {
        use Kind::{Cloud, Debian};
        let cases: [(&str, &str, &[Kind], bool); 11] = [
            ("", "", &[Cloud], false),
            ("", "guests=hello", &[Cloud], false),
            ("", "guests=hello,linux", &[Cloud], true),
            ("", "guests=linux-debian", &[Cloud, Debian], true),
            ("--linux none", "", &[], true),
            ("--linux none", "guests=linux", &[Cloud], true),
            ("--linux debian", "", &[Debian], true),
            ("--linux both", "", &[Cloud, Debian], true),
            ("--linux none --kernel k", "", &[Cloud], true),
            ("--linux-append quiet", "", &[Cloud], true),
            ("--linux-vcpus 8", "", &[Cloud], true),
        ];
        for (line, command_line, kinds, explicit) in cases {
            let options = options(line);
            assert_eq!(options.kinds(command_line), kinds, "{line} {command_line}");
            assert_eq!(
                options.is_explicit(command_line),
                explicit,
                "{line} {command_line}"
            );
        }
    }

    #[test]
    fn what_is_given_is_not_fetched() {
        let packages = |line: &str, kinds: &[Kind]| options(line).packages(kinds);
        assert_eq!(
            packages("", &Kind::ALL),
            [Package::CloudKernel, Package::Kernel, Package::Busybox]
        );
        assert_eq!(packages("--kernel k", &[Kind::Cloud]), [Package::Busybox]);
        assert_eq!(packages("--kernel k --initrd i", &[Kind::Cloud]), []);
        assert_eq!(
            packages("--kernel k --initrd i", &Kind::ALL),
            [Package::Kernel, Package::Busybox]
        );
    }

    #[test]
    fn files_that_are_given_become_the_machine() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        fs::write(place("kernel"), kernel()).unwrap();
        fs::write(place("initrd"), "an initrd").unwrap();
        let mut options = Options {
            kernel: Some(place("kernel")),
            initrd: Some(place("initrd")),
            linux_append: " quiet ".into(),
            linux_vcpus: Some(8),
            ..Options::default()
        };
        let made = |options: &Options| provide(&workspace(), options, "", Permission::Refused);
        let machines = made(&options).unwrap();
        assert_eq!(machines.len(), 1);
        let machine = &machines[0];
        assert_eq!((machine.name, &machine.kernel), ("linux", &kernel()));
        assert_eq!(machine.initrd, b"an initrd");
        assert!(
            machine
                .description
                .contains("\"console=ttyS0 panic=1 quiet\"\n")
        );
        assert!(machine.description.contains("\nvcpus = 8\n"));

        options.kernel = Some(place("initrd"));
        assert!(
            matches!(made(&options), Err(MachineError::NoKernel(path)) if path == place("initrd"))
        );
        options.kernel = Some(place("nowhere"));
        assert!(matches!(made(&options), Err(MachineError::Read(..))));
    }

    #[test]
    fn an_option_for_no_linux_is_an_error() {
        for option in ["--linux-append quiet", "--linux-vcpus 8"] {
            let options = options(&format!("--linux none {option}"));
            let result = provide(&workspace(), &options, "", Permission::Refused);
            assert!(matches!(result, Err(MachineError::Useless(name)) if option.starts_with(name)));
        }
    }

    #[test]
    fn the_machine_files_are_as_the_archive_is() {
        for kind in Kind::ALL {
            let path = source_root()
                .join(DIRECTORY)
                .join(format!("{}.toml", kind.name()));
            let table: toml::Table = describe(&path, &Changes::default())
                .unwrap()
                .parse()
                .unwrap();
            let text = |key: &str| table[key].as_str().unwrap().to_owned();
            assert_eq!(text("image"), format!("{}/vmlinuz", kind.name()));
            assert_eq!(text("initrd"), format!("{}/initrd", kind.name()));
            assert_eq!(text("command-line"), "console=ttyS0 panic=1");
            assert_eq!(text("platform"), "pc");
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
    }

    #[test]
    fn other_values_take_the_place_of_those_in_the_file() {
        let file = "autostart = true # text\ncommand-line = \"a\"\nvcpus = 1\n";
        let changes = Changes {
            append: "b",
            vcpus: Some(8),
            autostart: Some(false),
        };
        assert_eq!(
            change(file, &changes).unwrap(),
            "autostart = false\ncommand-line = \"a b\"\nvcpus = 8\n"
        );
        assert_eq!(change(file, &Changes::default()).unwrap(), file);
        assert!(matches!(
            change("command-line = \"a\"\n", &changes),
            Err(MachineError::NoLine("vcpus"))
        ));
    }

    #[test]
    fn more_of_the_command_line_stays_one_value() {
        let file = "memory = 1\ncommand-line = \"a\" # text\nvcpus = 1\n";
        for more in ["b c", r#"x="a b" \n"#] {
            let text = extend(file, more).unwrap();
            let table: toml::Table = text.parse().unwrap();
            assert_eq!(table["command-line"].as_str(), Some(&*format!("a {more}")));
            assert_eq!(table["vcpus"].as_integer(), Some(1));
        }
        assert_eq!(extend(file, " ").unwrap(), file);
        for (file, bad) in [
            ("memory = 1\n", "b"),
            (file, "a\nb"),
            (file, "\u{e9}"),
            (file, &*"b".repeat(LONGEST)),
        ] {
            assert!(extend(file, bad).is_err(), "{file} {bad}");
        }
    }
}
