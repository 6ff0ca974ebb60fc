//! Builds the kernel, the guests and the loader, each for its target, in the release profile; and the guests in C with `cc`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::header;
use crate::progress::{self, CommandError, Step};
use crate::provision::Permission;
use crate::provision::targets::{self, KERNEL, LOADER, TargetError, Toolchain};
use crate::workspace::{self, C_SOURCE, Program, Workspace, WorkspaceError};

/// Why there is no build.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No workspace.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// No compiler.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The code does not compile.
    #[error(transparent)]
    Cargo(#[from] CommandError),
    /// cargo left no such file.
    #[error("cannot read {0}: {1}\n  try: cargo clean, then build again")]
    Missing(PathBuf, std::io::Error),
    /// The C header, or the place for guests in C.
    #[error(
        "cannot write {0}: {1}\n  try: look at whose the directory is, and at the disk's free space"
    )]
    Write(PathBuf, std::io::Error),
}

/// Everything that goes into an image.
#[derive(Debug, Clone)]
pub struct Build {
    /// The UEFI application.
    pub loader: PathBuf,
    /// The kernel's ELF file.
    pub kernel: PathBuf,
    /// The guests, sorted by name.
    pub guests: Vec<Guest>,
}

/// A guest.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its ELF file.
    pub elf: PathBuf,
    /// What machine it wants: its `machine.toml`, if it has one.
    pub machine: Option<PathBuf>,
    /// More that goes into the image for it, its `files/*`, sorted.
    pub files: Vec<PathBuf>,
}

impl Guest {
    fn new(name: &str, elf: PathBuf, directory: &Path) -> Self {
        // A guest without such a directory has no files.
        let entries = fs::read_dir(directory.join("files"));
        let mut files: Vec<_> = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        Self {
            name: name.to_owned(),
            elf,
            machine: Some(directory.join("machine.toml")).filter(|file| file.is_file()),
            files,
        }
    }
}

/// The kernel's package and program.
pub const KERNEL_PACKAGE: &str = "plinth-kernel";
/// The loader's package and program.
pub const LOADER_PACKAGE: &str = "plinth-loader";

