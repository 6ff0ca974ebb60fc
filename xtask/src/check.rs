//! Formatting and lints: what a change must pass before its tests are worth running.
//!
//! Every check runs even if an earlier one fails, so that one run shows everything there is to mend.

use std::process::{Command, ExitCode};

use crate::compile::{KERNEL_PACKAGE, LOADER_PACKAGE};
use crate::fuzz::PACKAGE as FUZZ_PACKAGE;
use crate::progress::{self, Step};
use crate::provision::Permission;
use crate::provision::targets::{self, KERNEL, LOADER};
use crate::workspace::Workspace;

/// The packages that run on the host as a whole.
const HOST_PACKAGES: [&str; 4] = ["plinth-abi", "plinth-bootimage", "plinth-image", "xtask"];
/// Those of which only the library builds on the host.
const LIBRARIES: [&str; 3] = [KERNEL_PACKAGE, LOADER_PACKAGE, "plinth-guest-control"];

/// `cargo xtask check`.
pub fn main(permission: Permission) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::load()?;
    let toolchain = targets::provide(permission)?;
    let clippy = |arguments: &[&str], packages: &[&str]| {
        let mut command = toolchain.cargo("clippy");
        command.args(arguments);
        for package in packages {
            command.args(["--package", package]);
        }
        command.args(["--", "-D", "warnings"]);
        command
    };
    let mut format = toolchain.cargo("fmt");
    format.args(["--all", "--check"]);
    let guests: Vec<_> = workspace
        .guests
        .iter()
        .map(|guest| guest.package.as_str())
        .collect();
    let kernel_side: Vec<_> = [KERNEL_PACKAGE, "plinth-rt"]
        .into_iter()
        .chain(guests)
        .collect();
    let checks: [(&str, Command); 6] = [
        ("rustfmt", format),
        (
            "clippy of the host's packages",
            clippy(&["--all-targets"], &HOST_PACKAGES),
        ),
        (
            "clippy of libraries' host tests",
            clippy(&["--lib", "--tests"], &LIBRARIES),
        ),
        // Apart from the others: it turns on features of theirs. The program for libFuzzer would need a C++ compiler.
        (
            "clippy of the fuzz targets",
            clippy(&["--all-targets"], &[FUZZ_PACKAGE]),
        ),
        (
            "clippy of the kernel and the guests",
            clippy(&["--release", "--target", KERNEL], &kernel_side),
        ),
        (
            "clippy of the loader",
            clippy(&["--release", "--target", LOADER], &[LOADER_PACKAGE]),
        ),
    ];
    let mut failed = Vec::new();
    for (what, mut command) in checks {
        let step = Step::start(what);
        match progress::run(&mut command, &step, None) {
            Ok(_) => step.done("clean"),
            Err(error) => {
                step.done("FAILED");
                eprintln!("error: {error}");
                failed.push(what);
            }
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}
