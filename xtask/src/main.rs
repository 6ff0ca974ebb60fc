//! `cargo xtask`: builds Plinth, writes its disk image, boots it in an emulator, tests it, and says what a machine lacks.
//!
//! One file a task. Every error carries a line that starts with `try:` and says what to do about it. Nothing that this
//! program starts outlives it, and nothing is installed without being announced first.

mod bench;
mod check;
mod compile;
mod console;
mod coverage;
mod doctor;
mod fuzz;
mod guard;
mod header;
mod image;
mod initramfs;
mod linux;
mod machine;
mod progress;
mod provision;
mod run;
mod script;
mod serial;
mod stats;
mod test;
mod workspace;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::provision::Permission;

/// The tasks of Plinth.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Builds everything, boots it in a machine and connects the terminal to the serial console
    Run(run::Options),
    /// Runs the host tests and the machine tests; the last line is `N passed, N failed`
    Test(test::Options),
    /// Measures what exits and domains cost, in executed instructions, and compares with the baseline
    Bench(bench::Options),
    /// Writes the bootable disk image
    Image(ImageOptions),
    /// Writes the C header of the contract with guests
    Header(HeaderOptions),
    /// Says what this machine has, what is missing and how to get it
    Doctor,
    /// Builds the kernel, the guests and the loader
    Build(Install),
    /// Runs the fuzz targets, for a while each
    Fuzz(fuzz::Options),
    /// Runs the host tests and tells how many lines of code they run
    Coverage(Install),
    /// Counts lines of code and unsafe blocks, without tests
    Stats,
    /// Checks formatting and runs clippy on every package for its target
    Check(Install),
}

/// The option that every task with provisioning has.
#[derive(Debug, Args)]
pub struct Install {
    /// Install nothing: say what is missing and stop
    #[arg(long)]
    pub no_install: bool,
}

impl Install {
    /// Whether missing things may be installed.
    pub fn permission(&self) -> Permission {
        if self.no_install {
            Permission::Refused
        } else {
            Permission::Granted
        }
    }
}

#[derive(Debug, Args)]
struct ImageOptions {
    /// Where the image goes (default: plinth.img in the target directory)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The kernel command line, of Plinth; Linux's is --linux-append
    #[arg(long, value_name = "TEXT", default_value = "")]
    append: String,
    #[command(flatten)]
    install: Install,
    #[command(flatten)]
    linux: linux::Options,
}

#[derive(Debug, Args)]
struct HeaderOptions {
    /// Where the header goes (default: plinth.h in the target directory)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = guard::install() {
        return fail(&error, 1);
    }
    // The exit code of `run` is the machine's own: an error before there is a machine has one that no machine gives.
    let failed = if matches!(cli.task, Task::Run(_)) {
        run::NOT_RUN
    } else {
        1
    };
    let outcome = match cli.task {
        Task::Run(options) => run::main(&options),
        Task::Test(options) => test::main(&options),
        Task::Bench(options) => bench::main(&options),
        Task::Image(options) => image::main(
            options.out,
            &options.append,
            &options.linux,
            options.install.permission(),
        ),
        Task::Header(options) => header::main(options.out),
        Task::Doctor => doctor::main(),
        Task::Fuzz(options) => fuzz::main(&options),
        Task::Coverage(install) => coverage::main(&install),
        Task::Stats => stats::main(),
        Task::Build(install) => compile::main(install.permission()),
        Task::Check(install) => check::main(install.permission()),
    };
    // Explicit, because nothing runs after `main` returns that would do it.
    guard::clean_up();
    outcome.unwrap_or_else(|error| fail(&error, failed))
}

/// Shows an error with those of its causes that it does not tell itself.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    let mut told = error.to_string();
    eprintln!("error: {told}");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            eprintln!("  because: {cause}");
            told.push_str(&cause);
        }
    }
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_understands_its_options() {
        let cli = Cli::try_parse_from([
            "xtask",
            "run",
            "--on",
            "bochs-vmx",
            "--smp",
            "1",
            "--memory",
            "512",
            "--timeout",
            "9",
            "--script",
            "a; b",
            "--append",
            "log=debug",
            "--no-install",
            "--linux",
            "both",
            "--kernel",
            "bzImage",
            "--initrd",
            "initrd",
            "--linux-append",
            "quiet",
        ])
        .unwrap();
        let Task::Run(options) = cli.task else {
            panic!("not run")
        };
        assert_eq!(
            options.on,
            machine::Choice::Exactly(machine::Kind::BochsVmx)
        );
        assert_eq!(
            (options.smp, options.memory, options.timeout),
            (1, 512, Some(9))
        );
        assert!(options.install.no_install);
        assert!(Cli::try_parse_from(["xtask", "run", "--on", "pc"]).is_err());
        assert!(Cli::try_parse_from(["xtask", "run", "--smp", "0"]).is_err());
        assert!(Cli::try_parse_from(["xtask", "run", "--linux", "ubuntu"]).is_err());
    }
}