/// `cargo xtask build`.
pub fn main(permission: Permission) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    let build = build(&workspace, permission)?;
    for path in [&build.loader, &build.kernel]
        .into_iter()
        .chain(build.guests.iter().map(|guest| &guest.elf))
    {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds.
pub fn build(workspace: &Workspace, permission: Permission) -> Result<Build, BuildError> {
    let toolchain = targets::provide(permission)?;
    let guests: Vec<_> = workspace.guests.iter().collect();
    let mut build = programs(&toolchain, workspace, &workspace.target, &guests, &[])?;
    build.guests.extend(compile_c(workspace)?);
    build.guests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(build)
}

/// What makes a release build tell the source lines of its instructions. The instructions are the same.
const WITH_LINES: [(&str, &str); 2] = [
    ("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only"),
    ("CARGO_PROFILE_RELEASE_STRIP", "none"),
];

/// Builds the kernel, the loader and those guests in Rust whose names are given, apart from the usual build: kernel and guests
/// tell the source lines of their instructions.
pub fn build_with_lines(
    workspace: &Workspace,
    permission: Permission,
    guests: &[&str],
) -> Result<Build, BuildError> {
    let toolchain = targets::provide(permission)?;
    let place = workspace.target.join("profile");
    let guests: Vec<_> = workspace
        .guests
        .iter()
        .filter(|guest| guests.contains(&guest.bin.as_str()))
        .collect();
    programs(&toolchain, workspace, &place, &guests, &WITH_LINES)
}

/// Builds the kernel and guests in Rust in `place`, with more of an environment, and the loader at its usual place.
fn programs(
    toolchain: &Toolchain,
    workspace: &Workspace,
    place: &Path,
    guests: &[&Program],
    environment: &[(&str, &str)],
) -> Result<Build, BuildError> {
    let packages = guests.iter().map(|guest| guest.package.as_str());
    let packages: Vec<_> = std::iter::once(KERNEL_PACKAGE).chain(packages).collect();
    let mut command = compile(toolchain, KERNEL, place, &packages);
    command.envs(environment.iter().copied());
    finish(&mut command, "kernel and guests", KERNEL)?;
    let mut command = compile(toolchain, LOADER, &workspace.target, &[LOADER_PACKAGE]);
    finish(&mut command, "loader", LOADER)?;
    let built =
        |place: &Path, target: &str, name: &str| place.join(target).join("release").join(name);
    let guest = |guest: &&Program| {
        let elf = built(place, KERNEL, &guest.bin);
        Guest::new(&guest.bin, elf, &guest.directory)
    };
    Ok(Build {
        loader: built(&workspace.target, LOADER, &format!("{LOADER_PACKAGE}.efi")),
        kernel: built(place, KERNEL, KERNEL_PACKAGE),
        guests: guests.iter().map(guest).collect(),
    })
}

/// Builds the guests in C.
fn compile_c(workspace: &Workspace) -> Result<Vec<Guest>, BuildError> {
    let place = workspace.target.join("c");
    fs::create_dir_all(&place).map_err(|error| BuildError::Write(place.clone(), error))?;
    // Another command may be building in this checkout: nobody sees a file that is half written.
    let scratch =
        tempfile::tempdir_in(&place).map_err(|error| BuildError::Write(place.clone(), error))?;
    let header = scratch.path().join(header::FILE);
    fs::write(&header, header::text()).map_err(|error| BuildError::Write(header, error))?;
    let mut guests = Vec::new();
    for directory in &workspace.c_guests {
        let Some(name) = workspace::name(directory) else {
            continue;
        };
        let step = Step::start(format!("building {name}, a guest in C"));
        let elf = place.join(name);
        let fresh = scratch.path().join(name);
        let mut command = c_compiler(scratch.path());
        command.arg("-nostdlib").arg("-static").arg("-T");
        command.arg(workspace.root.join("guests/rt/guest.ld"));
        command.arg("-Wl,--build-id=none").arg("-o").arg(&fresh);
        command.arg(directory.join(C_SOURCE));
        progress::run(&mut command, &step, None)?;
        fs::rename(&fresh, &elf).map_err(|error| BuildError::Write(elf.clone(), error))?;
        step.done("built");
        guests.push(Guest::new(name, elf, directory));
    }
    Ok(guests)
}

/// The C compiler, as guests need it: no host's library, no place above the interrupt's stack frame, no vector registers, which a
/// guest would have to turn on first, and nothing that runs before `_start`. `headers` is where [`header::FILE`] is.
pub fn c_compiler(headers: &Path) -> Command {
    let mut command = Command::new("cc");
    command.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-pedantic"]);
    command.args(["-m64", "-ffreestanding", "-fno-pic", "-no-pie"]);
    command.args(["-mno-red-zone", "-mgeneral-regs-only"]);
    command.args(["-fno-stack-protector", "-fno-asynchronous-unwind-tables"]);
    command.arg("-I").arg(headers);
    command
}

/// The command that builds the programs of some packages in `place`.
fn compile(toolchain: &Toolchain, target: &str, place: &Path, packages: &[&str]) -> Command {
    let mut command = toolchain.cargo("build");
    command
        .args(["--release", "--target", target, "--bins", "--target-dir"])
        .arg(place);
    for package in packages {
        command.args(["--package", package]);
    }
    command
}

fn finish(command: &mut Command, what: &str, target: &str) -> Result<(), BuildError> {
    let step = Step::start(format!("building {what} for {target}"));
    progress::run(command, &step, None)?;
    step.done("built");
    Ok(())
}

/// Reads a file that the build made.
pub fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|error| BuildError::Missing(path.to_path_buf(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_may_have_files() {
        let parent = tempfile::tempdir().unwrap();
        let guest = || Guest::new("g", "elf".into(), parent.path());
        assert!(guest().machine.is_none() && guest().files.is_empty());
        let files = parent.path().join("files");
        fs::create_dir_all(files.join("directory")).unwrap();
        for name in ["machine.toml", "files/b", "files/a"] {
            fs::write(parent.path().join(name), "").unwrap();
        }
        assert_eq!(guest().machine, Some(parent.path().join("machine.toml")));
        assert_eq!(guest().files, [files.join("a"), files.join("b")]);
    }
}
