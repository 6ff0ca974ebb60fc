//! Builds the kernel, the guests and the loader, each for its target, in the release profile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::progress::{self, CommandError, Step};
use crate::provision::Permission;
use crate::provision::targets::{self, KERNEL, LOADER, TargetError, Toolchain};
use crate::workspace::{Workspace, WorkspaceError};

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
}

/// Everything that goes into an image.
#[derive(Debug, Clone)]
pub struct Build {
    /// The UEFI application.
    pub loader: PathBuf,
    /// The kernel's ELF file.
    pub kernel: PathBuf,
    /// The guests: name and ELF file, sorted by name.
    pub guests: Vec<(String, PathBuf)>,
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
        .chain(build.guests.iter().map(|(_, path)| path))
    {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds.
pub fn build(workspace: &Workspace, permission: Permission) -> Result<Build, BuildError> {
    let toolchain = targets::provide(permission)?;
    let guests = workspace.guests.iter().map(|guest| guest.package.as_str());
    let kernel_side: Vec<_> = std::iter::once(KERNEL_PACKAGE).chain(guests).collect();
    compile(&toolchain, "kernel and guests", KERNEL, &kernel_side)?;
    compile(&toolchain, "loader", LOADER, &[LOADER_PACKAGE])?;
    let built = |target: &str, name: &str| workspace.target.join(target).join("release").join(name);
    Ok(Build {
        loader: built(LOADER, &format!("{LOADER_PACKAGE}.efi")),
        kernel: built(KERNEL, KERNEL_PACKAGE),
        guests: workspace
            .guests
            .iter()
            .map(|guest| (guest.bin.clone(), built(KERNEL, &guest.bin)))
            .collect(),
    })
}

fn compile(
    toolchain: &Toolchain,
    what: &str,
    target: &str,
    packages: &[&str],
) -> Result<(), BuildError> {
    let step = Step::start(format!("building {what} for {target}"));
    let mut command = toolchain.cargo("build");
    command.args(["--release", "--target", target, "--bins"]);
    for package in packages {
        command.args(["--package", package]);
    }
    progress::run(&mut command, &step, None)?;
    step.done("built");
    Ok(())
}

/// Reads a file that the build made.
pub fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|error| BuildError::Missing(path.to_path_buf(), error))
}
