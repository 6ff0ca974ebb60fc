//! The tests that run on this computer: every package's part that touches no hardware.

use std::fs;
use std::process::Command;

use super::TestResult;
use super::libtest;
use crate::progress::{self, Step};
use crate::workspace::{Workspace, cargo};

/// The packages, and whether only their library can be built here.
const PACKAGES: [(&str, Option<&str>); 9] = [
    ("plinth-abi", None),
    ("plinth-kernel", Some("kernel")),
    ("plinth-loader", Some("bootimage/loader")),
    ("plinth-bootimage", None),
    ("plinth-image", None),
    ("plinth-devices", None),
    ("plinth-guest-control", Some("guests/control")),
    ("plinth-fuzz", None),
    ("xtask", None),
];

/// The seed of proptest's random cases where nobody asks for a number of them. A run fails then for what was changed, and fails
/// again; and not once in many for a case that nobody has had before.
const SEED: &str = "PROPTEST_RNG_SEED";
/// How many cases proptest tries, but for tests that say how many themselves.
const CASES: &str = "PROPTEST_CASES";

/// Tests the packages in which the filter can match; properties with so many random cases, or with the same ones each time.
pub fn test(
    workspace: &Workspace,
    filter: &str,
    cases: Option<u32>,
    mut report: impl FnMut(Vec<TestResult>),
) {
    for (package, library) in PACKAGES {
        let Some(inner) = inner_filter(package, filter) else {
            continue;
        };
        let mut command = command(workspace, package, library, cases);
        command.args(["--", inner]);
        let step = Step::start(format!("host tests of {package}"));
        match progress::capture(&mut command, &step, None) {
            Ok(output) => {
                let good = output.status.success();
                step.done(if good { "passed" } else { "FAILED" });
                if !good {
                    eprint!("{}", complaints(&output.all));
                }
                report(libtest::parse(
                    package,
                    &output.stdout,
                    &output.stderr,
                    good,
                ));
            }
            Err(error) => {
                eprintln!("error: {error}");
                report(vec![TestResult::failed(
                    format!("host/{package}/cargo-test"),
                    "cargo did not start",
                )]);
            }
        }
    }
}

/// The command that tests a package; its properties with so many random cases, or with the same ones each time.
fn command(
    workspace: &Workspace,
    package: &str,
    library: Option<&str>,
    cases: Option<u32>,
) -> Command {
    let mut command = Command::new(cargo());
    match cases {
        Some(cases) => command.env_remove(SEED).env(CASES, cases.to_string()),
        None => command.env(SEED, "1"),
    };
    command
        .current_dir(&workspace.root)
        .args(["test", "--no-fail-fast", "--package", package]);
    if let Some(directory) = library {
        command.arg("--lib");
        for name in integration_tests(workspace, directory) {
            command.args(["--test", &name]);
        }
    }
    command
}

/// The commands that test all packages, without the examples in their documentation.
pub fn commands(workspace: &Workspace) -> impl Iterator<Item = (&'static str, Command)> {
    PACKAGES.into_iter().map(|(package, library)| {
        let mut command = command(workspace, package, library, None);
        if library.is_none() {
            command.arg("--tests");
        }
        (package, command)
    })
}

/// The filter for libtest if a test of the package can match, given that full names are `host/PACKAGE/NAME`.
fn inner_filter<'a>(package: &str, filter: &'a str) -> Option<&'a str> {
    let prefix = format!("host/{package}/");
    if prefix.contains(filter) {
        return Some("");
    }
    match filter.strip_prefix(&prefix) {
        // A group such as `layout::` is no part of the name that libtest knows.
        Some(rest) => Some(rest.rsplit("::").next().unwrap_or_default()),
        None if filter.contains('/') => None,
        None => Some(filter.rsplit("::").next().unwrap_or_default()),
    }
}

/// The integration tests of a package: the files in its `tests` directory.
fn integration_tests(workspace: &Workspace, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(workspace.root.join(directory).join("tests"));
    let mut names: Vec<_> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".rs")
                .map(str::to_owned)
        })
        .collect();
    names.sort_unstable();
    names
}

/// The part of cargo's output that says what went wrong.
fn complaints(all: &str) -> String {
    let boring = |line: &str| {
        let line = line.trim_start();
        [
            "Compiling ",
            "Finished ",
            "Running ",
            "Downloaded ",
            "Downloading ",
        ]
        .iter()
        .any(|word| line.starts_with(word))
            || (line.starts_with("test ") && line.ends_with(" ... ok"))
    };
    all.lines()
        .filter(|line| !boring(line))
        .map(|line| format!("  | {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_reaches_libtest() {
        assert_eq!(inner_filter("plinth-abi", ""), Some(""));
        assert_eq!(inner_filter("plinth-abi", "host/"), Some(""));
        assert_eq!(inner_filter("plinth-abi", "abi"), Some(""));
        assert_eq!(
            inner_filter("plinth-abi", "host/plinth-abi/calls::numbers"),
            Some("numbers")
        );
        assert_eq!(inner_filter("plinth-abi", "frames"), Some("frames"));
        assert_eq!(inner_filter("plinth-abi", "host/xtask/"), None);
        assert_eq!(inner_filter("plinth-abi", "bochs-vmx/boot"), None);
    }

    #[test]
    fn complaints_leave_out_what_went_well() {
        assert_eq!(
            complaints("   Compiling x\ntest a ... ok\ntest b ... FAILED\n"),
            "  | test b ... FAILED\n"
        );
    }
}
